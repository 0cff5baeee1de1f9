"""Sigma-clipped median and standard deviation, of a vector or of an image that is read in bands.

Spec image3 §4.3 (statistics of a background box): at most five rounds; in each, values outside the closed interval
median ± 3 standard deviations (double arithmetic) leave the sample.  The interval of the last round then decides over
all values, also over those that an earlier, tighter one had dropped.  The results are NumPy's float32 median and
population standard deviation, down to the order of the additions, which for float32 decides over the last bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamimg3.kernels.compiled import inlined, loop

F4 = NDArray[np.float32]
U4 = NDArray[np.uint32]
I8 = NDArray[np.int64]
Bool = NDArray[np.bool_]
Bands = Callable[[], Iterable[tuple[F4, Bool]]]

SIGMA = 3.0
ROUNDS = 5
_LARGEST = float(np.finfo(np.float32).max)  # the widest interval: every finite value
_LEAF = 128  # values that NumPy adds in one go; longer sums are halved


class Clipped(NamedTuple):
    """What is left of a sample: its median, its population standard deviation (NaN if nothing is left) and its size."""

    median: np.float32
    rms: np.float32
    left: int


_NOTHING = Clipped(np.float32(np.nan), np.float32(np.nan), 0)


def clip_vector(values: F4) -> Clipped:
    """Clip a sample that fits in memory.

    Parameters
    ----------
    values : ndarray of float32, shape (n,)
        The sample; NaN and infinities take no part.  Changed in place: what does not survive becomes NaN.
    """
    sample = values[np.isfinite(values)]
    if sample.size == 0:
        return _NOTHING
    low, high = _bounds(sample)
    count = _blank_outside(values, low, high)
    return Clipped(_median(values[~np.isnan(values)]), _rms(values), count)


def clip_single(values: F4) -> Clipped:
    """Clip a sample with float32 bounds, each applied to what the one before has left.

    The reference treats the box in the corner of an image in this way when it is incomplete in both directions.
    """
    sample = values[np.isfinite(values)]
    for _ in range(ROUNDS):
        if sample.size == 0:
            return _NOTHING
        middle, width = _median(sample.copy()), _rms(sample) * np.float32(SIGMA)
        kept = sample[(sample >= middle - width) & (sample <= middle + width)]
        done = kept.size == sample.size
        sample = kept
        if done:
            break
    return Clipped(_median(sample.copy()), _rms(sample), sample.size) if sample.size else _NOTHING


def _median(sample: F4) -> np.float32:
    """Return the float32 median of a sample without NaN, which is reordered."""
    n = sample.size
    sample.partition(n // 2)
    upper: np.float32 = sample[n // 2]
    if n % 2:
        return upper
    with np.errstate(over="ignore"):
        return np.float32((sample[: n // 2].max() + upper) / np.float32(2.0))


def _rms(values: F4) -> np.float32:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.float32(np.nanstd(values))


def _bounds(sample: F4) -> tuple[float, float]:
    """Return the interval of the last round; the sample is used up."""
    low = high = 0.0
    for _ in range(ROUNDS):
        n = sample.size
        std = _spread(sample)
        ranked = np.partition(sample, n // 2)
        middle = float(ranked[n // 2])
        if n % 2 == 0:
            middle = 0.5 * (middle + float(ranked[: n // 2].max()))
        low, high = middle - SIGMA * std, middle + SIGMA * std
        left = _pack(sample, low, high)
        if left in (0, n):
            break
        sample = sample[:left]
    return low, high


def clip_image(bands: Bands, size: int) -> Clipped:
    """Clip a whole image as one sample, exactly, reading it about a dozen times in bands.

    Parameters
    ----------
    bands : callable
        Each call goes through the image once: pairs of pixels (float32) and flags (True = leave out) for bands of
        whole rows, from the first row to the last.  How many rows a band has changes no bit of the result.
    size : int
        Number of pixels of the image.

    Raises
    ------
    ValueError
        If the bands do not add up to the image.
    """
    return _describe(bands, _last_bounds(bands), size)


class Level(NamedTuple):
    """How many values clipping leaves, their mean, median and standard deviation; NaN where none are left."""

    left: int
    mean: float
    median: float
    std: float


def clip_stream(bands: Bands) -> Level:
    """Clip values as one sample, exactly, reading them about a dozen times; sums in double precision, row by row.

    Parameters
    ----------
    bands : callable
        Each call goes through the values once: two-dimensional values (float32) and flags (True = leave out).
    """
    bounds = _last_bounds(bands)
    count, mean, bins = _first_pass(bands, bounds)
    if not count:
        return Level(0, math.nan, math.nan, math.nan)
    (a, b), squares = _second_pass(bands, bounds, bins, mean)
    return Level(count, mean, float((a + b) / np.float32(2.0)), math.sqrt(squares / count))


def _last_bounds(bands: Bands) -> tuple[float, float]:
    """Return the interval of the last round: it holds for all values, those dropped in an earlier round too."""
    inner, last, count = (-_LARGEST, _LARGEST), (-_LARGEST, _LARGEST), -1
    for _ in range(ROUNDS):
        left, mean, bins = _first_pass(bands, inner)
        if left in (0, count):
            break
        count = left
        (a, b), squares = _second_pass(bands, inner, bins, mean)
        middle, width = 0.5 * (float(a) + float(b)), SIGMA * math.sqrt(squares / count)
        last = middle - width, middle + width
        inner = max(inner[0], last[0]), min(inner[1], last[1])
    return last


def _describe(bands: Bands, bounds: tuple[float, float], size: int) -> Clipped:
    """Return median and standard deviation of an image's pixels within bounds as NumPy computes them."""
    count, _, bins = _first_pass(bands, bounds)
    if count == 0:
        return _NOTHING
    (a, b), _ = _second_pass(bands, bounds, bins, 0.0)
    with np.errstate(over="ignore"):
        median = b if count % 2 else np.float32((a + b) / np.float32(2.0))
        mean = np.float32(np.float64(_pairwise(bands, bounds, size, None)) / count)
        variance = np.float32(np.float64(_pairwise(bands, bounds, size, mean)) / count)
    return Clipped(median, np.sqrt(variance), count)


class _Bins(NamedTuple):
    """The upper halves of the keys of the two middle values, and their ranks among the keys with that upper half."""

    upper: tuple[int, int]
    rank: tuple[int, int]


def _first_pass(bands: Bands, bounds: tuple[float, float]) -> tuple[int, float, _Bins]:
    """Return count and mean of the pixels within bounds, and where the two middle ones lie."""
    table, total = np.zeros(1 << 16, np.int64), 0.0
    for data, bad in bands():
        bits = np.ascontiguousarray(data).view(np.uint32)
        _count_upper(data, bits, bad, bounds, table)
        total = _add_rows(data, bad, bounds, 0.0, 1, total)
    count = int(table.sum())
    if count == 0:
        return 0, math.nan, _Bins((0, 0), (0, 0))
    ranks = ((count - 1) // 2, count // 2)
    below = np.concatenate(([0], np.cumsum(table)))
    a, b = (int(np.searchsorted(below, r, side="right")) - 1 for r in ranks)
    return count, total / count, _Bins((a, b), (ranks[0] - int(below[a]), ranks[1] - int(below[b])))


def _second_pass(
    bands: Bands, bounds: tuple[float, float], bins: _Bins, mean: float
) -> tuple[tuple[np.float32, np.float32], float]:
    """Return the two middle values (equal for an odd count) and the sum of squared deviations from the mean."""
    table, squares = np.zeros((2, 1 << 16), np.int64), 0.0
    for data, bad in bands():
        bits = np.ascontiguousarray(data).view(np.uint32)
        _count_lower(data, bits, bad, bounds, bins.upper, table)
        squares = _add_rows(data, bad, bounds, mean, 2, squares)
    values = []
    for upper, rank, counts in zip(bins.upper, bins.rank, table, strict=True):
        lower = int(np.searchsorted(np.cumsum(counts), rank, side="right"))
        values.append(_value_of_key((upper << 16) | lower))
    return (values[0], values[1]), squares


def _value_of_key(key: int) -> np.float32:
    bits = key ^ 0x80000000 if key & 0x80000000 else key ^ 0xFFFFFFFF
    return np.float32(np.array([bits], np.uint32).view(np.float32)[0])


def middle_values(bands: Callable[[], Iterable[F4]]) -> tuple[np.float32, np.float32]:
    """Return the two middle ones (equal for an odd number) of finite values that are read twice, in any bands."""

    def unflagged() -> Iterable[tuple[F4, Bool]]:
        """Go through the values, none of them flagged."""
        return ((band, np.zeros(band.shape, np.bool_)) for band in bands())

    bounds = (-_LARGEST, _LARGEST)
    return _second_pass(unflagged, bounds, _first_pass(unflagged, bounds)[2], 0.0)[0]


def _pairwise(bands: Bands, bounds: tuple[float, float], size: int, mean: np.float32 | None) -> np.float32:
    """Return the float32 sum of the image (of its squared deviations from a mean) with zeros outside the bounds."""
    state = np.zeros(3, np.int64)  # depth, values in the leaf, length of the leaf
    nodes, left = np.zeros((64, 2), np.int64), np.zeros(64, np.float32)
    leaf = np.zeros(_LEAF, np.float32)
    _descend(size, nodes, state)
    seen = 0
    for data, bad in bands():
        seen += data.size
        if seen > size:
            break
        _add_pairwise(data, bad, bounds, np.float32(mean or 0.0), mean is not None, state, nodes, left, leaf)
    if seen != size:
        raise ValueError(f"the bands hold {seen} pixels or more, the image {size}")
    return np.float32(left[0])


@loop
def _spread(v):  # type: ignore[no-untyped-def]
    """Population standard deviation in double; four running sums keep the adder busy."""
    n = v.size
    a = b = c = d = 0.0
    for i in range(0, n - 3, 4):
        a += np.float64(v[i])
        b += np.float64(v[i + 1])
        c += np.float64(v[i + 2])
        d += np.float64(v[i + 3])
    for i in range(n - n % 4, n):
        a += np.float64(v[i])
    mean = ((a + b) + (c + d)) / n
    a = b = c = d = 0.0
    for i in range(0, n - 3, 4):
        a += (np.float64(v[i]) - mean) ** 2
        b += (np.float64(v[i + 1]) - mean) ** 2
        c += (np.float64(v[i + 2]) - mean) ** 2
        d += (np.float64(v[i + 3]) - mean) ** 2
    for i in range(n - n % 4, n):
        a += (np.float64(v[i]) - mean) ** 2
    return math.sqrt(((a + b) + (c + d)) / n)


@loop
def _pack(v, low, high):  # type: ignore[no-untyped-def]
    """Move the values within the bounds to the front; return how many there are."""
    n = 0
    for i in range(v.size):
        x = v[i]
        v[n] = x
        n += np.float64(x) >= low and np.float64(x) <= high
    return n


@loop
def _blank_outside(v, low, high):  # type: ignore[no-untyped-def]
    n = 0
    for i in range(v.size):
        if np.float64(v[i]) >= low and np.float64(v[i]) <= high:
            n += 1
        else:
            v[i] = np.float32(np.nan)
    return n


@inlined
def _key(bits):  # type: ignore[no-untyped-def]
    """Unsigned integer that sorts as the float32 with these bits."""
    return bits ^ np.uint32(0xFFFFFFFF) if bits & np.uint32(0x80000000) else bits ^ np.uint32(0x80000000)


@inlined
def _within(value, bad, bounds):  # type: ignore[no-untyped-def]
    return not bad and np.float64(value) >= bounds[0] and np.float64(value) <= bounds[1]


@loop
def _count_upper(data, bits, bad, bounds, table):  # type: ignore[no-untyped-def]
    for j in range(data.shape[0]):
        for i in range(data.shape[1]):
            if _within(data[j, i], bad[j, i], bounds):
                table[_key(bits[j, i]) >> np.uint32(16)] += 1


@loop
def _count_lower(data, bits, bad, bounds, upper, table):  # type: ignore[no-untyped-def]
    for j in range(data.shape[0]):
        for i in range(data.shape[1]):
            if _within(data[j, i], bad[j, i], bounds):
                key = _key(bits[j, i])
                for k in range(2):
                    if np.int64(key >> np.uint32(16)) == upper[k]:
                        table[k, key & np.uint32(0xFFFF)] += 1


@loop
def _add_rows(data, bad, bounds, mean, power, total):  # type: ignore[no-untyped-def]
    """Add each row's sum (power 1) or sum of squares about the mean (2) to the total: bands of any height agree."""
    for j in range(data.shape[0]):
        row = 0.0
        for i in range(data.shape[1]):
            if _within(data[j, i], bad[j, i], bounds):
                x = np.float64(data[j, i]) - mean
                row += x if power == 1 else x * x
        total += row
    return total


@inlined
def _first_half(n):  # type: ignore[no-untyped-def]
    return n // 2 - (n // 2) % 8


@loop
def _descend(n, nodes, state):  # type: ignore[no-untyped-def]
    """Halve a sum of n values down to its first leaf, noting the nodes on the way."""
    depth = state[0]
    while n > 128:
        nodes[depth, 0], nodes[depth, 1] = n, 0
        depth += 1
        n = _first_half(n)
    state[0], state[1], state[2] = depth, 0, n


@loop
def _leaf_sum(leaf, n):  # type: ignore[no-untyped-def]
    """Sum at most 128 values in NumPy's order: eight running sums, then the rest."""
    total = np.float32(0.0)
    whole = n - n % 8
    if whole:
        a, b, c, d = leaf[0], leaf[1], leaf[2], leaf[3]
        e, f, g, h = leaf[4], leaf[5], leaf[6], leaf[7]
        for i in range(8, whole, 8):
            a += leaf[i]
            b += leaf[i + 1]
            c += leaf[i + 2]
            d += leaf[i + 3]
            e += leaf[i + 4]
            f += leaf[i + 5]
            g += leaf[i + 6]
            h += leaf[i + 7]
        total = ((a + b) + (c + d)) + ((e + f) + (g + h))
    for i in range(whole, n):
        total += leaf[i]
    return total


@loop
def _add_pairwise(data, bad, bounds, mean, squared, state, nodes, left, leaf):  # type: ignore[no-untyped-def]
    """Feed a band into a pairwise sum; after the last one the sum is in ``left[0]``."""
    for j in range(data.shape[0]):
        for i in range(data.shape[1]):
            x = np.float32(0.0)
            if _within(data[j, i], bad[j, i], bounds):
                x = data[j, i]
                if squared:
                    x = x - mean
                    x = x * x
            leaf[state[1]] = x
            state[1] += 1
            if state[1] < state[2]:
                continue
            total = _leaf_sum(leaf, state[2])
            depth = state[0]
            while depth > 0 and nodes[depth - 1, 1] == 1:
                depth -= 1
                total = left[depth] + total
            if depth == 0:
                left[0] = total
                continue
            left[depth - 1] = total
            nodes[depth - 1, 1] = 1
            n = nodes[depth - 1, 0]
            state[0] = depth
            _descend(n - _first_half(n), nodes, state)
