"""The whole pipeline beside the reference, the checklist that judges it, and the scores against the truth."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy import units as u
from astropy.table import Table

from streamimg3.formats.simulate import Field, plan_exposures, simulate

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from bench_image3 import DOCUMENTS, STEPS, document_costs  # noqa: E402
from image3_checks import CHECKS  # noqa: E402
from image3_products import Products, column_differences, image_difference, separation  # noqa: E402
from parity_cases import DELIBERATE, FIELDS, IMAGE3, IMAGE3_SMALL  # noqa: E402
from parity_image3 import merged  # noqa: E402
from parity_lines import LINES  # noqa: E402
from scores import cosmic_rays, true_positions  # noqa: E402


@pytest.mark.parity
def test_small_image3_run(tmp_path: Path, peer_python: str) -> None:
    """Every statement that four small exposures can show holds, or differs on purpose."""
    work = Path(os.environ.get("STREAMIMG3_PARITY_WORK", tmp_path))
    command = [sys.executable, str(ROOT / "scripts" / "parity.py"), "image3", "--small", "--work", str(work)]
    command += ["--peer-python", peer_python]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    wanted = [(line, case) for line in LINES for case in line.cases if case in IMAGE3_SMALL]
    assert len([row for row in rows if row and row[0] in IMAGE3_SMALL]) == len(wanted)


def test_every_statement_can_be_judged() -> None:
    """The checklist is complete; each line has products that show it, or tests that hold it."""
    assert [line.number for line in LINES] == list(range(1, 63))
    for line in LINES:
        assert line.cases or line.tests
        assert set(line.cases) <= set(IMAGE3)
        assert not line.cases or line.number in CHECKS
        assert [name for name in line.tests if not (ROOT / "tests" / name).exists()] == []
    assert set(CHECKS) == {line.number for line in LINES if line.cases}


def test_every_case_and_difference_is_known() -> None:
    """A typing error in the tables is found without running the reference."""
    assert {case.field for case in IMAGE3.values()} <= set(FIELDS)
    shown = {(line.number, case) for line in LINES for case in line.cases}
    for known in DELIBERATE:
        assert set(known.cases) <= set(IMAGE3)
        assert any((known.line, case) in shown for case in known.cases)
        assert known.reason and 0 < known.limit < 1


def test_parameters_of_both_sides_are_merged() -> None:
    """By step and parameter; the later ones win."""
    first, second = {"a": {"x": 1, "y": 2}, "b": {"z": 3}}, {"a": {"x": 4}, "c": {"w": 5}}
    assert merged(first, second) == {"a": {"x": 4, "y": 2}, "b": {"z": 3}, "c": {"w": 5}}


def test_planes_are_compared() -> None:
    """Counts, units in the last place, NaN pattern, and size relative to typical values."""
    a = np.array([[1.0, 2.0, np.nan, 1e-9]], np.float32)
    b = a.copy()
    assert image_difference(a, b).differ == 0
    b[0, 1] = np.nextafter(np.float32(2.0), np.float32(3.0))
    b[0, 3] = 2e-9
    found = image_difference(a, b)
    assert (found.differ, found.nan_equal) == (2, True)
    assert found.size == pytest.approx(1.2e-7, rel=0.05)  # one ulp of 2; the small pixel counts beside the typical 1
    assert found.small
    b[0, 0] = np.nan
    assert not image_difference(a, b).nan_equal
    flags = image_difference(np.array([[1, 2]], np.uint32), np.array([[1, 7]], np.uint32))
    assert (flags.differ, flags.ulp, flags.small) == (1, 5, False)
    assert image_difference(a, a[:, :2]).differ == 4


def test_columns_are_compared() -> None:
    """Kinds, missing rows and columns, NaN, and numbers relative to typical ones."""
    theirs = Table({"label": [1, 2], "flux": [1.0, 1e-12] * u.Jy, "sharp": [np.nan, 1.0], "gone": [0, 0]})
    ours = Table({"label": [1, 2], "flux": [1.0, 2e-12] * u.Jy, "sharp": [1.0, 1.0]})
    found = {c.name: c for c in column_differences(ours, theirs)}
    assert found["label"].equal and found["flux"].equal
    assert not found["sharp"].nan_equal
    assert found["gone"].kind == "absent"
    ours["flux"].unit = u.mJy
    assert "mJy" in {c.name: c for c in column_differences(ours, theirs)}["flux"].kind
    assert column_differences(ours[:1], theirs)[0].kind == "rows"


def test_distance_on_the_sky() -> None:
    """Across the meridian of 0 too, and NaN is not small."""
    a = np.array([359.9999]), np.array([60.0])
    b = np.array([0.0001]), np.array([60.0])
    assert separation(a, b) == pytest.approx(0.36, rel=1e-9)
    assert not separation(a, (b[0], np.array([np.nan]))) <= 1.0


def test_files_are_told_apart(tmp_path: Path) -> None:
    """The mosaic is not a group's, the catalogue not an exposure's."""
    for name in ("p_i2d.fits", "e_o001_outlier_i2d.fits", "p_cat.ecsv", "e_cal_cat.ecsv", "e_o001_crf.fits"):
        (tmp_path / name).touch()
    products = Products(tmp_path)
    assert products.i2d == tmp_path / "p_i2d.fits"
    assert products.catalog == tmp_path / "p_cat.ecsv"
    assert [p.name for p in products.crf] == ["e_o001_crf.fits"]
    assert products.one("_segm.fits") is None


def test_true_positions() -> None:
    """Replacing the stored pointing by the true one gives what the simulated camera itself says."""
    exposure = plan_exposures(Field(shape=(64, 64), dithers=3))[2]
    y, x = np.array([0.0, 60.0, 30.0]), np.array([5.0, 20.0, 63.0])
    aims = {"true": exposure.true.aim, "ref": exposure.stored.aim}
    row = {f"{k}_{kind}": getattr(aim, k) for kind, aim in aims.items() for k in ("ra", "dec", "roll")}
    assert row["ra_true"] != row["ra_ref"]
    found = true_positions(*exposure.stored.to_sky(y, x), row)
    # 1e-11 deg = 4e-8 arcsec: double precision at 150 degrees leaves 3e-14
    np.testing.assert_allclose(found, exposure.true.to_sky(y, x), rtol=0, atol=1e-11)


def test_cosmic_rays_are_counted(tmp_path: Path) -> None:
    """Flags exactly where the truth is: all found, none false; a flag elsewhere is false."""
    from astropy.io import fits

    association = simulate(tmp_path, Field(shape=(64, 64), dithers=1))
    row = Table.read(tmp_path / "truth" / "exposures.ecsv")[0]
    truth = np.load(tmp_path / "truth" / f"{row['file'].removesuffix('_cal.fits')}_cr.npz")
    with fits.open(association.parent / row["file"]) as hdus:
        good = (hdus["DQ"].data & 1) == 0
        flags = hdus["DQ"].data
        flags.flat[truth["index"]] |= 16
        hdus.writeto(tmp_path / "marked.fits")
    found, strong, false, count = cosmic_rays(tmp_path, tmp_path / "marked.fits", row)
    assert (found, count) == (strong, int(good.sum()))
    weak = int(((truth["value"] < row["noise"]) & good.flat[truth["index"]]).sum())
    assert false == weak


def test_costs_come_from_the_documents(tmp_path: Path) -> None:
    """Each finished step says what it took; the alignment's document says which step made it."""
    (tmp_path / "documents").mkdir()
    alignment = {"step": "assign_mtwcs", "cost": {"cpu_s": 1.5}}
    (tmp_path / "documents" / "alignment.json").write_text(json.dumps(alignment))
    (tmp_path / "documents" / "sky.json").write_text(json.dumps({"cost": {"cpu_s": 2.0}}))
    assert dict(document_costs(tmp_path)) == {"assign_mtwcs": 1.5, "skymatch": 2.0}
    assert set(DOCUMENTS.values()) <= set(STEPS)
