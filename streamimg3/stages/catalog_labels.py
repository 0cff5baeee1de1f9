"""The segmentation map: every source's label, written tile by tile when all sources are known (image3 §9.3).

Segments that stay whole keep their order; the parts of divided ones follow after all of these.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamimg3.engine import Task
from streamimg3.geometry import Box, Tile
from streamimg3.kernels.segments import relabel
from streamimg3.stages.catalog_pixels import SPARE, Scene, Table, read_table, write_table
from streamimg3.stages.catalog_segments import PLANE, Segments, labels_path, tile_of
from streamimg3.stages.catalog_sources import Measured
from streamimg3.store import Observation

I4 = NDArray[np.int32]
I8 = NDArray[np.int64]

_PIXEL_BYTES = 16


def label_path(scene: Scene) -> str:
    """Return where the segmentation map is."""
    return f"{scene.path}/{PLANE}"


def final_labels(found: Measured) -> I8:
    """Return the label of every source: whole segments from 1 on in order, then the parts of divided ones in order."""
    whole = found.part == 0
    labels = np.empty(len(whole), np.int64)
    labels[whole] = np.arange(1, np.count_nonzero(whole) + 1)
    labels[~whole] = np.count_nonzero(whole) + np.arange(1, np.count_nonzero(~whole) + 1)
    return labels


def keep_labels(obs: Observation, scene: Scene, segments: Segments, found: Measured) -> None:
    """Write for the workers the labels that each tile's own labels become, and which divided segments it holds."""
    labels = final_labels(found)
    whole = np.zeros(len(segments) + 1, np.int32)
    base = np.zeros(len(segments) + 1, np.int32)  # label of a divided segment's first part
    whole[found.segment[found.part == 0]] = labels[found.part == 0]
    base[found.segment[found.part == 1]] = labels[found.part == 1]
    for key, table in segments.tables.items():
        inside = np.unique(table)
        divided = inside[base[inside] > 0]
        home = segments.outlines.first[divided - 1] // scene.tile
        parts: Table = {
            "divided": divided,
            "base": base[divided],
            "home": home,
            "box": segments.outlines.box[divided - 1],
        }
        write_table(obs, scene.key(f"labels_of/{key}"), {"label": whole[table], **parts})


def paint_tasks(scene: Scene, segments: Segments, found: Measured) -> list[Task]:
    """One task for each tile that holds any segment."""
    divided = np.unique(found.segment[found.part > 0])
    boxes = segments.outlines.box
    size = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    tasks = []
    for key, table in segments.tables.items():
        if not table.any():
            continue
        row, col = int(key[1:5]), int(key[6:])
        tile = scene.grid.tile(row, col)
        inside = np.intersect1d(table, divided)
        need = tile.box.size * _PIXEL_BYTES + SPARE + 4 * int(size[inside - 1].sum())
        box = tile.box.as_tuple()
        tasks.append(Task(key, need, need, ((labels_path(scene), box),), ((label_path(scene), box),), (row, col)))
    return tasks


def paint_work(task: Task, *, obs: Observation, scene: Scene) -> dict[str, float]:
    """Write one tile of the segmentation map."""
    tile = tile_of(scene, task)
    table = read_table(obs, scene.key(f"labels_of/{task.key}"))
    labels = np.ascontiguousarray(obs.window(labels_path(scene), (), tile.box)).view(np.int32)
    relabel(labels, table["label"].astype(np.int32))
    homes = table["home"]
    for home in np.unique(homes, axis=0).tolist():
        _paint(
            obs,
            scene,
            labels,
            tile,
            {n: table[n][(homes == home).all(axis=1)] for n in ("divided", "base", "box")},
            home,
        )
    obs.write(label_path(scene), (), tile.box, labels.view(np.uint32))
    return {}


def _paint(obs: Observation, scene: Scene, labels: I4, tile: Tile, divided: Table, home: list[int]) -> None:
    """Paint the parts of divided segments that begin in one tile, where they are in another."""
    names = [f"cut_{n}" for n in divided["divided"].tolist()]
    parts = read_table(obs, scene.key(f"sources/{scene.grid.tile(*home).key}"), tuple(names))
    for name, base, corners in zip(names, divided["base"].tolist(), divided["box"].tolist(), strict=True):
        box = Box(*corners)
        inner = box.intersect(tile.box)
        if inner is None:
            continue
        cut: I4 = parts[name][inner.within(box)].astype(np.int32)
        target = labels[inner.within(tile.box)]
        target[cut > 0] = cut[cut > 0] + (base - 1)
