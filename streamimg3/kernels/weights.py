"""Sigma-clipped statistics of values too many to hold: exact medians by counting (spec image3 §6.2.3).

A float32 is its own rank once its sign is folded away: counting the upper 16 bits, then the lower 16 bits inside the
bin that holds the median, gives the exact median in two passes over the values, in any order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamimg3.kernels.compiled import loop

F4 = NDArray[np.float32]
Chunks = Callable[[], Iterable[F4]]
_HALF = 1 << 16


@dataclass(frozen=True)
class Clipped:
    """Statistics of the values that are left after clipping; NaN where none are."""

    count: int
    mean: float
    median: float
    std: float


def clipped(chunks: Chunks, sigma: float = 3.0, rounds: int = 5) -> Clipped:
    """Clip values around their median until nothing changes.

    Parameters
    ----------
    chunks : callable
        Gives the values anew at each call, as one-dimensional float32 arrays without NaN; how they are cut does not
        matter but for the last bits of mean and standard deviation (sums in double precision).
    sigma : float
        Values further than this many standard deviations from the median are dropped.
    rounds : int
        Most rounds.
    """
    low, high = np.float32(-np.inf), np.float32(np.inf)
    found = _describe(chunks, low, high)
    for _ in range(rounds):
        if not found.count:
            break
        middle, width = np.float32(found.median), np.float32(sigma) * np.float32(found.std)
        low, high = max(low, middle - width), min(high, middle + width)
        left = _describe(chunks, low, high)
        if left.count == found.count:
            break
        found = left
    return found


def _describe(chunks: Chunks, low: np.float32, high: np.float32) -> Clipped:
    """Statistics of the values from ``low`` to ``high``, ends included."""
    upper = np.zeros(_HALF, np.int64)
    for values in chunks():
        _count_upper(values, low, high, upper)
    count = int(upper.sum())
    if not count:
        return Clipped(0, math.nan, math.nan, math.nan)
    ranks = ((count - 1) // 2, count // 2)
    below = np.cumsum(upper)
    bins = [int(np.searchsorted(below, rank, side="right")) for rank in ranks]
    lower = np.zeros((2, _HALF), np.int64)
    guess = float(_value(bins[0] * _HALF + _HALF // 2))
    sums = np.zeros(2)
    for values in chunks():
        _count_lower(values, low, high, bins[0], bins[1], guess, lower, sums)
    middle = [
        _value(b * _HALF + int(np.searchsorted(np.cumsum(row), rank - below[b] + upper[b], side="right")))
        for b, row, rank in zip(bins, lower, ranks, strict=True)
    ]
    shift = sums[0] / count
    std = math.sqrt(max(sums[1] / count - shift * shift, 0.0))
    return Clipped(count, guess + shift, float((middle[0] + middle[1]) / np.float32(2.0)), std)


def _value(rank: int) -> np.float32:
    """The float32 that an order-preserving 32-bit code stands for."""
    bits = rank ^ 0x80000000 if rank & 0x80000000 else rank ^ 0xFFFFFFFF
    value: np.float32 = np.array([bits], np.uint32).view(np.float32)[0]
    return value


@loop
def _count_upper(values, low, high, upper):  # type: ignore[no-untyped-def]
    bits = values.view(np.uint32)
    for k in range(values.size):
        if values[k] >= low and values[k] <= high:
            b = bits[k]
            code = b ^ np.uint32(0xFFFFFFFF) if b & np.uint32(0x80000000) else b ^ np.uint32(0x80000000)
            upper[code >> np.uint32(16)] += 1


@loop
def _count_lower(values, low, high, first, second, guess, lower, sums):  # type: ignore[no-untyped-def]
    bits = values.view(np.uint32)
    total, squares = 0.0, 0.0
    for k in range(values.size):
        if values[k] >= low and values[k] <= high:
            b = bits[k]
            code = b ^ np.uint32(0xFFFFFFFF) if b & np.uint32(0x80000000) else b ^ np.uint32(0x80000000)
            top = code >> np.uint32(16)
            if top == first:
                lower[0, code & np.uint32(0xFFFF)] += 1
            if top == second:
                lower[1, code & np.uint32(0xFFFF)] += 1
            d = np.float64(values[k]) - guess
            total += d
            squares += d * d
    sums[0] += total
    sums[1] += squares
