"""How faint a companion could be seen: signal-to-noise images and contrast curves (spec others §3.7)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I8 = NDArray[np.int64]


class ContrastCurve(NamedTuple):
    """Noise in rings: mean of the inner and outer radius (float32, pixels), standard deviation (float32, unit of the image)."""

    radius: F4
    sigma: F4


def snr_image(sci: F4, err: F4) -> F4:
    """Return signal over noise (float32, shape of `sci`); infinite or NaN where the error is 0."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return sci / err


def centre(shape: tuple[int, int]) -> tuple[int, int]:
    """Return the pixel (y, x) that distances count from; for even sizes it lies half a pixel before the middle."""
    ny, nx = shape
    return round(ny / 2) - 1, round(nx / 2) - 1


def contrast_curve(image: F4, width: int = 2) -> ContrastCurve:
    """Measure the noise in rings around the middle of an image, out to its nearest edge.

    Parameters
    ----------
    image : ndarray of float32, shape (ny, nx)
        Image without the star; NaN take no part.
    width : int
        Width of a ring in pixels, at least 1.  A pixel belongs to the ring that its centre lies in.

    Returns
    -------
    ContrastCurve
        One value for each ring: population standard deviation about the mean of the ring, in double precision; NaN where
        a ring has no pixel.
    """
    y0, x0 = centre((image.shape[0], image.shape[1]))
    inner = np.arange(0, max(min(y0, x0), 0), width)
    if inner.size == 0:
        return ContrastCurve(np.empty(0, np.float32), np.empty(0, np.float32))
    y, x = np.ogrid[: image.shape[0], : image.shape[1]]
    limits = np.append(inner, inner[-1] + width).astype(np.float64)
    ring = np.searchsorted(limits, np.sqrt((y - y0) ** 2 + (x - x0) ** 2), side="right") - 1
    counted = (ring < inner.size) & ~np.isnan(image)
    sigma = _deviations(image[counted].astype(np.float64), ring[counted], inner.size)
    return ContrastCurve((inner + width / 2).astype(np.float32), sigma.astype(np.float32))


def _deviations(values: F8, ring: I8, count: int) -> F8:
    """Return the standard deviation of each ring (float64; NaN for none)."""
    with np.errstate(invalid="ignore"):
        members = np.bincount(ring, minlength=count)
        mean = np.bincount(ring, values, count) / members
        return np.sqrt(np.bincount(ring, (values - mean[ring]) ** 2, count) / members)
