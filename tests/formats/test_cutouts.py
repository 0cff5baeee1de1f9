"""Stamps are the mosaic's own pixels with a WCS of their own, in every form that they are written in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

import streamimg3
from streamimg3 import BudgetError, InputError, Observation, Session, run
from streamimg3.formats import cutouts as door
from tests.conftest import SKIP, command_line

SIDE = 20


@pytest.fixture(scope="module")
def store(field: Path, tmp_path_factory: pytest.TempPathFactory) -> Observation:
    """A mosaic in small tiles, so that stamps cross their borders."""
    folder = tmp_path_factory.mktemp("cutouts")
    session = Session(output_dir=str(folder), workers=1)
    return run("image3", str(field), session=session, **SKIP, resample={"tile": 64, "rotation": 20.0})


@pytest.fixture(scope="module")
def sky(store: Observation) -> WCS:
    return WCS(fits.Header(_cards(store)))


def _cards(store: Observation) -> dict[str, float | str]:
    import json

    cards: dict[str, float | str] = json.loads(store.backend.get("mosaic/zarr.json") or b"")["attributes"]["wcs"]
    return cards


@pytest.fixture(scope="module")
def places(store: Observation, sky: WCS) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """300 positions over the mosaic and somewhat beyond its rim."""
    rng = np.random.default_rng(3)
    ny, nx = store.array("mosaic/sci").shape
    return tuple(sky.all_pix2world(rng.uniform(-8, nx + 8, 300), rng.uniform(-8, ny + 8, 300), 0))  # type: ignore[return-value]


def expected(store: Observation, plane: str, y0: int, x0: int, fill: float) -> np.ndarray:  # type: ignore[type-arg]
    """A stamp out of the padded mosaic."""
    whole = np.pad(store.array(f"mosaic/{plane}")[...], 2 * SIDE, constant_values=fill)
    return whole[y0 + 2 * SIDE : y0 + 3 * SIDE, x0 + 2 * SIDE : x0 + 3 * SIDE]


def test_stamps_are_the_mosaics_pixels(store: Observation, sky: WCS, places) -> None:  # type: ignore[no-untyped-def]
    """In the order of the positions; the middle is where it was asked for, to half a pixel."""
    made = streamimg3.cutouts(store, places, f"{SIDE}pix", planes=("sci", "ncontrib"))
    assert made.sci.shape == (300, SIDE, SIDE) and made.ncontrib.dtype == np.uint16
    x, y = sky.all_world2pix(*places, 0)
    assert np.abs(made.y0.values + (SIDE - 1) / 2 - y).max() <= 0.5 + 1e-6
    assert np.abs(made.x0.values + (SIDE - 1) / 2 - x).max() <= 0.5 + 1e-6
    for i in range(300):
        y0, x0 = int(made.y0[i]), int(made.x0[i])
        np.testing.assert_array_equal(made.sci[i], expected(store, "sci", y0, x0, np.nan))
        np.testing.assert_array_equal(made.ncontrib[i], expected(store, "ncontrib", y0, x0, 0))


def test_memory_changes_no_byte(store: Observation, places) -> None:  # type: ignore[no-untyped-def]
    """Batches of a few stamps and single reads give the same as one large batch."""
    stamps = door.plan_stamps(store, door.Positions.of(*places), (SIDE, SIDE))
    whole = door.read(stamps, slice(0, 300))["sci"]
    parts = [door.read(stamps, which)["sci"] for which in door.batches(stamps, 3 * 2048**2 * 4 + 20 * stamps.nbytes, 7)]
    assert len(parts) == 43
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    with pytest.raises(BudgetError, match="MiB more"):
        next(door.batches(stamps, 2**20))


def test_array(store: Observation, places, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    import xarray

    count = streamimg3.cutouts(store, places, f"{SIDE}pix", str(tmp_path / "s.zarr"), ("sci", "wht"))
    made = xarray.open_zarr(tmp_path / "s.zarr", chunks=None)
    assert made.sizes == {"source": 300, "y": SIDE, "x": SIDE} and set(made.coords) == {"name", "ra", "dec", "y0", "x0"}
    np.testing.assert_array_equal(made.sci, streamimg3.cutouts(store, places, f"{SIDE}pix").sci)
    assert count == 300 and made.sci.attrs["units"] == "MJy/sr"
    streamimg3.cutouts(store, places, "8pix", str(tmp_path / "s.zarr"))
    assert xarray.open_zarr(tmp_path / "s.zarr", chunks=None).sci.shape == (300, 8, 8)
    with pytest.raises(InputError, match="holds something else"):
        streamimg3.cutouts(store, places, "8pix", store.url)


def test_files(store: Observation, sky: WCS, places, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """One FITS file each, or all in one: pixels equal, and the WCS is the mosaic's to a few 1e-12 degree."""
    memory = streamimg3.cutouts(store, places, f"{SIDE}pix")
    folder = tmp_path / "stamps"
    assert streamimg3.cutouts(store, places, f"{SIDE}pix", str(folder)) == 300
    streamimg3.cutouts(store, places, f"{SIDE}pix", str(tmp_path / "all.fits"), ("sci", "ncontrib"))
    with fits.open(tmp_path / "all.fits") as together:
        assert len(together) == 601
        for i in range(0, 300, 17):
            with fits.open(folder / f"{i + 1}.fits") as alone:
                alone.verify("exception")
                hdu, again = alone[0], together["SCI", i + 1]
                np.testing.assert_array_equal(hdu.data, memory.sci[i])
                np.testing.assert_array_equal(again.data, memory.sci[i])
                assert together["NCONTRIB", i + 1].data.dtype == np.uint16
                y0, x0 = int(memory.y0[i]), int(memory.x0[i])
                theirs = WCS(hdu.header).all_pix2world([[0.0, 0.0], [19.0, 7.0]], 0)
                ours = sky.all_pix2world([[x0, y0], [x0 + 19.0, y0 + 7.0]], 0)
                np.testing.assert_allclose(theirs, ours, rtol=0, atol=3e-12)
                assert hdu.header["BUNIT"] == "MJy/sr" and (hdu.header["LTV1"], hdu.header["LTV2"]) == (-x0, -y0)
                assert hdu.header["RA_SRC"] == places[0][i] and again.header["OBJECT"] == str(i + 1)


def test_command_line(store: Observation, sky: WCS, tmp_path: Path) -> None:
    ra, dec = (float(v) for v in sky.all_pix2world(60.0, 70.0, 0))
    table = tmp_path / "t.csv"
    table.write_text(f"id,RA,DEC\nfirst,{ra!r},{dec!r}\nfirst,{ra!r},{dec!r}\nfar,{ra!r},{dec + 1!r}\n")
    done = command_line("cutout", store.url, "--catalog", table, "--size", "0.5arcsec", "-o", tmp_path / "out")
    assert done.returncode == 0 and done.stdout.startswith("2 cut-outs"), done.stderr
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"first.fits", "first_2.fits"}
    for wrong, says in (
        (("--size", "5furlongs", "--position", f"{ra} {dec}"), "is no size"),
        (("--size", "5pix", "--position", "here"), "is no position"),
        (("--size", "5pix"), "either by"),
        (("--size", "5pix", "--position", f"{ra} {dec + 1}"), "is on the mosaic"),
        (("--size", "5pix", "--position", f"{ra} {dec}", "--plane", "colour"), "no plane colour"),
    ):
        done = command_line("cutout", store.url, *wrong, "-o", tmp_path / "x.fits")
        assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1
