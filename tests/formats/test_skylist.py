"""The user's list of sky levels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streamimg3.errors import InputError
from streamimg3.formats.skylist import read_skylist

NAMES = ("jw01_00001_nrcb1_cal.fits", "jw01_00002_nrcb1_cal.fits")


def read(folder: Path, text: str, names: tuple[str, ...] = NAMES) -> tuple[float, ...]:
    (folder / "sky.txt").write_text(text)
    document = read_skylist(str(folder / "sky.txt"), {}, names)
    assert document.filenames == names
    return document.levels


def test_levels_come_in_the_order_of_the_exposures_in_single_precision(tmp_path: Path) -> None:
    text = "# mine\n/data/jw01_00002_nrcb1_i2d.fits 0.2\n\n  jw01_00001_nrcb1.fits\t1e-1  # faint\n"
    assert read(tmp_path, text) == (float(np.float32(0.1)), float(np.float32(0.2)))


def test_a_list_of_one(tmp_path: Path) -> None:
    assert read(tmp_path, "jw01_00001_nrcb1_cal.fits -0.5", NAMES[:1]) == (-0.5,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a 1", "1 entries for 2 exposures"),
        ("jw01_00001_nrcb1 1\nother 2", "jw01_00002_nrcb1_cal.fits is there 0 times"),
        ("jw01_00001_nrcb1 1\njw01_00001_nrcb1_cal 2", "jw01_00001_nrcb1_cal.fits is there 2 times"),
        ("jw01_00001_nrcb1 1\njw01_00002_nrcb1 x", "line 2: 'jw01_00002_nrcb1 x' is not"),
        ("jw01_00001_nrcb1 1 2\n", "line 1: "), ("jw01_00001_nrcb1\n", "line 1: "), ("a nan\n", "line 1: "),
        ("a 1e60\n", "line 1: "), ("# none\n", "0 entries for 2 exposures"), ("", "is empty"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, text)
    assert "sky.txt" in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.txt"):
        read_skylist(str(tmp_path / "none.txt"), {}, NAMES)
