"""Flats and area maps: the right part of them, read in bands, in JWST's flags; and what is refused or skipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from streamimg3.errors import InputError
from streamimg3.formats.reference_area import inspect_area, open_area
from streamimg3.formats.reference_flat import FlatBand, check_flat, inspect_flat, open_flat, translate
from streamimg3.formats.reference_image import Subarray, cut, subarray_of
from streamimg3.geometry import Box
from tests.formats import reference_files as make
from tests.formats.reference_files import FGS, MIRI, NIRCAM, NIRISS

FULL = Subarray((0, 0), (32, 40))


def whole(url: str, science: Subarray, rows: int) -> FlatBand:
    """The flat of a science image, read in bands of some rows."""
    flat = inspect_flat(url, science, {})
    with open_flat(flat, {}) as reader:
        ny = science.shape[0]
        bands = [reader.read(y, min(ny, y + rows)) for y in range(0, ny, rows)]
    return FlatBand(*(np.concatenate([getattr(band, name) for band in bands]) for name in ("sci", "err", "dq")))


@pytest.mark.parametrize("rows", [1, 7, 32])
def test_a_flat_of_the_same_frame_is_read_as_it_is(tmp_path: Path, rows: int) -> None:
    url = make.flat(tmp_path / "flat.fits", NIRCAM)
    found = whole(url, FULL, rows)
    with fits.open(url) as hdus:
        np.testing.assert_array_equal(found.sci, hdus["SCI"].data)
        np.testing.assert_array_equal(found.err, hdus["ERR"].data)
        np.testing.assert_array_equal(found.dq, hdus["DQ"].data)
    assert [a.dtype.name for a in (found.sci, found.err, found.dq)] == ["float32", "float32", "uint32"]
    assert np.isnan(found.sci[3, 4]) and found.sci[5, 6] == 0 and found.dq[7, 8] == 2**18


def test_a_sub_array_is_cut_by_both_corners(tmp_path: Path) -> None:
    """Flat at (SUBSTRT1, SUBSTRT2) = (11, 21), exposure at (14, 26), both 1-based: rows from 5, columns from 3."""
    url = make.flat(tmp_path / "flat.fits", NIRISS, SUBSTRT1=11, SUBSTRT2=21)
    with fits.open(url) as hdus:
        expected = hdus["SCI"].data[5:15, 3:11]
    header = NIRISS.header((10, 8), (26, 14))
    found = whole(url, subarray_of(header, (10, 8), "x"), 4)
    np.testing.assert_array_equal(found.sci, expected)
    assert found.dq.shape == found.err.shape == (10, 8) and found.dq[2, 5] == 2**18


@given(
    st.tuples(st.integers(0, 9), st.integers(0, 9)),
    st.tuples(st.integers(0, 15), st.integers(0, 15)),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
)
@settings(max_examples=200)
def test_a_cut_holds_the_same_detector_pixels(
    corner: tuple[int, int], start: tuple[int, int], shape: tuple[int, int]
) -> None:
    """Against a detector whose pixels carry their own number."""
    detector = np.arange(40 * 40).reshape(40, 40)
    reference, science = Subarray(corner, (14, 13)), Subarray(start, shape)
    inside = all(c <= s and s + n <= c + m for c, s, n, m in zip(corner, start, shape, (14, 13), strict=True))
    if not inside:
        with pytest.raises(InputError, match="ref: does not cover the exposure's pixels"):
            cut(reference, science, "ref")
        return
    found = detector[reference.box.slices][cut(reference, science, "ref").slices]
    np.testing.assert_array_equal(found, detector[science.box.slices])


def test_a_flat_without_corner_keywords(tmp_path: Path) -> None:
    none: dict[str, Any] = dict.fromkeys(("SUBSTRT1", "SUBSTRT2", "SUBSIZE1", "SUBSIZE2"))
    url = make.flat(tmp_path / "flat.fits", FGS, **none)
    with pytest.raises(InputError, match=r"flat\.fits: has no SUBSTRT2/.* is 40 x 32, no full frame"):
        inspect_flat(url, FULL, {})
    header = fits.Header({"INSTRUME": "MIRI"})
    assert subarray_of(header, (1024, 1032), "m") == Subarray((0, 0), (1024, 1032))
    with pytest.raises(InputError, match="no full frame"):
        subarray_of(header, (2048, 2048), "m")
    assert subarray_of(fits.Header({"INSTRUME": "FGS"}), (2048, 2048), "f").corner == (0, 0)
    with pytest.raises(InputError, match="are below 1"):
        subarray_of(FGS.header(SUBSTRT1=0), (32, 40), "f")


def test_a_size_that_is_not_the_image_s_is_ignored(tmp_path: Path) -> None:
    url = make.flat(tmp_path / "flat.fits", FGS, SUBSIZE1=2048, SUBSIZE2=2048)
    assert inspect_flat(url, FULL, {}).box == Box(0, 0, 32, 40)


def test_a_smaller_flat_skips_the_step_and_one_beside_it_is_an_error(tmp_path: Path) -> None:
    url = make.flat(tmp_path / "flat.fits", MIRI, (20, 40))
    flat = inspect_flat(url, FULL, {})
    assert flat.box is None and flat.reason == f"{url}: the flat (40 x 20) is smaller than the exposure (40 x 32)"
    check_flat(flat, {})
    with pytest.raises(ValueError, match="is smaller"), open_flat(flat, {}):
        pass
    with pytest.raises(
        InputError, match=r"does not cover the exposure's pixels .*SUBSTRT1 1, SUBSTRT2 6, size 40 x 20"
    ):
        inspect_flat(url, Subarray((5, 0), (20, 40)), {})


def test_flags_by_their_names_in_dq_def(tmp_path: Path) -> None:
    names = [(1, "DO_NOT_USE"), (2, "NON_SCIENCE"), (4, "UNRELIABLE_FLAT"), (8, "CDP_LOW_QUAL"), (64, "NO_FLAT_FIELD")]
    dq = np.zeros((32, 40), np.uint32)
    dq[0, :5] = (1, 66, 4 | 8, 8, 128)
    url = make.flat(tmp_path / "flat.fits", MIRI, planes={"DQ": dq}, dq_def=names)
    flat = inspect_flat(url, FULL, {})
    assert len(flat.notes) == 1 and "CDP_LOW_QUAL" in flat.notes[0]
    found = whole(url, FULL, 32).dq
    assert found[0, :5].tolist() == [1, 512 | 2**18, 2**25, 0, 0] and not found[1:].any()


def test_the_highest_flag_survives_a_translation() -> None:
    dq = np.array([2**31, 1, 2**31 + 1], np.uint32)
    assert translate(dq, ((2**31, 1), (1, 2**31))).tolist() == [1, 2**31, 2**31 + 1]


def test_an_empty_dq_def_changes_nothing(tmp_path: Path) -> None:
    url = make.flat(tmp_path / "flat.fits", MIRI)
    with fits.open(url, mode="append") as hdus:
        empty = fits.BinTableHDU.from_columns(
            [fits.Column("VALUE", "J", array=[]), fits.Column("NAME", "40A", array=[])]
        )
        empty.name = "DQ_DEF"
        hdus.append(empty)
    assert whole(url, FULL, 32).dq[7, 8] == 2**18


def test_missing_planes_are_zero_and_said_so(tmp_path: Path) -> None:
    url = make.flat(tmp_path / "flat.fits", FGS, planes={"ERR": None, "DQ": None})
    assert [note.rsplit(": ", 1)[1] for note in inspect_flat(url, FULL, {}).notes] == [
        "has no ERR, taken as 0",
        "has no DQ, taken as 0",
    ]
    found = whole(url, FULL, 10)
    assert not found.err.any() and not found.dq.any() and found.err.shape == (32, 40)


def test_double_precision_becomes_single(tmp_path: Path) -> None:
    err = np.full((32, 40), 1 / 3)
    found = whole(make.flat(tmp_path / "flat.fits", MIRI, planes={"ERR": err}), FULL, 32)
    assert found.err.dtype == np.float32 and (found.err == np.float32(1 / 3)).all()


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_a_flat_without_a_usable_pixel_is_refused(tmp_path: Path, value: float) -> None:
    """Of a full-frame flat only the exposure's own part counts."""
    sci = np.full((32, 40), value, np.float32)
    sci[20, 20] = 1
    url = make.flat(tmp_path / "flat.fits", FGS, planes={"SCI": sci})
    check_flat(inspect_flat(url, FULL, {}), {})
    with pytest.raises(InputError, match=r"flat\.fits: every flat value is NaN or 0 in the exposure's 10 x 8 pixels"):
        check_flat(inspect_flat(url, Subarray((0, 0), (8, 10)), {}), {})


@pytest.mark.parametrize(
    ("planes", "cards", "line"),
    [
        ({"SCI": None}, {}, r"has no image SCI \(it has"),
        ({"SCI": np.ones((2, 32, 40), np.float32)}, {}, "SCI is no 2-D image"),
        ({"DQ": np.zeros((3, 40), np.uint32)}, {}, r"DQ is \(3, 40\) and SCI is \(32, 40\)"),
        ({}, {"REFTYPE": "DARK"}, "is a dark reference file; a flat file is needed"),
        ({}, {"REFTYPE": None}, r"is no reference file \(it has no REFTYPE\)"),
    ],
)
def test_a_flat_that_is_none_is_refused_in_one_line(
    tmp_path: Path, planes: dict[str, Any], cards: dict[str, Any], line: str
) -> None:
    url = make.flat(tmp_path / "flat.fits", FGS, planes=planes, **cards)
    with pytest.raises(InputError, match=r"flat\.fits: " + line) as caught:
        inspect_flat(url, FULL, {})
    assert "\n" not in str(caught.value)


def test_a_truncated_flat(tmp_path: Path) -> None:
    path = Path(make.flat(tmp_path / "flat.fits", FGS))
    path.write_bytes(path.read_bytes()[:6000])
    with pytest.raises(InputError, match=r"flat\.fits: is truncated"):
        inspect_flat(str(path), FULL, {})


def test_an_area_map_is_cut_at_the_absolute_place(tmp_path: Path) -> None:
    """Pixel (y, x) of the map is 1 + (1000 y + x) / 1e6; its own corner keywords say something else and are ignored."""
    url = make.area(tmp_path / "area.fits", NIRCAM, SUBSTRT1=11, SUBSTRT2=21)
    area = inspect_area(url, Subarray((4, 6), (9, 8)), {})
    assert (area.pixar_sr, area.pixar_a2, area.notes) == (make.PIXAR_SR, make.PIXAR_A2, ())
    with open_area(area, {}) as plane:
        found = np.concatenate([plane.floats(0, 5), plane.floats(5, 9)])
    y, x = np.mgrid[4:13, 6:14]
    np.testing.assert_array_equal(found, (1 + (1000 * y + x) / 1e6).astype(np.float32))


def test_an_area_map_that_does_not_reach_or_lacks_its_numbers(tmp_path: Path) -> None:
    url = make.area(tmp_path / "area.fits", NIRCAM, PIXAR_SR=None)
    assert inspect_area(url, FULL, {}).pixar_sr is None
    assert inspect_area(url, FULL, {}).notes == (f"{url}: has no PIXAR_SR",)
    with pytest.raises(InputError, match="does not cover the exposure's pixels"):
        inspect_area(url, Subarray((1, 0), (32, 40)), {})
    with pytest.raises(InputError, match="is a flat reference file; an area file is needed"):
        inspect_area(make.flat(tmp_path / "flat.fits", NIRCAM), FULL, {})
