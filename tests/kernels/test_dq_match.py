"""Invalid pixels against one loop over pixels, written from the specification (others §0.2)."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from streamimg3.kernels.dq_match import Planes, match

NAMES = ("sci", "err", "var_poisson", "var_rnoise", "var_flat")


def scene(seed: int, present: set[str], shape: tuple[int, ...] = (5, 6)) -> Planes:
    rng = np.random.default_rng(seed)
    planes = {name: rng.normal(0.0, 3.0, shape).astype(np.float32) for name in NAMES if name in present | {"sci"}}
    for plane in planes.values():
        plane[rng.random(shape) < 0.1] = np.nan
        plane[rng.random(shape) < 0.05] = np.inf  # a number like any other
    return Planes(dq=rng.choice(np.array([0, 0, 0, 1, 2, 5, 1 << 31], np.uint32), shape), **planes)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), present=st.sets(st.sampled_from(NAMES)))
def test_invalid_in_one_plane_is_invalid_in_all(seed: int, present: set[str]) -> None:
    planes, before = scene(seed, present), scene(seed, present)
    found = match(planes)
    assert [getattr(planes, name) is None for name in NAMES] == [getattr(before, name) is None for name in NAMES]
    for at in np.ndindex(planes.sci.shape):
        bad = any(math.isnan(plane[at]) for plane in before.numbers) or bool(before.dq[at] & 1)
        assert found[at] == bad
        assert planes.dq[at] == before.dq[at] | bad
        for now, then in zip(planes.numbers, before.numbers, strict=True):
            assert math.isnan(now[at]) if bad else now[at] == then[at]


def test_planes_of_another_shape_take_no_part() -> None:
    """A plane of a cube beside planes of images, or flags of an image beside a cube, are left as they are."""
    planes = scene(3, set(), (2, 4, 4))
    planes.err = np.full((4, 4), np.nan, np.float32)
    planes.dq = np.ones((4, 4), np.uint32)
    nan = np.isnan(planes.sci)
    np.testing.assert_array_equal(match(planes), nan)
    assert planes.dq.all() and np.isnan(planes.err).all()
    np.testing.assert_array_equal(np.isnan(planes.sci), nan)
