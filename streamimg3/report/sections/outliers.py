"""How many pixels were flagged, and whether sources lose more of them than the sky: the do-no-harm meter."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from streamimg3.geometry import Box
from streamimg3.report.qa import Figure, Judge, Section, Table
from streamimg3.report.svg import Axis, Plot
from streamimg3.sky.wcs import Wcs
from streamimg3.store import Exposure, Observation
from streamimg3.store.documents import CatalogDocument, OutlierDocument, ResampleDocument

_EXPOSURES = 12  # that are looked at for the rate on sources
_POINTS = 4000  # pixels of each, flagged ones and any
_ROWS = 512  # read at a time


def outliers(obs: Observation) -> Section | None:
    """Return the section, or None where no outliers were looked for."""
    document = obs.document(OutlierDocument)
    if document is None:
        return None
    judge = Judge("outliers")
    if document.status != "COMPLETE":
        judge.status("outlier_detection", "fail", f"{document.status}: {document.reason}")
        return Section("outliers", "Outliers", "", tuple(judge.checks))
    records = obs.records()
    fraction = [n / math.prod(r.shape) / max(1, r.integrations) for n, r in zip(document.flagged, records, strict=True)]
    judge.at_most("largest fraction flagged", max(fraction), 0.05, 0.15, "", records[int(np.argmax(fraction))].name)
    middle = float(np.median(fraction))
    if middle > 1e-4:
        judge.at_most("largest over median fraction", max(fraction) / middle, 3.0, 10.0)
    titles = [
        f"{r.name}: {n} pixels, {100 * f:.3f} %" for r, n, f in zip(records, document.flagged, fraction, strict=True)
    ]
    plot = Plot(Axis("exposure", whole=True), Axis("flagged, %"))
    plot.bars([r.index for r in records], [100 * f for f in fraction], titles=titles)
    figures = [Figure("Flagged by exposure", plot.svg())]
    rates = on_sources(obs)
    if rates is not None:
        source, sky = rates
        why = f"{100 * source:.3f} % of the pixels on sources, {100 * sky:.3f} % of those on the sky"
        judge.at_most("flag rate on sources over sky", source / sky if sky else math.nan, 3.0, 10.0, "", why)
        bars = Plot(Axis("1 sources, 2 sky", low=0.4, high=2.6, whole=True), Axis("flagged, %"))
        bars.bars([1.0, 2.0], [100 * source, 100 * sky], titles=["sources", "sky"], width=0.6)
        said = f"Cosmic rays fall everywhere alike: sources should not lose many more. {why}."
        figures.append(Figure("On sources and on the sky", bars.svg(), said))
    rows = tuple(
        (r.name, str(n), f"{100 * f:.3f}") for r, n, f in zip(records, document.flagged, fraction, strict=True)
    )
    return Section(
        "outliers", "Outliers", "", tuple(judge.checks), tuple(figures), (Table(("exposure", "pixels", "%"), rows),)
    )


def on_sources(obs: Observation) -> tuple[float, float] | None:
    """Return the flag rates of pixels on sources and on the sky, None where there is no segmentation."""
    catalog, mosaic = obs.document(CatalogDocument), obs.document(ResampleDocument)
    if catalog is None or mosaic is None or not catalog.segmentation:
        return None
    wcs = Wcs("gwcs", mosaic.wcs_asdf.encode("latin-1"), mosaic.shape)
    exposures = obs.exposures()
    chosen = exposures[:: max(1, -(-len(exposures) // _EXPOSURES))]
    flagged = np.zeros(2)
    everything = np.zeros(2)
    for exposure in chosen:
        y, x, count = flagged_pixels(exposure)
        rng = np.random.default_rng(exposure.record.index)
        part = rng.permutation(len(y))[:_POINTS]
        if len(part):
            flagged += _shares(obs, mosaic, wcs, exposure, y[part], x[part]) * count
        ny, nx = exposure.record.shape
        any_y, any_x = rng.integers(0, ny, _POINTS), rng.integers(0, nx, _POINTS)
        everything += _shares(obs, mosaic, wcs, exposure, any_y, any_x) * ny * nx
    if not everything.all():
        return None
    source, sky = flagged / everything
    return float(source), float(sky)


def flagged_pixels(exposure: Exposure) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Return rows and columns of the flagged pixels of an exposure, and their number."""
    ny, nx = exposure.record.shape
    rows, columns = [], []
    for y0 in range(0, ny, _ROWS):
        y, x = np.nonzero(exposure.read("outlier", Box(y0, 0, min(y0 + _ROWS, ny), nx)))
        rows.append(y + y0)
        columns.append(x)
    y, x = np.concatenate(rows), np.concatenate(columns)
    return y, x, len(y)


def _shares(
    obs: Observation, mosaic: ResampleDocument, wcs: Wcs, exposure: Exposure, y: NDArray[np.int64], x: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Which part of some pixels of an exposure lies on sources of the mosaic, and which on its sky."""
    ra, dec = exposure.wcs.to_sky(y.astype(float), x.astype(float), bounded=False)
    row, column = wcs.to_pixel(ra, dec)
    inside = (row > -0.5) & (row < mosaic.shape[0] - 0.5) & (column > -0.5) & (column < mosaic.shape[1] - 0.5)
    if not inside.any():
        return np.zeros(2)
    r, c = (np.rint(v[inside]).astype(np.int64) for v in (row, column))
    labels = np.asarray(obs.array(f"{mosaic.path}/segmentation").vindex[r, c])
    on = float((labels > 0).sum()) / len(y)
    return np.array([on, inside.mean() - on])
