"""Reference files of aperture photometry: rows by instrument, and one clear line for what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import asdf
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from streamimg3 import Observation
from streamimg3.errors import InputError
from streamimg3.formats.apcorr import read_apertures
from tests.formats.mosaics import jwst_cards, jwst_record, write_exposures


def store(folder: Path, **keywords: Any) -> Observation:
    obs = Observation.at(str(folder / "field.zarr"))
    write_exposures(obs, [jwst_record(0)], [jwst_cards(0, **keywords)])
    return obs


def apcorr(folder: Path, keys: dict[str, list[str]]) -> str:
    """Three apertures for each row of the keys."""
    n = len(next(iter(keys.values()))) if keys else 1
    columns = [fits.Column(k, "15A", array=np.repeat(v, 3)) for k, v in keys.items()]
    numbers = {"eefraction": [0.3, 0.5, 0.7], "radius": [0.8, 1.3, 2.1], "apcorr": [3.4, 2.0, 1.5]}
    numbers |= {"skyin": [9.0] * 3, "skyout": [14.0] * 3}
    for name, values in numbers.items():
        columns.append(
            fits.Column(name, "E", array=np.tile(values, n) + np.repeat(np.arange(n), 3) * (name == "radius"))
        )
    path = folder / "apcorr.fits"
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns, name="APCORR")]).writeto(path)
    return str(path)


def abvega(folder: Path, **columns: Any) -> str:
    path = folder / "abvega.asdf"
    asdf.AsdfFile({"abvega_offset": Table(columns)}).write_to(path)
    return str(path)


@pytest.mark.parametrize(
    ("keywords", "keys", "offsets", "radius"),
    [
        ({"PUPIL": "CLEAR"}, {"filter": ["F115W", "F200W"], "pupil": ["CLEAR", "CLEAR"]},
         {"filter": ["F200W", "F200W"], "pupil": ["CLEAR", "F162M"], "abvega_offset": [1.25, 2.0]}, 1.8),
        ({"INSTRUME": "MIRI", "FILTER": "F770W", "SUBARRAY": "FULL"}, {"filter": ["F770W"] * 2, "subarray": ["BRIGHTSKY", "FULL"]},
         {"filter": ["F770W"], "abvega_offset": [1.25]}, 1.8),
        ({"INSTRUME": "FGS", "FILTER": None}, {}, {"detector": ["GUIDER1", "NRCB1"], "abvega_offset": [9.0, 1.25]}, 0.8),
    ],
)  # fmt: skip
def test_rows_by_instrument(
    tmp_path: Path, keywords: dict[str, Any], keys: dict[str, list[str]], offsets: dict[str, Any], radius: float
) -> None:
    found = read_apertures(store(tmp_path, **keywords), apcorr(tmp_path, keys), abvega(tmp_path, **offsets), {})
    assert found.reason is None and found.offset == 1.25
    assert [row.energy for row in found.rows] == [30, 50, 70]
    assert found.rows[0].radius == float(np.float32(radius)) and found.rows[2].sky_out == 14.0


def test_optics_that_a_file_does_not_have(tmp_path: Path) -> None:
    obs = store(tmp_path, PUPIL="F162M")
    keys = {"filter": ["F200W"], "pupil": ["CLEAR"]}
    offsets = {"filter": ["F200W"] * 2, "pupil": ["F162M"] * 2, "abvega_offset": [1.0, 2.0]}
    found = read_apertures(obs, apcorr(tmp_path, keys), abvega(tmp_path, **offsets), {})
    assert found.reason is not None and found.offset is None and not found.rows
    assert "no row for filter F200W, pupil F162M" in found.reason and "2 rows" in found.reason


def test_another_observatory_and_no_files(tmp_path: Path) -> None:
    obs = store(tmp_path, INSTRUME="WFC3")
    assert "WFC3" in (read_apertures(obs, "/nowhere/apcorr.fits", "", {}).reason or "")
    assert read_apertures(obs, "", "", {}).reason is None


def test_damaged_files(tmp_path: Path) -> None:
    obs = store(tmp_path, PUPIL="CLEAR")
    empty = tmp_path / "empty.fits"
    fits.PrimaryHDU().writeto(empty)
    text = tmp_path / "text.asdf"
    text.write_text("not an ASDF file\n" * 20)
    plain = tmp_path / "plain.asdf"
    asdf.AsdfFile({"other": 1}).write_to(plain)
    for files, words in (
        ((str(tmp_path / "missing.fits"), ""), "missing.fits"),
        ((str(empty), ""), "no extension APCORR"),
        ((str(text), ""), "text.asdf: cannot be read"),
        (("", str(text)), "text.asdf: cannot be read"),
        (("", str(plain)), "no table 'abvega_offset'"),
        (("", abvega(tmp_path, filter=["F200W"], abvega_offset=[1.0])), "no column 'pupil'"),
    ):
        with pytest.raises(InputError, match=words):
            read_apertures(obs, *files, {})
