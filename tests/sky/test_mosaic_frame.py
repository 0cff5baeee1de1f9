"""The output frame: where it lies, how it is turned, and its FITS terms there and back (spec image3 §7.2)."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from hypothesis import given, settings
from hypothesis import strategies as st

from streamimg3.errors import InputError
from streamimg3.formats.simulated_wcs import Aim, Camera, plane_to_sky
from streamimg3.sky import footprint
from streamimg3.sky.mosaic_frame import (
    FrameOptions,
    MosaicFrame,
    Reference,
    as_asdf,
    from_fits_cards,
    given_frame,
    linear_terms,
    mean_pixel_area,
    mosaic_frame,
)
from streamimg3.sky.wcs import Wcs
from tests.sky.skies import AIM, SCALE, camera, from_cards, gwcs_of, reference_of, sip_of, tangent, tangent_cards

SHAPE = (96, 110)
# A spherical polygon's area is the sum of its angles less a multiple of pi: 1e-15 on 2e-10 sr, and a few dozen angles
AREA = 2e-4
DITHERS = ((0.0, 0.0), (1.3, -0.7), (-0.9, 1.1), (0.4, 2.2))  # arcsec north and east


def cameras(aim: Aim = AIM) -> list[Camera]:
    """Four dithered exposures."""
    found = []
    for north, east in DITHERS:
        ra, dec = plane_to_sky(north, east, aim.ra, aim.dec)
        found.append(camera(Aim(float(ra), float(dec), aim.roll)))
    return found


@cache
def exposures(aim: Aim = AIM) -> tuple[tuple[str, ...], Reference]:
    """Their S_REGIONs, and the first as the reference."""
    cams = cameras(aim)
    regions = tuple(footprint.outline(gwcs_of(cam, SHAPE)) for cam in cams)
    return regions, reference_of(cams[0], gwcs_of(cams[0], SHAPE))


def frame_of(options: FrameOptions | None = None, aim: Aim = AIM) -> MosaicFrame:
    regions, reference = exposures(aim)
    return mosaic_frame(list(regions), reference, options or FrameOptions())


def vertices(frame: MosaicFrame, regions: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of all vertices of all outlines."""
    sky = np.concatenate([polygon for region in regions for polygon in footprint.parse(region)])
    return frame.wcs.to_pixel(sky[:, 0], sky[:, 1])


@pytest.mark.parametrize("aim", [AIM, Aim(0.0001, -35.0, 200.0), Aim(210.0, 84.0, 77.0)])
def test_lowest_vertex_is_at_zero_and_the_highest_sets_the_shape(aim: Aim) -> None:
    frame = frame_of(aim=aim)
    y, x = vertices(frame, exposures(aim)[0])
    # A double holds 360 deg to 6e-14 deg or 7e-9 px, and the projection takes a few dozen operations.
    assert y.min() == pytest.approx(0.0, abs=1e-6)
    assert x.min() == pytest.approx(0.0, abs=1e-6)
    assert frame.shape == (int(y.max() + 0.5), int(x.max() + 0.5))
    assert frame.wcs.bounds == ((-0.5, frame.shape[0] - 0.5), (-0.5, frame.shape[1] - 0.5))


def test_shape_is_the_range_rounded_half_up() -> None:
    for ratio in np.linspace(0.7, 1.3, 10):
        frame = frame_of(FrameOptions(pixel_scale_ratio=float(ratio)))
        highest = [v.max() for v in vertices(frame, exposures()[0])]
        assert frame.shape == tuple(math.floor(v + 0.5) for v in highest)
    # Four dithers 2.2 and 2.9 arcsec apart, over the pixel scale, beside a 96 by 110 pixel exposure.
    frame = frame_of()
    assert 96 + 40 < frame.shape[0] < 96 + 110
    assert frame.pixel_scale == pytest.approx(SCALE, rel=5e-3)  # the simulated detectors stretch by 3e-3
    assert frame.ratio == 1.0 and not frame.measured


def test_the_tenth_decimal_of_an_outline_does_not_matter() -> None:
    """S_REGION texts of positions that differ by less than half of 1e-9 degrees are one text, hence one frame."""
    regions, reference = exposures()
    rounded = [footprint.parse(region)[0] for region in regions]
    shaken = [p + 4e-10 * np.random.default_rng(3).uniform(-1, 1, p.shape) for p in rounded]
    texts = [footprint.s_region(p[:, 0], p[:, 1]) for p in shaken]
    assert any((a != b).any() for a, b in zip(rounded, shaken, strict=True))
    assert tuple(texts) == regions
    assert mosaic_frame(texts, reference, FrameOptions()) == frame_of()


def test_output_shape_is_columns_then_rows() -> None:
    frame = frame_of(FrameOptions(output_shape=(300, 200)))
    assert frame.shape == (200, 300)
    assert frame.wcs.gwcs().pixel_shape == (300, 200)
    y, x = vertices(frame, exposures()[0])
    low_y, high_y = (int(v + 0.5) for v in (y.min(), y.max()))
    low_x, high_x = (int(v + 0.5) for v in (x.min(), x.max()))
    # The bounding box is what the exposures cover of the shape (spec §7.2, 6).
    assert frame.wcs.bounds == ((low_y - 0.5, min(high_y, 200) - 0.5), (low_x - 0.5, min(high_x, 300) - 0.5))


def test_crpix_and_crval_are_columns_then_rows() -> None:
    crval = (AIM.ra + 1e-4, AIM.dec - 1e-4)
    frame = frame_of(FrameOptions(crpix=(40.0, 25.0), crval=crval, output_shape=(90, 80)))
    ra, dec = frame.wcs.to_sky(np.array([25.0]), np.array([40.0]))
    assert ra[0] == pytest.approx(crval[0], abs=1e-12)
    assert dec[0] == pytest.approx(crval[1], abs=1e-12)


@pytest.mark.parametrize(("scale_ratio", "scale"), [(1.0, None), (0.5, None), (2.0, None), (1.0, 0.02), (1.0, 0.05)])
def test_scale(scale_ratio: float, scale: float | None) -> None:
    frame = frame_of(FrameOptions(pixel_scale=scale, pixel_scale_ratio=scale_ratio))
    ra, dec = frame.wcs.to_sky(np.array([50.0, 51.0]), np.array([50.0, 50.0]))
    step = math.hypot((ra[1] - ra[0]) * math.cos(math.radians(dec[0])), dec[1] - dec[0]) * 3600.0
    assert step == pytest.approx(frame.pixel_scale, rel=1e-7)
    if scale is None:
        assert frame.ratio == scale_ratio and not frame.measured
        assert frame.pixel_scale == pytest.approx(frame_of().pixel_scale * scale_ratio, rel=1e-12)
    else:
        assert frame.pixel_scale == pytest.approx(scale, rel=1e-12)
        assert frame.ratio == pytest.approx(scale / SCALE, rel=5e-3)
        assert frame.measured


def position_angle(frame: MosaicFrame) -> float:
    """Of +Y at the middle, degrees east of north."""
    y, x = (frame.shape[0] - 1) / 2, (frame.shape[1] - 1) / 2
    ra, dec = frame.wcs.to_sky(np.array([y, y + 1]), np.array([x, x]))
    return math.degrees(math.atan2((ra[1] - ra[0]) * math.cos(math.radians(dec[0])), dec[1] - dec[0])) % 360.0


@pytest.mark.parametrize("rotation", [0.0, 30.0, 90.0, 200.0])
def test_rotation_is_the_position_angle_of_y(rotation: float) -> None:
    frame = frame_of(FrameOptions(rotation=rotation))
    away = (position_angle(frame) - rotation + 180.0) % 360.0 - 180.0
    # The middle is not crval: north turns by the convergence of the meridians, 6 arcsec at dec 2 and 3 arcsec away.
    assert abs(away) < 1e-4
    ra, _ = frame.wcs.to_sky(np.array([50.0, 50.0]), np.array([50.0, 51.0]))
    if rotation == 0.0:
        assert ra[1] < ra[0], "east is to the left"


def test_without_rotation_the_detector_lends_its_own() -> None:
    reference = exposures()[1]
    wanted = reference.roll_ref - reference.vparity * reference.v3yangle
    away = (position_angle(frame_of()) - wanted + 180.0) % 360.0 - 180.0
    assert abs(away) < 1e-3


def test_a_field_across_ra_zero_is_the_same_field() -> None:
    """The same exposures moved along the equator give the same mosaic, whether they straddle RA 0 or not."""
    middle, zero = Aim(150.0, 0.3, 77.0), Aim(360.0 - 1e-5, 0.3, 77.0)
    here, there = frame_of(aim=middle), frame_of(aim=zero)
    ras = np.concatenate([footprint.parse(r)[0][:, 0] for r in exposures(zero)[0]])
    assert ras.min() < 1.0 and ras.max() > 359.0
    assert there.shape == here.shape
    y, x = np.mgrid[0 : here.shape[0] - 1 : 5j, 0 : here.shape[1] - 1 : 5j]
    (ra, dec), (ra0, dec0) = there.wcs.to_sky(y, x), here.wcs.to_sky(y, x)
    moved = (ra - ra0 - (zero.ra - middle.ra) + 180.0) % 360.0 - 180.0
    # Outlines are rounded to 1e-9 deg, on either side.
    assert np.abs(moved).max() < 3e-9
    assert np.abs(dec - dec0).max() < 3e-9
    # ... and so the vertex with the largest RA does not pull the frame to RA 180.
    assert np.abs((ra + 180.0) % 360.0 - 180.0).max() < 0.01


def test_too_small_a_mosaic_is_refused() -> None:
    with pytest.raises(InputError, match=r"1 x \d+ pixels.*output_shape"):
        frame_of(FrameOptions(output_shape=(10, 1)))
    with pytest.raises(InputError, match="pixel_scale"):
        frame_of(FrameOptions(pixel_scale=100.0))


@pytest.mark.parametrize("parity", [-1, 1])
@pytest.mark.parametrize("angle", [0.0, 33.0, 190.0])
def test_reference_measured_from_a_wcs_alone(angle: float, parity: int) -> None:
    """An exposure without pointing keywords gives a frame along its own axes."""
    cards = tangent_cards(SHAPE, angle)
    if parity == 1:  # a mirrored image: east to the right
        cards |= {k: -float(cards[k]) for k in ("PC1_1", "PC2_1")}
    wcs = from_cards(cards, SHAPE)
    reference = Reference.measured(wcs)
    assert reference.vparity == parity
    frame = mosaic_frame([footprint.outline(wcs)], reference, FrameOptions())
    assert frame.shape == SHAPE
    y, x = frame.wcs.to_pixel(*wcs.to_sky(*np.mgrid[0:95:4j, 0:109:4j]))
    # The lowest corner, at -0.5 in the exposure, is at 0 in the mosaic.  Roll is measured over one pixel, to 1e-7 rad.
    np.testing.assert_allclose(y, np.mgrid[0:95:4j, 0:109:4j][0] + 0.5, rtol=0, atol=1e-4)
    np.testing.assert_allclose(x, np.mgrid[0:95:4j, 0:109:4j][1] + 0.5, rtol=0, atol=1e-4)


def test_mean_pixel_area() -> None:
    wcs = tangent(SHAPE, 30.0)
    assert mean_pixel_area(wcs) == pytest.approx(math.radians(SCALE / 3600.0) ** 2, rel=AREA)
    inset = gwcs_of(camera(), SHAPE, inset=(0.0, 8.0))
    assert mean_pixel_area(inset) == pytest.approx(mean_pixel_area(gwcs_of(camera(), SHAPE)), rel=1e-4)


def test_given_frame_measures_what_is_not_given() -> None:
    wcs, reference = tangent((60, 50), 10.0, scale=0.05), tangent(SHAPE, 0.0)
    frame = given_frame(wcs, None, None, reference)
    assert frame.shape == (60, 50) and frame.measured
    assert frame.pixel_scale == pytest.approx(0.05, rel=AREA / 2)
    assert frame.ratio == pytest.approx(0.05 / SCALE, rel=AREA)
    told = given_frame(wcs, 0.06, math.radians(0.03 / 3600.0) ** 2, reference)
    assert told.pixel_scale == 0.06
    assert told.ratio == pytest.approx(2.0, rel=1e-12)


# ---------------------------------------------------------------- FITS terms
def assert_same_pixels(ours: Wcs, theirs: WCS, shape: tuple[int, int], tolerance: float) -> None:
    """Both put the same sky at the same pixels."""
    y, x = np.mgrid[0 : shape[0] - 1 : 6j, 0 : shape[1] - 1 : 7j]
    found_y, found_x = ours.to_pixel(*theirs.pixel_to_world_values(x, y))
    np.testing.assert_allclose(found_y, y, rtol=0, atol=tolerance)
    np.testing.assert_allclose(found_x, x, rtol=0, atol=tolerance)


@pytest.mark.parametrize("options", [FrameOptions(), FrameOptions(rotation=12.0, pixel_scale=0.02, crpix=(3.0, -4.0))])
def test_linear_terms_describe_the_frame(options: FrameOptions) -> None:
    frame = frame_of(options)
    terms = linear_terms(frame.wcs)
    assert terms is not None
    # At dec 2 and RA 150 a double holds 3e-14 deg, 3e-9 px.
    assert_same_pixels(frame.wcs, WCS(fits.Header(terms)), frame.shape, 2e-8)
    x, y = WCS(fits.Header(terms)).all_world2pix([[AIM.ra, AIM.dec]], 0)[0]
    ours_y, ours_x = frame.wcs.to_pixel(np.array([AIM.ra]), np.array([AIM.dec]))
    assert (float(ours_y[0]), float(ours_x[0])) == pytest.approx((y, x), abs=2e-8)


def test_linear_terms_of_a_distorted_wcs_are_none() -> None:
    assert linear_terms(gwcs_of(camera(), SHAPE)) is None


def header(extra: dict[str, str | float | int] | None = None, angle: float = 40.0) -> str:
    cards = {"NAXIS": 2, "NAXIS1": 110, "NAXIS2": 96} | tangent_cards(SHAPE, angle) | (extra or {})
    return fits.Header(cards).tostring(endcard=False, padding=False)


def as_wcs(cards: str) -> Wcs:
    wcs, shape = from_fits_cards(cards)
    assert shape == SHAPE
    return Wcs("gwcs", as_asdf(wcs), shape)


def projected(code: str) -> dict[str, str | float | int]:
    return {"CTYPE1": f"RA---{code}", "CTYPE2": f"DEC--{code}"}


@pytest.mark.parametrize("code", ["TAN", "SIN", "ARC", "STG", "ZEA"])
def test_fits_cards_come_back(code: str) -> None:
    cards = header(projected(code))
    wcs = as_wcs(cards)
    theirs = WCS(fits.Header.fromstring(cards))
    assert_same_pixels(wcs, theirs, SHAPE, 2e-8)
    terms = linear_terms(wcs)
    assert terms is not None and terms["CTYPE1"] == f"RA---{code}"
    again = as_wcs(header(dict(terms)))
    y, x = np.mgrid[0:95:5j, 0:109:5j]
    np.testing.assert_array_equal(again.to_sky(y, x), wcs.to_sky(y, x))


@settings(max_examples=30, deadline=None)
@given(ra=st.floats(0.0, 359.9), dec=st.floats(-89.5, 89.5), angle=st.floats(0.0, 360.0), cd=st.booleans())
def test_fits_cards_anywhere_on_the_sky(ra: float, dec: float, angle: float, cd: bool) -> None:
    cards = fits.Header.fromstring(header({"CRVAL1": ra, "CRVAL2": dec}, angle))
    if cd:
        for i, j in ((1, 1), (1, 2), (2, 1), (2, 2)):
            cards[f"CD{i}_{j}"] = cards[f"CDELT{i}"] * cards.pop(f"PC{i}_{j}")
        del cards["CDELT1"], cards["CDELT2"]
    gwcs, _ = from_fits_cards(cards.tostring(endcard=False, padding=False))
    y, x = np.mgrid[0:95:3j, 0:109:3j]
    lon, lat = WCS(cards).pixel_to_world_values(x, y)
    found_x, found_y = gwcs.world_to_pixel_values(lon, lat)
    # 6e-14 of 360 deg are 7e-9 px, more where meridians crowd.
    np.testing.assert_allclose(found_y, y, rtol=0, atol=5e-8)
    np.testing.assert_allclose(found_x, x, rtol=0, atol=5e-8)


@pytest.mark.parametrize(
    "change",
    [
        {"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "A_ORDER": 2, "A_2_0": 1e-5, "B_ORDER": 2, "B_0_2": 1e-5},
        {"A_ORDER": 2, "A_2_0": 1e-5, "B_ORDER": 2, "B_0_2": 1e-5},  # SIP without saying so in CTYPE
        {"RADESYS": "FK4", "EQUINOX": 1950.0},
        projected("ZPN") | {"PV2_1": 1.0, "PV2_3": 0.1},
    ],
)
def test_fits_cards_that_cannot_be_kept_are_refused(change: dict[str, str | float | int]) -> None:
    with pytest.raises(InputError, match="output WCS header"):
        from_fits_cards(header(change))


@pytest.mark.filterwarnings("ignore::astropy.wcs.FITSFixedWarning")
@pytest.mark.parametrize(
    "change",
    [
        {"CTYPE1": "GLON-TAN", "CTYPE2": "GLAT-TAN", "CRVAL1": 237.0, "CRVAL2": 42.0},
        {"RADESYS": "FK5", "EQUINOX": 2000.0},  # 28 mas from ICRS, most of a pixel
        {"CTYPE1": "DEC--TAN", "CTYPE2": "RA---TAN", "CRVAL1": AIM.dec, "CRVAL2": AIM.ra},
        {"LONPOLE": 150.0},
        projected("CAR"),  # crval is no pole of this projection
        projected("MER"),
        projected("AIT"),
        projected("SIN") | {"PV2_1": 0.1, "PV2_2": 0.05},
        projected("COE") | {"PV2_1": 45.0},
        projected("AZP") | {"PV2_1": 2.0},
    ],
    ids=["galactic", "FK5", "axes swapped", "LONPOLE", "CAR", "MER", "AIT", "slant SIN", "COE", "AZP"],
)
def test_fits_cards_are_kept_or_refused(change: dict[str, str | float | int]) -> None:
    """What a gWCS of linear terms and a plain projection cannot hold must not be dropped silently."""
    cards = header(change)
    try:
        gwcs, _ = from_fits_cards(cards)
    except InputError:
        return
    x, y = np.array([5.0, 3000.0, 20.0]), np.array([7.0, 8.0, 4000.0])
    sky = WCS(fits.Header.fromstring(cards)).pixel_to_world(x, y).icrs
    found_x, found_y = gwcs.world_to_pixel_values(sky.ra.deg, sky.dec.deg)
    np.testing.assert_allclose(found_x, x, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found_y, y, rtol=0, atol=1e-6)


@pytest.mark.parametrize("gone", ["NAXIS1", "NAXIS2"])
def test_fits_cards_without_a_shape_are_refused(gone: str) -> None:
    cards = fits.Header.fromstring(header())
    del cards[gone]
    with pytest.raises(InputError, match="NAXIS"):
        from_fits_cards(cards.tostring(endcard=False, padding=False))


def test_fits_cards_without_a_sky_are_refused() -> None:
    with pytest.raises(InputError, match="celestial"):
        from_fits_cards(header({"CTYPE1": "LINEAR", "CTYPE2": "LINEAR"}))


def test_a_sip_exposure_can_be_the_reference() -> None:
    """Frames need gWCS frames of their own where the reference has none."""
    cam = camera()
    wcs = sip_of(cam, SHAPE)
    frame = mosaic_frame([footprint.outline(wcs)], replace(exposures()[1], wcs=wcs), FrameOptions())
    assert frame.shape == SHAPE
    assert frame.wcs.gwcs().output_frame.name == "world"
