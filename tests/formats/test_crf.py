"""Exposures' own products: pixels seen through the documents, cards word for word, keywords in JWST's order, the WCS."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import asdf
import numpy as np
import pytest
from asdf.exceptions import AsdfConversionWarning
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray

from streamimg3 import Session, ingest
from streamimg3.errors import InputError
from streamimg3.formats.blend import jwst_keywords
from streamimg3.formats.crf import SeenPixels, band_rows, export_crf
from streamimg3.formats.crf_header import CrfHeaders, crf_headers
from streamimg3.formats.simulate import Field, simulate
from streamimg3.formats.step_facts import StepFacts
from streamimg3.geometry import Box
from streamimg3.sky.correction import Correction
from streamimg3.store import Observation
from streamimg3.store.documents import (
    AlignedExposure,
    AlignmentDocument,
    AssociationDocument,
    OutlierDocument,
    SkyDocument,
)

from .mosaics import EXPOSURE_SHAPE, jwst_cards, jwst_record, jwst_tree
from .test_sources import _lookup_file

SHAPE = (40, 48)
COMPLETE = dict.fromkeys(("tweakreg", "skymatch", "outlier_detection", "resample"), "COMPLETE")
REGION = "POLYGON ICRS  1.000000000 2.000000000 1.100000000 2.000000000 1.100000000 2.100000000 1.000000000 2.100000000"
SIP: dict[str, str | int | float] = {"CRVAL1": 12.5, "CD1_1": 2e-6, "A_ORDER": 2, "A_0_2": 3e-7}
MATCHED = ("SCI", "ERR", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT")


@pytest.fixture(scope="module")
def association(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small exposures; the second one's variance is NaN at a pixel that nothing else marks."""
    path = simulate(tmp_path_factory.mktemp("field"), Field(shape=SHAPE, dithers=2), "field")
    with fits.open(path.parent / _files(path)[1], mode="update") as hdus:
        hdus["VAR_RNOISE"].data[20, 30] = np.nan
        hdus["DQ"].data[20, 30] = 4
    return path


def _files(association: Path) -> list[str]:
    return sorted(p.name for p in association.parent.glob("*_cal.fits"))


@pytest.fixture(scope="module")
def ingested(association: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exposures in a store with outliers: one pixel of each exposure, another one in the second."""
    obs = ingest(str(association), Session(store=str(tmp_path_factory.mktemp("store") / "s"), workers=1))
    obs.create_stack(SHAPE, 2, {"outlier": None})
    for index, pixels in enumerate([[(10, 11)], [(10, 11), (12, 13)]]):
        flags = np.zeros(SHAPE, np.uint8)
        flags[tuple(np.transpose(pixels))] = 1
        obs.write(f"exposures/{SHAPE[0]}x{SHAPE[1]}/outlier", (index,), Box(0, 0, *SHAPE), flags)
    return Path(obs.url)


@pytest.fixture
def obs(ingested: Path, tmp_path: Path) -> Observation:
    """A copy of the store in which outlier_detection has finished."""
    shutil.copytree(ingested, tmp_path / "store")
    copied = Observation.at(str(tmp_path / "store"))
    copied.commit(OutlierDocument(made="2026-01-02T03:04:05.678", flagged=(1, 2)))
    return copied


def _planes(path: str | Path) -> dict[str, NDArray[Any]]:
    with fits.open(path) as hdus:
        return {h.name: np.array(h.data) for h in hdus if h.name in (*MATCHED, "DQ", "AREA")}


def _sums(paths: Sequence[str]) -> list[str]:
    return [hashlib.sha256(Path(p).read_bytes()).hexdigest() for p in paths]


def _tree(path: str) -> dict[str, Any]:
    with fits.open(path) as hdus, warnings.catch_warnings():
        # The tree refers to the planes in their own extensions, which cannot be followed from the tree alone
        warnings.simplefilter("ignore", AsdfConversionWarning)
        with asdf.open(io.BytesIO(hdus["ASDF"].data["ASDF_METADATA"].tobytes()), lazy_load=False) as tree:
            return dict(tree.tree)


def test_pixels_names_and_types(obs: Observation, association: Path, tmp_path: Path) -> None:
    """Outliers get both flags; where anything is NaN or flagged, all of SCI, ERR and variances are NaN (spec §1)."""
    paths = export_crf(obs, str(tmp_path), {}, statuses=COMPLETE)
    assert [Path(p).name for p in paths] == [f.replace("_cal", "_o001_crf") for f in _files(association)]
    for number, path in enumerate(paths):
        with fits.open(path) as hdus:
            hdus.verify("exception")
            names = ["PRIMARY", "SCI", "ERR", "DQ", "AREA", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT", "ASDF"]
            assert [h.name for h in hdus] == names
            assert (hdus["DQ"].header["BITPIX"], hdus["DQ"].header["BZERO"]) == (32, 2**31)
            assert [h.header["BITPIX"] for h in hdus[1:3]] == [-32, -32]
        came, left = _planes(association.parent / _files(association)[number]), _planes(path)
        flags = came["DQ"].copy()
        flags[10, 11] |= 17
        flags[12, 13] |= 17 * number
        bad = (flags & 1 != 0) | np.any([np.isnan(came[p]) for p in MATCHED], axis=0)
        flags[bad] |= 1
        assert bad[20, 30] == bool(number)
        np.testing.assert_array_equal(left["DQ"], flags)
        np.testing.assert_array_equal(left["AREA"], came["AREA"])
        for plane in MATCHED:
            np.testing.assert_array_equal(left[plane], np.where(bad, np.nan, came[plane]))


def test_subtracted_sky(obs: Observation, association: Path, tmp_path: Path) -> None:
    """Levels are taken off the pixels only if the step was told so; an exposure without one is as it came."""
    obs.commit(SkyDocument(method="match", subtract=True, levels=(0.125, None)))
    paths = export_crf(obs, str(tmp_path), {}, statuses=COMPLETE)
    came = [_planes(association.parent / f)["SCI"] for f in _files(association)]
    for path, sci, level in zip(paths, came, (0.125, 0.0), strict=True):
        left = _planes(path)["SCI"]
        good = np.isfinite(left)
        np.testing.assert_array_equal(left[good], (sci - np.float32(level))[good])
    headers = [fits.getheader(p) for p in paths]
    assert [headers[0][k] for k in ("BKGMETH", "BKGLEVEL", "BKGSUB", "S_SKYMAT")] == ["match", 0.125, True, "COMPLETE"]
    assert headers[1]["S_SKYMAT"] == "SKIPPED"
    assert not {"BKGMETH", "BKGLEVEL", "BKGSUB"} & set(headers[1])


def test_what_is_taken_off() -> None:
    """Only what an exposure did not come without already, and nothing where the level is only recorded."""
    came = jwst_record(0, bkglevel=0.5, bkgsub=True)
    sky = SkyDocument(subtract=True, levels=(0.75, 0.25))
    assert StepFacts(sky=sky).taken_off(came) == 0.25
    assert StepFacts(sky=sky).taken_off(jwst_record(1, bkglevel=0.5, bkgsub=False)) == 0.25
    assert StepFacts(sky=dataclasses.replace(sky, subtract=False)).taken_off(came) == 0.0


def test_failed_detection_leaves_pixels_alone(obs: Observation, association: Path, tmp_path: Path) -> None:
    """Products are written, with flags and NaN as they came (spec §2)."""
    obs.commit(OutlierDocument(status="FAILED", reason="one exposure"))
    paths = export_crf(obs, str(tmp_path), {}, statuses=COMPLETE | {"outlier_detection": "FAILED"})
    assert [fits.getheader(p)["S_OUTLIR"] for p in paths] == ["FAILED", "FAILED"]
    for path, name in zip(paths, _files(association), strict=True):
        for plane, values in _planes(association.parent / name).items():
            np.testing.assert_array_equal(_planes(path)[plane], values)


def test_skipped_and_missing_detection(obs: Observation, tmp_path: Path) -> None:
    """A step that the user skips makes no products; a store that it never ran in is refused."""
    assert export_crf(obs, str(tmp_path), {}, statuses=COMPLETE | {"outlier_detection": "SKIPPED"}) == []
    obs.retract("outliers")
    with pytest.raises(InputError, match="no result of outlier_detection: run image3 first"):
        export_crf(obs, str(tmp_path), {})


def test_aligned_headers_tree_and_wcs(obs: Observation, association: Path, tmp_path: Path) -> None:
    """New keywords stand in JWST's order, all other cards are the exposure's; the gWCS is the corrected one."""
    correction = Correction("tangent", shift=(0.5, -0.25), origin=_origin(association))
    aligned = (AlignedExposure("REFERENCE"), AlignedExposure("SUCCESS", None, correction, REGION, SIP))
    obs.commit(AlignmentDocument(exposures=aligned))
    obs.commit(SkyDocument(method="match", levels=(0.0, 0.5)))
    paths = export_crf(obs, str(tmp_path), {}, statuses=COMPLETE)
    exposures = obs.exposures()
    for path, exposure in zip(paths, exposures, strict=True):
        with fits.open(path) as hdus:
            primary, sci = hdus["PRIMARY"].header, hdus["SCI"].header
            assert hdus["ERR"].header["BUNIT"] == "MJy/sr"
        known = [k for k in primary if k[:2] in ("S_", "BK", "AS") or k == "TELESCOP"]
        steps = _steps(exposure.cards("primary"))
        assert known == ["TELESCOP", "ASNPOOL", "ASNTABLE", *steps, "BKGMETH", "BKGLEVEL", "BKGSUB"]
        assert (primary["FILENAME"], primary["DATE"]) == (Path(path).name, "2026-01-02T03:04:05.678")
        kept = [c.image for c in _cards(exposure.cards("primary")) if c.keyword not in ("FILENAME", "DATE", "")]
        assert [c.image for c in primary.cards if c.image in kept] == kept
        changed = REGION if exposure.record.index else exposure.record.s_region
        assert sci["S_REGION"] == changed
    came = [c.image for c in _cards(exposures[0].cards("sci"))]
    assert [c.image for c in fits.getheader(paths[0], "SCI").cards][-1 - len(came) : -1] == came
    assert {k: sci[k] for k in SIP} == SIP
    assert "A_2_0" not in sci  # a coefficient of the former approximation
    _check_tree(_tree(paths[1]), exposures[1].wcs.to_sky)


def _check_tree(tree: dict[str, Any], to_sky: Callable[..., tuple[Any, Any]]) -> None:
    meta = tree["meta"]
    assert "v2v3corr" in meta["wcs"].available_frames
    y, x = np.array([0.0, 30.0]), np.array([5.0, 40.0])
    np.testing.assert_allclose(meta["wcs"](x, y), to_sky(y, x), rtol=0, atol=1e-12)
    assert meta["background"] == {"method": "match", "level": 0.5, "subtracted": False}
    assert meta["wcsinfo"]["s_region"] == REGION
    assert (meta["wcsinfo"]["a_0_2"], meta["wcsinfo"]["crval1"]) == (3e-7, 12.5)
    assert "a_2_0" not in meta["wcsinfo"]
    assert meta["cal_step"]["outlier_detection"] == "COMPLETE"
    assert meta["filename"].endswith("_o001_crf.fits")


def _origin(association: Path) -> tuple[float, float, float]:
    header = fits.getheader(association.parent / _files(association)[1], "SCI")
    return header["V2_REF"], header["V3_REF"], header["ROLL_REF"]


def _cards(text: str) -> list[fits.Card]:
    structure = ("XTENSION", "BITPIX", "PCOUNT", "GCOUNT", "EXTNAME", "EXTVER", "SIMPLE", "EXTEND")
    cards = fits.Header.fromstring(text).cards
    return [c for c in cards if c.keyword not in structure and not c.keyword.startswith("NAXIS")]


def _steps(cards: str) -> list[str]:
    """Status keywords as JWST orders them: those that came and the three new ones."""
    came = {c.keyword for c in _cards(cards)}
    order = [k.name for k in jwst_keywords() if ".cal_step." in k.path]
    return [k for k in order if k in came or k in ("S_TWKREG", "S_SKYMAT", "S_OUTLIR")]


def test_moving_target_and_no_association(obs: Observation, tmp_path: Path) -> None:
    """The mean position is in the header, the step is assign_mtwcs, and the name has no mark of an association."""
    obs.commit(AssociationDocument(product="field"))
    moves = tuple(AlignedExposure("SUCCESS", None, Correction("moving", shift=(s, 0.0)), REGION) for s in (0.0, 1e-5))
    obs.commit(AlignmentDocument(step="assign_mtwcs", exposures=moves, target=(12.5, -3.25)))
    statuses = {"assign_mtwcs": "COMPLETE", "outlier_detection": "COMPLETE"}
    paths = export_crf(obs, str(tmp_path), {}, statuses=statuses)
    header = fits.getheader(paths[1], "PRIMARY")
    assert Path(paths[1]).name.endswith("_crf.fits") and "o001" not in Path(paths[1]).name
    assert header["S_MTWCS"] == "COMPLETE"
    assert not {"S_TWKREG", "ASNPOOL", "ASNTABLE"} & set(header)
    sci = fits.getheader(paths[1], "SCI")
    assert (sci["MT_AVRA"], sci["MT_AVDEC"]) == (12.5, -3.25)
    assert _tree(paths[1])["meta"]["wcs"].output_frame.name == "moving_target"


def test_memory_limit_and_repetition_change_no_byte(obs: Observation, tmp_path: Path) -> None:
    """The lowest bands give the same files, and so does writing them again."""
    whole = _sums(export_crf(obs, str(tmp_path / "a"), {}, statuses=COMPLETE))
    assert _sums(export_crf(obs, str(tmp_path / "b"), {}, statuses=COMPLETE, limit=1)) == whole
    assert _sums(export_crf(obs, str(tmp_path / "a"), {}, statuses=COMPLETE)) == whole


def test_height_of_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole shards without a limit, whole chunks where they fit, parts of a chunk in an emergency."""
    monkeypatch.setattr("streamimg3.formats.crf.resident", lambda: 100 * 2**20)
    assert band_rows((2048, 2048), None) == 2048
    assert band_rows((2048, 2048), 2**30) == 2048
    assert band_rows((2048, 2048), 166 * 2**20) == 512
    assert band_rows((2048, 2048), 140 * 2**20) == 128
    assert band_rows((2048, 2048), 100 * 2**20) == 32
    assert band_rows((20, 48), 1) == 20


def test_bands_do_not_change_pixels(obs: Observation) -> None:
    """Any division in bands gives the same pixels, in any order of planes."""
    exposure, facts = obs.exposures()[1], StepFacts.of(obs, COMPLETE)
    whole = SeenPixels(exposure, facts)
    for plane in ("dq", "err", "sci"):
        bands = SeenPixels(exposure, facts)
        parts = [bands.read(plane, (), y0, min(y0 + 7, SHAPE[0])) for y0 in range(0, SHAPE[0], 7)]
        assert np.concatenate(parts).tobytes() == whole.read(plane, (), 0, SHAPE[0]).tobytes()


def test_products_can_be_reduced_again(obs: Observation, tmp_path: Path) -> None:
    """A product is an exposure: levels, outline and pixels come back from it."""
    obs.commit(SkyDocument(method="match", levels=(0.25, 0.5)))
    obs.commit(AlignmentDocument(exposures=(AlignedExposure("REFERENCE"), AlignedExposure("SUCCESS", s_region=REGION))))
    paths = export_crf(obs, str(tmp_path / "crf"), {}, statuses=COMPLETE)
    again = ingest(paths, Session(store=str(tmp_path / "again"), workers=1))
    records = again.records()
    assert [(r.bkglevel, r.bkgsub, r.bkgmeth) for r in records] == [(0.25, False, "match"), (0.5, False, "match")]
    assert (records[1].s_region, records[1].wcs_kind) == (REGION, "gwcs")
    dq = again.exposures()[1].read("dq", Box(0, 0, *SHAPE))
    np.testing.assert_array_equal(dq, _planes(paths[1])["DQ"])


# ---------------------------------------------------------------- other telescopes
def _other(folder: Path, *, one_header: bool) -> str:
    """An image with a TAN WCS and no DQ, in the primary unit or in an extension."""
    data = np.arange(SHAPE[0] * SHAPE[1], dtype=np.float32).reshape(SHAPE)
    data[3, 4] = np.nan
    header = fits.Header()
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN", "DEC--TAN"
    header["CRPIX1"], header["CRPIX2"], header["CRVAL1"], header["CRVAL2"] = 20.0, 24.0, 10.0, 20.0
    header["CD1_1"], header["CD1_2"], header["CD2_1"], header["CD2_2"] = -1e-5, 0.0, 0.0, 1e-5
    header["GAIN"], header["BUNIT"] = 4.5, "adu"
    primary = fits.Header({"TELESCOP": "VISTA", "EXPTIME": 30.0})
    hdus = fits.HDUList([fits.PrimaryHDU(data, header=fits.Header([*primary.cards, *header.cards]))])
    if not one_header:
        hdus = fits.HDUList([fits.PrimaryHDU(header=primary), fits.ImageHDU(data, header=header, name="SCI")])
        hdus.append(fits.ImageHDU(np.full(SHAPE, 2.0, np.float32), name="WHT"))
    path = folder / "other.fits"
    hdus.writeto(path)
    return str(path)


@pytest.mark.parametrize("one_header", [False, True])
def test_other_telescopes(tmp_path: Path, one_header: bool) -> None:
    """Same planes under their own header, a DQ plane of ours, the WCS as corrected; no metadata tree."""
    url = _other(tmp_path, one_header=one_header)
    obs = ingest(url, Session(store=str(tmp_path / "s"), workers=1))
    obs.create_stack(SHAPE, 1, {"outlier": None})
    flags = np.zeros(SHAPE, np.uint8)
    flags[10, 11] = 1
    obs.write(f"exposures/{SHAPE[0]}x{SHAPE[1]}/outlier", (0,), Box(0, 0, *SHAPE), flags)
    obs.commit(OutlierDocument(made="2026-01-02T03:04:05.678"))
    correction = Correction("tangent", shift=(0.1, 0.2))
    obs.commit(AlignmentDocument(exposures=(AlignedExposure("SUCCESS", None, correction, REGION),)))
    (path,) = export_crf(obs, str(tmp_path), {}, statuses=COMPLETE)
    assert Path(path).name == "other_crf.fits"
    with fits.open(path) as hdus:
        hdus.verify("exception")
        assert [h.name for h in hdus] == ["PRIMARY", "SCI", "DQ", *([] if one_header else ["WHT"])]
        assert (hdus[0].header["TELESCOP"], hdus[0].header["S_OUTLIR"]) == ("VISTA", "COMPLETE")
        assert (hdus[0 if one_header else 1].header["GAIN"], hdus["SCI"].header["BUNIT"]) == (4.5, "adu")
        assert "CRVAL1" not in hdus[0].header
        assert hdus["SCI"].header["S_REGION"] == REGION
        assert np.argwhere(np.isnan(hdus["SCI"].data)).tolist() == [[3, 4], [10, 11]]
        assert [hdus["DQ"].data[p] for p in ((3, 4), (10, 11), (0, 0))] == [1, 17, 0]
        y, x = np.array([0.0, 30.0]), np.array([5.0, 40.0])
        found = WCS(hdus["SCI"].header).all_pix2world(x, y, 0)
    # 1e-12 deg: the cards hold the numbers that the store computes with
    np.testing.assert_allclose(found, obs.exposures()[0].wcs.to_sky(y, x), rtol=0, atol=1e-12)
    assert abs(found[0][0] - WCS(fits.getheader(url, 0 if one_header else 1)).all_pix2world(x, y, 0)[0][0]) > 1e-5


def _headers_of(tmp_path: Path, cards: tuple[str, str], **documents: Any) -> CrfHeaders:
    """Headers of the product of one exposure with these cards."""
    obs = Observation.at(str(tmp_path / "s"))
    for name, text in (("cards_primary", cards[0].encode()), ("cards_sci", cards[1].encode()), ("wcs", jwst_tree())):
        obs.create_table(EXPOSURE_SHAPE, name, [text])
    obs.write_records([jwst_record(0)])
    obs.write_root({"ingested": True})
    return crf_headers(obs.exposures()[0], StepFacts({"outlier_detection": "FAILED"}, **documents))


def test_new_keywords_and_headings(tmp_path: Path) -> None:
    """A section that the exposure lacks gets its heading; what is in no schema stays where it is, and known values too."""
    aligned = AlignmentDocument(exposures=(AlignedExposure("SUCCESS", s_region=REGION, sip=SIP),))
    primary, sci = jwst_cards(0)
    found = _headers_of(
        tmp_path,
        (primary, sci + str(fits.Card("CDELT1", 1.0)) + str(fits.Card("A_2_0", 1e-7))),
        association=AssociationDocument(pool="pool", asn_id="o002"),
        alignment=aligned,
        sky=SkyDocument(method="match", levels=(0.0,)),
    )
    names = [c.keyword or str(c.value) for c in found.primary if c.keyword or str(c.value)]
    start = names.index("TELESCOP")
    assert names[start : start + 3] == ["TELESCOP", "Association information", "ASNPOOL"]
    assert names[names.index("Target information") + 1] == "TARG_RA"
    assert names.index("S_WCS") < names.index("S_OUTLIR") < names.index("BKGLEVEL")
    assert names[-5:] == ["BKGLEVEL", "BKGMETH", "BKGSUB", "MYKEY", "S3VER"]
    assert {c.keyword: c.comment for c in found.primary}["BKGLEVEL"] == "comment of BKGLEVEL"
    assert {c.keyword: c.value for c in found.primary}["FILENAME"] == "jw00_o002_crf.fits"
    values = {c.keyword: c.value for c in found.sci}
    assert (values["A_ORDER"], values["CD1_1"], values["S_REGION"]) == (2, 2e-6, REGION)
    assert (values["CRPIX1"], values["VELOSYS"]) == (10.5, 0.0)
    assert not {"CDELT1", "A_2_0", "XTENSION", "NAXIS1"} & set(values)


def test_unreadable_cards_are_left_out(tmp_path: Path) -> None:
    """A card that is not FITS does not keep the others from being written."""
    primary, sci = jwst_cards(0)
    names = [c.keyword for c in _headers_of(tmp_path, (primary + "BROKEN  = 'no end".ljust(80), sci)).primary]
    assert "MYKEY" in names and "S_OUTLIR" in names
    assert names[-1] == "S3VER"


def test_look_up_tables_travel_along(tmp_path: Path) -> None:
    """A distortion kept in tables is in the product as it was in the file."""
    url = _lookup_file(tmp_path / "lookup.fits")
    obs = ingest(url, Session(store=str(tmp_path / "s"), workers=1))
    obs.commit(OutlierDocument(status="FAILED"))
    (path,) = export_crf(obs, str(tmp_path), {}, statuses={"outlier_detection": "FAILED"})
    y, x = np.array([3.0, 11.0]), np.array([2.0, 7.0])
    with fits.open(path) as hdus:
        hdus.verify("exception")
        found = WCS(hdus["SCI"].header, fobj=hdus).all_pix2world(x, y, 0)
    # 1e-12 deg: the very same cards and tables
    np.testing.assert_allclose(found, obs.exposures()[0].wcs.to_sky(y, x), rtol=0, atol=1e-12)
