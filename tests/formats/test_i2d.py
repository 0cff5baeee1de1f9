"""The mosaic's FITS file: extensions, pixels, merged headers, HDRTAB, metadata tree; JWST and others."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asdf
import fsspec
import gwcs
import numpy as np
import pytest
from asdf.exceptions import AsdfConversionWarning
from astropy.io import fits
from astropy.modeling import models
from astropy.wcs import WCS

from streamimg3.errors import InputError, StoreError
from streamimg3.formats.i2d import _band_rows, export_i2d
from streamimg3.formats.i2d_header import wcs_keywords
from streamimg3.sky.mosaic_frame import as_asdf, plain_frames
from streamimg3.sky.wcs import Wcs
from streamimg3.store import Observation
from streamimg3.store.documents import (
    AlignedExposure,
    AlignmentDocument,
    AssociationDocument,
    OutlierDocument,
    ResampleDocument,
    SkyDocument,
)

from .mosaics import (
    ALL_PLANES,
    EXACT_AREA,
    REGION,
    SHAPE,
    jwst_cards,
    jwst_mosaic,
    jwst_record,
    write_exposures,
    write_mosaic,
)

SKIPPED = dict.fromkeys(("tweakreg", "skymatch", "outlier_detection", "source_catalog"), "SKIPPED")


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fits.HDUList]:
    """A mosaic of three exposures in two groups, with every plane."""
    folder = tmp_path_factory.mktemp("i2d")
    obs, _ = jwst_mosaic(str(folder / "store"))
    path = export_i2d(obs, str(folder), {}, statuses=SKIPPED)
    assert path == str(folder / "field_i2d.fits")
    with fits.open(path) as opened:
        opened.verify("exception")
        yield opened


def _tree(hdus: fits.HDUList) -> dict[str, Any]:
    with warnings.catch_warnings():
        # The tree refers to the planes in their own extensions, which cannot be followed from the tree alone
        warnings.simplefilter("ignore", AsdfConversionWarning)
        with asdf.open(io.BytesIO(hdus["ASDF"].data["ASDF_METADATA"].tobytes()), lazy_load=False) as tree:
            return dict(tree.tree)


def test_extensions_types_and_pixels(tmp_path: Path) -> None:
    """All planes in the order of JWST's products, bit for bit; ncontrib stays in the store."""
    obs, pixels = jwst_mosaic(str(tmp_path / "store"))
    with fits.open(export_i2d(obs, str(tmp_path), {})) as hdus:
        names = ["PRIMARY", "SCI", "ERR", "DQ", "CON", "WHT", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT", "HDRTAB", "ASDF"]
        assert [hdu.name for hdu in hdus] == names
        assert [hdu.ver for hdu in hdus[1:9]] == [1] * 8
        for plane, values in pixels.items():
            if plane != "ncontrib":
                found = hdus[plane.upper()].data
                assert found.dtype.name == values.dtype.name
                assert found.astype(values.dtype).tobytes() == values.tobytes()


@pytest.mark.parametrize(
    "missing", [("dq",), ("con",), ("err", "var_poisson", "var_rnoise", "var_flat"), ("var_flat",)]
)
def test_planes_that_were_not_made(tmp_path: Path, missing: tuple[str, ...]) -> None:
    """What the mosaic does not have is neither an extension nor in the tree."""
    obs, _ = jwst_mosaic(str(tmp_path / "store"), planes=[p for p in ALL_PLANES if p not in missing])
    with fits.open(export_i2d(obs, str(tmp_path), {})) as hdus:
        tree = _tree(hdus)
        for plane in missing:
            assert plane.upper() not in hdus
            assert plane not in tree
        assert ("bunit_err" in tree["meta"]) is ("err" not in missing)


def test_merged_keywords(product: fits.HDUList) -> None:
    """The first exposure's values, rules, and times that count exposures of one group once (spec §7.7, §8)."""
    primary, sci = product["PRIMARY"].header, product["SCI"].header
    expected = {
        "FILENAME": "field_i2d.fits", "CAL_VER": "1.2.3", "DATAMODL": "ImageModel", "ASNPOOL": "pool.csv",
        "ASNTABLE": "field_asn.json", "DATE-OBS": "2024-03-01", "TIME-OBS": "01:00:00.000", "DETECTOR": "MULTIPLE",
        "MODULE": "B", "FILTER": "F200W", "EXPSTART": 60000.0, "EXPMID": 60001.0, "EXPEND": 60002.5,
        "EFFEXPTM": 201.0, "TMEASURE": 200.5, "DURATION": 205.0, "NDRIZ": 2, "RESWHT": "ivm", "PIXFRAC": 0.75,
        "PXSCLRT": 1.25, "BKGMETH": "match", "S_RESAMP": "COMPLETE", "S_TWKREG": "SKIPPED", "S_SKYMAT": "SKIPPED",
        "S_OUTLIR": "SKIPPED", "S_WCS": "COMPLETE",
    }  # fmt: skip
    assert {key: primary[key] for key in expected} == expected
    assert not {"BKGLEVEL", "BKGSUB", "MYKEY", "S_SRCCAT"} & set(primary)
    assert "S3VER" in primary
    area = 0.036**2
    assert (sci["XPOSURE"], sci["TELAPSE"], sci["BUNIT"], sci["S_REGION"]) == (201.0, 205.0, "MJy/sr", REGION)
    # A card of 20 characters holds 15 digits of these
    assert sci["PIXAR_A2"] == pytest.approx(area, rel=1e-14)
    assert sci["PIXAR_SR"] == pytest.approx(area * np.deg2rad(1 / 3600) ** 2, rel=1e-14)
    assert product["ERR"].header["BUNIT"] == "MJy/sr"
    assert "BUNIT" not in product["WHT"].header


def test_wcs_keywords_are_the_mosaics(product: fits.HDUList) -> None:
    """Nothing of the exposures' WCS is left, and the FITS WCS equals the gWCS of the tree."""
    header = product["SCI"].header
    assert not {"CD1_1", "A_ORDER", "V2_REF"} & set(header)
    assert header["CTYPE1"] == "RA---TAN"
    wcs = _tree(product)["meta"]["wcs"]
    y, x = np.mgrid[0 : SHAPE[0] : 7, 0 : SHAPE[1] : 7]
    # one ten-thousandth of a milliarcsecond
    np.testing.assert_allclose(WCS(header).pixel_to_world_values(x, y), wcs(x, y), atol=3e-11, rtol=0)
    assert header["RADESYS"] == "ICRS"


def test_cards_are_in_order_under_headings(product: fits.HDUList) -> None:
    """Headings come from the exposures, or are ours for sections they lack; comments are kept."""
    cards = [(c.keyword, c.value) for c in product["PRIMARY"].header.cards]
    assert cards.index(("", "Target information")) < cards.index(("TARG_RA", 10.5))
    assert (
        cards.index(("", "Resample Parameters"))
        < cards.index(("NDRIZ", 2))
        < cards.index(("", "Background information"))
    )
    assert product["PRIMARY"].header.comments["TARG_RA"] == "comment of TARG_RA"
    assert product["SCI"].header["PHOTMJSR"] == 2.5
    keys = [k for k in product["SCI"].header if k not in ("", "CONTINUE")]
    assert (
        keys.index("XPOSURE")
        < keys.index("BUNIT")
        < keys.index("PHOTMJSR")
        < keys.index("WCSAXES")
        < keys.index("S_REGION")
    )
    assert keys[-1] == "EXTVER"


def test_table_of_exposures(product: fits.HDUList) -> None:
    """One row per exposure, what each had, plus what the run did to it."""
    data = product["HDRTAB"].data
    assert list(data["FILENAME"]) == ["jw00_cal.fits", "jw01_cal.fits", "jw02_cal.fits"]
    assert list(data["DETECTOR"]) == ["NRCB1", "NRCB2", "NRCB3"]
    assert list(data["IS_PSF"]) == [False, True, False]
    assert list(data["BKGLEVEL"]) == [0.0, 0.5, 1.0]
    assert list(data["S_TWKREG"]) == ["SKIPPED"] * 3
    assert list(data["ASNTABLE"]) == ["field_asn.json"] * 3
    assert list(data["PIXAR_SR"]) == [EXACT_AREA] * 3
    assert not {"S_RESAMP", "NDRIZ", "A_ORDER", "MYKEY"} & set(data.names)
    assert product["HDRTAB"].ver == 1


def test_metadata_tree(product: fits.HDUList) -> None:
    """The tree says what the headers say, refers to the planes, and carries the hash of all headers before it."""
    tree = _tree(product)
    meta = tree["meta"]
    assert meta["resample"] == {
        "pointings": 2, "weight_type": "ivm", "pixfrac": 0.75, "pixel_scale_ratio": 1.25, "kernel": "square", "fillval": "NAN",
    }  # fmt: skip
    assert meta["exposure"]["exposure_time"] == 201.0
    assert meta["photometry"]["pixelarea_steradians"] == 0.036**2 / np.rad2deg(3600) ** 2
    assert meta["cal_step"]["resample"] == "COMPLETE"
    assert meta["wcs"].pixel_shape is None or meta["wcs"].pixel_shape == SHAPE[::-1]
    text = product["ASDF"].data["ASDF_METADATA"].tobytes()
    for extension in ("SCI", "ERR", "DQ", "CON", "WHT", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT", "HDRTAB"):
        assert f"source: fits:{extension},1".encode() in text
    headers = "".join(str(hdu.header) for hdu in product if hdu.name != "ASDF")
    assert tree["_fits_hash"] == hashlib.sha256(headers.encode()).hexdigest()


def test_headers_not_merged(tmp_path: Path) -> None:
    """Without blendheaders: the first exposure's values, no table; times are still those of the mosaic."""
    obs, _ = jwst_mosaic(str(tmp_path / "store"), parameters={"blendheaders": False})
    with fits.open(export_i2d(obs, str(tmp_path), {})) as hdus:
        assert "HDRTAB" not in hdus
        assert "hdrtab" not in _tree(hdus)
        header = hdus["PRIMARY"].header
        assert (header["DETECTOR"], header["TIME-OBS"], header["EXPMID"]) == ("NRCB1", "03:00:00.000", 60000.0)
        assert (header["EFFEXPTM"], header["EXPEND"], header["NDRIZ"]) == (201.0, 60002.5, 2)


def test_background_levels_of_skymatch(tmp_path: Path) -> None:
    """Levels that were solved are in the table; an exposure without one is marked skipped."""
    obs, _ = jwst_mosaic(str(tmp_path / "store"))
    obs.commit(SkyDocument(method="global", levels=(0.25, None, 0.0)))
    with fits.open(export_i2d(obs, str(tmp_path), {}, statuses={"skymatch": "COMPLETE"})) as hdus:
        data = hdus["HDRTAB"].data
        assert list(data["BKGLEVEL"]) == [0.25, 0.5, 0.0]
        assert list(data["S_SKYMAT"]) == ["COMPLETE", "SKIPPED", "COMPLETE"]
        assert hdus["PRIMARY"].header["BKGMETH"] == "global"
        assert "BKGLEVEL" not in hdus["PRIMARY"].header


def test_rows_are_the_exposures_as_the_steps_left_them(tmp_path: Path) -> None:
    """Names of their own products, outlines and WCS terms as aligned, the sky; stale terms of the WCS are gone."""
    obs, _ = jwst_mosaic(str(tmp_path / "store"))
    moved, sip = "POLYGON ICRS  1.0 2.0 1.1 2.0 1.1 2.1", {"CRVAL1": 12.5, "CD1_1": 2e-6, "A_ORDER": 2, "MJDREF": 0.0}
    aligned = (AlignedExposure("REFERENCE"), *[AlignedExposure("SUCCESS", s_region=moved, sip=sip)] * 2)
    obs.commit(AlignmentDocument(exposures=aligned, parameters={"save_catalogs": True}))
    obs.commit(SkyDocument(method="match", subtract=True, levels=(0.25, None, 0.0)))
    obs.commit(OutlierDocument(made="2026-01-02T03:04:05.678"))
    obs.commit(dataclasses.replace(obs.document(AssociationDocument) or AssociationDocument(), asn_id="o007"))
    statuses = {"tweakreg": "COMPLETE", "skymatch": "COMPLETE", "outlier_detection": "COMPLETE"}
    with fits.open(export_i2d(obs, str(tmp_path), {}, statuses=statuses)) as hdus:
        data, primary, sci = hdus["HDRTAB"].data, hdus["PRIMARY"].header, hdus["SCI"].header
        assert list(data["FILENAME"]) == [f"jw0{i}_o007_crf.fits" for i in range(3)]
        assert set(data["DATE"]) == {"2026-01-02T03:04:05.678"}
        assert list(data["S_REGION"]) == [REGION, moved, moved]
        assert list(data["CD1_1"]) == [1e-5, 2e-6, 2e-6]
        assert list(data["BKGSUB"]) == [True, False, True]  # the second one's is what it came with
        assert (primary["S_TWKREG"], primary["BKGMETH"], primary["TCATFILE"]) == (
            "COMPLETE",
            "match",
            "jw00_cal_cat.ecsv",
        )
        assert primary["FILENAME"] == "field_i2d.fits"
        assert not {"CD1_1", "MJDREF"} & set(sci)


def test_moving_target(tmp_path: Path) -> None:
    """The step is assign_mtwcs, and the mean position is the mosaic's."""
    obs, _ = jwst_mosaic(str(tmp_path / "store"))
    moved = (AlignedExposure("SUCCESS"),) * 3
    obs.commit(AlignmentDocument(step="assign_mtwcs", exposures=moved, target=(12.5, -3.25)))
    with fits.open(export_i2d(obs, str(tmp_path), {}, statuses={"assign_mtwcs": "COMPLETE"})) as hdus:
        assert hdus["PRIMARY"].header["S_MTWCS"] == "COMPLETE"
        assert "S_TWKREG" not in hdus["PRIMARY"].header
        assert (hdus["SCI"].header["MT_AVRA"], hdus["SCI"].header["MT_AVDEC"]) == (12.5, -3.25)


def test_times_that_exposures_lack(tmp_path: Path) -> None:
    """Unknown times are left out, TMEASURE also if only one exposure lacks it."""
    unknown = {"exposure_time": None, "duration": None, "start_mjd": None, "end_mjd": None}
    obs = Observation.at(str(tmp_path / "store"))
    records = [jwst_record(0, **unknown, measurement_time=None), jwst_record(1, **unknown)]
    write_exposures(obs, records, [jwst_cards(i, EFFEXPTM=None) for i in range(2)])
    write_mosaic(obs)
    with fits.open(export_i2d(obs, str(tmp_path), {})) as hdus:
        assert not {"EFFEXPTM", "TMEASURE", "DURATION", "EXPSTART", "EXPEND"} & set(hdus["PRIMARY"].header)
        assert not {"XPOSURE", "TELAPSE"} & set(hdus["SCI"].header)


def test_notes_are_history(tmp_path: Path) -> None:
    """What the step had to assume is in the header; odd characters do no harm, and long lines are wrapped."""
    obs, _ = jwst_mosaic(str(tmp_path / "store"), notes=("no ERR \u2260 " + "word " * 30,), s_region=None)
    with fits.open(export_i2d(obs, str(tmp_path), {})) as hdus:
        assert " ".join(hdus[0].header["HISTORY"]) == "no ERR ? " + " ".join(["word"] * 30)
        assert "S_REGION" not in hdus["SCI"].header


GENERIC_PRIMARY = {
    "TELESCOP": "VISTA", "EXPTIME": 30, "MJD-OBS": 58000.5, "DATE-OBS": "2017-09-04T12:00:00", "FILTER": "Ks",
    "CRVAL1": 5.0, "EXTEND": True, "OBJECT": "M17",
}  # fmt: skip
GENERIC_SCI = {"CRPIX1": 5.5, "PV2_3": 1.0, "GAIN": 4.5, "BUNIT": "adu", "INHERIT": True, "EXTNAME": "DET1.CHIP1"}


def _generic_cards(index: int, one_header: bool) -> tuple[str, str]:
    primary = fits.Header(GENERIC_PRIMARY | {"MJD-OBS": 58000.5 - index, "FILTER": ["Ks", "J"][index]})
    primary["HIERARCH ESO DET NDIT"] = 3
    primary["HISTORY"] = "of one exposure only"
    sci = fits.Header(GENERIC_SCI)
    if index:
        sci["ONLY1"] = 7
    texts = [h.tostring(endcard=False, padding=False) for h in (primary, sci)]
    return ("".join(texts),) * 2 if one_header else (texts[0], texts[1])


@pytest.mark.parametrize("one_header", [False, True])
def test_other_telescopes(tmp_path: Path, one_header: bool) -> None:
    """Keywords of the first exposure without structure and WCS, summed times, ours; the table has all simple keywords."""
    facts: dict[str, Any] = {
        "is_jwst": False, "wcs_kind": "fits", "bunit": "adu", "exposure_time": 30.0, "measurement_time": None, "duration": None,
    }  # fmt: skip
    records = [jwst_record(i, **facts, start_mjd=58000.5 - i, end_mjd=None) for i in range(2)]
    obs = Observation.at(str(tmp_path / "store"))
    write_exposures(obs, records, [_generic_cards(i, one_header) for i in range(2)])
    write_mosaic(obs, planes=("sci", "wht", "con", "err"))
    with fits.open(export_i2d(obs, str(tmp_path), {}, statuses={"tweakreg": "SKIPPED"})) as hdus:
        hdus.verify("exception")
        primary, sci = hdus["PRIMARY"].header, hdus["SCI"].header
        both = {**primary, **sci}
        expected = {"TELESCOP": "VISTA", "EXPTIME": 60.0, "MJD-OBS": 57999.5, "FILTER": "MULTIPLE", "OBJECT": "M17",
                    "GAIN": 4.5, "NDRIZ": 2, "S_TWKREG": "SKIPPED", "S_RESAMP": "COMPLETE", "ESO DET NDIT": 3}  # fmt: skip
        assert {key: both[key] for key in expected} == expected
        assert ("GAIN" in primary) is one_header
        assert sci["BUNIT"] == hdus["ERR"].header["BUNIT"] == "adu"
        assert not {"PV2_3", "INHERIT", "EXPSTART", "HISTORY"} & set(both)
        assert sci["CRVAL1"] == 10.005
        assert WCS(sci).wcs.radesys == "ICRS"
        data = hdus["HDRTAB"].data
        assert data.names[0] == "FILENAME"
        assert list(data["MJD-OBS"]) == [58000.5, 57999.5]
        assert list(data["CRPIX1"]) == [5.5, 5.5]
        np.testing.assert_array_equal(data["ONLY1"], [np.nan, 7])
        assert _tree(hdus)["meta"]["resample"]["pointings"] == 2


def test_frame_that_is_no_tangent_plane() -> None:
    """A gWCS of another make gets straight axes fitted; over a small field they hold to a hundredth of a pixel."""
    first, last = plain_frames()  # type: ignore[no-untyped-call]
    chain = models.Shift(-40.0) & models.Shift(-30.0) | models.Scale(1e-5) & models.Scale(1e-5) | models.Pix2Sky_TAN()
    wcs = gwcs.WCS([(first, chain | models.RotateNative2Celestial(10, 20, 180)), (last, None)])
    wcs.bounding_box = ((-0.5, SHAPE[1] - 0.5), (-0.5, SHAPE[0] - 0.5))
    found = wcs_keywords(Wcs("gwcs", as_asdf(wcs), SHAPE))
    assert found["CTYPE1"] == "RA---TAN"
    header = fits.Header(found)
    y, x = np.mgrid[0 : SHAPE[0] : 7, 0 : SHAPE[1] : 7]
    np.testing.assert_allclose(WCS(header).pixel_to_world_values(x, y), wcs(x, y), atol=1e-7, rtol=0)


def test_memory_limit_changes_bands_not_bytes(tmp_path: Path) -> None:
    """However little memory there is, the file is the same but for its date."""
    obs, _ = jwst_mosaic(str(tmp_path / "store"))
    texts = []
    for limit in (None, 1):
        data = Path(export_i2d(obs, str(tmp_path / "x_i2d.fits"), {}, limit=limit)).read_bytes()
        with fits.open(io.BytesIO(data)) as hdus:
            texts.append([hdu.data.tobytes() for hdu in hdus[1:10]])
    assert texts[0] == texts[1]


def test_height_of_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole tiles, else whole chunks, else a part that divides a chunk, but never single rows."""
    mib = 2**20
    monkeypatch.setattr("streamimg3.formats.i2d.resident", lambda: 200 * mib)
    heights = [_band_rows(1024, 8192, 4, limit and limit * mib) for limit in (None, 2000, 300, 240, 200, 1)]
    assert heights == [1024, 1024, 512, 128, 16, 16]


def test_names_and_places(tmp_path: Path) -> None:
    """A folder gets the product's name, a path is taken as it is, mosaics of one group are named after it."""
    obs, _ = jwst_mosaic(str(tmp_path / "store"))
    document = obs.document(ResampleDocument)
    assert document is not None
    obs.commit(dataclasses.replace(document, exposures=(1, 2)), "resample-jw01")
    assert export_i2d(obs, str(tmp_path / "a.fits"), {}) == str(tmp_path / "a.fits")
    path = export_i2d(obs, str(tmp_path), {}, name="resample-jw01")
    assert path == str(tmp_path / "jw01_outlier_i2d.fits")
    with fits.open(path) as hdus:
        assert list(hdus["HDRTAB"].data["FILENAME"]) == ["jw01_cal.fits", "jw02_cal.fits"]
    with fits.open(tmp_path / "a.fits") as hdus:
        assert hdus[0].header["FILENAME"] == "a.fits"


def test_remote_store_and_destination() -> None:
    """Stores and products behind URLs go the same way."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    obs, pixels = jwst_mosaic("memory://door/store")
    assert export_i2d(obs, "memory://door/out", {}) == "memory://door/out/field_i2d.fits"
    with fits.open(io.BytesIO(fs.cat("/door/out/field_i2d.fits"))) as hdus:
        np.testing.assert_array_equal(hdus["SCI"].data, pixels["sci"])
    fs.store.clear()


def test_no_mosaic(tmp_path: Path) -> None:
    """A store without a finished mosaic is one line."""
    obs = Observation.at(str(tmp_path / "store"))
    write_exposures(obs, [jwst_record(0)], [jwst_cards(0)])
    with pytest.raises(InputError, match="holds no finished mosaic 'resample': run image3 first"):
        export_i2d(obs, str(tmp_path), {})


def test_damaged_tile_leaves_no_product(tmp_path: Path) -> None:
    """A shard that cannot be decoded ends the export; the folder stays as it was."""
    obs, _ = jwst_mosaic(str(tmp_path / "store"))
    shard = tmp_path / "store" / "mosaic" / "wht" / "c" / "1" / "1"
    shard.write_bytes(b"\xff" * (shard.stat().st_size // 2))
    with pytest.raises(StoreError, match="mosaic/wht"):
        export_i2d(obs, str(tmp_path / "out"), {})
    assert os.listdir(tmp_path / "out") == []


def test_lazy_imports() -> None:
    """Loading the module does not load what only an export needs."""
    code = "import sys, streamimg3.formats.i2d; print(sorted({'gwcs', 'asdf', 'obstore', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
