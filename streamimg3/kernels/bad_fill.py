"""Bad pixels replaced by the median of the good ones around them (spec others §3.4, step 1).

The pixels that are filled never serve others, so neither the order nor how a plane is cut into windows makes a
difference, provided that a window reaches ``Filling.reach`` pixels further than what is taken from it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamimg3.kernels.compiled import loop

F4 = NDArray[np.float32]
U4 = NDArray[np.uint32]

DO_NOT_USE = 1
NON_SCIENCE = 512


@dataclass(frozen=True)
class Filling:
    """Which pixels are filled, and from what.

    Parameters
    ----------
    box : int
        Side of the square around a bad pixel; an even one counts as the next odd one.
    bad : int
        Flags of bad pixels; NaN are bad anyway.
    blank : int
        Bad pixels with one of these flags become 0 without a look around: ``NON_SCIENCE`` for MIRI, where they would be
        a good part of the detector, else 0.
    compat : bool
        As jwst 3.0.0: 0 for bad pixels less than half a box from the first row or column, and NaN without a flag that
        have been filled serve the next ones (row by row).
    """

    box: int = 3
    bad: int = DO_NOT_USE
    blank: int = 0
    compat: bool = False

    @property
    def reach(self) -> int:
        """Pixels around a bad one that it is filled from."""
        return self.box // 2


def fill_bad(planes: F4, dq: U4 | None, filling: Filling) -> int:
    """Fill bad pixels, in place.

    Parameters
    ----------
    planes : ndarray of float32, shape (n, ny, nx)
        Integrations, or errors; an infinite value is neither bad nor good.
    dq : ndarray of uint32, shape (n, ny, nx), or None
        Flags, which stay as they are; None = only NaN are bad, whatever their flags: so errors are filled that one NaN
        would spread over the whole plane when it is shifted.
    filling : Filling
        What is bad.

    Returns
    -------
    int
        Number of pixels without a good one around, which became 0; those of ``filling.blank`` are not counted.
    """
    side = min(2 * filling.reach + 1, max(planes.shape[1:], default=0))
    scratch = np.empty(max(side * side, 1), np.float32)
    alone = 0
    for k, plane in enumerate(planes):
        flags = np.zeros(plane.shape, np.uint32) if dq is None else dq[k]
        flagged = (flags & np.uint32(filling.bad)) != 0
        bad = flagged | np.isnan(plane)
        blank = bad & ((flags & np.uint32(filling.blank)) != 0)
        plane[blank] = 0.0
        useless = flagged if filling.compat else bad
        alone += int(_fill(plane, bad & ~blank, useless, filling.reach, filling.compat, scratch))
    return alone


@loop
def _fill(plane, bad, useless, reach, compat, scratch):  # type: ignore[no-untyped-def]
    ny, nx = plane.shape
    alone = 0
    for j in range(ny):
        for i in range(nx):
            if not bad[j, i]:
                continue
            n = 0
            for r in range(_first(j, reach, ny, compat), min(j + reach + 1, ny)):
                for c in range(_first(i, reach, nx, compat), min(i + reach + 1, nx)):
                    if not useless[r, c] and np.isfinite(plane[r, c]):
                        scratch[n] = plane[r, c]
                        n += 1
            plane[j, i] = _median(scratch, n) if n else np.float32(0.0)
            alone += n == 0
    return alone


@loop
def _first(at, reach, size, compat):  # type: ignore[no-untyped-def]
    """First pixel of a box; in the reference a negative one counts from the far end, as in Python."""
    first = at - reach
    if first < 0 and compat:
        first += size
    return max(first, 0)


@loop
def _median(values, n):  # type: ignore[no-untyped-def]
    """Return the median of the first `n` values, which are reordered."""
    middle, low, high = n // 2, 0, n - 1
    while low < high:
        pivot, i, j = values[(low + high) // 2], low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if middle <= j:
            high = j
        elif middle >= i:
            low = i
        else:
            break
    upper = values[middle]
    if n % 2:
        return upper
    lower = values[0]
    for k in range(1, middle):
        lower = max(lower, values[k])
    return (lower + upper) / np.float32(2.0)
