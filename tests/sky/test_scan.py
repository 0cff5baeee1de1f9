"""Which pixels take part in a drizzle: those whose centres fall on the mosaic, exactly as the drizzle library picks them."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamimg3.geometry import Box
from streamimg3.kernels.drizzle import Kernel
from streamimg3.sky.scan import row_limits
from tests.kernels.scenes import Scene, library, make_scene, ours, turned_map

SHAPE = (34, 41)
MOSAIC = (48, 52)
angles = st.floats(0.0, 360.0)
ratios = st.floats(0.33, 2.2)
centres = st.tuples(st.floats(-12.0, 60.0), st.floats(-12.0, 64.0))  # from fully inside to barely overlapping


def limits_of(scene: Scene, scan: Box | None = None) -> NDArray[np.int32]:
    """Row limits of an exposure in the mosaic."""
    ny, nx = scene.shape

    def lookup(y: NDArray[np.int64], x: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        inside = (y >= 0) & (y < ny) & (x >= 0) & (x < nx)
        j, i = np.clip(y, 0, ny - 1), np.clip(x, 0, nx - 1)
        return np.where(inside, scene.y[j, i], np.nan), np.where(inside, scene.x[j, i], np.nan)

    return row_limits(lookup, scene.shape, scan or Box.of_shape(scene.shape), MOSAIC)


def scene_at(angle: float, ratio: float, centre: tuple[float, float], bend: float = 2e-4) -> Scene:
    """An exposure anywhere about the mosaic, with its row limits."""
    scene = make_scene(1, SHAPE, turned_map(SHAPE, angle, ratio, centre, bend))
    return replace(scene, limits=limits_of(scene))


def used_pixels(limits: NDArray[np.int32], shape: tuple[int, int]) -> NDArray[np.bool_]:
    columns = np.arange(shape[1])
    return (columns >= limits[:, :1]) & (columns <= limits[:, 1:])


def depth_inside(scene: Scene) -> NDArray[np.float64]:
    """How far inside the mosaic each centre lies, mosaic pixels; negative outside."""
    sides = [scene.y + 0.5, MOSAIC[0] - 0.5 - scene.y, scene.x + 0.5, MOSAIC[1] - 0.5 - scene.x]
    return np.min(sides, axis=0)


def no_tie(centre: tuple[float, float]) -> bool:
    """The middle of the exposure is not on the line of a rim, where the library's search goes astray (see below)."""
    (y, x), (ny, nx) = centre, MOSAIC
    return min(abs(y + 0.5), abs(y - ny + 0.5), abs(x + 0.5), abs(x - nx + 0.5)) > 1e-3


@settings(max_examples=60, deadline=None)
@given(angle=angles, ratio=ratios, centre=centres.filter(no_tie))
def test_centres_outside_never_take_part_and_those_inside_do(
    angle: float, ratio: float, centre: tuple[float, float]
) -> None:
    scene = scene_at(angle, ratio, centre, bend=1e-5)  # edges are taken as straight; these bend by 0.02 px at most
    depth = depth_inside(scene) * ratio  # in exposure pixels, in which the search and the scan work
    used = used_pixels(scene.limits, SHAPE)
    # The search for the corners stops at 0.03 px, and limits are moved outwards by as much.  Edges along rows are
    # rounded to rows: there a centre may lie half a pixel outside, as in the library.
    slack = 0.05 if 10.0 < angle % 90.0 < 80.0 else 0.55
    assert not used[depth < -slack].any()
    # Limits are moved inwards by (1 + slope) / 2 and rounded: at most 1.12 px across the edge, plus the search.
    assert used[depth > 1.2].all()


@settings(max_examples=60, deadline=None)
@given(angle=angles, ratio=ratios, centre=centres.filter(no_tie), name=st.sampled_from(["point", "square", "turbo"]))
def test_the_same_pixels_as_the_library(angle: float, ratio: float, centre: tuple[float, float], name: str) -> None:
    scene = scene_at(angle, ratio, centre)
    assume(used_pixels(scene.limits, SHAPE).any())  # the library does not say what it does with an empty overlap
    kernel = Kernel(name, 1.0, ratio)
    canvas, _ = ours([scene], kernel, MOSAIC)
    image, _ = library([scene], kernel, MOSAIC)
    np.testing.assert_array_equal(canvas.context, image.out_ctx[0])
    np.testing.assert_array_equal(canvas.weight, image.out_wht)
    np.testing.assert_array_equal(canvas.data[0], image.out_img)


@pytest.mark.parametrize("angle", [0.0, 90.0, 180.0, 270.0])
@pytest.mark.parametrize("centre", [(-0.5, 6.0), (-0.5, 48.0), (47.5, 40.0), (22.0, -0.5), (47.5, 51.5)])
def test_a_rim_through_the_middle_of_an_exposure(centre: tuple[float, float], angle: float) -> None:
    """The search's trial points are then equally far from the corner that it looks for.

    The drizzle library lets the last trial win a tie and so loses up to half of the exposure; a mosaic that ends at
    the middle row of an image is nothing unusual.
    """
    for ratio, bend in product((0.5, 0.75, 1.0, 2.0), (0.0, 1e-5)):
        scene = scene_at(angle, ratio, centre, bend)
        depth = depth_inside(scene) * ratio
        used = used_pixels(scene.limits, SHAPE)
        assert used[depth > 1.2].all()
        assert not used[depth < -0.55].any()


def test_right_angles() -> None:
    """Edges along rows and columns: the vertices of the search may coincide."""
    for angle in (0.0, 90.0, 180.0, 270.0):
        for centre in ((24.0, 26.0), (3.0, 26.0), (24.5, 1.25), (47.0, 51.0)):
            scene = scene_at(angle, 1.0, centre, bend=0.0)
            canvas, _ = ours([scene], Kernel("point"), MOSAIC)
            image, _ = library([scene], Kernel("point"), MOSAIC)
            np.testing.assert_array_equal(canvas.context, image.out_ctx[0])
            assert not used_pixels(scene.limits, SHAPE)[depth_inside(scene) < -0.05].any()


@settings(max_examples=30, deadline=None)
@given(angle=angles, ratio=ratios)
def test_an_exposure_fully_inside_takes_part_whole(angle: float, ratio: float) -> None:
    scene = make_scene(1, (9, 10), turned_map((9, 10), angle, ratio, (24.0, 26.0)))
    # Its diagonal is 14 px, 41 mosaic pixels at most.
    assert (limits_of(scene) == [0, 9]).all()


@settings(max_examples=30, deadline=None)
@given(angle=angles, ratio=ratios, far=st.floats(90.0, 1e5), axis=st.booleans(), sign=st.sampled_from([-1, 1]))
def test_an_exposure_outside_does_not_take_part(angle: float, ratio: float, far: float, axis: bool, sign: int) -> None:
    centre = (24.0 + sign * far / ratio * axis * 1.1, 26.0 + sign * far / ratio * (not axis) * 1.1)
    assert (scene_at(angle, ratio, centre).limits == [0, -1]).all()


def test_only_the_scanned_box_takes_part() -> None:
    scene = scene_at(10.0, 1.0, (24.0, 26.0))
    scan = Box(4, 6, 30, 39)
    limits = limits_of(scene, scan)
    used = used_pixels(limits, SHAPE)
    inside = np.zeros(SHAPE, bool)
    inside[scan.slices] = True
    assert not used[~inside].any()
    np.testing.assert_array_equal(used, used_pixels(scene.limits, SHAPE) & inside)


def test_a_map_with_gaps_at_the_corners_is_scanned_whole() -> None:
    """Without corners there is no outline; the library then takes every pixel that has coordinates."""
    scene = make_scene(1, SHAPE, turned_map(SHAPE, 20.0, 1.0, (24.0, 26.0)))
    scene.x[:2, :2] = scene.y[-2:, -2:] = np.nan
    limits = limits_of(scene)
    assert (limits == [0, SHAPE[1] - 1]).all()
