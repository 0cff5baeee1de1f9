"""What each tile of a mosaic was made from, so that a change redoes only the tiles it touches."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence, Set
from dataclasses import dataclass, field

import numpy as np

from streamimg3.engine import Task
from streamimg3.engine.receipts import digest
from streamimg3.geometry import Box, TileGrid
from streamimg3.sky.mosaic_frame import linear_terms
from streamimg3.stages.layers import Setup, flagged
from streamimg3.store import Exposure, Observation
from streamimg3.store.documents import revive

_CODE = 1  # raised when what a tile is made from is told otherwise
_FILE = "tiles.json"
_PLACE = ("exposure", "path", "row")  # of a layer: where its pixels lie, which changes none of them


@dataclass(frozen=True)
class TileMarks:
    """The digest of the mosaic's frame and planes, and that of each finished tile's layers."""

    canvas: str = ""
    tiles: dict[str, str] = field(default_factory=dict)


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
    setup: Setup, exposures: Sequence[Exposure], tasks: Sequence[Task], sampling: object, bunit: str | None
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
        )
        for layer, exposure in zip(setup.layers, exposures, strict=True)
    ]
    made = {t.key: digest([layers[b] for b in t.item[2:]]) for t in tasks if isinstance(t.item, tuple)}
    return TileMarks(canvas, made)


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


def clear_tiles(obs: Observation, setup: Setup, kept: Set[str]) -> None:
    """Remove all tiles but those that are kept.

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
