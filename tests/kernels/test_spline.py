"""Our spline evaluation beside SciPy's, and the same bits for every window."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import RectBivariateSpline

from streamimg3.kernels import spline

NY, NX = 61, 75


def surface(order: int, seed: int = 1) -> tuple[RectBivariateSpline, tuple[np.ndarray, np.ndarray], np.ndarray]:
    """A spline through values of the size of pixel coordinates on uneven nodes from edge to edge."""
    rng = np.random.default_rng(seed)
    rows = np.concatenate([[-0.5], np.sort(rng.uniform(0.0, NY - 1.0, 7)), [NY - 0.5]])
    cols = np.concatenate([[-0.5], np.sort(rng.uniform(0.0, NX - 1.0, 9)), [NX - 0.5]])
    values = 3.0 * rows[:, None] + 2.0 * cols + rng.normal(0, 5, (rows.size, cols.size))
    fitted = RectBivariateSpline(rows, cols, values, kx=order, ky=order)
    ky, kx, flat = fitted.tck
    return fitted, (ky, kx), flat.reshape(ky.size - order - 1, kx.size - order - 1)


def window(order: int, y: tuple[int, int], x: tuple[int, int]) -> np.ndarray:
    _, knots, coefficients = surface(order)
    return spline.evaluate(coefficients, spline.basis(knots[0], order, *y), spline.basis(knots[1], order, *x))


@pytest.mark.parametrize("order", [1, 3])
def test_values_equal_scipy(order: int) -> None:
    fitted, _, _ = surface(order)
    # Values reach 350, where a double's step is 6e-14.
    np.testing.assert_allclose(
        window(order, (0, NY), (0, NX)), fitted(np.arange(NY), np.arange(NX)), rtol=0, atol=1e-11
    )


@settings(max_examples=40, deadline=None)
@given(
    order=st.sampled_from([1, 3]),
    y=st.tuples(st.integers(0, NY - 1), st.integers(1, NY)),
    x=st.tuples(st.integers(0, NX - 1), st.integers(1, NX)),
)
def test_any_window_has_the_same_bits(order: int, y: tuple[int, int], x: tuple[int, int]) -> None:
    y, x = (min(y), max(y) + (y[0] == y[1])), (min(x), max(x) + (x[0] == x[1]))
    whole = window(order, (0, NY + 1), (0, NX + 1))
    part = window(order, y, x)
    assert part.tobytes() == np.ascontiguousarray(whole[y[0] : y[1], x[0] : x[1]]).tobytes()


@pytest.mark.parametrize("order", [1, 3])
def test_basis_functions_add_up_to_one(order: int) -> None:
    _, (knots, _), coefficients = surface(order)
    first, values = spline.basis(knots, order, -2, NY + 3)  # also beyond the knots, where the end polynomial goes on
    np.testing.assert_allclose(values.sum(axis=1), 1.0, rtol=0, atol=1e-13)
    assert first.min() == 0 and first.max() + order == coefficients.shape[0] - 1


@pytest.mark.parametrize("order", [1, 3])
def test_the_end_polynomial_is_continued(order: int) -> None:
    """Beyond the knots a spline of a straight line is that line."""
    rows, cols = np.linspace(0.0, 20.0, 6), np.linspace(0.0, 24.0, 7)
    values = 1.5 * rows[:, None] - 0.25 * cols
    ky, kx, flat = RectBivariateSpline(rows, cols, values, kx=order, ky=order).tck
    coefficients = flat.reshape(ky.size - order - 1, kx.size - order - 1)
    found = spline.evaluate(coefficients, spline.basis(ky, order, -3, 24), spline.basis(kx, order, -2, 28))
    y, x = np.mgrid[-3:24, -2:28]
    np.testing.assert_allclose(found, 1.5 * y - 0.25 * x, rtol=0, atol=1e-11)
