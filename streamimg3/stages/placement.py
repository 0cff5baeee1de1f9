"""Where exposures lie in a mosaic: what tasks are made from, in far less memory than the pixel maps that tell it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from streamimg3.geometry import Box, TileGrid
from streamimg3.kernels.drizzle import Kernel
from streamimg3.sky.pixmap import PixelMap
from streamimg3.stages.layers import Setup


@dataclass(frozen=True, slots=True)
class Placed:
    """One exposure in a mosaic.

    Parameters
    ----------
    windows : mapping of (int, int) to Box
        Row and column of each tile that it touches, and the pixels of the exposure that do.
    reach : Box
        Pixels of the mosaic beyond which it touches nothing.
    nbytes : int
        Size of its pixel map.
    error : float
        Largest measured error of the map in mosaic pixels; NaN where it was not measured.
    slopes : tuple of (float, float) or None
        For rows and columns of the mosaic: how far one row of the exposure goes in them from end to end, and how far
        they move from one row of the exposure to the next; None where the map has gaps.
    """

    windows: Mapping[tuple[int, int], Box]
    reach: Box
    nbytes: int
    error: float
    slopes: tuple[tuple[float, float], tuple[float, float]] | None


def placed(found: PixelMap, setup: Setup) -> Placed:
    """Return where an exposure lies, by its map."""
    reach = Kernel(setup.kernel, setup.pixfrac, setup.ratio).reach
    windows, around = {}, found.around(reach)
    for tile in TileGrid(setup.shape, setup.tile).touching(around):
        cells = found.touching(tile.box, reach)
        if cells:
            windows[tile.row, tile.col] = functools.reduce(Box.union, cells)
    return Placed(windows, around, found.nbytes, found.error, slopes(found))


def slopes(found: PixelMap) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Return how a map goes along rows and columns of the exposure; see :class:`Placed`."""
    if not all(np.isfinite(plane).any() for plane in found.extent):
        return None
    height = max(1e-3, found.nodes[0][-1] - found.nodes[0][0])
    planes = (np.where(np.isfinite(plane), plane, np.nan) for plane in found.extent)
    y, x = (
        (float(np.nanmax(np.abs(p[:, -1] - p[:, 0]))), float(np.nanmax(np.abs(p[-1] - p[0])) / height)) for p in planes
    )
    return y, x


def by_tile(places: Iterable[tuple[int, Placed]]) -> Iterator[tuple[tuple[int, int], dict[int, Box]]]:
    """Yield tiles in row-major order with the pixels of each numbered exposure that touch them."""
    windows: dict[tuple[int, int], dict[int, Box]] = {}
    for number, place in places:
        for key, box in place.windows.items():
            windows.setdefault(key, {})[number] = box
    for key in sorted(windows):
        yield key, windows.pop(key)
