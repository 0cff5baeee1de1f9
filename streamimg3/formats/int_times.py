"""Number and times of each integration of a cube, from the INT_TIMES table of a JWST file (spec others §2.1, §2.3)."""

from __future__ import annotations

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from streamimg3.formats.fits_file import FitsFile, card_value
from streamimg3.store.layout import TIMES

Found = tuple[NDArray[np.int32], NDArray[np.float64], tuple[str, ...]]


def integration_times(file: FitsFile, count: int) -> Found:
    """Return what a file says about when its integrations were.

    A table of as many rows as there are integrations goes with them in order. A longer one (of all segments of an
    exposure) is searched for the numbers from INTSTART on.

    Parameters
    ----------
    file : FitsFile
        Open file.
    count : int
        Number of integrations in it.

    Returns
    -------
    numbers : ndarray of int32, shape (count,)
        From INTSTART on, or from 1, where the table does not say.
    times : ndarray of float64, shape (count, 6)
        In the order of ``layout.TIMES``, days; NaN where unknown.
    notes : tuple of str
        What is unknown, and why.
    """
    start = card_value(file.hdus[0].header, "INTSTART", file.url)
    first = start if isinstance(start, int) and not isinstance(start, bool) else None
    numbers = np.arange(count, dtype=np.int32) + np.int32(1 if first is None else first)
    times = np.full((count, len(TIMES)), np.nan)
    hdu = file.find("INT_TIMES")
    table = None if hdu is None else file.table(hdu)
    if table is None or len(table) == 0:
        return numbers, times, ("no INT_TIMES: the times of the integrations are unknown",)
    known = {name.lower(): name for name in table.names}
    if len(table) == count:
        if "integration_number" in known:
            numbers = np.asarray(table[known["integration_number"]], np.int32)
        return numbers, _columns(table, np.arange(count)), ()
    if first is None or "integration_number" not in known:
        which = f"INT_TIMES has {len(table)} rows, the cube {count}, and nothing says which are its own"
        return numbers, times, (f"{which}: the times of its integrations are unknown",)
    rows = _places(np.asarray(table[known["integration_number"]], np.int64), numbers)
    there = rows >= 0
    times[there] = _columns(table, rows[there])
    lost = int(count - np.count_nonzero(there))
    note = f"INT_TIMES lacks {lost} of the {count} integrations: their times are unknown"
    return numbers, times, (note,) if lost else ()


def _columns(table: fits.FITS_rec, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the time columns of some rows, NaN for those that the table does not have."""
    known = {name.lower(): name for name in table.names}
    values = np.full((len(rows), len(TIMES)), np.nan)
    for at, name in enumerate(TIMES):
        if name in known:
            values[:, at] = table[known[name]][rows]
    return values


def _places(listed: NDArray[np.int64], wanted: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return where each wanted number is in a list, -1 = nowhere."""
    order = np.argsort(listed, kind="stable")
    at = np.minimum(np.searchsorted(listed, wanted, sorter=order), len(listed) - 1)
    places = order[at]
    return np.where(listed[places] == wanted, places, -1)
