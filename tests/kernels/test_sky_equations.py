"""Sky levels from overlaps: true levels are found, sets that do not touch stay apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamimg3.kernels import sky_equations
from streamimg3.kernels.sky_equations import connected, solve


def measured(truth: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Noiseless skies of both sides of each overlap on some common brightness, and pixel numbers."""
    rng = np.random.default_rng(len(pairs))
    common = rng.normal(0.3, 0.1, (len(pairs), 1))
    return common + truth[pairs], rng.integers(10, 4_000_000, pairs.shape)


def test_consistent_overlaps_give_the_truth() -> None:
    truth = np.array([0.3, 0.1, 0.25, 0.4, 0.15])
    pairs = np.array([(0, 1), (1, 2), (2, 3), (0, 3), (3, 4)])
    found = solve(5, pairs, *measured(truth, pairs))
    np.testing.assert_allclose(found - found.min(), truth - truth.min(), atol=1e-9)  # weights differ by 10^5
    assert found.sum() == pytest.approx(0.0, abs=1e-9)


def test_an_item_without_overlap_has_no_level_and_sets_float_freely() -> None:
    truth = np.array([0.3, 0.1, 0.0, 0.4, 0.15])
    pairs = np.array([(0, 1), (3, 4)])
    found = solve(5, pairs, *measured(truth, pairs))
    np.testing.assert_allclose(found, [0.1, -0.1, np.nan, 0.125, -0.125], atol=1e-12)


def test_no_overlap_at_all() -> None:
    none = np.zeros((0, 2))
    assert np.isnan(solve(3, none.astype(np.int64), none, none.astype(np.int64))).all()


def test_contradictions_are_shared_by_weight() -> None:
    """Three differences around a ring that add up to 3: with equal weights each gives way by 1."""
    pairs = np.array([(0, 1), (1, 2), (0, 2)])
    values, pixels = np.array([[2.0, 0.0], [2.0, 0.0], [1.0, 0.0]]), np.full((3, 2), 100)
    np.testing.assert_allclose(solve(3, pairs, values, pixels), [1.0, 0.0, -1.0], atol=1e-12)


def test_many_equations_in_blocks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    pairs = np.array([(i, j) for i in range(30) for j in range(i + 1, 30)])
    values, pixels = measured(rng.normal(0.3, 0.05, 30), pairs)
    values += rng.normal(0, 1e-3, values.shape)
    at_once = solve(30, pairs, values, pixels)
    monkeypatch.setattr(sky_equations, "_ROWS", 40)
    np.testing.assert_allclose(solve(30, pairs, values, pixels), at_once, rtol=0, atol=1e-13)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(lambda p: p[0] < p[1]), max_size=12))
@settings(max_examples=100, deadline=None)
def test_connected_sets(pairs: list[tuple[int, int]]) -> None:
    sets = connected(pairs)
    owner = {item: k for k, members in enumerate(sets) for item in members}
    assert sum(map(len, sets)) == len(owner) == len({item for pair in pairs for item in pair})
    assert all(owner[i] == owner[j] for i, j in pairs)
    reach = np.eye(10, dtype=bool)
    for i, j in pairs:
        reach[i, j] = reach[j, i] = True
    reach = np.linalg.matrix_power(reach.astype(float), 10) > 0
    assert all(reach[a, b] for members in sets for a in members for b in members)
