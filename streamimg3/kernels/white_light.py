"""One flux for every spectrum of a time series: the sum over a range of wavelengths (spec others §2.7)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError

F8 = NDArray[np.float64]
I8 = NDArray[np.int64]

EVERYTHING = (-1.0, 1.0e10)
Limits = tuple[float, float]


class RangeRow(NamedTuple):
    """A row of a wavelength-range reference file; wavelengths in microns."""

    order: int
    filter: str
    low: float
    high: float


class BandSums(NamedTuple):
    """Sums of n spectra, their errors, and how many points each has; shape (n,)."""

    flux: F8
    error: F8
    points: I8


def band_sums(flux: F8, error: F8 | None, wavelength: F8, limits: Limits) -> BandSums:
    """Sum spectra over a range of wavelengths, both ends included.

    Parameters
    ----------
    flux, error : ndarray of float64, shape (n, points)
        Spectra and their errors; NaN fluxes are left out, with their errors.  None = errors are NaN.
    wavelength : ndarray of float64, shape (points,) or (n, points)
        In the unit of the limits.
    limits : tuple of float
        Lowest and highest wavelength.

    Returns
    -------
    BandSums
        Sum 0 of a spectrum without a point, as in the reference; its `points` is 0 then.
    """
    used = (wavelength >= limits[0]) & (wavelength <= limits[1]) & ~np.isnan(flux)
    sums = np.where(used, flux, 0.0).sum(axis=1)
    if error is None:
        errors = np.full(len(flux), np.nan)
    else:
        errors = np.sqrt((np.where(used, error, 0.0) ** 2).sum(axis=1))
    return BandSums(sums, errors, used.sum(axis=1))


def order_limits(
    orders: Iterable[int | None],
    filter_name: str,
    rows: Sequence[RangeRow] | None,
    given: tuple[float | None, float | None] = (None, None),
    compat: bool = False,
) -> dict[int | None, Limits]:
    """Return the limits of every spectral order.

    Parameters
    ----------
    orders : iterable of int or None
        Orders in the order of their spectra.
    filter_name : str
        Filter of the exposure.
    rows : sequence of RangeRow, optional
        The reference file; None = there is none, and everything is summed.
    given : tuple
        ``min_wavelength`` and ``max_wavelength``; they go before the file's.
    compat : bool
        Whether, as in the reference, the limits of the first order hold for all.

    Raises
    ------
    InputError
        If the file has no row, or several, for an order and the filter.
    """
    limits: dict[int | None, Limits] = {}
    for order in dict.fromkeys(orders):
        low, high = EVERYTHING if rows is None else _row_limits(order, filter_name, rows)
        limits[order] = low if given[0] is None else given[0], high if given[1] is None else given[1]
    first = next(iter(limits.values()), EVERYTHING)
    return dict.fromkeys(limits, first) if compat else limits


def _row_limits(order: int | None, filter_name: str, rows: Sequence[RangeRow]) -> Limits:
    found = [row for row in rows if row.order == order and row.filter == filter_name]
    if len(found) != 1:
        raise InputError(
            f"wavelengthrange: {len(found)} rows for order {order} and filter {filter_name}, not 1: "
            "give white_light.min_wavelength and max_wavelength with wavelengthrange N/A, or another file"
        )
    return found[0].low, found[0].high


@dataclass(frozen=True)
class Series:
    """Sums of the spectra of one segment, order and detector.

    Attributes
    ----------
    mjd_utc, bjd_tdb : ndarray of float64, shape (n,)
        Times of mid-integration in days; NaN = unknown, and the spectrum is left out.
    sums : BandSums
    order : int or None
    detector : str
    """

    mjd_utc: F8
    bjd_tdb: F8
    sums: BandSums
    order: int | None = None
    detector: str = ""


class Curve(NamedTuple):
    """Light curve of an order in the rows of its detector; NaN where the order has no spectrum.  ``points`` is 0 there."""

    flux: F8
    error: F8
    points: I8

    def normalized(self) -> Curve:
        """Return the curve divided by its median."""
        known = self.flux[~np.isnan(self.flux)]
        scale = np.median(known) if len(known) else np.nan
        return Curve(self.flux / scale, self.error / abs(scale), self.points)


@dataclass(frozen=True)
class LightCurves:
    """Light curves of one detector: times in increasing order, shape (rows,), and a curve for every order."""

    detector: str
    mjd_utc: F8
    bjd_tdb: F8
    curves: Mapping[int | None, Curve]
    dropped: int


def light_curves(series: Sequence[Series]) -> list[LightCurves]:
    """Put the sums of all segments in order of time, one table for each detector.

    Of several spectra of an order with the same time the first counts, and those without a time are left out; nothing
    that is given is changed.

    Parameters
    ----------
    series : sequence of Series
        In the order of the spectra.

    Returns
    -------
    list of LightCurves
        Detectors, and orders in them, in the order in which they first appear.
    """
    orders = list(dict.fromkeys(part.order for part in series))
    return [
        _detector_curves(name, [part for part in series if part.detector == name], orders)
        for name in dict.fromkeys(part.detector for part in series)
    ]


def _detector_curves(detector: str, parts: list[Series], orders: list[int | None]) -> LightCurves:
    utc = np.concatenate([part.mjd_utc for part in parts])
    tdb = np.concatenate([part.bjd_tdb for part in parts])
    times, places = np.unique(utc, return_index=True)
    known = ~np.isnan(times)
    times, places = times[known], places[known]
    curves = {order: _curve([part for part in parts if part.order == order], times) for order in orders}
    kept = sum(len(np.unique(part.mjd_utc[~np.isnan(part.mjd_utc)])) for part in parts)
    return LightCurves(detector, times, tdb[places], curves, len(utc) - kept)


def _curve(parts: list[Series], times: F8) -> Curve:
    flux, error = np.full((2, len(times)), np.nan)
    points = np.zeros(len(times), np.int64)
    for part in reversed(parts):  # the first of several overwrites the others
        order = np.flatnonzero(~np.isnan(part.mjd_utc))[::-1]
        rows = np.searchsorted(times, part.mjd_utc[order])
        flux[rows], error[rows], points[rows] = (values[order] for values in part.sums)
    return Curve(flux, error, points)
