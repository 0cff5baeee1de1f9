"""Merging headers: rules, the columns of HDRTAB and their types, digits that cards cut off."""

from __future__ import annotations

import io
import math
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from streamimg3.errors import StoreError
from streamimg3.formats import blend as door
from streamimg3.formats.blend import (
    Column,
    Metadata,
    blend,
    card_values,
    exposure_metadata,
    generic_table,
    jwst_keywords,
    jwst_table,
    keyword_at,
    merge,
    packed,
)
from streamimg3.formats.fits_stream import primary, table, write_units
from streamimg3.store import Observation

from . import jwst_keywords_recipe
from .mosaics import EXACT_AREA, jwst_cards, jwst_record, write_exposures


def _read_back(columns: Sequence[Column], rows: int) -> fits.FITS_rec:
    stream = io.BytesIO()
    write_units(stream, [primary([]), table("HDRTAB", [(c.name, c.form) for c in columns], packed(columns), rows)])
    stream.seek(0)
    with fits.open(stream) as opened:
        return opened["HDRTAB"].data.copy()


def test_keyword_facts() -> None:
    """As many keywords and columns as the reference's image model has without SIP, each once per extension."""
    keywords = jwst_keywords()
    assert len(keywords) == 506
    assert sum(k.in_table for k in keywords) == 441
    assert len({(k.hdu, k.name) for k in keywords}) == len({k.path for k in keywords}) == len(keywords)
    assert len({k.name for k in keywords if k.in_table}) == 441
    assert {k.rule for k in keywords} == {"", "min", "max", "mean", "sum", "multi", "wheeltol"}


def test_keyword_places() -> None:
    """The two exposure times, which are easily confused, and a step's status."""
    by_name = {(k.hdu, k.name): k.path for k in jwst_keywords()}
    assert by_name["PRIMARY", "EFFEXPTM"] == "meta.exposure.exposure_time"
    assert by_name["SCI", "XPOSURE"] == "meta.exposure.effective_exposure_time"
    found = keyword_at("meta.cal_step.outlier_detection")
    assert found is not None
    assert found.name == "S_OUTLIR"
    assert keyword_at("meta.nothing") is None


@pytest.mark.parity
def test_keyword_facts_are_the_references() -> None:
    """The data file is what its recipe makes with the reference's own schemas."""
    python = os.environ.get("STREAMIMG3_PEER_PYTHON")
    if not python:
        pytest.skip("STREAMIMG3_PEER_PYTHON does not name the reference's interpreter")
    recipe = Path(str(jwst_keywords_recipe.__file__))
    made = subprocess.run([python, str(recipe)], capture_output=True, text=True, check=True).stdout
    assert made == Path(str(door.__file__)).with_name("jwst_keywords.json").read_text()


@pytest.mark.parametrize(
    ("rule", "values", "merged"),
    [
        ("min", [3, 1, 2], 1),
        ("max", [3.5, 1.0], 3.5),
        ("min", ["2024-03-02", "2024-03-01"], "2024-03-01"),
        ("max", ["2024-03-01T23:59:59.9", "2024-03-02T00:00:00.0"], "2024-03-02T00:00:00.0"),
        ("mean", [1, 2], 1.5),
        ("sum", [1, 2.5], 3.5),
        ("multi", ["B", "B"], "B"),
        ("multi", ["A", "B"], "MULTIPLE"),
        ("wheeltol", ["within commanded tolerance", "outside calibration tolerance"], "outside calibration tolerance"),
        ("wheeltol", ["within commanded tolerance"] * 2, "within commanded tolerance"),
        # Not in any sane file, but no reason to lose a mosaic
        ("min", [5.0, "text", 4.0], 4.0),
        ("sum", ["text", 1.0], "text"),
    ],
)
def test_rules(rule: str, values: list[door.Value], merged: door.Value) -> None:
    """Each rule on values as they come from headers."""
    assert merge(rule, values) == merged
    assert type(merge(rule, values)) is type(merged)


def test_blend_is_the_first_exposures_with_rules() -> None:
    """Values without a rule come from the first exposure only; values that the mosaic has of its own are left out."""
    detector, mid, filename = "meta.instrument.detector", "meta.exposure.mid_time", "meta.filename"
    area, title = "meta.photometry.pixelarea_steradians", "meta.program.title"
    rows: list[Metadata] = [
        {detector: "NRCB1", mid: 10.0, filename: "a.fits", area: 1e-14, title: "one"},
        {detector: "NRCB2", mid: 13.0, filename: "b.fits", area: 2e-14, "meta.program.category": "GO"},
        {detector: "NRCB2", filename: "c.fits", "meta.observation.date": "2024-01-01"},
    ]
    assert blend(rows) == {detector: "MULTIPLE", mid: 11.5, title: "one", "meta.observation.date": "2024-01-01"}


def test_table_columns() -> None:
    """Order of the schema, narrowest text, integers and truth values kept, NaN for what is missing."""
    rows: list[Metadata] = [
        {
            "meta.filename": "a.fits",
            "meta.exposure.nints": 2,
            "meta.exposure.psf_reference": True,
            "meta.target.ra": 1.5,
        },
        {"meta.filename": "bcd.fits", "meta.exposure.nints": 3, "meta.exposure.psf_reference": False},
        {"meta.filename": "e.fits", "meta.exposure.nints": 4, "meta.exposure.psf_reference": True},
    ]
    rows[1] |= {"meta.program.title": "b", "meta.exposure.ngroups": 7, "meta.background.subtracted": True}
    columns = jwst_table(rows)
    # A missing text becomes 'nan' in a column as wide as numpy makes it; a missing integer or truth value a number
    assert [(c.name, c.form) for c in columns] == [
        ("FILENAME", "8A"),
        ("TITLE", "32A"),
        ("TARG_RA", "D"),
        ("NINTS", "K"),
        ("NGROUPS", "D"),
        ("IS_PSF", "L"),
        ("BKGSUB", "D"),
    ]
    data = _read_back(columns, 3)
    assert list(data["FILENAME"]) == ["a.fits", "bcd.fits", "e.fits"]
    assert list(data["TITLE"]) == ["nan", "b", "nan"]
    assert list(data["IS_PSF"]) == [True, False, True]
    np.testing.assert_array_equal(data["NINTS"], [2, 3, 4])
    np.testing.assert_array_equal(data["NGROUPS"], [math.nan, 7, math.nan])
    np.testing.assert_array_equal(data["BKGSUB"], [math.nan, 1, math.nan])
    np.testing.assert_array_equal(data["TARG_RA"], [1.5, math.nan, math.nan])


def test_generic_columns() -> None:
    """Other telescopes: any keyword, in order of appearance; missing text is empty; odd types do no harm."""
    rows: list[dict[str, door.Value]] = [{"GAIN": 1.5, "OBJECT": "M17", "BIG": 2**70}, {"GAIN": 2, "AIRMASS": "low"}]
    columns = generic_table(rows)
    assert [(c.name, c.form) for c in columns] == [("GAIN", "D"), ("OBJECT", "3A"), ("BIG", "22A"), ("AIRMASS", "3A")]
    data = _read_back(columns, 2)
    assert list(data["OBJECT"]) == ["M17", ""]
    assert list(data["AIRMASS"]) == ["", "low"]
    assert data["BIG"][0] == str(2**70)


def test_no_more_columns_than_fits_has() -> None:
    """A FITS table ends at 999 columns."""
    assert len(generic_table([{f"K{i}": i for i in range(1200)}])) == 999


def test_cards_that_are_no_fits_are_left_out() -> None:
    """Unreadable values, undefined ones and comments do not end an export; the first of repeated keywords counts."""
    cards = [
        "GOOD    =                    1",
        "BAD     = NaN",
        "UNDEF   =",
        "COMMENT text",
        "GOOD    =                    2",
    ]
    cards += ["lower   = 'x'", "HIERARCH ESO DET GAIN = 2.5 / free form", "OPEN    = 'no end"]
    found = card_values("".join(card.ljust(80) for card in cards))
    assert found == {"GOOD": 1, "LOWER": "x", "ESO DET GAIN": 2.5}


def _one_exposure(url: str, **changes: object) -> Observation:
    obs = Observation.at(url)
    write_exposures(obs, [jwst_record(0)], [jwst_cards(0, **changes)])
    return obs


def test_metadata_of_an_exposure(tmp_path: Path) -> None:
    """Keywords by place; those in no schema and in the wrong extension are left out; long numbers get their last digits."""
    found = exposure_metadata(_one_exposure(str(tmp_path)).exposures()[0])
    assert found["meta.exposure.exposure_time"] == 100.5
    assert found["meta.wcsinfo.ctype1"] == "RA---TAN-SIP"
    assert found["meta.exposure.psf_reference"] is False
    assert "in no schema" not in found.values()
    assert fits.Header.fromstring(jwst_cards(0)[1])["PIXAR_SR"] != EXACT_AREA
    assert found["meta.photometry.pixelarea_steradians"] == EXACT_AREA


def test_an_edited_card_wins_over_the_tree(tmp_path: Path) -> None:
    """Where card and metadata tree disagree, the card was edited after the file was made."""
    found = exposure_metadata(_one_exposure(str(tmp_path), PIXAR_SR=2.5e-14).exposures()[0])
    assert found["meta.photometry.pixelarea_steradians"] == 2.5e-14


def test_damaged_tree_is_named(tmp_path: Path) -> None:
    """A metadata tree that is no YAML is one line naming the exposure."""
    obs = _one_exposure(str(tmp_path))
    obs.create_table((20, 24), "wcs", [b"#ASDF 1.0.0\n%YAML 1.1\n--- {a: [\n...\n"])
    with pytest.raises(StoreError, match=r"metadata of exposure jw00 are damaged .*ingest again") as info:
        exposure_metadata(obs.exposures()[0])
    assert "\n" not in str(info.value)
