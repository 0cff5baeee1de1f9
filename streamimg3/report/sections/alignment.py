"""How far exposures were moved, and how well their stars agree afterwards."""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import StoreError
from streamimg3.report.qa import Figure, Judge, Section, Table
from streamimg3.report.svg import Axis, Plot
from streamimg3.sky.positions import pixel_scale
from streamimg3.store import Observation
from streamimg3.store.documents import AlignmentDocument
from streamimg3.store.stars import current_lists, read_list

F8 = NDArray[np.float64]
_MOST = 6000  # stars that are compared


def alignment(obs: Observation) -> Section | None:
    """Return the section, or None where nothing was aligned."""
    document = obs.document(AlignmentDocument)
    if document is None:
        return None
    exposures = obs.exposures()
    judge = Judge("alignment")
    entries = document.exposures
    failed = [e.record.name for e, a in zip(exposures, entries, strict=True) if a.status == "FAILED"]
    why = f"not aligned: {', '.join(failed[:6])}{' …' if len(failed) > 6 else ''}" if failed else ""
    judge.at_most("exposures that could not be aligned", len(failed) / len(entries), 0.0, 0.25, "fraction", why)
    scale = pixel_scale(exposures[0].wcs)
    rms = [a.rms for a in entries if a.rms is not None]
    if rms:
        judge.at_most("largest rms of a fit", max(rms) / scale, 0.3, 1.0, "pixel", f"{1000 * max(rms):.1f} mas")
        fewest = min(a.matched for a in entries if a.status == "SUCCESS")
        judge.at_least("fewest matched stars", fewest, 10, 4)
    rows = tuple(
        (
            e.record.name, a.status, str(a.stars), str(a.matched), "" if a.rms is None else f"{1000 * a.rms:.2f}",
            "" if a.offset is None else f"{1000 * a.offset[1]:.1f}", "" if a.offset is None else f"{1000 * a.offset[0]:.1f}",
            a.reason or "",
        )
        for e, a in zip(exposures, entries, strict=True)
    )  # fmt: skip
    head = ("exposure", "status", "stars", "matched", "rms mas", "east mas", "north mas", "reason")
    figures = [f for f in (_shifts(exposures, entries), *_residuals(obs, judge, scale)) if f is not None]
    return Section(
        "alignment", "Alignment", f"By {document.step}.", tuple(judge.checks), tuple(figures), (Table(head, rows),)
    )


def _shifts(exposures, entries) -> Figure | None:  # type: ignore[no-untyped-def]
    """Arrows from where the pointing put an exposure to where its stars put it."""
    moved = [(e, a) for e, a in zip(exposures, entries, strict=True) if a.offset is not None]
    if not moved:
        return None
    centre = np.array([_centre(e) for e, _ in moved])
    middle = centre.mean(axis=0)
    east = -(centre[:, 0] - middle[0]) * np.cos(np.radians(middle[1])) * 3600
    north = (centre[:, 1] - middle[1]) * 3600
    offset = np.array([a.offset for _, a in moved])
    longest = max(float(np.hypot(*offset.T).max()), 1e-6)
    span = max(float(np.ptp(east)), float(np.ptp(north)), 1.0)
    exaggerated = 0.18 * span / longest
    titles = [
        f"{e.record.name}: {1000 * a.offset[1]:.1f} mas east, {1000 * a.offset[0]:.1f} mas north" for e, a in moved
    ]
    plot = Plot(Axis("west of the middle, arcsec"), Axis("north of the middle, arcsec"), equal=True)
    plot.arrows(east, north, -offset[:, 1] * exaggerated, offset[:, 0] * exaggerated, titles)
    said = f"Arrows are {exaggerated:,.0f} times as long as the shifts; the longest is {1000 * longest:.1f} mas."
    return Figure("Shifts on the sky", plot.svg(), said)


def _centre(exposure) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    ny, nx = exposure.record.shape
    ra, dec = exposure.wcs.to_sky(np.array([(ny - 1) / 2]), np.array([(nx - 1) / 2]), bounded=False)
    return float(ra[0]), float(dec[0])


def _residuals(obs: Observation, judge: Judge, scale: float) -> list[Figure]:
    """Distances between stars of different exposures that are the same star, after the alignment."""
    found = _aligned_stars(obs)
    if found is None:
        return []
    ra, dec, exposure = found
    first, second = _pairs(ra, dec, exposure, 1.5 * scale / 3600)
    if len(first) < 5:
        judge.told("stars seen by two exposures", float(len(first)), "", "too few to look at residuals")
        return []
    east = (ra[second] - ra[first]) * np.cos(np.radians(dec[first])) * 3.6e6
    north = (dec[second] - dec[first]) * 3.6e6
    spread = float(np.median(np.hypot(east, north)))
    judge.at_most(
        "median distance of a star in two exposures", spread / 1000 / scale, 0.15, 0.5, "pixel", f"{spread:.1f} mas"
    )
    plot = Plot(Axis("east, mas"), Axis("north, mas"), equal=True)
    plot.points(east, north, size=2.0)
    radius = 500 * scale
    angle = np.linspace(0, 2 * np.pi, 90)
    plot.line(radius * np.cos(angle), radius * np.sin(angle), "half a pixel", "#db2777", "4 4")
    said = (
        f"{len(first)} stars, each with the nearest one of another exposure within 1.5 pixel; median {spread:.1f} mas."
    )
    by_exposure = Plot(Axis("exposure", whole=True), Axis("median residual, mas"))
    numbers = np.unique(exposure[first]).astype(float)
    for part, name, colour in ((east, "east", "#2563eb"), (north, "north", "#d97706")):
        medians = [float(np.median(part[exposure[first] == n])) for n in numbers]
        by_exposure.points(numbers, medians, name, colour, size=4)
    by_exposure.line([numbers.min() - 0.5, numbers.max() + 0.5], [0, 0], colour="#64748b")
    return [
        Figure("Residuals of stars", plot.svg(), said),
        Figure("Residuals by exposure", by_exposure.svg(), "What is left of a shift: all should be near 0."),
    ]


def _aligned_stars(obs: Observation) -> tuple[F8, F8, NDArray[np.int64]] | None:
    """Stars of all exposures as the corrected WCS places them."""
    lists = current_lists(obs)
    exposures = obs.exposures()
    if len(lists) != len(exposures):
        return None
    each = max(20, _MOST // len(exposures))
    ra, dec, number = [], [], []
    for exposure, key in zip(exposures, lists, strict=True):
        if key is None:
            continue
        try:
            columns = read_list(obs, key).columns
        except (StoreError, json.JSONDecodeError):
            return None
        y, x = columns["y"][:each], columns["x"][:each]
        a, d = exposure.wcs.to_sky(np.asarray(y, float), np.asarray(x, float), bounded=False)
        ra.append(a)
        dec.append(d)
        number.append(np.full(len(a), exposure.record.index))
    if not ra:
        return None
    return np.concatenate(ra), np.concatenate(dec), np.concatenate(number)


def _pairs(ra: F8, dec: F8, exposure: NDArray[np.int64], reach: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each star with the nearest one of another exposure within ``reach`` degrees."""
    order = np.argsort(dec)
    sorted_dec = dec[order]
    first, second = [], []
    for i in range(len(ra)):
        low, high = np.searchsorted(sorted_dec, (dec[i] - reach, dec[i] + reach))
        near = order[low:high]
        near = near[exposure[near] != exposure[i]]
        if not len(near):
            continue
        east = (ra[near] - ra[i]) * np.cos(np.radians(dec[i]))
        distance = np.hypot(east, dec[near] - dec[i])
        k = int(np.argmin(distance))
        if distance[k] <= reach:
            first.append(i)
            second.append(int(near[k]))
    return np.array(first, np.int64), np.array(second, np.int64)
