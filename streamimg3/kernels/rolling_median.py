"""Medians of a sliding window of integrations, and the pixels that disagree with them (spec others §2.2).

The loop keeps the window of every pixel sorted and replaces one value at a time, for many pixels side by side, with
nothing but comparisons: neither the number of NaN nor what was in the window before changes its speed or its result, so
that a series cut in blocks of time or of pixels gives the same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.kernels.compiled import inlined, loop

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I8 = NDArray[np.int64]
Mask = NDArray[np.bool_]
Medians = NDArray[np.float32] | NDArray[np.float64]

QUARTILES = 1.3489795003921634  # between the quartiles of a normal distribution, in standard deviations
_LANES = 512  # pixels that are worked on side by side; their windows of 25 values are 50 KiB


@dataclass(frozen=True)
class Window:
    """Which integrations the median of an integration is taken over.

    Attributes
    ----------
    width : int
        Integrations in a window, at least 2.
    count : int
        Integrations of the series; windows do not reach beyond it.
    aware : bool
        Whether NaN are left out; otherwise, as in the reference, the median of a window with a NaN is NaN.
    compat : bool
        Whether, as in the reference, windows of 2 all give way to the last one.

    Raises
    ------
    InputError
        If the series is not longer than the window; `rolls` tells.
    """

    width: int
    count: int
    aware: bool = False
    compat: bool = False

    def __post_init__(self) -> None:
        if not rolls(self.width, self.count):
            raise InputError(
                f"outlier_detection.rolling_window_width = {self.width}: it must be more than 1 and less than the "
                f"number of integrations ({self.count}); otherwise take the median of them all"
            )

    def starts(self, first: int, last: int) -> I8:
        """First integration of the windows of the integrations from `first` to before `last`."""
        final = self.count - self.width
        if self.compat and self.width == 2:
            return np.full(last - first, final)
        return np.clip(np.arange(first, last) - self.width // 2, 0, final)

    def needed(self, first: int, last: int) -> tuple[int, int]:
        """Integrations that the medians of the integrations from `first` to before `last` need (half-open)."""
        starts = self.starts(first, last)
        return int(starts[0]), int(starts[-1]) + self.width


def rolls(width: int, count: int) -> bool:
    """Whether a series is long enough for a rolling median; otherwise one median of all integrations serves."""
    return 1 < width < count


class Rolled(NamedTuple):
    """Medians, and the scatter of the windows if it was asked for; shape (integrations, ny, nx)."""

    median: Medians
    scatter: F4 | None


def rolling_median(sci: F4, bad: Mask | None, window: Window, span: tuple[int, int], scatter: bool = False) -> Rolled:
    """Return the medians of the windows of some integrations.

    Parameters
    ----------
    sci : ndarray of float32, shape (n, ny, nx)
        The integrations ``window.needed(*span)``.
    bad : ndarray of bool, shape as `sci`, optional
        Pixels to be taken for NaN.
    window : Window
        Its width and the length of the series.
    span : tuple of int
        First integration whose median is wanted, and the one after the last.
    scatter : bool
        Whether to return the standard deviation in the windows too, from the distance of the quartiles.

    Returns
    -------
    Rolled
        Medians of the integrations of the span: float32 for odd windows, which loses nothing, float64 otherwise.

    Raises
    ------
    InputError
        If `sci` has not the integrations that are needed.
    """
    first, last = span
    lo, hi = window.needed(first, last)
    if len(sci) != hi - lo:
        raise InputError(f"medians of the integrations {first} to {last - 1} need {lo} to {hi - 1}, not {len(sci)}")
    starts = window.starts(first, last)
    shape = (last - first, *sci.shape[1:])
    narrow = window.width % 2 == 1 and not window.aware
    median = np.empty(shape, np.float32 if narrow else np.float64)
    spread = np.empty(shape if scatter else (0, *sci.shape[1:]), np.float32)
    rows = np.clip(starts + window.width // 2, first, last - 1) - first  # where the median of a window is written first
    _, places = np.unique(starts, return_index=True)
    _slide(
        _flat(sci), _flat(np.zeros((1, *shape[1:]), np.bool_) if bad is None else bad),
        (window.width, window.aware), rows[places], _scratch(window.width), (_flat(median), _flat(spread)),
    )  # fmt: skip
    for values in (median, spread) if scatter else (median,):
        for row in np.flatnonzero(rows != np.arange(len(rows))):  # the first and the last share a neighbour's window
            values[row] = values[rows[row]]
    return Rolled(median, spread if scatter else None)


def _flat(cube: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return a cube with its pixels side by side: (integrations, pixels), without a copy where it is contiguous."""
    return np.ascontiguousarray(cube).reshape(len(cube), math.prod(cube.shape[1:]))


def _scratch(width: int) -> tuple[F4, F4, I8]:
    return np.empty((width + 1, _LANES), np.float32), np.empty((3, _LANES), np.float32), np.empty(_LANES, np.int64)


@loop
def _replace(low, high, changed, n):  # type: ignore[no-untyped-def]
    """Make one step through sorted windows: ``changed`` are the values that go, those that come, those passed on."""
    for p in range(n):
        value = low[p] if low[p] < changed[0, p] else high[p]
        smaller = value if value < changed[1, p] else changed[1, p]
        low[p] = changed[2, p] if changed[2, p] > smaller else smaller
        changed[2, p] = value


@loop
def _take(values, bad, changed, gone, step, counts):  # type: ignore[no-untyped-def]
    """Note the values that come (or go): infinity stands for NaN, and NaN are counted."""
    for p in range(values.size):
        value = values[p] + np.float32(0.0)  # one zero only, whatever its sign was
        if math.isnan(value) or bad[p]:
            value = np.float32(np.inf)
            counts[p] += step
        changed[gone, p] = value


@loop
def _slide(x, bad, options, rows, scratch, out):  # type: ignore[no-untyped-def]
    width = options[0]
    windows, changed, counts = scratch
    count, pixels = x.shape
    for p0 in range(0, pixels, windows.shape[1]):
        p1 = min(p0 + windows.shape[1], pixels)
        n = p1 - p0
        windows[:] = np.float32(np.inf)
        counts[:] = 0
        done = 0
        for t in range(count):
            _take(x[t, p0:p1], bad[min(t, bad.shape[0] - 1), p0:p1], changed, 1, 1, counts)
            if t >= width:
                s = t - width
                _take(x[s, p0:p1], bad[min(s, bad.shape[0] - 1), p0:p1], changed, 0, -1, counts)
            else:
                changed[0, :] = np.float32(np.inf)
            changed[2, :] = np.float32(-np.inf)
            for k in range(width):
                _replace(windows[k], windows[k + 1], changed, n)
            if t >= width - 1:
                _emit(windows, counts, options, out[0][rows[done], p0:p1])
                if out[1].shape[0] > 0:
                    _scatter(windows, counts, options, out[1][rows[done], p0:p1])
                done += 1


@loop
def _emit(windows, counts, options, out):  # type: ignore[no-untyped-def]
    width, aware = options
    low, high = (width - 1) // 2, width // 2
    for p in range(out.size):
        if counts[p] > 0:
            m = width - counts[p] if aware else 0
            low, high = (m - 1) // 2, m // 2
        else:
            m, low, high = width, (width - 1) // 2, width // 2
        if m == 0:
            out[p] = np.nan
        elif low == high:
            out[p] = windows[low, p]
        else:
            out[p] = 0.5 * (np.float64(windows[low, p]) + np.float64(windows[high, p]))


@inlined
def _quantile(windows, p, place):  # type: ignore[no-untyped-def]
    k = int(place)
    low, high = np.float64(windows[k, p]), np.float64(windows[k + 1, p])
    return low if place == k else low + (place - k) * (high - low)


@loop
def _scatter(windows, counts, options, out):  # type: ignore[no-untyped-def]
    width, aware = options
    for p in range(out.size):
        m = width - counts[p] if aware or counts[p] == 0 else 0
        if m == 0:
            out[p] = np.nan
        else:
            out[p] = (_quantile(windows, p, 0.75 * (m - 1)) - _quantile(windows, p, 0.25 * (m - 1))) / QUARTILES


def outliers(sci: F4, err: F4, median: Medians, snr: float, scatter: F4 | None = None) -> Mask:
    """Flag pixels that differ from the median by more than ``snr`` times their error.

    Parameters
    ----------
    sci, err : ndarray of float32, shape (n, ny, nx)
        Integrations and their errors (NaN = 0).
    median : ndarray
        Shape (n, ny, nx): the difference is taken in double precision; shape (ny, nx), float32: the median of all
        integrations, with the difference in single precision, as in the reference.  Nothing is flagged where it is NaN.
    snr : float
        The first number of ``outlier_detection.snr``.
    scatter : ndarray of float32, shape (n, ny, nx), optional
        Counts as the error where it is larger: a pixel that varies more than its error says is then measured against
        its own variations.

    Returns
    -------
    ndarray of bool, shape (n, ny, nx)
    """
    flags = np.empty(sci.shape, np.bool_)
    whole = median.ndim == sci.ndim - 1
    _exceed(
        _flat(sci), _flat(err), median.reshape(1, -1) if whole else _flat(median),
        _flat(np.empty((0, 1, 1), np.float32) if scatter is None else scatter), (np.float32(snr), whole), _flat(flags),
    )  # fmt: skip
    return flags


@loop
def _exceed(sci, err, median, scatter, options, flags):  # type: ignore[no-untyped-def]
    snr, whole = options
    for t in range(sci.shape[0]):
        for p in range(sci.shape[1]):
            noise = err[t, p]
            noise = np.float32(0.0) if math.isnan(noise) else noise
            if scatter.shape[0] > 0 and scatter[t, p] > noise:
                noise = scatter[t, p]
            if whole:
                excess = np.float64(np.float32(abs(sci[t, p] - np.float32(median[0, p]))))
            else:
                excess = abs(np.float64(sci[t, p]) - np.float64(median[t, p]))
            flags[t, p] = excess > np.float64(np.float32(snr * noise))


def clip_series(values: F4, sigma: float, rounds: int | None) -> Mask:
    """Flag outliers of every pixel's series by clipping at a number of standard deviations from the median, again and again.

    Parameters
    ----------
    values : ndarray of float32, shape (count, ny, nx)
        The whole series of some pixels, or what is left of it after a rolling median.  What is not finite takes no part.
    sigma : float
        Standard deviations (population) of what is left in a round.  A round that would leave nothing clips nothing.
    rounds : int, optional
        At most so many; None = until nothing more is clipped.

    Returns
    -------
    ndarray of bool, shape as `values`
        True for what was clipped and for infinities; NaN are not flagged.
    """
    limit = len(values) if rounds is None else rounds
    series = np.sort(_flat(values).T, axis=1)  # NaN come last
    kept = np.empty((2, len(series)), values.dtype)
    _clip(np.ascontiguousarray(series), sigma, limit, kept)
    low, high = kept.reshape(2, *values.shape[1:])
    return np.asarray((values < low) | (values > high), np.bool_)


@loop
def _clip(series, sigma, rounds, kept):  # type: ignore[no-untyped-def]
    """Find the least and the greatest value of every sorted series that clipping leaves."""
    for p in range(series.shape[0]):
        sample = series[p]
        a, b = 0, sample.size  # what is left is a stretch of the series
        while b > 0 and not math.isfinite(sample[b - 1]):
            b -= 1
        while a < b and not math.isfinite(sample[a]):
            a += 1
        for _ in range(rounds):
            if b - a < 2:
                break
            low, high = _bounds(sample, a, b, sigma)
            first, last = a, b
            while first < last and sample[first] < low:
                first += 1
            while first < last and sample[last - 1] > high:
                last -= 1
            if first == last or (first == a and last == b):  # what would leave nothing clips nothing
                break
            a, b = first, last
        kept[0, p], kept[1, p] = (sample[a], sample[b - 1]) if b > a else (np.nan, np.nan)


@inlined
def _bounds(sample, a, b, sigma):  # type: ignore[no-untyped-def]
    middle = 0.5 * (np.float64(sample[a + (b - a - 1) // 2]) + np.float64(sample[a + (b - a) // 2]))
    mean = 0.0
    for i in range(a, b):
        mean += sample[i]
    mean /= b - a
    square = 0.0
    for i in range(a, b):
        square += (sample[i] - mean) ** 2
    width = sigma * math.sqrt(square / (b - a))
    return middle - width, middle + width
