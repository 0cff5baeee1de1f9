"""Flags against a plain NumPy reading of spec image3 §6.4 and §6.5."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from streamimg3.kernels.outliers import REACH, Thresholds, nan_median, resampled_outliers, stacked_outliers

F4 = NDArray[np.float32]


def scene(seed: int, shape: tuple[int, int] = (40, 50)) -> tuple[F4, F4, F4]:
    """Image with hits, error with NaN, and a median with gradients and holes."""
    rng = np.random.default_rng(seed)
    median = ndimage.gaussian_filter(rng.normal(0, 30, shape), 1.5).astype(np.float32)
    err = rng.uniform(0.5, 1.5, shape).astype(np.float32)
    sci = (median + rng.normal(0, 1, shape) * err).astype(np.float32)
    hits = rng.random(shape) < 0.03
    sci[hits] += rng.uniform(3, 30, hits.sum()).astype(np.float32)
    for plane in (median, err, sci):
        plane[rng.random(shape) < 0.02] = np.nan
    return sci, err, median


def expected(sci: F4, err: F4, median: F4, background: float, t: Thresholds) -> NDArray[np.bool_]:
    padded = np.pad(median, 1, constant_values=np.nan)
    around = [padded[1:-1, 2:], padded[1:-1, :-2], padded[2:, 1:-1], padded[:-2, 1:-1]]
    steps = np.nan_to_num(np.stack([np.abs(median - a) for a in around]))
    slope = np.where(np.isnan(median), np.float32(np.nan), steps.max(axis=0))
    noise = np.nan_to_num(err)
    excess = np.abs(sci - median - np.float32(background))
    first, second = (excess > np.float32(t.scale[k]) * slope + np.float32(t.snr[k]) * noise for k in (0, 1))
    grown: NDArray[np.bool_] = ndimage.binary_dilation(first, np.ones((3, 3)))
    return grown & second


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**16), st.floats(-5, 5), st.sampled_from([Thresholds(), Thresholds((8.0, 5.0), (2.5, 0.7))]))
def test_as_written_in_the_specification(seed: int, background: float, thresholds: Thresholds) -> None:
    sci, err, median = scene(seed)
    found = resampled_outliers(sci, err, median, background, thresholds)
    np.testing.assert_array_equal(found, expected(sci, err, median, background, thresholds))


def test_hits_are_found() -> None:
    """The scene is one in which flags differ from none and from all."""
    found = resampled_outliers(*scene(3), 0.0, Thresholds())
    assert 20 < found.sum() < 200


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**16), st.integers(3, 37))
def test_bands(seed: int, cut: int) -> None:
    """Two bands that overlap by the reach give the flags of the whole."""
    sci, err, median = scene(seed)
    whole = resampled_outliers(sci, err, median, 0.0, Thresholds())
    low = resampled_outliers(*(p[: cut + REACH].copy() for p in (sci, err, median)), 0.0, Thresholds())[:cut]
    start = max(0, cut - REACH)
    high = resampled_outliers(*(p[start:].copy() for p in (sci, err, median)), 0.0, Thresholds())[cut - start :]
    np.testing.assert_array_equal(np.concatenate([low, high]), whole)


def test_without_error_the_slope_decides() -> None:
    """NaN in ERR counts as zero noise; NaN in the median never flags."""
    sci, err, median = (np.zeros((5, 5), np.float32) for _ in range(3))
    err[2, 2], sci[2, 2] = np.nan, 0.001
    sci[0, 0], median[0, 0] = 1000.0, np.nan
    found = resampled_outliers(sci, err, median, 0.0, Thresholds())
    assert found[2, 2] and found.sum() == 1


def test_in_detector_pixels() -> None:
    """No growth, no slope, one threshold."""
    sci, err, median = scene(5)
    found = stacked_outliers(sci, err, median, 5.0)
    np.testing.assert_array_equal(found, np.abs(sci - median) > np.float32(5.0) * np.nan_to_num(err))
    assert found.any() and not found.all()


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 7])
def test_median(layers: int) -> None:
    """NumPy's nan-median in single precision; NaN where nothing is left."""
    rng = np.random.default_rng(layers)
    stack = rng.normal(100, 10, (layers, 30, 31)).astype(np.float32)
    stack[rng.random(stack.shape) < 0.3] = np.nan
    stack[:, 3, 4] = np.nan
    filled = np.where(np.isnan(stack).all(axis=0), np.float32(0.0), stack)
    wanted = np.where(np.isnan(stack).all(axis=0), np.nan, np.nanmedian(filled, axis=0)).astype(np.float32)
    found = nan_median(stack)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, wanted)
