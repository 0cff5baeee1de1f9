"""PHOTOM reference files of imaging modes: the row for an exposure and its time dependence (spec others §1.5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.formats.fits_file import FitsFile, number, quietly
from streamimg3.formats.local_copy import one_line
from streamimg3.formats.reference_card import ExposureFacts
from streamimg3.formats.reference_image import open_reference

Columns = dict[str, NDArray[np.generic]]

# kind of time dependence: extension and coefficients
TIME_TABLES = {
    "linear": ("TIMECOEFF_LINEAR", ("t0", "lossperyear")),
    "exponential": ("TIMECOEFF_EXPONENTIAL", ("t0", "amplitude", "tau", "const")),
    "powerlaw": ("TIMECOEFF_POWERLAW", ("t0", "year1value", "tsoft", "alpha")),
}
_KEYS = {"NIRCAM": ("filter", "pupil"), "NIRISS": ("filter", "pupil"), "MIRI": ("subarray", "filter"), "FGS": ()}


@dataclass(frozen=True)
class Photometry:
    """What a PHOTOM file has for one exposure.

    Parameters
    ----------
    url : str
        The file.
    photmjsr, uncertainty : float32
        MJy/sr per DN/s; the uncertainty is NaN where the table has none. 0 where there is no row.
    times : mapping
        ``{"linear": {"t0": float32, ...}, ...}``: coefficients of the time dependences that the file has.
    pixar_sr, pixar_a2 : float or None
        Nominal pixel area in the primary header, in steradian and square arcsec.
    reason : str
        Why nothing can be converted; "" = it can. Then the step is skipped.
    """

    url: str
    photmjsr: np.float32
    uncertainty: np.float32
    times: Mapping[str, Mapping[str, np.float32]]
    pixar_sr: float | None
    pixar_a2: float | None
    reason: str = ""


@dataclass(frozen=True)
class PhotomFile:
    """A PHOTOM table in memory: columns by lower-case name, float32 coefficients of the time tables."""

    url: str
    columns: Columns
    times: Mapping[str, Mapping[str, NDArray[np.float32]]]
    pixar_sr: float | None
    pixar_a2: float | None

    def of(self, exposure: ExposureFacts) -> Photometry:
        """Return what holds for an exposure.

        Raises
        ------
        InputError
            If more than one row fits, a column is missing, or the value is not a finite number other than 0.
        """
        row, reason = self._row(exposure)
        if row is None:
            return Photometry(self.url, np.float32(0), np.float32("nan"), {}, self.pixar_sr, self.pixar_a2, reason)
        value = np.float32(_column(self.url, self.columns, "photmjsr")[row])
        if not np.isfinite(value) or value == 0:
            raise InputError(
                f"{self.url}: photmjsr is {value} in row {row + 1} for {exposure}; give another photom file"
            )
        spread = np.float32(self.columns["uncertainty"][row] if "uncertainty" in self.columns else "nan")
        terms = {kind: {name: values[row] for name, values in table.items()} for kind, table in self.times.items()}
        return Photometry(self.url, value, spread, terms, self.pixar_sr, self.pixar_a2)

    def _row(self, exposure: ExposureFacts) -> tuple[int | None, str]:
        keys = _KEYS.get(exposure.instrument)
        length = len(_column(self.url, self.columns, "photmjsr"))
        if keys is None:
            return None, f"images of {exposure.instrument} have no photometric conversion"
        if not keys:
            return (0, "") if length else (None, f"{self.url}: PHOTOM has no rows")
        if exposure.instrument == "NIRCAM" and "subarray" in self.columns:
            keys = (*keys, "subarray")
        wanted = {key: str(getattr(exposure, key)) for key in keys}
        row = self._only(wanted)
        if row is None and exposure.instrument == "MIRI":
            row = self._only({**wanted, "subarray": "GENERIC"})
        shown = ", ".join(f"{key} {value or '(unknown)'}" for key, value in wanted.items())
        return row, "" if row is not None else f"{self.url}: PHOTOM has no row for {shown}"

    def _only(self, wanted: Mapping[str, str]) -> int | None:
        chosen = np.ones(len(self.columns["photmjsr"]), np.bool_)
        for key, value in wanted.items():
            chosen &= np.array([_text(v) == value for v in _column(self.url, self.columns, key)], np.bool_)
        rows = np.flatnonzero(chosen)
        if len(rows) > 1:
            shown = ", ".join(f"{key} {value}" for key, value in wanted.items())
            numbers = ", ".join(str(row + 1) for row in rows)
            raise InputError(f"{self.url}: PHOTOM has {len(rows)} rows for {shown} (rows {numbers}); leave only one")
        return int(rows[0]) if len(rows) else None


def read_photom(url: str, options: Mapping[str, str]) -> PhotomFile:
    """Read a PHOTOM reference file; its tables are small.

    Parameters
    ----------
    url : str
        Path or URL.
    options : mapping of str to str
        Storage options for remote URLs.

    Raises
    ------
    InputError
        If it is no photom reference file, has no PHOTOM table with a column ``photmjsr`` of numbers, or a time table
        that is damaged or of another length.
    """
    with open_reference(url, options, "photom") as file:
        columns = _table(file, "PHOTOM")
        if columns is None:
            there = ", ".join(hdu.name or "no name" for hdu in file.hdus[1:]) or "no extension"
            raise InputError(f"{url}: has no table PHOTOM with photmjsr (it has {there}); give a newer photom file")
        if _column(url, columns, "photmjsr").ndim != 1 or columns["photmjsr"].dtype.kind not in "fiu":
            raise InputError(f"{url}: photmjsr is no column of numbers; give another photom reference file")
        times = {
            kind: t for kind in TIME_TABLES if (t := _time_table(file, kind, len(columns["photmjsr"]))) is not None
        }
        header = file.hdus[0].header
        return PhotomFile(url, columns, times, number(header, "PIXAR_SR", url), number(header, "PIXAR_A2", url))


def read_time_tables(url: str, options: Mapping[str, str], rows: int) -> dict[str, dict[str, NDArray[np.float32]]]:
    """Return the time dependences of a photom file with so many rows, whatever its main table is like.

    Raises
    ------
    InputError
        If it is no photom reference file, or a time table is damaged or of another length.
    """
    with open_reference(url, options, "photom") as file:
        return {kind: table for kind in TIME_TABLES if (table := _time_table(file, kind, rows)) is not None}


def _time_table(file: FitsFile, kind: str, rows: int) -> dict[str, NDArray[np.float32]] | None:
    extension, names = TIME_TABLES[kind]
    columns = _table(file, extension)
    if columns is None:
        return None
    # coefficients are float32 in these files, whatever the copy at hand says
    values = {name: _column(file.url, columns, name).astype(np.float32) for name in names}
    if len(values[names[0]]) != rows:
        raise InputError(f"{file.url}: {extension} has {len(values[names[0]])} rows and PHOTOM {rows}; they must agree")
    return values


def _table(file: FitsFile, name: str) -> Columns | None:
    hdu = file.find(name)
    if hdu is None:
        return None
    try:
        with quietly():
            table = file.opened[hdu.index].data
            return {str(column).lower(): np.array(table[column]) for column in table.columns.names}
    except (AttributeError, KeyError, ValueError, TypeError, OSError) as exc:
        raise InputError(f"{file.url}: table {name} cannot be read ({one_line(exc)}); fetch the file again") from exc


def _column(url: str, columns: Columns, name: str) -> NDArray[np.generic]:
    if name not in columns:
        raise InputError(f"{url}: has no column '{name}' (it has {', '.join(columns)}); give another photom file")
    return columns[name]


def _text(value: object) -> str:
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
    return text.strip().upper()
