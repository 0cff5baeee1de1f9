"""Pictures of time series: light curves, centroids and widths, a dynamic spectrum (PNG)."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.store import Observation
from streamimg3.store.rows import read_rows
from streamimg3.store.series_documents import LightCurveDocument, PhotometryDocument, SpectraDocument, SpectrumSeries

if TYPE_CHECKING:
    from matplotlib.figure import Figure

F8 = NDArray[np.float64]
_MOST = 2000  # points across a picture
_MINUTES = 1440.0


def series_pictures(obs: Observation) -> dict[str, bytes]:
    """Return the pictures of what a store holds of a time series, by the ending of their names.

    Parameters
    ----------
    obs : Observation
        A store that tso3 has worked on.

    Returns
    -------
    dict of str to bytes
        ``phot`` (light curve), ``centroid`` (position and width of the star), ``whtlt`` (white-light curve), ``x1dints``
        (dynamic spectrum: flux over its median at each wavelength); as PNG.

    Raises
    ------
    InputError
        If there is nothing to show.
    """
    found: dict[str, bytes] = {}
    table = obs.document(PhotometryDocument)
    if table is not None:
        found["phot"] = _photometry(obs)
        if any(c.name == "centroid_x" for c in table.columns):
            found["centroid"] = _centroids(obs)
    curves = obs.document(LightCurveDocument)
    if curves is not None and curves.rows:
        found["whtlt"] = _curves(obs, curves)
    spectra = obs.document(SpectraDocument)
    if spectra is not None and spectra.spectra:
        found["x1dints"] = _dynamic(obs, spectra.spectra)
    if not found:
        raise InputError(f"{obs.url} holds no photometry and no spectra of a time series: run tso3 first")
    return found


def _figure(rows: int, height: float = 2.6) -> tuple[Figure, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 0.8 + height * rows), dpi=110, layout="constrained")
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    return figure, list(axes)


def _png(figure: Figure) -> bytes:
    sink = io.BytesIO()
    figure.savefig(sink, format="png")
    return sink.getvalue()


def _minutes(days: F8) -> tuple[F8, str]:
    """Minutes since the first known time, and what to write below; numbers of integrations where no time is known."""
    known = days[np.isfinite(days)]
    if not known.size:
        return np.arange(float(len(days))), "integration"
    return (days - known.min()) * _MINUTES, f"minutes since MJD {known.min():.5f}"


def _photometry(obs: Observation) -> bytes:
    names = ("MJD", "net_aperture_sum", "net_aperture_sum_err", "annulus_mean")
    days, flux, error, sky = (read_rows(obs, f"photometry/{name}") for name in names)
    time, label = _minutes(days)
    figure, (above, below) = _figure(2)
    scale = np.nanmedian(flux)
    above.errorbar(time, flux / scale, error / abs(scale), fmt=".", ms=3, lw=0.6, color="#1f4e79", ecolor="#b8cce0")
    above.set(ylabel="flux / median", title="light curve")
    below.plot(time, sky, ".", ms=3, color="#7f6000")
    below.set(ylabel="background per pixel", xlabel=label)
    return _png(figure)


def _centroids(obs: Observation) -> bytes:
    names = ("MJD", "centroid_x", "centroid_y", "psf_width_x", "psf_width_y")
    days, x, y, wide_x, wide_y = (read_rows(obs, f"photometry/{name}") for name in names)
    time, label = _minutes(days)
    figure, (above, below) = _figure(2)
    for values, name, colour in ((x, "x", "#1f4e79"), (y, "y", "#a33b20")):
        above.plot(
            time, values - np.nanmedian(values), ".", ms=3, label=f"{name} - {np.nanmedian(values):.3f}", color=colour
        )
    for values, name, colour in ((wide_x, "x", "#1f4e79"), (wide_y, "y", "#a33b20")):
        below.plot(time, values, ".", ms=3, label=name, color=colour)
    above.set(ylabel="centroid [pixels]", title="position and width of the star")
    below.set(ylabel="width (sigma) [pixels]", xlabel=label)
    for axis in (above, below):
        axis.legend(loc="upper right", fontsize=8)
    return _png(figure)


def _curves(obs: Observation, document: LightCurveDocument) -> bytes:
    fluxes = [c.name for c in document.columns if c.name.startswith("whitelight_flux") and "error" not in c.name]
    figure, axes = _figure(len(fluxes))
    for axis, name in zip(axes, fluxes, strict=True):
        times = [c.name for c in document.columns if c.name.startswith("MJD_UTC")]
        mine = next((t for t in times if t != "MJD_UTC" and name.endswith(t.removeprefix("MJD_UTC"))), times[0])
        flux = read_rows(obs, f"white_light/{name}")
        time, label = _minutes(read_rows(obs, f"white_light/{mine}"))
        axis.plot(time, flux / np.nanmedian(flux), ".", ms=3, color="#1f4e79")
        axis.set(ylabel="flux / median", title=name)
    axes[-1].set(xlabel=label)
    return _png(figure)


def _dynamic(obs: Observation, spectra: tuple[SpectrumSeries, ...]) -> bytes:
    figure, axes = _figure(len(spectra), 3.6)
    for axis, one in zip(axes, spectra, strict=True):
        count = max(s.last for s in one.segments)
        step = max(1, -(-count // _MOST))
        flux = np.array([_mean(obs, one, k, min(k + step, count)) for k in range(0, count, step)])
        wavelength = read_rows(obs, f"{one.path}/wavelength")
        order = np.argsort(wavelength)
        scaled = flux[:, order] / _median(flux[:, order])
        low, high = np.nanpercentile(scaled, (2.0, 98.0)) if np.isfinite(scaled).any() else (0.9, 1.1)
        time, label = _minutes(read_rows(obs, f"{one.path}/int_mid_mjd_utc")[::step])
        shown = axis.pcolormesh(time, wavelength[order], scaled.T, vmin=low, vmax=high, cmap="magma", shading="nearest")
        figure.colorbar(shown, ax=axis, label="flux / median")
        axis.set(ylabel="wavelength [um]", title=f"{one.name}, order {one.order}")
    axes[-1].set(xlabel=label)
    return _png(figure)


def _mean(obs: Observation, one: SpectrumSeries, first: int, last: int) -> F8:
    """Mean of some spectra, NaN where none has a value."""
    rows = read_rows(obs, f"{one.path}/flux", first, last)
    known = np.isfinite(rows)
    total = np.where(known, rows, 0.0).sum(axis=0)
    count = known.sum(axis=0)
    mean: F8 = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return mean


def _median(flux: F8) -> F8:
    """Median at each wavelength, NaN where there is no flux (and where it is 0)."""
    found = np.full(flux.shape[1], np.nan)
    for k in range(flux.shape[1]):
        known = flux[:, k][np.isfinite(flux[:, k])]
        if known.size and np.median(known) != 0:
            found[k] = np.median(known)
    return found
