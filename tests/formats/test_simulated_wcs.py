"""The simulated detector: its closed-form map, its gWCS and its FITS keywords are one and the same."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial.polynomial import polyval2d

from streamimg3.formats.simulated_wcs import (
    Aim,
    Camera,
    Mount,
    aim_of,
    attitude,
    make_detector,
    make_gwcs,
    plane_to_sky,
    sky_to_plane,
)

aims = st.builds(
    Aim,
    st.floats(0.0, 359.999),
    st.floats(-89.0, 89.0),
    st.floats(0.0, 359.999),
)


def angle_difference(a: float, b: float) -> float:
    return abs((a - b + 180.0) % 360.0 - 180.0)


def camera_at(aim: Aim, variant: int = 0, parity: int = -1) -> Camera:
    detector = make_detector("TEST", Mount(-122.0, -458.0, 0.35, parity), variant, 0.031, 1024.0)
    return Camera(detector, (1023.5, 1023.5), aim, 1.00007)


@settings(max_examples=25, deadline=None)
@given(aim=aims, variant=st.integers(0, 3), parity=st.sampled_from([-1, 1]))
def test_pixels_come_back_from_the_sky(aim: Aim, variant: int, parity: int) -> None:
    camera = camera_at(aim, variant, parity)
    y, x = np.mgrid[-0.5:2047.5:7j, -0.5:2047.5:7j]
    back_y, back_x = camera.to_pixel(*camera.to_sky(y, x))
    # A double holds an angle of 360 deg to 6e-14 deg, which is 7e-9 px.
    np.testing.assert_allclose(back_y, y, atol=1e-7)
    np.testing.assert_allclose(back_x, x, atol=1e-7)


@settings(max_examples=50, deadline=None)
@given(aim=aims, v2=st.floats(-800.0, 800.0), v3=st.floats(-800.0, 800.0))
def test_attitude_looks_where_it_is_told(aim: Aim, v2: float, v3: float) -> None:
    found = aim_of(attitude(v2, v3, aim), v2, v3)
    # At 1 deg from a pole an error of 1e-16 in a unit vector is 60 times larger in RA and roll.
    assert angle_difference(found.ra, aim.ra) < 1e-11
    assert abs(found.dec - aim.dec) < 1e-11
    assert angle_difference(found.roll, aim.roll) < 1e-11


@settings(max_examples=25, deadline=None)
@given(ra=st.floats(0.0, 359.999), dec=st.floats(-89.0, 89.0), east=st.floats(-300, 300), north=st.floats(-300, 300))
def test_tangent_plane_comes_back(ra: float, dec: float, east: float, north: float) -> None:
    eta, xi = sky_to_plane(*plane_to_sky(north, east, ra, dec), ra, dec)
    assert float(eta) == pytest.approx(north, abs=1e-8)
    assert float(xi) == pytest.approx(east, abs=1e-8)


def test_offsets_point_north_and_east() -> None:
    ra, dec = plane_to_sky([3600.0, 0.0], [0.0, 3.6], 10.0, 60.0)
    assert dec[0] == pytest.approx(61.0, abs=2e-4)  # a tangent, not an angle: 3600" x (1 deg)^2 / 3
    assert ra[1] == pytest.approx(10.002, abs=1e-9)  # 3.6" over cos(60 deg)


@pytest.mark.parametrize("variant", range(4))
def test_distortion_is_a_few_pixels_at_the_corner(variant: int) -> None:
    detector = camera_at(Aim(10.0, 10.0, 0.0), variant).detector
    v, u = np.mgrid[-1024:1024:17j, -1024:1024:17j]
    size = np.hypot(polyval2d(u, v, detector.a), polyval2d(u, v, detector.b))
    assert 2.0 < size.max() < 10.0
    assert size[8, 8] == 0.0


@pytest.mark.parametrize("variant", range(4))
def test_gwcs_is_the_camera(variant: int) -> None:
    camera = camera_at(Aim(359.999, -35.0, 200.0), variant)
    wcs = make_gwcs(camera, ((-0.5, 2047.5), (-0.5, 2047.5)))
    assert wcs.available_frames == ["detector", "v2v3", "v2v3vacorr", "world"]
    y, x = np.mgrid[-0.5:2047.5:21j, -0.5:2047.5:21j]
    ra, dec = camera.to_sky(y, x)
    wcs_ra, wcs_dec = wcs(x, y)
    # 1e-11 deg is 1e-6 px
    assert np.abs((wcs_ra - ra + 180.0) % 360.0 - 180.0).max() < 1e-11
    np.testing.assert_allclose(wcs_dec, dec, atol=1e-11)
    back_x, back_y = wcs.invert(ra, dec, with_bounding_box=False)
    # The inverse is a polynomial of degree 6; the worst of the invented distortions leaves 6e-7 px.
    np.testing.assert_allclose(back_x, x, atol=2e-6)
    np.testing.assert_allclose(back_y, y, atol=2e-6)
    assert np.isnan(wcs(-1.0, 5.0)).all()


def test_fits_keywords_are_the_camera() -> None:
    camera = camera_at(Aim(0.002, 60.0, 123.0), 2)
    wcs = WCS(fits.Header(camera.sip_cards()))
    y, x = np.mgrid[0:2047:9j, 0:2047:9j]
    ra, dec = camera.to_sky(y, x)
    fits_x, fits_y = wcs.all_world2pix(ra, dec, 0)
    # V2V3 are angles, SIP has a plane: 0.08 mas or 0.0025 px at the corners.
    np.testing.assert_allclose(fits_x, x, atol=0.004)
    np.testing.assert_allclose(fits_y, y, atol=0.004)


def test_area_is_the_determinant_of_the_jacobian() -> None:
    camera = camera_at(Aim(80.0, -20.0, 15.0), 1)
    area = camera.area((2048, 2048), 0.031)
    assert area.dtype == np.float32
    for y, x in ((0, 0), (2000, 30), (1024, 1700)):
        determinant = abs(np.linalg.det(camera.jacobian(float(y), float(x)))) / (0.031 * camera.va_scale) ** 2
        assert area[y, x] == pytest.approx(determinant, rel=2e-5)  # the step of half a pixel and cos(V3) leave 4e-6
