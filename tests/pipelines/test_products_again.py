"""Products of results that have not changed are not written again; files that were changed or are gone are."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from astropy.io import fits

from streamimg3 import Session, export, open, run
from tests.pipelines.conftest import Recorder

STEPS: dict[str, Any] = {"tweakreg": {"skip": True}, "resample": {"tile": 128}}


@pytest.fixture(scope="module")
def first(field: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with store and products."""
    folder = tmp_path_factory.mktemp("first")
    run("image3", str(field), session=Session(output_dir=str(folder), workers=1), **STEPS)
    return folder


@pytest.fixture
def folder(first: Path, field: Path, tmp_path: Path) -> Path:
    """The same in a place of its own, where all was written once."""
    out = Path(shutil.copytree(first, tmp_path / "out"))
    _again(field, out)
    return out


def _again(field: Path, out: Path, **steps: Any) -> Recorder:
    told = Recorder()
    run(
        "image3",
        str(field),
        session=Session(output_dir=str(out), workers=1, progress=told, report=False),
        **STEPS | steps,
    )
    return told


def _times(out: Path) -> dict[str, int]:
    return {path.name.rsplit("_", 1)[1] + path.name[:25]: path.stat().st_mtime_ns for path in out.glob("*.fits")}


def _rewritten(before: dict[str, int], after: dict[str, int]) -> list[str]:
    return sorted(name.partition("jw")[0] for name in after if after[name] != before.get(name))


def test_nothing_is_written_twice(field: Path, folder: Path) -> None:
    """4 exposures, mosaic and segmentation map."""
    before = _times(folder)
    told = _again(field, folder)
    assert _rewritten(before, _times(folder)) == [] and len(before) == 6
    assert "export: 6 files unchanged, kept" in told.notes
    assert not any(note.startswith("wrote ") and note.endswith(".fits") for note in told.notes)


def test_another_folder_is_another_place(field: Path, folder: Path, tmp_path: Path) -> None:
    """The results are kept, the products are written there."""
    store = next(folder.glob("*.zarr"))
    session = Session(store=str(store), output_dir=str(tmp_path / "there"), workers=1, report=False)
    run("image3", str(field), session=session, **STEPS)
    assert _times(tmp_path / "there").keys() == _times(folder).keys()


@pytest.mark.parametrize(
    ("steps", "redone"),
    [
        ({"source_catalog": {"snr_threshold": 5.0}}, ["segm.fits"]),
        ({"resample": {"tile": 128, "pixfrac": 0.9}}, ["crf.fits"] * 4 + ["i2d.fits", "segm.fits"]),
        ({"skymatch": {"skip": True}}, ["crf.fits"] * 4 + ["i2d.fits", "segm.fits"]),
    ],
)
def test_what_depends_on_a_change_is_written(
    field: Path, folder: Path, steps: dict[str, Any], redone: list[str]
) -> None:
    """The catalogue changes no exposure; everything else counts as a change of all."""
    before = _times(folder)
    _again(field, folder, **steps)
    assert _rewritten(before, _times(folder)) == redone


def test_a_header_that_has_changed(field: Path, tmp_path: Path) -> None:
    """The pixels of one file are as they were, a keyword is not: products tell the new one."""
    inputs = Path(shutil.copytree(field.parent, tmp_path / "in"))
    association, out = inputs / field.name, tmp_path / "out"
    _again(association, out)
    before = _times(out)
    first, *_ = sorted(inputs.glob("*_cal.fits"))
    fits.setval(first, "PI_NAME", value="somebody else")
    told = _again(association, out)
    assert "ingest: 3 files kept, 1 new or changed, 0 gone" in told.notes
    assert len(_rewritten(before, _times(out))) == 6
    (crf,), (mosaic,) = out.glob(f"{first.name.removesuffix('_cal.fits')}*_crf.fits"), out.glob("*_i2d.fits")
    assert fits.getval(crf, "PI_NAME") == fits.getval(mosaic, "PI_NAME") == "somebody else"


def test_files_that_somebody_has_touched(field: Path, folder: Path) -> None:
    """One is gone, one cut, one rewritten in place: these are written again, the rest is kept."""
    wanted = {path.name: path.stat().st_size for path in folder.glob("*.fits")}
    before = _times(folder)
    crf = sorted(folder.glob("*_crf.fits"))
    crf[0].unlink()
    with crf[1].open("rb+") as file:
        file.truncate(1000)
    with crf[2].open("rb+") as file:
        file.seek(100)
        file.write(b"?")
    _again(field, folder)
    assert {path.name: path.stat().st_size for path in folder.glob("*.fits")} == wanted
    assert _rewritten(before, _times(folder)) == ["crf.fits"] * 3


def test_a_damaged_receipt_counts_as_none(field: Path, folder: Path) -> None:
    """What it speaks of is written again."""
    (receipt,) = folder.glob("*.zarr/receipts/export/*/i2d-*")
    receipt.write_text("[[")
    before = _times(folder)
    _again(field, folder)
    assert _rewritten(before, _times(folder)) == ["i2d.fits"]


def test_an_export_writes_what_it_is_asked_for(folder: Path) -> None:
    """The command by itself keeps no file, and leaves the store alone."""
    (store,) = folder.glob("*.zarr")
    before, inside = _times(folder), {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}
    export(open(str(store)), Session(output_dir=str(folder), workers=1))
    assert len(_rewritten(before, _times(folder))) == 6
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()} == inside
