"""Sources of one exposure by segmentation."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
import pytest

from streamimg3.errors import InputError
from streamimg3.kernels.segment_stars import SegmentOptions, find_segments
from tests.kernels.test_deblend import field

OPTIONS = SegmentOptions(snr_threshold=5.0, bkg_boxsize=30)
IMAGE = field(3, 25, 1.6, (120, 131)) + np.float32(0.5)
BAD = np.zeros(IMAGE.shape, np.bool_)
BAD[:4], BAD[60:63, 70:75] = True, True


def test_equal_to_photutils() -> None:
    """Without dividing, which needs one more package there."""
    pytest.importorskip("photutils")
    from astropy.convolution import Gaussian2DKernel, convolve
    from astropy.stats import SigmaClip
    from photutils.background import Background2D, MedianBackground
    from photutils.segmentation import SourceCatalog, SourceFinder

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clip, median = SigmaClip(3.0), MedianBackground()
        mesh = Background2D(IMAGE, 30, filter_size=3, coverage_mask=BAD, sigma_clip=clip, bkg_estimator=median)
        data = IMAGE - mesh.background
        smoothed = convolve(data, Gaussian2DKernel(2.5 / 2.3548200450309493), mask=BAD)
        found = SourceFinder(10, deblend=False, progress_bar=False)(smoothed, 5 * mesh.background_rms, mask=BAD)
        expected = SourceCatalog(data, found, convolved_data=smoothed, mask=BAD, local_bkg_width=5)
    stars = find_segments(IMAGE, BAD, dataclasses.replace(OPTIONS, deblend=False, localbkg_width=5))
    assert len(stars) > 10
    np.testing.assert_array_equal(stars.id, expected.label)
    np.testing.assert_allclose(stars.x, expected.x_centroid, atol=1e-9)
    np.testing.assert_allclose(stars.y, expected.y_centroid, atol=1e-9)
    np.testing.assert_allclose(stars.flux, expected.segment_flux, rtol=1e-9)


def test_parts_follow_whole_sources() -> None:
    whole = find_segments(IMAGE, BAD, dataclasses.replace(OPTIONS, deblend=False))
    divided = find_segments(IMAGE, BAD, OPTIONS)
    assert len(divided) > len(whole) and divided.id.tolist() == list(range(1, len(divided) + 1))
    assert divided.flux.sum() == pytest.approx(whole.flux.sum(), rel=1e-9)
    assert divided.columns["area"].sum() == whole.columns["area"].sum()


@pytest.mark.parametrize("image", [np.full((40, 40), np.nan, np.float32), np.ones((40, 40), np.float32)])
def test_nothing_to_find(image: Any) -> None:
    assert len(find_segments(image, np.zeros(image.shape, np.bool_), OPTIONS)) == 0


def test_without_smoothing() -> None:
    assert len(find_segments(IMAGE, BAD, dataclasses.replace(OPTIONS, kernel_fwhm=0.0))) > 10


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("snr_threshold", -1.0), ("kernel_fwhm", 200.0), ("bkg_boxsize", 0), ("npixels", 0), ("connectivity", 5),
        ("nlevels", 0), ("contrast", -0.1), ("multithresh_mode", "log"), ("localbkg_width", -2),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{name} = "):
        SegmentOptions(**{name: value})
