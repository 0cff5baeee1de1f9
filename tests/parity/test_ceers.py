"""Real geometry: the alignment and the grids of a published survey, found again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from streamimg3.sky.wcs import Wcs
from streamimg3.stages.resample import Params

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from ceers import motion  # noqa: E402
from ceers_exposures import Exposure, Pointing, angles, made_rigid, offsets, unit_vectors  # noqa: E402
from ceers_files import centroid, wanted_terms  # noqa: E402

RA, DEC, SIZE = 214.9, 52.9, 64
ARCSEC = np.deg2rad(1.0 / 3600.0)


@pytest.mark.parity
def test_survey_is_found_again(tmp_path: Path) -> None:
    """Every exposure within 5 mas and 5 arcsec of the survey's alignment, its grids made, its files read."""
    data = Path(os.environ.get("STREAMIMG3_DATA", "")) / "jwst_ceers"
    if "STREAMIMG3_DATA" not in os.environ or not data.is_dir():
        pytest.skip("set STREAMIMG3_DATA to the folder that holds jwst_ceers")
    command = [sys.executable, str(ROOT / "scripts" / "ceers.py"), "--data", str(data), "--work", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^jw01345001001_0[24]201_0000\d_nrc[ab]long .*$", done.stdout, re.MULTILINE)
    assert len(rows) == 24  # each of 12 exposures by itself and in its group
    away, rolled = (np.array([float(row.split()[k]) for row in rows]) for k in (7, 8))
    assert away.max() <= 5.0
    assert np.abs(rolled).max() <= 5.0
    assert "46200 x 15400" in done.stdout


def header(rotation: float) -> bytes:
    """Cards of a tangent-plane image with +Y at a position angle (degrees)."""
    s, c = np.sin(np.deg2rad(rotation)), np.cos(np.deg2rad(rotation))
    scale = 0.06 / 3600.0
    cards = {
        "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CUNIT1": "deg", "CUNIT2": "deg", "CRVAL1": RA, "CRVAL2": DEC,
        "CRPIX1": SIZE / 2 + 0.5, "CRPIX2": SIZE / 2 + 0.5, "CD1_1": -scale * c, "CD1_2": scale * s,
        "CD2_1": scale * s, "CD2_2": scale * c,
    }  # fmt: skip
    return fits.Header(cards).tostring(endcard=False, padding=False).encode("ascii")


def about(axis: tuple[float, float], angle: float) -> np.ndarray:
    """Rotation of the sphere about a place (degrees) by an angle (rad), counter-clockwise seen from outside."""
    k = unit_vectors(*map(np.asarray, axis))
    cross = np.array([[0.0, -k[2], k[1]], [k[2], 0.0, -k[0]], [-k[1], k[0], 0.0]])
    return np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * cross @ cross


def exposure(rotation: float, turn: np.ndarray, name: str = "jw01345001001_02201_00001_nrcalong") -> Exposure:
    """A small image whose truth is its WCS turned on the sky."""
    wcs = Wcs("fits", header(rotation), (SIZE, SIZE))
    return Exposure(name, {}, wcs, Pointing(wcs, (0, 0), turn))


@settings(max_examples=20, deadline=None)
@given(st.floats(-180, 180), st.floats(-400, 400), st.floats(-400, 400))
def test_motion_is_what_was_done(rotation: float, north: float, roll: float) -> None:
    """A move to the north (mas) and a roll (arcsec, north through east) are measured with their signs."""
    lon = np.deg2rad(RA)
    pole = angles(np.array([[np.sin(lon)], [-np.cos(lon)], [0.0]]))
    upwards = about((float(pole[0][0]), float(pole[1][0])), 1e-3 * north * ARCSEC)
    # seen from outside north through east turns clockwise, as east is on the right there
    moved = exposure(rotation, upwards @ about((RA, DEC), -roll * ARCSEC))
    found, rolled = motion(moved, moved.true.to_sky)
    # an image of 4 arcsec, turned by 400 arcsec and moved by 0.4: what a plane neglects is below 1e-3 mas
    np.testing.assert_allclose(found, [north, 0.0], atol=1e-3)
    assert rolled == pytest.approx(roll, abs=1e-3)


def test_pixels_of_a_true_pointing_come_back() -> None:
    """Sky and back, to a millionth of a pixel."""
    true = exposure(37.0, about((RA, DEC + 0.01), 1e-3)).true
    y, x = np.array([0.0, 10.5, 63.0]), np.array([3.25, 60.0, 0.0])
    np.testing.assert_allclose(true.to_pixel(*true.to_sky(y, x)), [y, x], atol=1e-6)


def test_members_of_a_group_share_one_rotation() -> None:
    """Alignments that differ become one; a group that has one already keeps it."""
    same, other = about((RA, DEC), 1e-3), about((RA, DEC), 2e-3)
    names = ("jw01345001001_02201_00001_nrcalong", "jw01345001001_02201_00001_nrcblong")
    mixed = made_rigid([exposure(0.0, t, n) for t, n in zip((same, other), names, strict=True)])
    np.testing.assert_allclose(mixed[0].true.turn, mixed[1].true.turn, atol=1e-15)
    alone = made_rigid([exposure(0.0, same, n) for n in names])
    y, x = np.array([0.0, 63.0]), np.array([63.0, 0.0])
    away = np.subtract(alone[0].true.to_sky(y, x), exposure(0.0, same).true.to_sky(y, x))
    # mas; rounding (1e-16) over the field's size squared (1e-10) leaves the roll about 1e-6 rad, over 2 arcsec
    assert np.abs(away).max() * 3.6e6 < 1e-2


@pytest.mark.parametrize("rotation", [-49.7, 0.0, 130.0])
def test_wanted_grid_has_the_position_angle(rotation: float) -> None:
    """The expected CD matrix, by astropy's own reading of it: +Y at the angle, +X to the west of it."""
    asked = Params(crpix=(31.0, 20.0), crval=(RA, DEC), rotation=rotation, pixel_scale=0.06)
    wanted = wanted_terms(asked)
    np.testing.assert_array_equal(wanted["CRPIX"], [32.0, 21.0])
    wcs = Wcs("fits", header(rotation), (SIZE, SIZE))
    given_ = wcs.projection.wcs.wcs.cd  # type: ignore[attr-defined]
    np.testing.assert_allclose(wanted["CD"], given_, rtol=1e-12)
    north, east = offsets(*wcs.to_sky(np.array([31.5, 32.5]), np.array([31.5, 31.5])), (RA, DEC))
    assert np.rad2deg(np.arctan2(east[1], north[1])) == pytest.approx(rotation, abs=1e-6)


def test_centroid_of_a_source() -> None:
    """A sampled Gaussian between pixels, on a background."""
    rows, columns = np.mgrid[:60, :60]
    image = 3.0 + 50.0 * np.exp(-((rows - 30.3) ** 2 + (columns - 28.8) ** 2) / 8.0)
    y, x = centroid(image.astype(np.float32), 31.0, 28.0)
    assert (y, x) == (pytest.approx(30.3, abs=1e-3), pytest.approx(28.8, abs=1e-3))
