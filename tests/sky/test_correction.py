"""Corrected WCS: what a correction does to a gWCS and to a FITS header of any dialect."""

from __future__ import annotations

import pickle
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from streamimg3.errors import InputError
from streamimg3.formats.simulated_wcs import Aim
from streamimg3.sky.correction import Correction
from streamimg3.sky.mosaic_frame import as_asdf
from streamimg3.sky.tangent import TangentPlane, own_plane
from streamimg3.sky.wcs import Wcs
from tests.sky.skies import AIM, camera, from_cards, gwcs_of, sip_of, tangent_cards

SHAPE = (96, 110)
GRID = np.mgrid[-0.5:95.5:7j, -0.5:109.5:8j]
ORIGIN = (-122.0, -458.0, AIM.roll)
ARCSEC = 3600.0

small = st.floats(-1e-3, 1e-3)
shifts = st.tuples(st.floats(-3.0, 3.0), st.floats(-3.0, 3.0))
matrices = st.tuples(small, small, small, small).map(lambda m: (1.0 + m[0], m[1], m[2], 1.0 + m[3]))
corrections = st.builds(Correction, st.just("tangent"), matrices, shifts)


def apart(found: tuple, wanted: tuple) -> float:
    """Largest distance on the sky in arcsec."""
    east = (np.asarray(found[0]) - wanted[0] + 180.0) % 360.0 - 180.0
    return ARCSEC * float(np.hypot(east * np.cos(np.radians(wanted[1])), np.asarray(found[1]) - wanted[1]).max())


@cache
def exposure(ra: float = AIM.ra) -> Wcs:
    return gwcs_of(camera(Aim(ra, AIM.dec, AIM.roll)), SHAPE)


def fits_wcs(dialect: str) -> Wcs:
    """One image in many spellings."""
    cards = tangent_cards(SHAPE, 30.0)
    turn = {k: cards.pop(k) for k in list(cards) if k.startswith("PC")}
    scale = float(cards["CDELT1"])
    if dialect in ("cd", "tpv", "far"):
        cards |= {k.replace("PC", "CD"): scale * float(v) for k, v in turn.items()}
        del cards["CDELT1"], cards["CDELT2"]
    elif dialect == "crota":
        cards |= {"CDELT1": -scale, "CROTA2": -30.0}
    elif dialect == "arcsec":
        cards |= {"CUNIT1": "arcsec", "CUNIT2": "arcsec", "CDELT1": 3600 * scale, "CDELT2": 3600 * scale} | turn
        cards |= {"CRVAL1": 3600 * float(cards["CRVAL1"]), "CRVAL2": 3600 * float(cards["CRVAL2"])}
    elif dialect != "plain":
        cards |= turn
    if dialect == "tpv":
        cards |= {"CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", "PV1_0": 1e-6, "PV1_1": 1.0, "PV1_4": 0.02, "PV2_1": 1.0}
    if dialect == "galactic":
        del cards["RADESYS"]
        cards |= {"CTYPE1": "GLON-TAN", "CTYPE2": "GLAT-TAN", "CRVAL1": 237.1, "CRVAL2": 42.1}
    if dialect == "swapped":
        cards |= {"CTYPE1": "DEC--SIN", "CTYPE2": "RA---SIN", "CRVAL1": AIM.dec, "CRVAL2": AIM.ra}
    if dialect == "far":
        cards |= {"CRPIX1": 9000.0, "CRPIX2": -7000.0}
    if dialect == "pole":
        cards |= {"CRVAL2": 89.999}
    if dialect == "cube":
        cards |= {"NAXIS": 3, "CTYPE3": "FREQ", "CRVAL3": 1e9, "CRPIX3": 1.0, "CDELT3": 1e6, "CUNIT3": "Hz"}
    return from_cards(cards, SHAPE)


DIALECTS = ("pc", "cd", "crota", "plain", "arcsec", "tpv", "galactic", "swapped", "far", "pole", "cube")


@settings(max_examples=6, deadline=None)
@given(correction=corrections)
def test_a_correction_in_v2v3_does_what_its_plane_says(correction: Correction) -> None:
    wcs = exposure()
    plane, origin = own_plane(wcs, ORIGIN)
    assert origin == ORIGIN
    moved = replace(wcs, correction=replace(correction, origin=origin))
    # Degrees in double precision hold 2e-10 arcsec; a few dozen operations on them.
    assert apart(moved.to_sky(*GRID), plane.correct(correction, *wcs.to_sky(*GRID))) < 2e-9
    y, x = moved.to_pixel(*moved.to_sky(*GRID))
    # The inverse polynomials of the simulated detectors leave 6e-7 px, and a correction of 3 arcsec looks elsewhere in them.
    assert np.abs(y - GRID[0]).max() < 1e-4 and np.abs(x - GRID[1]).max() < 1e-4


def test_the_numbers_of_the_reference_software() -> None:
    """Positions that tweakwcs 0.9.3 gives for the same gWCS and correction."""
    correction = Correction("tangent", (1.0002, 3e-4, -2e-4, 0.9999), (0.4, -0.7), ORIGIN)
    ra, dec = replace(exposure(), correction=correction).to_sky(np.array([0.0, 95, 40]), np.array([0.0, 109, 70]))
    wanted = (
        [150.11658964667308, 150.11623255040317, 150.1162638526482],
        [2.2002084179045807, 2.2014028026354504, 2.200822388231578],
    )
    assert apart((ra, dec), (np.array(wanted[0]), np.array(wanted[1]))) < 1e-9


def test_the_step_is_the_one_that_other_software_knows() -> None:
    wcs = gwcs_of(camera(), SHAPE, inset=(3.0, 5.0))
    moved = replace(wcs, correction=Correction("tangent", shift=(1.0, 0.0), origin=ORIGIN, name="FIT-LVL3-GAIADR3"))
    found = moved.gwcs()
    assert list(found.available_frames) == ["detector", "v2v3", "v2v3vacorr", "v2v3corr", "world"]
    assert found.name == "FIT-LVL3-GAIADR3"
    assert found.pipeline[2].transform.name == "JWST tangent-plane linear correction. v1"
    assert moved.bounds == wcs.bounds == ((2.5, 92.5), (4.5, 104.5))
    assert "v2v3corr" not in moved.uncorrected.gwcs().available_frames
    assert moved.uncorrected == wcs


def test_an_earlier_correction_is_extended() -> None:
    """A product of an earlier run comes in again: the gWCS holds a correction, and gets another one."""
    first = Correction("tangent", (1.0002, 3e-4, -2e-4, 0.9999), (0.4, -0.7), ORIGIN)
    later = Correction("tangent", (1.0, -1e-4, 1e-4, 1.0), (-0.1, 0.2), ORIGIN)
    again = Wcs("gwcs", as_asdf(replace(exposure(), correction=first).gwcs()), SHAPE)
    plane, origin = own_plane(again, (0.0, 0.0, 0.0))  # what is in the gWCS counts
    assert np.allclose(origin, ORIGIN, rtol=0, atol=1e-9)
    assert np.allclose(plane.axes, own_plane(exposure(), ORIGIN)[0].axes, rtol=0, atol=1e-14)
    both = replace(again, correction=later)
    assert list(both.gwcs().available_frames).count("v2v3corr") == 1
    assert apart(both.to_sky(*GRID), replace(exposure(), correction=first.then(later)).to_sky(*GRID)) < 2e-9


@settings(max_examples=3, deadline=None)
@given(correction=corrections, ra=st.sampled_from([0.0002, 150.0, 359.9999]))
def test_a_correction_without_origin_turns_the_sky_itself(correction: Correction, ra: float) -> None:
    wcs = exposure(ra)
    plane, origin = own_plane(wcs, None)
    moved = replace(wcs, correction=correction)
    assert origin is None
    assert apart(moved.to_sky(*GRID), plane.correct(correction, *wcs.to_sky(*GRID))) < 2e-9
    assert own_plane(moved, None)[0] == plane
    twice = Wcs("gwcs", as_asdf(moved.gwcs()), SHAPE)
    assert len(set(replace(twice, correction=correction).gwcs().available_frames)) == 6


@pytest.mark.parametrize("ra", [0.0002, 150.0])
def test_a_moving_target(ra: float) -> None:
    wcs = exposure(ra)
    moved = replace(wcs, correction=Correction("moving", shift=(0.001, -0.002)))
    assert moved.gwcs().available_frames[-1] == "moving_target"
    before, after = wcs.to_sky(*GRID), moved.to_sky(*GRID)
    np.testing.assert_array_equal(after, (before[0] + 0.001, before[1] - 0.002))
    assert moved.bounds == wcs.bounds


@settings(max_examples=40, deadline=None)
@given(correction=corrections, dialect=st.sampled_from(DIALECTS))
def test_a_header_of_any_dialect_carries_a_correction(correction: Correction, dialect: str) -> None:
    wcs = fits_wcs(dialect)
    plane, _ = own_plane(wcs, None)
    moved = replace(wcs, correction=correction)
    # shift x field squared in radian: 2e-5 x (1e-5)^2 is far below; a distortion (TPV) is of second order in it, and
    # CRPIX 9000 pixels away makes the field 1e-3 rad.
    assert apart(moved.to_sky(*GRID), plane.correct(correction, *wcs.to_sky(*GRID))) < 2e-6
    y, x = moved.to_pixel(*moved.to_sky(*GRID))
    assert np.abs(y - GRID[0]).max() < 1e-6 and np.abs(x - GRID[1]).max() < 1e-6


@settings(max_examples=4, deadline=None)
@given(correction=corrections)
def test_a_header_with_sip_carries_a_correction(correction: Correction) -> None:
    wcs = sip_of(camera(corner=True), SHAPE)
    plane, _ = own_plane(wcs, None)
    moved = replace(wcs, correction=correction)
    assert apart(moved.to_sky(*GRID), plane.correct(correction, *wcs.to_sky(*GRID))) < 2e-6
    kept, changed = (fits.Header.fromstring(w.cards().decode()) for w in (wcs, moved))
    assert {k for k in kept if kept[k] != changed[k]} <= {"CRVAL1", "CRVAL2", "CD1_1", "CD1_2", "CD2_1", "CD2_2"}


def test_a_header_that_follows_a_moving_target() -> None:
    wcs = fits_wcs("cd")
    moved = replace(wcs, correction=Correction("moving", shift=(0.001, -0.002)))
    before, after = wcs.to_sky(*GRID), moved.to_sky(*GRID)
    # Longitudes that shift alike shrink with the cosine of a declination 2e-3 deg lower: 1e-6 of 1 arcsec at 2 deg.
    assert apart(after, (before[0] + 0.001, before[1] - 0.002)) < 1e-5
    assert fits.Header.fromstring(moved.cards().decode())["CRVAL2"] == pytest.approx(AIM.dec - 0.002, abs=1e-9)


def test_a_header_gets_the_name_of_the_fit() -> None:
    named = replace(fits_wcs("pc"), correction=Correction("tangent", shift=(0.1, 0.0), name="FIT-LVL3-GAIADR3"))
    assert fits.Header.fromstring(named.cards().decode())["WCSNAME"] == "FIT-LVL3-GAIADR3"


def test_a_corrected_wcs_is_a_value() -> None:
    moved = replace(exposure(), correction=Correction("tangent", shift=(1.0, 2.0), origin=ORIGIN))
    twin = pickle.loads(pickle.dumps(moved))
    assert twin == moved and hash(twin) == hash(moved) and moved != exposure()
    np.testing.assert_array_equal(twin.to_sky(*GRID), moved.to_sky(*GRID))


def test_corrections_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="it must be one of tangent, moving"):
        Correction("bent")
    inside = Correction("tangent", shift=(1.0, 0.0), origin=ORIGIN)
    with pytest.raises(InputError, match="belongs to the V2V3 plane"):
        replace(fits_wcs("cd"), correction=inside).cards()
    bare = replace(exposure(), correction=Correction("moving", shift=(0.0, 0.0)))
    with pytest.raises(InputError, match="not a FITS WCS"):
        bare.cards()


@settings(max_examples=30, deadline=None)
@given(
    place=st.tuples(st.floats(0.0, 359.99), st.floats(-89.0, 89.0)),
    y=st.floats(-3000.0, 3000.0),
    x=st.floats(-3000.0, 3000.0),
)
def test_points_come_back_through_a_tangent_plane(place: tuple[float, float], y: float, x: float) -> None:
    plane = TangentPlane.at(*place)
    back = plane.project(*plane.deproject(np.array([y]), np.array([x])))
    assert np.abs(np.array(back).ravel() - [y, x]).max() < 1e-8  # near a pole 1e-10 of an angle is more on the sky
    assert np.isnan(plane.project(np.array([place[0] + 180.0]), np.array([-place[1]]))).all()


def test_the_map_between_planes() -> None:
    here, there = TangentPlane.at(10.0, 20.0), TangentPlane.at(10.02, 19.99)
    matrix, shift = here.linear_map(there)
    y, x = there.project(*here.deproject(np.array([0.0, 0.1, 0.0]), np.array([0.0, 0.0, 0.1])))
    np.testing.assert_allclose([x[0], y[0]], shift, rtol=0, atol=1e-9)
    # Differences over 0.1 arcsec: curvature leaves 1e-10 arcsec of them.
    np.testing.assert_allclose(np.array([x[1:] - x[0], y[1:] - y[0]])[:, ::-1] / 0.1, matrix, rtol=0, atol=1e-8)
