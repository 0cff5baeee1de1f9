"""Many headers into one: the metadata of exposures, blended values, and HDRTAB with a row per exposure (image3 §8)."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from streamimg3.errors import StoreError
from streamimg3.formats.fits_file import parse_cards, quietly
from streamimg3.store import Exposure

Value = str | int | float | bool
# Place in the metadata tree ("meta.exposure.start_time") -> value; keyword -> value for files that are not JWST's
Metadata = dict[str, Value]

TABLE_COLUMNS = 999  # FITS has no more (FITS standard 4.0, section 7.3.1)
_DIGITS = 1e-12  # relative; a card of 20 characters holds 13 digits or more
_NOT_BLENDED = ("meta.filename", "meta.photometry.pixelarea_steradians", "meta.photometry.pixelarea_arcsecsq")
_BAD_TOLERANCE = "outside calibration tolerance"


@dataclass(frozen=True)
class Keyword:
    """A keyword of the JWST data model.

    Parameters
    ----------
    name, hdu : str
        The keyword and the extension it lives in.
    path : str
        Its place in the metadata tree.
    rule : str
        How values of several exposures are merged: ``min max mean sum multi wheeltol``; empty = the first's.
    in_table : bool
        Whether it is a column of HDRTAB.
    """

    name: str
    hdu: str
    path: str
    rule: str
    in_table: bool


@lru_cache(maxsize=1)
def jwst_keywords() -> tuple[Keyword, ...]:
    """Return all keywords of an image in the order of headers and of HDRTAB (tests/formats/jwst_keywords_recipe.py)."""
    rows = json.loads(Path(__file__).with_name("jwst_keywords.json").read_text(encoding="ascii"))
    return tuple(Keyword(name, hdu, path, rule, bool(table)) for name, hdu, path, rule, table in rows)


@lru_cache(maxsize=1)
def _by_keyword() -> Mapping[tuple[str, str], Keyword]:
    return {(k.hdu, k.name): k for k in jwst_keywords()}


def keyword_at(path: str) -> Keyword | None:
    """Return the keyword of a place in the metadata tree, or None."""
    return _by_path().get(path)


@lru_cache(maxsize=1)
def _by_path() -> Mapping[str, Keyword]:
    return {k.path: k for k in jwst_keywords()}


def card_values(cards: str) -> dict[str, Value]:
    """Return keyword -> value of joined 80-character cards.

    Commentary, cards without a value and cards that are not FITS are left out; of repeated keywords the first counts.
    """
    found: dict[str, Value] = {}
    for card in readable_cards(cards):
        found.setdefault(card.keyword, card.value)
    return found


def readable_cards(cards: str) -> Iterator[fits.Card]:
    """Yield the cards that hold a text, a number or a truth value."""
    with quietly():
        for card in parse_cards(cards).cards:
            try:
                value = card.value
            except (fits.VerifyError, ValueError):
                continue
            if card.keyword not in ("", "COMMENT", "HISTORY") and isinstance(value, bool | int | float | str):
                yield card


def exposure_metadata(exposure: Exposure) -> Metadata:
    """Return what the headers of a JWST exposure say, by place in the metadata tree.

    A card of 20 characters cuts long numbers short; where the exposure's own metadata tree agrees with the card, its
    value, which has all digits, is taken.

    Raises
    ------
    StoreError
        If the exposure's metadata tree is damaged.
    """
    known = _by_keyword()
    found: Metadata = {}
    for hdu, cards in (("PRIMARY", exposure.cards("primary")), ("SCI", exposure.cards("sci"))):
        for name, value in card_values(cards).items():
            if (hdu, name) in known:
                found[known[hdu, name].path] = value
    tree = _tree(exposure) if exposure.record.wcs_kind == "gwcs" else {}
    return {path: _sharpened(value, _at(tree, path)) for path, value in found.items()}


def _tree(exposure: Exposure) -> Mapping[str, object]:
    """Return the exposure's metadata tree as plain mappings, lists and scalars; no WCS object is built."""
    from asdf.util import load_yaml

    try:
        tree = load_yaml(io.BytesIO(exposure.wcs.text))
    except Exception as error:  # the YAML reader's errors have no public base class here
        line = " ".join(str(error).split())[:200]
        raise StoreError(
            f"the metadata of exposure {exposure.record.name} are damaged ({line}): ingest again"
        ) from error
    return tree if isinstance(tree, Mapping) else {}


def _at(tree: object, path: str) -> object:
    for name in path.split("."):
        if not isinstance(tree, Mapping):
            return None
        tree = tree.get(name)
    return tree


def _sharpened(value: Value, exact: object) -> Value:
    if isinstance(value, float) and isinstance(exact, float) and math.isclose(value, exact, rel_tol=_DIGITS):
        return exact
    return value


def blend(rows: Sequence[Metadata]) -> Metadata:
    """Merge the metadata of all exposures: the first one's, with the rules of the keywords that have one.

    Parameters
    ----------
    rows : sequence of Metadata
        One per exposure, in order, at least one.
    """
    merged = {path: value for path, value in rows[0].items() if path not in _NOT_BLENDED}
    for keyword in jwst_keywords():
        values = [row[keyword.path] for row in rows if keyword.path in row]
        if keyword.rule and values:
            merged[keyword.path] = merge(keyword.rule, values)
    return merged


def merge(rule: str, values: Sequence[Value]) -> Value:
    """Merge the values of one keyword; where text and numbers mix, those of the first one's kind count.

    Examples
    --------
    >>> merge("multi", ["NRCA1", "NRCA2"]), merge("min", ["02:00:00", "01:30:00"]), merge("mean", [1.0, 2.0])
    ('MULTIPLE', '01:30:00', 1.5)
    """
    alike = [v for v in values if isinstance(v, str) == isinstance(values[0], str)]
    if isinstance(values[0], str) and rule in ("mean", "sum"):
        return values[0]
    return _RULES[rule](alike)


def _multi(values: Sequence[Value]) -> Value:
    return values[0] if len(set(values)) == 1 else "MULTIPLE"


def _tolerance(values: Sequence[Value]) -> Value:
    return _BAD_TOLERANCE if _BAD_TOLERANCE in values else "within commanded tolerance"


_RULES: Mapping[str, Callable[[Sequence[Value]], Value]] = {
    "min": min,
    "max": max,
    "mean": lambda values: float(np.mean([float(v) for v in values])),
    "sum": lambda values: float(np.sum([float(v) for v in values])),
    "multi": _multi,
    "wheeltol": _tolerance,
}


@dataclass(frozen=True)
class Column:
    """A column of a FITS table.

    Parameters
    ----------
    name, form : str
        TTYPE and TFORM.
    values : ndarray
        One per row, as FITS stores them (big-endian numbers, padded bytes, T and F).
    """

    name: str
    form: str
    values: NDArray[np.generic]


def jwst_table(rows: Sequence[Metadata]) -> list[Column]:
    """Return HDRTAB: every table keyword that at least one exposure has; what is missing is NaN (text: ``nan``)."""
    columns = []
    for keyword in jwst_keywords():
        if keyword.in_table and any(keyword.path in row for row in rows):
            columns.append(_column(keyword.name, [row.get(keyword.path, math.nan) for row in rows]))
    return columns


def generic_table(rows: Sequence[Mapping[str, Value]]) -> list[Column]:
    """Return HDRTAB of any other exposures: all keywords, at most 999; missing text is empty, missing numbers are NaN."""
    names = list(dict.fromkeys(name for row in rows for name in row))[:TABLE_COLUMNS]
    columns = []
    for name in names:
        values = [row.get(name) for row in rows]
        absent: Value = "" if any(isinstance(v, str) for v in values) else math.nan
        columns.append(_column(name, [absent if v is None else v for v in values]))
    return columns


def _column(name: str, values: Sequence[Value]) -> Column:
    array = np.array(values)
    if array.dtype.kind in "uO":  # integers that 64 bits with a sign do not hold
        array = np.array([str(v) for v in values])
    if array.dtype.kind == "U":
        stored = np.char.encode(array, "ascii", "replace")
        width = array.dtype.itemsize // 4
        return Column(name, f"{width}A", stored.astype(f"S{width}"))
    if array.dtype.kind == "b":
        return Column(name, "L", np.where(array, b"T", b"F"))
    form, dtype = ("K", ">i8") if array.dtype.kind == "i" else ("D", ">f8")
    return Column(name, form, array.astype(dtype))


def packed(columns: Sequence[Column]) -> bytes:
    """Return the rows of a table one after the other."""
    if not columns:
        return b""
    rows = np.zeros(len(columns[0].values), [(f"c{i}", c.values.dtype) for i, c in enumerate(columns)])
    for i, column in enumerate(columns):
        rows[f"c{i}"] = column.values
    return rows.tobytes()
