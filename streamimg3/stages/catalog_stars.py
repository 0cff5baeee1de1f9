"""Stars instead of segments: peaks found in bands of rows, the brightest of them measured tile by tile (image3 §4.3, §9.5)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from streamimg3.engine import Task
from streamimg3.geometry import Box
from streamimg3.kernels.stars import FinderOptions, StarFinder, StarList, median_threshold, select_brightest
from streamimg3.stages.catalog_pixels import (
    SPARE,
    Scene,
    errors,
    flux,
    known_mesh,
    read_table,
    uncovered,
    view,
    write_table,
)
from streamimg3.stages.catalog_segments import tile_of
from streamimg3.stages.catalog_sources import VIEW_BYTES, Rulebook, round_values
from streamimg3.store import Observation

F8 = NDArray[np.float64]
Bool = NDArray[np.bool_]
Values = dict[str, NDArray[np.floating]]

# Bytes for each pixel of the rows that stars are looked for in, or whose flags are read; measured
_FIND_BYTES, _FLAG_BYTES = 40, 32
_MOST_ROWS, _LEAST_ROWS = 128, 16


def threshold_task(scene: Scene) -> Task:
    """The task that finds the median noise of the image."""
    need = _MOST_ROWS * scene.shape[1] * _FLAG_BYTES + SPARE
    return Task("threshold", need, need, ((f"{scene.path}/wht", scene.image.as_tuple()),))


def threshold_work(task: Task, *, obs: Observation, scene: Scene, options: FinderOptions) -> dict[str, float]:
    """Keep the noise that peaks are compared with."""

    def flags() -> Iterator[Bool]:
        for y0 in range(0, scene.shape[0], _MOST_ROWS):
            yield uncovered(obs, scene, Box(y0, 0, min(y0 + _MOST_ROWS, scene.shape[0]), scene.shape[1]))

    noise = median_threshold(known_mesh(obs, scene), flags, options.snr_threshold)
    write_table(obs, scene.key("threshold"), {"noise": np.array(noise)})
    return {}


def find_tasks(scene: Scene, options: FinderOptions) -> list[Task]:
    """One task for each row of tiles."""
    ny, nx = scene.shape
    halo = 4 * (options.separation + int(options.sigma_radius * options.kernel_fwhm) + 2)
    most, least = (n * nx * _FIND_BYTES + SPARE for n in (_MOST_ROWS + halo, _LEAST_ROWS + halo))
    return [
        Task(f"s{row:05d}", most, least, ((f"{scene.path}/sci", (y0, 0, min(y0 + scene.tile, ny), nx)),), item=row)
        for row, y0 in enumerate(range(0, ny, scene.tile))
    ]


def find_work(task: Task, *, obs: Observation, scene: Scene, options: FinderOptions) -> dict[str, float]:
    """Keep the stars of one row of tiles."""
    row = task.item if isinstance(task.item, int) else task.item[0]
    noise = float(read_table(obs, scene.key("threshold"))["noise"])
    finder = StarFinder(options, known_mesh(obs, scene), noise)
    start, end = row * scene.tile, min((row + 1) * scene.tile, scene.shape[0])
    height = _MOST_ROWS if task.limit >= task.nbytes else _LEAST_ROWS
    parts = []
    for y0 in range(start, end, height):
        y1 = min(y0 + height, end)
        first, last = finder.rows(y0, y1)
        box = Box(first, 0, last, scene.shape[1])
        parts.append(finder.find(flux(obs, scene, "sci", box), uncovered(obs, scene, box), y0, y1))
    # the brightest of all rows are among the brightest of each
    found = select_brightest(parts, None)
    columns = {"x": found.x, "y": found.y, "flux": found.flux, **_kept(found)}
    write_table(obs, scene.key(f"stars/{task.key}"), columns)
    return {}


def _kept(found: StarList) -> Values:
    return {n: c.astype(np.float64) for n, c in found.columns.items() if n == "orientation"}


def joined_stars(obs: Observation, scene: Scene, options: FinderOptions) -> StarList:
    """Return the stars of the whole image, the brightest first."""
    parts = []
    for task in find_tasks(scene, options):
        table = read_table(obs, scene.key(f"stars/{task.key}"))
        x, y, light = (table[n].astype(np.float64) for n in ("x", "y", "flux"))
        others = {n: table[n] for n in ("orientation",) if n in table}
        parts.append(StarList(np.zeros(len(x), np.int64), x, y, light, others))
    return select_brightest(parts, options.brightest)


def keep_stars(obs: Observation, scene: Scene, stars: StarList) -> dict[str, NDArray[np.int64]]:
    """Write for the workers which stars are in each tile; returns their indices by tile."""
    column, row = (np.clip(np.floor(v + 0.5), 0, n - 1).astype(np.int64) // scene.tile for v, n in
                   ((stars.x, scene.shape[1]), (stars.y, scene.shape[0])))  # fmt: skip
    inside: dict[str, NDArray[np.int64]] = {}
    for tile in scene.grid:
        which = np.flatnonzero((row == tile.row) & (column == tile.col))
        if len(which):
            inside[tile.key] = which
            centres = np.stack([stars.y[which], stars.x[which]], 1)
            write_table(obs, scene.key(f"centres/{tile.key}"), {"index": which, "centre": centres})
    return inside


def measure_tasks(scene: Scene, rules: Rulebook, inside: dict[str, NDArray[np.int64]]) -> list[Task]:
    """One task for each tile that holds stars."""
    tasks = []
    for tile in scene.grid:
        if tile.key in inside:
            window = tile.box.grow(rules.reach).intersect(scene.image) or tile.box
            need = window.grow(scene.halo).size * VIEW_BYTES + SPARE
            reads = ((f"{scene.path}/sci", window.as_tuple()),)
            tasks.append(Task(tile.key, need, need, reads, (), (tile.row, tile.col)))
    return tasks


def measure_work(task: Task, *, obs: Observation, scene: Scene, rules: Rulebook) -> dict[str, float]:
    """Measure the stars of one tile in circles."""
    table, mesh = read_table(obs, scene.key(f"centres/{task.key}")), known_mesh(obs, scene)
    window = tile_of(scene, task).box.grow(rules.reach).intersect(scene.image)
    assert window is not None
    seen = view(obs, scene, mesh, window)
    centres: F8 = table["centre"].astype(np.float64)
    values = round_values(seen, errors(obs, scene, mesh, seen), centres, rules)
    write_table(obs, scene.key(f"circles/{task.key}"), {"index": table["index"], **values})
    return {}


def joined_values(obs: Observation, scene: Scene, stars: StarList, inside: dict[str, NDArray[np.int64]]) -> Values:
    """Return what is known of the stars, in their order; what only segments have is NaN."""
    values: Values = {"x": stars.x, "y": stars.y, "flux": stars.flux.astype(np.float64)}
    if "orientation" in stars.columns:
        values["orientation"] = stars.columns["orientation"].astype(np.float64)
    for key in inside:
        table = read_table(obs, scene.key(f"circles/{key}"))
        for name, column in table.items():
            if name != "index":
                values.setdefault(name, np.full(len(stars), np.nan, column.dtype))[table["index"]] = column
    return values
