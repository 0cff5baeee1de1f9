"""Reference files of aperture photometry: APCORR (FITS) and ABVEGAOFFSET (ASDF), by path or URL (spec image3 §9.1)."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.formats.fits_file import parse_cards
from streamimg3.formats.local_copy import one_line, open_seekable
from streamimg3.store import Observation
from streamimg3.store.documents import ApertureDocument, ApertureRow

Columns = dict[str, NDArray[np.generic]]

_APERTURE_KEYS = {
    "NIRCAM": ("filter", "pupil"),
    "NIRISS": ("filter", "pupil"),
    "MIRI": ("filter", "subarray"),
    "FGS": (),
}
_OFFSET_KEYS = {"NIRCAM": ("filter", "pupil"), "NIRISS": ("filter", "pupil"), "MIRI": ("filter",), "FGS": ("detector",)}
_KEYWORDS = {
    "instrument": "INSTRUME",
    "filter": "FILTER",
    "pupil": "PUPIL",
    "subarray": "SUBARRAY",
    "detector": "DETECTOR",
}


def read_apertures(obs: Observation, apcorr: str, abvegaoffset: str, options: Mapping[str, str]) -> ApertureDocument:
    """Return what reference files say for the optics of an observation.

    Parameters
    ----------
    obs : Observation
        A store with its exposures; the first one tells instrument, filter and pupil.
    apcorr, abvegaoffset : str
        Paths or URLs, "" = none.
    options : mapping of str to str
        Storage options of URLs.

    Returns
    -------
    ApertureDocument
        With a reason where a file has nothing for these optics; such a run makes no catalogue, as in the reference.

    Raises
    ------
    InputError
        If a file is missing or is no such reference file.
    """
    optics = optics_of(obs)
    instrument = optics["instrument"].upper()
    if (apcorr or abvegaoffset) and instrument not in _APERTURE_KEYS:
        text = (
            f"reference files know {', '.join(_APERTURE_KEYS)}, not the instrument {instrument or 'of these exposures'}"
        )
        return ApertureDocument(apcorr, abvegaoffset, optics, reason=text)
    rows: tuple[ApertureRow, ...] = ()
    offset, reasons = None, []
    if apcorr:
        rows = _apertures(apcorr, _fits_columns(apcorr, options), {k: optics[k] for k in _APERTURE_KEYS[instrument]})
        if not rows:
            reasons.append(f"{apcorr} has no row for {_shown(optics, _APERTURE_KEYS[instrument])}")
    if abvegaoffset:
        found = _asdf_columns(abvegaoffset, options)
        chosen = _chosen(abvegaoffset, found, {k: optics[k] for k in _OFFSET_KEYS[instrument]})
        values = _column(abvegaoffset, found, "abvega_offset")[chosen]
        if len(values) == 1:
            offset = float(values[0])
        else:
            count = "no row" if not len(values) else f"{len(values)} rows"
            reasons.append(f"{abvegaoffset} has {count} for {_shown(optics, _OFFSET_KEYS[instrument])}")
    return ApertureDocument(apcorr, abvegaoffset, optics, rows, offset, "; ".join(reasons) or None)


def optics_of(obs: Observation) -> dict[str, str]:
    """Return instrument, filter, pupil, subarray and detector of the first exposure; MULTIPLE where detectors differ."""
    exposures = obs.exposures(aligned=False)
    header = parse_cards(exposures[0].cards("primary"))
    found = {name: str(header.get(keyword, "")).strip() for name, keyword in _KEYWORDS.items()}
    if len({e.record.detector for e in exposures}) > 1:
        found["detector"] = "MULTIPLE"
    return found


def _shown(optics: Mapping[str, str], keys: tuple[str, ...]) -> str:
    return ", ".join(f"{k} {optics[k] or '(unknown)'}" for k in keys) or optics["instrument"]


def _apertures(url: str, found: Columns, selector: Mapping[str, str]) -> tuple[ApertureRow, ...]:
    chosen = _chosen(url, found, selector)
    # numbers are float32 in these files, whatever the copy at hand says
    numbers = [
        _column(url, found, n)[chosen].astype(np.float32).astype(np.float64).tolist()
        for n in ("eefraction", "radius", "apcorr", "skyin", "skyout")
    ]
    return tuple(ApertureRow(round(e * 100), *rest) for e, *rest in zip(*numbers, strict=True))


def _column(url: str, found: Columns, name: str) -> NDArray[np.generic]:
    if name not in found:
        raise InputError(f"{url}: has no column '{name}' (it has {', '.join(found)}): give another reference file")
    return found[name]


def _chosen(url: str, found: Columns, selector: Mapping[str, str]) -> NDArray[np.bool_]:
    """Return which rows have the selector's values."""
    length = len(next(iter(found.values()))) if found else 0
    chosen = np.ones(length, np.bool_)
    for name, value in selector.items():
        chosen &= np.array([_plain(v) == value for v in _column(url, found, name)], np.bool_)
    return chosen


def _plain(value: object) -> str:
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
    return text.strip()


def _fits_columns(url: str, options: Mapping[str, str]) -> Columns:
    from astropy.io import fits

    with open_seekable(url, options) as stream:
        data = stream.read()
    try:
        with fits.open(io.BytesIO(data), memmap=False) as hdus:
            table = next((h for h in hdus if h.name.upper() == "APCORR"), None)
            if table is None:
                raise InputError(f"{url}: has no extension APCORR: give an APCORR reference file")
            return {name.lower(): np.array(table.data[name]) for name in table.columns.names}
    except (OSError, TypeError, ValueError) as error:
        raise InputError(f"{url}: cannot be read as an APCORR reference file: {one_line(error)}") from error


def _asdf_columns(url: str, options: Mapping[str, str]) -> Columns:
    import asdf

    with open_seekable(url, options) as stream:
        data = stream.read()
    try:
        with asdf.open(io.BytesIO(data), lazy_load=False, memmap=False) as tree:
            table = tree.tree.get("abvega_offset")
            if table is None:
                raise InputError(f"{url}: has no table 'abvega_offset': give an ABVEGAOFFSET reference file")
            return {name.lower(): np.array(table[name]) for name in table.colnames}
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{url}: cannot be read as an ABVEGAOFFSET reference file: {one_line(error)}") from error
