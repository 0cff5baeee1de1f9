"""Bands of flat_field: errors without variances, and that the inverse brings counts back."""

from __future__ import annotations

import numpy as np
import pytest

from streamimg3.stages import flat_field
from streamimg3.stages.calibrated_band import FlatPixels, Planes


def flat() -> FlatPixels:
    """Near 1, with a NaN pixel."""
    sci = np.random.default_rng(1).uniform(0.8, 1.2, (5, 6)).astype(np.float32)
    sci[1, 1] = np.nan
    return FlatPixels(sci, np.full((5, 6), 0.01, np.float32), np.zeros((5, 6), np.uint32))


def planes(variances: bool) -> Planes:
    """Counts of 10 with errors of 2."""

    def full(value: float) -> np.ndarray:
        return np.full((5, 6), value, np.float32)

    more = {"var_poisson": full(3.0), "var_rnoise": full(1.0)} if variances else {}
    return Planes(full(10.0), np.zeros((5, 6), np.uint32), full(2.0), **more)


@pytest.mark.parametrize("inverse", [False, True])
def test_without_variances_the_errors_are_kept_and_divided(inverse: bool) -> None:
    """The same numbers as with variances whose sum is the square of the errors."""
    bare, full = planes(variances=False), planes(variances=True)
    flat_field.apply(bare, flat_field.ready(flat()), inverse)
    flat_field.apply(full, flat_field.ready(flat()), inverse)
    assert bare.err is not None and full.err is not None
    np.testing.assert_allclose(bare.err, full.err, rtol=2e-7)
    assert np.array_equal(np.isnan(bare.err), np.isnan(full.err)) and np.isnan(bare.err[1, 1])
    assert np.array_equal(bare.sci, full.sci, equal_nan=True) and bare.dq[1, 1] == 1 | 1 << 18


def test_the_inverse_restores_counts() -> None:
    there = planes(variances=True)
    flat_field.apply(there, flat_field.ready(flat()), inverse=False)
    flat_field.apply(there, flat_field.ready(flat()), inverse=True)
    good = ~np.isnan(there.sci)
    assert good.sum() == 29
    np.testing.assert_allclose(there.sci[good], 10.0, rtol=1e-6)


def test_the_flat_that_is_applied_is_1_where_it_cannot_be() -> None:
    ready = flat_field.ready(flat())
    assert ready.sci[1, 1] == 1.0 and ready.dq[1, 1] == 1 | 1 << 18
