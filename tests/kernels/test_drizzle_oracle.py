"""Our kernels beside the drizzle library: the same bits in image, weight, context, flags and error planes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from streamimg3.kernels.drizzle import Canvas, Kernel, drizzle
from tests.kernels.scenes import Scene, blank, library, make_scene, masked, ours, turned_map

SHAPE = (26, 29)
KERNELS = [
    ("square", 1.0), ("square", 0.6), ("turbo", 1.0), ("turbo", 0.6), ("point", 1.0), ("gaussian", 1.0),
    ("lanczos2", 1.0), ("lanczos3", 1.0), ("lanczos3", 0.6), ("square", 0.001),
]  # fmt: skip
# The gaussian's weight is float32(g) x w in version 2.2, whose rounding we keep, and float32(g x w) in 3.0: weights differ
# by half a unit in the last place (6e-8), and running means of a dozen contributions by a few of those.
GAUSSIAN = 2e-6


def scenes_inside(ratio: float, count: int = 3) -> tuple[list[Scene], tuple[int, int]]:
    """Exposures turned by 13, 83, 153 ... degrees, all of them well inside the output image."""
    side = int(44 / ratio) + 14  # the diagonal of an exposure is 39 pixels, lanczos3 adds 3 on either side
    middle = (side - 1) / 2
    maps = [turned_map(SHAPE, 13 + 70 * k, ratio, (middle - 0.31 * k, middle + 0.17)) for k in range(count)]
    return [make_scene(k, SHAPE, m) for k, m in enumerate(maps)], (side, side)


def assert_same(found: np.ndarray, wanted: np.ndarray, kernel: Kernel) -> None:
    """Bits for all kernels but the gaussian."""
    if kernel.name == "gaussian":
        np.testing.assert_allclose(found, wanted, rtol=GAUSSIAN, atol=0)
    else:
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("name", "pixfrac"), KERNELS)
def test_planes_equal_the_library(name: str, pixfrac: float, ratio: float) -> None:
    kernel = Kernel(name, pixfrac, ratio)
    scenes, shape = scenes_inside(ratio)
    canvas, noise = ours(scenes, kernel, shape)
    image, errors = library(scenes, kernel, shape)
    assert (canvas.weight > 0).sum() > 200 / ratio**2  # it is not the empty image that agrees
    assert_same(canvas.data[0], image.out_img, kernel)
    assert_same(canvas.weight, image.out_wht, kernel)
    np.testing.assert_array_equal(canvas.context, image.out_ctx[0])
    np.testing.assert_array_equal(canvas.dq, image.out_dq)
    for mine, planes in zip(noise, errors, strict=True):
        for k, plane in enumerate(planes):
            assert_same(mine[..., 0], plane.out_wht, kernel)
            assert_same(mine[..., k + 1], plane.out_img, kernel)


@pytest.mark.parametrize("name", ["square", "turbo", "point", "lanczos3"])
def test_context_of_the_last_bit_equals_the_library(name: str) -> None:
    """Bit 31 makes the number negative; 32 exposures of which most miss most pixels."""
    kernel = Kernel(name)
    shape = (70, 70)
    centres = np.random.default_rng(5).uniform(30, 40, (32, 2))
    scenes = [make_scene(k, (8, 9), turned_map((8, 9), 11.0 * k, 1.0, tuple(c))) for k, c in enumerate(centres)]
    canvas, _ = ours(scenes, kernel, shape)
    image, _ = library(scenes, kernel, shape)
    assert (canvas.context < 0).any()
    np.testing.assert_array_equal(canvas.context, image.out_ctx[0])
    np.testing.assert_array_equal(canvas.data[0], image.out_img)


@pytest.mark.parametrize(("name", "pixfrac"), KERNELS)
def test_pixels_beside_a_gap_in_the_map_equal_the_library(name: str, pixfrac: float) -> None:
    kernel = Kernel(name, pixfrac)
    (scene, *_), shape = scenes_inside(1.0)
    for y, x in ((5, 5), (12, 20), (13, 20), (24, 27)):
        scene.x[y, x] = np.nan
    scene.y[12, 20] = np.nan
    canvas, _ = ours([scene], kernel, shape)
    image, _ = library([scene], kernel, shape)
    assert_same(canvas.data[0], image.out_img, kernel)
    assert_same(canvas.weight, image.out_wht, kernel)
    np.testing.assert_array_equal(canvas.context, image.out_ctx[0])


@pytest.mark.parametrize(("name", "lost"), [("square", 9), ("turbo", 1), ("point", 1), ("lanczos3", 1)])
def test_a_gap_in_the_map_drops_its_neighbours_in_the_square_kernel(name: str, lost: int) -> None:
    """The square kernel needs the eight values around a pixel; the others need its own only."""
    kernel = Kernel(name)
    (scene, *_), shape = scenes_inside(1.0)
    scene.y[10, 12] = np.nan
    near = np.zeros(SHAPE, bool)
    reach = int(lost**0.5) // 2
    near[10 - reach : 11 + reach, 12 - reach : 13 + reach] = True
    assert near.sum() == lost
    gap, _ = ours([scene], kernel, shape)
    (whole, *_), _ = scenes_inside(1.0)
    left_out, _ = ours([masked(whole, ~near)], kernel, shape)
    np.testing.assert_array_equal(gap.weight, left_out.weight)
    np.testing.assert_array_equal(gap.data, left_out.data)
    alone, _ = ours([masked(scene, near)], kernel, shape)
    assert not alone.weight.any()


@pytest.mark.parametrize(("name", "pixfrac"), KERNELS)
def test_weight_zero_leaves_nothing(name: str, pixfrac: float) -> None:
    (scene, *_), shape = scenes_inside(1.0)
    canvas, (noise,) = ours([masked(scene, np.zeros(SHAPE, bool))], Kernel(name, pixfrac), shape)
    for plane in (canvas.data, canvas.weight, canvas.context, canvas.dq, noise):
        assert not plane.any()


@pytest.mark.parametrize("name", ["square", "turbo", "point", "lanczos3"])
def test_values_without_weight_do_not_matter(name: str) -> None:
    """A NaN under weight 0 reaches nothing."""
    (scene, *_), shape = scenes_inside(1.0)
    hidden = replace(scene, data=np.where(scene.weight == 0, np.float32(np.nan), scene.data))
    clean, _ = ours([scene], Kernel(name), shape)
    canvas, _ = ours([hidden], Kernel(name), shape)
    np.testing.assert_array_equal(canvas.data, clean.data)


def test_a_tiny_drop_is_a_point() -> None:
    scenes, shape = scenes_inside(1.0)
    point, _ = ours(scenes, Kernel("point"), shape)
    for name in ("square", "turbo", "gaussian", "lanczos3"):
        tiny, _ = ours(scenes, Kernel(name, 0.001), shape)
        np.testing.assert_array_equal(tiny.data, point.data)
        np.testing.assert_array_equal(tiny.context, point.context)


def test_no_context_if_there_is_no_bit() -> None:
    (scene, *_), shape = scenes_inside(1.0)
    canvas = blank(shape)
    drizzle(canvas, scene.patch(), Kernel(), -1)
    assert canvas.weight.any() and not canvas.context.any()


def test_planes_that_share_the_weight_are_drizzled_alike() -> None:
    """A second data plane (the error, where it is drizzled like the image) gives what it would give by itself."""
    scenes, shape = scenes_inside(1.0)
    both = Canvas.blank((0, 0), shape, (2, 0))
    for bit, scene in enumerate(scenes):
        patch = scene.patch()
        pair = np.ascontiguousarray(np.stack([scene.data, scene.noise[0]]))
        none = (np.zeros((0, *SHAPE), np.float32), np.zeros((0, 0), np.uint32))
        drizzle(both, replace(patch, data=pair, noise=none[0], dq=none[1]), Kernel(), bit)
    first, _ = ours(scenes, Kernel(), shape)
    second, _ = ours([replace(s, data=s.noise[0]) for s in scenes], Kernel(), shape)
    np.testing.assert_array_equal(both.data[0], first.data[0])
    np.testing.assert_array_equal(both.data[1], second.data[0])
    np.testing.assert_array_equal(both.weight, first.weight)
