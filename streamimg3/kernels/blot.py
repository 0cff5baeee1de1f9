"""A mosaic seen in the pixels of an exposure: bilinear interpolation (spec image3 §6.3)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamimg3.kernels.compiled import loop

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]


def blot(image: F4, origin: tuple[int, int], shape: tuple[int, int], y: F8, x: F8) -> F4:
    """Interpolate a mosaic at the positions of an exposure's pixels.

    Parameters
    ----------
    image : ndarray of float32, shape (rows, columns)
        Window of the mosaic; it must hold the four neighbours of every position that lies in the mosaic.
    origin : tuple of int
        Row and column of the window's first pixel in the mosaic.
    shape : tuple of int
        Rows and columns of the whole mosaic.
    y, x : ndarray of float64, shape (ny, nx)
        Pixel map of the exposure: mosaic rows and columns; NaN = none.

    Returns
    -------
    ndarray of float32, shape (ny, nx)
        NaN outside the mosaic (positions below 0 count as outside) and where one of the neighbours is NaN.
    """
    out = np.empty(y.shape, np.float32)
    _blot(image, origin[0], origin[1], shape[0], shape[1], y, x, out)
    return out


@loop
def _blot(image, y0, x0, ny, nx, y, x, out):  # type: ignore[no-untyped-def]
    one = np.float32(1.0)
    for j in range(y.shape[0]):
        for i in range(y.shape[1]):
            v, u = np.float32(y[j, i]), np.float32(x[j, i])  # the reference's positions are single precision
            if not (v >= 0.0 and v < ny and u >= 0.0 and u < nx):
                out[j, i] = np.float32(np.nan)
                continue
            r, c = int(v), int(u)
            b, a = v - np.float32(r), u - np.float32(c)
            low = image[r - y0, c - x0]
            if c + 1 < nx and r + 1 < ny:
                right, up, far = image[r - y0, c + 1 - x0], image[r + 1 - y0, c - x0], image[r + 1 - y0, c + 1 - x0]
                out[j, i] = (one - a) * (one - b) * low + a * (one - b) * right + (one - a) * b * up + a * b * far
            elif r + 1 < ny:
                out[j, i] = (one - b) * low + b * image[r + 1 - y0, c - x0]
            elif c + 1 < nx:
                out[j, i] = (one - a) * low + a * image[r - y0, c + 1 - x0]
            else:
                out[j, i] = low
