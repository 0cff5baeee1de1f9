"""Smoothing with a Gaussian that leaves out bad pixels (spec image3 §9.2); the same bits whatever the window."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from streamimg3.kernels.compiled import loop

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
Bool = NDArray[np.bool_]

SIGMA_PER_FWHM = 1.0 / (2.0 * math.sqrt(2.0 * math.log(2.0)))


@lru_cache(maxsize=8)
def gaussian(fwhm: float) -> F8:
    """Return a Gaussian as an odd square of at least eight sigma, of sum 1; float64.

    Parameters
    ----------
    fwhm : float
        Full width at half maximum in pixels; 0 gives a single 1.

    Examples
    --------
    >>> gaussian(2.0).shape
    (7, 7)
    """
    if fwhm <= 0:
        return np.ones((1, 1))
    sigma = fwhm * SIGMA_PER_FWHM
    return gaussian_square(sigma, math.ceil(8 * sigma) // 2 * 2 + 1)


def gaussian_square(sigma: float, size: int) -> F8:
    """Return a Gaussian sampled at pixel centres on a square of ``size`` pixels, of sum 1; float64."""
    offset = np.arange(size) - size // 2
    y, x = np.meshgrid(offset.astype(np.float64), offset.astype(np.float64), indexing="ij")
    a = 0.5 * (1.0 / sigma**2)
    kernel = 1.0 / (2 * np.pi * sigma * sigma) * np.exp(-(a * x**2 + a * y**2))
    scaled: F8 = kernel / kernel.sum()
    return scaled


def smooth(data: F4, bad: Bool, kernel: F8) -> F4:
    """Smooth the middle of a window.

    A pixel becomes the sum of kernel times data over that of the kernel, both over the pixels that are not bad; NaN
    where all are bad.  Sums run in double precision, row by row of the kernel, so a pixel's bits depend on its own
    neighbourhood only.

    Parameters
    ----------
    data : ndarray of float32, shape (ny + 2h, nx + 2h)
        A window with ``h`` more pixels on every side, h being half the kernel; 0 beyond the image's edge.
    bad : ndarray of bool, same shape
        Pixels to leave out; False beyond the image's edge, where the zeros count.
    kernel : ndarray of float64, shape (2h + 1, 2h + 1)
        Symmetric weights.

    Returns
    -------
    ndarray of float32, shape (ny, nx)
    """
    size = kernel.shape[0]
    ny, nx = data.shape[0] - size + 1, data.shape[1] - size + 1
    out = np.empty((ny, nx), np.float32)
    rows = np.zeros((2, size, data.shape[1]))
    _smooth(data, bad, np.ascontiguousarray(kernel), out, rows, np.zeros(size, np.bool_), np.empty((2, nx)))
    return out


@loop
def _smooth(data, bad, kernel, out, rows, holes, sums):  # type: ignore[no-untyped-def]
    size = kernel.shape[0]
    nx = out.shape[1]
    whole = 0.0
    for j in range(size):
        for i in range(size):
            whole += kernel[j, i]
    for y in range(data.shape[0]):
        slot = y % size  # the last rows are kept as doubles, in a ring
        hole = False
        for x in range(data.shape[1]):
            good = not (bad[y, x] or math.isnan(data[y, x]))
            hole = hole or not good
            rows[0, slot, x] = np.float64(data[y, x]) if good else 0.0
            rows[1, slot, x] = 1.0 if good else 0.0
        holes[slot] = hole
        if y < size - 1:
            continue
        some = False
        for j in range(size):
            some = some or holes[j]
        sums[0, :] = 0.0
        sums[1, :] = 0.0 if some else whole
        for j in range(size):
            ring = (y - size + 1 + j) % size
            for i in range(size):
                k = kernel[j, i]
                for x in range(nx):
                    sums[0, x] += rows[0, ring, x + i] * k
                if some:
                    for x in range(nx):
                        sums[1, x] += rows[1, ring, x + i] * k
        for x in range(nx):
            out[y - size + 1, x] = sums[0, x] / sums[1, x] if sums[1, x] != 0.0 else np.nan
