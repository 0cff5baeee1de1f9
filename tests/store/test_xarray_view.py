"""The mosaic asked by sky position: lazily, as astropy's WCS says, and again after a round trip."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import streamimg3
from streamimg3 import InputError, Observation, Session, run
from tests.conftest import SKIP, python


@pytest.fixture(scope="module")
def store(field: Path, tmp_path_factory: pytest.TempPathFactory) -> Observation:
    """A mosaic of the small field with a rotation, so that axes are not along the sky's."""
    folder = tmp_path_factory.mktemp("view")
    return run(
        "image3", str(field), session=Session(output_dir=str(folder), workers=1), **SKIP, resample={"rotation": 31.0}
    )


@pytest.fixture(scope="module")
def mosaic(store: Observation):  # type: ignore[no-untyped-def]
    return store.xarray()["mosaic"].to_dataset()


def test_nearest_pixel_is_astropys(mosaic) -> None:  # type: ignore[no-untyped-def]
    """10⁴ random positions give the pixel that astropy's WCS of the same keywords gives."""
    from astropy.io import fits
    from astropy.wcs import WCS

    wcs = WCS(fits.Header(mosaic.attrs["wcs"]))
    rng = np.random.default_rng(7)
    ny, nx = mosaic.sizes["y"], mosaic.sizes["x"]
    x, y = rng.uniform(-0.5, nx - 0.5, 10_000), rng.uniform(-0.5, ny - 0.5, 10_000)
    ra, dec = wcs.all_pix2world(x, y, 0)
    column, row = (np.round(v).astype(int) for v in wcs.all_world2pix(ra, dec, 0))
    found = mosaic.sel(ra=ra, dec=dec, method="nearest")
    assert found.sizes["source"] == 10_000
    expected = mosaic.sci.values[row, column]
    np.testing.assert_array_equal(found.sci.values, expected)
    assert np.isfinite(expected).mean() > 0.5
    np.testing.assert_allclose(np.stack(wcs.all_pix2world(column, row, 0)), [found.ra, found.dec], rtol=0, atol=1e-10)


def test_selection_by_numbers_and_arrays(mosaic) -> None:  # type: ignore[no-untyped-def]
    import xarray

    ra, dec = (float(v[40, 50]) for v in (mosaic.ra, mosaic.dec))
    one = mosaic.sel(ra=ra, dec=dec, method="nearest")
    assert one.sci.shape == () and float(one.sci) == float(mosaic.sci[40, 50])
    grid = xarray.DataArray(np.full((2, 3), ra), dims=("a", "b"))
    assert mosaic.sel(ra=grid, dec=xarray.full_like(grid, dec), method="nearest").sci.dims == ("a", "b")
    with pytest.raises(KeyError, match="not on the image"):
        mosaic.sel(ra=[ra, ra], dec=[dec, dec + 1.0], method="nearest")
    beyond = (ra + 180.0) % 360.0, -dec  # of the projection's horizon
    for off, told in (
        (beyond, "is not on the image'"),
        (([ra, *beyond[:1] * 2], [dec, *beyond[1:] * 2]), "nor is 1 more"),
    ):
        with pytest.raises(KeyError, match=told):
            mosaic.sel(ra=off[0], dec=off[1], method="nearest")
    with pytest.raises(ValueError, match="nearest"):
        mosaic.sel(ra=ra, dec=dec)


def test_windows_keep_their_sky(mosaic) -> None:  # type: ignore[no-untyped-def]
    """Slices move the index; a window's WCS is its own, for its pixels and its footprint."""
    window = mosaic.isel(y=slice(30, 60), x=slice(20, 90)).isel(x=slice(5, None))
    wcs = window.img3.wcs
    ra, dec = wcs.all_pix2world(3.0, 4.0, 0)
    np.testing.assert_allclose([ra, dec], [mosaic.ra[34, 28], mosaic.dec[34, 28]], rtol=0, atol=1e-11)
    corners = wcs.all_pix2world([[-0.5, -0.5], [64.5, -0.5], [64.5, 29.5], [-0.5, 29.5]], 0)
    np.testing.assert_allclose(window.img3.footprint, corners, rtol=0, atol=1e-11)
    assert "ra" not in mosaic.isel(y=slice(None, None, 2)).xindexes


def test_box_and_cone(mosaic) -> None:  # type: ignore[no-untyped-def]
    ra, dec = float(mosaic.ra[70, 80]), float(mosaic.dec[70, 80])
    box = mosaic.img3.box(ra, dec, ("5pix", "7pix"))
    np.testing.assert_array_equal(box.sci, mosaic.sci[68:73, 77:84])
    assert mosaic.sci.img3.cutout(ra, dec, "3pix").shape == (3, 3)
    cone = mosaic.img3.cone(ra, dec, 10.4 * mosaic.img3.pixel_scale)  # no pixel's centre is that far away
    y, x = np.mgrid[: cone.sizes["y"], : cone.sizes["x"]]
    row, column = (float(v) for v in cone.img3.wcs.all_world2pix([[ra, dec]], 0)[0][::-1])
    inside = np.hypot(y - row, x - column) <= 10.4
    kept = np.isfinite(cone.sci.values)
    assert kept.sum() > 250 and (kept <= inside).all() and cone.con.dtype == np.int32
    assert (cone.ncontrib.values[~inside] == 0).all() and (cone.ncontrib.values[inside] > 0).all()
    with pytest.raises(InputError, match="not on the image"):
        mosaic.img3.box(ra, dec + 1.0, "5pix")
    for window in (mosaic.img3.box, mosaic.img3.cone):  # beyond the horizon of the projection
        with pytest.raises(InputError, match="not on the image"):
            window((ra + 180.0) % 360.0, -dec, "5arcsec")


def test_round_trip(mosaic, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Written without coordinates, read with them; what is written tells its own WCS."""
    import xarray

    window = mosaic.isel(y=slice(10, 50), x=slice(15, 60))
    window.img3.to_zarr(tmp_path / "w.zarr")
    bare = xarray.open_zarr(tmp_path / "w.zarr", chunks=None, consolidated=False)
    assert "ra" not in bare.variables and "dec" not in bare.variables
    back = streamimg3.open_dataset(str(tmp_path / "w.zarr"))
    np.testing.assert_allclose(back.ra, window.ra, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(back.sci, window.sci)
    at = {"ra": float(window.ra[20, 7]), "dec": float(window.dec[20, 7])}
    assert float(back.sci.sel(**at, method="nearest")) == float(window.sci[20, 7])
    with pytest.raises(InputError, match="no WCS keywords"):
        bare.drop_attrs().img3.with_sky()


def test_tree_is_lazy_and_named(store: Observation) -> None:
    tree = store.xarray(chunks={})
    assert tree["mosaic/sci"].chunks is not None and tree["mosaic"].ra.attrs["units"] == "deg"
    assert store.xarray()["mosaic/sci"].chunks is None
    stack = tree["exposures/192x192"]
    assert "DO_NOT_USE" in stack.dq.attrs["flag_meanings"] and stack.sci.attrs["units"] == "MJy/sr"


def test_plot(mosaic) -> None:  # type: ignore[no-untyped-def]
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = mosaic.img3.plot(size=60)
    assert np.isfinite(np.asarray(shown.get_array())).mean() > 0.5
    assert type(shown.axes).__name__ == "WCSAxes"
    pyplot.close("all")


SPARSE = r"""
import json, os, sys
import numpy as np
from streamimg3 import Observation
from streamimg3.geometry import Box

obs = Observation.at(sys.argv[1])
side = 40_000
cards = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CUNIT1": "deg", "CUNIT2": "deg", "CRPIX1": 20000.0,
         "CRPIX2": 20000.0, "CRVAL1": 150.0, "CRVAL2": 2.0, "CDELT1": -8e-6, "CDELT2": 8e-6}
if sys.argv[2] == "make":
    obs.write_root({"ingested": True})
    obs.write_group("mosaic", {"wcs": cards, "shape": [side, side]})
    obs.create_image("mosaic/sci", (side, side), 1024, "MJy/sr")
    for row in (3, 20, 30):
        tile = np.full((1024, 1024), row, np.float32)
        obs.write("mosaic/sci", (), Box(1024 * row, 1024 * row, 1024 * (row + 1), 1024 * (row + 1)), tile)
    obs.consolidate()
    sys.exit()
from zarr.storage import LocalStore
asked = []
plain = LocalStore.get
async def spy(self, key, *args, **kwargs):
    asked.append(key)
    return await plain(self, key, *args, **kwargs)
LocalStore.get = spy

def rss():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

import xarray, zarr, astropy.wcs
before = rss()
mosaic = obs.xarray()["mosaic"].to_dataset()
n = np.array([3, 3, 3, 20, 20, 20, 30, 30, 30, 35]) * 1024 + np.arange(10) * 7
ra, dec = mosaic.img3.place.wcs.to_sky(n.astype(float), n.astype(float))
values = mosaic.sci.sel(ra=ra, dec=dec, method="nearest").values
keys = sorted({k for k in asked if "/c/" in k})
peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"values": [None if v != v else float(v) for v in values], "keys": keys, "cost": peak - before, "peak": peak}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_large_sparse_mosaic(tmp_path: Path) -> None:
    """Ten positions out of 1.6 Gpixel: less than 200 MB, and only the shards that hold them are asked for."""
    script = tmp_path / "look_at_it.py"
    script.write_text(SPARSE)
    made = python(script, tmp_path / "large.zarr", "make")
    assert made.returncode == 0, made.stderr
    done = python(script, tmp_path / "large.zarr", "look")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["values"] == [3.0] * 3 + [20.0] * 3 + [30.0] * 3 + [None]
    assert told["keys"] == [f"mosaic/sci/c/{n}/{n}" for n in (20, 3, 30, 35)]
    print(f"\n{told['cost'] / 1e6:.0f} MB for opening and selecting, {told['peak'] / 1e6:.0f} MB with all imports")
    assert told["cost"] < 200e6 and told["peak"] < 300e6
