"""A time series: the light of the star, where it was and how wide, its spectra and white-light curves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from streamimg3.report.picture import figure_png
from streamimg3.report.qa import Figure, Judge, Section, Table
from streamimg3.report.series_data import binned_medians, dynamic_spectrum, light_curves, minutes, step_scatter, usual
from streamimg3.report.svg import COLOURS, Axis, Plot, brief
from streamimg3.store import Observation
from streamimg3.store.rows import read_rows
from streamimg3.store.series_documents import LightCurveDocument, PhotometryDocument, SpectraDocument, SpectrumSeries

F8 = NDArray[np.float64]
_MILLION = 1e6
_ROWS = 600  # times in the picture of a spectrum
_WAVELENGTHS = 500
_PICTURE = (260, 400)  # pixels that small ones are enlarged to
_FAR = 5.0  # scatters that a plot reaches beyond the medians
_CURVES = 6  # that are drawn
_SPECTRA = 4


def photometry(obs: Observation) -> Section | None:
    """Return the light curve of images, or None where no star was measured."""
    document = obs.document(PhotometryDocument)
    if document is None or not document.rows:
        return None
    names = [c.name for c in document.columns]
    table = {name: read_rows(obs, f"photometry/{name}") for name in names}
    unit = next((c.unit for c in document.columns if c.name == "net_aperture_sum"), None) or ""
    judge = Judge("photometry")
    time, label = minutes(table["MJD"])
    figures = [*_light(table, time, label, judge), *_background(table, time, label, unit)]
    if "centroid_x" in table:
        figures += _star(table, time, label, judge, all(c is not None for c in document.centres))
    middle = float(np.nanmedian(flux)) if np.isfinite(flux := table["net_aperture_sum"]).any() else float("nan")
    facts = (
        *((k.replace("_", " "), str(v)) for k, v in document.meta.items() if v is not None),
        ("median flux", f"{brief(middle, 6)} {unit}"),
        *(("note", n) for n in document.notes),
    )
    return Section(
        "photometry", "Light curve", "", tuple(judge.checks), tuple(figures), (Table(("what", "value"), facts),)
    )


def _light(table: Mapping[str, F8], time: F8, label: str, judge: Judge) -> Iterator[Figure]:
    """Yield the light curve and its scatter by the length of the mean."""
    flux, error = table["net_aperture_sum"], table["net_aperture_sum_err"]
    judge.at_most("integrations without a flux", float(np.mean(~np.isfinite(flux))), 0.0, 0.1, "fraction")
    if not np.isfinite(flux).any():
        return
    middle = float(np.nanmedian(flux))
    scatter, stated = step_scatter(flux), float(np.nanmedian(error)) if np.isfinite(error).any() else float("nan")
    ppm = _MILLION * scatter / abs(middle)
    judge.told("scatter from one integration to the next", ppm, "ppm", "slow changes such as a transit do not count")
    why = f"{brief(ppm)} ppm seen, {brief(_MILLION * stated / abs(middle))} ppm by the errors"
    judge.within("scatter over the stated errors", scatter / stated, (0.5, 1.5), (0.2, 4.0), "", why)
    yield curve_figure("Light curve", time, flux / middle, label)
    yield _averaging(flux / middle)


def curve_figure(title: str, time: F8, values: F8, label: str) -> Figure:
    """Return a light curve with medians of neighbours; the axis reaches five times the scatter beyond these."""
    good = values[np.isfinite(values)]
    when, medians = binned_medians(time, values)
    scatter = step_scatter(values)
    if not len(medians) or not scatter > 0:
        medians, scatter = good, float(np.std(good)) or 0.01
    low, high = float(medians.min()) - _FAR * scatter, float(medians.max()) + _FAR * scatter
    plot = Plot(Axis(label), Axis("flux over its median", low=low, high=high))
    inside = (values >= low) & (values <= high)
    plot.points(time[inside], values[inside], colour="#93b4f5", size=1.8)
    if len(when) == len(medians):
        plot.line(when, medians, colour=COLOURS[3])
    stray = len(good) - int(inside.sum())
    said = f"{len(good)} integrations; the line is the median of neighbours."
    return Figure(title, plot.svg(), said + (f" {stray} lie outside the plot." if stray else ""))


def _averaging(values: F8) -> Figure:
    """Scatter of means of neighbours, beside what independent errors give."""
    good = usual(values)
    sizes = [n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if len(good) // n >= 8]
    seen = [_MILLION * step_scatter(good[: len(good) // n * n].reshape(-1, n).mean(axis=1)) for n in sizes]
    plot = Plot(Axis("integrations in a mean", log=True), Axis("scatter, ppm", log=True))
    plot.line(sizes, seen)
    plot.points(sizes, seen, "seen", size=3.5)
    if seen:
        plot.line(sizes, [seen[0] / n**0.5 for n in sizes], "independent errors", "#db2777", "4 4")
    return Figure("Scatter of means", plot.svg(), "Above the dashed line: slow noise or a real change of the star.")


def _background(table: Mapping[str, F8], time: F8, label: str, unit: str) -> Iterator[Figure]:
    level = table["annulus_mean"]
    if np.isfinite(level).any():
        plot = Plot(Axis(label), Axis(f"background per pixel{', ' + unit if unit else ''}"))
        plot.points(time, level, colour="#d97706", size=1.8)
        yield Figure("Background", plot.svg())


def _star(table: Mapping[str, F8], time: F8, label: str, judge: Judge, fixed: bool) -> Iterator[Figure]:
    """Yield where the star was and how wide."""
    where = Plot(Axis(label), Axis("centroid less its median, pixels"))
    width = Plot(Axis(label), Axis("width (standard deviation), pixels"))
    drifts, changes = [], []
    for number, axis in enumerate("xy"):
        place, wide = table[f"centroid_{axis}"], table[f"psf_width_{axis}"]
        if not np.isfinite(place).any():
            continue
        middle = float(np.nanmedian(place))
        where.points(time, place - middle, f"{axis} − {middle:.3f}", COLOURS[number], size=1.8)
        width.points(time, wide, axis, COLOURS[number], size=1.8)
        drifts.append(_range(time, place))
        changes.append(_range(time, wide) / float(np.nanmedian(wide)) if np.isfinite(wide).any() else float("nan"))
        judge.told(f"jitter in {axis}", step_scatter(place), "pixel", "from one integration to the next")
    if not drifts:
        judge.status("centroid", "fail", "the star was found in no integration")
        return
    if fixed:
        judge.at_most("drift of the star", max(drifts), 0.5, 2.0, "pixel", "the aperture stays where it is")
    else:
        judge.told("drift of the star", max(drifts), "pixel", "the aperture follows it")
    judge.at_most("change of the star's width", max(changes), 0.1, 0.5, "of itself")
    yield Figure("Position of the star", where.svg())
    yield Figure("Width of the star", width.svg())


def _range(time: F8, values: F8) -> float:
    """Range of the medians of neighbours: how far a value drifts, whatever its noise."""
    _, medians = binned_medians(time, values, 20)
    return float(np.ptp(medians)) if len(medians) else float("nan")


def white_light(obs: Observation) -> Section | None:
    """Return the white-light curves of spectra, or None where there are none."""
    document = obs.document(LightCurveDocument)
    if document is None or not document.rows:
        return None
    judge = Judge("white_light")
    figures: list[Figure] = []
    for name, days, flux in light_curves(obs, document):
        known = np.isfinite(flux)
        if not known.any():
            judge.status(name, "warn", "no flux in any integration")
            continue
        middle = float(np.nanmedian(flux))
        told = f"scatter, {name}"
        judge.told(told, _MILLION * step_scatter(flux) / abs(middle), "ppm", "from one integration to the next")
        if len(figures) < 2 * _CURVES:
            time, label = minutes(days)
            figures += [curve_figure(name, time, flux / middle, label), _averaging(flux / middle)]
    judge.at_most("spectra without a time of their own", document.dropped / max(1, document.rows), 0.0, 0.5, "fraction")
    facts = tuple((k.replace("_", " "), str(v)) for k, v in document.meta.items() if v is not None)
    tables = (Table(("what", "value"), facts),) if facts else ()
    return Section("white_light", "White-light curves", "", tuple(judge.checks), tuple(figures), tables)


def spectra(obs: Observation) -> Section | None:
    """Return the spectra in time, or None where there are none."""
    document = obs.document(SpectraDocument)
    if document is None or not document.spectra:
        return None
    judge = Judge("spectra")
    figures: list[Figure] = []
    for one in document.spectra[:_SPECTRA]:
        figures += _spectrum(obs, one, judge)
    rows = tuple(
        (s.name, str(s.order), s.detector or "–", str(max(g.last for g in s.segments)), str(s.points), s.flux_unit)
        for s in document.spectra
    )
    table = Table(("spectrum", "order", "detector", "integrations", "wavelengths", "unit"), rows)
    return Section("spectra", "Spectra in time", "", tuple(judge.checks), tuple(figures), (table,))


def _spectrum(obs: Observation, one: SpectrumSeries, judge: Judge) -> Iterator[Figure]:
    """Yield the spectrum over its median in time, and the median."""
    seen = dynamic_spectrum(obs, one, _ROWS)
    title = f"{one.name}, order {one.order}"
    empty = float(np.mean(~np.isfinite(seen.median)))
    judge.at_most(f"wavelengths without a flux, {title}", empty, 0.2, 0.9, "fraction")
    if empty == 1.0:
        return
    time, label = minutes(seen.days)
    step = max(1, -(-len(seen.wavelength) // _WAVELENGTHS))
    whole = len(seen.wavelength) // step * step
    known = np.isfinite(seen.scaled[:, :whole]).reshape(len(seen.scaled), -1, step)
    filled = np.where(known, seen.scaled[:, :whole].reshape(known.shape), 0.0)
    count = known.sum(axis=2)
    image = np.divide(filled.sum(axis=2), count, out=np.full(count.shape, np.nan), where=count > 0).T
    tall, wide = (max(1, _PICTURE[k] // image.shape[k]) for k in (0, 1))
    image = np.repeat(np.repeat(image, tall, axis=0), wide, axis=1)
    said = (
        f"Upward: {seen.wavelength[0]:.3g} to {seen.wavelength[-1]:.3g} microns; to the right: {label}, "
        f"{brief(float(np.nanmax(time)))} in all; each row of pixels over its median."
    )
    yield Figure(f"In time: {title}", figure_png(image, "flux over its median"), said)
    plot = Plot(Axis("wavelength, microns"), Axis(f"median flux, {one.flux_unit}"))
    plot.line(seen.wavelength, seen.median)
    yield Figure(f"Median: {title}", plot.svg())
