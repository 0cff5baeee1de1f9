"""Reference files of extracted spectra: extract1d, apcorr, photom of SOSS, wavelengthrange (spec others §2.5-2.7, §4)."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.formats.fits_file import card_value, quietly
from streamimg3.formats.local_copy import one_line, open_seekable
from streamimg3.formats.reference_asdf import read_tree
from streamimg3.formats.reference_photom import read_time_tables
from streamimg3.store.series_documents import (
    ApertureCorrection,
    SeriesFacts,
    SpectralResponse,
    SpectrumAperture,
    WavelengthRange,
)

_PHASE = 0.5  # of a pixel, at which NIRSpec's aperture correction is taken
_APCORR_KEYS = {
    "MIRI": ("subarray",),
    "NIRSPEC": ("filter", "grating", "slit"),
    "NIRCAM": ("filter", "pupil"),
    "NIRISS": ("filter", "pupil"),
}
Columns = dict[str, NDArray[np.generic]]


# ---------------------------------------------------------------- extract1d
def read_extract1d(url: str, options: Mapping[str, str]) -> tuple[SpectrumAperture, ...]:
    """Return the target apertures of an extract1d reference file, in its order.

    Parameters
    ----------
    url : str
        Path or URL of a JSON file.
    options : mapping of str to str
        Storage options.

    Raises
    ------
    InputError
        If the file is no such file, or an aperture is not what it should be.
    """
    with open_seekable(url, options) as stream:
        data = stream.read()
    try:
        tree = json.loads(data)
    except ValueError as error:
        raise InputError(f"{url}: is no JSON file ({one_line(error)}): give an extract1d reference file") from error
    listed = tree.get("apertures") if isinstance(tree, dict) else None
    if not isinstance(listed, list):
        raise InputError(f"{url}: has no list 'apertures': give an extract1d reference file")
    wanted = [a for a in listed if a.get("id", "dummy") != "dummy" and a.get("region_type", "target") == "target"]
    return tuple(_aperture(a, url) for a in wanted)


def _aperture(given: Mapping[str, Any], url: str) -> SpectrumAperture:
    label = f"{url}: aperture {given.get('id')}"

    def number(name: str) -> float | None:
        value = given.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{label}: {name} is {value!r}, not a number")
        return float(value)

    def limits(name: str) -> tuple[tuple[float, ...], ...]:
        value = given.get(name) or ()
        try:
            found = tuple(tuple(float(v) for v in part) for part in value)
        except (TypeError, ValueError) as error:
            raise InputError(f"{label}: {name} is {value!r}, not a list of lists of numbers") from error
        if len(found) % 2 or not all(found):
            raise InputError(f"{label}: {name} must give lower and upper limits in turn, none of them empty")
        return found

    order, bkg_order, smoothing = given.get("spectral_order"), number("bkg_order"), number("smoothing_length")
    return SpectrumAperture(
        str(given["id"]), None if order in (None, "ANY") else int(order), number("xstart"), number("xstop"),
        number("ystart"), number("ystop"), number("extract_width"), limits("src_coeff"), limits("bkg_coeff"),
        str(given.get("independent_var", "pixel")).lower(), given.get("bkg_fit"),
        None if bkg_order is None else int(bkg_order), None if smoothing is None else round(smoothing),
        given.get("use_source_posn"),
    )  # fmt: skip


# ---------------------------------------------------------------- tables
def _table(url: str, options: Mapping[str, str], name: str) -> tuple[Columns, dict[str, Any]]:
    """Return the columns of a table by lower-case name, and the cards of its header and of the primary one."""
    from astropy.io import fits

    with open_seekable(url, options) as stream:
        data = stream.read()
    try:
        with quietly(), fits.open(io.BytesIO(data), memmap=False) as hdus:
            found = next((h for h in hdus if h.name.upper() == name), None)
            if found is None:
                raise InputError(f"{url}: has no extension {name}: give another reference file")
            cards = {k: card_value(h.header, k, url) for h in (hdus[0], found) for k in h.header if k}
            return {n.lower(): np.array(found.data[n]) for n in found.columns.names}, cards
    except (OSError, TypeError, ValueError) as error:
        raise InputError(f"{url}: cannot be read: {one_line(error)}") from error


def _rows(columns: Columns, wanted: Mapping[str, str | None]) -> NDArray[np.intp]:
    length = len(next(iter(columns.values()))) if columns else 0
    chosen = np.ones(length, np.bool_)
    for name, value in wanted.items():
        if name in columns:
            chosen &= np.array([_text(v) == (value or "").upper() for v in columns[name]], np.bool_)
    return np.flatnonzero(chosen)


def _text(value: object) -> str:
    return (value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)).strip().upper()


def _need(columns: Columns, name: str, url: str) -> NDArray[np.generic]:
    if name not in columns:
        raise InputError(f"{url}: has no column '{name}' (it has {', '.join(columns)}): give another reference file")
    return columns[name]


def read_spectral_apcorr(url: str, facts: SeriesFacts, options: Mapping[str, str]) -> ApertureCorrection:
    """Return the aperture correction of spectra for an exposure.

    Raises
    ------
    InputError
        If the file is no such file, or has not just one row for the exposure.
    """
    columns, cards = _table(url, options, "APCORR")
    wanted = {key: getattr(facts, key) for key in _APCORR_KEYS.get(facts.instrument or "", ())}
    rows = _rows(columns, wanted)
    if len(rows) != 1:
        shown = ", ".join(f"{k} {v or '(unknown)'}" for k, v in wanted.items())
        raise InputError(
            f"{url}: APCORR has {len(rows)} rows for {shown}, not 1: give extract_1d.override_apcorr another file"
        )
    row = int(rows[0])
    size, at, factor = (np.asarray(_need(columns, n, url)[row], np.float64) for n in ("size", "wavelength", "apcorr"))
    waves = int(columns["nelem_wl"][row]) if "nelem_wl" in columns else len(at)
    sizes = int(columns["nelem_size"][row]) if "nelem_size" in columns else size.shape[-1]
    if "pixphase" in columns:
        phases = np.asarray(columns["pixphase"][row], np.float64)
        place = int(np.clip(np.searchsorted(phases, _PHASE) - 1, 0, len(phases) - 2))
        part = (_PHASE - phases[place]) / (phases[place + 1] - phases[place])
        factor = factor[place] + part * (factor[place + 1] - factor[place])
    factor = factor[:waves, :sizes]
    deep = size.ndim == 2
    size = size[:waves, :sizes] if deep else size[:sizes]
    unit = str(cards.get("SIZEUNIT") or "pixels").lower()
    table = tuple(tuple(float(v) for v in line) for line in factor)
    return ApertureCorrection(tuple(map(float, at[:waves])), tuple(map(float, size.ravel())), table, unit, deep)


Times = dict[str, dict[str, float]]  # coefficients by kind of change with time


def read_soss_photom(
    url: str, facts: SeriesFacts, options: Mapping[str, str]
) -> tuple[tuple[SpectralResponse, Times], ...]:
    """Return the responses of all orders of NIRISS SOSS for an exposure's filter and pupil, and how they change with time.

    Raises
    ------
    InputError
        If the file is no such file, or an order has several rows.
    """
    columns, _ = _table(url, options, "PHOTOM")
    tables = read_time_tables(url, options, len(_need(columns, "photmj", url)))
    found: dict[int | None, tuple[SpectralResponse, Times]] = {}
    for row in _rows(columns, {"filter": facts.filter, "pupil": facts.pupil}):
        order = int(columns["order"][row]) if "order" in columns else None
        if order in found:
            raise InputError(
                f"{url}: PHOTOM has several rows for {facts.filter}, {facts.pupil} and order {order}; leave one"
            )
        count = int(_need(columns, "nelem", url)[row])
        at, relative = (np.atleast_1d(_need(columns, n, url)[row])[:count] for n in ("wavelength", "relresponse"))
        response = SpectralResponse(
            order, float(columns["photmj"][row]), tuple(map(float, at)), tuple(map(float, relative))
        )
        times = {kind: {n: float(v[row]) for n, v in table.items()} for kind, table in tables.items()}
        found[order] = response, times
    return tuple(found.values())


def read_wavelengthrange(url: str, options: Mapping[str, str]) -> tuple[WavelengthRange, ...]:
    """Return the rows of a wavelengthrange reference file; wavelengths in microns.

    Raises
    ------
    InputError
        If the file is no such file.
    """
    tree = read_tree(url, options, "wavelengthrange", needed=("wavelengthrange",))
    listed = tree["wavelengthrange"]
    try:
        return tuple(WavelengthRange(int(o), str(f), float(a), float(b)) for o, f, a, b in listed)  # type: ignore[attr-defined]
    except (TypeError, ValueError) as error:
        raise InputError(f"{url}: its wavelengthrange is no list of (order, filter, lowest, highest)") from error
