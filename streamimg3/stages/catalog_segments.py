"""Segments of the mosaic: labels tile by tile, joined over the seams, and written when sources are divided (image3 §9.2).

A tile keeps its own labels and its rims; the driver joins what touches over a seam and numbers what is large enough by
the first pixel, row by row, so that the numbers are those of one pass over the whole image.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from streamimg3.engine import Task
from streamimg3.geometry import Box, Tile
from streamimg3.kernels.segments import Outlines, join, label, outlines, relabel, seam_pairs
from streamimg3.stages.catalog_pixels import LABEL_BYTES, SPARE, Scene, Table, known_mesh, read_table, view, write_table
from streamimg3.store import Observation

I4 = NDArray[np.int32]
I8 = NDArray[np.int64]
PLANE = "segmentation"
TABLE_BYTES = 12  # of labels and what is needed to make them, for each pixel
_LEAST_ROWS = 16
_SIDES = ("bottom", "top", "left", "right")


@dataclass(frozen=True)
class Rules:
    """What a segment is: pixels above ``snr`` times the noise, connected (by corners too if ``eight``), ``npixels`` of them."""

    snr: float
    npixels: int
    eight: bool


@dataclass(frozen=True)
class Segments:
    """All segments, numbered from 1 in the order of their first pixels; ``tables`` maps a tile's labels to numbers."""

    outlines: Outlines
    tables: dict[str, I4]

    def __len__(self) -> int:
        return len(self.outlines.area)


def labels_path(scene: Scene) -> str:
    """Return where the tiles' own labels are kept."""
    return scene.key(f"labels/{PLANE}")


def tile_of(scene: Scene, task: Task) -> Tile:
    """Return the tile of a task."""
    row, col = task.item if isinstance(task.item, tuple) else (task.item, 0)
    return scene.grid.tile(row, col)


def label_tasks(scene: Scene) -> list[Task]:
    """One task for each tile."""
    tasks = []
    for tile in scene.grid:
        outer = tile.box.grow(scene.halo).intersect(scene.image) or tile.box
        most, least = (_label_bytes(scene, tile, rows) for rows in (tile.box.shape[0], _LEAST_ROWS))
        reads, writes = (f"{scene.path}/sci", outer.as_tuple()), (labels_path(scene), tile.box.as_tuple())
        tasks.append(Task(tile.key, most, min(most, least), (reads,), (writes,), (tile.row, tile.col)))
    return tasks


def _label_bytes(scene: Scene, tile: Tile, rows: int) -> int:
    """Return what labelling a tile takes when its pixels are read in bands of some rows."""
    height, width = tile.box.shape
    band = (min(rows, height) + 2 * scene.halo) * (width + 2 * scene.halo) * LABEL_BYTES
    return max(tile.box.size * TABLE_BYTES, tile.box.size + band) + SPARE


def label_work(task: Task, *, obs: Observation, scene: Scene, rules: Rules) -> dict[str, float]:
    """Label one tile: keep its labels, their outlines and the labels on its rims."""
    tile, mesh = tile_of(scene, task), known_mesh(obs, scene)
    rows = next(
        n
        for n in (tile.box.shape[0], 512, 128, _LEAST_ROWS)
        if _label_bytes(scene, tile, n) <= task.limit or n == _LEAST_ROWS
    )
    above = np.empty(tile.box.shape, np.bool_)
    for y0 in range(tile.box.y0, tile.box.y1, rows):
        band = Box(y0, tile.box.x0, min(y0 + rows, tile.box.y1), tile.box.x1)
        seen = view(obs, scene, mesh, band)
        threshold = mesh.noise(*band.as_tuple())
        threshold *= np.float32(rules.snr)
        above[band.within(tile.box)] = (seen.smooth > threshold) & ~seen.bad
        del seen, threshold
    labels, count = label(above, rules.eight)
    found = outlines(labels, count)
    table = np.zeros(count + 1, np.int32)
    keep = (found.area >= rules.npixels) | _reaches_seam(found.box, tile.box, scene)
    table[1:][keep] = np.arange(1, np.count_nonzero(keep) + 1)
    relabel(labels, table)
    found = found.take(keep).shift(tile.box.y0, tile.box.x0)
    if len(found.area):
        obs.write(labels_path(scene), (), tile.box, labels.view(np.uint32))
    rims = {"bottom": labels[0], "top": labels[-1], "left": labels[:, 0], "right": labels[:, -1]}
    write_table(
        obs, scene.key(f"tiles/{tile.key}"), rims | {"area": found.area, "box": found.box, "first": found.first}
    )
    return {}


def _reaches_seam(box: I8, tile: Box, scene: Scene) -> NDArray[np.bool_]:
    """Which of some boxes (in the tile) reach a side where another tile begins."""
    (ny, nx), (height, width) = scene.shape, tile.shape
    reaches = np.zeros(len(box), np.bool_)
    for side, there in ((box[:, 0] == 0, tile.y0 > 0), (box[:, 1] == 0, tile.x0 > 0),
                        (box[:, 2] == height, tile.y1 < ny), (box[:, 3] == width, tile.x1 < nx)):  # fmt: skip
        if there:
            reaches |= side
    return reaches


def join_tiles(obs: Observation, scene: Scene, rules: Rules) -> Segments:
    """Join the tiles' labels over their seams and number what has enough pixels."""
    starts: dict[str, int] = {}
    parts: list[Outlines] = []
    pairs = [np.zeros((0, 2), np.int64)]
    total = 0
    rows, cols = scene.grid.counts
    below = np.zeros(0, np.int64)
    for row in range(rows):
        rims: list[dict[str, I8]] = []
        for col in range(cols):
            key = scene.grid.tile(row, col).key
            table = read_table(obs, scene.key(f"tiles/{key}"))
            starts[key] = total
            parts.append(Outlines(table["area"], table["box"], table["first"]))
            rims.append({s: np.where(table[s] > 0, table[s].astype(np.int64) + total, 0) for s in _SIDES})
            total += len(table["area"])
        pairs += [seam_pairs(a["right"], b["left"], rules.eight) for a, b in pairwise(rims)]
        if row:
            pairs.append(seam_pairs(below, np.concatenate([r["bottom"] for r in rims]), rules.eight))
        below = np.concatenate([r["top"] for r in rims])
    whole = Outlines(*(np.concatenate([getattr(p, n) for p in parts]) for n in ("area", "box", "first")))
    numbers, found = _number(whole, join(np.concatenate(pairs) - 1, total), rules.npixels, scene.shape[1])
    return Segments(found, _tables(numbers, starts))


def _tables(numbers: I8, starts: dict[str, int]) -> dict[str, I4]:
    """Return for every tile with labels which segment each of them belongs to; entry 0 is 0."""
    ends = [*list(starts.values())[1:], len(numbers)]
    return {
        key: np.concatenate([[0], numbers[start:end]]).astype(np.int32)
        for (key, start), end in zip(starts.items(), ends, strict=True)
        if end > start
    }


def _number(parts: Outlines, root: I8, npixels: int, nx: int) -> tuple[I8, Outlines]:
    """Return the number of each part's segment (0 = too small) and the segments' outlines in that order."""
    roots, index = np.unique(root, return_inverse=True)
    n = len(roots)
    area, box = np.zeros(n, np.int64), np.zeros((n, 4), np.int64)
    first = np.full(n, np.iinfo(np.int64).max)
    np.add.at(area, index, parts.area)
    box[:, :2] = np.iinfo(np.int64).max
    np.minimum.at(box[:, :2], index, parts.box[:, :2])
    np.maximum.at(box[:, 2:], index, parts.box[:, 2:])
    np.minimum.at(first, index, parts.first[:, 0] * nx + parts.first[:, 1])
    large = np.flatnonzero(area >= npixels)
    order = large[np.argsort(first[large])]
    number = np.zeros(n, np.int64)
    number[order] = np.arange(1, len(order) + 1)
    return number[index], Outlines(area[order], box[order], np.stack(np.divmod(first[order], nx), 1))


def keep_tables(obs: Observation, scene: Scene, segments: Segments) -> None:
    """Write for the workers which segment each tile's labels belong to, and each tile's own segments (by first pixel)."""
    for key, table in segments.tables.items():
        write_table(obs, scene.key(f"numbers/{key}"), {"number": table})
    for key, which in owners(scene, segments).items():
        found = segments.outlines
        own: Table = {"number": (which + 1).astype(np.int32), "area": found.area[which], "box": found.box[which]}
        write_table(obs, scene.key(f"segments/{key}"), own)


def owners(scene: Scene, segments: Segments) -> dict[str, I8]:
    """Return the segments (counted from 0) whose first pixel is in each tile."""
    row, col = (segments.outlines.first // scene.tile).T
    tile = row * scene.grid.counts[1] + col
    order = np.argsort(tile, kind="stable")
    cuts = np.flatnonzero(np.diff(tile[order])) + 1
    return {scene.grid.tile(int(row[w[0]]), int(col[w[0]])).key: w for w in np.split(order, cuts) if len(w)}


def read_numbers(obs: Observation, scene: Scene, box: Box) -> I4:
    """Return the segments' numbers in a window, int32, 0 = none."""
    numbers = np.zeros(box.shape, np.int32)
    for tile in scene.grid.touching(box):
        table, part = _numbers_of(obs, scene, tile.key), tile.box.intersect(box)
        if table is None or part is None:
            continue  # a tile without segments has no table
        labels = np.ascontiguousarray(obs.window(labels_path(scene), (), part)).view(np.int32)
        relabel(labels, table)
        numbers[part.within(box)] = labels
    return numbers


@lru_cache(maxsize=32)
def _numbers_of(obs: Observation, scene: Scene, key: str) -> I4 | None:
    """Return which segment each label of a tile belongs to (read once per process)."""
    name = scene.key(f"numbers/{key}")
    if obs.backend.get(name) is None:
        return None
    number: I4 = read_table(obs, name)["number"].astype(np.int32)
    return number
