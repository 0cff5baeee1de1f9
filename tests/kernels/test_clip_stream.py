"""Clipped statistics of values that are streamed, against astropy's sigma_clip."""

from __future__ import annotations

import math

import numpy as np
import pytest
from astropy.stats import sigma_clip
from hypothesis import given, settings
from hypothesis import strategies as st

from streamimg3.kernels.clip import clip_stream


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**16), st.integers(1, 4000), st.integers(1, 9), st.booleans())
def test_as_astropy_does(seed: int, count: int, parts: int, signed: bool) -> None:
    """The same values survive; mean to the rounding of a double sum, median exactly."""
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.normal(0.0 if signed else 50.0, 1, count), rng.exponential(30, count // 7)])
    values = values.astype(np.float32)
    kept = sigma_clip(values, sigma=3, maxiters=5, masked=False, copy=True)
    found = clip_stream(lambda: [(v[None], np.zeros((1, v.size), np.bool_)) for v in np.array_split(values, parts)])
    assert found.left == kept.size
    assert found.mean == pytest.approx(np.mean(kept, dtype="f8"), rel=1e-12, abs=1e-12)
    assert np.float32(found.median) == np.median(kept)
    assert found.std == pytest.approx(float(np.std(kept, dtype="f8")), rel=1e-9, abs=1e-9)


def test_nothing_left() -> None:
    found = clip_stream(lambda: [(np.ones((2, 2), np.float32), np.ones((2, 2), np.bool_))])
    assert found.left == 0
    assert math.isnan(found.mean)


def test_constant_values() -> None:
    """Weights that are all the same (exposure times) are not clipped away."""
    found = clip_stream(lambda: [(np.full((10, 100), 123.25, np.float32), np.zeros((10, 100), np.bool_))] * 3)
    assert (found.left, found.mean, found.median, found.std) == (3000, 123.25, 123.25, 0.0)
