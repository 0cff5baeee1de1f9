"""From counts to surface brightness: one factor for an exposure (spec others §1.5).

Whether the factor is a float32 or a float64 decides over the last bit of every pixel (spec others §0.4): with a
float32 everything is multiplied in single precision, with a float64 in double precision and rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamimg3.kernels.calibration_loops import layered, scale
from streamimg3.kernels.dq_match import Planes, match

Factor = np.float32 | np.float64

MJY_PER_SR = 23.50443053909789  # µJy/arcsec²
_YEAR = 365.0  # days


class Linear(NamedTuple):
    """Response that falls by a fraction of ``lossperyear`` a year since ``t0`` (MJD)."""

    t0: float
    lossperyear: float


class Exponential(NamedTuple):
    """Response ``amplitude exp(-(t - t0) / tau) + const``; ``t0`` MJD, ``tau`` days."""

    t0: float
    amplitude: float
    tau: float
    const: float


class PowerLaw(NamedTuple):
    """Response that follows ``(t - t0 + tsoft)^alpha`` and is ``year1value`` a year after ``t0``; MJD, days."""

    t0: float
    year1value: float
    tsoft: float
    alpha: float


Change = Linear | Exponential | PowerLaw


def time_correction(changes: Sequence[Change], day: float) -> np.float64:
    """Return the response at a time relative to that for which the reference file's factor holds.

    Each term is computed in single precision, as coefficients in reference files are float32; even the day is rounded
    to a float32 (0.004 d) before anything is subtracted from it.  The product is double precision.

    Parameters
    ----------
    changes : sequence of Linear, Exponential, PowerLaw
        One row of each table of coefficients that the reference file has, in this order; the factors multiply.
    day : float
        Middle of the exposure, MJD.

    Returns
    -------
    float64
        1 if there are no tables.
    """
    product = np.ones(1)
    with np.errstate(all="ignore"):
        for change in changes:
            product *= _response(change, day)
    return np.float64(product[0])


def _response(change: Change, day: float) -> NDArray[np.floating]:
    # Arrays of one element: NumPy's scalars may take exp and powers from another library
    t, one, year, *c = (np.array([value], np.float32) for value in (day, 1.0, _YEAR, *change))
    response: NDArray[np.floating]
    if isinstance(change, Linear):
        response = one - c[1] * (t - c[0]) / year
    elif isinstance(change, Exponential):
        response = c[1] * np.exp(-(t - c[0]) / c[2]) + c[3]
    else:
        t0, year1, soft, alpha = c
        response = np.power(t - t0 + soft, alpha) / (np.power(year + soft, alpha) / year1)
    return response


def conversion(photmjsr: float, correction: float = 1.0) -> Factor:
    """Return the factor from counts to surface brightness at the time of the exposure.

    Parameters
    ----------
    photmjsr : float
        Of the reference file (a float32 there), MJy/sr for 1 DN/s.
    correction : float
        From `time_correction`.

    Returns
    -------
    float32, or float64 where the correction is not 1
        MJy/sr for 1 DN/s.
    """
    factor = np.float32(photmjsr)
    return factor if correction == 1.0 else np.float64(factor) / np.float64(correction)


def per_square_arcsec(factor: Factor) -> Factor:
    """Return a factor in µJy/arcsec² for one in MJy/sr, in the factor's own precision."""
    return type(factor)(factor * type(factor)(MJY_PER_SR))


def convert(planes: Planes, factor: Factor, inverse: bool = False) -> None:
    """Multiply an exposure by a factor, its variances by the factor squared, and make invalid pixels the same everywhere.

    Parameters
    ----------
    planes : Planes
        Changed in place.
    factor : float32 or float64
        From `conversion`; its precision is that of the multiplication.
    inverse : bool
        Divide instead of multiply.
    """
    if inverse:
        _divide(planes, factor)
    else:
        given = (planes.sci, planes.err, planes.var_poisson, planes.var_rnoise, planes.var_flat)
        scale(*(layered(plane, planes.sci.shape) for plane in given), factor)
    match(planes)


def _divide(planes: Planes, factor: Factor) -> None:
    with np.errstate(all="ignore"):
        for plane in (planes.sci, planes.err):
            if plane is not None:
                np.divide(plane, factor, out=plane, casting="same_kind")
        for variance in planes.variances:
            np.divide(variance, factor * factor, out=variance, casting="same_kind")
