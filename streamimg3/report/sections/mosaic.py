"""The mosaic: what it shows, how deep it is, whether its noise is as stated, and whether its tiles leave seams."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from streamimg3.geometry import Box
from streamimg3.report.picture import figure_png, reduced, shown_mosaic
from streamimg3.report.qa import Figure, Judge, Section, Table
from streamimg3.report.svg import Axis, Plot, show
from streamimg3.store import Observation
from streamimg3.store.documents import CatalogDocument, ResampleDocument

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
_BLOCKS = 40  # places that noise is measured at
_SIDE = 256
_BORDERS = 12  # tile borders that are looked at along each axis
_APART = 8  # pixels between a border and what it is compared with


def mosaic(obs: Observation) -> Section | None:
    """Return the section, or None where there is no mosaic of all exposures."""
    document = shown_mosaic(obs)
    if document is None:
        return None
    judge = Judge("mosaic")
    unit = str(obs.array(f"{document.path}/sci").attrs["units"])
    depth = reduced(obs, document, "ncontrib" if "ncontrib" in document.planes else "wht", 700)
    covered = depth.values > 0
    judge.at_least("covered part of the image", float(covered.mean()), 0.2, 0.0, "fraction")
    judge.told(
        "exposures per pixel, median where covered", float(np.median(depth.values[covered])) if covered.any() else 0
    )
    errors = [e for e in document.map_errors if e is not None]
    if errors:
        judge.at_most("largest error of the pixel maps", max(errors), 1e-5, 1e-3, "pixel")
    figures = [Figure("Exposures per pixel", figure_png(depth.values, "number of exposures", zero=True))]
    figures += _depth(obs, document, unit)
    figures += _noise(obs, document, judge)
    seams(obs, document, judge)
    facts = (
        ("shape (y, x)", f"{document.shape[0]} × {document.shape[1]}"),
        ("pixel scale", f"{document.pixel_scale:.5g} arcsec"),
        ("unit", unit),
        ("planes", ", ".join(document.planes)),
        ("exposures", str(len(document.exposures))),
        ("tile", f"{document.tile} pixels"),
        ("outline", document.s_region or "–"),
        *(("note", n) for n in document.notes),
    )
    return Section(
        "mosaic", "Depth, noise and seams", "", tuple(judge.checks), tuple(figures), (Table(("what", "value"), facts),)
    )


def _depth(obs: Observation, document: ResampleDocument, unit: str) -> list[Figure]:
    """Map of the noise (of the weight, where there is none), and how much sky there is at each depth."""
    plane = "err" if "err" in document.planes else "wht"
    small = reduced(obs, document, plane, 700)
    values = small.values if plane == "err" else np.where(small.values > 0, small.values, np.nan)
    if not np.isfinite(values).any():
        return []
    label = f"standard error, {unit}" if plane == "err" else "weight"
    good: F8 = np.sort(values[np.isfinite(values)].astype(np.float64))
    area = (document.pixel_scale * small.factor / 60.0) ** 2 * np.arange(1.0, len(good) + 1)
    if plane == "wht":
        good = good[::-1]
    step = max(1, len(good) // 400)
    plot = Plot(Axis(label), Axis("area at least as deep, arcmin²"))
    plot.line(good[::step], area[::step])
    return [
        Figure("Depth", figure_png(values, label), "The smaller the error, the deeper." if plane == "err" else ""),
        Figure("Area by depth", plot.svg()),
    ]


def _noise(obs: Observation, document: ResampleDocument, judge: Judge) -> list[Figure]:
    """Scatter of the sky between sources, in small windows, over what the mosaic's ERR says."""
    if "err" not in document.planes:
        judge.told("scatter of the sky over ERR", None, "", "the mosaic has no ERR")
        return []
    pairs = np.array(list(_scatter(obs, document)))
    if len(pairs) < 4:
        judge.told("scatter of the sky over ERR", None, "", "too little sky between sources")
        return []
    said, seen = pairs.T
    ratio = float(np.median(seen / said))
    below = "neighbouring pixels share light, so that the scatter of single pixels is below ERR"
    why = (
        below
        if ratio < 1.0
        else "the sky scatters more than ERR says: structure, faint sources, or errors that are too small"
    )
    judge.within("scatter of the sky over ERR", ratio, (0.3, 1.3), (0.15, 2.0), "", why)
    plot = Plot(Axis("median ERR of a window"), Axis("scatter of its pixels"))
    plot.points(said, seen, size=3.5)
    ends = [float(said.min()) * 0.9, float(said.max()) * 1.1]
    plot.line(ends, ends, "equal", "#db2777", "4 4")
    return [Figure("Noise", plot.svg(), f"Windows of {_SIDE}² without sources; median ratio {ratio:.2f}.")]


def _scatter(obs: Observation, document: ResampleDocument):  # type: ignore[no-untyped-def]
    """Median ERR and robust scatter of the sky in windows all over the mosaic."""
    catalog = obs.document(CatalogDocument)
    masked = catalog is not None and catalog.segmentation
    ny, nx = document.shape
    rng = np.random.default_rng(1)
    side = min(_SIDE, ny, nx)
    for _ in range(_BLOCKS):
        y0, x0 = int(rng.integers(0, ny - side + 1)), int(rng.integers(0, nx - side + 1))
        box = Box(y0, x0, y0 + side, x0 + side)
        sci, err = (np.asarray(obs.window(f"{document.path}/{p}", (), box), float) for p in ("sci", "err"))
        good = np.isfinite(sci) & np.isfinite(err) & (err > 0)
        if masked:
            good &= obs.window(f"{document.path}/segmentation", (), box) == 0
        if good.sum() > side * side // 3:
            low, high = np.percentile(sci[good], [16.0, 50.0])
            yield float(np.median(err[good])), float(high - low)


def seams(obs: Observation, document: ResampleDocument, judge: Judge) -> None:
    """Compare steps across tile borders with steps a few pixels beside them."""
    ny, nx = document.shape
    across, beside = [], []
    for axis, (length, width) in enumerate(((ny, nx), (nx, ny))):
        borders = np.arange(document.tile, length, document.tile)
        for border in borders[:: max(1, len(borders) // _BORDERS)].tolist():
            strip = _strip(obs, document, axis, border, width)
            if strip is None:
                continue
            steps = np.diff(strip, axis=0)
            middle = _APART - 1
            across.append(_middle(steps[middle]))
            beside += [_middle(steps[k]) for k in (0, middle - 3, middle + 3, 2 * _APART - 2)]
    across, beside = ([v for v in part if math.isfinite(v)] for part in (across, beside))
    if len(across) < 2 or len(beside) < 4:
        judge.told("step across tile borders", None, "", "one tile, or too few pixels at its borders")
        return
    scatter = 1.4826 * float(np.median(np.abs(np.array(beside) - np.median(beside)))) or 1e-30
    significance = abs(float(np.mean(across)) - float(np.mean(beside))) / (scatter / math.sqrt(len(across)))
    why = f"{len(across)} borders against {len(beside)} lines beside them, {show(scatter)} scatter"
    judge.at_most("step across tile borders", significance, 4.0, 8.0, "sigma", why)


def _strip(obs: Observation, document: ResampleDocument, axis: int, border: int, width: int) -> F8 | None:
    """Rows on both sides of a border (columns, turned into rows, for the other axis), in the middle of the mosaic."""
    length = document.shape[axis]
    low, high = border - _APART, border + _APART
    if low < 0 or high > length:
        return None
    start, end = max(0, width // 2 - 2048), min(width, width // 2 + 2048)
    box = Box(low, start, high, end) if axis == 0 else Box(start, low, end, high)
    pixels = np.asarray(obs.window(f"{document.path}/sci", (), box), float)
    return pixels if axis == 0 else pixels.T


def _middle(step: F8) -> float:
    """Median step; NaN where few pixels have a value."""
    good = step[np.isfinite(step)]
    return float(np.median(good)) if len(good) > 50 else math.nan
