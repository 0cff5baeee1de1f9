"""Sums over sources against photutils, and their bits in bands."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from streamimg3.kernels.measure import Pixels, Shapes, Sums, nearest
from streamimg3.kernels.segments import label, outlines
from streamimg3.kernels.smooth import gaussian, smooth
from tests.kernels.test_deblend import field

IMAGE = field(4)
ERROR = (0.05 + np.sqrt(np.maximum(IMAGE, 0)) / 30).astype(np.float32)
BAD = np.zeros(IMAGE.shape, np.bool_)
BAD[40:42, 30:60] = True
HOLES = IMAGE.copy()
HOLES[10:60:7, 12] = np.nan
SMOOTH = smooth(np.pad(HOLES, 3), np.pad(BAD, 3), gaussian(2.0))
LABELS, COUNT = label(np.asarray((SMOOTH > 0.06) & ~BAD), True)
FOUND = outlines(LABELS, COUNT)


def sums() -> Sums:
    return Sums(np.arange(1, COUNT + 1, dtype=np.int32), FOUND.box, gaussian(2.0))


def whole() -> Shapes:
    made = sums()
    for add in (made.add, made.add_central):
        add(Pixels((0, 0), HOLES, SMOOTH, ERROR, BAD, LABELS))
    return made.shapes(np.zeros(COUNT))


def test_equal_to_photutils() -> None:
    """Double sums; the library's squared errors are added in float32."""
    pytest.importorskip("photutils")
    from photutils.segmentation import SegmentationImage, SourceCatalog

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = SourceCatalog(
            HOLES, SegmentationImage(LABELS), convolved_data=SMOOTH, error=ERROR, mask=BAD
        )  # fmt: skip
        expected = {
            "x": theirs.x_centroid, "y": theirs.y_centroid, "flux": theirs.segment_flux, "area": theirs.area.value,
            "flux_err": theirs.segment_flux_err, "semimajor": theirs.semimajor_axis.value,
            "semiminor": theirs.semiminor_axis.value, "orientation": theirs.orientation.value,
        }  # fmt: skip
    found = whole()
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(found, name), values, rtol=3e-7, atol=1e-9, err_msg=name)
    assert np.isnan(found.flux).sum() == np.isnan(expected["flux"]).sum()


@pytest.mark.parametrize("height", [1, 7, 50])
def test_bands_change_no_bit(height: int) -> None:
    made = sums()
    for add in (made.add, made.add_central):
        for y in range(0, IMAGE.shape[0], height):
            y0, y1 = max(y - 3, 0), min(y + height + 3, IMAGE.shape[0])
            data, smoothed, error = (np.ascontiguousarray(a[y0:y1]) for a in (HOLES, SMOOTH, ERROR))
            rows = y, min(y + height, IMAGE.shape[0])
            add(Pixels((y0, 0), data, smoothed, error, BAD[y0:y1], LABELS[y0:y1], rows))
    found, expected = made.shapes(np.zeros(COUNT)), whole()
    for name in ("x", "y", "x_err", "y_err", "xy_cov", "flux", "flux_err", "area", "semimajor", "orientation"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


def test_without_smoothing_the_errors_are_sextractors() -> None:
    """ERRX2_IMAGE: the errors squared times the distance squared, over the flux squared."""
    inside = np.equal(LABELS, LABELS.flat[SMOOTH.argmax()])
    box = outlines(inside.astype(np.int32), 1).box
    made = Sums(np.array([1], np.int32), box, gaussian(0.0))
    for add in (made.add, made.add_central):
        add(Pixels((0, 0), HOLES, SMOOTH, ERROR, BAD, inside.astype(np.int32)))
    shapes = made.shapes(np.zeros(1))
    x = np.nonzero(inside)[1]
    light, noise = SMOOTH[inside].astype(float), ERROR[inside].astype(float)
    expected = np.sqrt(np.sum(noise**2 * (x - shapes.x[0]) ** 2)) / light.sum()
    assert shapes.x_err[0] == pytest.approx(expected, rel=1e-12)


def test_a_line_of_pixels_has_a_width() -> None:
    """One pixel wide: its variance across is that of a pixel, 1/12."""
    labels = np.zeros((5, 9), np.int32)
    labels[2, 1:8] = 1
    ones = np.ones(labels.shape, np.float32)
    made = Sums(np.array([1], np.int32), np.array([[2, 1, 3, 8]]), gaussian(0.0))
    for add in (made.add, made.add_central):
        add(Pixels((0, 0), ones, ones, ones, np.zeros(labels.shape, np.bool_), labels))
    shapes = made.shapes(np.array([0.25]))
    assert (shapes.x[0], shapes.y[0], shapes.area[0], shapes.flux[0]) == (4.0, 2.0, 7.0, 7 * 0.75)
    assert shapes.semiminor[0] == pytest.approx(np.sqrt(1 / 12)) and shapes.orientation[0] == 0.0
    assert shapes.semimajor[0] == pytest.approx(np.sqrt(4.0 + 1 / 12))


def test_neighbours() -> None:
    y, x = np.array([0.0, 3.0, np.nan, 50.0, 3.0]), np.array([0.0, 4.0, 1.0, 0.0, 4.0])
    index, distance = nearest(y, x)
    assert (
        index.tolist() == [1, 4, -1, 1, 1] or index.tolist() == [4, 4, -1, 4, 1] or index.tolist()[1:] == [4, -1, 1, 1]
    )
    np.testing.assert_allclose(distance, [5.0, 0.0, np.nan, np.hypot(47, 4), 0.0])
    assert nearest(y[:1], x[:1])[0].tolist() == [-1] and np.isnan(nearest(y[:1], x[:1])[1]).all()
