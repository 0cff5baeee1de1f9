"""What each tile of a mosaic was made from, so that a change redoes only the tiles it touches, and of those the part it touches."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from functools import reduce

import numpy as np

from streamimg3.engine import Task
from streamimg3.engine.receipts import digest
from streamimg3.geometry import Box, TileGrid
from streamimg3.sky.mosaic_frame import linear_terms
from streamimg3.stages.layers import Setup, flagged
from streamimg3.store import Exposure, Observation
from streamimg3.store.documents import revive

_CODE = 2  # raised when what a tile is made from is told otherwise
_FILE = "tiles.json"
_WHOLE = 0.8  # share of a tile above which all of it is made again
_PLACE = ("exposure", "path", "row")  # of a layer: where its pixels lie, which changes none of them


@dataclass(frozen=True)
class TileMarks:
    """What the finished tiles of a mosaic were made from.

    Parameters
    ----------
    canvas : str
        Digest of its frame and planes.
    tiles : dict of str to str
        Digests of each tile's layers, in order.
    reach : dict of str to list of int
        For the digest of a layer, a box of mosaic pixels that holds all it can touch.
    parts : dict of str to list of int
        While the mosaic is being made: tiles of which only a box is made again.
    """

    canvas: str = ""
    tiles: dict[str, str] = field(default_factory=dict)
    reach: dict[str, list[int]] = field(default_factory=dict)
    parts: dict[str, list[int]] = field(default_factory=dict)


def read_marks(obs: Observation, name: str) -> TileMarks:
    """Return what is known of the tiles that a mosaic has; nothing, where nothing is."""
    data = obs.backend.get(_key(name))
    made: TileMarks = revive(TileMarks, json.loads(data)) if data is not None else TileMarks()
    return made


def write_marks(obs: Observation, name: str, marks: TileMarks) -> None:
    """Keep it. Tiles that are about to be written must not be among them."""
    obs.backend.put(_key(name), json.dumps(dataclasses.asdict(marks)).encode())


def _key(name: str) -> str:
    return f"receipts/{name}/{_FILE}"


def receipts_besides(obs: Observation, name: str) -> list[str]:
    """Return the digests under which there are receipts of a mosaic."""
    return [key for key in obs.backend.keys(f"receipts/{name}") if key != _FILE]


def marks_of(
    setup: Setup,
    exposures: Sequence[Exposure],
    tasks: Sequence[Task],
    sampling: object,
    bunit: str | None,
    reach: Sequence[Box],
) -> TileMarks:
    """Return what the tiles of a mosaic will have been made from.

    Parameters
    ----------
    setup : Setup
        The mosaic.
    exposures : sequence of Exposure
        Those of its layers, in order.
    tasks : sequence of Task
        One for each tile; their ``item`` names row, column and the bits of the layers.
    sampling : object
        A dataclass: how pixel maps are made.
    bunit : str or None
        Unit of the image.
    reach : sequence of Box
        For each layer, mosaic pixels beyond which it touches nothing.

    Returns
    -------
    TileMarks
        Of the integrations of cubes all tiles have one mark: any change makes all of them again.
    """
    if any(exposure.record.integrations for exposure in exposures):
        return TileMarks(setup.digest, {task.key: setup.digest for task in tasks})
    # the frame's text also tells how far the exposures reach (its bounding box), which moves no pixel
    frame = linear_terms(setup.target)
    text = setup.wcs_asdf if frame is None else json.dumps(frame)
    whole = dataclasses.asdict(dataclasses.replace(setup, digest="", layers=(), maps="", wcs_asdf=text))
    depth = -(-len(setup.layers) // 32) if "con" in setup.planes else 0
    canvas = digest(_CODE, whole, depth, dataclasses.asdict(sampling), bunit)  # type: ignore[call-overload]
    layers = [
        digest(
            {k: v for k, v in dataclasses.asdict(layer).items() if k not in _PLACE},
            exposure.record.checksums,
            _outliers(exposure) if flagged(exposure.observation) is not None and "outlier" in layer.planes else None,
        )[:16]
        for layer, exposure in zip(setup.layers, exposures, strict=True)
    ]
    made = {t.key: " ".join(layers[b] for b in t.item[2:]) for t in tasks if isinstance(t.item, tuple)}
    return TileMarks(canvas, made, {name: list(box.as_tuple()) for name, box in zip(layers, reach, strict=True)})


def _outliers(exposure: Exposure) -> str:
    """Digest of the flags of an exposure."""
    flags = exposure.read("outlier", Box.of_shape(exposure.record.shape))
    return hashlib.sha256(np.packbits(flags != 0).tobytes()).hexdigest()


def unchanged(before: TileMarks, now: TileMarks) -> set[str]:
    """Return the tiles that need not be made again.

    Examples
    --------
    >>> unchanged(TileMarks("a", {"r0": "1", "r1": "2"}), TileMarks("a", {"r0": "1", "r1": "3"}))
    {'r0'}
    """
    if before.canvas != now.canvas:
        return set()
    return {key for key, mark in now.tiles.items() if before.tiles.get(key) == mark}


def changed_parts(before: TileMarks, now: TileMarks, grid: TileGrid) -> dict[str, Box]:
    """Return the tiles of which a part need not be made again, and the box that must.

    Beyond what the layers reach that have joined or left, the same ones contribute in the same order.
    """
    if before.canvas != now.canvas:
        return {}
    known = before.reach | now.reach
    found = {}
    for tile in grid:
        old, new = (marks.tiles.get(tile.key, "").split() for marks in (before, now))
        common = set(old) & set(new)
        moved = [name for name in (*old, *new) if name not in common]
        if not common or not moved or [n for n in old if n in common] != [n for n in new if n in common]:
            continue
        touched = [box for name in moved if (box := Box(*known[name]).intersect(tile.box))]
        part = reduce(Box.union, touched) if touched else None
        if part is not None and part.size <= _WHOLE * tile.box.size:
            found[tile.key] = part
    return found


def clear_tiles(obs: Observation, setup: Setup, kept: Set[str]) -> None:
    """Remove all tiles but those that are kept, as they are or in part.

    Those that no exposure touches any more must be empty; and of those that are made again, a context plane to which no
    exposure contributes is not written. A tile is one shard of every plane, so that its bytes go and nothing is read.
    """
    depth = -(-len(setup.layers) // 32)
    keys = []
    for tile in TileGrid(setup.shape, setup.tile):
        if tile.key not in kept:
            place = f"{tile.row}/{tile.col}"
            for plane in setup.planes:
                leads = [f"{k}/" for k in range(depth)] if plane == "con" else [""]
                keys += [f"{setup.path}/{plane}/c/{lead}{place}" for lead in leads]
    obs.backend.remove(keys)
