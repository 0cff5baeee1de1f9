"""gWCS of imaging exposures, against what jwst 3.0.0 makes of the same files (numbers in assign_wcs.json)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits
from astropy.modeling.models import Mapping, Polynomial2D

from streamimg3.errors import InputError
from streamimg3.sky.detector_frame import Pointing
from streamimg3.sky.distortion_file import FilterOffset, distortion_model
from streamimg3.sky.imaging_wcs import Subarray, as_wcs, chain_of, described, imaging_wcs
from streamimg3.sky.sip import SipOptions
from streamimg3.sky.tangent import own_plane
from streamimg3.sky.wcs import Wcs
from tests.sky.assigned import case_of, made, recorded, stored, trees_of
from tests.sky.wcs_references import cases

NAMES = [name for name, case in cases().items() if case.keywords["INSTRUME"] != "NIRSPEC"]
EXACT = [name for name in NAMES if not name.startswith("real")]  # their distortions have exact inverses


@pytest.mark.parametrize("name", NAMES)
def test_positions_are_those_of_the_reference(name: str) -> None:
    wcs, wanted = stored(name), recorded(name)
    y, x = case_of(name).pixels(wanted.box)
    np.testing.assert_allclose(wcs.to_sky(y, x, bounded=False), wanted.sky, rtol=0, atol=1e-12)
    np.testing.assert_allclose(wcs.to_pixel(*wanted.sky), wanted.pixels, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", EXACT)
def test_there_and_back(name: str) -> None:
    y, x = case_of(name).pixels(recorded(name).box)
    np.testing.assert_allclose(stored(name).to_pixel(*stored(name).to_sky(y, x)), (y, x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_frames_box_and_outline(name: str) -> None:
    wcs, wanted = stored(name), recorded(name)
    assert wcs.gwcs().available_frames == list(wanted.frames) == ["detector", "v2v3", "v2v3vacorr", "world"]
    assert wcs.bounds == wanted.box
    assert described(wcs, (None, None), None).s_region == wanted.s_region


@pytest.mark.parametrize("name", ["nircam", "nircam_subarray", "niriss", "real_miri_flt9", "real_niriss"])
def test_approximation_is_that_of_the_reference(name: str) -> None:
    found = described(stored(name), (None, None), SipOptions())
    for keyword, value in recorded(name).sip.items():
        # the fit is linear algebra, whose last digits depend on the processor
        assert found.sip[keyword] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-6, abs=1e-13))
    assert not found.notes


def test_approximation_is_close_and_keeps_the_reference_pixel() -> None:
    wcs, (y, x) = stored("nircam"), case_of("nircam").pixels(((0.0, 2047.0), (0.0, 2047.0)))
    found = described(wcs, (1000.5, 900.5), SipOptions(max_pix_error=0.001))
    assert (found.sip["CRPIX1"], found.sip["CRPIX2"]) == (1000.5, 900.5)
    assert (found.sip["CTYPE1"], found.sip["CTYPE2"]) == ("RA---TAN-SIP", "DEC--TAN-SIP")
    header = fits.Header(found.sip).tostring(endcard=False, padding=False).encode()
    pixels = np.array(wcs.to_pixel(*Wcs("fits", header, wcs.shape).to_sky(y, x)))
    assert np.abs(pixels - (y, x)).max() < 0.001


def test_approximation_that_fails_is_told() -> None:
    found = described(stored("nircam"), (None, None), SipOptions(npoints=0))
    assert found.sip == {} and found.notes[0].startswith("no FITS-SIP keywords: ")
    assert found.s_region == recorded("nircam").s_region


def test_subarray_is_a_part_of_the_full_frame() -> None:
    case = cases()["nircam_subarray"]
    whole = replace(case, keywords=case.keywords | {"SUBSTRT1": 1, "SUBSTRT2": 1})
    part, full = as_wcs(made(case), case.shape), as_wcs(made(whole), case.shape)
    y, x = case.pixels(((0.0, 47.0), (0.0, 63.0)))
    np.testing.assert_allclose(
        part.to_sky(y, x), full.to_sky(y + 20, x + 30, bounded=False), rtol=0, atol=1e-13
    )  # 0-based corner of SUBSTRT 31, 21
    assert full.bounds == ((3.5, 2043.5), (4.5, 2040.5))  # the file's own


def test_filter_offset_is_added_to_the_pixel() -> None:
    case = cases()["fgs"]
    model, pointing = distortion_model(trees_of(case)["distortion"], "d"), Pointing.of(case.keywords, "e")
    plain, moved = (
        as_wcs(imaging_wcs(model, offset, Subarray(), pointing, case.shape), case.shape)
        for offset in (None, FilterOffset(-1.5, 0.75))
    )
    y, x = case.pixels(((10.0, 2000.0), (10.0, 2000.0)))
    np.testing.assert_allclose(moved.to_sky(y, x), plain.to_sky(y - 1.5, x + 0.75), rtol=0, atol=1e-13)


def test_box_of_the_file_stays_with_a_filter_offset() -> None:
    """The reference cannot: the box knows its axes by names that the offset changes."""
    case = case_of("real_miri_0023")
    moved = replace(case, keywords=case.keywords | {"FILTER": "F1130W"})
    assert as_wcs(made(moved), case.shape).bounds == recorded("real_miri_0023").box == ((-0.5, 1023.5), (3.5, 1027.5))


def test_sizes_that_are_missing_are_those_of_the_array() -> None:
    case = cases()["nircam_subarray"]
    known = {k: v for k, v in case.keywords.items() if not k.startswith("SUBSIZE")}
    assert as_wcs(made(replace(case, keywords=known)), case.shape).bounds == ((-0.5, 47.5), (-0.5, 63.5))


def test_distortion_stays_as_it_was_and_text_is_always_the_same() -> None:
    case = cases()["niriss"]
    tree = trees_of(case)["distortion"]
    model, pointing = distortion_model(tree, "d"), Pointing.of(case.keywords, "e")
    texts = {
        as_wcs(imaging_wcs(model, offset, place, pointing, case.shape), case.shape).text
        for offset, place in ((None, Subarray()), (FilterOffset(1.0, 2.0), Subarray((3, 4))), (None, Subarray()))
    }
    assert len(texts) == 2
    assert model.bounding_box.bounding_box(order="C") == ((3.5, 2043.5), (4.5, 2040.5))


def test_alignment_finds_the_tangent_plane() -> None:
    k = case_of("nircam").keywords
    origin = (k["V2_REF"], k["V3_REF"], k["ROLL_REF"])
    plane, found = own_plane(stored("nircam"), origin)
    assert found == origin
    y, x = plane.project(np.array([k["RA_REF"]]), np.array([k["DEC_REF"]]))
    assert np.hypot(y, x)[0] < 1e-8  # arcsec


def test_outline_without_sky_is_left_out() -> None:
    case = cases()["fgs"]
    model = distortion_model(trees_of(case)["distortion"], "d").copy()
    broken = model | Mapping((0, 1, 0, 1)) | Polynomial2D(1, c1_0=float("nan")) & Polynomial2D(1, c0_1=1.0)
    broken.inverse = model.inverse
    wcs = as_wcs(imaging_wcs(broken, None, Subarray(), Pointing.of(case.keywords, "e"), case.shape), case.shape)
    found = described(wcs, (None, None), None)
    assert found.s_region is None and "S_REGION" in found.notes[0]


@pytest.mark.parametrize(
    ("instrument", "exp_type", "grating", "wanted"),
    [
        ("NIRCAM", "NRC_IMAGE", None, "imaging"),
        ("NIRCAM", "NRC_TSIMAGE", None, "imaging"),
        ("NIRCAM", "NRC_WFSS", None, None),
        ("NIRISS", "NIS_AMI", None, "imaging"),
        ("NIRISS", "NIS_SOSS", None, None),
        ("MIRI", "MIR_4QPM", None, "imaging"),
        ("MIRI", "MIR_MRS", None, None),
        ("FGS", "FGS_IMAGE", None, "imaging"),
        ("FGS", "FGS_DARK", None, None),
        ("NIRSPEC", "NRS_WATA", "MIRROR", "nirspec"),
        ("NIRSPEC", "NRS_LAMP", "MIRROR", "nirspec"),
        ("NIRSPEC", "NRS_IFU", "G140H", None),
    ],
)
def test_which_way_to_the_sky(instrument: str, exp_type: str, grating: str | None, wanted: str | None) -> None:
    assert chain_of(instrument, exp_type, grating) == wanted


@pytest.mark.parametrize("value", [0.0, 2.5, float("nan")])
def test_bad_corners_are_named(value: float) -> None:
    with pytest.raises(InputError, match=r"a\.fits: SUBSTRT2 = .*: it must be a whole number from 1"):
        Subarray.of({"SUBSTRT2": value}, "a.fits")
