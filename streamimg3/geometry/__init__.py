"""Integers: boxes of pixels and grids of tiles (standard library only)."""

from streamimg3.geometry.box import Box
from streamimg3.geometry.grid import Tile, TileGrid

__all__ = ["Box", "Tile", "TileGrid"]
