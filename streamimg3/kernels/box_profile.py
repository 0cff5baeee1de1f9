"""Which pixels a spectrum is summed over, and which its background comes from (spec others §2.5, boxcar).

"Across" is the axis that is summed, "along" the direction of dispersion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError

F8 = NDArray[np.float64]
Polynomials = tuple[tuple[float, ...], ...]

ALONG_X, ALONG_Y = 1, 2


@dataclass(frozen=True)
class Box:
    """Where a spectrum is, as an extract1d reference file says it.

    Attributes
    ----------
    dispaxis : int
        1 = wavelength changes along rows (x), 2 = along columns (y).
    start, stop : tuple of float
        First and last row and column (y, x), both included.
    width : float, optional
        Rows (or columns) to be summed about the middle of start and stop, or about a trace.
    source, background : tuple of polynomials
        Lower and upper limits in turn, constant terms first; limits count from the middle of a pixel.
    by_wavelength : bool
        Whether the polynomials are in wavelength; otherwise in pixels.
    whole : bool
        Whether the background takes whole pixels only, as the median does.

    Raises
    ------
    InputError
        If a lower limit has no upper one, or the direction is neither 1 nor 2.
    """

    dispaxis: int
    start: tuple[float, float]
    stop: tuple[float, float]
    width: float | None = None
    source: Polynomials = ()
    background: Polynomials = ()
    by_wavelength: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        if self.dispaxis not in (ALONG_X, ALONG_Y):
            raise InputError(f"direction of dispersion {self.dispaxis}: it must be 1 (along x) or 2 (along y)")
        for name, limits in (("src_coeff", self.source), ("bkg_coeff", self.background)):
            if len(limits) % 2 or not all(limits):
                raise InputError(f"extract1d: {name} must give lower and upper limits in turn, none of them empty")

    def shifted(self, offset: float) -> Box:
        """Return the box moved across the dispersion by some pixels."""
        y, x = (offset, 0.0) if self.dispaxis == ALONG_X else (0.0, offset)
        return replace(
            self,
            start=(self.start[0] + y, self.start[1] + x),
            stop=(self.stop[0] + y, self.stop[1] + x),
            source=_moved(self.source, offset),
            background=_moved(self.background, offset),
        )


def _moved(limits: Polynomials, offset: float) -> Polynomials:
    return tuple((constant + offset, *rest) for constant, *rest in limits)


@dataclass(frozen=True)
class Profile:
    """Weights of a box: float64 from 0 to 1, shape (ny, nx), and its mean limits across the dispersion (0-based)."""

    weights: F8
    lower: float
    upper: float


def source_profile(box: Box, wavelength: F8, trace: F8 | None = None) -> Profile:
    """Return the weights that pixels have in a spectrum.

    Parameters
    ----------
    box : Box
    wavelength : ndarray of float64, shape (ny, nx)
        Of every pixel; where it is not finite, nothing is summed.
    trace : ndarray of float64, shape (nx,) or (ny,), optional
        Position across the dispersion of a source, for every pixel along it; counts if the box has a width and no limits.
    """
    across, along = _indices(box, wavelength.shape)
    weights = np.zeros(wavelength.shape)
    limits: Sequence[tuple[F8 | float, F8 | float]]
    if box.source:
        limits = _limits(box.source, wavelength if box.by_wavelength else along)
    elif box.width is not None and trace is not None:
        low = (trace[None, :] if box.dispaxis == ALONG_X else trace[:, None]) - (box.width - 1.0) / 2.0
        limits = [(low, low + box.width - 1.0)]
    else:
        limits = [_straight(box)]
    for lower, upper in limits:
        _cover(weights, across, lower, upper)
    _cut(weights, box)
    weights[~np.isfinite(wavelength)] = 0.0
    lows, highs = ([_mean(limit[side]) for limit in limits] for side in (0, 1))
    return Profile(weights, min(lows), max(highs))


def background_profile(box: Box, wavelength: F8) -> F8:
    """Return the weights of the pixels that the background comes from; only whether they are 0 matters to the fit."""
    across, along = _indices(box, wavelength.shape)
    weights = np.zeros(wavelength.shape)
    for lower, upper in _limits(box.background, wavelength if box.by_wavelength else along):
        _cover(weights, across, lower, upper, not box.whole)
    _cut(weights, box)
    return weights


def profile_wavelength(weights: F8, wavelength: F8, dispaxis: int) -> F8:
    """Return the mean wavelength of every pixel along the dispersion, weighted with the profile; NaN without a weight."""
    used = (weights > 0.0) & ~np.isnan(wavelength)
    axis = 0 if dispaxis == ALONG_X else 1
    given = np.where(used, weights, 0.0)
    total = given.sum(axis)
    sums = np.sum(np.where(used, wavelength, 0.0) * given, axis)
    found: F8 = np.divide(sums, total, out=np.full(total.shape, np.nan), where=total > 0.0)
    return found


def _indices(box: Box, shape: tuple[int, ...]) -> tuple[F8, F8]:
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float64)
    return (y, x) if box.dispaxis == ALONG_X else (x, y)


def _limits(polynomials: Polynomials, at: F8) -> list[tuple[F8, F8]]:
    """Limits counted as start and stop are: whole pixels, both included."""
    values = [np.polynomial.polynomial.polyval(at, np.array(p)) for p in polynomials]
    return [(low + 0.5, high - 0.5) for low, high in zip(values[::2], values[1::2], strict=True)]


def _straight(box: Box) -> tuple[float, float]:
    axis = 0 if box.dispaxis == ALONG_X else 1
    low, high = box.start[axis], box.stop[axis]
    if box.width is None:
        return low, high
    low = (low + high) / 2.0 - (box.width - 1.0) / 2.0
    return low, low + box.width - 1


def _mean(limit: F8 | float) -> float:
    values = np.asarray(limit, np.float64)
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def _cover(weights: F8, across: F8, lower: F8 | float, upper: F8 | float, partial: bool = True) -> None:
    """Give pixels within limits the weight 1, those that are cut by one the part that is inside, unless they have more."""
    weights[(across >= lower) & (across <= upper)] = 1.0
    for part in (across - lower + 1.0, upper - across + 1.0) if partial else ():
        cut = (part > 0.0) & (part < 1.0) & (weights < part)
        weights[cut] = part[cut]


def _cut(weights: F8, box: Box) -> None:
    """Take away what is before the start and behind the stop along the dispersion."""
    axis = 1 if box.dispaxis == ALONG_X else 0
    first, last = max(math.ceil(box.start[axis]), 0), max(math.floor(box.stop[axis]) + 1, 0)
    view = np.moveaxis(weights, axis, 0)
    view[:first] = 0.0
    view[last:] = 0.0
