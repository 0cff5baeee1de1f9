"""Circles, rings and frames against photutils; sharpness and roundness against their definition."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from streamimg3.kernels.aperture import (
    DaoKernel,
    circle_sums,
    frame_level,
    frame_reach,
    frame_values,
    ring_background,
    sharpness_roundness,
)
from streamimg3.kernels.measure import Pixels

RNG = np.random.default_rng(7)
DATA = RNG.normal(1, 1, (120, 110)).astype(np.float32)
DATA[::17, ::11] += 20
DATA[RNG.random(DATA.shape) < 0.002] = np.nan
ERROR = RNG.random(DATA.shape).astype(np.float32)
CENTRES = np.concatenate([RNG.uniform(-4, 124, (150, 2)), [[20, 20], [20.5, 30.5], [-60, 5], [60.25, 109.4]]])


@pytest.mark.parametrize("radius", [0.35, 0.9, 1.5811388, 2.5, 6.3])
def test_circles_are_photutils(radius: float) -> None:
    """Both formulas are exact; they round differently."""
    aperture = pytest.importorskip("photutils.aperture")
    expected = aperture.aperture_photometry(DATA, aperture.CircularAperture(CENTRES[:, ::-1], radius), error=ERROR)
    sums, errors = circle_sums(DATA, ERROR, (0, 0), CENTRES, radius)
    theirs = np.asarray(expected["aperture_sum"])
    theirs[theirs == 0.0] = np.nan  # a circle outside the image whose bounding box is not: the library says 0
    np.testing.assert_allclose(sums, theirs, rtol=1e-11, atol=1e-12)
    known = np.isfinite(sums)
    np.testing.assert_allclose(errors[known], np.asarray(expected["aperture_sum_err"])[known], rtol=1e-6)


@settings(max_examples=100, deadline=None)
@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(0.05, 9))
def test_the_area_of_a_circle(y: float, x: float, radius: float) -> None:
    ones = np.ones((24, 24), np.float32)
    sums, _ = circle_sums(ones, ones, (-12, -12), np.array([[y, x]]), radius)
    assert sums[0] == pytest.approx(np.pi * radius**2, rel=1e-12)


def test_rings_are_photutils() -> None:
    aperture = pytest.importorskip("photutils.aperture")
    from astropy.stats import SigmaClip

    inside = CENTRES[(CENTRES > 0).all(axis=1) & (CENTRES < 110).all(axis=1)]
    levels, errors = ring_background(DATA, (0, 0), inside, (6.0, 9.5))
    for k, mask in enumerate(aperture.CircularAnnulus(inside[:, ::-1], 6.0, 9.5).to_mask(method="center")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = SigmaClip(3.0)(mask.get_values(DATA), masked=False)
        assert levels[k] == np.median(values)
        assert errors[k] == pytest.approx(np.sqrt(np.pi / (2 * len(values))) * np.std(values), rel=1e-12)
    beyond = ring_background(DATA, (0, 0), np.array([[-60.0, 5.0], [np.nan, 3.0]]), (6.0, 9.5))
    assert np.isnan(beyond).all()


def test_a_window_changes_no_bit() -> None:
    inside = CENTRES[(CENTRES > 25).all(axis=1) & (CENTRES < 80).all(axis=1)]
    cut = np.s_[10:100, 12:96]
    window, error = np.ascontiguousarray(DATA[cut]), np.ascontiguousarray(ERROR[cut])
    kernel = DaoKernel.of_fwhm(2.0)
    for whole, part in (
        (circle_sums(DATA, ERROR, (0, 0), inside, 3.3), circle_sums(window, error, (10, 12), inside, 3.3)),
        (ring_background(DATA, (0, 0), inside, (6.0, 9.5)), ring_background(window, (10, 12), inside, (6.0, 9.5))),
        (sharpness_roundness(DATA, (0, 0), inside, kernel), sharpness_roundness(window, (10, 12), inside, kernel)),
    ):
        np.testing.assert_array_equal(whole, part)


def test_frames_are_photutils() -> None:
    pytest.importorskip("photutils")
    from photutils.segmentation import SegmentationImage, SourceCatalog

    labels = np.zeros(DATA.shape, np.int32)
    boxes = [(10, 12, 15, 20), (30, 40, 33, 42), (60, 0, 71, 9), (100, 90, 120, 110), (32, 55, 33, 56)]
    for k, (y0, x0, y1, x1) in enumerate(boxes):
        labels[y0:y1, x0:x1] = k + 1
    bad = np.zeros(DATA.shape, np.bool_)
    bad[:, 45] = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = SourceCatalog(DATA, SegmentationImage(labels), mask=bad, local_bkg_width=5).local_background
    pixels = Pixels((0, 0), DATA, DATA, ERROR, bad, labels)
    found = [frame_level(frame_values(pixels, np.array(box), 5)) for box in boxes]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert frame_level(np.ones(9)) == 0.0


def test_a_frame_lies_within_its_reach() -> None:
    box = np.array([30, 40, 33, 45])
    y0, x0, y1, x1 = frame_reach(box, 4)
    empty, none = np.zeros(DATA.shape, np.int32), np.zeros(DATA.shape, np.bool_)
    whole = frame_values(Pixels((0, 0), DATA, DATA, ERROR, none, empty), box, 4)
    cut = np.s_[y0:y1, x0:x1]
    parts = [np.ascontiguousarray(a[cut]) for a in (DATA, DATA, ERROR, none, empty)]
    window = frame_values(Pixels((int(y0), int(x0)), *parts), box, 4)  # type: ignore[arg-type]
    np.testing.assert_array_equal(whole, window)
    assert len(whole) > 100


@pytest.mark.parametrize("fwhm", [2.0, 4.0])
def test_sharpness_and_roundness(fwhm: float) -> None:
    kernel = DaoKernel.of_fwhm(fwhm)
    assert abs(kernel.weights.sum()) < 1e-12 and kernel.mask.shape[0] % 2 == 1
    data = np.nan_to_num(DATA)
    convolved = ndimage.convolve(data, kernel.weights, mode="constant")
    half = kernel.mask.shape[0] // 2
    sharp, rounds = sharpness_roundness(data, (0, 0), np.array([[40.2, 50.4], [17.5, 22.0]]), kernel)
    for k, (y, x) in enumerate(((40, 50), (17, 22))):  # halves are rounded down
        cut = np.s_[y - half : y + half + 1, x - half : x + half + 1]
        others = kernel.mask.copy()
        others[half, half] = False
        assert sharp[k] == pytest.approx((data[y, x] - data[cut][others].mean()) / convolved[y, x], rel=1e-6)
        c = convolved[cut].astype(float)
        v, u = np.mgrid[: 2 * half + 1, : 2 * half + 1]
        sign = np.where(((v <= half) & (u > half)) | ((v >= half) & (u < half)), -1.0, 1.0)
        sign[half, half] = c[half, half] = 0.0
        # float32 sums, as in the reference
        assert rounds[k] == pytest.approx(2 * (sign * c).sum() / np.abs(c).sum(), abs=1e-6)
