"""Grids of tiles: every pixel in one tile, and the tiles that a box touches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamimg3.geometry import Box, TileGrid

quick = settings(max_examples=60, deadline=None)
grids = st.builds(TileGrid, st.tuples(st.integers(1, 60), st.integers(1, 60)), st.integers(1, 70))


@quick
@given(grid=grids)
def test_tiles_cover_every_pixel_once(grid: TileGrid) -> None:
    count = np.zeros(grid.shape, int)
    for tile in grid:
        count[tile.box.slices] += 1
    assert (count == 1).all()
    assert len(list(grid)) == len(grid)


@quick
@given(grid=grids)
def test_tiles_come_in_order_and_their_keys_sort_alike(grid: TileGrid) -> None:
    tiles = list(grid)
    assert tiles == sorted(tiles)
    keys = [tile.key for tile in tiles]
    assert keys == sorted(keys) and len(set(keys)) == len(keys)
    assert all(grid.tile(tile.row, tile.col) == tile for tile in tiles)


@quick
@given(grid=grids)
def test_only_the_last_tiles_are_smaller(grid: TileGrid) -> None:
    rows, cols = grid.counts
    for tile in grid:
        if tile.row < rows - 1:
            assert tile.box.shape[0] == grid.size
        if tile.col < cols - 1:
            assert tile.box.shape[1] == grid.size
        assert max(tile.box.shape) <= grid.size


@quick
@given(
    grid=grids, y0=st.integers(-20, 80), x0=st.integers(-20, 80), height=st.integers(1, 60), width=st.integers(1, 60)
)
def test_touching_equals_looking_at_every_tile(grid: TileGrid, y0: int, x0: int, height: int, width: int) -> None:
    box = Box(y0, x0, y0 + height, x0 + width)
    assert list(grid.touching(box)) == [tile for tile in grid if tile.box.intersect(box) is not None]


@pytest.mark.parametrize(("shape", "size"), [((0, 5), 4), ((5, 0), 4), ((5, 5), 0), ((-1, 5), 4)])
def test_a_grid_of_nothing_is_refused(shape: tuple[int, int], size: int) -> None:
    with pytest.raises(ValueError, match="positive shape and tile size"):
        TileGrid(shape, size)
