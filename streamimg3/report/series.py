"""Pictures of time series: light curves, centroids and widths, a dynamic spectrum (PNG)."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from streamimg3.errors import InputError
from streamimg3.report.series_data import dynamic_spectrum, light_curves, minutes
from streamimg3.store import Observation
from streamimg3.store.rows import read_rows
from streamimg3.store.series_documents import LightCurveDocument, PhotometryDocument, SpectraDocument, SpectrumSeries

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST = 2000  # points across a picture


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


def _photometry(obs: Observation) -> bytes:
    names = ("MJD", "net_aperture_sum", "net_aperture_sum_err", "annulus_mean")
    days, flux, error, sky = (read_rows(obs, f"photometry/{name}") for name in names)
    time, label = minutes(days)
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
    time, label = minutes(days)
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
    found = light_curves(obs, document)
    figure, axes = _figure(len(found))
    for axis, (name, days, flux) in zip(axes, found, strict=True):
        time, label = minutes(days)
        axis.plot(time, flux / np.nanmedian(flux), ".", ms=3, color="#1f4e79")
        axis.set(ylabel="flux / median", title=name)
    axes[-1].set(xlabel=label)
    return _png(figure)


def _dynamic(obs: Observation, spectra: tuple[SpectrumSeries, ...]) -> bytes:
    figure, axes = _figure(len(spectra), 3.6)
    for axis, one in zip(axes, spectra, strict=True):
        seen = dynamic_spectrum(obs, one, _MOST)
        low, high = np.nanpercentile(seen.scaled, (2.0, 98.0)) if np.isfinite(seen.scaled).any() else (0.9, 1.1)
        time, label = minutes(seen.days)
        shown = axis.pcolormesh(
            time, seen.wavelength, seen.scaled.T, vmin=low, vmax=high, cmap="magma", shading="nearest"
        )
        figure.colorbar(shown, ax=axis, label="flux / median")
        axis.set(ylabel="wavelength [um]", title=f"{one.name}, order {one.order}")
    axes[-1].set(xlabel=label)
    return _png(figure)
