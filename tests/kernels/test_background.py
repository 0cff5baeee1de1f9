"""Background meshes: the same bits as photutils, for any tiling, any bands and any pattern of missing pixels."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamimg3.kernels.background import (
    BoxStatistics,
    Mesh,
    background_mesh,
    box_statistics,
    clamp_boxsize,
    solve_mesh,
    whole_mesh,
)
from streamimg3.kernels.clip import Clipped, clip_image, clip_single, clip_vector, middle_values

F4 = NDArray[np.float32]
Bool = NDArray[np.bool_]


def scene(shape: tuple[int, int], nan: float = 0.01, flagged: float = 0.01, seed: int = 1) -> tuple[F4, Bool]:
    """A sloping noisy background with outliers, missing and flagged pixels, of which some are infinite."""
    rng = np.random.default_rng(seed)
    y, x = np.indices(shape)
    data = rng.normal(3 + 0.003 * y + 0.002 * x, 1).astype(np.float32)
    data[rng.random(shape) < 0.01] += np.float32(100)
    data[rng.random(shape) < nan] = np.nan
    data[rng.random(shape) < nan / 5] = np.inf
    return data, rng.random(shape) < flagged


def bands_of(data: F4, bad: Bool, rows: int) -> Iterator[tuple[F4, Bool]]:
    return ((data[y : y + rows], bad[y : y + rows]) for y in range(0, data.shape[0], rows))


def full_maps(mesh: Mesh, bad: Bool) -> tuple[F4, F4]:
    """Both maps of the whole image, with zeros where pixels are flagged as photutils has them."""
    background, rms = mesh.window(0, 0, *mesh.shape)
    background[bad], rms[bad] = 0, 0
    return background, rms


def photutils_maps(data: F4, bad: Bool, boxsize: int) -> tuple[F4, F4, F4, F4]:
    """Background map, noise map and the two meshes as the reference makes them."""
    astropy = pytest.importorskip("astropy.stats")
    photutils = pytest.importorskip("photutils.background")
    options = {
        "filter_size": (3, 3),
        "coverage_mask": bad,
        "sigma_clip": astropy.SigmaClip(sigma=3.0),
        "bkg_estimator": photutils.MedianBackground(),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are NaN
        try:
            found = photutils.Background2D(data, boxsize, **options)
        except ValueError:
            found = photutils.Background2D(data, data.shape, exclude_percentile=100.0, **options)
        return found.background, found.background_rms, found.background_mesh, found.background_rms_mesh


CASES = [
    ((160, 160), 64, 0.0),  # incomplete boxes all around
    ((160, 160), 80, 0.05),  # whole boxes only
    ((159, 159), 80, 0.01),  # the corner box is good enough to count, and is clipped in float32
    ((159, 90), 80, 0.01),
    ((101, 77), 7, 0.02),
    ((33, 47), 3, 0.05),  # boxes of less than 10 pixels
    ((60, 70), 1000, 0.01),  # one box, shorter than asked for
    ((60, 70), 20, 0.3),  # all boxes are too poor: the whole image is one
    ((1, 50), 10, 0.0),
    ((50, 1), 7, 0.0),
    ((5, 5), 1, 0.0),
    ((120, 40), 400, 0.0),
]


@pytest.mark.parametrize(("shape", "boxsize", "nan"), CASES)
def test_maps_equal_photutils_bit_for_bit(shape: tuple[int, int], boxsize: int, nan: float) -> None:
    data, bad = scene(shape, nan)
    mesh = background_mesh(data, bad, boxsize)
    assert mesh is not None
    background, rms, median_mesh, rms_mesh = photutils_maps(data, bad, boxsize)
    np.testing.assert_array_equal(mesh.median, median_mesh)
    np.testing.assert_array_equal(mesh.rms, rms_mesh)
    for ours, theirs in zip(full_maps(mesh, bad), (background, rms), strict=True):
        assert ours.dtype == theirs.dtype == np.float32
        np.testing.assert_array_equal(ours, theirs)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_pattern_of_missing_boxes_equals_photutils(data: st.DataObject) -> None:
    """Whole boxes are blanked: which neighbours fill the gaps, and how they are weighted, is the same."""
    ny, nx = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    missing = np.array(data.draw(st.lists(st.booleans(), min_size=ny * nx, max_size=ny * nx))).reshape(ny, nx)
    extra = data.draw(st.tuples(st.integers(0, 7), st.integers(0, 7)))
    pixels, bad = scene((ny * 8 + extra[0], nx * 8 + extra[1]), nan=0.0, seed=data.draw(st.integers(0, 99)))
    blank = np.kron(missing, np.ones((8, 8), np.bool_))
    pixels[: ny * 8, : nx * 8][blank] = np.nan
    if not np.isfinite(pixels[~bad]).any():
        assert background_mesh(pixels, bad, 8) is None
        return
    mesh = background_mesh(pixels, bad, 8)
    assert mesh is not None
    for ours, theirs in zip(full_maps(mesh, bad), photutils_maps(pixels, bad, 8), strict=False):
        np.testing.assert_array_equal(ours, theirs)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_window_is_a_part_of_the_whole_map(data: st.DataObject) -> None:
    ny, nx, by, bx = (data.draw(st.integers(1, n)) for n in (7, 7, 9, 9))
    shape = data.draw(st.integers((ny - 1) * by + 1, ny * by)), data.draw(st.integers((nx - 1) * bx + 1, nx * bx))
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    median, rms = rng.normal(size=(2, ny, nx)).astype(np.float32)
    mesh = Mesh(median, rms, (by, bx), shape)
    y0, x0 = data.draw(st.integers(0, shape[0] - 1)), data.draw(st.integers(0, shape[1] - 1))
    y1, x1 = data.draw(st.integers(y0 + 1, shape[0])), data.draw(st.integers(x0 + 1, shape[1]))
    for part, whole in zip(mesh.window(y0, x0, y1, x1), mesh.window(0, 0, *shape), strict=True):
        np.testing.assert_array_equal(part, whole[y0:y1, x0:x1])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 31), st.integers(1, 31), st.integers(0, 99))
def test_splines_equal_scipy_zoom(ny: int, nx: int, by: int, bx: int, seed: int) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    values = np.random.default_rng(seed).normal(size=(ny, nx)).astype(np.float32)
    mesh = Mesh(values, values, (by, bx), (ny * by, nx * bx))
    zoomed = ndimage.zoom(values, (by, bx), order=3, mode="reflect", grid_mode=True)
    np.testing.assert_array_equal(mesh.noise(0, 0, *mesh.shape), np.clip(zoomed, values.min(), values.max()))


def test_a_constant_mesh_gives_a_constant_map() -> None:
    mesh = Mesh(np.full((3, 4), 0.1, np.float32), np.full((3, 4), 2.5, np.float32), (5, 7), (14, 28))
    background, rms = mesh.window(3, 2, 14, 28)
    assert (background == np.float32(0.1)).all() and (rms == np.float32(2.5)).all()


@pytest.mark.parametrize("window", [(0, 0, 0, 5), (3, 0, 2, 5), (-1, 0, 3, 5), (0, 0, 15, 5), (0, 0, 3, 29)])
def test_windows_outside_the_image_are_refused(window: tuple[int, int, int, int]) -> None:
    mesh = Mesh(np.ones((3, 4), np.float32), np.ones((3, 4), np.float32), (5, 7), (14, 28))
    with pytest.raises(ValueError, match="outside an image"):
        mesh.window(*window)


def test_a_mesh_survives_pickling() -> None:
    data, bad = scene((100, 100))
    mesh = background_mesh(data, bad, 30)
    assert mesh is not None
    again = pickle.loads(pickle.dumps(mesh))
    np.testing.assert_array_equal(again.window(3, 4, 90, 80), mesh.window(3, 4, 90, 80))


@pytest.mark.parametrize("height", [1, 2, 5])
def test_rows_of_boxes_can_be_streamed(height: int) -> None:
    data, bad = scene((150, 95), seed=3)
    size = clamp_boxsize(16, (150, 95))
    whole = box_statistics(data, bad, size)
    rows = [slice(y, y + height * 16) for y in range(0, 150, height * 16)]
    joined = BoxStatistics.stack([box_statistics(data[row], bad[row], size) for row in rows])
    for name in ("median", "rms", "count"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))


def test_statistics_leave_the_pixels_as_they_are() -> None:
    data, bad = scene((40, 40))
    before = data.copy()
    assert background_mesh(data, bad, 40) is not None
    np.testing.assert_array_equal(data, before)


def test_boxes_need_more_than_nine_tenths_of_their_pixels() -> None:
    data = np.ones((10, 20), np.float32)
    bad = np.zeros((10, 20), np.bool_)
    bad.flat[np.arange(10) * 20] = True  # exactly 10 of the first box's 100 pixels
    found = box_statistics(data, bad, (10, 10))
    assert found.count.tolist() == [[90, 100]]
    data[:, 10:] = 5
    mesh = solve_mesh(box_statistics(data, bad, (10, 10)), (10, 10), (10, 20))
    assert mesh is not None and mesh.median.tolist() == [[5, 5]]
    found.count[:] = 90
    assert solve_mesh(found, (10, 10), (10, 20)) is None


def test_an_image_without_good_pixels_has_no_mesh() -> None:
    nothing = np.full((30, 30), np.nan, np.float32)
    clear = np.zeros((30, 30), np.bool_)
    assert background_mesh(nothing, clear, 10) is None
    assert background_mesh(np.ones((30, 30), np.float32), ~clear, 10) is None
    assert np.isnan(box_statistics(nothing, clear, (10, 10)).median).all()


def slow_clip(values: list[float]) -> tuple[float, float, int]:
    """The definition, word by word, in double: survivors of the last round's interval."""
    sample = np.sort(np.array([v for v in values if np.isfinite(v)], np.float64))
    everything, low, high = sample, -np.inf, np.inf
    for _ in range(5):
        low, high = (np.median(sample) + k * sample.std() for k in (-3.0, 3.0))
        kept = sample[(sample >= low) & (sample <= high)]
        if kept.size == sample.size:
            break
        sample = kept
    left = everything[(everything >= low) & (everything <= high)]
    return float(np.median(left)), float(left.std()), left.size


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-60, 60), min_size=3, max_size=40),
    st.lists(st.sampled_from([1e3, np.nan, np.inf]), max_size=9),
)
def test_both_ways_of_clipping_follow_the_definition(regular: list[int], odd: list[float]) -> None:
    """Sixteenths add up exactly, so that nothing here hangs on the order of additions."""
    values = [v / 16 for v in regular] + odd
    vector = np.array(values, np.float32)
    line = vector.reshape(-1, 1)
    of_image = clip_image(lambda: bands_of(line, np.zeros(line.shape, np.bool_), 4), line.size)
    of_vector = clip_vector(vector.copy())
    median, std, count = slow_clip(values)
    for found in (of_vector, of_image):
        assert found.left == count
        assert found.median == pytest.approx(median, rel=1e-6)
        assert found.rms == pytest.approx(std, rel=1e-5, abs=1e-6)  # float32 sums


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 70), st.integers(0, 99))
def test_an_image_clipped_in_bands_equals_one_in_memory(ny: int, nx: int, rows: int, seed: int) -> None:
    """Also for the rounding of float32 sums, which depends on their order."""
    data, bad = scene((ny, nx), nan=0.05, flagged=0.05, seed=seed)
    streamed = clip_image(lambda: bands_of(data, bad, rows), data.size)
    in_memory = clip_vector(np.where(bad, np.float32(np.nan), data).ravel())
    np.testing.assert_array_equal(streamed, in_memory)


def test_large_sums_are_rounded_as_numpy_does() -> None:
    """More than 8192 values, so that a sum in blocks of NumPy's buffer would differ."""
    data, bad = scene((301, 333))
    found = clip_image(lambda: bands_of(data, bad, 17), data.size)
    mesh = whole_mesh(lambda: bands_of(data, bad, 64), data.shape)
    _, _, median, rms = photutils_maps(data, bad | (np.indices(data.shape)[1] % 3 == 0), 50)
    assert mesh is not None and (mesh.median[0, 0], mesh.rms[0, 0]) == found[:2]
    bad = bad | (np.indices(data.shape)[1] % 3 == 0)
    mesh = background_mesh(data, bad, 50)
    assert mesh is not None and mesh.rms.shape == (1, 1)
    np.testing.assert_array_equal((mesh.median, mesh.rms), (median, rms))


def test_bands_must_make_up_the_image() -> None:
    data, bad = scene((20, 20))
    with pytest.raises(ValueError, match="the image 399"):
        clip_image(lambda: bands_of(data, bad, 6), 399)
    with pytest.raises(ValueError, match="the image 401"):
        clip_image(lambda: bands_of(data, bad, 6), 401)


@pytest.mark.parametrize("values", [[], [np.nan, np.inf, -np.inf]])
def test_nothing_to_clip(values: list[float]) -> None:
    sample = np.array(values, np.float32)
    flags = np.zeros((1, sample.size), np.bool_)
    for found in (
        clip_vector(sample.copy()),
        clip_single(sample),
        clip_image(lambda: [(sample[None], flags)], sample.size),
    ):
        assert isinstance(found, Clipped) and found.left == 0
        assert np.isnan(found.median) and np.isnan(found.rms)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=True, allow_infinity=False), min_size=1, max_size=60), st.integers(1, 9))
def test_middle_values_of_any_floats(values: list[float], rows: int) -> None:
    data = np.array(values, np.float32).reshape(-1, 1)
    finite = np.sort(data[np.isfinite(data)])
    if finite.size:
        low, high = middle_values(lambda: (data[y : y + rows] for y in range(0, data.size, rows)))
        assert (low, high) == (finite[(finite.size - 1) // 2], finite[finite.size // 2])
