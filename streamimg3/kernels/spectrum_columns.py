"""From sums over a box to the columns of a table of spectra: units, errors, corrections (spec others §2.5, §2.6)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.kernels.boxcar import Sums, Variances

F8 = NDArray[np.float64]


@dataclass(frozen=True)
class Columns:
    """Columns of an EXTRACT1D table, float64 (n, points); the variances are Poisson, read noise, flat field.

    Attributes
    ----------
    flux, error, variances
        Jy, or DN/s.
    brightness, brightness_error, brightness_variances
        Per pixel of the box: MJy/sr, or DN/s.
    background, background_error, background_variances
        Per pixel of the box.
    pixels
        Sum of weights.
    """

    flux: F8
    error: F8
    variances: Variances
    brightness: F8
    brightness_error: F8
    brightness_variances: Variances
    background: F8
    background_error: F8
    background_variances: Variances
    pixels: F8

    @property
    def dq(self) -> NDArray[np.uint32]:
        """DO_NOT_USE where there is no flux."""
        return np.isnan(self.flux).astype(np.uint32)


def calibrated(sums: Sums, solid_angle: float | None, point_fluxes: bool = False) -> Columns:
    """Turn sums into the columns of a table.

    Parameters
    ----------
    sums : Sums
    solid_angle : float, optional
        Of a pixel in steradians; None = the pixels are count rates and stay so.
    point_fluxes : bool
        Whether pixels are in MJy, not in MJy/sr (point sources of NIRSpec); there is no surface brightness then.
    """
    area = np.where(sums.pixels > 0.0, sums.pixels, 1.0)
    flux_factor, sky_factor, bright = 1.0, 1.0, 1.0
    if solid_angle is not None:
        flux_factor = 1.0e6 if point_fluxes else solid_angle * 1.0e6
        sky_factor, bright = (1.0 / solid_angle, 0.0) if point_fluxes else (1.0, 1.0)
    variances = _scaled(sums.variances, flux_factor**2)
    shine = _scaled(sums.variances, bright / area**2)
    sky = _scaled(sums.background_variances, sky_factor**2 / area**2)
    brightness = sums.flux / area if bright else np.zeros(area.shape)
    background = sums.background / area * sky_factor
    return Columns(
        sums.flux * flux_factor, _root(variances), variances, brightness, _root(shine), shine,
        background, _root(sky), sky, sums.pixels,
    )  # fmt: skip


def _scaled(variances: Variances, factor: F8 | float) -> Variances:
    return Variances(*(plane * factor for plane in variances))


def _root(variances: Variances) -> F8:
    return np.asarray(np.sqrt(variances.poisson + variances.rnoise + variances.flat), np.float64)


class ApertureTable(NamedTuple):
    """A row of an APCORR file: sizes (s,) in pixels, increasing; wavelengths (w,) in microns; corrections (w, s)."""

    size: F8
    wavelength: F8
    correction: F8


def aperture_factors(table: ApertureTable, pixels: F8, wavelength: F8) -> F8:
    """Return the factor for light outside the box, linear between the table's sizes and wavelengths and constant beyond.

    Parameters
    ----------
    table : ApertureTable
    pixels : ndarray of float64, shape (n, points)
    wavelength : ndarray of float64, shape (points,)
        In microns.

    Returns
    -------
    ndarray of float64, shape (n, points)

    Raises
    ------
    InputError
        If the table does not increase.
    """
    from scipy.interpolate import RectBivariateSpline

    order = np.argsort(table.wavelength, kind="stable")
    at, size = np.asarray(table.wavelength, np.float64)[order], np.asarray(table.size, np.float64)
    if len(size) < 2 or len(at) < 2 or (np.diff(size) <= 0).any() or (np.diff(at) <= 0).any():
        raise InputError("apcorr: sizes and wavelengths must increase, two of each at least; give another apcorr file")
    spline = RectBivariateSpline(size, at, np.asarray(table.correction, np.float64)[order].T, kx=1, ky=1)
    return np.asarray(spline.ev(pixels, np.broadcast_to(wavelength, pixels.shape)), np.float64)


class PhasedTable(NamedTuple):
    """A row of an APCORR file whose sizes change with wavelength: sizes (w, s), wavelengths (w,), corrections (w, s)."""

    size: F8
    wavelength: F8
    correction: F8


def phased_factors(table: PhasedTable, pixels: F8, wavelength: F8) -> F8:
    """Return the factor for light outside the box as `aperture_factors` does; 1 beyond the table's wavelengths.

    Sizes and corrections are interpolated in wavelength first.

    Parameters
    ----------
    table : PhasedTable
    pixels : ndarray of float64, shape (n, points)
    wavelength : ndarray of float64, shape (points,)
        In microns.
    """
    order = np.argsort(table.wavelength, kind="stable")
    known = np.asarray(table.wavelength, np.float64)[order]
    found = np.ones(pixels.shape)
    for k in np.flatnonzero((wavelength >= known[0]) & (wavelength <= known[-1])):
        size, factor = (
            np.array([np.interp(wavelength[k], known, column) for column in np.asarray(values, np.float64)[order].T])
            for values in (table.size, table.correction)
        )
        found[:, k] = np.interp(pixels[:, k], size, factor)
    return found


def corrected(columns: Columns, factors: F8) -> Columns:
    """Multiply flux and surface brightness with factors, their variances with the squares; the background stays."""
    square = factors * factors
    return replace(
        columns,
        flux=columns.flux * factors,
        error=columns.error * factors,
        variances=_scaled(columns.variances, square),
        brightness=columns.brightness * factors,
        brightness_error=columns.brightness_error * factors,
        brightness_variances=_scaled(columns.brightness_variances, square),
    )


def multiplied(columns: Columns, response: F8) -> Columns:
    """Multiply flux and background with a factor for each point, their variances with its square (spec others §2.6)."""
    square = response * response
    return replace(
        columns,
        flux=columns.flux * response,
        error=columns.error * response,
        variances=_scaled(columns.variances, square),
        background=columns.background * response,
        background_error=columns.background_error * response,
        background_variances=_scaled(columns.background_variances, square),
    )
