"""Overlaps as pixel polygons: the quick way against the geometry package, groups, degenerate outlines."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.geometry import Box
from streamimg3.kernels import scanline
from streamimg3.sky import flat_overlap, overlap
from streamimg3.sky.overlap import Overlap, PixelPolygon, border, overlaps
from streamimg3.sky.wcs import Wcs
from tests.sky.skies import AIM, SCALE, Aim, camera, gwcs_of, tangent

SHAPE = (120, 150)
F8 = NDArray[np.float64]


def dithered(*offsets: tuple[float, float, float]) -> list[Wcs]:
    """JWST-like exposures, each moved by (north, east) pixels and turned by degrees."""
    cos = math.cos(math.radians(AIM.dec))
    aims = [Aim(AIM.ra + e * SCALE / 3600 / cos, AIM.dec + n * SCALE / 3600, AIM.roll + r) for n, e, r in offsets]
    return [gwcs_of(camera(aim), SHAPE) for aim in aims]


def found(skies: Sequence[Wcs], items: Sequence[Sequence[int]], stepsize: int | None = None) -> list[Overlap]:
    return list(overlaps(skies.__getitem__, [f"file{k}" for k in range(len(skies))], items, stepsize))


def pixels(part: Overlap) -> scanline.I8:
    return scanline.union([scanline.inside(np.array(p.vertices), p.shift, SHAPE) for p in part.polygons])


def turned(polygon: PixelPolygon) -> tuple[tuple[int, int], ...]:
    """Vertices from the lowest one on."""
    ring = polygon.vertices[:-1]
    k = ring.index(min(ring))
    return ring[k:] + ring[:k]


@pytest.fixture
def package_only(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function that makes the geometry package do everything from then on."""

    def switch() -> None:
        monkeypatch.setattr(overlap, "_quick", lambda one, other: None)

    return switch


# ---------------------------------------------------------------- quick and slow
@pytest.mark.parametrize("stepsize", [None, 60])
def test_the_quick_way_finds_the_polygons_of_the_package(
    stepsize: int | None, package_only: Callable[[], None]
) -> None:
    skies = dithered((0, 0, 0), (40, 33, 0), (-20, 60, 31), (15, -70, 178))
    items = [[k] for k in range(len(skies))]
    quick = found(skies, items, stepsize)
    package_only()
    slow = found(skies, items, stepsize)
    assert [(o.exposure, o.item) for o in quick] == [(o.exposure, o.item) for o in slow]
    assert len(quick) == 12
    for a, b in zip(quick, slow, strict=True):
        assert [(turned(p), p.shift) for p in a.polygons] == [(turned(p), p.shift) for p in b.polygons]


def unit(ra: F8, dec: F8) -> F8:
    a, d = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=-1)


def square(north: float, east: float, turn: float, at: tuple[float, float]) -> F8:
    """Corners (degrees) of a 0.02 degree square near a place on the sky."""
    c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    corners = 0.01 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) @ np.array([[c, -s], [s, c]])
    return np.stack([at[0] + (corners[:, 0] + east) / math.cos(math.radians(at[1])), at[1] + corners[:, 1] + north])


@given(
    st.floats(-0.03, 0.03), st.floats(-0.03, 0.03), st.floats(0, 360), st.sampled_from([(0.0, 1.0), (359.99, -70.0), (80.0, 89.0)])
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_common_parts_in_the_plane_are_those_on_the_sphere(
    north: float, east: float, turn: float, at: tuple[float, float]
) -> None:
    """Areas by the package's own formula; 1e-14 steradians are a thousandth of a square arcsec here."""
    from spherical_geometry.polygon import SphericalPolygon

    one, other = square(0, 0, 0, at), square(north, east, turn, at)
    quick = flat_overlap.intersection(unit(*one), unit(*other))
    assume(quick is not None)
    assert quick is not None
    slow = SphericalPolygon.from_radec(*one).intersection(SphericalPolygon.from_radec(*other))
    assert len(quick) == len(list(slow.to_radec()))
    if quick:
        assert abs(SphericalPolygon(quick[0]).area()) == pytest.approx(abs(slow.area()), abs=1e-14)


def test_what_is_in_doubt_is_left_to_the_package() -> None:
    one = unit(*square(0, 0, 0, (10.0, 5.0)))
    assert flat_overlap.intersection(one, one) is None
    beside = unit(*square(0, 0.02 + 1e-7, 0, (10.0, 5.0)))  # edges 0.4 mas apart
    assert flat_overlap.intersection(one, beside) is None
    wide = unit(np.array([0.0, 20.0, 20.0, 0.0]), np.array([0.0, 0.0, 20.0, 20.0]))
    assert flat_overlap.intersection(one, wide) is None
    assert flat_overlap.intersection(one, unit(*square(0.3, 0, 0, (10.0, 5.0)))) == []


# ---------------------------------------------------------------- what overlaps
def test_moved_exposures_share_what_is_left() -> None:
    """A shift by whole pixels in a plain tangent plane: the common rectangle to one row and column of rounding."""
    moved = (AIM.ra, AIM.dec + 30 * SCALE / 3600)
    skies = [tangent(SHAPE, 0.0), tangent(SHAPE, 0.0, centre=moved)]
    one, other = found(skies, [[0], [1]])
    assert scanline.count(pixels(one)) == pytest.approx((SHAPE[0] - 30) * SHAPE[1], abs=SHAPE[0] + SHAPE[1])
    assert pixels(one)[:, 0].min() in (29, 30, 31) and pixels(other)[:, 0].max() in (88, 89, 90)


def test_the_same_field_twice_overlaps_everywhere() -> None:
    """The package may break on equal outlines; then each exposure counts as a whole."""
    one, other = found(dithered((0, 0, 0), (0, 0, 0)), [[0], [1]])
    for part in (one, other):  # the inverse of this distortion is good to a few hundredths of a pixel
        assert scanline.count(pixels(part)) == pytest.approx(SHAPE[0] * SHAPE[1], abs=SHAPE[0] + SHAPE[1])


def test_exposures_far_apart_have_nothing_in_common() -> None:
    assert found(dithered((0, 0, 0), (0, 400, 0), (5000, 0, 0)), [[0], [1], [2]]) == []


def test_a_group_counts_as_one_and_not_with_itself() -> None:
    skies = dithered((0, 0, 0), (40, 0, 0), (-40, 0, 0), (20, 20, 10))
    parts = found(skies, [[0, 3], [1, 2]])
    assert [(o.exposure, o.item) for o in parts] == [(0, 1), (1, 0), (2, 0), (3, 1)]
    assert [len(o.polygons) for o in parts] == [2, 2, 2, 2]
    single = {(o.exposure, o.item): o for o in found(skies, [[0], [1], [2], [3]])}
    both = scanline.union([pixels(single[0, 1]), pixels(single[0, 2])])
    np.testing.assert_array_equal(pixels(parts[0]), both)


# ---------------------------------------------------------------- pieces
@pytest.mark.parametrize(("stepsize", "points"), [(None, 5), (1000, 5), (100, 5), (50, 11), (1, 2 * (121 + 151) - 3)])
def test_an_outline_has_vertices_no_farther_apart_than_asked(stepsize: int | None, points: int) -> None:
    y, x = border(SHAPE, stepsize)
    assert len(y) == len(x) == points
    assert (y[0], x[0]) == (y[-1], x[-1]) == (-0.5, -0.5)
    assert {y.min(), y.max(), x.min(), x.max()} == {-0.5, SHAPE[0] - 0.5, SHAPE[1] - 0.5}


def test_vertices_are_rounded_half_to_even_after_the_shift() -> None:
    y, x = np.array([-0.5, 9.5, 10.4, -0.5]), np.array([2.5, 3.5, 5.0, 2.5])
    assert PixelPolygon.rounded(y, x) == PixelPolygon(((0, 2), (10, 4), (11, 5), (0, 2)), (0, 0))
    assert PixelPolygon.rounded(y - 2.0, x).shift == (-2, 0)  # -2.5 to even


def test_a_box_is_cut_by_the_image() -> None:
    polygon = PixelPolygon(((0, 3), (7, 9), (5, 3), (0, 3)), (-2, 4))
    assert polygon.box((20, 10)) == Box(0, 7, 6, 10)
    assert polygon.box((20, 7)) is None


def test_a_wcs_that_gives_no_position_is_refused() -> None:
    class Broken:
        shape = SHAPE

        def to_sky(self, y: F8, x: F8, bounded: bool) -> tuple[F8, F8]:
            return y * np.nan, x

    with pytest.raises(InputError, match="file0: the WCS gives no position"):
        found([Broken(), Broken()], [[0], [1]])  # type: ignore[list-item]
