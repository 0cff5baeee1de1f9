"""From V2V3 to the sky, against the product of five rotation matrices and against what the angles mean."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamimg3.errors import InputError
from streamimg3.sky.detector_frame import Pointing, aberration, attitude, pixel_frame, sky_steps, v2v3_frame

POINTING = Pointing(118.7, -489.3, 10.684, -20.269, 211.4, 1.00008571)
HEADER = {"V2_REF": 118.7, "V3_REF": -489.3, "RA_REF": 10.684, "DEC_REF": -20.269, "ROLL_REF": 211.4}

arcsec = st.floats(-1500.0, 1500.0)
angles = st.floats(-360.0, 360.0)
pointings = st.builds(Pointing, arcsec, arcsec, angles, st.floats(-90.0, 90.0), angles, st.floats(0.9998, 1.0002))


def rotation(axis: str, degrees: float) -> np.ndarray:
    """Matrix that turns the axes, not the vector."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array({
        "x": [[1, 0, 0], [0, c, s], [0, -s, c]],
        "y": [[c, 0, -s], [0, 1, 0], [s, 0, c]],
        "z": [[c, s, 0], [-s, c, 0], [0, 0, 1]],
    }[axis])  # fmt: skip


def unit(lon: object, lat: object) -> np.ndarray:
    lon, lat = np.radians(lon), np.radians(lat)
    return np.array([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])


@given(pointings, arcsec, arcsec)
def test_attitude_is_the_product_of_its_rotations(p: Pointing, v2: float, v3: float) -> None:
    turns = (("z", -p.ra_ref), ("y", p.dec_ref), ("x", p.roll_ref), ("y", -p.v3_ref / 3600), ("z", p.v2_ref / 3600))
    wanted = np.linalg.multi_dot([rotation(*t) for t in turns]) @ unit(v2 / 3600, v3 / 3600)
    ra, dec = attitude(p)(v2, v3)
    assert 0.0 <= ra <= 360.0  # 360 itself where rounding takes a tiny negative angle there
    # vectors, because right ascension means nothing at a pole; rounding of five products
    np.testing.assert_allclose(unit(ra, dec), wanted, rtol=0, atol=3e-15)


@given(pointings, arcsec, arcsec)
def test_attitude_can_be_undone(p: Pointing, v2: float, v3: float) -> None:
    # arcsec of 3e-15 rad, ten times over for the way there and back
    np.testing.assert_allclose(attitude(p).inverse(*attitude(p)(v2, v3)), (v2, v3), rtol=0, atol=1e-8)


def test_reference_point_and_roll() -> None:
    """The reference point is seen at its place, and V3 grows there towards its position angle."""
    model = attitude(POINTING)
    ra, dec = model(POINTING.v2_ref, np.array([POINTING.v3_ref, POINTING.v3_ref + 0.01]))
    assert (ra[0], dec[0]) == pytest.approx((POINTING.ra_ref, POINTING.dec_ref), abs=1e-12)
    east, north = (ra[1] - ra[0]) * np.cos(np.radians(dec[0])), dec[1] - dec[0]
    # 0.01 arcsec against rounding of 1e-14 degrees: the angle is good to 1e-7
    assert np.degrees(np.arctan2(east, north)) % 360 == pytest.approx(POINTING.roll_ref, abs=1e-5)


@given(pointings, arcsec, arcsec)
def test_aberration_stretches_about_the_reference_point(p: Pointing, v2: float, v3: float) -> None:
    scale = p.va_scale or 1.0
    wanted = p.v2_ref + scale * (v2 - p.v2_ref), p.v3_ref + scale * (v3 - p.v3_ref)
    model = aberration(p)
    np.testing.assert_allclose(model(v2, v3), wanted, rtol=0, atol=1e-12)
    np.testing.assert_allclose(model.inverse(*wanted), (v2, v3), rtol=0, atol=1e-11)


@pytest.mark.parametrize("scale", [None, 1.0])
def test_no_aberration_is_no_change(scale: float | None) -> None:
    assert aberration(replace(POINTING, va_scale=scale))(12.3, -45.6) == (12.3, -45.6)


def test_frames() -> None:
    frames = [pixel_frame("detector"), *(frame for frame, _ in sky_steps(POINTING))]
    assert [f.name for f in frames] == ["detector", "v2v3", "v2v3vacorr", "world"]
    units = [[str(u) for u in f.unit] for f in frames]
    assert units == [["pix"] * 2, ["arcsec"] * 2, ["arcsec"] * 2, ["deg"] * 2]
    assert tuple(v2v3_frame("v2v3").axes_names) == ("v2", "v3")
    assert frames[-1].reference_frame.name == "icrs"


def test_header_is_read() -> None:
    found = Pointing.of(HEADER | {"VA_SCALE": 1.00008571, "V3I_YANG": -0.5, "VPARITY": -1.0}, "a.fits")
    assert found == replace(POINTING, v3i_yang=-0.5, vparity=-1)
    assert Pointing.of(HEADER, "a.fits").va_scale is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"RA_REF": None, "ROLL_REF": None}, "a.fits: RA_REF, ROLL_REF missing"),
        ({"DEC_REF": float("nan")}, "a.fits: DEC_REF = nan: it must be a finite number"),
        ({"VA_SCALE": 0.0}, "a.fits: VA_SCALE = 0.0: it must be positive"),
        ({"VPARITY": float("nan")}, "a.fits: .*NaN"),
    ],
)
def test_bad_headers_are_named(change: dict[str, float | None], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Pointing.of(HEADER | change, "a.fits")
