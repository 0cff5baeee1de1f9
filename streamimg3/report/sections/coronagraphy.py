"""A star taken away: how well the reference stars fit, the image before and after, and how faint a companion could be seen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamimg3.geometry import Box
from streamimg3.report.picture import figure_png
from streamimg3.report.qa import Figure, Judge, Section, Table
from streamimg3.report.svg import COLOURS, Axis, Plot, brief
from streamimg3.sky.positions import pixel_scale
from streamimg3.store import Exposure, Observation
from streamimg3.store.coron_documents import AlignedReferences, AlignRefsDocument, ContrastDocument, KlipDocument
from streamimg3.store.documents import OutlierDocument, ResampleDocument
from streamimg3.store.seen_cube import SeenCube

F8 = NDArray[np.float64]
_RING = 2.0  # width of a ring, pixels
_INTEGRATIONS = 16  # of an exposure that are averaged for a picture
_EXPOSURES = 4  # science exposures that are shown; the table has all of them
_SIDE = 320  # pixels of a picture around the star
_STAR = 4.0  # pixels around the star that the gain does not count
_SEPARATIONS = (0.5, 1.0, 2.0, 4.0)  # arcsec that the contrast is told at


def references(obs: Observation) -> Section | None:
    """Return how the reference stars were moved and scaled, or None where they were not aligned."""
    document = obs.document(AlignRefsDocument)
    if document is None:
        return None
    judge = Judge("references")
    if document.status != "COMPLETE":
        judge.status("align_refs", "warn", f"{document.status}: {document.reason}")
        return Section("references", "Reference stars", "", tuple(judge.checks))
    names = {r.index: r.name for r in obs.records()}
    shifts = [np.hypot(e.y, e.x) for e in document.exposures]
    lost = sum(n for e in document.exposures for n in (e.converged.count(False),))
    total = sum(len(e.y) for e in document.exposures)
    judge.at_most("fits that did not converge", lost / max(1, total), 0.0, 0.5, "fraction", f"{lost} of {total}")
    worst = int(np.argmax([s.max(initial=0.0) for s in shifts]))
    why = f"reference {int(shifts[worst].argmax()) + 1} against {names[document.exposures[worst].exposure]}"
    judge.at_most("largest shift of a reference", float(shifts[worst].max(initial=0.0)), 1.0, 5.0, "pixel", why)
    figures = (_shifts(document.exposures, names), _factors(document.exposures, names))
    said = "Each reference image was moved and multiplied so that it fits the science exposure best."
    head = ("science exposure", "reference", "y pixel", "x pixel", "factor", "iterations", "converged")
    tables = (Table(head, tuple(_rows(document.exposures, names))),)
    return Section("references", "Reference stars", said, tuple(judge.checks), figures, tables)


def _shifts(found: Sequence[AlignedReferences], names: dict[int, str]) -> Figure:
    plot = Plot(Axis("shift in x, pixels"), Axis("shift in y, pixels"), equal=True)
    for number, one in enumerate(found):
        told = [f"reference {k + 1}: {y:.3f}, {x:.3f}" for k, (y, x) in enumerate(zip(one.y, one.x, strict=True))]
        plot.points(one.x, one.y, _short(names[one.exposure], number), _colour(number), told, 3.5)
    return Figure("Shifts of the references", plot.svg(), "One point for each reference image and science exposure.")


def _factors(found: Sequence[AlignedReferences], names: dict[int, str]) -> Figure:
    plot = Plot(Axis("reference image", whole=True), Axis("reference over science", log=True))
    for number, one in enumerate(found):
        plot.points(
            np.arange(1.0, len(one.beta) + 1), one.beta, _short(names[one.exposure], number), _colour(number), size=3.5
        )
    said = "Images of one star have one factor: what stands apart was fitted to something else."
    return Figure("Flux of the references", plot.svg(), said)


def _rows(found: Sequence[AlignedReferences], names: dict[int, str]) -> Iterator[tuple[str, ...]]:
    for one in found:
        for k, (y, x, beta) in enumerate(zip(one.y, one.x, one.beta, strict=True)):
            yield (
                names[one.exposure], str(k + 1), f"{y:.4f}", f"{x:.4f}", f"{beta:.5g}", str(one.iterations[k]),
                "yes" if one.converged[k] else "no",
            )  # fmt: skip


def _short(name: str, number: int) -> str:
    """A name for the legend: the number where the name is long."""
    return name if len(name) <= 24 else f"exposure {number + 1}"


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


@dataclass(frozen=True)
class _Star:
    """A science exposure before the subtraction and after it, averaged over integrations; rings are about ``centre``."""

    exposure: Exposure
    scale: float
    centre: tuple[float, float]
    before: F8
    after: dict[int, F8]

    def noise(self, image: F8) -> tuple[F8, F8]:
        """Return mean radius (arcsec) and standard deviation of each ring."""
        y, x = np.ogrid[: image.shape[0], : image.shape[1]]
        ring = (np.hypot(y - self.centre[0], x - self.centre[1]) / _RING).astype(np.int64)
        good = np.isfinite(image)
        count = np.bincount(ring[good])
        mean, square = (np.bincount(ring[good], v) / np.maximum(count, 1) for v in (image[good], image[good] ** 2))
        enough = count >= 8
        sigma: F8 = np.sqrt(np.maximum(square - mean**2, 0.0))[enough]
        radius: F8 = np.asarray((np.flatnonzero(enough) + 0.5) * _RING * self.scale, np.float64)
        return radius, sigma

    def gain(self, truncate: int) -> float:
        """How many times less noise there is, in the middle of the rings of the inner third of the image."""
        radius, before = self.noise(self.before)
        after = dict(zip(*self.noise(self.after[truncate]), strict=True))
        inner = (radius > _STAR * self.scale) & (radius < radius.max() / 3)
        ratios = [b / after[r] for r, b in zip(radius[inner], before[inner], strict=True) if after.get(r, 0.0) > 0]
        return float(np.median(ratios)) if ratios else math.nan


def subtraction(obs: Observation) -> Section | None:
    """Return the images and their noise before and after, or None where no star was subtracted."""
    document = obs.document(KlipDocument)
    if document is None or not document.exposures:
        return None
    judge = Judge("subtraction")
    exposures = {e.record.index: e for e in obs.exposures(aligned=False)}
    rows: list[tuple[str, ...]] = []
    figures: list[Figure] = []
    gains = []
    for number, one in enumerate(document.exposures):
        star = _star(obs, exposures[one.exposure], document)
        factors = [star.gain(k) for k in document.truncate]
        gains.append(max((f for f in factors if math.isfinite(f)), default=math.nan))
        for place, (k, factor) in enumerate(zip(document.truncate, factors, strict=True)):
            kept = sorted({region[place] for region in one.kept})
            rows.append((star.exposure.record.name, str(k), ", ".join(map(str, kept)), f"{factor:.2f}"))
        if number < _EXPOSURES:
            figures += _figures(star)
    lowest = min((g for g in gains if math.isfinite(g)), default=math.nan)
    why = "median of the rings of the inner third, with the best truncate; below 1 the subtraction adds noise"
    judge.at_least("noise before over noise after, lowest of the exposures", lowest, 1.5, 1.0, "", why)
    judge.told("reference images", document.references)
    said = f"{document.references} reference images; components kept: {', '.join(map(str, document.truncate))} at most."
    head = ("science exposure", "truncate", "components kept", "noise before / after")
    return Section(
        "subtraction",
        "The star before and after",
        said,
        tuple(judge.checks),
        tuple(figures),
        (Table(head, tuple(rows)),),
    )


def _star(obs: Observation, exposure: Exposure, document: KlipDocument) -> _Star:
    """Average the integrations of a science exposure, before and after the subtraction."""
    outliers = obs.document(OutlierDocument)
    seen = SeenCube(exposure, outliers is not None and outliers.status == "COMPLETE")
    whole = Box(0, 0, *exposure.record.shape)
    chosen = range(0, exposure.depth, max(1, -(-exposure.depth // _INTEGRATIONS)))
    before = _mean(seen.floats("sci", k, k + 1, whole)[0] for k in chosen)
    after = {}
    for truncate in document.truncate:
        path = f"psfsub/kl{truncate}/{exposure.record.name}/sci"
        after[truncate] = _mean(obs.window(path, (slice(k, k + 1),), whole)[0] for k in chosen)
    return _Star(exposure, pixel_scale(exposure.wcs), _centre(exposure), before, after)


def _mean(images: Iterator[NDArray[np.generic]]) -> F8:
    """Mean of some images, NaN where none has a value."""
    total: F8 | None = None
    for image in images:
        values = np.asarray(image, np.float64)
        good = np.isfinite(values)
        if total is None:
            total, count = np.zeros(values.shape), np.zeros(values.shape, np.int64)
        total += np.where(good, values, 0.0)
        count += good
    assert total is not None  # every exposure has an integration
    mean: F8 = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return mean


def _centre(exposure: Exposure) -> tuple[float, float]:
    """Where the star should be: the aperture's reference pixel (CRPIX), or the middle where that is unknown or outside."""
    ny, nx = exposure.record.shape
    y, x = (_number(exposure.cards("sci"), key) - 1 for key in ("CRPIX2", "CRPIX1"))
    return (y, x) if 0 <= y < ny and 0 <= x < nx else ((ny - 1) / 2, (nx - 1) / 2)


def _number(cards: str, key: str) -> float:
    """Return the number in a FITS card, NaN where there is none."""
    for start in range(0, len(cards), 80):
        if cards[start : start + 10] == f"{key:8}= ":
            try:
                return float(cards[start + 10 : start + 80].partition("/")[0])
            except ValueError:
                break
    return math.nan


def _figures(star: _Star) -> Iterator[Figure]:
    """Yield the images of an exposure around the star, and its curves of noise."""
    name, unit = star.exposure.record.name, star.exposure.record.bunit or "pixel value"
    y, x = (round(v) for v in star.centre)
    ny, nx = star.before.shape
    half = _SIDE // 2
    part = np.s_[max(0, y - half) : min(ny, y + half), max(0, x - half) : min(nx, x + half)]
    most = max(star.after)
    yield Figure(f"Before: {name}", figure_png(np.arcsinh(star.before[part]), f"arcsinh of {unit}"))
    yield Figure(f"After: {name}", figure_png(star.after[most][part], unit), f"truncate {most}")
    plot = Plot(Axis("separation, arcsec"), Axis(f"noise in a ring, {unit}", log=True))
    plot.line(*star.noise(star.before), "before", "#64748b", "5 4")
    for number, (truncate, image) in enumerate(star.after.items()):
        plot.line(*star.noise(image), f"truncate {truncate}", _colour(number))
    said = f"Rings of {_RING:g} pixels around the aperture's reference pixel, {star.centre[0]:.1f}, {star.centre[1]:.1f} (y, x)."
    yield Figure(f"Noise: {name}", plot.svg(), said)


def contrast(obs: Observation) -> Section | None:
    """Return the contrast curves of the combined images, or None where there are none."""
    document = obs.document(ContrastDocument)
    if document is None or not document.curves:
        return None
    judge = Judge("contrast")
    unit = obs.records()[0].bunit or "pixel value"
    plot = Plot(Axis("separation, arcsec"), Axis(f"noise in a ring, {unit}", log=True))
    rows = []
    for number, curve in enumerate(document.curves):
        mosaic = obs.document(ResampleDocument, curve.mosaic)
        scale = mosaic.pixel_scale if mosaic is not None else 1.0
        radius = np.array(curve.radius) * scale
        sigma = np.array([math.nan if s is None else s for s in curve.sigma])
        name = curve.mosaic.removeprefix("resample").removeprefix("-kl")
        plot.line(radius, sigma, f"truncate {name}" if name else "", _colour(number))
        known = np.isfinite(sigma)
        told = [_at(radius[known], sigma[known], s) for s in _SEPARATIONS]
        rows.append((f"truncate {name}" if name else "mosaic", *(brief(v) if v else "–" for v in told)))
        judge.told(f"noise at 1 arcsec{', truncate ' + name if name else ''}", told[1], unit)
    said = "Standard deviation in rings around the middle of the mosaic: a companion must be several times brighter."
    head = ("image", *(f"{s:g} arcsec" for s in _SEPARATIONS))
    table = Table(head, tuple(rows), f"Noise in a ring, {unit}")
    figures = (Figure("Contrast", plot.svg(), said),)
    return Section("contrast", "Contrast", "", tuple(judge.checks), figures, (table,))


def _at(radius: F8, sigma: F8, separation: float) -> float | None:
    """Noise at a separation, None outside the curve."""
    if not len(radius) or not radius[0] <= separation <= radius[-1]:
        return None
    return float(np.interp(separation, radius, sigma))
