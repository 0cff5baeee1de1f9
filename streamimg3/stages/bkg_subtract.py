"""Subtract the mean of background exposures (spec others §1.2): parameters, and the arithmetic of a band."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.kernels.background_mean import (
    Background,
    Clip,
    MeanBackground,
    clip_integrations,
    mean_background,
    place,
    squared,
    subtract,
)
from streamimg3.stages.calibrated_band import Planes

NAME = "bkg_subtract"
# Measured bytes for each pixel of a band: of one background, of one integration of the cube at hand, and of their mean
_PER_BACKGROUND, _PER_INTEGRATION, _ONCE = 42, 42, 20


@dataclass(frozen=True)
class Params:
    """Parameters of the bkg_subtract step: names, meaning and defaults of jwst 3.0.0.

    Parameters
    ----------
    bkg_list : sequence of str or None
        Background exposures for the science exposures to which the association gives none.
    save_combined_background : bool
        Write the mean background.
    sigma : float
        Values more than so many deviations from the median are left out.
    maxiters : int or None
        How often; None = until nothing is left out any more.
    soss_source_percentile, soss_bkg_percentile, wfss_mmag_extract, wfss_mask, wfss_maxiter, wfss_rms_stop, wfss_outlier_percent
        Spectroscopy only; they have no effect on images.
    override_bkg : str or None
        Spectroscopy only.
    save_results : bool
        Write the exposures as this step leaves them.

    Raises
    ------
    InputError
        If a value is out of range.
    """

    bkg_list: tuple[str, ...] | None = None
    save_combined_background: bool = False
    sigma: float = 3.0
    maxiters: int | None = None
    soss_source_percentile: float = 35.0
    soss_bkg_percentile: tuple[float, float] | None = None
    wfss_mmag_extract: float | None = None
    wfss_mask: str | None = None
    wfss_maxiter: int = 5
    wfss_rms_stop: float = 0.0
    wfss_outlier_percent: float = 1.0
    override_bkg: str | None = None
    save_results: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.sigma < math.inf:
            raise InputError(f"{NAME}.sigma = {self.sigma}: it must be positive and finite")
        if self.maxiters is not None and self.maxiters < 0:
            raise InputError(f"{NAME}.maxiters = {self.maxiters}: it must be at least 0, or None for no limit")

    @property
    def clip(self) -> Clip:
        """How outliers are left out."""
        return Clip(self.sigma, self.maxiters)


@dataclass(frozen=True)
class Piece:
    """Rows of a background, as they lie in its file.

    Parameters
    ----------
    sci, err : ndarray of float32, shape (rows, nx) or (nint, rows, nx)
        Counts per second and their errors.
    dq : ndarray of uint32, shape as `sci`
        Flags.
    corner : tuple of int
        Row and column of its first pixel on the detector, from 0.
    """

    sci: NDArray[np.float32]
    err: NDArray[np.float32]
    dq: NDArray[np.uint32]
    corner: tuple[int, int]


def mean_of(
    pieces: Iterable[Piece | None], corner: tuple[int, int], shape: tuple[int, int], clip: Clip
) -> MeanBackground:
    """Average backgrounds over a band of the science exposure.

    Parameters
    ----------
    pieces : iterable of Piece or None
        Of each background the rows that the band needs; None = it has none of them. They are taken one by one.
    corner : tuple of int
        Row and column of the band's first pixel on the detector, from 0.
    shape : tuple of int
        Rows and columns of the band.
    clip : Clip
        What is left out.

    Returns
    -------
    MeanBackground
        (rows, nx), float32 and uint32.
    """
    found = [_placed(piece, corner, shape, clip) for piece in pieces]
    return mean_background(
        np.stack([b.sci for b in found]), np.stack([b.variance for b in found]), np.stack([b.dq for b in found]), clip
    )


def _placed(piece: Piece | None, corner: tuple[int, int], shape: tuple[int, int], clip: Clip) -> Background:
    """One background on the band's pixels: an image as it is, a cube averaged over its integrations."""
    if piece is None:
        nothing = np.full(shape, np.nan, np.float32)
        return Background(nothing, nothing, np.zeros(shape, np.uint32))  # type: ignore[arg-type]
    sci, err = (place(plane, corner, shape, piece.corner) for plane in (piece.sci, piece.err))
    dq = place(piece.dq, corner, shape, piece.corner)
    if sci.ndim == 2:
        return Background(sci, squared(err), dq)  # type: ignore[arg-type]
    return clip_integrations(sci, err, dq, clip)


def memory(columns: int, backgrounds: int, depth: int) -> int:
    """Return the bytes that one row of a band takes with so many backgrounds of so many integrations (images: 1)."""
    deep = _PER_INTEGRATION * depth if depth > 1 else 0
    return columns * (_PER_BACKGROUND * backgrounds + deep + _ONCE)


def apply(planes: Planes, background: MeanBackground) -> None:
    """Subtract a mean background from a band in place, and add its flags."""
    subtract(planes.sci, planes.dq, background)
