"""What is shown of time series, as arrays: times in minutes, robust scatter, flux by wavelength and time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamimg3.store import Observation
from streamimg3.store.rows import read_rows
from streamimg3.store.series_documents import LightCurveDocument, SpectrumSeries

F8 = NDArray[np.float64]
_MINUTES = 1440.0


def minutes(days: F8) -> tuple[F8, str]:
    """Return minutes since the first known time, and what to write below; places where no time is known."""
    known = days[np.isfinite(days)]
    if not known.size:
        return np.arange(float(len(days))), "integration"
    return (days - known.min()) * _MINUTES, f"minutes since MJD {known.min():.5f}"


def step_scatter(values: F8) -> float:
    """Return the scatter of a series from one value to the next, as a standard deviation; NaN for fewer than 4 values.

    Slow changes (a transit, a drift) do not count; nor does a value far off.

    Examples
    --------
    >>> round(step_scatter(np.array([0.0, 1.0, 0.0, 1.0, 0.0, 1.0])), 3)
    1.048
    """
    steps = np.diff(values[np.isfinite(values)])
    if len(steps) < 3:
        return float("nan")
    return float(1.4826 * np.median(np.abs(steps)) / np.sqrt(2.0))


def binned_medians(x: F8, y: F8, count: int = 60) -> tuple[F8, F8]:
    """Return medians of neighbouring values: at most ``count``, of at least two values each, without those that are NaN."""
    good = np.isfinite(x) & np.isfinite(y)
    order = np.argsort(x[good], kind="stable")
    xs, ys = x[good][order], y[good][order]
    parts = min(count, len(xs) // 2)
    if parts < 1:
        return np.empty(0), np.empty(0)
    pieces = np.array_split(np.arange(len(xs)), parts)
    return np.array([xs[p].mean() for p in pieces]), np.array([float(np.median(ys[p])) for p in pieces])


def usual(values: F8, far: float = 5.0) -> F8:
    """Return the values of a series that lie within some scatters of the medians of their neighbours."""
    place = np.arange(float(len(values)))
    x, y = binned_medians(place, values)
    scatter = step_scatter(values)
    if len(x) < 2 or not scatter > 0:
        return values[np.isfinite(values)]
    near: F8 = values[np.abs(values - np.interp(place, x, y)) <= far * scatter]
    return near


def light_curves(obs: Observation, document: LightCurveDocument) -> list[tuple[str, F8, F8]]:
    """Return name, times (days) and flux of each white-light curve of a store."""
    names = [c.name for c in document.columns]
    times = [n for n in names if n.startswith("MJD_UTC")]
    found = []
    for name in (n for n in names if n.startswith("whitelight_flux") and "error" not in n):
        mine = next((t for t in times if t != "MJD_UTC" and name.endswith(t.removeprefix("MJD_UTC"))), times[0])
        found.append((name, read_rows(obs, f"white_light/{mine}"), read_rows(obs, f"white_light/{name}")))
    return found


@dataclass(frozen=True)
class Spectrum:
    """Flux over its median at each wavelength: ``scaled`` (time, wavelength), ``median`` and ``wavelength`` ascending (microns).

    ``days`` are the times of the rows; a row is the mean of ``step`` integrations.
    """

    wavelength: F8
    median: F8
    scaled: F8
    days: F8
    step: int


def dynamic_spectrum(obs: Observation, one: SpectrumSeries, rows: int) -> Spectrum:
    """Return a dynamic spectrum of at most ``rows`` rows; spectra are read a few at a time."""
    count = max(s.last for s in one.segments)
    step = max(1, -(-count // rows))
    flux = np.array([_mean(read_rows(obs, f"{one.path}/flux", k, min(k + step, count))) for k in range(0, count, step)])
    wavelength = read_rows(obs, f"{one.path}/wavelength")
    order = np.argsort(wavelength)
    flux = flux[:, order]
    median = _median(flux)
    usable = np.where(median == 0, np.nan, median)
    return Spectrum(
        wavelength[order], median, flux / usable, read_rows(obs, f"{one.path}/int_mid_mjd_utc")[::step], step
    )


def _mean(rows: F8) -> F8:
    """Mean of some spectra, NaN where none has a value."""
    known = np.isfinite(rows)
    count = known.sum(axis=0)
    total = np.where(known, rows, 0.0).sum(axis=0)
    mean: F8 = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return mean


def _median(flux: F8) -> F8:
    """Median at each wavelength, NaN where there is no flux."""
    found = np.full(flux.shape[1], np.nan)
    known = np.isfinite(flux).any(axis=0)
    if known.any():
        found[known] = np.nanmedian(flux[:, known], axis=0)
    return found
