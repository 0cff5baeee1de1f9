"""Pixels of an integration that disagree with the median of all integrations (spec others §3.2).

Every pixel is judged by itself, over all integrations of an exposure: any window of the detector gives the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamimg3.kernels.dq_match import DO_NOT_USE, Planes, match
from streamimg3.kernels.outliers import nan_median, stacked_outliers

F4 = NDArray[np.float32]
U4 = NDArray[np.uint32]
Bool = NDArray[np.bool_]

OUTLIER = 16


@dataclass(frozen=True)
class Cut:
    """What the median is made of, and what is too far from it.

    Parameters
    ----------
    snr : float
        Allowed distance from the median, in errors of the pixel.
    bad : int
        Flags that keep a pixel out of the median; they are judged all the same.
    maskpt : float
        Good pixels have weight 1 and bad ones 0; those below this fraction of the mean of the weights that are not 0
        stay out of the median.  So all values above 0 and up to 1 mean the same, 0 lets everything in and more than 1
        nothing.
    """

    snr: float = 5.0
    bad: int = DO_NOT_USE
    maskpt: float = 0.7


class StackOutliers(NamedTuple):
    """The median (float32, shape (ny, nx); NaN where there is none) and the outliers (bool, shape (nint, ny, nx))."""

    median: F4
    outliers: Bool


def good_median(sci: F4, dq: U4, cut: Cut) -> F4:
    """Return the median over integrations of what takes part: float32, shape (ny, nx), NaN where nothing does.

    Parameters
    ----------
    sci : ndarray of float32, shape (nint, ny, nx)
        Integrations, which are left as they are; NaN take no part.
    dq : ndarray of uint32, shape (nint, ny, nx)
        Flags.
    cut : Cut
        Which flags exclude.
    """
    weight = (dq & np.uint32(cut.bad)) == 0
    return nan_median(np.where(weight < cut.maskpt, np.float32(np.nan), sci))


def flag_outliers(planes: Planes, cut: Cut) -> StackOutliers:
    """Flag what is too far from the median as OUTLIER and DO_NOT_USE, in place.

    Afterwards invalid pixels are NaN in all planes.

    Parameters
    ----------
    planes : Planes of shape (nint, ny, nx)
        All integrations of an exposure, or a window of them.  Where the error is NaN it counts as 0; where the exposure
        has none nothing is flagged.
    cut : Cut
        What is too far.

    Returns
    -------
    StackOutliers
        The median and the pixels that have been flagged.
    """
    median = good_median(planes.sci, planes.dq, cut)
    outliers: Bool = np.zeros(planes.sci.shape, np.bool_)
    if planes.err is not None:
        with np.errstate(invalid="ignore", over="ignore"):
            outliers = stacked_outliers(planes.sci, planes.err, median, cut.snr)
    np.bitwise_or(planes.dq, np.uint32(DO_NOT_USE | OUTLIER), out=planes.dq, where=outliers)
    match(planes)
    return StackOutliers(median, outliers)
