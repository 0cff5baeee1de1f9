"""Bilinear interpolation of a mosaic against drizzle's own blot, whole and in windows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamimg3.kernels.blot import blot


def scene(seed: int, angle: float, offset: float = 0.0):  # type: ignore[no-untyped-def]
    """A mosaic with holes, and a rotated pixel map that reaches beyond it and has gaps."""
    rng = np.random.default_rng(seed)
    image = rng.normal(0.0, 100.0, (70, 90)).astype(np.float32)
    image[rng.random(image.shape) < 0.02] = np.nan
    v, u = np.mgrid[:60, :80].astype(float)
    y = np.cos(angle) * v - np.sin(angle) * u + rng.normal(0, 0.3, v.shape) + 5 + offset
    x = np.sin(angle) * v + np.cos(angle) * u - 8 + offset
    y[3, :20] = np.nan
    return image, y, x


@pytest.mark.parametrize("angle", [0.0, 0.3, 1.4])
def test_as_drizzle_does(angle: float) -> None:
    """Bit for bit, NaN and outside included (the reference hands -1 to drizzle where there are no coordinates)."""
    from drizzle.resample import blot_image

    image, y, x = scene(1, angle)
    pixmap = np.dstack([x, y])
    pixmap[np.isnan(pixmap)] = -1
    expected = np.full(y.shape, np.nan, np.float32)
    blot_image(data=image, pixmap=pixmap, out_img=expected, fillval=np.nan, iscale=1.0, interp="linear")
    found = blot(image, (0, 0), image.shape, y, x)
    assert 100 < np.isfinite(found).sum() < found.size
    np.testing.assert_array_equal(found, expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**16), st.floats(0.0, 3.0), st.integers(0, 40), st.integers(0, 50))
def test_windows_of_the_mosaic(seed: int, angle: float, y0: int, x0: int) -> None:
    """A window that holds the neighbours gives the same bits as the whole mosaic, far from the origin too."""
    image, y, x = scene(seed, angle)
    big = np.full((5070, 6090), np.nan, np.float32) if seed % 7 == 0 else None
    dy, dx = (5000, 6000) if big is not None else (0, 0)
    shape = (image.shape[0] + dy, image.shape[1] + dx)
    y, x = y + dy, x + dx
    inside = (y >= y0 + dy) & (y < y0 + dy + 20) & (x >= x0 + dx) & (x < x0 + dx + 25)
    y, x = np.where(inside, y, np.nan), np.where(inside, x, np.nan)
    whole = blot(image, (dy, dx), shape, y, x)
    part = blot(np.ascontiguousarray(image[y0 : y0 + 22, x0 : x0 + 27]), (y0 + dy, x0 + dx), shape, y, x)
    np.testing.assert_array_equal(part, whole)


def test_below_zero_is_outside() -> None:
    """The reference takes positions from 0, not from the pixel's edge."""
    image = np.ones((4, 4), np.float32)
    found = blot(image, (0, 0), (4, 4), np.array([[-0.25, 0.0, 3.9, 4.0]]), np.array([[1.0, 1.0, 1.0, 1.0]]))
    np.testing.assert_array_equal(found, np.array([[np.nan, 1.0, 1.0, np.nan]], np.float32))
