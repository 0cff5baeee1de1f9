"""Intermediate results of outlier_detection as files: names, extensions, pixels, headers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from streamimg3 import Session, ingest
from streamimg3.errors import InputError
from streamimg3.formats.outlier_products import export_outlier_products
from streamimg3.formats.simulate import Field, simulate
from streamimg3.geometry import Box
from streamimg3.store import Observation
from streamimg3.store.documents import OutlierDocument

from .mosaics import SHAPE, TILE, frame_text

SIDE = (40, 48)
KEPT = {"save_intermediate_results": True, "pixfrac": 1.0, "weight_type": "ivm"}
STATUSES = {"tweakreg": "COMPLETE", "skymatch": "COMPLETE", "outlier_detection": "COMPLETE", "resample": "COMPLETE"}


@pytest.fixture
def obs(tmp_path: Path) -> Observation:
    """Two groups of one exposure with mosaics, median and blots that differ everywhere."""
    association = simulate(tmp_path / "field", Field(shape=SIDE, dithers=2), "field")
    obs = ingest(str(association), Session(store=str(tmp_path / "s"), workers=1))
    obs.write_group("outliers", {})
    for number, plane in enumerate(("sci", "wht")):
        obs.create_image(f"outliers/{plane}", (2, *SHAPE), TILE, "MJy/sr")
        for group in range(2):
            obs.write(f"outliers/{plane}", (group,), Box(0, 0, *SHAPE), _pixels(SHAPE, 2 * number + group))
    obs.create_image("outliers/median", SHAPE, TILE, "MJy/sr")
    obs.write("outliers/median", (), Box(0, 0, *SHAPE), _pixels(SHAPE, 4))
    obs.create_stack(SIDE, 2, {"blot": "MJy/sr"})
    for exposure in obs.exposures():
        obs.write(
            f"{exposure.group}/blot", (exposure.record.row,), Box(0, 0, *SIDE), _pixels(SIDE, exposure.record.row)
        )
    frame = frame_text().decode("latin-1")
    obs.commit(OutlierDocument(made="2026-01-02T03:04:05.678", parameters=KEPT, wcs_asdf=frame))
    return obs


def _pixels(shape: tuple[int, int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_files_of_the_reference(obs: Observation, tmp_path: Path) -> None:
    """A mosaic for each group, one median, a blot for each exposure, named after the (first) exposure."""
    paths = export_outlier_products(obs, str(tmp_path / "out"), {}, statuses=STATUSES, limit=1)
    roots = [f"{e.record.name}_o001" for e in obs.exposures()]
    ends = ["outlier_i2d", "outlier_i2d", "median", "blot", "blot"]
    owners = [roots[0], roots[1], roots[0], roots[0], roots[1]]
    assert [Path(p).name for p in paths] == [f"{o}_{e}.fits" for o, e in zip(owners, ends, strict=True)]
    for path, end, seed in zip(paths, ends, (0, 1, 4, 0, 1), strict=True):
        with fits.open(path) as hdus:
            hdus.verify("exception")
            wanted = ["PRIMARY", "SCI", "WHT", "ASDF"] if end == "outlier_i2d" else ["PRIMARY", "SCI", "ASDF"]
            assert [h.name for h in hdus] == wanted
            np.testing.assert_array_equal(hdus["SCI"].data, _pixels(SIDE if end == "blot" else SHAPE, seed))
            header = hdus["PRIMARY"].header
            assert (header["FILENAME"], header["S_TWKREG"]) == (Path(path).name, "COMPLETE")
            assert "S_OUTLIR" not in header
            # A mosaic has straight axes, a blot the exposure's own
            assert hdus["SCI"].header["CTYPE1"] == ("RA---TAN-SIP" if end == "blot" else "RA---TAN")
            assert header.get("NDRIZ") == (None if end == "blot" else 1)
    with fits.open(paths[1]) as hdus:
        np.testing.assert_array_equal(hdus["WHT"].data, _pixels(SHAPE, 3))
        # 0.036 arcsec on the sky: the frame's own scale
        assert hdus["SCI"].header["PIXAR_A2"] == pytest.approx(0.036**2, rel=1e-12)


def test_nothing_kept(obs: Observation, tmp_path: Path) -> None:
    """Without the parameter there is nothing to write; compared in detector pixels there is no mosaic."""
    obs.commit(OutlierDocument(parameters={**KEPT, "resample_data": False}))
    assert export_outlier_products(obs, str(tmp_path / "out"), {}) == []
    obs.commit(OutlierDocument(parameters={}))
    with pytest.raises(InputError, match="keeps no intermediate results"):
        export_outlier_products(obs, str(tmp_path / "out"), {})
