"""Labels: those of scipy for a whole image, and the same when tiles are joined."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from streamimg3.kernels.segments import join, label, outlines, relabel, seam_pairs

CORNERS = {True: np.ones((3, 3)), False: None}


def pattern(seed: int, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels that hang together in many ways."""
    rng = np.random.default_rng(seed)
    noise = ndimage.uniform_filter(rng.random(shape), rng.integers(1, 4))
    return np.asarray(noise > np.quantile(noise, rng.uniform(0.2, 0.9)))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_labels_and_outlines_are_scipys(seed: int, ny: int, nx: int, eight: bool) -> None:
    above = pattern(seed, (ny, nx))
    labels, count = label(above, eight)
    expected, number = ndimage.label(above, CORNERS[eight])
    assert count == number and labels.dtype == np.int32
    np.testing.assert_array_equal(labels, expected)
    found = outlines(labels, count)
    np.testing.assert_array_equal(found.area, np.bincount(expected.ravel(), minlength=number + 1)[1:])
    for k, (rows, cols) in enumerate(ndimage.find_objects(expected)):
        assert found.box[k].tolist() == [rows.start, cols.start, rows.stop, cols.stop]
        y, x = np.argwhere(expected == k + 1)[0]
        assert found.first[k].tolist() == [y, x]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.booleans())
def test_halves_joined_are_the_whole(seed: int, cut: int, eight: bool) -> None:
    above = pattern(seed, (21, 13))
    left, n = label(np.ascontiguousarray(above[:, :cut]), eight)
    right, m = label(np.ascontiguousarray(above[:, cut:]), eight)
    pairs = seam_pairs(left[:, -1], np.where(right[:, 0] > 0, right[:, 0] + n, 0), eight)
    root = join(pairs - 1, n + m)
    both = np.concatenate([left, np.where(right > 0, right + n, 0)], 1)
    joined = np.where(both > 0, np.concatenate([[0], root + 1])[both], 0)
    expected, count = ndimage.label(above, CORNERS[eight])
    assert len(np.unique(root)) == count
    # one to one
    assert len({(a, b) for a, b in zip(joined.ravel().tolist(), expected.ravel().tolist(), strict=True)}) <= count + 1
    assert ((joined > 0) == (expected > 0)).all()


@pytest.mark.parametrize("eight", [True, False])
def test_corners(eight: bool) -> None:
    pairs = seam_pairs(np.array([1, 0, 0], np.int32), np.array([0, 2, 0], np.int32), eight)
    assert pairs.tolist() == ([[1, 2]] if eight else [])


def test_relabelling_is_in_place() -> None:
    labels = np.array([[0, 1], [2, 1]], np.int32)
    relabel(labels, np.array([0, 7, 0], np.int32))
    assert labels.tolist() == [[0, 7], [0, 7]]
