"""Weights and membership: what the mosaic says about which exposure went where, and how strongly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from drizzle.resample import Drizzle
from numpy.typing import NDArray

from streamimg3 import Observation, Session, ingest, run
from streamimg3.engine import Runner
from streamimg3.formats.simulate import Field, simulate
from streamimg3.geometry import Box
from streamimg3.stages import resample
from streamimg3.store import Exposure
from tests.conftest import SKIP
from tests.pipelines.conftest import planes_of

SIDE, COUNT = 48, 34
UNUSABLE = 1 | 512  # DO_NOT_USE, NON_SCIENCE


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Observation:
    """The mosaic of more exposures than one plane of context has bits."""
    folder = tmp_path_factory.mktemp("deep")
    association = simulate(folder, Field(shape=(SIDE, SIDE), dithers=COUNT, extended=0))
    obs = ingest(str(association), Session(store=str(folder / "x.zarr"), workers=1))
    resample.run(obs, resample.Params(tile=64), Runner())
    return obs


def _bit(con: NDArray[np.generic], k: int) -> NDArray[np.bool_]:
    return (con[k // 32].view(np.uint32) >> np.uint32(k % 32)) & 1 == 1


def _covered(exposure: Exposure, obs: Observation, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Where the drizzle package puts the good pixels of one exposure, with its exact positions."""
    frame = resample.output_frame(obs, resample.Params(), obs.exposures())
    y, x = np.mgrid[:SIDE, :SIDE].astype(float)
    to_y, to_x = frame.wcs.to_pixel(*exposure.wcs.to_sky(y, x, False))
    box = Box(0, 0, SIDE, SIDE)
    image = exposure.read("sci", box)
    good = ((exposure.read("dq", box) & UNUSABLE) == 0) & np.isfinite(image)
    canvas = Drizzle(kernel="square", out_shape=shape, disable_ctx=True)
    canvas.add_image(
        np.where(good, image, 0), 1.0, np.dstack([to_x, to_y]), weight_map=good.astype(np.float32), pixfrac=1.0,
        iscale=1.0, pixel_scale_ratio=frame.ratio,
    )  # fmt: skip
    return np.asarray(canvas.out_wht) > 0


def test_context_of_many_exposures_is_their_membership(deep: Observation) -> None:
    """34 exposures take two planes of context, and each bit is set exactly where that exposure has weight."""
    planes = planes_of(deep)
    con = planes["con"]
    assert con.shape == (2, *planes["sci"].shape) and con.dtype == np.int32
    assert not (con[1].view(np.uint32) >> np.uint32(COUNT - 32)).any()
    for k, exposure in enumerate(deep.exposures()):
        assert _bit(con, k).any()
        assert np.array_equal(_bit(con, k), _covered(exposure, deep, con.shape[1:])), k


def test_contributions_are_counted(deep: Observation) -> None:
    """The count of contributions is the number of bits, and there is weight where any is set."""
    planes = planes_of(deep)
    count = sum(_bit(planes["con"], k).astype(np.uint16) for k in range(COUNT))
    assert np.array_equal(count, planes["ncontrib"])
    assert planes["ncontrib"].max() > 16
    assert np.array_equal(planes["wht"] > 0, planes["ncontrib"] > 0)
    assert np.array_equal(np.isfinite(planes["sci"]), planes["ncontrib"] > 0)


# ---------------------------------------------------------------- exposure time
@pytest.fixture(scope="module")
def unequal(tmp_path_factory: pytest.TempPathFactory) -> Observation:
    """Two exposures, the second of which was measured for 100 s instead of 515 s."""
    folder = tmp_path_factory.mktemp("unequal")
    association = simulate(folder, Field(shape=(96, 96), dithers=2))
    with fits.open(sorted(folder.glob("*_cal.fits"))[1], mode="update") as hdus:
        hdus[0].header["TMEASURE"] = 100.0
    return ingest(str(association), Session(store=str(folder / "x.zarr"), workers=1))


def test_exposure_time_is_the_weight(unequal: Observation) -> None:
    """Weights by exposure time are those of equal weights times the time each was measured."""
    made = {}
    for kind in ("none", "exptime"):
        resample.run(unequal, resample.Params(weight_type=kind), Runner())
        made[kind] = planes_of(unequal)
    first, second = (_bit(made["none"]["con"], k) for k in (0, 1))
    # Sums of a few float32 numbers, so a few units in the last place.
    for alone, seconds in ((first & ~second, unequal.records()[0].measurement_time), (second & ~first, 100.0)):
        assert alone.sum() > 500
        np.testing.assert_allclose(made["exptime"]["wht"][alone], seconds * made["none"]["wht"][alone], rtol=1e-6)
    both = first & second
    low = np.minimum(made["none"]["sci"], made["exptime"]["sci"])[both]
    assert np.isfinite(low).all()
    assert np.array_equal(made["none"]["con"], made["exptime"]["con"])
    assert np.mean(made["none"]["sci"][both] != made["exptime"]["sci"][both]) > 0.9


# ---------------------------------------------------------------- weight maps
def _image(path: Path, values: NDArray[np.float32], wcs: bool = True) -> None:
    header = fits.Header()
    if wcs:
        ny, nx = values.shape
        header.update(CTYPE1="RA---TAN", CTYPE2="DEC--TAN", CRVAL1=80.0, CRVAL2=-35.0, CRPIX1=nx / 2, CRPIX2=ny / 2)
        header.update(CDELT1=-1e-4, CDELT2=1e-4, CUNIT1="deg", CUNIT2="deg", BUNIT="adu", EXPTIME=10.0)
    fits.PrimaryHDU(values, header).writeto(path)


def test_weight_map_beside_an_image_is_used(tmp_path: Path) -> None:
    """X.weight.fits weighs X.fits: constant images of 1 and 2 with weights 1 and 3 give 7/4, and 1 where the 3 is a 0."""
    shape = (70, 90)
    weight = np.full(shape, 3, np.float32)
    weight[40:, :] = 0
    _image(tmp_path / "one.fits", np.ones(shape, np.float32))
    _image(tmp_path / "one.weight.fits", np.ones(shape, np.float32), wcs=False)
    _image(tmp_path / "two.fits", np.full(shape, 2, np.float32))
    _image(tmp_path / "two.weight.fits", weight, wcs=False)
    session = Session(output_dir=str(tmp_path / "out"), workers=1)
    obs = run("image3", [str(tmp_path / "*.fits")], session=session, **SKIP)
    assert [r.name for r in obs.records()] == ["one", "two"]
    assert all("weight" in r.planes and any("weight map" in n for n in r.notes) for r in obs.records())
    planes = planes_of(obs)
    header = fits.getheader(next((tmp_path / "out").glob("*_i2d.fits")), "SCI")
    # Same grid but for where it begins: two pixels inside each region nothing of the other one contributes.
    y0, x0 = round(header["CRPIX2"] - shape[0] / 2), round(header["CRPIX1"] - shape[1] / 2)
    both, one = np.s_[y0 + 3 : y0 + 37, x0 + 3 : x0 + 87], np.s_[y0 + 43 : y0 + 67, x0 + 3 : x0 + 87]
    np.testing.assert_allclose(planes["sci"][both], 1.75, rtol=1e-6)
    np.testing.assert_allclose(planes["sci"][one], 1.0, rtol=1e-6)
    assert (planes["con"][0][both] == 3).all() and (planes["con"][0][one] == 1).all()
    # The mean of areas of pixels projected on a plane: weights are 4 and 1 up to the pixel scale's rounding.
    np.testing.assert_allclose(planes["wht"][both], 4.0, rtol=1e-3)
    np.testing.assert_allclose(planes["wht"][one], 1.0, rtol=1e-3)
