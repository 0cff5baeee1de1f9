"""Outlines on the sky: text there and back, corners, and the union in mosaic pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from streamimg3.sky import footprint
from tests.sky.skies import AIM, camera, gwcs_of, tangent

MOSAIC = tangent((200, 240), 25.0)
angle = st.floats(0.0, 359.9999)


def square(y: float, x: float, side: float) -> str:
    """S_REGION of a square in mosaic pixels, lower corner at (y, x)."""
    ra, dec = MOSAIC.to_sky(np.array([y, y + side, y + side, y]), np.array([x, x, x + side, x + side]))
    return footprint.s_region(ra, dec)


def in_pixels(text: str) -> list[shapely.Polygon]:
    found = []
    for polygon in footprint.parse(text):
        y, x = MOSAIC.to_pixel(polygon[:, 0], polygon[:, 1])
        found.append(shapely.Polygon(np.column_stack([x, y])))
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(angle, st.floats(-90.0, 90.0)), min_size=3, max_size=12))
def test_text_comes_back_to_nine_decimals(points: list[tuple[float, float]]) -> None:
    sky = np.array(points)
    text = footprint.s_region(sky[:, 0], sky[:, 1])
    (back,) = footprint.parse(text)
    # Half of the last decimal; 0 may come back as 360.
    away = (back[:, 0] - sky[:, 0] + 180.0) % 360.0 - 180.0
    assert np.abs(away).max() < 5.1e-10 and np.abs(back[:, 1] - sky[:, 1]).max() < 5.1e-10
    assert footprint.s_region(back[:, 0], back[:, 1]) == text or 360.0 in back


def test_ra_is_positive_and_text_has_the_usual_form() -> None:
    text = footprint.s_region(np.array([-1.0, 361.0, 10.0]), np.array([0.0, 1.0, -2.5]))
    assert text == "POLYGON ICRS  359.000000000 0.000000000 1.000000000 1.000000000 10.000000000 -2.500000000"


@pytest.mark.parametrize(
    ("text", "sides"),
    [
        ("POLYGON ICRS  1 2 3 4 5 6", [3]),
        ("POLYGON 1 2 3 4 5 6", [3]),
        ("polygon icrs 1 2 3 4 5 6 7 8", [4]),
        ("POLYGON ICRS  1 2 3 4 5 6  POLYGON ICRS  1 2 3 4 5 6 7 8", [3, 4]),
    ],
)
def test_forms_of_text(text: str, sides: list[int]) -> None:
    found = footprint.parse(text)
    assert [len(p) for p in found] == sides
    assert found[0][0].tolist() == [1.0, 2.0]


def test_outline_is_the_corners_of_the_bounding_box() -> None:
    cam = camera()
    (polygon,) = footprint.parse(footprint.outline(gwcs_of(cam, (96, 110), inset=(0.0, 4.0))))
    y, x = cam.to_pixel(polygon[:, 0], polygon[:, 1])
    # Lower left, upper left, upper right, lower right; 1e-9 deg are 1.2e-4 px.
    np.testing.assert_allclose(y, [-0.5, 95.5, 95.5, -0.5], rtol=0, atol=1e-4)
    np.testing.assert_allclose(x, [3.5, 3.5, 105.5, 105.5], rtol=0, atol=1e-4)


def test_outline_of_an_array_without_bounding_box() -> None:
    (polygon,) = footprint.parse(footprint.outline(MOSAIC))
    y, x = MOSAIC.to_pixel(polygon[:, 0], polygon[:, 1])
    np.testing.assert_allclose(y, [-0.5, 199.5, 199.5, -0.5], rtol=0, atol=1e-4)
    np.testing.assert_allclose(x, [-0.5, -0.5, 239.5, 239.5], rtol=0, atol=1e-4)


def test_disjoint_outlines_give_two_polygons() -> None:
    text = footprint.union([square(10, 10, 40), square(90, 120, 60)], MOSAIC)
    assert text is not None and text.count("POLYGON ICRS  ") == 2 and "  POLYGON" in text
    assert sorted(round(p.area) for p in in_pixels(text)) == [1600, 3600]


def test_overlapping_outlines_give_one_polygon() -> None:
    text = footprint.union([square(10, 10, 40), square(30, 25, 40)], MOSAIC)
    assert text is not None
    (found,) = in_pixels(text)
    # Corners rounded to 1e-9 deg, 1e-4 px, on sides of 40 px.
    assert found.area == pytest.approx(1600 + 1600 - 20 * 25, abs=0.05)
    assert len(found.exterior.coords) - 1 == 8


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 130), st.floats(0, 170), st.floats(5, 60)), min_size=1, max_size=5))
def test_union_has_the_area_of_the_union(squares: list[tuple[float, float, float]]) -> None:
    text = footprint.union([square(*s) for s in squares], MOSAIC)
    assert text is not None
    boxes = shapely.union_all([shapely.box(x, y, x + side, y + side) for y, x, side in squares])
    parts = [shapely.Polygon(p.exterior) for p in shapely.get_parts(boxes)]  # holes are dropped
    # Vertices nearer than 0.05 px to the one before are dropped (spec §7.7): a sliver along sides of at most 60 px.
    assert sum(p.area for p in in_pixels(text)) == pytest.approx(sum(p.area for p in parts), abs=2.0 * len(squares))


def test_holes_are_dropped() -> None:
    """Four bars around a square hole: the outline is the outer one."""
    bars = [square(10 + 20 * k, 10 + 20 * n, 20) for k in range(3) for n in range(3) if (k, n) != (1, 1)]
    text = footprint.union(bars, MOSAIC)
    assert text is not None
    assert [round(p.area) for p in in_pixels(text)] == [3600]


def test_union_is_cut_by_the_mosaic() -> None:
    text = footprint.union([square(-30, -40, 60)], MOSAIC)
    assert text is not None
    (found,) = in_pixels(text)
    np.testing.assert_allclose(found.bounds, (-0.5, -0.5, 20.0, 30.0), atol=1e-3)


def test_no_overlap_gives_none() -> None:
    assert footprint.union([square(500, 500, 40)], MOSAIC) is None


def test_union_across_ra_zero() -> None:
    mosaic = tangent((200, 240), 25.0, centre=(0.0, 10.0))
    ra, dec = mosaic.to_sky(np.array([50.0, 150, 150, 50]), np.array([70.0, 70, 170, 170]))
    assert ra.min() < 1.0 and ra.max() > 359.0
    text = footprint.union([footprint.s_region(ra, dec)], mosaic)
    assert text is not None
    (polygon,) = footprint.parse(text)
    y, x = mosaic.to_pixel(polygon[:, 0], polygon[:, 1])
    assert shapely.Polygon(np.column_stack([x, y])).area == pytest.approx(1e4, abs=0.1)


def test_outline_next_to_its_mosaic_covers_what_the_camera_sees() -> None:
    """The area of an outline in mosaic pixels is the number of pixels of the exposure, over the scale squared."""
    cam = camera()
    text = footprint.union([footprint.outline(gwcs_of(cam, (96, 110)))], MOSAIC)
    assert text is not None
    centre = math.hypot(cam.aim.ra - AIM.ra, cam.aim.dec - AIM.dec)
    assert centre == 0.0
    # The detectors are sheared and stretched by at most 3e-3.
    assert sum(p.area for p in in_pixels(text)) == pytest.approx(96 * 110, rel=1e-2)
