"""The mosaic at a half, a quarter … of its scale, down to about a thousand pixels: what viewers and reports show.

The levels lie in ``overviews/1`` (half), ``overviews/2`` … beside the mosaic: in a tree of xarray a dimension has one size
along a path, so they cannot lie below it. The root's attribute ``multiscales`` lists them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from streamimg3.engine import Outcome, Runner, Task
from streamimg3.engine.receipts import Ledger, digest
from streamimg3.geometry import Box, Tile, TileGrid
from streamimg3.kernels.halve import halved, largest
from streamimg3.stages.tile_marks import TileMarks, read_marks, unchanged, write_marks
from streamimg3.store import Observation
from streamimg3.store.documents import OverviewDocument, OverviewLevel, ResampleDocument
from streamimg3.store.multiscales import declare

NAME = "overviews"
PLANES = ("sci", "wht", "ncontrib")
SMALLEST = 1500  # pixels along the longest side of a level from which no further one is made
_TILE = 512
_BEGUN = "_begun"
_CODE = 1  # raised when the numbers a given input leads to change
_PIXEL = 26  # bytes per pixel of the finer level, measured: three planes, masks, products


def levels(shape: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Return the shapes of the levels, half the scale each.

    Examples
    --------
    >>> levels((3001, 1500)), levels((900, 1000))
    (((1501, 750), (751, 375)), ())
    """
    made: list[tuple[int, int]] = []
    while max(shape) > SMALLEST:
        shape = -(-shape[0] // 2), -(-shape[1] // 2)
        made.append(shape)
    return tuple(made)


def run(obs: Observation, runner: Runner) -> OverviewDocument | None:
    """Make the levels of the mosaic of all exposures unless the store holds them.

    Parameters
    ----------
    obs : Observation
        The store.
    runner : Runner
        Who does the work.

    Returns
    -------
    OverviewDocument or None
        None where there is no such mosaic.
    """
    mosaic = obs.document(ResampleDocument)
    if mosaic is None:
        return None
    mark = digest(_CODE, NAME, mosaic.digest)
    kept = obs.document(OverviewDocument)
    if kept is not None and kept.digest == mark:
        return kept
    made = tuple(OverviewLevel(f"{NAME}/{n}", shape, 2**n) for n, shape in enumerate(levels(mosaic.shape), start=1))
    outcome = Outcome()
    marks = _marks_of(obs, mosaic, made)
    ledgers = {level: Ledger(obs.backend, level.path.replace("/", "-"), mark) for level in made}
    if made and _BEGUN not in ledgers[made[0]].done():
        _begin(obs, mosaic, ledgers, marks)
    source = mosaic.path
    for level, ledger in ledgers.items():
        call = partial(work, obs=obs, source=source, level=level)
        outcome += runner.fill(call, _tasks(level), ledger)
        source = level.path
    write_marks(obs, NAME, marks)
    declare(obs, mosaic.path, made)
    document = OverviewDocument(digest=mark, planes=PLANES, levels=made)
    obs.commit(document)
    for ledger in ledgers.values():
        obs.backend.remove_tree(f"receipts/{ledger.stage}")
    return document


def _marks_of(obs: Observation, mosaic: ResampleDocument, made: tuple[OverviewLevel, ...]) -> TileMarks:
    """Return what the tiles of all levels will have been made from: the mosaic's tiles below them."""
    below = read_marks(obs, ResampleDocument.kind)
    grid = TileGrid(mosaic.shape, mosaic.tile)
    tiles = {}
    for level in made:
        for tile in TileGrid(level.shape, _TILE):
            y0, x0, y1, x1 = (v * level.factor for v in tile.box.as_tuple())
            box = Box(y0, x0, min(y1, mosaic.shape[0]), min(x1, mosaic.shape[1]))
            tiles[_place(level, tile)] = digest([(t.key, below.tiles.get(t.key)) for t in grid.touching(box)])
    return TileMarks(digest(_CODE, PLANES, _TILE, mosaic.shape, mosaic.tile, below.canvas), tiles)


def _place(level: OverviewLevel, tile: Tile) -> str:
    return f"{level.factor}-{tile.key}"


def _begin(
    obs: Observation, mosaic: ResampleDocument, ledgers: Mapping[OverviewLevel, Ledger], marks: TileMarks
) -> None:
    """Make room for the levels; tiles over parts of the mosaic that have not changed are kept."""
    kept = unchanged(read_marks(obs, NAME), marks)
    obs.retract(OverviewDocument.kind)
    for ledger in ledgers.values():
        ledger.forget_others()
    write_marks(obs, NAME, TileMarks(marks.canvas, {place: marks.tiles[place] for place in kept}))
    if kept:
        for level, ledger in ledgers.items():
            for tile in TileGrid(level.shape, _TILE):
                if _place(level, tile) in kept:
                    ledger.mark(tile.key)
    else:
        _create(obs, mosaic, tuple(ledgers))
    next(iter(ledgers.values())).mark(_BEGUN)


def _create(obs: Observation, mosaic: ResampleDocument, made: tuple[OverviewLevel, ...]) -> None:
    """Create the empty planes; the WCS keywords of a level are the mosaic's for its larger pixels."""
    obs.backend.remove_tree(NAME)
    obs.write_group(NAME, {})
    unit = str(obs.array(f"{mosaic.path}/sci").attrs["units"])
    cards = obs.attributes(mosaic.path).get("wcs")
    for level in made:
        coarse = _binned(cards, level.factor) if cards else None
        obs.write_group(level.path, {"wcs": coarse, "shape": list(level.shape), "factor": level.factor})
        for plane in PLANES:
            obs.create_image(f"{level.path}/{plane}", level.shape, _TILE, None if unit == "1" else unit)


def _binned(cards: dict[str, float | str], factor: int) -> dict[str, float | str]:
    """WCS keywords for pixels ``factor`` times as large."""
    new = dict(cards)
    for n in (1, 2):
        new[f"CRPIX{n}"] = (float(cards[f"CRPIX{n}"]) - 0.5) / factor + 0.5
        new[f"CDELT{n}"] = float(cards[f"CDELT{n}"]) * factor
    return new


def _tasks(level: OverviewLevel) -> list[Task]:
    need = (2 * _TILE) ** 2 * _PIXEL
    return [
        Task(t.key, need, need, writes=((level.path, t.box.as_tuple()),), item=(t.row, t.col))
        for t in TileGrid(level.shape, _TILE)
    ]


def work(task: Task, *, obs: Observation, source: str, level: OverviewLevel) -> dict[str, float]:
    """Make one tile of a level from the level below it.

    Parameters
    ----------
    task : Task
        Its ``item`` is the tile's row and column.
    obs : Observation
        The store.
    source : str
        Group of the finer level.
    level : OverviewLevel
        The level to be made.

    Returns
    -------
    dict
        Processor seconds.
    """
    start = time.process_time()
    row, col = task.item if isinstance(task.item, tuple) else (task.item, 0)
    tile = TileGrid(level.shape, _TILE).tile(row, col).box
    fine = obs.array(f"{source}/sci").shape
    box = Box(2 * tile.y0, 2 * tile.x0, min(2 * tile.y1, fine[0]), min(2 * tile.x1, fine[1]))
    sci, wht, count = (obs.window(f"{source}/{plane}", (), box) for plane in PLANES)
    mean, weight = halved(sci.astype(np.float32), wht.astype(np.float32))
    made: dict[str, NDArray[np.generic]] = {"sci": mean, "wht": weight, "ncontrib": largest(count.astype(np.uint16))}
    for plane, values in made.items():
        obs.write(f"{level.path}/{plane}", (), tile, values)
    return {"overviews": time.process_time() - start}
