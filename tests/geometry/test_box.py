"""The algebra of boxes, against sets of pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamimg3.geometry import Box

quick = settings(max_examples=60, deadline=None)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    """A box of at most 12 by 12 pixels near the origin, negative coordinates too."""
    y0, x0 = draw(st.integers(-15, 15)), draw(st.integers(-15, 15))
    return Box(y0, x0, y0 + draw(st.integers(1, 12)), x0 + draw(st.integers(1, 12)))


def pixels(box: Box | None) -> set[tuple[int, int]]:
    """Every pixel of a box."""
    if box is None:
        return set()
    return {(y, x) for y in range(box.y0, box.y1) for x in range(box.x0, box.x1)}


@quick
@given(a=boxes(), b=boxes())
def test_intersection_holds_the_common_pixels(a: Box, b: Box) -> None:
    assert pixels(a.intersect(b)) == pixels(a) & pixels(b)
    assert a.intersect(b) == b.intersect(a)


@quick
@given(a=boxes(), b=boxes())
def test_union_is_the_smallest_box_around_both(a: Box, b: Box) -> None:
    both = a.union(b)
    assert both == b.union(a)
    assert both.intersect(a) == a and both.intersect(b) == b
    # Every side of it touches one of the two: none can move inwards.
    ys, xs = zip(*(pixels(a) | pixels(b)), strict=True)
    assert both.as_tuple() == (min(ys), min(xs), max(ys) + 1, max(xs) + 1)


@quick
@given(a=boxes(), dy=st.integers(-30, 30), dx=st.integers(-30, 30))
def test_shift_moves_every_pixel(a: Box, dy: int, dx: int) -> None:
    assert pixels(a.shift(dy, dx)) == {(y + dy, x + dx) for y, x in pixels(a)}
    assert a.shift(dy, dx).shift(-dy, -dx) == a


@quick
@given(a=boxes(), n=st.integers(0, 5))
def test_grow_adds_a_border(a: Box, n: int) -> None:
    grown = a.grow(n)
    assert grown.shape == (a.shape[0] + 2 * n, a.shape[1] + 2 * n)
    assert grown.grow(-n) == a
    assert grown.intersect(a) == a


@quick
@given(a=boxes(), b=boxes())
def test_within_cuts_the_same_pixels_out_of_an_array(a: Box, b: Box) -> None:
    outer = a.union(b)
    rows, cols = np.mgrid[outer.y0 : outer.y1, outer.x0 : outer.x1]
    cut = a.within(outer)
    assert set(zip(rows[cut].ravel().tolist(), cols[cut].ravel().tolist(), strict=True)) == pixels(a)


@quick
@given(a=boxes())
def test_shape_and_size_count_pixels(a: Box) -> None:
    assert a.size == len(pixels(a)) == a.shape[0] * a.shape[1]
    assert Box(*a.as_tuple()) == a


def test_slices_cut_from_the_origin() -> None:
    array = np.arange(20).reshape(4, 5)
    assert array[Box(1, 2, 3, 4).slices].tolist() == [[7, 8], [12, 13]]
    assert array[Box.of_shape((4, 5)).slices].size == 20


@pytest.mark.parametrize("limits", [(0, 0, 0, 1), (0, 0, 1, 0), (3, 0, 2, 5), (0, 5, 2, 3)])
def test_an_empty_box_is_refused(limits: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="empty box"):
        Box(*limits)
