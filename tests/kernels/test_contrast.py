"""Contrast curves against one loop over rings and pixels, written from the specification (others §3.7)."""

from __future__ import annotations

import math

import numpy as np
import pytest

from streamimg3.kernels.contrast import centre, contrast_curve, snr_image


@pytest.mark.parametrize("shape", [(20, 20), (21, 21), (23, 30), (30, 23), (5, 40), (2, 2)])
@pytest.mark.parametrize("width", [1, 2, 3, 7])
def test_rings(shape: tuple[int, int], width: int) -> None:
    image = np.random.default_rng(2).normal(100.0, 3.0, shape).astype(np.float32)
    image[0, 1] = image[shape[0] // 2, shape[1] // 2] = np.nan
    y0, x0 = round(shape[0] / 2) - 1, round(shape[1] / 2) - 1
    radius, sigma = [], []
    for inner in range(0, min(y0, x0), width):
        ring = [
            float(value)
            for (y, x), value in np.ndenumerate(image)
            if inner <= math.hypot(y - y0, x - x0) < inner + width and not math.isnan(value)
        ]
        radius.append(inner + width / 2)
        sigma.append(np.std(ring) if ring else math.nan)
    found = contrast_curve(image, width)
    assert (found.radius.dtype, found.sigma.dtype) == (np.float32, np.float32)
    np.testing.assert_array_equal(found.radius, np.array(radius, np.float32))
    np.testing.assert_allclose(found.sigma, np.array(sigma, np.float32), rtol=1e-6)


def test_rings_without_a_pixel() -> None:
    image = np.ones((20, 20), np.float32)
    image[7:12, 7:12] = np.nan
    found = contrast_curve(image)
    assert np.isnan(found.sigma[0]) and (found.sigma[2:] == 0).all()


def test_centre() -> None:
    """Half a pixel before the middle; halves are rounded to even numbers."""
    assert [centre((n, n))[0] for n in (64, 65, 67, 320)] == [31, 31, 33, 159]


def test_signal_to_noise() -> None:
    sci, err = np.array([6.0, 1.0, 0.0, np.nan], np.float32), np.array([2.0, 0.0, 0.0, 1.0], np.float32)
    np.testing.assert_array_equal(snr_image(sci, err), np.array([3.0, np.inf, np.nan, np.nan], np.float32))
