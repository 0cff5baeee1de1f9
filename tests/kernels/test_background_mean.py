"""Mean backgrounds against recorded pixels of the reference and NumPy's masked arrays (spec others §1.2)."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from astropy.stats import sigma_clip
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from streamimg3.kernels.background_mean import (
    Clip,
    MeanBackground,
    _farthest,
    clip_integrations,
    mean_background,
    place,
    squared,
    subtract,
    uncovered,
)

F4 = NDArray[np.float32]
nan = np.nan


def pixel(*values: float) -> F4:
    return np.array(values, np.float32).reshape(-1, 1, 1)


def no_flags(values: NDArray[np.floating]) -> NDArray[np.uint32]:
    return np.zeros(values.shape, np.uint32)


# jwst 3.0.0: SCI and ERR of 12 backgrounds at a pixel; SCI and ERR of the combined background
RECORDED = [
    ((0.512815, 0.5865587, 0.53664696, 0.6098215, 0.5319234, 17.544577, 0.63147855, 0.74932265, 0.6028327, 0.6428206,
      0.68498725, 0.7533641),
     (0.050732646, 0.05185734, 0.05231538, 0.05345047, 0.05551272, 0.054845583, 0.05634733, 0.05716582, 0.058709554,
      0.059326272, 0.059131723, 0.060740948), (0.62205195, 0.016893907)),
    ((27.78851, 0.45033634, 0.5713149, 0.5528112, 0.4956575, nan, 0.6240558, 0.6099108, 0.6258397, 0.5762525,
      0.72868377, 0.77667224),
     (0.050911393, 0.052717827, 0.0529676, 0.053727947, 0.055060312, 0.055770528, 0.057153262, 0.05769424, 0.058188956,
      0.058684688, 0.05935874, 0.061065525), (0.6011535, 0.017938921)),
]  # fmt: skip
# The same of three backgrounds of 4, 5 and 12 integrations
RECORDED_CUBES = [
    (((0.45832503, 0.51258826, 0.5945157, 0.44075534), (0.42348325, 0.44241294, 0.42169666, 0.50608504, 0.4196491),
      (0.47802263, 0.5737688, 0.4213185, 0.47110587, 0.45539156, 0.55751354, 0.53395504, 8.1648855, 0.4774044, 0.6100283,
       0.4658705, 0.50324607)),
     ((0.048720207, 0.048338853, 0.048233096, 0.048241854),
      (0.04764795, 0.047972415, 0.04824519, 0.048367668, 0.048124693),
      (0.05211822, 0.052183684, 0.05191527, 0.052588362, 0.051832095, 0.052142836, 0.052108537, 0.0522702, 0.05252645,
       0.05253662, 0.052334256, 0.052483603)), (0.48284703, 0.028640319)),
    (((0.41640294, 0.47522327, 0.4599915, 0.38928413), (0.39059326, 0.47449973, 0.449336, 0.4181979, 0.44839156),
      (nan, 0.5065612, nan, 0.5185211, 0.47671083, 0.5688901, 0.5477756, 0.4656199, 0.6199988, 0.54012734, 0.44591632,
       0.550169)),
     ((0.0481303, 0.048099868, 0.047988456, 0.048502255),
      (0.048330374, 0.04833274, 0.04848354, 0.04830098, 0.0481677),
      (0.052130383, 0.051934116, 0.05230403, 0.05220874, 0.05163862, 0.052350648, 0.05204796, 0.052158777, 0.051660337,
       0.051801547, 0.052396264, 0.05219007)), (0.4651527, 0.02861174)),
]  # fmt: skip


@pytest.mark.parametrize(("sci", "err", "wanted"), RECORDED)
def test_recorded_pixels(sci: tuple[float, ...], err: tuple[float, ...], wanted: tuple[float, float]) -> None:
    found = mean_background(pixel(*sci), squared(pixel(*err)), no_flags(pixel(*sci)), Clip())
    assert (found.sci[0, 0], found.err[0, 0]) == tuple(np.float32(wanted))


@pytest.mark.parametrize(("sci", "err", "wanted"), RECORDED_CUBES)
def test_recorded_pixels_of_cubes(
    sci: tuple[tuple[float, ...], ...], err: tuple[tuple[float, ...], ...], wanted: tuple[float, float]
) -> None:
    each = [clip_integrations(pixel(*s), pixel(*e), no_flags(pixel(*s)), Clip()) for s, e in zip(sci, err, strict=True)]
    data, variance, dq = (np.stack(planes) for planes in zip(*each, strict=True))
    found = mean_background(data, variance, dq, Clip())
    assert (found.sci[0, 0], found.err[0, 0]) == tuple(np.float32(wanted))


stacks = st.integers(1, 14).flatmap(
    lambda n: arrays(
        np.float32,
        (n, 2, 3),
        elements=st.one_of(
            st.floats(-1e6, 1e6, width=32), st.integers(-3, 3).map(float), st.sampled_from([nan, np.inf, -np.inf])
        ),
        fill=st.just(0.5),
    )
)
clips = st.builds(Clip, st.sampled_from([1.0, 2.0, 2.5, 3.0]), st.sampled_from([None, None, 1, 2]))


def clipped(values: NDArray[np.floating], clip: Clip) -> np.ma.MaskedArray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sigma_clip(values, sigma=clip.sigma, maxiters=clip.maxiters, axis=0)


@settings(max_examples=120, deadline=None)
@given(stack=stacks, clip=clips, seed=st.integers(0, 2**32 - 1))
def test_mean_equals_masked_arrays(stack: F4, clip: Clip, seed: int) -> None:
    """Astropy's clipping and masked means in double precision; 0 where nothing is left."""
    rng = np.random.default_rng(seed)
    variance = rng.uniform(0.0, 2.0, stack.shape).astype(np.float32)
    dq = rng.integers(0, 2**32, stack.shape, np.uint32)
    found = mean_background(stack, variance, dq, clip)
    kept = clipped(stack.astype(float), clip)
    spread = np.ma.masked_array(variance.astype(float), mask=kept.mask).sum(axis=0)
    n = (~kept.mask).sum(axis=0)
    np.testing.assert_array_equal(found.sci, kept.mean(axis=0).filled(0.0).astype(np.float32))
    np.testing.assert_array_equal(
        found.err, np.where(n, np.sqrt(spread.filled(0.0)) / np.maximum(n, 1), 0.0).astype(np.float32)
    )
    np.testing.assert_array_equal(found.dq, np.bitwise_or.reduce(dq, axis=0))
    assert (found.sci.dtype, found.err.dtype, found.dq.dtype) == (np.float32, np.float32, np.uint32)
    assert uncovered(stack) == int((np.isfinite(stack).sum(axis=0) == 0).sum())


@settings(max_examples=120, deadline=None)
@given(stack=stacks, clip=clips)
def test_integrations_equal_masked_arrays(stack: F4, clip: Clip) -> None:
    """Sums in single precision, divided in double; NaN where nothing is left, so that it is no value to average."""
    err = np.abs(stack[::-1]) / np.float32(3.0)
    dq = np.arange(stack.size, dtype=np.uint32).reshape(stack.shape)
    found = clip_integrations(stack, err, dq, clip)
    with np.errstate(over="ignore"):
        wanted = [clipped(values, clip).mean(axis=0).filled(nan) for values in (stack, err * err)]
    np.testing.assert_array_equal(found.sci, wanted[0])
    np.testing.assert_array_equal(found.variance, wanted[1])
    np.testing.assert_array_equal(found.dq, np.bitwise_or.reduce(dq, axis=0))
    assert found.sci.dtype == found.variance.dtype == np.float64


@pytest.mark.parametrize("n", [1, 4, 9])
def test_a_background_without_a_value_counts_for_nothing(n: int) -> None:
    """NaN in all integrations is no background of 0."""
    empty = clip_integrations(pixel(*[nan] * n), pixel(*[nan] * n), no_flags(pixel(*[nan] * n)), Clip())
    assert np.isnan(empty.sci).all() and np.isnan(empty.variance).all()
    data, variance = np.stack([empty.sci, np.full((1, 1), 2.0)]), np.stack([empty.variance, np.full((1, 1), 9.0)])
    found = mean_background(data, variance, no_flags(data), Clip())
    assert (found.sci[0, 0], found.err[0, 0]) == (2.0, 3.0)


def test_an_outlier_needs_enough_company() -> None:
    """Among 7 no value is 3 deviations away; among 8 one of them can be."""
    for n, wanted in ((7, 101.0 / 7 + 6 / 7), (8, 1.0)):
        stack = pixel(*[1.0] * (n - 1), 102.0 - 1.0)
        found = mean_background(stack, np.ones_like(stack), no_flags(stack), Clip())
        assert found.sci[0, 0] == pytest.approx(wanted, rel=1e-6)


@given(arrays(np.float64, st.integers(2, 12), elements=st.floats(-100, 100, width=16)))
def test_none_is_farther_from_the_median_than_the_bound(values: NDArray[np.float64]) -> None:
    """Whether outliers are looked for at all rests on it; the farthest there can be is one beside equal ones and a few between."""
    spread = values.std()
    assert abs(values - np.median(values)).max() <= _farthest(len(values)) * spread * (1 + 1e-9) + 1e-12
    for n in (3, 5, 7, 9):
        between = (n - 1) // 2 - 1  # these are at the mean
        zeros = n - 1 - between
        worst = np.array([1.0] + [1 / (zeros + 1)] * between + [0.0] * zeros)
        assert 1 / worst.std() == pytest.approx(_farthest(n), rel=1e-12) and np.median(worst) == 0


def test_how_a_field_is_cut_makes_no_difference() -> None:
    rng = np.random.default_rng(4)
    cube = rng.normal(1.0, 0.2, (9, 12, 7)).astype(np.float32)
    cube[rng.random(cube.shape) < 0.1] *= 30.0
    cube[rng.random(cube.shape) < 0.1] = nan
    whole = clip_integrations(cube, np.abs(cube), no_flags(cube), Clip())
    mean = mean_background(cube, np.abs(cube), no_flags(cube), Clip())
    for j, i in np.ndindex(12, 7):
        part = cube[:, j : j + 1, i : i + 1]
        one = clip_integrations(part, np.abs(part), no_flags(part), Clip())
        assert np.array_equal(one.sci[0, 0], whole.sci[j, i], equal_nan=True)
        assert np.array_equal(one.variance[0, 0], whole.variance[j, i], equal_nan=True)
        two = mean_background(part, np.abs(part), no_flags(part), Clip())
        assert (two.sci[0, 0], two.err[0, 0]) == (mean.sci[j, i], mean.err[j, i])


corners = st.tuples(st.integers(1, 9), st.integers(1, 9))
shapes = st.tuples(st.integers(1, 8), st.integers(1, 8))


@settings(max_examples=150, deadline=None)
@given(science=corners, shape=shapes, background=corners, other=shapes, nints=st.integers(0, 2), flags=st.booleans())
def test_pixels_are_placed_where_they_are_on_the_detector(
    science: tuple[int, int],
    shape: tuple[int, int],
    background: tuple[int, int],
    other: tuple[int, int],
    nints: int,
    flags: bool,
) -> None:
    """Each pixel of a background holds its row and column on the detector; so does what is placed."""
    y, x = np.mgrid[: other[0], : other[1]]
    plane = ((y + background[0]) * 100 + x + background[1]).astype(np.uint32 if flags else np.float32)
    if nints:
        plane = np.stack([plane + 10000 * k for k in range(nints)]).astype(plane.dtype)
    found = place(plane, science, shape, background)
    assert found.dtype == plane.dtype and found.shape == (*plane.shape[:-2], *shape)
    for j, i in np.ndindex(shape):
        row, column = science[0] + j, science[1] + i
        inside = 0 <= row - background[0] < other[0] and 0 <= column - background[1] < other[1]
        for k, value in enumerate(np.ravel(found[..., j, i])):
            if inside:
                assert value == row * 100 + column + 10000 * k
            else:
                assert value == 0 if flags else np.isnan(value)


def test_every_integration_loses_the_background_and_gains_its_flags() -> None:
    sci = np.array([[[1.0, 2.0]], [[3.0, nan]]], np.float32)
    dq = np.array([[[0, 4]], [[2, 0]]], np.uint32)
    background = MeanBackground(np.array([[0.5, 0.25]], np.float32), np.ones((1, 2), np.float32), np.uint32([[1, 0]]))
    subtract(sci, dq, background)
    np.testing.assert_array_equal(sci, np.array([[[0.5, 1.75]], [[2.5, nan]]], np.float32))
    np.testing.assert_array_equal(dq, [[[1, 4]], [[3, 0]]])


def test_errors_that_overflow_are_silent() -> None:
    assert np.isinf(squared(pixel(3e38))).all()
