"""What distortion and filter-offset reference files say, from their ASDF trees (spec others §1.3, §4)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamimg3.errors import InputError

if TYPE_CHECKING:
    from astropy.modeling import Model

Tree = Mapping[str, object]
_BY_PUPIL = ("NIRCAM", "NIRISS")
_WITHOUT = ("FGS", "NIRSPEC")  # their filters do not move the image


@dataclass(frozen=True)
class FilterOffset:
    """By how much a filter moves the image, in pixels; added to a pixel before the distortion."""

    y: float
    x: float


def distortion_model(tree: Tree, name: str) -> Model:
    """Return the model of a distortion file: pixels (x, y), 0-based in the full frame, to V2, V3 in arcsec.

    Parameters
    ----------
    tree : mapping
        The file's ASDF tree.
    name : str
        The file, for messages.

    Returns
    -------
    Model
        The tree's own; not to be changed.

    Raises
    ------
    InputError
        If the file is of another type, or its model cannot be read, is no map of the plane or has no inverse.
    """
    _check_type(tree, name, "distortion")
    if "model" not in tree and "x_model" in tree:
        raise InputError(f"{name} holds the distortion of a spectrograph's slices: give that of an imaging detector")
    model = model_in(tree, "model", name, (2, 2))
    _check_units(tree, name)
    return model


def model_in(tree: Tree, key: str, name: str, axes: tuple[int, int]) -> Model:
    """Return a model of an ASDF tree.

    Parameters
    ----------
    tree, name
        As of `distortion_model`.
    key : str
        Where it lies.
    axes : tuple of 2 ints
        How many numbers it takes and gives.

    Raises
    ------
    InputError
        If there is no readable model, or it takes or gives something else or has no inverse.
    """
    from astropy.modeling import Model

    found = tree.get(key)
    if found is None:
        raise InputError(f"{name} has no '{key}': it is no reference file of this kind")
    if not isinstance(found, Model):
        raise InputError(
            f"{name}: its '{key}' is of a kind that this installation cannot read ({_kind(found)}): "
            "give a file whose models are those of astropy and gwcs"
        )
    if (found.n_inputs, found.n_outputs) != axes:
        counts = f"takes {found.n_inputs} and gives {found.n_outputs} numbers"
        raise InputError(f"{name}: its '{key}' {counts}; it must take {axes[0]} and give {axes[1]}")
    try:
        _ = found.inverse
    except NotImplementedError:
        raise InputError(f"{name}: its '{key}' has no inverse: give a file whose model has one") from None
    return found


def filter_offset(tree: Tree, name: str, instrument: str, optics: tuple[str | None, str | None]) -> FilterOffset | None:
    """Return the offset that a filter-offset file has for a filter.

    Parameters
    ----------
    tree : mapping
        The file's ASDF tree.
    name : str
        The file, for messages.
    instrument : str
        INSTRUME; NIRCam and NIRISS match filter and pupil, MIRI takes the first row of the filter, others have none.
    optics : tuple of 2 str or None
        FILTER and PUPIL.

    Returns
    -------
    FilterOffset or None
        None if no row matches, or the row says "N/A".

    Raises
    ------
    InputError
        If the file is of another type, has no usable table, or several rows match for NIRCam or NIRISS.
    """
    _check_type(tree, name, "filteroffset")
    rows = _rows(tree, name)
    if instrument.upper() in _WITHOUT:
        return None
    wanted = tuple(_text(v) for v in optics)
    if instrument.upper() in _BY_PUPIL:
        matches = [row for row in rows if (_of(row, "filter"), _of(row, "pupil")) == wanted]
        if len(matches) > 1:
            raise InputError(
                f"{name}: {len(matches)} rows for filter {wanted[0]} and pupil {wanted[1]}: leave one of them"
            )
    else:
        # Early files of MIRI call the column `name`.
        matches = [row for row in rows if (_of(row, "filter") or _of(row, "name")) == wanted[0]][:1]
    return _offset(matches[0], name) if matches else None


def _check_type(tree: Tree, name: str, wanted: str) -> None:
    """A file may say its type in ``meta`` or, if it is old, at the top; or not at all."""
    meta = tree.get("meta")
    found = meta.get("reftype") if isinstance(meta, Mapping) else None
    found = _text(found if found is not None else tree.get("reftype"))
    if found and found != wanted.upper():
        raise InputError(f"{name} is a {found.lower()} reference file: give a {wanted} file")


def _check_units(tree: Tree, name: str) -> None:
    """Models work on plain numbers, so a file in other units would be wrong by a factor."""
    from astropy import units

    meta = tree.get("meta")
    if not isinstance(meta, Mapping):
        return
    for key, wanted in (("input_units", units.pix), ("output_units", units.arcsec)):
        stated = meta.get(key)
        if stated is None:
            continue
        try:
            same = units.Unit(str(stated)) == wanted
        except ValueError:
            same = str(stated).strip().lower() in ("pixels", "arcseconds")
        if not same:
            raise InputError(f"{name}: {key} = {stated}: it must be {wanted}")


def _rows(tree: Tree, name: str) -> list[Mapping[str, object]]:
    found = tree.get("filters")
    if not isinstance(found, list | tuple):
        raise InputError(f"{name} has no list 'filters': it is no filteroffset reference file")
    rows = [row for row in found if isinstance(row, Mapping)]
    if len(rows) < len(found):
        raise InputError(f"{name}: an entry of 'filters' is no row of filter, pupil, column_offset and row_offset")
    return rows


def _offset(row: Mapping[str, object], name: str) -> FilterOffset | None:
    shifts: list[float] = []
    for key in ("row_offset", "column_offset"):
        value = row.get(key)
        if value is None or value == "N/A":
            return None
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(f"{name}: {key} = {value} in the row {_of(row, 'filter')}: it must be a number of pixels")
        shifts.append(float(value))
    return FilterOffset(*shifts)


def _of(row: Mapping[str, object], key: str) -> str:
    return _text(row.get(key))


def _text(value: object) -> str:
    return "" if value is None else str(value).strip().upper()


def _kind(value: object) -> str:
    tag = getattr(value, "_tag", None)  # what asdf leaves where it does not know the type
    return str(tag or type(value).__name__)
