"""Smoothing: the bits of astropy's convolution where there are bad pixels, and of any window."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from astropy.convolution import Gaussian2DKernel, convolve
from hypothesis import given, settings
from hypothesis import strategies as st

from streamimg3.kernels.smooth import SIGMA_PER_FWHM, gaussian, smooth

RNG = np.random.default_rng(3)
DATA = RNG.normal(size=(60, 70)).astype(np.float32)
DATA[20:33, 30:44] = np.nan
BAD = RNG.random(DATA.shape) < 0.02


def padded(fwhm: float) -> np.ndarray:
    half = gaussian(fwhm).shape[0] // 2
    return smooth(np.pad(DATA, half), np.pad(BAD, half), gaussian(fwhm))


@pytest.mark.parametrize("fwhm", [1.0, 2.0, 2.5, 3.3])
def test_kernel_and_image_are_astropys(fwhm: float) -> None:
    kernel = Gaussian2DKernel(fwhm * SIGMA_PER_FWHM)
    np.testing.assert_array_equal(gaussian(fwhm), kernel.array)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # astropy tells of pixels without any good neighbour
        expected = convolve(DATA, kernel, mask=BAD)
    np.testing.assert_array_equal(padded(fwhm), expected)
    assert padded(fwhm).dtype == np.float32


def test_without_bad_pixels_the_last_bits_may_differ() -> None:
    """Astropy divides by another sum of the kernel there: one float32 rounding."""
    data = np.nan_to_num(DATA)
    expected = convolve(data, Gaussian2DKernel(2.0 * SIGMA_PER_FWHM))
    found = smooth(np.pad(data, 3), np.zeros((66, 76), np.bool_), gaussian(2.0))
    np.testing.assert_allclose(found, expected, rtol=1.2e-7, atol=1e-8)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 50), st.integers(0, 60), st.integers(1, 30), st.integers(1, 30))
def test_a_window_has_the_bits_of_the_whole(y: int, x: int, ny: int, nx: int) -> None:
    cut = np.s_[y : min(y + ny, 60) + 6, x : min(x + nx, 70) + 6]
    found = smooth(
        np.ascontiguousarray(np.pad(DATA, 3)[cut]), np.ascontiguousarray(np.pad(BAD, 3)[cut]), gaussian(2.0)
    )  # fmt: skip
    np.testing.assert_array_equal(found, padded(2.0)[y : y + ny, x : x + nx])


def test_no_width_changes_nothing() -> None:
    np.testing.assert_array_equal(smooth(DATA, np.zeros(DATA.shape, np.bool_), gaussian(0.0)), DATA)
