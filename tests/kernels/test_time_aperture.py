"""Sums in circles and rings against photutils, and what is built on them (spec others §2.3)."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from streamimg3.errors import InputError
from streamimg3.kernels.time_aperture import Apertures, aperture_series, whole_series

f4 = np.float32
RNG = np.random.default_rng(9)
SCI = RNG.normal(3.0, 1.0, (6, 40, 44)).astype(f4)
SCI[RNG.random(SCI.shape) < 0.03] = np.nan
SCI[RNG.random(SCI.shape) < 0.01] = np.inf
ERR = RNG.uniform(0.5, 1.5, SCI.shape).astype(f4)
PLACES = np.array([[20.3, 21.7], [0.2, 1.4], [38.9, 43.6], [15.5, 16.5], [np.nan, 3.0], [-30.0, 5.0]])
APERTURES = Apertures((1.6, 3.0, 5.25), (4.0, 7.5))


def test_sums_are_photutils() -> None:
    aperture = pytest.importorskip("photutils.aperture")
    found = aperture_series(SCI, ERR, PLACES, APERTURES)
    for k, (y, x) in enumerate(PLACES[:4]):
        shapes = [aperture.CircularAperture((x, y), radius) for radius in APERTURES.radii]
        shapes.append(aperture.CircularAnnulus((x, y), *APERTURES.ring))
        values = (
            np.column_stack([found.total, found.ring_total])[k],
            np.column_stack([found.error, found.ring_error])[k],
        )
        areas = np.append(found.area[k], found.ring_area[k])
        for shape, total, error, area in zip(shapes, *values, areas, strict=True):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                stats = aperture.ApertureStats(SCI[k].astype(float), shape, error=ERR[k].astype(float))
                expected = stats.sum, stats.sum_err, stats.sum_aper_area.value
            np.testing.assert_allclose([total, error, area], expected, rtol=1e-12)
    assert np.isnan(found.total[4:]).all() and np.isnan(found.net_error[4:]).all()


def test_areas() -> None:
    ones = np.ones((1, 60, 60), f4)
    found = aperture_series(ones, ones, (29.81, 30.27), APERTURES)
    np.testing.assert_allclose(found.area[0], np.pi * np.square(APERTURES.radii), rtol=1e-12)
    np.testing.assert_allclose(found.ring_area, np.pi * (7.5**2 - 4.0**2), rtol=1e-12)
    np.testing.assert_allclose(found.net, 0.0, atol=1e-12)


def test_net_is_the_sum_less_the_mean_of_the_ring() -> None:
    found = aperture_series(SCI, ERR, (20.0, 21.0), APERTURES)
    mean, error = found.ring_total / found.ring_area, found.ring_error / found.ring_area
    for k in range(3):
        np.testing.assert_allclose(found.net[:, k], found.total[:, k] - mean * found.area[:, k], rtol=1e-13)
        np.testing.assert_allclose(
            found.net_error[:, k], np.sqrt(found.error[:, k] ** 2 + (error * found.area[:, k]) ** 2), rtol=1e-13
        )


def test_fixed_or_moving_or_cut_out_is_the_same() -> None:
    fixed = aperture_series(SCI, ERR, (20.25, 21.5), APERTURES)
    moving = aperture_series(SCI, ERR, np.tile([20.25, 21.5], (6, 1)), APERTURES)
    reach = APERTURES.reach
    window = np.s_[:, 20 - reach : 21 + reach, 21 - reach : 23 + reach]
    cut = aperture_series(SCI[window], ERR[window], (20.25, 21.5), APERTURES, (20 - reach, 21 - reach))
    alone = aperture_series(SCI, ERR, (20.25, 21.5), Apertures((3.0,), (4.0, 7.5)))
    for name in ("total", "error", "area", "ring_total", "ring_error", "ring_area"):
        np.testing.assert_array_equal(getattr(fixed, name), getattr(moving, name))
        np.testing.assert_array_equal(getattr(fixed, name), getattr(cut, name))
    np.testing.assert_array_equal(fixed.net[:, 1], alone.net[:, 0])


def test_an_error_inside_the_ring_does_not_reach_it() -> None:
    err = ERR.copy()
    err[:, 20, 21] = np.nan
    found = aperture_series(np.ones_like(err), err, (20.0, 21.0), APERTURES)
    assert np.isnan(found.error).all() and np.isfinite(found.ring_error).all()


def test_everything() -> None:
    sci = np.where(np.isfinite(SCI), SCI, f4(np.nan))
    err = np.where(np.isfinite(SCI), ERR, f4(np.nan))
    total, error = whole_series(sci, err)
    np.testing.assert_allclose(total, [np.nansum(image.astype(float)) for image in sci], rtol=1e-13)
    np.testing.assert_allclose(error, [np.sqrt(np.nansum(image.astype(float) ** 2)) for image in err], rtol=1e-13)


def test_apertures_that_cannot_be() -> None:
    with pytest.raises(InputError, match=r"tso_photometry.radius = \(0.0,\): radii must be positive"):
        Apertures((0.0,), (4.0, 5.0))
    with pytest.raises(InputError, match="radius_inner, radius_outer"):
        Apertures((3.0,), (5.0, 4.0))
