"""An image at half its scale."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F4 = NDArray[np.float32]


def halved(image: F4, weight: F4) -> tuple[F4, F4]:
    """Return the weighted mean of every 2 x 2 pixels, and the sum of their weights.

    Parameters
    ----------
    image, weight : ndarray of float32, shape (ny, nx)
        Pixels that are not finite, or have no weight, do not count.

    Returns
    -------
    image, weight : ndarray of float32, shape (ceil(ny / 2), ceil(nx / 2))
        NaN and 0 where no pixel counts; at odd rims there are fewer pixels.

    Examples
    --------
    >>> mean, weight = halved(np.float32([[1, 2], [3, np.nan]]), np.float32([[1, 1], [2, 1]]))
    >>> mean.item(), weight.item()
    (2.25, 4.0)
    """
    good = np.isfinite(image) & (weight > 0)
    w = np.where(good, weight, np.float32(0))
    total = _summed(np.where(good, image, np.float32(0)) * w)
    weights = _summed(w)
    mean = np.full(total.shape, np.nan, np.float32)
    np.divide(total, weights, out=mean, where=weights > 0)
    return mean, weights


def largest(counts: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Return the largest of every 2 x 2 pixels."""
    even = _even(counts)
    pairs = np.maximum(even[0::2], even[1::2])
    return np.asarray(np.maximum(pairs[:, 0::2], pairs[:, 1::2]), np.uint16)


def _summed(values: F4) -> F4:
    """Sum of every 2 x 2 pixels, always in the same order."""
    even = _even(values)
    pairs = even[0::2] + even[1::2]
    return np.asarray(pairs[:, 0::2] + pairs[:, 1::2], np.float32)


def _even(values: NDArray[np.generic]) -> NDArray:  # type: ignore[type-arg]
    """The array with a row and a column of zeros more where their number is odd."""
    ny, nx = values.shape
    return np.pad(values, ((0, ny % 2), (0, nx % 2))) if ny % 2 or nx % 2 else values
