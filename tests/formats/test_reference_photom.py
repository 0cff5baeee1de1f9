"""PHOTOM tables: the row of each instrument's optics, time dependences, and what is refused or skipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from streamimg3.errors import InputError
from streamimg3.formats.reference_photom import read_photom
from tests.formats import reference_files as make
from tests.formats.reference_files import ALL, FGS, MIRI, NIRCAM, NIRISS, Optics


@pytest.mark.parametrize("optics", ALL, ids=lambda o: o.instrument)
def test_the_row_of_each_instrument(tmp_path: Path, optics: Optics) -> None:
    found = read_photom(make.photom(tmp_path / "photom.fits", optics), {}).of(optics.facts())
    assert found.reason == "" and found.times == {}
    assert found.photmjsr == np.float32(2.5) and found.photmjsr.dtype == np.float32
    assert found.uncertainty == np.float32(0.1)
    assert (found.pixar_sr, found.pixar_a2) == (make.PIXAR_SR, make.PIXAR_A2)


def test_lower_case_in_the_table(tmp_path: Path) -> None:
    url = make.photom(tmp_path / "photom.fits", NIRCAM, [("f115w", "clear", 1.5, 0.1), ("f200w ", "clear", 2.5, 0.1)])
    assert read_photom(url, {}).of(NIRCAM.facts()).photmjsr == 2.5


@pytest.mark.parametrize(
    ("rows", "value"),
    [
        ([("F770W", "FULL", 3.0, 0.1), ("F770W", "GENERIC", 4.0, 0.1)], 3.0),
        ([("F770W", "SUB64", 3.0, 0.1), ("F770W", "GENERIC", 4.0, 0.1)], 4.0),
        ([("F770W", "SUB64", 3.0, 0.1), ("F560W", "GENERIC", 4.0, 0.1)], None),
    ],
)
def test_miri_falls_back_to_generic(tmp_path: Path, rows: list[tuple[Any, ...]], value: float | None) -> None:
    url = make.photom(tmp_path / "photom.fits", MIRI, rows)
    found = read_photom(url, {}).of(MIRI.facts())
    if value is None:
        assert found.reason == f"{url}: PHOTOM has no row for subarray FULL, filter F770W" and found.photmjsr == 0
    else:
        assert found.reason == "" and found.photmjsr == value


def test_nircam_looks_at_the_subarray_only_where_there_is_one(tmp_path: Path) -> None:
    rows = [("F200W", "CLEAR", "FULL", 1.0, 0.1), ("F200W", "CLEAR", "SUB64P", 2.0, 0.1)]
    url = make.photom(tmp_path / "photom.fits", NIRCAM, rows, keys=("filter", "pupil", "subarray"))
    assert read_photom(url, {}).of(NIRCAM.facts(subarray="SUB64P")).photmjsr == 2.0
    assert "subarray SUB160" in read_photom(url, {}).of(NIRCAM.facts(subarray="SUB160")).reason


def test_no_row_and_other_instruments_are_reasons(tmp_path: Path) -> None:
    table = read_photom(make.photom(tmp_path / "photom.fits", NIRISS), {})
    assert table.of(NIRISS.facts(filter="F380M")).reason.endswith("no row for filter F380M, pupil F150W")
    assert table.of(NIRISS.facts(pupil="")).reason.endswith("no row for filter CLEAR, pupil (unknown)")
    nirspec = Optics("NIRSPEC", "NRS1", "NRS_IMAGE", "CLEAR").facts()
    assert table.of(nirspec).reason == "images of NIRSPEC have no photometric conversion"


def test_two_rows_are_an_error(tmp_path: Path) -> None:
    rows = [("F200W", "CLEAR", 1.0, 0.1), ("F115W", "CLEAR", 1.0, 0.1), ("F200W", "CLEAR", 2.0, 0.1)]
    table = read_photom(make.photom(tmp_path / "photom.fits", NIRCAM, rows), {})
    with pytest.raises(InputError, match=r"PHOTOM has 2 rows for filter F200W, pupil CLEAR \(rows 1, 3\)"):
        table.of(NIRCAM.facts())


def test_time_tables_go_by_row_and_are_single_precision(tmp_path: Path) -> None:
    times: dict[str, dict[str, list[float]]] = {
        "TIMECOEFF_LINEAR": {"t0": [1.0, 59700.0], "lossperyear": [0.5, 0.01]},
        "TIMECOEFF_EXPONENTIAL": {"t0": [1.0, 59700.1], "amplitude": [0, 0.1], "tau": [0, 200], "const": [0, 0.9]},
        "TIMECOEFF_POWERLAW": {"t0": [1, 2], "year1value": [3, 4], "tsoft": [5, 6], "alpha": [7, 8]},
    }
    rows = [("F115W", "CLEAR", 1.0, 0.1), ("F200W", "CLEAR", 2.0, 0.1)]
    found = read_photom(make.photom(tmp_path / "photom.fits", NIRCAM, rows, times), {}).of(NIRCAM.facts())
    assert list(found.times) == ["linear", "exponential", "powerlaw"]
    assert dict(found.times["linear"]) == {"t0": np.float32(59700.0), "lossperyear": np.float32(0.01)}
    assert dict(found.times["exponential"]) == {
        "t0": np.float32(59700.1),
        "amplitude": np.float32(0.1),
        "tau": np.float32(200),
        "const": np.float32(0.9),
    }
    assert [(name, float(v)) for name, v in found.times["powerlaw"].items()] == [
        ("t0", 2),
        ("year1value", 4),
        ("tsoft", 6),
        ("alpha", 8),
    ]
    assert all(value.dtype == np.float32 for terms in found.times.values() for value in terms.values())


def without_column(path: Path) -> None:
    column = fits.Column("photflam", "E", array=[1.0])
    primary = fits.PrimaryHDU()
    primary.header.update({"REFTYPE": "PHOTOM", "INSTRUME": "FGS"})
    fits.HDUList([primary, fits.BinTableHDU.from_columns([column], name="PHOTOM")]).writeto(path)


def renamed(path: Path) -> None:
    make.photom(path, FGS)
    with fits.open(path, mode="update") as hdus:
        hdus["PHOTOM"].name = "SCI"


def shorter_times(path: Path) -> None:
    make.photom(path, NIRCAM, times={"TIMECOEFF_LINEAR": {"t0": [1.0], "lossperyear": [0.1]}})


def incomplete_times(path: Path) -> None:
    make.photom(path, NIRCAM, times={"TIMECOEFF_LINEAR": {"t0": [1.0, 2.0]}})


def pixel_area(path: Path) -> None:
    make.photom(path, FGS, PIXAR_SR="large")


@pytest.mark.parametrize(
    ("write", "line"),
    [
        (without_column, r"has no column 'photmjsr' \(it has photflam\)"),
        (renamed, r"has no table PHOTOM with photmjsr \(it has SCI\)"),
        (shorter_times, "TIMECOEFF_LINEAR has 1 rows and PHOTOM 2; they must agree"),
        (incomplete_times, "has no column 'lossperyear'"),
        (pixel_area, "keyword PIXAR_SR is 'large', not a number"),
        (lambda path: make.flat(path, FGS), "is a flat reference file; a photom file is needed"),
    ],
)
def test_a_bad_table_is_refused_in_one_line(tmp_path: Path, write: Any, line: str) -> None:
    write(tmp_path / "bad.fits")
    with pytest.raises(InputError, match=r"bad\.fits: " + line) as caught:
        read_photom(str(tmp_path / "bad.fits"), {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, 0.0, np.inf])
def test_a_factor_that_is_none(tmp_path: Path, value: float) -> None:
    table = read_photom(make.photom(tmp_path / "photom.fits", FGS, [(value, 0.1)]), {})
    with pytest.raises(InputError, match=r"photmjsr is .* in row 1 for FGS GUIDER1"):
        table.of(FGS.facts())
