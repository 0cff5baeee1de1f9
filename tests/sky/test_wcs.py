"""A WCS as a value: gWCS and FITS, always ICRS, rows before columns."""

from __future__ import annotations

import io
import pickle
from functools import cache

import asdf
import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS
from hypothesis import given, settings
from hypothesis import strategies as st

from streamimg3.errors import InputError
from streamimg3.formats.simulated_wcs import Aim, make_gwcs
from streamimg3.sky.asdf_text import asdf_bytes
from streamimg3.sky.wcs import Wcs
from tests.sky.skies import AIM, camera, from_cards, gwcs_of, sip_of, tangent, tangent_cards

SHAPE = (96, 110)
GRID = np.mgrid[-0.5:95.5:9j, -0.5:109.5:11j]
ANGLE = 1e-11  # deg: a double holds 360 deg to 6e-14; a few dozen operations on it
aims = st.builds(Aim, st.floats(0.0, 359.999), st.floats(-85.0, 85.0), st.floats(0.0, 359.999))


def assert_same_sky(found: tuple, wanted: tuple, tolerance: float) -> None:
    """Two positions agree, also across 0/360 degrees."""
    away = (np.asarray(found[0]) - wanted[0] + 180.0) % 360.0 - 180.0
    assert np.abs(away * np.cos(np.radians(wanted[1]))).max() < tolerance
    assert np.abs(np.asarray(found[1]) - wanted[1]).max() < tolerance


@pytest.mark.parametrize("key", ["meta", "wcs"])
def test_gwcs_from_asdf_bytes(key: str) -> None:
    cam = camera()
    made = make_gwcs(cam, ((-0.5, 109.5), (-0.5, 95.5)))
    stream = io.BytesIO()
    asdf.AsdfFile({"meta": {"wcs": made}} if key == "meta" else {"wcs": made}).write_to(stream)
    wcs = Wcs("gwcs", stream.getvalue(), SHAPE)
    assert_same_sky(wcs.to_sky(*GRID), cam.to_sky(*GRID), ANGLE)
    assert wcs.bounds == ((-0.5, 95.5), (-0.5, 109.5))
    assert wcs.gwcs().available_frames[0] == "detector"


def test_asdf_bytes_list_extensions_by_name() -> None:
    """The library lists them in the order of a set, that changes from process to process."""
    text = asdf_bytes({"wcs": make_gwcs(camera(), ((-0.5, 109.5), (-0.5, 95.5))), "rest": {"extensions": ["b", "a"]}})
    with asdf.open(io.BytesIO(text)) as tree:
        names = [e["extension_uri"] for e in tree["history"]["extensions"]]
        assert names == sorted(names) and len(names) > 2
        assert tree["rest"]["extensions"] == ["b", "a"]
        assert tree["wcs"].available_frames[0] == "detector"


def test_nan_outside_the_bounding_box_only_if_bounded() -> None:
    wcs = gwcs_of(camera(), SHAPE, inset=(3.0, 5.0))
    assert wcs.bounds == ((2.5, 92.5), (4.5, 104.5))  # rows first
    y, x = np.array([2.0, 3.0, 50.0, 50.0]), np.array([50.0, 50.0, 4.0, 5.0])
    ra, dec = wcs.to_sky(y, x)
    np.testing.assert_array_equal(np.isnan(ra), [True, False, True, False])
    np.testing.assert_array_equal(np.isnan(dec), [True, False, True, False])
    assert np.isfinite(wcs.to_sky(y, x, bounded=False)).all()


PLACES = [(Aim(0.0001, -35.0, 200.0), 0, -1), (Aim(150.0, 84.0, 32.0), 1, 1), (Aim(271.0, -89.0, 359.0), 2, -1)]


@cache
def gwcs_at(which: int) -> Wcs:
    """One of a few, as making one takes a third of a second."""
    aim, variant, parity = PLACES[which]
    return gwcs_of(camera(aim, variant, parity), SHAPE)


@settings(max_examples=40, deadline=None)
@given(which=st.integers(0, 2), y=st.floats(-0.5, 95.5), x=st.floats(-0.5, 109.5))
def test_pixels_come_back_through_a_gwcs(which: int, y: float, x: float) -> None:
    wcs = gwcs_at(which)
    back_y, back_x = wcs.to_pixel(*wcs.to_sky(np.array([y]), np.array([x])))
    # The inverse polynomials of the simulated detectors leave 6e-7 px over the whole detector.
    assert back_y[0] == pytest.approx(y, abs=2e-6)
    assert back_x[0] == pytest.approx(x, abs=2e-6)


@settings(max_examples=30, deadline=None)
@given(aim=aims, variant=st.integers(0, 3), distorted=st.booleans())
def test_pixels_come_back_through_a_fits_header(aim: Aim, variant: int, distorted: bool) -> None:
    wcs = sip_of(camera(aim, variant, corner=True), SHAPE)
    if not distorted:
        wcs = tangent(SHAPE, aim.roll, centre=(aim.ra, aim.dec))
    y, x = wcs.to_pixel(*wcs.to_sky(*GRID))
    # With distortion astropy iterates until its step is below 1e-9 px; 6e-14 of 360 deg are 7e-9 px.
    np.testing.assert_allclose(y, GRID[0], rtol=0, atol=5e-8)
    np.testing.assert_allclose(x, GRID[1], rtol=0, atol=5e-8)


def test_fits_header_is_read_as_astropy_reads_it() -> None:
    cards = tangent_cards(SHAPE, 30.0)
    lon, lat = WCS(fits.Header(cards)).pixel_to_world_values(GRID[1], GRID[0])
    wcs = from_cards(cards, SHAPE)
    assert_same_sky(wcs.to_sky(*GRID), (lon, lat), 1e-12)
    assert wcs.bounds is None


@pytest.mark.parametrize("frame", ["fk5", "galactic", "fk4"])
def test_other_frames_become_icrs(frame: str) -> None:
    centre = {"fk5": (AIM.ra, AIM.dec), "fk4": (AIM.ra, AIM.dec), "galactic": (237.1, 42.1)}[frame]
    cards = tangent_cards(SHAPE, 30.0, centre=centre) | {"RADESYS": frame.upper()}
    if frame == "galactic":
        del cards["RADESYS"]
        cards |= {"CTYPE1": "GLON-TAN", "CTYPE2": "GLAT-TAN"}
    else:
        cards["EQUINOX"] = {"fk5": 2000.0, "fk4": 1950.0}[frame]
    lon, lat = WCS(fits.Header(cards)).pixel_to_world_values(GRID[1], GRID[0])
    sky = SkyCoord(lon * u.deg, lat * u.deg, frame=frame).icrs
    wcs = from_cards(cards, SHAPE)
    assert_same_sky(wcs.to_sky(*GRID), (sky.ra.deg, sky.dec.deg), 1e-9)
    y, x = wcs.to_pixel(sky.ra.deg, sky.dec.deg)
    np.testing.assert_allclose(y, GRID[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(x, GRID[1], rtol=0, atol=1e-6)


def test_a_fits_wcs_is_no_gwcs() -> None:
    with pytest.raises(InputError, match="FITS WCS"):
        tangent(SHAPE, 0.0).gwcs()


def test_asdf_without_a_gwcs_is_refused() -> None:
    stream = io.BytesIO()
    asdf.AsdfFile({"wcs": {"crpix": [1, 2]}}).write_to(stream)
    with pytest.raises(InputError, match="no gWCS"):
        Wcs("gwcs", stream.getvalue(), SHAPE).to_sky(*GRID)


def test_a_wcs_travels_as_a_value() -> None:
    wcs = gwcs_of(camera(), SHAPE)
    twin = pickle.loads(pickle.dumps(wcs))
    assert twin == wcs and hash(twin) == hash(wcs)
    np.testing.assert_array_equal(twin.to_sky(*GRID), wcs.to_sky(*GRID))


def test_the_caller_cannot_change_a_wcs() -> None:
    """``gwcs()`` gives a copy: what is done to it does not reach the shared one."""
    wcs = gwcs_of(camera(), SHAPE)
    copy = wcs.gwcs()
    copy.bounding_box = ((10.0, 20.0), (10.0, 20.0))
    assert wcs.bounds == ((-0.5, 95.5), (-0.5, 109.5))
    assert np.isfinite(wcs.to_sky(*GRID)).all()


@pytest.mark.parametrize(
    "text", [b"", b"no ASDF", b"#ASDF 1.0.0\n#ASDF_STANDARD 1.5.0\n%YAML 1.1\n--- {meta: [\n...\n"]
)
def test_a_gwcs_that_cannot_be_read_is_bad_input(text: bytes) -> None:
    """One line says why, whatever the reader trips over."""
    with pytest.raises(InputError, match="its gWCS cannot be read") as refused:
        Wcs("gwcs", text, (8, 8)).to_sky(np.zeros(1), np.zeros(1))
    assert "\n" not in str(refused.value)
