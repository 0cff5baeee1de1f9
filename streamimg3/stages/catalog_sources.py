"""Sources of the mosaic: segments divided where they blend, measured each in its own window (image3 §9.3 to §9.5).

A tile's task does the segments whose first pixel is in the tile.  As many as memory allows share one window; a segment
that fits none is read in bands of rows.  No number depends on which way a source was read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from streamimg3.engine import Task
from streamimg3.geometry import Box
from streamimg3.kernels import aperture
from streamimg3.kernels.aperture import Circles, DaoKernel
from streamimg3.kernels.deblend import BYTES as DEBLEND_BYTES
from streamimg3.kernels.deblend import Levels, deblend
from streamimg3.kernels.measure import Pixels, Shapes, Sums
from streamimg3.kernels.segments import outlines
from streamimg3.kernels.smooth import gaussian
from streamimg3.stages.catalog_pixels import (
    SPARE,
    Scene,
    Table,
    View,
    errors,
    known_mesh,
    read_table,
    view,
    write_table,
)
from streamimg3.stages.catalog_segments import Segments, owners, read_numbers, tile_of
from streamimg3.store import Observation

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I4 = NDArray[np.int32]
I8 = NDArray[np.int64]

# Bytes that a task holds for each pixel of a window that it measures, beside the window's largest blend; measured
VIEW_BYTES = 38
_CUT_BYTES = 5  # smoothed image and mask of a source that is divided
_LEAST_ROWS = 16


@dataclass(frozen=True)
class Rulebook:
    """How sources are divided and measured.

    Parameters
    ----------
    levels : Levels or None
        How blends are divided; None = not at all.
    largest : int
        Pixels of the largest bounding box that is divided.
    circles : Circles or None
        Apertures, if they are known.
    frame : int
        Width of the frame that a local background comes from; 0 = none.
    fwhm : float
        Width of the kernel of sharpness and roundness.
    subtracted : bool
        Apertures are measured on the image without its background.
    """

    levels: Levels | None
    largest: int
    circles: Circles | None
    frame: int
    fwhm: float
    subtracted: bool = False

    @property
    def reach(self) -> int:
        """Pixels that are needed around a bounding box."""
        least = max(DaoKernel.of_fwhm(self.fwhm).reach, gaussian(self.fwhm).shape[0] // 2)
        return int(max(least, self.circles.reach if self.circles else 0))


@dataclass(frozen=True)
class Source:
    """A segment to be done: number from 1, area in pixels, bounding box."""

    number: int
    area: int
    box: Box


@dataclass(frozen=True)
class Measured:
    """Sources in order; ``segment`` is the number of the one they come from and ``part`` counts its parts (0 = whole).

    ``values`` holds one array of shape (n,) for each quantity, ``cuts`` the parts of each divided segment.
    """

    segment: I4
    part: I4
    box: I8
    values: dict[str, NDArray[np.floating]]
    cuts: dict[int, I4]

    @classmethod
    def stack(cls, found: list[Measured]) -> Measured:
        """Return the sources of several sets in the order of their segments."""
        order = np.lexsort((np.concatenate([f.part for f in found]), np.concatenate([f.segment for f in found])))
        segment, part, box = (np.concatenate([getattr(f, n) for f in found])[order] for n in ("segment", "part", "box"))
        values = {n: np.concatenate([f.values[n] for f in found])[order] for n in found[0].values}
        return cls(segment, part, box, values, {k: v for f in found for k, v in f.cuts.items()})

    def table(self) -> Table:
        """Return everything as arrays with names."""
        cuts = {f"cut_{number}": parts for number, parts in self.cuts.items()}
        values = {f"value_{name}": values for name, values in self.values.items()}
        return {"segment": self.segment, "part": self.part, "box": self.box, **values, **cuts}

    @classmethod
    def of_table(cls, table: Table) -> Measured:
        """Return what :meth:`table` has written, without the cuts."""
        values = {n.removeprefix("value_"): v for n, v in table.items() if n.startswith("value_")}
        return cls(table["segment"], table["part"], table["box"], values, {})


# ---------------------------------------------------------------- tasks
def source_tasks(scene: Scene, rules: Rulebook, segments: Segments) -> list[Task]:
    """One task for each tile in which a segment begins."""
    tasks = []
    for key, which in owners(scene, segments).items():
        boxes, areas = segments.outlines.box[which], segments.outlines.area[which]
        sources = [Source(0, int(a), Box(*b)) for a, b in zip(areas.tolist(), boxes.tolist(), strict=True)]
        most = min(_window_bytes(scene, rules, sources), 4 * scene.tile**2 * VIEW_BYTES + SPARE)
        least = max(least_bytes(scene, rules, source) for source in sources)
        window = _window(scene, rules, sources)
        row, col = int(key[1:5]), int(key[6:])
        tasks.append(Task(key, max(most, least), least, ((f"{scene.path}/sci", window.as_tuple()),), (), (row, col)))
    return tasks


def least_bytes(scene: Scene, rules: Rulebook, source: Source) -> int:
    """Return what one segment needs at least: its window, or bands of it and, to be divided, all of it once."""
    nx = source.box.shape[1]
    extra = 2 * rules.reach if not rules.frame else max(2 * rules.reach, nx // 2 + 2 * rules.frame + 4)
    bands = (_LEAST_ROWS + 4 * scene.halo) * (nx + extra + 4 * scene.halo) * VIEW_BYTES
    circles = (2 * rules.reach + 1) ** 2 * VIEW_BYTES
    if _is_divided(rules, source):
        bands += source.box.size * (_CUT_BYTES + DEBLEND_BYTES)
    return min(_window_bytes(scene, rules, [source]), bands + circles + SPARE)


def _window(scene: Scene, rules: Rulebook, sources: list[Source]) -> Box:
    """Return the window that some segments are measured in."""
    window = sources[0].box
    for source in sources:
        window = window.union(source.box)
        if rules.frame:
            window = window.union(_frame(source.box, rules.frame))
    found = window.grow(rules.reach).intersect(scene.image)
    assert found is not None
    return found


def _frame(box: Box, width: int) -> Box:
    return Box(*aperture.frame_reach(np.array(box.as_tuple()), width).tolist())


def _window_bytes(scene: Scene, rules: Rulebook, sources: list[Source]) -> int:
    window = _window(scene, rules, sources).grow(scene.halo)
    blend = max((s.box.size for s in sources if _is_divided(rules, s)), default=0)
    return window.size * VIEW_BYTES + blend * (_CUT_BYTES + DEBLEND_BYTES) + SPARE


def _is_divided(rules: Rulebook, source: Source) -> bool:
    """Whether a segment is large enough to be a blend, and not too large to be divided."""
    levels = rules.levels
    return levels is not None and source.area >= 2 * levels.npixels and source.box.size <= rules.largest


def source_work(task: Task, *, obs: Observation, scene: Scene, rules: Rulebook) -> dict[str, float]:
    """Divide and measure the segments of one tile, and keep what was found."""
    table = read_table(obs, scene.key(f"segments/{tile_of(scene, task).key}"))
    columns = (table["number"].tolist(), table["area"].tolist(), table["box"].tolist())
    sources = [Source(n, a, Box(*b)) for n, a, b in zip(*columns, strict=True)]
    found = [
        _in_window(obs, scene, rules, group) if fits else _in_bands(obs, scene, rules, group[0], task.limit)
        for group, fits in _groups(scene, rules, sources, task.limit)
    ]
    write_table(obs, scene.key(f"sources/{task.key}"), Measured.stack(found).table())
    return {}


def _groups(scene: Scene, rules: Rulebook, sources: list[Source], limit: int) -> Iterator[tuple[list[Source], bool]]:
    """Yield sets of segments that fit in memory together, and single ones that do not fit."""
    fits = _window_bytes(scene, rules, sources) <= limit
    if fits or len(sources) == 1:
        yield sources, fits
        return
    ny, nx = _window(scene, rules, sources).shape
    middles = sorted(sources, key=lambda s: (s.box.y0 + s.box.y1 if ny >= nx else s.box.x0 + s.box.x1, s.number))
    half = len(middles) // 2
    yield from _groups(scene, rules, middles[:half], limit)
    yield from _groups(scene, rules, middles[half:], limit)


# ---------------------------------------------------------------- one window for many
def _in_window(obs: Observation, scene: Scene, rules: Rulebook, sources: list[Source]) -> Measured:
    """Divide and measure segments in a window that holds them all."""
    box, mesh = _window(scene, rules, sources), known_mesh(obs, scene)
    seen = view(obs, scene, mesh, box)
    labels = read_numbers(obs, scene, box)
    cuts = {s.number: parts for s in sources if (parts := _divide(seen.smooth, labels, box, rules, s)) is not None}
    names = _name_parts(sources, cuts)
    for source in sources:
        if source.number in cuts:
            _paint(labels, box, source, cuts[source.number], names)
    pixels = Pixels((box.y0, box.x0), seen.data, seen.smooth, errors(obs, scene, mesh, seen), seen.bad, labels)
    sums = Sums(names.label, names.box, gaussian(scene.fwhm))
    sums.add(pixels)
    sums.add_central(pixels)
    values = _shape_values(sums.shapes(_levels([pixels], names.box, rules.frame)))
    values |= round_values(seen, pixels.error, sums.centroid, rules)
    return Measured(names.segment, names.part, names.box, values, cuts)


def _divide(smooth: F4, labels: I4, box: Box, rules: Rulebook, source: Source) -> I4 | None:
    """Return the parts of a segment in its bounding box, None if it stays whole."""
    if not _is_divided(rules, source) or rules.levels is None:
        return None
    part = source.box.within(box)
    found = deblend(smooth[part], labels[part] == source.number, rules.levels)
    return None if found is None else found[0]


@dataclass(frozen=True)
class _Names:
    """Sources of some segments: the label they are painted with (negative for parts), origin and bounding boxes."""

    label: I4
    segment: I4
    part: I4
    box: I8


def _name_parts(sources: list[Source], cuts: dict[int, I4]) -> _Names:
    rows: list[tuple[int, int, int, list[int]]] = []
    for source in sources:
        parts = cuts.get(source.number)
        if parts is None:
            rows.append((source.number, source.number, 0, list(source.box.as_tuple())))
            continue
        found = outlines(parts, int(parts.max())).shift(source.box.y0, source.box.x0)
        rows += [(-1 - len(rows) - k, source.number, k + 1, box) for k, box in enumerate(found.box.tolist())]
    numbers, boxes = np.array([r[:3] for r in rows], np.int32), np.array([r[3] for r in rows], np.int64)
    return _Names(numbers[:, 0], numbers[:, 1], numbers[:, 2], boxes)


def _paint(labels: I4, box: Box, source: Source, parts: I4, names: _Names) -> None:
    """Replace a segment's number by the labels of its parts, where it is in the window."""
    inner = source.box.intersect(box)
    if inner is None:
        return
    chosen = np.concatenate([[0], names.label[names.segment == source.number]]).astype(np.int32)
    cut = parts[inner.within(source.box)]
    target = labels[inner.within(box)]
    target[cut > 0] = chosen[cut[cut > 0]]


def _levels(bands: list[Pixels], boxes: I8, frame: int) -> F8:
    """Return the local background of sources in a window, 0 where none is asked for."""
    if not frame:
        return np.zeros(len(boxes))
    return np.array([aperture.frame_level(aperture.frame_values(bands[0], box, frame)) for box in boxes])


def _shape_values(shapes: Shapes) -> dict[str, NDArray[np.floating]]:
    return {field.name: getattr(shapes, field.name) for field in fields(shapes)}


def round_values(seen: View, error: F4, centres: F8, rules: Rulebook) -> dict[str, NDArray[np.floating]]:
    """Measure in circles about centres (rows and columns) within a window, and the shapes of the peaks."""
    raw, origin = seen.data if rules.subtracted else seen.raw, (seen.box.y0, seen.box.x0)
    values: dict[str, NDArray[np.floating]] = {}
    if rules.circles is not None:
        values["ring"], values["ring_err"] = aperture.ring_background(raw, origin, centres, rules.circles.ring)
        for n, radius in enumerate(rules.circles.radii):
            found = aperture.circle_sums(raw, error, origin, centres, radius)
            values[f"circle{n}"], values[f"circle{n}_err"] = found
    kernel = DaoKernel.of_fwhm(rules.fwhm)
    values["sharpness"], values["roundness"] = aperture.sharpness_roundness(raw, origin, centres, kernel)
    return values


# ---------------------------------------------------------------- one segment in bands
def _in_bands(obs: Observation, scene: Scene, rules: Rulebook, source: Source, limit: int) -> Measured:
    """Divide and measure a segment that is read in bands of rows."""
    mesh = known_mesh(obs, scene)
    cuts: dict[int, I4] = {}
    if _is_divided(rules, source):
        parts = _divide_in_bands(obs, scene, rules, source, limit)
        cuts = {} if parts is None else {source.number: parts}
    names = _name_parts([source], cuts)

    def bands(box: Box) -> Iterator[Pixels]:
        for band in _bands(scene, box, limit - source.box.size * 4 * len(cuts)):
            outer = band.grow(scene.halo).intersect(scene.image)
            assert outer is not None
            seen = view(obs, scene, mesh, outer)
            labels = read_numbers(obs, scene, outer)
            for parts in cuts.values():
                _paint(labels, outer, source, parts, names)
            noise = errors(obs, scene, mesh, seen)
            rows = (outer.y0 if band.y0 == box.y0 else band.y0, outer.y1 if band.y1 == box.y1 else band.y1)
            yield Pixels((outer.y0, outer.x0), seen.data, seen.smooth, noise, seen.bad, labels, rows)

    sums = Sums(names.label, names.box, gaussian(scene.fwhm))
    for pixels in bands(source.box):
        sums.add(pixels)
    for pixels in bands(source.box):
        sums.add_central(pixels)
    values = _shape_values(sums.shapes(_band_levels(bands, scene, names.box, rules.frame)))
    found = [_around(obs, scene, rules, centre) for centre in sums.centroid]
    values |= {name: np.concatenate([f[name] for f in found]) for name in found[0]}
    return Measured(names.segment, names.part, names.box, values, cuts)


def _bands(scene: Scene, box: Box, limit: int) -> Iterator[Box]:
    """Yield bands of whole rows of a box, as high as memory allows."""
    row = (box.shape[1] + 4 * scene.halo) * VIEW_BYTES
    rows = max(_LEAST_ROWS, (limit - SPARE) // row - 4 * scene.halo)
    for y0 in range(box.y0, box.y1, rows):
        yield Box(y0, box.x0, min(y0 + rows, box.y1), box.x1)


def _divide_in_bands(obs: Observation, scene: Scene, rules: Rulebook, source: Source, limit: int) -> I4 | None:
    """Return the parts of a segment whose bounding box is read in bands, None if it stays whole."""
    if rules.levels is None:
        return None
    smooth, inside = np.empty(source.box.shape, np.float32), np.empty(source.box.shape, np.bool_)
    for band in _bands(scene, source.box, limit - source.box.size * _CUT_BYTES):
        smooth[band.within(source.box)] = view(obs, scene, known_mesh(obs, scene), band).smooth
        inside[band.within(source.box)] = read_numbers(obs, scene, band) == source.number
    found = deblend(smooth, inside, rules.levels)
    return None if found is None else found[0]


def _band_levels(bands: Callable[[Box], Iterator[Pixels]], scene: Scene, boxes: I8, frame: int) -> F8:
    """Return the local background of each source, its frame read in bands."""
    levels = np.zeros(len(boxes))
    for n, box in enumerate(boxes if frame else ()):
        around = _frame(Box(*box.tolist()), frame).intersect(scene.image)
        assert around is not None
        levels[n] = aperture.frame_level(np.concatenate([aperture.frame_values(p, box, frame) for p in bands(around)]))
    return levels


def _around(obs: Observation, scene: Scene, rules: Rulebook, centre: F8) -> dict[str, NDArray[np.floating]]:
    """Measure in circles about one centre, in a window of its own."""
    mesh = known_mesh(obs, scene)
    y, x = (int(v) for v in np.nan_to_num(centre))
    box = Box(y, x, y + 1, x + 1).grow(rules.reach).intersect(scene.image)
    assert box is not None
    seen = view(obs, scene, mesh, box)
    return round_values(seen, errors(obs, scene, mesh, seen), centre[None], rules)
