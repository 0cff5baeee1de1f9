"""Positions, fluxes and shapes of stars on small cut-outs around their brightest pixels.

Spec image3 §4.3: the measurements of IRAF's *starfind* (moments of what exceeds a local sky) and of *daofind* (Stetson
1987: Gaussians fitted to marginal sums), with the precision and the peculiarities of the reference.  Everything is
local to a cut-out: how stars are grouped into calls changes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I8 = NDArray[np.int64]
Bool = NDArray[np.bool_]
Column = NDArray[np.float32] | NDArray[np.float64] | NDArray[np.int64]

_SIGMA_OF_FWHM = 1.0 / (2.0 * math.sqrt(2.0 * math.log(2.0)))


@dataclass(frozen=True, eq=False)
class DensityKernel:
    """A round Gaussian minus its mean: convolved with it, a star stands out and a plane vanishes.

    Parameters
    ----------
    fwhm, sigma : float
        Width of the Gaussian, in pixels.
    radius : int
        Half the side of the arrays without the middle pixel, at least 2.
    weights : ndarray of float64, shape (2 radius + 1, 2 radius + 1)
        The kernel; its sum is zero.
    gaussian : ndarray of float64
        The Gaussian with peak 1, not cut off.
    inside : ndarray of bool
        Pixels of the kernel: nearer than ``sigma_radius`` sigma or than 2 pixels.
    relative_error : float
        Standard deviation of the convolved image for noise of standard deviation 1.
    """

    fwhm: float
    sigma: float
    radius: int
    weights: F8
    gaussian: F8
    inside: Bool
    relative_error: float

    @classmethod
    def make(cls, fwhm: float, sigma_radius: float) -> DensityKernel:
        """Return the kernel for a star's width (pixels), cut off at ``sigma_radius`` sigma."""
        sigma = fwhm * _SIGMA_OF_FWHM
        scale, limit = 1.0 / (2.0 * sigma**2), sigma_radius**2 / 2.0
        radius = int(max(2.0, math.sqrt(scale * limit / (scale * scale))))
        offset = np.arange(-radius, radius + 1)
        distance2 = offset[:, None] ** 2 + offset**2
        exponent = scale * offset**2 + scale * offset[:, None] ** 2
        inside = (exponent <= limit) | (distance2 <= 4)
        gaussian = np.exp(-exponent)
        core, n = gaussian * inside, np.count_nonzero(inside)
        spread = (core**2).sum() - core.sum() ** 2 / n
        weights = (core - core.sum() / n) / spread * inside
        return cls(fwhm, sigma, radius, weights, gaussian, inside, float(1.0 / np.sqrt(spread)))


@dataclass(frozen=True, eq=False)
class Candidates:
    """Peaks of a convolved image and what surrounds them.

    Parameters
    ----------
    y, x : ndarray of int64, shape (n,)
        Pixels of the peaks.
    data, convolved : ndarray of float32, shape (n, k, k)
        Cut-outs of the kernel's size, 0 outside the image.
    """

    y: I8
    x: I8
    data: F4
    convolved: F4


def measure_iraf(found: Candidates, kernel: DensityKernel) -> tuple[dict[str, Column], Bool]:
    """Measure as IRAF's starfind does.

    Returns
    -------
    columns : dict
        x, y (pixels), fwhm (pixels), sharpness, roundness, orientation (degrees from x), n_pixels, peak, flux (above
        the local sky) and mag, one entry per candidate.
    valid : ndarray of bool, shape (n,)
        Everything is finite, and more than one pixel exceeds the sky.
    """
    outside = ~kernel.inside
    with np.errstate(all="ignore"):
        sky = (found.data * outside).sum(axis=(1, 2)) / np.count_nonzero(outside)
        above = (found.data - sky[:, None, None]) * kernel.inside.astype(np.int64)
        above[above < 0] = 0.0
        raw = _moments(above, np.zeros(1), np.zeros(1))
        y, x = raw[:, 1, 0] / raw[:, 0, 0], raw[:, 0, 1] / raw[:, 0, 0]
        central = _moments(above, y, x) / raw[:, :1, :1]
        yy, xx, xy = central[:, 2, 0], central[:, 0, 2], central[:, 1, 1]
        flux = above.sum(axis=(1, 2))
        columns: dict[str, Column] = {
            "x": x + (found.x - kernel.radius),
            "y": y + (found.y - kernel.radius),
            "fwhm": 2.0 * np.sqrt(math.log(2.0) * (xx + yy)),
            "sharpness": 2.0 * np.sqrt(math.log(2.0) * (xx + yy)) / kernel.fwhm,
            "roundness": np.sqrt((xx - yy) ** 2 + 4.0 * xy**2) / (xx + yy),
            "orientation": np.rad2deg(0.5 * np.arctan2(2.0 * xy, xx - yy)) % 360.0,
            "n_pixels": np.count_nonzero(above, axis=(1, 2)),
            "peak": above.max(axis=(1, 2), initial=-np.inf),
            "flux": flux,
            "mag": -2.5 * np.log10(flux),
        }
    needed = ("x", "y", "sharpness", "roundness", "orientation", "peak", "flux")
    return columns, _finite(columns, needed) & np.isfinite(sky) & (columns["n_pixels"] > 1)


def measure_dao(found: Candidates, kernel: DensityKernel, threshold: float) -> tuple[dict[str, Column], Bool]:
    """Measure as Stetson's daofind does.

    Parameters
    ----------
    found, kernel
        The candidates and the kernel of the convolution.
    threshold : float
        What the convolved peaks had to exceed; ``daofind_mag`` refers to it.

    Returns
    -------
    columns : dict
        x, y (pixels), sharpness, roundness1 (symmetry), roundness2 (marginal fits), n_pixels (of the kernel's array),
        peak, flux (sum of the cut-out), mag and daofind_mag, one entry per candidate.
    valid : ndarray of bool, shape (n,)
        Everything is finite.
    """
    c = kernel.radius
    peak, convolved_peak = found.data[:, c, c], found.convolved[:, c, c]
    with np.errstate(all="ignore"):
        dx, hx = _marginal_fit(found.data, kernel, axis=1)
        dy, hy = _marginal_fit(found.data, kernel, axis=0)
        inside = (found.data * kernel.inside.astype(np.int64)).sum(axis=(1, 2))
        around = (inside - peak) / (np.count_nonzero(kernel.inside) - 1)
        flux = found.data.sum(axis=(1, 2))
        columns: dict[str, Column] = {
            "x": found.x + dx,
            "y": found.y + dy,
            "sharpness": (peak - around) / convolved_peak,
            "roundness1": _symmetry(found.convolved, c),
            "roundness2": 2.0 * (hx - hy) / (hx + hy),
            "n_pixels": np.full(peak.size, kernel.weights.size),
            "peak": peak,
            "flux": flux,
            "mag": -2.5 * np.log10(flux),
            "daofind_mag": -2.5 * np.log10(convolved_peak / np.float64(threshold)),
        }
    needed = ("x", "y", "sharpness", "roundness1", "roundness2", "peak") + (("flux",) if threshold != 0 else ())
    return columns, _finite(columns, needed) & np.isfinite(hx) & np.isfinite(hy)


def _moments(pixels: F8, y: F8, x: F8) -> F8:
    """Return the sums of pixel × (row - y)^p × (column - x)^q for p, q = 0, 1, 2; shape (n, p, q).

    Rows are summed before columns, by matrix products: a source of two pixels, whose roundness is 1 but for rounding,
    then stays on the side of a limit of 1 where the reference has it.
    """
    offset = np.arange(pixels.shape[1], dtype=np.float64)
    powers_y, powers_x = (
        np.stack([np.ones_like(d), d, d**2], axis=-1) for d in (offset - y[:, None], offset - x[:, None])
    )
    sums: F8 = powers_y.transpose(0, 2, 1) @ pixels @ powers_x
    return sums


def _finite(columns: dict[str, Column], names: tuple[str, ...]) -> Bool:
    finite: Bool = np.logical_and.reduce([np.isfinite(columns[name]) for name in names])
    return finite


def _symmetry(convolved: F4, c: int) -> F4:
    """Return twice the alternating sum of four quadrants over the sum of absolute values, without the peak."""
    around = convolved.copy()
    around[:, c, c] = 0.0
    right, low = around[:, : c + 1, c + 1 :], around[:, :c, : c + 1]
    left, high = around[:, c:, :c], around[:, c + 1 :, c:]
    s1, s2, s3, s4 = (part.sum(axis=(1, 2)) for part in (right, low, left, high))
    symmetry: F4 = np.float32(2.0) * (-s1 + s2 - s3 + s4) / np.abs(around).sum(axis=(1, 2))
    return symmetry


def _marginal_fit(data: F4, kernel: DensityKernel, axis: int) -> tuple[F8, F8]:
    """Fit the kernel's Gaussian to sums along the other axis.

    Returns
    -------
    shift, height : ndarray of float64, shape (n,)
        Offset of the star from the middle pixel along the axis, and amplitude; NaN where the latter is not positive.
    """
    size, offset = data.shape[1], np.arange(-kernel.radius, kernel.radius + 1)
    weight = kernel.radius + 1 - np.abs(offset)  # a triangle, in both directions
    across = weight[None, :] if axis == 0 else weight[:, None]
    d = (data * across).sum(axis=2 - axis)
    g = (kernel.gaussian * across).sum(axis=1 - axis)
    slope = g * -offset
    total, sum_d, sum_g = weight.sum(), (d * weight).sum(axis=1), (g * weight).sum()
    covariance = (d * g * weight).sum(axis=1) - sum_d * sum_g / total
    variance = (g**2 * weight).sum() - sum_g**2 / total
    height = covariance / variance
    # the reference does not divide the product of the sums by the total weight here
    mixed = (d * slope * weight).sum(axis=1) - (slope * weight).sum() * sum_d
    shift = ((g * slope * weight).sum() - mixed) / (height * (slope**2 * weight).sum() / kernel.sigma**2)
    # beyond the cut-out: the centroid instead, in x with the reference's sign
    centroid = (d * (offset if axis == 0 else -offset) * weight).sum(axis=1) / sum_d
    shift = np.where(np.abs(shift) > size / 2, np.where(sum_d == 0.0, 0.0, centroid), shift)
    shift = np.where(np.abs(shift) > size / 2, 0.0, shift)
    rejected = (covariance <= 0.0) | (variance <= 0.0)
    return np.where(rejected, np.nan, shift), np.where(rejected, np.nan, height)
