"""Centres against sums written out, fits against SciPy's bounded least squares (spec others §2.3)."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import least_squares
from scipy.special import erf

from streamimg3.errors import InputError
from streamimg3.kernels.centroid import SIGMA_PER_FWHM, Boxes, find_centres, fit_stars, rough_levels, typical

f4 = np.float32
SHAPE = (40, 48)


def light(centre: np.ndarray, widths: np.ndarray, flux: float, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """A Gaussian integrated over pixels."""
    parts = []
    for at, middle, width in ((rows, centre[0], widths[0]), (columns, centre[1], widths[1])):
        edges = np.append(at - 0.5, at[-1] + 0.5)
        parts.append(np.diff(erf((edges - middle) / (np.sqrt(2.0) * width))) / 2)
    return flux * np.outer(*parts)


def stars(count: int, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(6)
    rows, columns = np.arange(SHAPE[0]), np.arange(SHAPE[1])
    images = [
        light(np.array([20.3, 22.7]) + rng.normal(0, 0.4, 2), rng.uniform(0.7, 2.5, 2), 900.0, rows, columns)
        for _ in range(count)
    ]
    cube = (np.array(images) + 3.0 + rng.normal(0, noise, (count, *SHAPE))).astype(f4)
    cube[rng.random(cube.shape) < 0.01] = np.nan
    bad = np.isnan(cube) | (rng.random(cube.shape) < 0.01)
    cube[bad & ~np.isnan(cube)] += 50
    return cube, bad


def test_levels_are_medians_outside_a_circle() -> None:
    cube, _ = stars(3)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    outside = np.hypot(y - 20.0, x - 23.0) >= 6.0
    np.testing.assert_array_equal(
        rough_levels(cube, (20.0, 23.0), 6.0), [np.nanmedian(image[outside]) for image in cube]
    )
    assert np.isnan(rough_levels(cube, (20.0, 23.0), 99.0)).all()


@pytest.mark.parametrize(("guess", "rows", "columns"), [
    ((20.0, 23.0), (15, 26), (18, 29)), ((20.5, 22.49), (15, 26), (17, 28)), ((3.2, 46.9), (0, 9), (42, 48)),
])  # fmt: skip
def test_centres_of_mass(guess: tuple[float, float], rows: tuple[int, int], columns: tuple[int, int]) -> None:
    cube, bad = stars(4)
    found = find_centres(cube, bad, guess, Boxes(11, 4.0))
    y, x = np.mgrid[slice(*rows), slice(*columns)]
    for image, mask, level, centre in zip(cube, bad, rough_levels(cube, guess, 4.0), found, strict=True):
        cut = np.where(mask, 0.0, image - level)[slice(*rows), slice(*columns)].astype(np.float64)
        expected = np.array([(y * cut).sum(), (x * cut).sum()]) / cut.sum()
        inside = (expected >= 0).all() and (expected < SHAPE).all()
        np.testing.assert_allclose(centre, expected if inside else [np.nan] * 2, rtol=1e-9)


def test_nothing_to_be_found() -> None:
    cube, bad = stars(3)
    bad[1] = True
    assert np.isnan(find_centres(cube, bad, (20.0, 23.0), Boxes(11, 4.0))).all(axis=1).tolist() == [False, True, False]
    assert np.isnan(find_centres(cube, bad, (-0.1, 23.0), Boxes(11, 4.0))).all()
    fits = fit_stars(cube, bad, (20.0, 23.0), Boxes(11, 4.0))
    assert np.isnan(fits.flux).tolist() == [False, True, False]
    assert np.isnan(typical(np.full((4, 2), np.nan))).all()
    assert typical(np.array([[1.0, 2.0], [np.nan, np.nan], [2.0, 4.0]])) == (1.5, 3.0)
    with pytest.raises(InputError, match="a box of 10 pixels: it must be an odd number"):
        Boxes(10, 4.0)


def test_no_light_has_no_width() -> None:
    cube = np.zeros((1, *SHAPE), f4)
    cube[0, 16:25, 18:28] = -np.arange(90, dtype=f4).reshape(9, 10)
    fits = fit_stars(cube, np.zeros(cube.shape, bool), (20.0, 23.0), Boxes(11, 2.0))
    assert np.isfinite(fits.centres).all()
    assert fits.flux[0] == 0.0 and np.isnan(fits.widths).all()


@pytest.mark.parametrize("width", [7, 11, 15])
def test_fits_are_the_least_squares(width: int) -> None:
    cube, bad = stars(8)
    cube[0] = f4(3.0)
    cube[0, 11:30, 13:32] = f4(20.0)  # wider than any box
    guess, boxes = (20.2, 22.8), Boxes(width, 6.0)
    fits = fit_stars(cube, bad, guess, boxes)
    np.testing.assert_array_equal(fits.centres, find_centres(cube, bad, guess, boxes))
    levels, widest = rough_levels(cube, guess, 6.0), width * SIGMA_PER_FWHM
    for k, centre in enumerate(fits.centres):
        low = np.ceil(centre - width / 2).astype(int)
        rows, columns = np.arange(low[0], low[0] + width), np.arange(low[1], low[1] + width)
        good = ~bad[k][np.ix_(rows, columns)]
        data = (cube[k] - levels[k])[np.ix_(rows, columns)].astype(np.float64)

        def residual(p: np.ndarray) -> np.ndarray:
            return (light(centre, p[:2], p[2] * 900.0, rows, columns) - data)[good]  # noqa: B023

        found = np.array([*fits.widths[k], fits.flux[k] / 900.0])
        best = least_squares(
            residual,
            [2.0, 2.0, 1.0],
            bounds=([1e-3, 1e-3, 0], [widest, widest, np.inf]),
            xtol=1e-14,
            ftol=1e-14,
            gtol=1e-12,
        )
        assert (residual(found) ** 2).sum() <= (best.fun**2).sum() * (1 + 1e-9)
        np.testing.assert_allclose(found, best.x, rtol=2e-5)


def test_blocks_change_no_bit() -> None:
    cube, bad = stars(6)
    whole = fit_stars(cube, bad, (20.0, 23.0), Boxes(11, 4.0))
    parts = [fit_stars(cube[k:m], bad[k:m], (20.0, 23.0), Boxes(11, 4.0)) for k, m in ((0, 1), (1, 4), (4, 6))]
    for values, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        np.testing.assert_array_equal(values, np.concatenate(pieces))
