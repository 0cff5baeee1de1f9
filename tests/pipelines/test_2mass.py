"""Eight frames of 2MASS around M17 (K_s band, packed, FITS WCS, no error planes): a mosaic of real data in its place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray
from scipy import ndimage

from streamimg3 import Observation, Session, run
from tests.conftest import M17, SKIP
from tests.pipelines.conftest import planes_of

FRAME = M17 / "aK_asky_990502s1420186.fits.gz"
F8 = NDArray[np.float64]
HALF = 3  # px from the peak to the edge of the window a centroid is taken in


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the products are."""
    return tmp_path_factory.mktemp("m17")


@pytest.fixture(scope="module")
def m17(folder: Path) -> Observation:
    """The mosaic."""
    return run("image3", str(M17), session=Session(output_dir=str(folder), workers=1), **SKIP)


def _looked_up(mask: NDArray[np.bool_], frame: WCS, ra: F8, dec: F8) -> NDArray[np.bool_]:
    """Value at positions of a mask that has two pixels more than the frame on every side, False beyond."""
    x, y = (np.rint(v).astype(int) + 2 for v in frame.all_world2pix(ra, dec, 0))
    inside = (x >= 0) & (x < mask.shape[1]) & (y >= 0) & (y < mask.shape[0])
    found = np.zeros(inside.shape, bool)
    found[inside] = mask[y[inside], x[inside]]
    return found


def _peaks(image: NDArray[np.float32], count: int) -> list[tuple[int, int]]:
    """Rows and columns of the brightest local maxima that are alone within 9 pixels and far from the edges."""
    top = (image == ndimage.maximum_filter(image, size=19)) & (image - ndimage.median_filter(image, size=25) > 50)
    top[:12], top[-12:], top[:, :12], top[:, -12:] = False, False, False, False
    y, x = np.nonzero(top)
    order = np.argsort(image[y, x])[::-1][:count]
    return list(zip(y[order].tolist(), x[order].tolist(), strict=True))


def _centroid(image: NDArray[np.generic], y: int, x: int) -> tuple[float, float]:
    """Flux-weighted centre of a window around a peak, above the faintest pixel of the window."""
    window = image[y - HALF : y + HALF + 1, x - HALF : x + HALF + 1].astype(float)
    dy, dx = ndimage.center_of_mass(window - window.min())
    return y - HALF + dy, x - HALF + dx


def test_size_and_products(m17: Observation, folder: Path) -> None:
    """The mosaic has the size that the frames' outlines give at their pixel scale, and no plane that can't be made."""
    planes = planes_of(m17)
    ny, nx = planes["sci"].shape
    assert abs(ny - 2201) <= 1 and abs(nx - 1800) <= 1
    assert set(planes) == {"sci", "wht", "ncontrib", "con"}
    (product,) = folder.glob("*_i2d.fits")
    with fits.open(product) as hdus:
        assert [h.name for h in hdus][:4] == ["PRIMARY", "SCI", "CON", "WHT"]
        assert np.array_equal(hdus["SCI"].data, planes["sci"], equal_nan=True)


def test_overlaps_are_counted(m17: Observation, folder: Path) -> None:
    """Where good pixels of two frames lie one above the other 2 contribute, 3 at corners, and 0 outside all frames."""
    every = np.s_[::4, ::4]
    plane = planes_of(m17)["ncontrib"]
    count = plane[every].ravel()
    with fits.open(next(folder.glob("*_i2d.fits"))) as hdus:
        mosaic = WCS(hdus["SCI"].header)
    y, x = (axis[every].ravel() for axis in np.mgrid[: plane.shape[0], : plane.shape[1]])
    ra, dec = mosaic.all_pix2world(x, y, 0)
    certain, possible = np.zeros(count.shape, int), np.zeros(count.shape, int)
    for path in sorted(M17.glob("*.fits.gz")):
        frame, good = WCS(fits.getheader(path)), np.pad(np.isfinite(fits.getdata(path)), 2)  # some rims are NaN
        # A drop reaches the pixels next to where it lands: two pixels from an edge of the good area there is no doubt.
        certain += _looked_up(ndimage.binary_erosion(good, np.ones((5, 5))), frame, ra, dec)
        possible += _looked_up(ndimage.binary_dilation(good, np.ones((5, 5))), frame, ra, dec)
    sure = certain == possible
    assert sure.mean() > 0.95
    assert np.array_equal(count[sure], certain[sure])
    assert (np.bincount(certain[sure])[:4] > 500).all()


def test_stars_are_where_the_frame_says(m17: Observation, folder: Path) -> None:
    """The brightest stars of a frame lie on the mosaic where both WCS put them, to 0.3 pixel."""
    image, frame = fits.getdata(FRAME), WCS(fits.getheader(FRAME))
    with fits.open(next(folder.glob("*_i2d.fits"))) as hdus:
        drizzled, mosaic = hdus["SCI"].data, WCS(hdus["SCI"].header)
    stars = _peaks(image, 20)
    assert len(stars) == 20
    offsets = []
    for y, x in stars:
        cy, cx = _centroid(image, y, x)
        px, py = (float(v) for v in mosaic.all_world2pix(*frame.all_pix2world(cx, cy, 0), 0))
        my, mx = _centroid(drizzled, round(py), round(px))
        offsets.append((my - py, mx - px))
    assert np.hypot(*np.transpose(offsets)).max() < 0.3
    # No common shift either: 20 centroids of bright stars are good to a few hundredths of a pixel together.
    assert np.abs(np.mean(offsets, axis=0)).max() < 0.05
