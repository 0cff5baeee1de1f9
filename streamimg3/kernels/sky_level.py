"""Sky statistics: clipped mean, median, histogram mode and midpoint of a list of pixels (spec image3 §5.4).

The clipping and the histogram are those of IRAF's imstatistics as the reference uses them: float32 limits, double
sums, bins of a nominal width whose positions are used although the true width differs.

The values come in pieces, again for every pass, so that they need not be in memory all at once; how they are cut makes
no difference to any bit of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numba import njit
from numpy.typing import NDArray

from streamimg3.kernels.compiled import Decorator, loop

F4 = NDArray[np.float32]
Pieces = Callable[[], Iterable[F4]]
STATISTICS = ("median", "midpt", "mean", "mode")
_TINY = 10.0 * float(np.finfo(np.float32).eps)
_DOUBT = 2.5 * 2.0**-53  # per value: twice the most that a double sum can be off, and a little


@dataclass(frozen=True)
class Clipping:
    """How a sky level is found.

    Parameters
    ----------
    statistic : str
        ``mean``, ``median``, ``mode`` or ``midpt``.
    lower, upper : float or None
        Values outside are never used.
    nclip : int
        Passes that leave out what is more than ``lsigma`` below or ``usigma`` above the mean.
    lsigma, usigma : float
        In standard deviations.
    binwidth : float
        Of the histogram behind ``mode`` and ``midpt``, in standard deviations.
    """

    statistic: str = "mode"
    lower: float | None = None
    upper: float | None = None
    nclip: int = 5
    lsigma: float = 4.0
    usigma: float = 4.0
    binwidth: float = 0.1


@dataclass(frozen=True)
class _Moments:
    """Number, mean and sample deviation of the values in ``low .. high`` (float32 numbers)."""

    n: int
    mean: float
    deviation: float
    low: np.float32
    high: np.float32


def sky_level(pieces: Pieces, clipping: Clipping) -> tuple[float, int] | None:
    """Return the sky level of a list of pixels.

    Parameters
    ----------
    pieces : callable
        Gives the values anew at each call: float32 arrays, all finite, in the order of the list.
    clipping : Clipping
        Which statistic, and what is left out.

    Returns
    -------
    tuple of float and int, or None
        Level and number of pixels after clipping; None where no pixel is left.
    """
    found = _clip(pieces, clipping)
    if found is None:
        return None
    moments, limits = found
    if clipping.statistic == "mean":
        level = moments.mean
    elif clipping.statistic == "median":
        level = _median(pieces, *(limits if clipping.nclip else (-np.inf, np.inf)))
    else:
        level = _from_histogram(pieces, moments, clipping)
    return (level, moments.n) if math.isfinite(level) else None


def histogram_bytes(n: int, binwidth: float) -> int:
    """Return the most memory in bytes that a histogram of ``n`` values can take (their range is bounded by their spread)."""
    return min(2**62, int(16 * (math.sqrt(2.0 * n) + 20.0) / binwidth) + 2**20)


# ---------------------------------------------------------------- clipping
def _clip(pieces: Pieces, clipping: Clipping) -> tuple[_Moments, tuple[np.float32, np.float32]] | None:
    """Clip again and again; returns the last moments and the limits that follow from them."""
    ends = [(v.min(), v.max()) for v in _filled(pieces)]
    if not ends:
        return None
    smallest, largest = min(e[0] for e in ends), max(e[1] for e in ends)
    lower = smallest if clipping.lower is None else np.float32(clipping.lower)
    upper = largest if clipping.upper is None else np.float32(clipping.upper)
    if lower > largest or upper < smallest or lower > upper:
        return None
    low, high = lower, upper
    found = _moments(pieces, low, high)
    for _ in range(clipping.nclip):
        if found is None:
            return None
        low = np.float32(max(float(lower), found.mean - clipping.lsigma * found.deviation))
        high = np.float32(min(float(upper), found.mean + clipping.usigma * found.deviation))
        if (low, high) != (found.low, found.high):  # else all passes to come would find the same again
            found = _moments(pieces, low, high)
    return None if found is None else (found, (low, high))


def _filled(pieces: Pieces) -> Iterator[F4]:
    return (v for v in pieces() if v.size)


def _moments(pieces: Pieces, low: np.float32, high: np.float32) -> _Moments | None:
    counts = [_sum(v, low, high) for v in pieces()]
    n = sum(c[0] for c in counts)
    if n == 0:
        return None
    doubt = _DOUBT * n * sum(c[2] for c in counts)
    mean = _rounded(
        partial(_mean_of, n), sum(c[1] for c in counts), doubt, lambda: _in_order(pieces, _sum_in_order, low, high)
    )
    if n == 1:
        return _Moments(1, mean, math.nan, low, high)  # no deviation, hence no bins: only mean and median exist
    squares = sum(_sum_of_squares(v, low, high, np.float32(mean)) for v in pieces())
    deviation = _rounded(
        partial(_deviation_of, n), squares, _DOUBT * n * squares,
        lambda: _in_order(pieces, _squares_in_order, low, high, np.float32(mean)),
    )  # fmt: skip
    return _Moments(n, mean, deviation, low, high)


def _mean_of(n: int, total: float) -> float:
    return float(np.float32(total / n))


def _deviation_of(n: int, squares: float) -> float:
    return float(np.float32(math.sqrt(max(squares, 0.0) / (n - 1))))


def _rounded(rule: Callable[[float], float], total: float, doubt: float, exactly: Callable[[], float]) -> float:
    """Return ``rule`` (which never falls) of the sum taken one value after the other, the order of the reference.

    ``total`` is the same sum in whatever order is fastest.  The two differ by less than ``doubt``; only where that
    could change the float32 result is the slow sum made.
    """
    low, high = rule(total - doubt), rule(total + doubt)
    return low if low == high else rule(exactly())


def _in_order(pieces: Pieces, add: Callable[..., float], *bounds: np.float32) -> float:
    total = 0.0
    for values in pieces():
        total = add(values, *bounds, total)
    return total


def exercise(values: F4) -> None:
    """Compile the loops that only rare numbers need."""
    _in_order(lambda: [values], _sum_in_order, values[0], values[1])
    _in_order(lambda: [values], _squares_in_order, values[0], values[1], values[0])


# These sums may be taken in any order because `_rounded` knows how far that can lead; that makes them ten times faster.
# Each term is rounded as written, hence its function of its own.
_any_order: Decorator = partial(
    njit, cache=True, nogil=True, error_model="numpy", _nrt=False, fastmath={"reassoc", "nnan", "nsz"}
)


@loop
def _square(value, mean):  # type: ignore[no-untyped-def]
    difference = value - mean
    return np.float64(difference * difference)


@_any_order
def _sum(values, low, high):  # type: ignore[no-untyped-def]
    n, total, size = 0, 0.0, 0.0
    for i in range(values.size):
        kept = (values[i] >= low) & (values[i] <= high)
        value = np.float64(values[i]) if kept else 0.0
        total += value
        size += abs(value)
        n += kept
    return n, total, size


@_any_order
def _sum_of_squares(values, low, high, mean):  # type: ignore[no-untyped-def]
    total = 0.0
    for i in range(values.size):
        kept = (values[i] >= low) & (values[i] <= high)
        total += _square(values[i], mean) if kept else 0.0
    return total


@loop
def _sum_in_order(values, low, high, total):  # type: ignore[no-untyped-def]
    for i in range(values.size):
        if values[i] >= low and values[i] <= high:
            total += np.float64(values[i])
    return total


@loop
def _squares_in_order(values, low, high, mean, total):  # type: ignore[no-untyped-def]
    for i in range(values.size):
        if values[i] >= low and values[i] <= high:
            total += _square(values[i], mean)
    return total


# ---------------------------------------------------------------- histogram
def _from_histogram(pieces: Pieces, moments: _Moments, clipping: Clipping) -> float:
    """Mode or midpoint; bin positions go by the nominal width, as in the reference."""
    low, high = _ends(pieces, moments)
    width = clipping.binwidth * moments.deviation
    if width < _TINY or abs(high - low) < _TINY or width > high - low:
        return low + 0.5 * width  # all in one bin
    n = int((high - low) / width) + 1
    counts = np.zeros(n, np.int64)
    for values in pieces():
        _count(values, np.float32(low), np.float32((high - low) / (n - 1)), counts)
    return low + width * _mode_bin(counts) if clipping.statistic == "mode" else _midpoint(counts, low, width)


def _ends(pieces: Pieces, moments: _Moments) -> tuple[float, float]:
    """Range of the kept values; the reference starts it at the first value of all, kept or not, brought to the limits."""
    first = next(iter(_filled(pieces)))[0]
    start = min(max(first, moments.low), moments.high)
    low, high = start, start
    for values in pieces():
        low, high = _range(values, moments.low, moments.high, low, high)
    return float(low), float(high)


@_any_order
def _range(values, low, high, smallest, largest):  # type: ignore[no-untyped-def]
    for i in range(values.size):
        from_low = values[i] if values[i] >= low else high
        to_high = values[i] if values[i] <= high else low
        smallest = from_low if from_low < smallest else smallest
        largest = to_high if to_high > largest else largest
    return smallest, largest


@loop
def _count(values, low, width, counts):  # type: ignore[no-untyped-def]
    high = low + width * np.float32(counts.size)
    scale = np.float32(1.0) / width
    for i in range(values.size):
        if values[i] >= low and values[i] < high:
            k = np.int64(scale * (values[i] - low))
            if k < counts.size:
                counts[k] += 1


def _mode_bin(counts: NDArray[np.int64]) -> float:
    """Position of the peak in bins: the vertex of a parabola through the highest bin and its neighbours."""
    n, k = counts.size, int(np.argmax(counts))
    if n == 2:
        return 0.5 if counts[0] > counts[1] else 1.5 if counts[0] < counts[1] else 1.0
    if k == 0:
        return 0.5
    if k == n - 1:
        return n - 0.5
    left, right = int(counts[k] - counts[k - 1]), int(counts[k] - counts[k + 1])
    return k + 0.5 if left + right == 0 else k + 1 + 0.5 * (left - right) / (left + right) - 0.5


def _midpoint(counts: NDArray[np.int64], low: float, width: float) -> float:
    """Where the cumulative histogram crosses one half (fractions in float32)."""
    total = np.cumsum(counts).astype(np.float32)
    total = total / total[-1]
    k = int(np.flatnonzero(total >= 0.5)[0])
    before = total[k - 1] if k else np.float32(0.0)
    rise = total[k] - before
    start = np.float64(low + k * width)
    return float(start if rise == 0.0 else start + (np.float32(0.5) - before) / rise * width)


# ---------------------------------------------------------------- median
def _median(pieces: Pieces, low: np.float32 | float, high: np.float32 | float) -> float:
    """Exact median (of an even number of values the float32 mean of the two in the middle)."""
    limits = np.float32(low), np.float32(high)
    high_words = _words(pieces, *limits, -1)
    n = int(high_words.sum())
    if n == 0:
        return math.nan
    first, second = (_ranked(pieces, limits, high_words, rank) for rank in ((n - 1) // 2, n // 2))
    return float(first if n % 2 else np.mean(np.array([first, second])))


def _ranked(
    pieces: Pieces, limits: tuple[np.float32, np.float32], high_words: NDArray[np.int64], rank: int
) -> np.float32:
    """Return the value of a rank (0 = smallest): first the upper half of its bits, then the lower."""
    total = np.cumsum(high_words)
    upper = int(np.searchsorted(total, rank, side="right"))
    below = int(total[upper] - high_words[upper])
    lower = int(np.searchsorted(np.cumsum(_words(pieces, *limits, upper)), rank - below, side="right"))
    key = upper << 16 | lower
    bits = key ^ 0x80000000 if key & 0x80000000 else ~key & 0xFFFFFFFF
    return np.float32(np.array([bits], np.uint32).view(np.float32)[0])


def _words(pieces: Pieces, low: np.float32, high: np.float32, upper: int) -> NDArray[np.int64]:
    """Count half words of the values in ``low .. high``: the upper ones (-1), or the lower ones under a given upper one."""
    counts = np.zeros(2**16, np.int64)
    for values in pieces():
        _count_words(values.view(np.int32), values, low, high, upper, counts)
    return counts


@loop
def _count_words(bits, values, low, high, upper, counts):  # type: ignore[no-untyped-def]
    for i in range(bits.size):
        if values[i] >= low and values[i] <= high:
            b = np.int64(bits[i])
            key = (b + 2147483648) if b >= 0 else (-1 - b)  # order of the keys = order of the values
            if upper < 0:
                counts[key >> 16] += 1
            elif key >> 16 == upper:
                counts[key & 65535] += 1
