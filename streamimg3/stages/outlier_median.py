"""The median of the exposure groups, tile by tile: drizzle each group, find its weight threshold, combine (spec §6.2).

What is drizzled lies in the store, one shard for each tile that a group touches: the cost grows with the pixels of the
exposures, not with groups times mosaic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from streamimg3.engine import Task
from streamimg3.geometry import Box, TileGrid
from streamimg3.kernels.clip import clip_stream
from streamimg3.kernels.drizzle import Kernel
from streamimg3.kernels.outliers import nan_median
from streamimg3.stages.layers import Setup, layer_names, read_setup
from streamimg3.stages.placement import Placed, by_tile
from streamimg3.stages.tile_drizzle import Clock, drizzle_layers, task_memory
from streamimg3.store import Observation

F4 = NDArray[np.float32]
ROOT = "outliers"
_DECODE = 3  # copies of a shard while it is read: encoded, decoded, wanted
_REST = 8 * 2**20  # what many groups hold beside pixels, measured
_OBLIQUE = 1.02  # how much longer a side may be in the mosaic than in the exposure, beside the scale
_THINNEST = 16  # rows of the thinnest band of a stack
Tiles = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Group:
    """One layer of the median: the exposures that were taken at once, and the tiles that they touch.

    ``tiles`` holds (row, column) in the grid and the layers that touch that tile.
    """

    name: str
    layers: tuple[int, ...]
    tiles: tuple[tuple[int, int, tuple[int, ...]], ...]
    windows: tuple[tuple[Box, ...], ...]


def make_group(name: str, members: Sequence[int], places: Sequence[Placed]) -> Group:
    """Find the tiles that the members of a group touch, and what of the members they need."""
    found = list(by_tile((bit, places[bit]) for bit in members))
    tiles = tuple((row, col, tuple(boxes)) for (row, col), boxes in found)
    return Group(name, tuple(members), tiles, tuple(tuple(boxes.values()) for _, boxes in found))


# ---------------------------------------------------------------- drizzle each group
def group_tasks(setup: Setup, groups: Sequence[Group], map_bytes: int) -> list[Task]:
    """Return one task for each tile of each group, neighbours in the sky together."""
    grid = TileGrid(setup.shape, setup.tile)
    names = layer_names(setup)
    tasks = []
    for number, group in enumerate(groups):
        planes = [f"{ROOT}/{plane}[{number}]" for plane in setup.planes]
        for (row, col, bits), boxes in zip(group.tiles, group.windows, strict=True):
            tile = grid.tile(row, col)
            most, least = (n + 2 * map_bytes for n in task_memory(setup, boxes))
            reads = tuple((names[bit], box.as_tuple()) for bit, box in zip(bits, boxes, strict=True))
            writes = tuple(product(planes, (tile.box.as_tuple(),)))
            tasks.append(Task(f"{tile.key}g{number:04d}", most, least, reads, writes, (row, col, number, *bits)))
    return sorted(tasks, key=lambda t: t.key)


def group_work(task: Task, *, obs: Observation, mark: str) -> dict[str, float]:
    """Drizzle one group onto one tile."""
    setup = read_setup(obs, mark)
    row, col, number, *bits = task.item  # type: ignore[misc]
    box = TileGrid(setup.shape, setup.tile).tile(row, col).box
    clock = Clock()
    canvas = drizzle_layers(obs, setup, [setup.layers[b] for b in bits], box, task.limit, clock)
    canvas.data[:, canvas.weight == 0] = np.nan
    with clock.on("write"):
        for plane, values in zip(setup.planes, (canvas.data[0], canvas.weight, *canvas.data[1:]), strict=True):
            obs.write(f"{ROOT}/{plane}", (number,), box, values)
    return clock.seconds


# ---------------------------------------------------------------- weight threshold of each group
def threshold_tasks(setup: Setup, groups: Sequence[Group]) -> list[Task]:
    """Return one task for each group."""
    shard = 4 * setup.tile * setup.tile
    tasks = []
    for number, group in enumerate(groups):
        held = 4 * min(_reached(setup, group), len(group.tiles) * setup.tile * setup.tile)
        tasks.append(
            Task(
                f"g{number:04d}", shard * (_DECODE + 2) + held, shard * (_DECODE + 2),
                reads=tuple(product((f"{ROOT}/wht[{number}]",), (_box(setup, r, c).as_tuple() for r, c, _ in group.tiles))),
                item=(number, *(i for r, c, _ in group.tiles for i in (r, c))),
            )
        )  # fmt: skip
    return tasks


def _reached(setup: Setup, group: Group) -> int:
    """Most pixels of the mosaic that the exposures of a group can give a weight."""
    reach = Kernel(setup.kernel, setup.pixfrac, setup.ratio).reach
    shapes = [setup.layers[bit].shape for bit in group.layers]
    sides = [[n / setup.ratio * _OBLIQUE + 2 * reach + 2 for n in shape] for shape in shapes]
    return math.ceil(sum(y * x for y, x in sides))


def threshold_work(task: Task, *, obs: Observation, mark: str, maskpt: float) -> tuple[float, ...]:
    """Return ``maskpt`` times the clipped mean weight of a group's image; NaN where it has no weight."""
    setup = read_setup(obs, mark)
    number, *at = task.item  # type: ignore[misc]
    boxes = [_box(setup, r, c) for r, c in zip(at[::2], at[1::2], strict=True)]
    unflagged = np.zeros((setup.tile, setup.tile), np.bool_)

    held: dict[Box, list[tuple[F4, NDArray[np.bool_]]]] = {}
    free = task.limit - 4 * setup.tile * setup.tile * (_DECODE + 2)

    def weights() -> Iterator[tuple[F4, NDArray[np.bool_]]]:
        """Values tile by tile, as rows, for sums go row by row; what fits in memory is read once."""
        for box in boxes:
            if box in held:
                yield from held[box]
                continue
            found = np.asarray(obs.window(f"{ROOT}/wht", (number,), box), np.float32)
            used = found[np.isfinite(found) & (found != 0)]
            whole = used.size // setup.tile * setup.tile
            parts = (used[:whole].reshape(-1, setup.tile), used[whole:].reshape(1, -1))
            rows = [(part, unflagged[: part.shape[0], : part.shape[1]]) for part in parts]
            if sum(part.nbytes for kept in held.values() for part, _ in kept) + used.nbytes <= free:
                held[box] = rows
            yield from rows

    return (clip_stream(weights).mean * maskpt,)


# ---------------------------------------------------------------- median
def median_tasks(setup: Setup, groups: Sequence[Group]) -> list[Task]:
    """Return one task for each tile that any group touches."""
    touched: dict[tuple[int, int], list[int]] = {}
    for number, group in enumerate(groups):
        for row, col, _ in group.tiles:
            touched.setdefault((row, col), []).append(number)
    names = [f"{ROOT}/sci[{number}]" for number in range(len(groups))]
    planes = [f"{ROOT}/{plane}" for plane in _medians(setup)]
    tasks = []
    for (row, col), numbers in sorted(touched.items()):
        tile = TileGrid(setup.shape, setup.tile).tile(row, col)
        rows, least = tile.box.shape[0], _median_memory(setup, len(numbers), min(_THINNEST, tile.box.shape[0]))
        box = (tile.box.as_tuple(),)
        reads, writes = tuple(product([names[n] for n in numbers], box)), tuple(product(planes, box))
        tasks.append(
            Task(tile.key, _median_memory(setup, len(numbers), rows), least, reads, writes, (row, col, *numbers))
        )
    return tasks


def _medians(setup: Setup) -> tuple[str, ...]:
    return ("median", "median_err") if setup.drizzle_err else ("median",)


def _median_memory(setup: Setup, count: int, rows: int) -> int:
    """Bytes for the median of bands of some rows: the stack, a weight being read with its codec, the result, and a rest."""
    return 4 * setup.tile * (rows * count + setup.tile * (_DECODE + 1)) + _REST


def median_work(task: Task, *, obs: Observation, mark: str, thresholds: tuple[float | None, ...]) -> dict[str, float]:
    """Combine the groups of one tile; pixels below a group's weight threshold do not count."""
    setup = read_setup(obs, mark)
    row, col, *numbers = task.item  # type: ignore[misc]
    box = _box(setup, row, col)
    clock = Clock()
    per_row = 4 * setup.tile * len(numbers)
    rows = max(_THINNEST, (task.limit - _median_memory(setup, 0, 0)) // per_row)
    for plane, source in zip(_medians(setup), ("sci", "err"), strict=False):
        result = np.empty(box.shape, np.float32)
        for y0 in range(box.y0, box.y1, rows):
            band = Box(y0, box.x0, min(y0 + rows, box.y1), box.x1)
            with clock.on("read"):
                stack = _stack(obs, source, numbers, band, thresholds)
            with clock.on("median"):
                result[band.within(box)] = nan_median(stack)
        with clock.on("write"):
            obs.write(f"{ROOT}/{plane}", (), box, result)
    return clock.seconds


def _stack(
    obs: Observation, source: str, numbers: Sequence[int], band: Box, thresholds: tuple[float | None, ...]
) -> F4:
    """Read a band of some groups, NaN where their weight is too low."""
    stack = np.empty((len(numbers), *band.shape), np.float32)
    for k, number in enumerate(numbers):
        stack[k] = obs.window(f"{ROOT}/{source}", (number,), band)
        threshold = thresholds[number]
        if threshold is not None and not math.isnan(threshold):
            stack[k][obs.window(f"{ROOT}/wht", (number,), band) < np.float64(threshold)] = np.nan
    return stack


def _box(setup: Setup, row: int, col: int) -> Box:
    return TileGrid(setup.shape, setup.tile).tile(row, col).box
