"""Pixels inside polygons: the rule of the reference row by row, unions, and the values picked from an image."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamimg3.kernels import scanline

Bools = NDArray[np.bool_]
Points = list[tuple[int, int]]


def mask(spans: scanline.I8, shape: tuple[int, int]) -> Bools:
    found = np.zeros(shape, bool)
    for y, x0, x1 in spans:
        found[y, x0:x1] = True
    return found


def plain(points: Points, shift: tuple[int, int], shape: tuple[int, int]) -> Bools:
    """Spec image3 §5.3 word by word: edges active from their lower end, the last row uses those of the row before."""
    found = np.zeros(shape, bool)
    ys, xs = [y for y, _ in points], [x for _, x in points]
    if max(xs) == min(xs):
        return found
    active: list[tuple[tuple[int, int], tuple[int, int]]] = []
    for row in range(min(ys), max(ys) + 1):
        if row < max(ys):
            edges = [(p, q) for p, q in pairwise(points) if p[0] != q[0]]
            active = [(p, q) for p, q in edges if min(p[0], q[0]) <= row < max(p[0], q[0])]
        crossings = sorted(math.ceil((row - p[0]) / (q[0] - p[0]) * (q[1] - p[1]) + p[1]) for p, q in active)
        y = row + shift[0]
        if 0 <= y < shape[0]:
            for start, end in zip(crossings[::2], crossings[1::2], strict=True):
                found[y, max(0, start + shift[1]) : max(0, end + shift[1] + 1)] = True
    return found


points = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=3, max_size=9)
shifts = st.tuples(st.integers(-12, 3), st.integers(-12, 3))
SHAPE = (20, 24)


@given(points, shifts)
@settings(max_examples=300, deadline=None)
def test_any_polygon_is_filled_by_the_rule(corners: Points, shift: tuple[int, int]) -> None:
    closed = [*corners, corners[0]]
    spans = scanline.inside(np.array(closed), shift, SHAPE)
    np.testing.assert_array_equal(mask(spans, SHAPE), plain(closed, shift, SHAPE))


@given(points, shifts)
@settings(max_examples=100, deadline=None)
def test_intervals_are_in_order_apart_and_in_the_image(corners: Points, shift: tuple[int, int]) -> None:
    spans = scanline.inside(np.array([*corners, corners[0]]), shift, SHAPE)
    assert (spans[:, 0] >= 0).all() and (spans[:, 0] < SHAPE[0]).all()
    assert (spans[:, 1] >= 0).all() and (spans[:, 1] < spans[:, 2]).all() and (spans[:, 2] <= SHAPE[1]).all()
    same = spans[1:, 0] == spans[:-1, 0]
    assert (spans[1:, 0] >= spans[:-1, 0]).all() and (spans[1:, 1] > spans[:-1, 2])[same].all()
    assert scanline.count(spans) == mask(spans, SHAPE).sum()


def test_a_rectangle_has_its_rows_and_columns_both_ends_included() -> None:
    spans = scanline.inside(np.array([(0, 0), (0, 4), (3, 4), (3, 0), (0, 0)]), (0, 0), (10, 10))
    assert spans.tolist() == [[0, 0, 5], [1, 0, 5], [2, 0, 5], [3, 0, 5]]


@pytest.mark.parametrize("corners", [[(2, 3), (2, 8), (2, 3)], [(2, 3), (8, 3), (2, 3)]])
def test_a_polygon_without_width_or_height_has_no_pixel(corners: Points) -> None:
    assert len(scanline.inside(np.array(corners), (0, 0), SHAPE)) == 0


@pytest.mark.parametrize("shift", [(0, -9), (0, 30), (-9, 0), (30, 0)])
def test_a_polygon_beside_the_image_has_no_pixel(shift: tuple[int, int]) -> None:
    """To the left of the image the reference's slice turns round and fills almost a whole row; not here."""
    corners = np.array([(0, 0), (0, 4), (5, 5), (0, 0)])
    assert len(scanline.inside(corners, shift, SHAPE)) == 0


def test_a_far_corner_costs_nothing() -> None:
    corners = np.array([(0, 0), (0, 10**9), (10**9, 0), (0, 0)])
    assert scanline.count(scanline.inside(corners, (0, 0), SHAPE)) == SHAPE[0] * SHAPE[1]


@given(st.lists(st.tuples(points, shifts), min_size=0, max_size=4))
@settings(max_examples=100, deadline=None)
def test_a_union_has_the_pixels_of_any(polygons: list[tuple[Points, tuple[int, int]]]) -> None:
    parts = [scanline.inside(np.array([*corners, corners[0]]), shift, SHAPE) for corners, shift in polygons]
    expected = np.any([np.zeros(SHAPE, bool), *(mask(p, SHAPE) for p in parts)], axis=0)
    np.testing.assert_array_equal(mask(scanline.union(parts), SHAPE), expected)


@given(corners=points, shift=shifts, cut=st.integers(1, SHAPE[0] - 1))
@settings(max_examples=100, deadline=None)
def test_values_are_gathered_row_by_row_without_those_that_do_not_count(
    corners: Points, shift: tuple[int, int], cut: int
) -> None:
    image = np.arange(SHAPE[0] * SHAPE[1], dtype=np.float32).reshape(SHAPE)
    image[3, 4:9] = np.nan
    image[5] = np.inf
    spans = scanline.inside(np.array([*corners, corners[0]]), shift, SHAPE)
    found = []
    for y0, y1 in ((0, cut), (cut, SHAPE[0])):
        part = scanline.within(spans, y0, y1)
        out = np.empty(scanline.count(part), np.float32)
        found.append(out[: scanline.gather(image[y0:y1], (y0, 0), part, out)])
    np.testing.assert_array_equal(np.concatenate(found), image[mask(spans, SHAPE) & np.isfinite(image)])


def test_everywhere_is_everywhere() -> None:
    assert mask(scanline.everywhere(SHAPE), SHAPE).all()


def test_crossings_that_are_whole_numbers_are_not_rounded_up() -> None:
    """A line through lattice points: the exact quotient decides, in doubles as in fractions."""
    corners = [(0, 0), (9, 27), (9, 60), (0, 60), (0, 0)]
    spans = scanline.inside(np.array(corners), (0, 0), (12, 80))
    assert spans[:9, 1].tolist() == [math.ceil(Fraction(27 * y, 9)) for y in range(9)]
