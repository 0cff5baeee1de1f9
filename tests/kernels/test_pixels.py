"""Weights, masks and error planes against plain NumPy written from the specification (image3 §7.4, §7.6)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamimg3.kernels import pixels

F4 = NDArray[np.float32]
SHAPE = (6, 7)
READ = 0  # index of the read-noise variance


def test_inverse_variance_of_odd_values() -> None:
    variance = np.array([2.0, 0.0, -0.0, np.nan, np.inf, -np.inf, -4.0], np.float32)
    weight = pixels.inverse_variance(variance)
    # 1/0 and 1/NaN have no weight; 1/inf is 0 by itself.
    np.testing.assert_array_equal(weight, np.array([0.5, 0, 0, 0, 0, 0, -0.25], np.float32))
    assert weight.dtype == np.float32


def test_inverse_variance_that_overflows_is_silent() -> None:
    """A variance below 3e-39 has no float32 inverse: no weight, and no warning."""
    assert pixels.inverse_variance(np.array([1e-45], np.float32))[0] == 0.0


@settings(max_examples=60, deadline=None)
@given(st.floats(2.0**-100, 2.0**100, width=32))
def test_inverse_variance_is_rounded_once(variance: float) -> None:
    found = pixels.inverse_variance(np.array([variance], np.float32))
    assert found[0] == np.float32(1.0) / np.float32(variance)


@settings(max_examples=60, deadline=None)
@given(dq=st.integers(0, 2**32 - 1), nan=st.integers(0, 1), bad=st.sampled_from([0, 1, 512, 513, 2**31, 2**32 - 1]))
def test_usable_pixels(dq: int, nan: int, bad: int) -> None:
    found = pixels.usable(np.array([[dq]], np.uint32), np.array([[nan]], np.uint8), bad)
    assert found[0, 0] == ((dq & (bad | 1)) == 0 and nan == 0)  # DO_NOT_USE excludes a pixel whatever is good


@dataclass
class Plain:
    """Variance sums as whole NumPy arrays: S = sum of v u², T = sum of u, in float32."""

    sums: F4
    weights: F4

    @classmethod
    def blank(cls) -> Plain:
        return cls(np.full((3, *SHAPE), np.nan, np.float32), np.zeros((3, *SHAPE), np.float32))

    def add(self, weight: F4, errors: F4, read: int, constant: float) -> None:
        """Add one exposure: its weight and its drizzled errors (3, ny, nx)."""
        variance = np.where(weight == 0, np.float32(np.nan), errors) ** 2
        u = weight.astype(float) if read == -2 else np.full(SHAPE, constant)
        if read >= 0:
            good = (variance[read] > 0) & np.isfinite(variance[read])
            u = np.zeros(SHAPE)
            u[good] = np.float32(1.0) / variance[read][good]
        for k, v in enumerate(variance):
            part = (v >= 0) & np.isfinite(v) & (u > 0)
            self.sums[k][part] = np.nansum([self.sums[k][part], v[part].astype(float) * u[part] * u[part]], axis=0)
            self.weights[k][part] += u[part]


def drizzled_errors(seed: int) -> tuple[F4, F4]:
    """Weight and errors of an exposure with empty, zero, NaN and infinite pixels."""
    rng = np.random.default_rng(seed)
    weight = rng.uniform(0.5, 2.0, SHAPE).astype(np.float32)
    errors = rng.uniform(0.1, 3.0, (3, *SHAPE)).astype(np.float32)
    weight[rng.random(SHAPE) < 0.2] = 0.0
    weight[2, 3:5] = 0.0  # seen by no exposure
    for value in (0.0, np.nan, np.inf):
        errors[rng.random(errors.shape) < 0.08] = value
    errors[:, weight == 0] = 0.0  # the drizzle leaves nothing there
    return weight, errors


@pytest.mark.parametrize(("read", "constant"), [(READ, 1.0), (-1, 1.0), (-1, 515.25), (-2, 1.0)])
def test_variance_sums_equal_plain_numpy(read: int, constant: float) -> None:
    plain = Plain.blank()
    sums, weights = np.full((3, *SHAPE), np.nan, np.float32), np.zeros((3, *SHAPE), np.float32)
    for seed in range(5):
        weight, errors = drizzled_errors(seed)
        noise = np.ascontiguousarray(np.concatenate([weight[None], errors]).transpose(1, 2, 0))
        pixels.add_variances(noise, sums, weights, read, constant)
        plain.add(weight, errors, read, constant)
        assert not noise.any(), "the exposure's planes must be empty for the next one"
    assert np.isnan(sums).any() and np.isfinite(sums).any()
    np.testing.assert_array_equal(sums, plain.sums)
    np.testing.assert_array_equal(weights, plain.weights)


@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.713, np.float64(0.713)])
def test_final_variances_equal_plain_numpy(ratio: float | np.float64) -> None:
    """A NumPy ratio makes the quotient double precision, a Python one leaves it in single."""
    rng = np.random.default_rng(3)
    sums, weights = rng.uniform(0.1, 9.0, (2, *SHAPE)).astype(np.float32)
    weights[0, :3] = 0.0
    sums[0, :2] = np.nan
    found = pixels.final_variances(sums.copy(), weights, ratio)
    kind = np.float64 if isinstance(ratio, np.float64) else np.float32
    with np.errstate(divide="ignore", invalid="ignore"):
        wanted = sums.astype(kind) * kind(1.0 / float(ratio) ** 2) / weights.astype(kind) / weights.astype(kind)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, wanted.astype(np.float32))
    assert np.isnan(found[0, :2]).all()


def test_error_is_the_root_of_the_finite_variances() -> None:
    variances = np.array([[1.0, np.nan, np.nan, 4.0], [3.0, 9.0, np.nan, np.nan], [5.0, 7.0, np.nan, 0.0]], np.float32)
    found = pixels.total_error(variances.reshape(3, 1, 4))
    np.testing.assert_array_equal(found, np.array([[3.0, 4.0, np.nan, 2.0]], np.float32))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_error_equals_plain_numpy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    variances = rng.uniform(0.0, 5.0, (3, *SHAPE)).astype(np.float32)
    variances[rng.random(variances.shape) < 0.3] = np.nan
    wanted = np.sqrt(np.nansum(variances, axis=0))
    wanted[np.isnan(variances).all(axis=0)] = np.nan
    found = pixels.total_error(variances)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, wanted)
