"""However the mosaic is cut and however an exposure is fed, the bits are the same; and flux is conserved."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamimg3.geometry import Box, TileGrid
from streamimg3.kernels.drizzle import Canvas, Kernel, drizzle
from tests.kernels.scenes import Scene, blank, make_scene, masked, ours, turned_map

SHAPE = (21, 24)
MOSAIC = (37, 41)
PLANES = ("data", "weight", "context", "noise", "dq")
kernels = st.builds(
    Kernel,
    st.sampled_from(["square", "turbo", "point", "gaussian", "lanczos2", "lanczos3"]),
    st.sampled_from([1.0, 0.8, 0.5, 0.0]),
    st.floats(0.33, 2.2),
)
angles = st.floats(0.0, 360.0)
centres = st.tuples(st.floats(-6.0, 43.0), st.floats(-6.0, 47.0))  # from fully inside to barely overlapping


def scene_of(kernel: Kernel, angle: float, centre: tuple[float, float], holes: bool = False) -> Scene:
    """An exposure anywhere on the mosaic, with gaps in its map if asked."""
    maps = turned_map(SHAPE, angle, kernel.ratio, centre)
    if holes:
        maps[0][3, 4] = maps[1][15, 9] = np.nan
    return make_scene(1, SHAPE, maps)


def assert_tiles_equal(whole: Canvas, tile: Canvas, box: Box) -> None:
    """All planes of a tile are those of the whole canvas there, bit by bit."""
    rows, cols = box.slices
    for name in PLANES:
        cut = getattr(whole, name)
        cut = cut[:, rows, cols] if name == "data" else cut[rows, cols]
        assert getattr(tile, name).tobytes() == np.ascontiguousarray(cut).tobytes(), name


@settings(max_examples=60, deadline=None)
@given(kernel=kernels, angle=angles, centre=centres, size=st.integers(3, 45), holes=st.booleans())
def test_tiles_are_cut_out_of_the_whole(
    kernel: Kernel, angle: float, centre: tuple[float, float], size: int, holes: bool
) -> None:
    scenes = [scene_of(kernel, angle, centre, holes), scene_of(kernel, angle + 40.0, (18.2, 20.7))]
    whole = blank(MOSAIC)
    for bit, scene in enumerate(scenes):
        drizzle(whole, scene.patch(), kernel, bit)
    for tile in TileGrid(MOSAIC, size):
        part = blank(tile.box.shape, (tile.box.y0, tile.box.x0))
        for bit, scene in enumerate(scenes):
            drizzle(part, scene.patch(), kernel, bit)
        assert_tiles_equal(whole, part, tile.box)


@settings(max_examples=40, deadline=None)
@given(kernel=kernels, angle=angles, centre=centres, cuts=st.sets(st.integers(1, SHAPE[0] - 1), max_size=6))
def test_bands_of_rows_equal_the_whole_exposure(
    kernel: Kernel, angle: float, centre: tuple[float, float], cuts: set[int]
) -> None:
    scene = scene_of(kernel, angle, centre, holes=True)
    whole, banded = blank(MOSAIC), blank(MOSAIC)
    drizzle(whole, scene.patch(), kernel, 31)
    edges = [0, *sorted(cuts), SHAPE[0]]
    for y0, y1 in pairwise(edges):
        drizzle(banded, scene.patch(Box(y0, 0, y1, SHAPE[1])), kernel, 31)
    assert_tiles_equal(whole, banded, Box.of_shape(MOSAIC))


@settings(max_examples=40, deadline=None)
@given(kernel=kernels, angle=angles, centre=centres, size=st.integers(4, 30), row=st.integers(0, 9))
def test_pixels_within_reach_are_enough_for_a_tile(
    kernel: Kernel, angle: float, centre: tuple[float, float], size: int, row: int
) -> None:
    """A window that holds every pixel whose mapped centre is within the kernel's reach gives the same tile."""
    scene = scene_of(kernel, angle, centre)
    tiles = list(TileGrid(MOSAIC, size))
    box = tiles[row % len(tiles)].box
    whole, part = blank(box.shape, (box.y0, box.x0)), blank(box.shape, (box.y0, box.x0))
    drizzle(whole, scene.patch(), kernel, 0)
    low, reach = 0.5, kernel.reach
    near = (scene.y >= box.y0 - low - reach) & (scene.y <= box.y1 - low + reach)
    near &= (scene.x >= box.x0 - low - reach) & (scene.x <= box.x1 - low + reach)
    if near.any():
        rows, cols = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
        window = Box(int(rows[0]), int(cols[0]), int(rows[-1]) + 1, int(cols[-1]) + 1)
        drizzle(part, scene.patch(window), kernel, 0)
    assert_tiles_equal(whole, part, Box.of_shape(box.shape))


@settings(max_examples=50, deadline=None)
@given(angle=angles, ratio=st.floats(0.33, 2.2), pixfrac=st.floats(0.1, 1.0), shift=st.floats(-0.5, 0.5))
def test_the_square_kernel_conserves_flux(angle: float, ratio: float, pixfrac: float, shift: float) -> None:
    side = int(40 / ratio) + 6  # the diagonal of an exposure is 32 pixels
    middle = (side - 1) / 2 + shift
    scene = make_scene(2, SHAPE, turned_map(SHAPE, angle, ratio, (middle, middle)))
    canvas, _ = ours([scene], Kernel("square", pixfrac, ratio), (side, side))
    weight = scene.weight.astype(float)
    # Each of the about ten contributions to a pixel rounds its sum and its mean to float32 (6e-8); errors partly cancel.
    assert canvas.weight.sum(dtype=float) == pytest.approx(weight.sum(), rel=1e-6)
    flux = (canvas.data[0].astype(float) * canvas.weight).sum()
    assert flux == pytest.approx((scene.data * weight).sum(), rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(angle=angles, first=st.integers(0, 20), last=st.integers(3, 23))
def test_row_limits_act_like_weights(angle: float, first: int, last: int) -> None:
    scene = scene_of(Kernel(), angle, (18.0, 20.0))
    scene.limits[:] = (first, last)
    scene.limits[7] = (0, -1)
    used = np.zeros(SHAPE, bool)
    used[:, first : last + 1] = True
    used[7] = False
    limited, open_ended = blank(MOSAIC), blank(MOSAIC)
    drizzle(limited, scene.patch(), Kernel(), 3)
    drizzle(open_ended, masked(scene_of(Kernel(), angle, (18.0, 20.0)), used).patch(), Kernel(), 3)
    assert_tiles_equal(open_ended, limited, Box.of_shape(MOSAIC))
