"""What distortion and filter-offset files say: the rules of each instrument, and files that are no such files."""

from __future__ import annotations

import io
import warnings
from typing import Any

import asdf
import pytest
from astropy.modeling.models import Identity, Mapping, Polynomial2D, Shift

from streamimg3.errors import InputError
from streamimg3.sky.distortion_file import FilterOffset, distortion_model, filter_offset
from tests.sky.assigned import data, opened
from tests.sky.wcs_references import distortion, offsets, optics

ROWS = (("F200W", "CLEAR", 0.75, -1.5), ("F200W", "F164N", 3.0, 2.0), ("F150W", "CLEAR", 9.0, 9.0))
TREE = distortion("NIRCAM", "NRCA2", 0.0311, 1020.0, (118.7, -489.3))


def test_model_comes_through_the_file() -> None:
    model = distortion_model(opened(TREE), "d.asdf")
    assert model(300.0, 700.0) == TREE["model"](300.0, 700.0)
    assert model.inverse(*model(300.0, 700.0)) == pytest.approx((300.0, 700.0), abs=1e-8)


def test_old_files_state_their_type_at_the_top() -> None:
    old = {"model": TREE["model"], "reftype": "DISTORTION"}
    assert distortion_model(old, "d.asdf") is TREE["model"]


def unreadable() -> dict[str, Any]:
    text = io.BytesIO(
        b"#ASDF 1.0.0\n#ASDF_STANDARD 1.5.0\n%YAML 1.1\n--- !<tag:stsci.edu:asdf/core/asdf-1.1.0>\n"
        b"model: !<tag:nowhere.org:models/strange-1.0.0> {a: 1}\n...\n"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with asdf.open(text, ignore_unrecognized_tag=True) as file:
            return dict(file.tree)


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        (offsets("NIRCAM", *ROWS), "d.asdf is a filteroffset reference file: give a distortion file"),
        ({}, "d.asdf has no 'model'"),
        ({"x_model": []}, "d.asdf holds the distortion of a spectrograph's slices"),
        ({"model": {"a": 1}}, "d.asdf: its 'model' is of a kind that this installation cannot read"),
        (unreadable(), "d.asdf: its 'model' is of a kind .*strange"),
        ({"model": Shift(1.0)}, "d.asdf: its 'model' takes 1 and gives 1 numbers; it must take 2"),
        (
            {"model": Mapping((0, 1, 0, 1)) | Polynomial2D(2, c1_0=1.0) & Polynomial2D(2, c0_1=1.0)},
            "d.asdf: its 'model' has no inverse",
        ),
        ({"model": Identity(2), "meta": {"output_units": "deg"}}, "d.asdf: output_units = deg: it must be arcsec"),
        ({"model": Identity(2), "meta": {"input_units": "furlong"}}, "d.asdf: input_units = furlong: it must be pix"),
    ],
)
def test_other_files_are_refused(tree: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        distortion_model(tree, "d.asdf")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("instrument", ["NIRCAM", "NIRISS"])
def test_filter_and_pupil_match(instrument: str) -> None:
    tree = opened(offsets(instrument, *ROWS))
    assert filter_offset(tree, "o", instrument, ("F200W", "CLEAR")) == FilterOffset(y=-1.5, x=0.75)
    assert filter_offset(tree, "o", instrument, ("F200W", "F164N")) == FilterOffset(y=2.0, x=3.0)
    assert filter_offset(tree, "o", instrument, ("F200W", "F999N")) is None
    with pytest.raises(InputError, match=r"o\.asdf: 2 rows for filter F200W and pupil CLEAR"):
        filter_offset(offsets(instrument, ROWS[0], ROWS[0]), "o.asdf", instrument, ("F200W", "CLEAR"))


def test_miri_takes_the_first_row_of_the_filter() -> None:
    tree = opened(offsets("MIRI", ("F560W", "N/A", 1.0, 1.0), ("F770W", "N/A", 2.0, 3.0), ("F770W", "N/A", 9.0, 9.0)))
    assert filter_offset(tree, "o", "MIRI", ("F770W", None)) == FilterOffset(y=3.0, x=2.0)
    assert filter_offset(tree, "o", "MIRI", ("F2550W", None)) is None
    early = {"filters": [{"name": "F1130W", "column_offset": 0.15, "row_offset": -0.59}]}
    assert filter_offset(early, "o", "MIRI", ("F1130W", None)) == FilterOffset(y=-0.59, x=0.15)


def test_guider_has_no_offsets() -> None:
    assert filter_offset(offsets("FGS", *ROWS), "o", "FGS", ("F200W", "CLEAR")) is None


def test_offset_that_is_not_available() -> None:
    row = {"filter": "F200W", "pupil": "CLEAR", "column_offset": "N/A", "row_offset": 1.0}
    assert filter_offset({"filters": [row]}, "o", "NIRCAM", ("F200W", "CLEAR")) is None


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        (TREE, "o.asdf is a distortion reference file: give a filteroffset file"),
        ({}, "o.asdf has no list 'filters'"),
        ({"filters": ["F200W"]}, "o.asdf: an entry of 'filters' is no row"),
        (
            {"filters": [{"filter": "F200W", "pupil": "CLEAR", "column_offset": float("nan"), "row_offset": 0.0}]},
            "o.asdf: column_offset = nan in the row F200W",
        ),
        (optics()["camera"], "o.asdf is a camera reference file"),
    ],
)
def test_other_offset_files_are_refused(tree: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        filter_offset(tree, "o.asdf", "NIRCAM", ("F200W", "CLEAR"))


def test_real_files() -> None:
    folder = data() / "jwst_reffiles"
    if not folder.is_dir():
        pytest.skip("set STREAMIMG3_DATA to the folder that holds jwst_reffiles")
    models = [p for p in sorted(folder.rglob("*distortion*.asdf")) if "_0022" not in p.name]
    assert len(models) >= 9
    for path in models:
        model = distortion_model(opened(path), path.name)
        off = 1.0 if path.name == "jwst_miri_distortion_0001.asdf" else 0.03  # what the files' own inverses achieve
        assert model.inverse(*model(500.0, 400.0)) == pytest.approx((500.0, 400.0), abs=off)
    for path in sorted(folder.rglob("*filteroffset*.asdf")):
        found = filter_offset(opened(path), path.name, "MIRI", ("F1500W", None))
        assert found is not None and abs(found.x) < 1.0 and abs(found.y) < 1.5
    slices = folder / "crds_tests" / "jwst_miri_distortion_0022.asdf"
    with pytest.raises(InputError, match="spectrograph's slices"):
        distortion_model(opened(slices), slices.name)
