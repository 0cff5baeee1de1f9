"""Filled pixels against a loop with NumPy's median, written from the specification (others §3.4)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamimg3.kernels.bad_fill import NON_SCIENCE, Filling, fill_bad

F4 = NDArray[np.float32]
U4 = NDArray[np.uint32]


def scene(seed: int, shape: tuple[int, int, int], bad: float = 0.15) -> tuple[F4, U4]:
    rng = np.random.default_rng(seed)
    planes = rng.normal(3.0, 2.0, shape).astype(np.float32)
    dq = rng.choice(np.array([0, 2, 1, 513, 512], np.uint32), shape, p=[0.7 - bad, 0.2, bad, 0.05, 0.05])
    planes[rng.random(shape) < 0.05] = np.nan
    planes[rng.random(shape) < 0.02] = np.inf
    return planes, dq


def expected(planes: F4, dq: U4, filling: Filling) -> tuple[F4, int]:
    """Fill one pixel after the other."""
    out, alone, h = planes.copy(), 0, filling.box // 2
    for k, j, i in zip(*np.nonzero(((dq & filling.bad) > 0) | np.isnan(planes)), strict=True):
        if dq[k, j, i] & filling.blank:
            out[k, j, i] = 0
    for k, j, i in zip(*np.nonzero(((dq & filling.bad) > 0) | np.isnan(planes)), strict=True):
        if dq[k, j, i] & filling.blank:
            continue
        lows = (j - h, i - h) if filling.compat else (max(j - h, 0), max(i - h, 0))
        window = (k, slice(lows[0], j + h + 1), slice(lows[1], i + h + 1))
        source = out if filling.compat else planes  # what is filled serves others in the reference
        good = np.isfinite(source[window]) & ((dq[window] & filling.bad) == 0)
        out[k, j, i] = np.median(source[window][good]) if good.any() else 0.0
        alone += not good.any()
    return out, alone


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 9)),
    box=st.integers(0, 8),
    bad=st.sampled_from([0, 1, 3]),
    blank=st.sampled_from([0, NON_SCIENCE]),
    compat=st.booleans(),
)
def test_every_rule(
    seed: int, shape: tuple[int, int, int], box: int, bad: int, blank: int, compat: bool
) -> None:  # fmt: skip
    planes, dq = scene(seed, shape)
    filling = Filling(box, bad, blank, compat)
    wanted, alone = expected(planes, dq, filling)
    before = dq.copy()
    assert fill_bad(planes, dq, filling) == alone
    np.testing.assert_array_equal(planes, wanted)
    np.testing.assert_array_equal(dq, before)


@pytest.mark.parametrize("compat", [False, True])
def test_low_edges(compat: bool) -> None:
    """The reference puts 0 into bad pixels near the first row and column, and fills those near the last."""
    planes, dq = np.full((1, 6, 6), 4.0, np.float32), np.zeros((1, 6, 6), np.uint32)
    for at in ((0, 3), (3, 0), (5, 2), (2, 5)):
        planes[0][at] = np.nan
    assert fill_bad(planes, dq, Filling(compat=compat)) == 2 * compat
    assert [planes[0][at] for at in ((0, 3), (3, 0), (5, 2), (2, 5))] == [0.0 if compat else 4.0] * 2 + [4.0] * 2


def test_windows_give_the_same_pixels() -> None:
    whole, dq = scene(4, (2, 30, 31))
    filling, planes = Filling(5, 1), whole.copy()
    fill_bad(whole, dq, filling)
    for y0 in range(0, 30, 7):
        rows = slice(max(y0 - filling.reach, 0), y0 + 7 + filling.reach)
        part = planes[:, rows].copy()
        fill_bad(part, dq[:, rows], filling)
        np.testing.assert_array_equal(part[:, y0 - rows.start :][:, :7], whole[:, y0 : y0 + 7])


def test_only_nan_without_flags() -> None:
    """Errors of flagged pixels stay what they are."""
    planes, _ = scene(5, (1, 12, 12))
    filled = planes.copy()
    fill_bad(filled, None, Filling())
    assert not np.isnan(filled).any()
    there = ~np.isnan(planes)
    np.testing.assert_array_equal(filled[there], planes[there])


def test_a_large_box() -> None:
    """More than a thousand donors, many of them equal."""
    planes = np.random.default_rng(6).integers(0, 9, (1, 40, 40)).astype(np.float32)
    planes[0, 20, 20] = np.nan
    wanted = np.nanmedian(planes[0, 1:40, 1:40])
    assert fill_bad(planes, None, Filling(box=39)) == 0
    assert planes[0, 20, 20] == wanted
