"""Pixel maps: how exact they are, which pixels they say touch a tile, and that any window has the same bits."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from functools import cache

import gwcs
import numpy as np
import pytest
from astropy.io import fits
from astropy.modeling import models
from astropy.wcs import WCS, DistortionLookupTable
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import RectBivariateSpline

from streamimg3.errors import InputError
from streamimg3.formats.simulated_wcs import Aim
from streamimg3.geometry import Box
from streamimg3.kernels import spline
from streamimg3.sky.footprint import outline
from streamimg3.sky.mosaic_frame import as_asdf, plain_frames
from streamimg3.sky.pixmap import BOUND, PixelMap, Sampling, exact_window, outline_maps, pixel_map
from streamimg3.sky.wcs import Wcs
from tests.sky.skies import AIM, SCALE, camera, from_cards, gwcs_of, sip_of, tangent, tangent_cards

SHAPE = (140, 171)
WHOLE = Box.of_shape(SHAPE)
SMALL = (75, 98)


def middle_of(wcs: Wcs) -> tuple[float, float]:
    """Where the centre of an image lies on the sky."""
    ra, dec = wcs.to_sky(np.array((wcs.shape[0] - 1) / 2), np.array((wcs.shape[1] - 1) / 2), bounded=False)
    return float(ra), float(dec)


def mosaic_for(source: Wcs, angle: float, ratio: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)) -> Wcs:
    """A tangent plane that holds the exposure, turned, and moved by some pixels."""
    side = int(1.2 * math.hypot(*source.shape) / ratio)
    cards = tangent_cards((side, side), angle, SCALE * ratio, middle_of(source))
    cards["CRPIX1"] += shift[1]  # type: ignore[operator]
    cards["CRPIX2"] += shift[0]  # type: ignore[operator]
    return from_cards(cards, (side, side))


@cache
def exposure(variant: int = 0, inset: tuple[float, float] = (0.0, 0.0)) -> Wcs:
    """The corner of a simulated detector, where its distortion is strongest."""
    return gwcs_of(camera(AIM, variant, corner=True), SHAPE, inset)


def window(found: PixelMap, box: Box) -> tuple[np.ndarray, np.ndarray]:
    """A map's own values in a box, as workers evaluate them."""
    rows = spline.basis(found.knots[0], found.order, box.y0, box.y1)
    cols = spline.basis(found.knots[1], found.order, box.x0, box.x1)
    return spline.evaluate(found.coefficients[0], rows, cols), spline.evaluate(found.coefficients[1], rows, cols)


def largest_error(found: PixelMap, source: Wcs, target: Wcs) -> float:
    """Over all pixels inside the bounding box, mosaic pixels."""
    pairs = zip(window(found, found.valid), exact_window(source, target, found.valid), strict=True)
    return max(float(np.abs(a - b).max()) for a, b in pairs)


# ---------------------------------------------------------------- accuracy
@pytest.mark.parametrize("variant", range(4))
def test_measured_map_is_within_its_bound(variant: int) -> None:
    source = exposure(variant)
    target = mosaic_for(source, 20.0, 0.5)
    found = pixel_map(source, target, Sampling())
    assert not found.exact and found.order == 3
    assert found.error <= BOUND
    assert largest_error(found, source, target) <= BOUND


@settings(max_examples=30, deadline=None)
@given(
    aim=st.builds(Aim, st.floats(0.0, 359.99), st.floats(-85.0, 85.0), st.floats(0.0, 359.99)),
    variant=st.integers(0, 3),
    angle=st.floats(0.0, 360.0),
    ratio=st.floats(0.33, 2.2),
)
def test_measured_map_is_within_its_bound_anywhere(aim: Aim, variant: int, angle: float, ratio: float) -> None:
    source = sip_of(camera(aim, variant, corner=True), SMALL)
    target = mosaic_for(source, angle, ratio)
    found = pixel_map(source, target, Sampling())
    assert largest_error(found, source, target) <= BOUND
    # The error is measured where it is largest; a pixel elsewhere may be a little worse, or float noise (1e-8 px).
    assert largest_error(found, source, target) <= 3.0 * found.error + 1e-7


def coarse_nodes(n: int, step: float) -> np.ndarray:
    """The reference's grid along an axis of n pixels: both ends, at least ten nodes (spec §7.3)."""
    return np.linspace(0, n - 1, max(math.ceil(n / step), min(10, n)))


@pytest.mark.parametrize(("step", "order"), [(10.0, 1), (10.0, 3), (7.5, 1), (100.0, 1)])
def test_spacing_of_the_users_choice_is_the_references_grid(step: float, order: int) -> None:
    source = exposure()
    target = mosaic_for(source, 20.0)
    found = pixel_map(source, target, Sampling(step, order))
    assert math.isnan(found.error)
    nodes = coarse_nodes(SHAPE[0], step), coarse_nodes(SHAPE[1], step)
    y, x = np.meshgrid(*nodes, indexing="ij")
    values = target.to_pixel(*source.to_sky(y, x))
    for mine, plane in zip(window(found, WHOLE), values, strict=True):
        wanted = RectBivariateSpline(*nodes, plane, kx=order, ky=order)(np.arange(SHAPE[0]), np.arange(SHAPE[1]))
        np.testing.assert_allclose(mine, wanted, rtol=0, atol=1e-11)
    if order == 3:
        assert largest_error(found, source, target) <= 1e-6


@pytest.mark.parametrize("sampling", [Sampling(1), Sampling(1.0, 3)])
def test_step_one_is_exact(sampling: Sampling) -> None:
    source = exposure()
    found = pixel_map(source, mosaic_for(source, 20.0), sampling)
    assert found.exact and found.error == 0.0


@pytest.mark.parametrize("shape", [(8, 10), (3, 60), (60, 2), (1, 40)])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(10, 1), Sampling(10, 3), Sampling(1)])
def test_small_images(shape: tuple[int, int], sampling: Sampling) -> None:
    """Fewer pixels along an axis than a spline needs nodes."""
    source = tangent(shape, 10.0)
    target = tangent((90, 90), 55.0)
    found = pixel_map(source, target, sampling)
    assert found.limits.shape == (shape[0], 2)
    if not found.exact:
        assert largest_error(found, source, target) < 1e-5
    if min(shape) > 1:
        assert (found.limits[:, 1] >= found.limits[:, 0]).all()


# ---------------------------------------------------------------- maps that are not smooth
def kinked(at: float = 61.3, factor: float = 1.04) -> Wcs:
    """A gWCS whose columns widen by 4 percent from one column on."""
    points = np.array([-1.0, at, 200.0])
    table = models.Tabular1D(points=points, lookup_table=np.array([-1.0, at, at + factor * (200.0 - at)]))
    linear = models.AffineTransformation2D(matrix=np.array([[-0.8, 0.6], [0.6, 0.8]]))
    small = models.Scale(SCALE / 3600) & models.Scale(SCALE / 3600)
    shift = models.Shift(-85.0) & models.Shift(-70.0)
    sky = models.Pix2Sky_TAN() | models.RotateNative2Celestial(AIM.ra, AIM.dec, 180)
    first, last = plain_frames()
    wcs = gwcs.WCS([(first, (table & models.Identity(1)) | shift | linear | small | sky), (last, None)])
    wcs.bounding_box = ((-0.5, SHAPE[1] - 0.5), (-0.5, SHAPE[0] - 0.5))
    return Wcs("gwcs", as_asdf(wcs), SHAPE)


def bumpy(amplitude: float, seed: int = 1) -> Wcs:
    """A FITS WCS with look-up tables of a pixel every nine pixels."""
    rng = np.random.default_rng(seed)
    wcs = WCS(fits.Header(tangent_cards(SHAPE, 37.0)))
    for name in ("cpdis1", "cpdis2"):
        table = rng.uniform(-amplitude, amplitude, (17, 20)).astype(np.float32)
        setattr(wcs, name, DistortionLookupTable(table, (1.0, 1.0), (1.0, 1.0), (9.0, 9.0)))
    hdus = wcs.to_fits()
    stream = io.BytesIO()
    hdus.writeto(stream)
    cards = hdus[0].header.tostring(endcard=False, padding=False).encode()
    return Wcs("fits", cards + Wcs.TABLES + stream.getvalue(), SHAPE)


@pytest.mark.parametrize("at", [61.3, 85.0, 20.0, 7.0])
def test_a_kink_ends_as_an_exact_map(at: float) -> None:
    found = pixel_map(kinked(at), tangent((230, 230), 12.0), Sampling())
    assert found.exact and found.error == 0.0


@pytest.mark.parametrize("amplitude", [0.01, 0.4])
def test_lookup_tables_end_as_an_exact_map(amplitude: float) -> None:
    source = bumpy(amplitude)
    plain = tangent(SHAPE, 37.0)
    y, x = np.mgrid[0:140:9.0, 0:171:9.0]
    away = np.hypot(
        *(np.subtract(a, b) * 3600 / SCALE for a, b in zip(source.to_sky(y, x), plain.to_sky(y, x), strict=True))
    )
    assert amplitude / 2 < away.max() < 2 * amplitude, "the tables are in use"
    assert pixel_map(source, tangent((230, 230), 12.0), Sampling()).exact


# ---------------------------------------------------------------- windows
@settings(max_examples=40, deadline=None)
@given(
    y=st.tuples(st.integers(0, SHAPE[0] - 1), st.integers(1, 40)),
    x=st.tuples(st.integers(0, SHAPE[1] - 1), st.integers(1, 40)),
    sampling=st.sampled_from([Sampling(), Sampling(10, 1), Sampling(10, 3)]),
)
def test_any_window_has_the_same_bits(y: tuple[int, int], x: tuple[int, int], sampling: Sampling) -> None:
    found, whole = some_map(sampling)
    box = Box(y[0], x[0], sum(y), sum(x)).intersect(WHOLE)
    assert box is not None
    for part, plane in zip(window(found, box), whole, strict=True):
        assert part.tobytes() == np.ascontiguousarray(plane[box.slices]).tobytes()


@cache
def some_map(sampling: Sampling) -> tuple[PixelMap, tuple[np.ndarray, np.ndarray]]:
    """A map and all of its values."""
    found = pixel_map(exposure(), mosaic_for(exposure(), 33.0), sampling)
    return found, window(found, WHOLE)


def test_exact_windows_have_the_same_values() -> None:
    source = exposure()
    target = mosaic_for(source, 33.0)
    whole = exact_window(source, target, WHOLE)
    box = Box(17, 40, 90, 101)
    for part, plane in zip(exact_window(source, target, box), whole, strict=True):
        np.testing.assert_array_equal(part, plane[box.slices])


# ---------------------------------------------------------------- bounding boxes
def test_only_the_bounding_box_is_valid() -> None:
    source = exposure(0, (6.0, 9.0))
    target = mosaic_for(source, 33.0)
    for sampling in (Sampling(), Sampling(10, 1), Sampling(1)):
        found = pixel_map(source, target, sampling)
        assert found.valid == Box(6, 9, SHAPE[0] - 6, SHAPE[1] - 9)
        rows = np.arange(SHAPE[0])
        inside = (rows >= 6) & (rows < SHAPE[0] - 6)
        np.testing.assert_array_equal(found.limits[:, 1] >= found.limits[:, 0], inside)
        assert (found.limits[inside] == [9, SHAPE[1] - 10]).all()
    y, x = exact_window(source, target, WHOLE)
    valid = np.zeros(SHAPE, bool)
    valid[found.valid.slices] = True
    np.testing.assert_array_equal(np.isfinite(y), valid)
    np.testing.assert_array_equal(np.isfinite(x), valid)


@pytest.mark.parametrize(
    "box", [((300.0, 320.0), (10.0, 20.0)), ((10.2, 10.4), (5.0, 20.0))], ids=["beside", "between"]
)
def test_a_bounding_box_without_pixels_is_refused(box: tuple[tuple[float, float], tuple[float, float]]) -> None:
    bare = exposure().gwcs()
    bare.bounding_box = box  # x first
    source = Wcs("gwcs", as_asdf(bare), SHAPE)
    with pytest.raises(InputError, match="bounding box"):
        pixel_map(source, tangent((90, 90), 0.0), Sampling())


# ---------------------------------------------------------------- which pixels touch a tile
def touched(y: np.ndarray, x: np.ndarray, limits: np.ndarray, box: Box, reach: float) -> np.ndarray:
    """Pixels that take part and whose centre is within reach of a box of the mosaic."""
    columns = np.arange(y.shape[1])
    used = (columns >= limits[:, :1]) & (columns <= limits[:, 1:])
    near = (y >= box.y0 - 0.5 - reach) & (y <= box.y1 - 0.5 + reach)
    return used & near & (x >= box.x0 - 0.5 - reach) & (x <= box.x1 - 0.5 + reach)


def assert_boxes_hold(found: PixelMap, pixels: np.ndarray, box: Box, reach: float) -> None:
    """Every such pixel is in one of the boxes, and none in two."""
    count = np.zeros(pixels.shape, int)
    for cell in found.touching(box, reach):
        assert cell.intersect(Box.of_shape(pixels.shape)) == cell
        count[cell.slices] += 1
    assert count.max(initial=0) <= 1
    assert count[pixels].all()
    if pixels.any():
        assert found.around(reach).intersect(box) is not None


tiles = st.tuples(st.integers(-10, 150), st.integers(-10, 150), st.integers(1, 120), st.integers(1, 120))


@settings(max_examples=60, deadline=None)
@given(
    angle=st.floats(0.0, 360.0),
    ratio=st.floats(0.33, 2.2),
    shift=st.tuples(st.floats(-60.0, 60.0), st.floats(-60.0, 60.0)),
    tile=tiles,
    reach=st.floats(1.0, 10.0),
    sampling=st.sampled_from([Sampling(), Sampling(10, 1), Sampling(1), Sampling(60, 3)]),
)
def test_touching_misses_no_pixel(
    angle: float, ratio: float, shift: tuple[float, float], tile: tuple, reach: float, sampling: Sampling
) -> None:
    source = sip_of(camera(AIM, 2, corner=True), SMALL)
    target = mosaic_for(source, angle, ratio, shift)
    found = pixel_map(source, target, sampling)
    box = Box(tile[0], tile[1], tile[0] + tile[2], tile[1] + tile[3])
    y, x = exact_window(source, target, Box.of_shape(SMALL))
    assert_boxes_hold(found, touched(y, x, found.limits, box, reach), box, reach)


@pytest.mark.parametrize("source", [kinked(), bumpy(0.4), exposure(1, (5.0, 11.0))], ids=["kink", "tables", "inset"])
def test_touching_misses_no_pixel_of_odd_maps(source: Wcs) -> None:
    target = mosaic_for(source, 63.0)
    found = pixel_map(source, target, Sampling())
    y, x = exact_window(source, target, WHOLE)
    for y0 in range(0, target.shape[0], 30):
        for x0 in range(0, target.shape[1], 30):
            box = Box(y0, x0, y0 + 30, x0 + 30)
            assert_boxes_hold(found, touched(y, x, found.limits, box, 2.0), box, 2.0)


def test_an_exposure_far_away_touches_nothing() -> None:
    source = exposure()
    found = pixel_map(source, mosaic_for(source, 10.0, shift=(5000.0, 0.0)), Sampling())
    assert (found.limits == [0, -1]).all()
    assert found.touching(Box(0, 0, 300, 300), 2.0) == []
    assert found.around(2.0).intersect(Box(0, 0, 300, 300)) is None


# ---------------------------------------------------------------- keeping
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(10, 1), Sampling(1)])
def test_bytes_come_back(sampling: Sampling) -> None:
    source = exposure(0, (3.0, 2.0))
    found = pixel_map(source, mosaic_for(source, 33.0), sampling)
    back = PixelMap.from_bytes(found.to_bytes())
    assert back.valid == found.valid and back.order == found.order and back.exact == found.exact
    assert back.error == found.error or (math.isnan(back.error) and math.isnan(found.error))
    for a, b in zip((*found.knots, *found.nodes), (*back.knots, *back.nodes), strict=True):
        np.testing.assert_array_equal(a, b)
    for name in ("coefficients", "extent", "limits"):
        kept, made = getattr(back, name), getattr(found, name)
        assert kept.dtype == made.dtype
        np.testing.assert_array_equal(kept, made)
    assert back.to_bytes() == found.to_bytes()
    assert replace(back, error=0.5).to_bytes() != found.to_bytes()


# ---------------------------------------------------------------- what outlines tell
@settings(max_examples=25, deadline=None)
@given(st.floats(0.0, 360.0), st.floats(0.5, 2.0), st.integers(0, 3), st.tuples(st.floats(-80, 80), st.floats(-80, 80)))
def test_an_outline_tells_the_tiles(angle: float, ratio: float, variant: int, shift: tuple[float, float]) -> None:
    """Every tile that the map itself touches is found from the corners alone (one pixel more for distorted edges)."""
    source = exposure(variant)
    target = mosaic_for(source, angle, ratio, shift)
    found, rough = pixel_map(source, target, Sampling()), next(outline_maps([(outline(source), source.shape)], target))
    for y0 in range(0, target.shape[0], 64):
        for x0 in range(0, target.shape[1], 64):
            tile = Box(y0, x0, y0 + 64, x0 + 64)
            assert not found.touching(tile, 1.0) or rough.touching(tile, 2.0), tile
