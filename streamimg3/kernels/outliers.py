"""Which pixels of an exposure disagree with the median of all (spec image3 §6.4, §6.5)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamimg3.kernels.compiled import loop

F4 = NDArray[np.float32]
Mask = NDArray[np.bool_]
REACH = 2  # pixels around a window that its flags depend on: one for the growth, one for the derivative there


@dataclass(frozen=True)
class Thresholds:
    """``snr`` times the noise plus ``scale`` times the local derivative, for the first and for the second pass."""

    snr: tuple[float, float] = (5.0, 4.0)
    scale: tuple[float, float] = (1.2, 0.7)


def resampled_outliers(sci: F4, noise: F4, blotted: F4, background: float, thresholds: Thresholds) -> Mask:
    """Flag pixels that differ from the blotted median by more than noise and interpolation can explain.

    A pixel counts if it exceeds the second threshold and it or one of its eight neighbours exceeds the first; all
    arithmetic is single precision, as in the reference.

    Parameters
    ----------
    sci, noise, blotted : ndarray of float32, shape (ny, nx)
        Image, its error (NaN = 0) and the median in its pixels (NaN = never flagged).
    background : float
        Sky that the image has and the median has not.
    thresholds : Thresholds
        Both passes.

    Returns
    -------
    ndarray of bool, shape (ny, nx)
        True for outliers.  Pixels within ``REACH`` of an edge that is not the exposure's own are not final.
    """
    over = np.empty(sci.shape, np.uint8)
    flags = np.zeros(sci.shape, np.bool_)
    numbers = np.array([*thresholds.snr, *thresholds.scale, background], np.float32)
    _exceed(sci, noise, blotted, numbers, over)
    _grow(over, flags)
    return flags


@loop
def _exceed(sci, noise, blotted, numbers, over):  # type: ignore[no-untyped-def]
    ny, nx = sci.shape
    snr1, snr2, scale1, scale2, background = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]
    for j in range(ny):
        for i in range(nx):
            over[j, i] = 0
            b = blotted[j, i]
            if math.isnan(b):
                continue
            slope = np.float32(0.0)
            for k in range(4):
                r, c = j + (k == 0) - (k == 1), i + (k == 2) - (k == 3)
                if r < 0 or c < 0 or r >= ny or c >= nx:
                    continue
                step = abs(b - blotted[r, c])
                if step > slope:  # never true for NaN
                    slope = step
            e = noise[j, i]
            e = np.float32(0.0) if math.isnan(e) else e
            excess = abs(sci[j, i] - b - background)
            first, second = scale1 * slope + snr1 * e, scale2 * slope + snr2 * e
            over[j, i] = (excess > first) + 2 * (excess > second)


@loop
def _grow(over, flags):  # type: ignore[no-untyped-def]
    ny, nx = over.shape
    for j in range(ny):
        for i in range(nx):
            if over[j, i] < 2:
                continue
            for r in range(max(j - 1, 0), min(j + 2, ny)):
                for c in range(max(i - 1, 0), min(i + 2, nx)):
                    if over[r, c] & 1:
                        flags[j, i] = True


def stacked_outliers(sci: F4, noise: F4, median: F4, snr: float) -> Mask:
    """Flag pixels that differ from the median of a stack in the same pixels by more than ``snr`` times the noise."""
    flags: Mask = np.abs(sci - median) > np.float32(snr) * np.nan_to_num(noise)
    return flags


def nan_median(stack: F4) -> F4:
    """Return the median of the finite values along axis 0 (mean of the two middle ones), NaN where there is none."""
    from bottleneck import nanmedian

    median: F4 = nanmedian(stack, axis=0)
    return median
