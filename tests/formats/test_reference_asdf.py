"""ASDF reference files: their trees, and one line for those that are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from streamimg3.errors import InputError
from streamimg3.formats.reference_asdf import read_tree
from tests.formats import reference_files as make
from tests.formats.reference_files import MIRI, NIRCAM


def test_a_distortion_maps_there_and_back(tmp_path: Path) -> None:
    tree: dict[str, Any] = read_tree(make.distortion(tmp_path / "d.asdf", NIRCAM), {}, "distortion")
    (tmp_path / "d.asdf").unlink()  # the tree is whole without its file
    v2, v3 = tree["model"](19.5, 29.5)
    assert (v2, v3) == pytest.approx((120.0, -489.37), abs=1e-12)  # 10 rows of 0.063 arcsec
    assert tree["model"].inverse(v2, v3) == pytest.approx((19.5, 29.5), abs=1e-3)
    assert tree["meta"]["instrument"]["module"] == "A"


def test_filter_offsets(tmp_path: Path) -> None:
    tree: dict[str, Any] = read_tree(make.filteroffset(tmp_path / "f.asdf", MIRI), {}, "filteroffset")
    assert dict(tree["filters"][0]) == {"filter": "F770W", "pupil": "N/A", "row_offset": -0.25, "column_offset": 0.5}


def test_what_is_none(tmp_path: Path) -> None:
    offsets = make.filteroffset(tmp_path / "f.asdf", MIRI)
    with pytest.raises(InputError, match=r"f\.asdf: is a filteroffset reference file; give a distortion"):
        read_tree(offsets, {}, "distortion")
    with pytest.raises(InputError, match=r"has no 'model' \(it has .*filters, history, meta\)"):
        read_tree(offsets, {}, "filteroffset", needed=("model",))
    with pytest.raises(InputError, match=r"flat\.fits: is a FITS file; a distortion reference file is an ASDF file"):
        read_tree(make.flat(tmp_path / "flat.fits", MIRI), {}, "distortion")
    whole = Path(make.distortion(tmp_path / "d.asdf", NIRCAM)).read_bytes()
    (tmp_path / "cut.asdf").write_bytes(whole[: whole.index(b"\xd3BLK") + 60])
    with pytest.raises(InputError, match=r"cut\.asdf: cannot be read as ASDF"):
        read_tree(str(tmp_path / "cut.asdf"), {}, "distortion")
