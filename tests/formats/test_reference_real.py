"""Real JWST reference files, and those that are meant to be bad; needs STREAMIMG3_DATA."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from streamimg3.errors import InputError
from streamimg3.formats.reference_asdf import read_tree
from streamimg3.formats.reference_card import read_card
from streamimg3.formats.reference_flat import check_flat, inspect_flat, open_flat
from streamimg3.formats.reference_image import Subarray
from streamimg3.formats.reference_photom import read_photom
from streamimg3.formats.reference_source import References
from tests.formats.reference_files import FGS, MIRI, NIRCAM, NIRISS


@pytest.fixture(scope="module")
def files() -> Path:
    folder = Path(os.environ.get("STREAMIMG3_DATA", "")) / "jwst_reffiles"
    if "STREAMIMG3_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("set STREAMIMG3_DATA to the folder that holds jwst_reffiles")
    return folder


@pytest.mark.parametrize(("name", "corner", "shape"), [("0407", (716, 0), (304, 320)), ("0457", (244, 0), (224, 288))])
def test_miri_flats(files: Path, name: str, corner: tuple[int, int], shape: tuple[int, int]) -> None:
    url = str(files / "miri_coron" / f"jwst_miri_flat_{name}.fits")
    flat = inspect_flat(url, Subarray(corner, shape), {})
    check_flat(flat, {})
    with open_flat(flat, {}) as reader:
        bands = [reader.read(0, 100), reader.read(100, shape[0])]
    with fits.open(url) as hdus:
        old = hdus["DQ"].data
        np.testing.assert_array_equal(np.concatenate([b.sci for b in bands]), hdus["SCI"].data)
        np.testing.assert_array_equal(np.concatenate([b.err for b in bands]), hdus["ERR"].data.astype(np.float32))
    # the file has 66 = NON_SCIENCE + NO_FLAT_FIELD by its own definitions
    np.testing.assert_array_equal(np.concatenate([b.dq for b in bands]), np.where(old == 66, 512 | 2**18, 0))
    assert (old == 66).sum() > 10_000
    assert "is smaller than the exposure" in inspect_flat(url, Subarray((0, 0), (1024, 1032)), {}).reason


@pytest.mark.parametrize(
    ("name", "middle"),
    [
        ("crds_tests/niriss_ref_distortion.asdf", (1023.5, 1023.5)),
        ("crds_tests/jwst_fgs_distortion_bad_asdf_version.asdf", (1023.5, 1023.5)),
        ("miri_distortion/jwst_miri_distortion_0028.asdf", (515.0, 511.0)),
        ("miri_distortion/jwst_miri_imager_distortion_flt9.asdf", (515.0, 511.0)),
    ],
)
def test_distortions_map_back_to_the_pixel(files: Path, name: str, middle: tuple[float, float]) -> None:
    tree: dict[str, Any] = read_tree(str(files / name), {}, "distortion")
    there = tree["model"](*middle)
    assert tree["model"].inverse(*there) == pytest.approx(middle, abs=0.05)  # the inverse is a fit of its own


def test_every_distortion_and_offset_of_miri(files: Path) -> None:
    found = sorted((files / "miri_distortion").glob("*.asdf"))
    kinds = {"distortion": "model", "filteroffset": "filters"}
    for path in found:
        kind = read_card(str(path), {}).reftype
        assert kinds[kind] in read_tree(str(path), {}, kind)
    assert len(found) == 17


def test_the_folder_is_chosen_from_by_headers(files: Path) -> None:
    references = References({}, str(files))
    late = {"date": "2024-01-01T00:00:00.000"}

    def name(kind: str, **changes: str) -> str:
        card = references.choose(kind, MIRI.facts(**{**late, **changes}))
        assert card is not None
        return Path(card.url).name

    assert name("filteroffset", subarray="MASKLYOT") == "jwst_miri_filteroffset_masklyot_flt9.asdf"
    assert name("filteroffset", subarray="BRIGHTSKY") == "jwst_miri_filteroffset_full_flt9.asdf"
    assert name("filteroffset", date="2021-01-01T00:00:00.000") == "jwst_miri_filteroffset_poly6.asdf"
    assert name("flat", filter="FND", subarray="MASKLYOT") == "jwst_miri_flat_0407.fits"
    assert name("distortion", exp_type="MIR_4QPM") == "jwst_miri_imager_distortion_flt9.asdf"
    assert name("distortion") == "jwst_miri_imager_distortion_flt9.asdf"
    mask = {"filter": "F1140C", "exp_type": "MIR_4QPM", "subarray": "MASK1140"}
    assert name("psfmask", **mask) == "jwst_miri_psfmask_0010_extract.fits"
    assert references.choose("distortion", NIRISS.facts(**late)) is not None
    with pytest.raises(InputError, match="has DETECTOR GUIDER2"):
        references.choose("distortion", FGS.facts(**late))
    with pytest.raises(InputError, match="has no flat file of NIRCAM"):
        references.choose("flat", NIRCAM.facts(**late))
    assert sorted(note.split("/")[-1].split(": ")[0] for note in references.notes) == [
        "jwst_miri_ipc.bad-keyword.fits",
        "jwst_miri_ipc.bad-value.fits",
        "niriss_ref_photom_bad.fits",
        "niriss_ref_photom_missing_detector.fits",
    ]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("jwst_miri_ipc.bad-keyword.fits", "P_DETEC, which selects nothing; it should be P_DETECT"),
        ("jwst_miri_ipc.bad-value.fits", "is for detector FOO, which MIRI does not have"),
        ("niriss_ref_photom_bad.fits", "is for detector FOO, which NIRISS does not have"),
        ("niriss_ref_photom_missing_detector.fits", "has no DETECTOR"),
    ],
)
def test_bad_headers_are_refused(files: Path, name: str, line: str) -> None:
    with pytest.raises(InputError, match=line):
        read_card(str(files / "crds_tests" / name), {})


def test_files_of_other_modes_are_refused_where_they_are_used(files: Path) -> None:
    folder = files / "crds_tests"
    assert read_card(str(folder / "niriss_ref_photom.fits"), {}).useafter == "2015-01-01T00:00:00.000"
    with pytest.raises(InputError, match=r"has no table PHOTOM with photmjsr \(it has SCI\)"):  # photflam, of 2015
        read_photom(str(folder / "niriss_ref_photom.fits"), {})
    with pytest.raises(InputError, match="has no 'model'"):  # of the spectrometer
        read_tree(str(folder / "jwst_miri_distortion_0022.asdf"), {}, "distortion")
    with pytest.raises(InputError, match="has DETECTOR MIRIFUSHORT"):
        References({"distortion": str(folder / "jwst_miri_distortion_0022.asdf")}).choose("distortion", MIRI.facts())
    with pytest.raises(InputError, match="has DETECTOR NRCA4"):
        mask = files / "nircam_psfmask" / "jwst_nircam_psfmask_0036.fits"
        References({"psfmask": str(mask)}).choose("psfmask", NIRCAM.facts())
