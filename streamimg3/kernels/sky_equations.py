"""The sky levels that bring overlapping images closest together (spec image3 §5.5)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

F8 = NDArray[np.float64]
I8 = NDArray[np.int64]
_CUT = 1e-12  # singular values below this fraction of the largest count as zero
_ROWS = 4096  # equations that are held as a dense matrix at a time


def solve(count: int, pairs: I8, values: F8, pixels: I8) -> F8:
    """Return the levels x that fit ``x_i - x_j = value_i - value_j`` best, each equation weighted by its mean pixel number.

    Of all best solutions it is the shortest: the levels of each connected set add up to zero.

    Parameters
    ----------
    count : int
        Number of items.
    pairs : ndarray of int64, shape (m, 2)
        Items i and j of each overlap.
    values : ndarray of float64, shape (m, 2)
        Sky of i and of j in their overlap.
    pixels : ndarray of int64, shape (m, 2)
        Numbers of pixels behind them.

    Returns
    -------
    ndarray of float64, shape (count,)
        In the unit of the values; NaN for an item in no overlap.
    """
    levels = np.full(count, np.nan)
    if len(pairs) == 0:
        return levels
    matrix = _equations(count, pairs[:_ROWS], values[:_ROWS], pixels[:_ROWS])
    for start in range(_ROWS, len(pairs), _ROWS):
        block = slice(start, start + _ROWS)
        rows = _equations(count, pairs[block], values[block], pixels[block])
        _, matrix = np.linalg.qr(np.concatenate([matrix, rows]))  # the triangle stands for all equations so far
    met = np.unique(pairs)
    levels[met] = (np.linalg.pinv(matrix[:, :count], rcond=_CUT) @ matrix[:, count])[met]
    return levels


def _equations(count: int, pairs: I8, values: F8, pixels: I8) -> F8:
    """Coefficients and, in the last column, right-hand sides."""
    weight = 0.5 * pixels.sum(axis=1)
    rows = np.zeros((len(pairs), count + 1))
    k = np.arange(len(pairs))
    rows[k, pairs[:, 0]], rows[k, pairs[:, 1]] = weight, -weight
    rows[:, count] = weight * (values[:, 0] - values[:, 1])
    return rows


def connected(pairs: Iterable[tuple[int, int]]) -> tuple[tuple[int, ...], ...]:
    """Return the sets of items that hang together by overlaps, each sorted, by first item.

    Examples
    --------
    >>> connected([(0, 1), (2, 4), (1, 5)])
    ((0, 1, 5), (2, 4))
    """
    sets: dict[int, set[int]] = {}
    for i, j in pairs:
        one, other = sets.get(i, {i}), sets.get(j, {j})
        if one is not other:
            one |= other
            sets.update(dict.fromkeys(one, one))
    return tuple(sorted({tuple(sorted(members)) for members in sets.values()}))
