"""The store as xarray sees it, in a process with nothing of ours in it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamimg3 import Observation, Session, ingest, run
from streamimg3.store.layout import COLUMNS, FLAGS, TIMES
from tests.conftest import SKIP
from tests.formats.cubes import Recipe, write_cube

# Runs in a process of its own; prints what it finds as JSON. Zarr's local store is wrapped to see what is asked of it.
LOOK = r"""
import json, sys
import numpy, xarray, zarr
from zarr.storage import LocalStore

asked = {"list": 0, "get": []}
class Spy(LocalStore):
    async def get(self, key, *args, **kwargs):
        asked["get"].append(key)
        return await super().get(key, *args, **kwargs)
    async def list(self):
        asked["list"] += 1
        async for key in super().list():
            yield key
    async def list_dir(self, prefix):
        asked["list"] += 1
        async for key in super().list_dir(prefix):
            yield key
    async def list_prefix(self, prefix):
        asked["list"] += 1
        async for key in super().list_prefix(prefix):
            yield key

tree = xarray.open_datatree(Spy(sys.argv[1], read_only=True), engine="zarr")
opened = {"list": asked["list"], "get": list(asked["get"])}
plain = xarray.open_datatree(sys.argv[1], engine="zarr")
arrays, coordinates = {}, {node.path: sorted(map(str, node.coords)) for node in plain.subtree}
for node in plain.subtree:
    for name, array in node.variables.items():
        attrs = {k: v.tolist() if isinstance(v, numpy.ndarray) else v for k, v in array.attrs.items()}
        arrays[f"{node.path}/{name}".lstrip("/")] = {
            "dims": array.dims, "shape": array.shape, "dtype": str(array.dtype), "attrs": attrs,
            "fill": str(array.encoding.get("_FillValue")),
        }
groups = {node.path: {k: v for k, v in node.attrs.items()} for node in plain.subtree}
at = sys.argv[2]
window = plain[at][..., 100:103, 100:104].values if at else numpy.zeros(0)
print(json.dumps({
    "arrays": arrays, "groups": groups, "opened": opened, "same": sorted(n.path for n in tree.subtree) == sorted(groups),
    "coordinates": coordinates,
    "window": window.tolist(), "modules": sorted(m for m in sys.modules if m.split(".")[0] in ("streamimg3", "asdf", "gwcs")),
}))
"""


@pytest.fixture(scope="module")
def store(ingested: Observation, tmp_path_factory: pytest.TempPathFactory) -> Observation:
    """The field with a mosaic that has every plane."""
    folder = tmp_path_factory.mktemp("xarray")
    path = shutil.copytree(ingested.url, folder / "field.zarr")
    session = Session(output_dir=str(folder / "out"), workers=1)
    return run("image3", str(path), session=session, **SKIP, resample={"propagate_dq": True, "tile": 64})


def look(url: str, window: str) -> dict[str, Any]:
    """What a process with xarray and Zarr alone sees; its warnings are errors but for Zarr's note on consolidation."""
    quiet = ["-W", "error", "-W", "ignore:Consolidated metadata is currently not part", "-I"]
    command = [sys.executable, *quiet, "-c", LOOK, url, window]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def seen(store: Observation) -> dict[str, Any]:
    """The field with its mosaic, seen so."""
    return look(store.url, "mosaic/sci")


def test_cubes(tmp_path: Path) -> None:
    """Integrations one after the other, their times as coordinates; opening asks for nothing but the root."""
    recipes = Recipe(5, shape=(120, 130)), Recipe(3, seed=2, shape=(120, 130))
    files = [write_cube(tmp_path / f"jw{i}_calints.fits", r, r.times()) for i, r in enumerate(recipes)]
    obs = ingest(files, Session(store=str(tmp_path / "x.zarr"), workers=1))
    seen = look(obs.url, "integrations/120x130/sci")
    assert seen["modules"] == [] and seen["same"] and seen["opened"]["list"] == 0
    assert set(seen["opened"]["get"]) <= {"zarr.json", ".zgroup", ".zattrs", ".zmetadata"}
    path = "integrations/120x130"
    assert seen["coordinates"][f"/{path}"] == sorted(COLUMNS)
    units = {"sci": "MJy/sr", "err": "MJy/sr", "dq": "1", "nan": "1"}
    units |= dict.fromkeys(("var_poisson", "var_rnoise", "var_flat"), "(MJy/sr)^2")
    for name, unit in units.items():
        array = seen["arrays"][f"{path}/{name}"]
        assert array["dims"] == ["integration", "y", "x"] and array["shape"] == [8, 120, 130]
        assert array["attrs"]["units"] == unit and len(array["attrs"]["long_name"]) > 5, name
    area = seen["arrays"][f"{path}/area"]
    assert area["dims"] == ["exposure", "y", "x"] and area["shape"] == [2, 120, 130]
    for name in COLUMNS:
        array = seen["arrays"][f"{path}/{name}"]
        assert array["dims"] == ["integration"] and array["shape"] == [8]
        assert array["dtype"] == ("float64" if name in TIMES else "int32")
        assert array["attrs"].get("units") == ("d" if name in TIMES else None)
    flags = seen["arrays"][f"{path}/dq"]["attrs"]
    assert dict(zip(flags["flag_meanings"], flags["flag_masks"], strict=True)) == FLAGS
    wanted = np.concatenate([r.pixels()["sci"] for r in recipes])[:, 100:103, 100:104]
    np.testing.assert_array_equal(np.float32(seen["window"]), wanted)


def test_nothing_of_ours_is_needed(seen: dict[str, Any]) -> None:
    """Neither this package nor a WCS library is imported."""
    assert seen["modules"] == []
    assert seen["same"]


def test_opening_lists_nothing(seen: dict[str, Any]) -> None:
    """Metadata are consolidated: one or two requests for the root, no listing, none for each array."""
    assert seen["opened"]["list"] == 0
    assert set(seen["opened"]["get"]) <= {"zarr.json", ".zgroup", ".zattrs", ".zmetadata"}
    assert len(seen["opened"]["get"]) <= 4


def test_exposures(seen: dict[str, Any]) -> None:
    """Every plane of the exposures has its dimensions, unit and meaning."""
    units = {
        "sci": "MJy/sr", "err": "MJy/sr", "dq": "1", "area": "1", "nan": "1",
        **dict.fromkeys(("var_poisson", "var_rnoise", "var_flat"), "(MJy/sr)^2"),
    }  # fmt: skip
    for name, unit in units.items():
        array = seen["arrays"][f"exposures/192x192/{name}"]
        assert array["dims"] == ["exposure", "y", "x"] and array["shape"] == [4, 192, 192]
        assert array["attrs"]["units"] == unit and len(array["attrs"]["long_name"]) > 5, name
    kinds = {"dq": "uint32", "nan": "uint8"}
    for name in units:
        assert seen["arrays"][f"exposures/192x192/{name}"]["dtype"] == kinds.get(name, "float32")
    for table in ("cards_primary", "cards_sci", "wcs"):
        array = seen["arrays"][f"exposures/192x192/{table}"]
        assert array["dims"][0] == "exposure" and array["dtype"] == "uint8"


def test_mosaic(seen: dict[str, Any], store: Observation) -> None:
    """So has every plane of the mosaic; values come through as they are."""
    units = {
        "sci": "MJy/sr", "err": "MJy/sr", "wht": "1", "ncontrib": "1", "dq": "1", "con": "1",
        **dict.fromkeys(("var_poisson", "var_rnoise", "var_flat"), "(MJy/sr)^2"),
    }  # fmt: skip
    kinds = {"dq": "uint32", "con": "int32", "ncontrib": "uint16"}
    shape = seen["arrays"]["mosaic/sci"]["shape"]
    for name, unit in units.items():
        array = seen["arrays"][f"mosaic/{name}"]
        assert array["dims"] == (["plane", "y", "x"] if name == "con" else ["y", "x"])
        assert array["shape"][-2:] == shape and array["dtype"] == kinds.get(name, "float32")
        assert array["attrs"]["units"] == unit and len(array["attrs"]["long_name"]) > 5, name
    assert {k.split("/")[1] for k in seen["arrays"] if k.startswith("mosaic/")} == set(units)
    window = np.asarray(store.array("mosaic/sci")[100:103, 100:104])
    assert np.isfinite(window).all()
    assert np.array_equal(np.float32(seen["window"]), window)


def test_flags_are_named(seen: dict[str, Any]) -> None:
    """DQ says what its bits mean, in the way of the CF conventions."""
    for path in ("exposures/192x192/dq", "mosaic/dq"):
        attrs = seen["arrays"][path]["attrs"]
        masks, meanings = attrs["flag_masks"], attrs["flag_meanings"]
        # CF wants one string of words; a list of words carries the same.
        words = meanings.split() if isinstance(meanings, str) else meanings
        assert dict(zip(words, masks, strict=True)) == FLAGS
        assert masks == [1 << bit for bit in range(32)] and words[0] == "DO_NOT_USE"


def test_root_says_what_it_is(seen: dict[str, Any]) -> None:
    """The root group carries schema, version and the exposures in order."""
    root = seen["groups"]["/"]
    assert root["schema"] == "streamimg3/store" and root["version"] >= 1
    assert len(root["exposures"]) == 4 and all(name.startswith("jw01234001001") for name in root["exposures"])


def test_mosaic_wcs_cards(seen: dict[str, Any], store: Observation) -> None:
    """The mosaic's attributes are a FITS WCS that astropy reads; it is the mosaic's own."""
    from astropy.io import fits
    from astropy.wcs import WCS

    from streamimg3.engine import Runner
    from streamimg3.stages import resample

    attrs = seen["groups"]["/mosaic"]
    wcs = WCS(fits.Header(attrs["wcs"]))
    assert list(wcs.wcs.ctype) == ["RA---TAN", "DEC--TAN"]
    assert attrs["shape"] == seen["arrays"]["mosaic/sci"]["shape"]
    frame = resample.output_frame(store, resample.Params(), store.exposures())
    resample.run(store, resample.Params(propagate_dq=True, tile=64), Runner())  # kept: nothing changes
    y, x = np.mgrid[0.0 : attrs["shape"][0] : 60, 0.0 : attrs["shape"][1] : 60]
    ra, dec = frame.wcs.to_sky(y, x, False)
    # Both are the same tangent plane; 1e-9 deg is 4 microarcsec.
    np.testing.assert_allclose(wcs.all_pix2world(x, y, 0), (ra, dec), rtol=0, atol=1e-9)


def test_another_mosaic_still_opens(store: Observation, tmp_path: Path) -> None:
    """After a run with fewer planes of another shape there is one tree of one shape, without what is out of date."""
    import xarray

    path = shutil.copytree(store.url, tmp_path / "field.zarr")
    session = Session(output_dir=str(tmp_path / "out"), workers=1)
    run("image3", str(path), session=session, **SKIP, resample={"pixel_scale_ratio": 2.0, "enable_err": False})
    with xarray.open_datatree(path, engine="zarr", chunks=None) as tree:
        assert set(tree["mosaic"].data_vars) == {"sci", "wht", "con", "ncontrib"}
        assert tree["mosaic/sci"].shape == tuple(tree["mosaic"].attrs["shape"])
        assert max(tree["mosaic/sci"].shape) < 192
