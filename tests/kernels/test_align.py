"""Shifts against scipy's, and fits on images whose shift is known (spec others §3.4)."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import fourier_shift
from scipy.optimize import least_squares

from streamimg3.kernels.align import Search, Spectrum, Target, align, shift_plane

F8 = NDArray[np.float64]


def by_scipy(image: F8, shift: tuple[float, float]) -> F8:
    return np.fft.ifftn(fourier_shift(np.fft.fftn(image), shift)).real


def star(y0: float, x0: float, shape: tuple[int, int] = (48, 50), lobes: float = 0.3) -> F8:
    """A star with lobes, sampled well enough that a shift by phases is exact to 1e-6."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    y, x = y - shape[0] / 2 - y0, x - shape[1] / 2 - x0
    return 10 * np.exp(-(y**2 + x**2) / 40) * (1 + lobes * np.cos(0.9 * x + 0.4 * y) + 0.2 * np.sin(0.7 * y))


@pytest.mark.parametrize("shape", [(16, 16), (15, 16), (16, 15), (15, 17), (2, 2), (1, 6), (6, 1)])
@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.4, -0.3), (-7.5, 2.0), (0.5, 0.5), (33.25, -18.1)])
def test_shift_is_scipys(shape: tuple[int, int], shift: tuple[float, float]) -> None:
    """Noise has power in the highest frequencies, which even sizes hold once for both signs."""
    image = np.random.default_rng(5).standard_normal(shape)
    np.testing.assert_allclose(shift_plane(image, shift), by_scipy(image, shift), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(16, 16), (15, 16), (9, 11)])
def test_slopes_are_derivatives(shape: tuple[int, int]) -> None:
    spectrum, step = Spectrum(np.random.default_rng(6).standard_normal(shape)), 1e-5
    image, along_y, along_x = spectrum.with_slopes((0.37, -1.2))
    np.testing.assert_allclose(image, spectrum.shifted((0.37, -1.2)), rtol=0, atol=1e-14)
    dy = (spectrum.shifted((0.37 + step, -1.2)) - spectrum.shifted((0.37 - step, -1.2))) / (2 * step)
    dx = (spectrum.shifted((0.37, -1.2 + step)) - spectrum.shifted((0.37, -1.2 - step))) / (2 * step)
    np.testing.assert_allclose(along_y, dy, rtol=0, atol=1e-8)
    np.testing.assert_allclose(along_x, dx, rtol=0, atol=1e-8)


@pytest.mark.parametrize("shape", [(16, 16), (15, 16), (16, 15), (9, 11)])
def test_curvatures_are_second_derivatives(shape: tuple[int, int]) -> None:
    rng, step = np.random.default_rng(8), 1e-5
    spectrum = Spectrum(rng.standard_normal(shape))
    weights = rng.standard_normal(shape)
    _, *above = spectrum.with_slopes((0.37 + step, -1.2))
    _, *below = spectrum.with_slopes((0.37 - step, -1.2))
    _, right = spectrum.with_slopes((0.37, -1.2 + step))[1:]
    _, left = spectrum.with_slopes((0.37, -1.2 - step))[1:]
    yy, yx = (((a - b) * weights).sum() / (2 * step) for a, b in zip(above, below, strict=True))
    xx = ((right - left) * weights).sum() / (2 * step)
    np.testing.assert_allclose(spectrum.curvature(weights, (0.37, -1.2)), [[yy, yx], [yx, xx]], rtol=0, atol=1e-6)


@pytest.mark.parametrize("shift", [(0.4, -0.3), (1.5, 0.7), (-2.2, 1.9), (0.0, 0.0)])
def test_known_shifts(shift: tuple[float, float]) -> None:
    """Images in single precision, as they come: the demand is 1e-3 pixels."""
    found = align((1.7 * star(*shift)).astype(np.float32), Target(star(0.0, 0.0).astype(np.float32)))
    assert found.converged and found.iterations < 15
    np.testing.assert_allclose(found.shift, shift, rtol=0, atol=1e-6)
    assert found.beta == pytest.approx(1.7, rel=1e-6)


def test_the_same_minimum_as_another_fit() -> None:
    """A reference of another shape leaves a residual of a tenth: then the weights and the factor matter."""
    reference, weight = star(0.6, -0.35, lobes=0.1), np.zeros((48, 50))
    weight[8:40, 8:42] = np.random.default_rng(7).uniform(0.2, 1.0, (32, 34))
    image = star(0.0, 0.0)

    def residual(p: F8) -> F8:
        return ((reference - p[2] * by_scipy(image, (p[0], p[1]))) * weight).ravel()

    fit = least_squares(residual, [0.0, 0.0, 1.0], method="lm", xtol=1e-15, ftol=1e-15, gtol=1e-15).x
    found = align(reference, Target(image, weight))
    assert found.converged
    assert np.abs(residual(fit)).max() > 0.5
    np.testing.assert_allclose([*found.shift, found.beta], fit, rtol=0, atol=1e-7)
    assert found.iterations < 8


def test_weights_ignore_what_they_hide() -> None:
    image, weight = star(0.0, 0.0), np.ones((48, 50))
    reference = star(0.8, -0.4)
    weight[20:30, :9] = 0.0
    reference[20:30, :9] = 1e3
    np.testing.assert_allclose(align(reference, Target(image, weight)).shift, (0.8, -0.4), rtol=0, atol=1e-6)


def test_a_target_serves_many_references() -> None:
    target = Target(star(0.0, 0.0), np.ones((48, 50)))
    first = align(star(0.3, 0.2), target)
    align(star(-1.0, 0.9), target)
    assert align(star(0.3, 0.2), target) == first


def test_a_guess_and_a_limit() -> None:
    target, reference = Target(star(0.0, 0.0)), star(6.0, -5.0)
    near = align(reference, target, Search(start=(5.5, -5.5)))
    np.testing.assert_allclose(near.shift, (6.0, -5.0), rtol=0, atol=1e-5)
    short = align(reference, target, Search(limit=1))
    assert not short.converged and short.iterations == 1


@pytest.mark.parametrize(
    ("image", "reference", "weight"),
    [
        (np.zeros((8, 8)), np.ones((8, 8)), None),
        (np.ones((8, 8)), np.ones((8, 8)), np.zeros((8, 8))),
        (star(0.0, 0.0), np.full((48, 50), np.nan), None),
    ],
)
def test_nothing_to_fit(image: F8, reference: F8, weight: F8 | None) -> None:
    found = align(reference, Target(image, weight))
    assert not found.converged and found.shift == (0.0, 0.0) and found.beta == 1.0
