"""The mean of background exposures, to be subtracted from a science exposure (spec others §1.2).

All arrays are bands or boxes of the science exposure; how it is cut makes no difference to any bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from streamimg3.kernels.compiled import loop

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
U4 = NDArray[np.uint32]
Number = TypeVar("Number", np.float32, np.float64, np.uint32)
_SURE = 0.999  # of sigma; far more than the rounding of limits


@dataclass(frozen=True)
class Clip:
    """How outliers are left out: values more than ``sigma`` deviations from the median, ``maxiters`` times.

    ``maxiters`` None = until nothing is left out any more.
    """

    sigma: float = 3.0
    maxiters: int | None = None


class Background(NamedTuple):
    """One background exposure: values, their variances (both float64) and flags; (ny, nx)."""

    sci: F8
    variance: F8
    dq: U4


class MeanBackground(NamedTuple):
    """The mean of several: values, their errors (both float32) and flags; (ny, nx)."""

    sci: F4
    err: F4
    dq: U4


def place(
    plane: NDArray[Number],
    science_corner: tuple[int, int],
    science_shape: tuple[int, int],
    background_corner: tuple[int, int],
) -> NDArray[Number]:
    """Put a background's pixels where they belong among the science pixels.

    Parameters
    ----------
    plane : ndarray of float or uint32, shape (..., rows, columns)
        Pixels of the background, or a box of them.
    science_corner, background_corner : tuple of int
        Row and column of the first pixel of each on the detector; both count from 0, or both from 1.
    science_shape : tuple of int
        Rows and columns of the science pixels, or of a box of them.

    Returns
    -------
    ndarray of `plane`'s dtype, shape (..., *science_shape)
        NaN, or no flags, where the background has no pixel; `plane` itself where it lies on all pixels and no others.
    """
    if background_corner == science_corner and plane.shape[-2:] == science_shape:
        return plane
    missing = 0 if plane.dtype.kind == "u" else np.nan
    placed = np.full((*plane.shape[:-2], *science_shape), missing, plane.dtype)
    there, here = [], []
    for sizes, science, background in zip(
        zip(science_shape, plane.shape[-2:], strict=True), science_corner, background_corner, strict=True
    ):
        shift = background - science
        start, stop = max(0, shift), min(sizes[0], sizes[1] + shift)
        there.append(slice(start, max(start, stop)))
        here.append(slice(start - shift, max(start, stop) - shift))
    placed[..., there[0], there[1]] = plane[..., here[0], here[1]]
    return placed


def squared(err: F4) -> F4:
    """Return variances for errors (float32; inf where that overflows)."""
    with np.errstate(over="ignore", under="ignore"):
        return np.square(err)


def clip_integrations(sci: F4, err: F4, dq: U4, clip: Clip) -> Background:
    """Average the integrations of one background, without outliers.

    Parameters
    ----------
    sci, err : ndarray of float32, shape (nint, ny, nx)
        Counts and errors; sci and err² are clipped each by itself.  NaN and infinities take no part.
    dq : ndarray of uint32, shape (nint, ny, nx)
        Flags.
    clip : Clip
        What is left out.

    Returns
    -------
    Background
        Mean and mean variance (float64, shape (ny, nx), NaN where no integration has a value) and the flags of all
        integrations.  Sums are single precision.
    """
    means = []
    for values in (sci, squared(err)):
        mean = np.empty(values.shape[1:])
        _mean_of_integrations(_without_outliers(values, clip), mean)
        means.append(mean)
    return Background(means[0], means[1], np.bitwise_or.reduce(dq, axis=0))


def mean_background(data: NDArray[np.floating], variance: NDArray[np.floating], dq: U4, clip: Clip) -> MeanBackground:
    """Average backgrounds without outliers, which are those in `data`.

    Parameters
    ----------
    data : ndarray of float32 or float64, shape (n, ny, nx)
        Backgrounds: images as they are, cubes as averaged by `clip_integrations`; NaN and infinities take no part.
    variance : ndarray of float32 or float64, shape (n, ny, nx)
        Their variances.
    dq : ndarray of uint32, shape (n, ny, nx)
        Their flags.
    clip : Clip
        What is left out.

    Returns
    -------
    MeanBackground
        Mean and its error (float32, shape (ny, nx), 0 where no background has a value) and the flags of all.  Sums are
        double precision.
    """
    sci, err = np.empty(data.shape[1:], np.float32), np.empty(data.shape[1:], np.float32)
    _mean_of_backgrounds(_without_outliers(data, clip), variance, sci, err)
    return MeanBackground(sci, err, np.bitwise_or.reduce(dq, axis=0))


def uncovered(data: NDArray[np.floating]) -> int:
    """Return the number of pixels where no background of a stack (n, ny, nx) has a value: nothing is subtracted there."""
    return int(np.count_nonzero(~np.isfinite(data).any(axis=0)))


def subtract(sci: F4, dq: U4, background: MeanBackground) -> None:
    """Subtract a mean background from an image, or from every integration of a cube, in place; its flags are added."""
    with np.errstate(invalid="ignore", over="ignore"):
        sci -= background.sci
    dq |= background.dq


def _without_outliers(values: NDArray[np.floating], clip: Clip) -> NDArray[np.floating]:
    """Return values with NaN for what takes no part, a copy if there is any; clipped along the first axis."""
    good = np.isfinite(values)
    if _farthest(len(values)) < _SURE * clip.sigma or not good.any():
        return values if good.all() else np.where(good, values, values.dtype.type(np.nan))
    from astropy.stats import sigma_clip

    filled = np.where(good, values, values.dtype.type(0))
    kept: NDArray[np.floating] = sigma_clip(
        np.ma.array(filled, mask=~good), sigma=clip.sigma, maxiters=clip.maxiters, axis=0, masked=False, copy=False
    )
    return kept


def _farthest(count: int) -> float:
    """Return a bound for how many deviations one of some values, or of fewer, can be away from their median.

    With the median at 0, one value at 1 deviates most when those that must not be above the median are 0 (more than half
    of them) and the others are at the mean.
    """
    half = count // 2 + 1
    return math.sqrt(count * (half + 1) / half)


@loop
def _mean_of_integrations(values, mean):  # type: ignore[no-untyped-def]
    for j in range(mean.shape[0]):
        for i in range(mean.shape[1]):
            n, total = 0, np.float32(0.0)
            for k in range(values.shape[0]):
                if not math.isnan(values[k, j, i]):
                    total = np.float32(total + values[k, j, i])
                    n += 1
            mean[j, i] = np.float64(total) / n if n else math.nan


@loop
def _mean_of_backgrounds(values, variance, sci, err):  # type: ignore[no-untyped-def]
    for j in range(sci.shape[0]):
        for i in range(sci.shape[1]):
            n, total, spread = 0, 0.0, 0.0
            for k in range(values.shape[0]):
                if not math.isnan(values[k, j, i]):
                    total += np.float64(values[k, j, i])
                    spread += np.float64(variance[k, j, i])
                    n += 1
            sci[j, i] = np.float32(total / n) if n else np.float32(0.0)
            err[j, i] = np.float32(math.sqrt(spread) / n) if n else np.float32(0.0)
