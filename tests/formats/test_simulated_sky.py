"""The simulated sky: fluxes, places and moments of what is painted, and the flaws of the detectors."""

from __future__ import annotations

import numpy as np
import pytest

from streamimg3.formats import simulated_sky as sky
from streamimg3.formats.simulated_wcs import sky_to_plane


@pytest.mark.parametrize(("dy", "dx"), [(0.0, 0.0), (0.4, -0.3), (-0.5, 0.5)])
def test_star_stamp_keeps_flux_and_place(dy: float, dx: float) -> None:
    stamp = sky.star_stamp(sky.point_spread(), dy, dx, 120)
    axis = np.arange(-120, 121)
    assert stamp.sum() == pytest.approx(1.0, abs=2e-3)  # the wing reaches beyond 120 px
    assert stamp.sum(axis=1) @ axis == pytest.approx(dy, abs=2e-3)
    assert stamp.sum(axis=0) @ axis == pytest.approx(dx, abs=2e-3)


def test_star_stamp_integrates_over_the_pixel() -> None:
    psf = sky.point_spread()
    fine = (np.arange(11 * 41) - 11 * 41 // 2) / 41.0
    radius = np.hypot(fine[:, None] - 0.2, fine[None, :] + 0.35)
    sampled = psf.profile(radius.ravel()).reshape(11, 41, 11, 41).sum(axis=(1, 3)) / 41.0**2
    # The midpoint rule at 41 points per pixel is good to about 1e-5.
    np.testing.assert_allclose(sky.star_stamp(psf, 0.2, -0.35, 5), sampled, atol=2e-5)


def test_disc_is_exponential() -> None:
    radius = np.linspace(0.0, 12.0, 2001)
    density = sky.disc().profile(radius)
    assert 2 * np.pi * np.trapezoid(density * radius, radius) == pytest.approx(1.0, abs=0.01)
    np.testing.assert_allclose(density[200:1000:100], np.exp(-radius[200:1000:100]) / (2 * np.pi), rtol=0.1)
    half = radius <= sky.DISC_RADIUS
    assert 2 * np.pi * np.trapezoid((density * radius)[half], radius[half]) == pytest.approx(0.5, abs=0.02)


def test_galaxy_stamp_has_its_moments() -> None:
    shape = np.array([[9.0, 3.0], [3.0, 4.0]])
    psf = sky.Mixture(np.array([0.7]), np.array([1.0]))
    profile = sky.Mixture(np.array([1.0, 2.0]), np.array([0.5, 0.5]))
    stamp = sky.galaxy_stamp((profile, psf), shape, (0.25, -0.4), 40).astype(float)
    axis = np.arange(-40, 41)
    y, x = axis[:, None] - 0.25, axis[None, :] + 0.4
    assert stamp.sum() == pytest.approx(1.0, abs=1e-4)
    expected = 1.5 * shape + (0.7 + 1 / 12) * np.eye(2)
    moments = [(stamp * x * x).sum(), (stamp * x * y).sum(), (stamp * y * y).sum()]
    np.testing.assert_allclose(moments, [expected[0, 0], expected[0, 1], expected[1, 1]], rtol=1e-3)


def test_stamp_is_clipped_at_the_edge() -> None:
    image = np.zeros((6, 8), np.float32)
    sky.add_stamp(image, np.arange(25, dtype=np.float32).reshape(5, 5), 0, 7)
    np.testing.assert_array_equal(image[:3, 5:], np.arange(25).reshape(5, 5)[2:, :3])
    assert image.sum() == image[:3, 5:].sum()
    sky.add_stamp(image, np.ones((3, 3), np.float32), -2, 3)
    assert image[0, 2:5].sum() == 0.0


def test_stars_keep_their_distance() -> None:
    rng = np.random.default_rng(2)
    catalog = sky.draw_catalog(rng, sky.Density(0.25, 0.0, 0), (-20.0, -20.0, 20.0, 20.0), (10.0, 5.0))
    north, east = sky_to_plane(catalog.ra, catalog.dec, 10.0, 5.0)
    apart = np.hypot(north[:, None] - north, east[:, None] - east) + 1e9 * np.eye(len(north))
    assert len(catalog) == 400
    assert apart.min() > 1.0


def test_cosmic_rays_are_short_and_listed_once() -> None:
    index, value = sky.cosmic_rays(np.random.default_rng(3), (500, 400), 500.0, 0.03)
    assert np.all(np.diff(index) > 0)
    assert index[0] >= 0
    assert index[-1] < 500 * 400
    assert value.min() >= np.float32(0.03 * 12)
    assert 100 < len(index) < 1000  # 100 hits of 1 to some 10 pixels
    empty, none = sky.cosmic_rays(np.random.default_rng(3), (500, 400), 0.0, 0.03)
    assert len(empty) == len(none) == 0


def test_flaws_are_as_many_as_asked() -> None:
    dq, read_noise = sky.flaws(np.random.default_rng(8), (1000, 1000), 0.01, 4)
    frame = (dq & sky.REFERENCE_PIXEL) != 0
    assert frame.sum() == 1000**2 - 992**2
    flawed = (dq[~frame] & (sky.DEAD | sky.HOT | sky.JUMP_DET)) != 0
    assert flawed.mean() == pytest.approx(0.01, rel=0.05)
    assert read_noise.mean() == pytest.approx(1.0, abs=0.01)
    clean, _ = sky.flaws(np.random.default_rng(8), (64, 64), 0.0, 4)
    assert not clean[4:-4, 4:-4].any()
