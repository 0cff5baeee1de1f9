"""Photometry in circles, local background in rings, and the sharpness and roundness of DAOFIND (image3 §9.5)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from streamimg3.kernels.compiled import inlined, loop
from streamimg3.kernels.measure import Pixels
from streamimg3.kernels.smooth import SIGMA_PER_FWHM, gaussian_square

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I8 = NDArray[np.int64]

_ROUNDS, _FRAME_ROUNDS = 5, 20
_FRAME_SCALE = 1.5  # inner side of the frame that a local background comes from, in sides of the bounding box
_FRAME_LEAST = 10  # fewer pixels than these say nothing


@dataclass(frozen=True)
class Circles:
    """Radii in pixels of the apertures, and of the ring that the local background comes from."""

    radii: tuple[float, ...]
    ring: tuple[float, float]

    @property
    def reach(self) -> int:
        """Pixels that are needed on every side of a position."""
        return math.ceil(max(*self.radii, *self.ring)) + 1


def circle_sums(data: F4, error: F4, origin: tuple[int, int], centres: F8, radius: float) -> tuple[F8, F8]:
    """Sum an image in circles, pixels on the rim by the exact area that is inside.

    Parameters
    ----------
    data, error : ndarray of float32, shape (ny, nx)
        A window that holds the circles, as far as the image does.
    origin : tuple of int
        Row and column of the window's first pixel in the image.
    centres : ndarray of float64, shape (n, 2)
        Rows and columns in the image.
    radius : float
        In pixels.

    Returns
    -------
    sums, errors : ndarray of float64, shape (n,)
        Sums, NaN if a pixel inside is NaN or the circle is wholly outside the image; root of the sum of squared errors
        times area.
    """
    found = np.empty((2, len(centres)))
    _circle_sums(data, error, origin, np.ascontiguousarray(centres), radius, found)
    return found[0], np.sqrt(found[1])


def ring_background(data: F4, origin: tuple[int, int], centres: F8, ring: tuple[float, float]) -> tuple[F8, F8]:
    """Return the clipped median of the pixels whose centres lie in a ring, and its standard error.

    Pixels are clipped at three standard deviations from the median, at most five times; the error is
    ``sqrt(π / 2N)`` times the standard deviation of the N that are left.  NaN without a finite pixel.
    """
    side = 2 * math.ceil(ring[1]) + 3
    values = np.empty(side * side)
    found = np.empty((2, len(centres)))
    _ring_background(data, origin, np.ascontiguousarray(centres), ring, values, found)
    return found[0], found[1]


def frame_reach(box: I8, width: int) -> I8:
    """Return the pixels that a frame about a bounding box needs: ``(y0, x0, y1, x1)``."""
    half = 0.5 * _FRAME_SCALE * (box[2:] - box[:2]) + width
    middle = 0.5 * (box[:2] + box[2:] - 1)
    return np.concatenate([np.floor(middle - half), np.ceil(middle + half) + 1]).astype(np.int64)


def frame_values(pixels: Pixels, box: I8, width: int) -> F8:
    """Return the pixels of no source in a rectangular frame about a bounding box, row by row (float64).

    The frame is ``width`` pixels wide and leaves out 1.5 times the box; of a frame only a part of whose rows are in
    the window, those rows' pixels are returned.
    """
    y0, x0, y1, x1 = frame_reach(box, width)
    values = np.empty(max(int((min(y1 - y0, pixels.data.shape[0]) + 1) * (x1 - x0)), 1))
    n = _frame_values(pixels.origin, pixels.counted, pixels.data, pixels.bad, pixels.labels, box, width, values)
    return values[:n]


def frame_level(values: F8) -> float:
    """Return the background that SExtractor would see in some pixels: 2.5 median - 1.5 mean after clipping.

    The median where the two differ by 0.3 standard deviations or more; 0 for fewer than ten pixels.
    """
    if len(values) < _FRAME_LEAST:
        return 0.0
    return float(_mode(values))


@dataclass(frozen=True)
class DaoKernel:
    """The zero-sum Gaussian of DAOFIND: weights (float64) on a square, and the circle of pixels that are used."""

    weights: F8
    mask: NDArray[np.bool_]

    @classmethod
    @lru_cache(maxsize=8)
    def of_fwhm(cls, fwhm: float) -> DaoKernel:
        """Return the kernel for a Gaussian of this width in pixels; it reaches 1.5 sigma, at least 2 pixels."""
        sigma = fwhm * SIGMA_PER_FWHM
        reach = max(2.0, 1.5 * sigma)
        half = int(reach)
        y, x = np.mgrid[-half : half + 1, -half : half + 1]
        mask = np.hypot(y, x) <= reach
        peak = gaussian_square(sigma, 2 * half + 1)
        peak = peak / peak.max() * mask
        n = np.count_nonzero(mask)
        spread = np.sum(peak**2) - np.sum(peak) ** 2 / n
        return cls((peak - peak.sum() / n) / spread * mask, mask)

    @property
    def reach(self) -> int:
        """Pixels that are needed on every side of a position: twice the half width."""
        return int(2 * (self.mask.shape[0] // 2) + 1)


def sharpness_roundness(data: F4, origin: tuple[int, int], centres: F8, kernel: DaoKernel) -> tuple[F8, F4]:
    """Return DAOFIND's sharpness (float64) and roundness (float32) at positions; pixels beyond the image count as 0.

    Sharpness is the central pixel's excess over the mean of those around it, in units of the height of the fitted
    Gaussian; roundness compares two-fold and four-fold symmetry of the convolved image about the centre.
    """
    sharp, rounds = np.empty(len(centres)), np.empty(len(centres), np.float32)
    size = kernel.mask.shape[0]
    convolved = np.empty((size, size), np.float32)
    _sharpness(data, origin, np.ascontiguousarray(centres), kernel.weights, kernel.mask, convolved, sharp, rounds)
    return sharp, rounds


@inlined
def _chord(x, r):  # type: ignore[no-untyped-def]
    """Integral of sqrt(r² - t²) from 0 to x, |x| <= r."""
    return 0.5 * (x * math.sqrt(max(r * r - x * x, 0.0)) + r * r * math.asin(min(max(x / r, -1.0), 1.0)))


@inlined
def _below(x, y, r):  # type: ignore[no-untyped-def]
    """Integral from 0 to x of y, limited to what the circle of radius r leaves: odd in x and in y."""
    a, b = min(abs(x), r), abs(y)
    w = math.sqrt(r * r - b * b) if b < r else 0.0
    area = a * b if a <= w else w * b + _chord(a, r) - _chord(w, r)
    return math.copysign(1.0, x) * math.copysign(1.0, y) * area


@inlined
def overlap(y, x, r):  # type: ignore[no-untyped-def]
    """Area of a circle about 0 within the unit pixel whose centre is (y, x)."""
    ay, ax = abs(y), abs(x)
    ny, nx = max(ay - 0.5, 0.0), max(ax - 0.5, 0.0)
    if ny * ny + nx * nx >= r * r:
        return 0.0
    if (ay + 0.5) ** 2 + (ax + 0.5) ** 2 <= r * r:
        return 1.0
    top = _below(x + 0.5, y + 0.5, r) - _below(x - 0.5, y + 0.5, r)
    bottom = _below(x + 0.5, y - 0.5, r) - _below(x - 0.5, y - 0.5, r)
    return top - bottom


@loop
def _circle_sums(data, error, origin, centres, radius, found):  # type: ignore[no-untyped-def]
    ny, nx = data.shape
    for k in range(centres.shape[0]):
        y, x = centres[k, 0] - origin[0], centres[k, 1] - origin[1]
        found[0, k], found[1, k] = np.nan, np.nan
        if math.isnan(y) or math.isnan(x):
            continue
        some = False
        total, square = 0.0, 0.0
        for j in range(max(math.floor(y - radius), 0), min(math.ceil(y + radius) + 1, ny)):
            for i in range(max(math.floor(x - radius), 0), min(math.ceil(x + radius) + 1, nx)):
                area = overlap(j - y, i - x, radius)
                if area > 0.0:
                    some = True
                    total += np.float64(data[j, i]) * area
                    square += np.float64(error[j, i] * error[j, i]) * area
        if some:
            found[0, k], found[1, k] = total, square


@loop
def _ring_background(data, origin, centres, ring, values, found):  # type: ignore[no-untyped-def]
    ny, nx = data.shape
    inner, outer = ring
    for k in range(centres.shape[0]):
        y, x = centres[k, 0] - origin[0], centres[k, 1] - origin[1]
        n = 0
        if not (math.isnan(y) or math.isnan(x)):
            for j in range(max(math.floor(y - outer), 0), min(math.ceil(y + outer) + 1, ny)):
                for i in range(max(math.floor(x - outer), 0), min(math.ceil(x + outer) + 1, nx)):
                    d = (j - y) ** 2 + (i - x) ** 2
                    if d < outer * outer and not d < inner * inner and math.isfinite(data[j, i]):
                        values[n] = data[j, i]
                        n += 1
        n, middle, _, std = _clip(values, n, _ROUNDS)
        found[0, k] = middle
        found[1, k] = math.sqrt(math.pi / (2.0 * n)) * std if n > 0 else np.nan


@inlined
def _select(values, n, rank):  # type: ignore[no-untyped-def]
    """Reorder values so that the one of a rank is in its place, lower ones before it; return it."""
    low, high = 0, n - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if rank <= j:
            high = j
        elif rank >= i:
            low = i
        else:
            break
    return values[rank]


@inlined
def _median(values, n):  # type: ignore[no-untyped-def]
    middle = _select(values, n, n // 2)
    if n % 2 == 0:
        below = values[0]
        for i in range(1, n // 2):
            below = max(below, values[i])
        middle = 0.5 * (middle + below)
    return middle


@inlined
def _mean_std(values, n):  # type: ignore[no-untyped-def]
    mean, square = 0.0, 0.0
    for i in range(n):
        mean += values[i]
    mean /= n
    for i in range(n):
        square += (values[i] - mean) ** 2
    return mean, math.sqrt(square / n)


@inlined
def _clip(values, n, rounds):  # type: ignore[no-untyped-def]
    """Clip the first n values at three deviations; return how many stay (in front), median, mean and deviation."""
    if n == 0:
        return 0, np.nan, np.nan, np.nan
    middle = _median(values, n)
    mean, std = _mean_std(values, n)
    for _ in range(rounds):
        kept = 0
        for i in range(n):
            if middle - 3.0 * std <= values[i] <= middle + 3.0 * std:
                values[kept] = values[i]
                kept += 1
        if kept in (0, n):
            break
        n = kept
        middle = _median(values, n)
        mean, std = _mean_std(values, n)
    return n, middle, mean, std


@loop
def _frame_values(origin, counted, data, bad, labels, box, width, values):  # type: ignore[no-untyped-def]
    yc, xc = 0.5 * (box[0] + box[2] - 1), 0.5 * (box[1] + box[3] - 1)
    h, w = 0.5 * _FRAME_SCALE * (box[2] - box[0]), 0.5 * _FRAME_SCALE * (box[3] - box[1])
    x0, x1 = max(math.floor(xc - w - width), origin[1]), math.ceil(xc + w + width) + 1
    n = 0
    for j in range(counted[0] - origin[0], counted[1] - origin[0]):
        dy = abs(j + origin[0] - yc)
        if dy >= h + width:
            continue
        for x in range(x0, min(x1, origin[1] + data.shape[1])):
            i = x - origin[1]
            dx = abs(x - xc)
            outside = not (dy < h and dx < w)
            if dx < w + width and outside and labels[j, i] == 0 and not bad[j, i] and math.isfinite(data[j, i]):
                values[n] = data[j, i]
                n += 1
    return n


@loop
def _mode(values):  # type: ignore[no-untyped-def]
    _, middle, mean, std = _clip(values, values.size, _FRAME_ROUNDS)
    if std == 0.0:
        return mean
    return middle if abs(mean - middle) / std >= 0.3 else 2.5 * middle - 1.5 * mean


@inlined
def _at(data, j, i):  # type: ignore[no-untyped-def]
    return data[j, i] if 0 <= j < data.shape[0] and 0 <= i < data.shape[1] else np.float32(0.0)


@loop
def _sharpness(data, origin, centres, weights, mask, convolved, sharp, rounds):  # type: ignore[no-untyped-def]
    size = mask.shape[0]
    half = size // 2
    n = 0
    for j in range(size):
        for i in range(size):
            n += mask[j, i]
    for k in range(centres.shape[0]):
        sharp[k], rounds[k] = np.nan, np.float32(np.nan)
        if math.isnan(centres[k, 0]) or math.isnan(centres[k, 1]):
            continue
        y = math.ceil(centres[k, 0] - 0.5) - origin[0]
        x = math.ceil(centres[k, 1] - 0.5) - origin[1]
        total = 0.0
        for j in range(size):
            for i in range(size):
                value = 0.0
                for v in range(size):
                    for u in range(size):
                        if mask[v, u]:
                            value += np.float64(_at(data, y + j + v - 2 * half, x + i + u - 2 * half)) * weights[v, u]
                convolved[j, i] = value if _inside(data, y + j - half, x + i - half) else 0.0
                # a NaN in a corner of the square counts too, as in the reference, which multiplies by the mask
                total += np.float64(_at(data, y + j - half, x + i - half)) * np.float64(mask[j, i])
        peak = np.float64(_at(data, y, x))
        sharp[k] = (peak - (total - peak) / (n - 1)) / np.float64(convolved[half, half])
        rounds[k] = _roundness(convolved, half)


@inlined
def _inside(data, j, i):  # type: ignore[no-untyped-def]
    return 0 <= j < data.shape[0] and 0 <= i < data.shape[1]


@inlined
def _roundness(convolved, half):  # type: ignore[no-untyped-def]
    """Signed sum of the four quadrants (each with one of the half axes) over the sum of all but the centre."""
    two, four = np.float32(0.0), np.float32(0.0)
    for j in range(convolved.shape[0]):
        for i in range(convolved.shape[1]):
            if j == half and i == half:
                continue
            c = convolved[j, i]
            four += abs(c)
            negative = (j <= half and i > half) or (j >= half and i < half)
            two += -c if negative else c
    return np.float32(2.0) * two / four if four != 0.0 else np.float32(np.nan)
