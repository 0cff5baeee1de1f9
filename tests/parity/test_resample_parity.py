"""Resample beside the reference pipeline, and the comparison that judges it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from compare_products import compare_planes, ulp_distance  # noqa: E402
from parity_cases import CASES, FIELDS, SMALL  # noqa: E402

PLANES = {"SCI", "ERR", "CON", "WHT", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT", "headers"}
NORMAL = st.floats(width=32, allow_nan=False, allow_infinity=False)


@pytest.mark.parity
def test_small_parity_run(tmp_path: Path, peer_python: str) -> None:
    """The short list of cases is within tolerance, and every plane of every case has been looked at."""
    work = Path(os.environ.get("STREAMIMG3_PARITY_WORK", tmp_path))
    command = [sys.executable, str(ROOT / "scripts" / "parity.py"), "resample", "--small", "--work", str(work)]
    command += ["--peer-python", peer_python]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    for case in SMALL:
        assert {row[1] for row in rows if len(row) > 1 and row[0] == case} == PLANES


def test_every_case_names_a_field_and_known_case() -> None:
    """A typing error in the list of cases is found without running the reference."""
    assert {case.field for case in CASES.values()} <= set(FIELDS)
    assert {case.wcs_of for case in CASES.values()} - {""} <= set(CASES)
    assert set(SMALL) <= set(CASES)


@given(NORMAL)
def test_neighbouring_floats_are_one_ulp_apart(value: float) -> None:
    """The distance counts representable numbers, across zero and exponents too."""
    a = np.array([value], "f4")
    assert ulp_distance(a, a)[0] == 0
    # The largest finite number has infinity as its neighbour, still one step away.
    with np.errstate(over="ignore"):
        b = np.nextafter(a, np.float32(np.inf))
    assert ulp_distance(a, b)[0] == 1


def test_negative_zero_equals_zero() -> None:
    """The two zeros are the same number."""
    assert ulp_distance(np.array([0.0], "f4"), np.array([-0.0], "f4"))[0] == 0


def _write(path: Path, science: np.ndarray) -> Path:
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(science, name="SCI")]).writeto(path)
    return path


@pytest.mark.parametrize(
    ("change", "within"),
    [
        (np.float32(0), True),
        (np.float32(2) * np.spacing(np.float32(1)), True),
        (np.float32(3) * np.spacing(np.float32(1)), False),
        (np.float32(np.nan), False),
    ],
)
def test_plane_verdict(tmp_path: Path, change: np.float32, within: bool) -> None:
    """Two units in the last place pass, three do not, and a NaN on one side never does."""
    a = np.ones((6, 7), "f4")
    b = a.copy()
    b[3, 4] += change
    (result,) = compare_planes(_write(tmp_path / "a.fits", a), _write(tmp_path / "b.fits", b))
    assert result.within is within
    assert result.differ == (0 if change == 0 else 1)


def test_missing_plane_is_a_difference(tmp_path: Path) -> None:
    """A plane that only one side has can't pass."""
    a = _write(tmp_path / "a.fits", np.ones((4, 4), "f4"))
    b = tmp_path / "b.fits"
    fits.HDUList([fits.PrimaryHDU()]).writeto(b)
    (result,) = compare_planes(a, b)
    assert not result.within
    assert "ours only" in result.verdict
