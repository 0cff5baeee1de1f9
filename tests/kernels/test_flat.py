"""Flat-fielding against recorded pixels of the reference and against loops in single precision (spec others §1.4)."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamimg3.kernels.dq_match import Planes
from streamimg3.kernels.flat import NO_FLAT_FIELD, Flat, apply_flat, prepare_flat

UNRELIABLE = 1 << 25
f4 = np.float32


def image(*values: float) -> np.ndarray:
    return np.array([values], np.float32)


# jwst 3.0.0: SCI, VAR_POISSON, VAR_RNOISE; flat, its error; SCI, ERR, VAR_POISSON, VAR_RNOISE, VAR_FLAT
RECORDED = [
    ((-0.04575914, 0.0024655634, 0.00017153563), (0.985946, 0.0023079568),
     (-0.046411406, 0.052084804, 0.0025363541, 0.00017646073, 1.1803167e-08)),
    ((0.030823827, 0.002481668, 0.0001613948), (0.95751464, 0.0038208177),
     (0.032191493, 0.053691998, 0.0027067792, 0.00017603485, 1.6500762e-08)),
]  # fmt: skip
RECORDED_INVERSE = (
    (0.5310362, 0.0024646996, 0.00018083198), (0.9760529, 0.0012693155),
    (0.5183194, 0.050203018, 0.002348068, 0.00017227487, 0.0),
)  # fmt: skip


@pytest.mark.parametrize(
    ("pixel", "flat", "result", "inverse"), [(*case, False) for case in RECORDED] + [(*RECORDED_INVERSE, True)]
)
def test_recorded_pixels(
    pixel: tuple[float, ...], flat: tuple[float, ...], result: tuple[float, ...], inverse: bool
) -> None:
    sci, poisson, read = (image(v) for v in pixel)
    planes = Planes(sci, np.zeros((1, 1), np.uint32), image(99.0), poisson, read)
    assert apply_flat(planes, prepare_flat(image(flat[0]), image(flat[1]), None), inverse) == ()
    assert [plane[0, 0] for plane in planes.numbers] == [f4(v) for v in result]


def test_flags_of_the_flat_field() -> None:
    """NaN and 0 get both flags, NO_FLAT_FIELD alone gets the other one; what is flagged divides by 1."""
    flat = image(np.nan, 0.0, 1.1, 1.2, 1.3, np.nan)
    flags = np.array([[0, 2, NO_FLAT_FIELD, UNRELIABLE, 1, NO_FLAT_FIELD]], np.uint32)
    given_flat, given_flags = flat.copy(), flags.copy()
    found = prepare_flat(flat, image(*[0.1] * 6), flags)
    np.testing.assert_array_equal(found.sci, image(1, 1, 1, 1.2, 1, 1))
    both = NO_FLAT_FIELD | 1
    np.testing.assert_array_equal(found.dq, np.array([[both, both | 2, both, UNRELIABLE, 1, both]], np.uint32))
    np.testing.assert_array_equal(flat, given_flat)
    np.testing.assert_array_equal(flags, given_flags)


def test_flat_without_errors_and_flags() -> None:
    found = prepare_flat(image(2.0, 0.0), None, None)
    assert not found.err.any() and found.dq.tolist() == [[0, NO_FLAT_FIELD | 1]]


def scene(seed: int, shape: tuple[int, ...]) -> tuple[Planes, Flat]:
    rng = np.random.default_rng(seed)
    sci = rng.normal(0.5, 2.0, shape).astype(np.float32)
    poisson, read = rng.uniform(1e-4, 1e-2, (2, *shape)).astype(np.float32)
    flat, error = rng.uniform(0.5, 1.5, shape[-2:]), rng.uniform(0.0, 0.01, shape[-2:])
    for plane in (sci, poisson, read, error):
        plane[rng.random(plane.shape) < 0.05] = np.nan
    for value in (np.nan, 0.0):
        flat[rng.random(flat.shape) < 0.05] = value
    dq, fdq = (
        rng.choice(np.array([0, 0, 0, 0, 1, 4, UNRELIABLE, NO_FLAT_FIELD], np.uint32), s) for s in (shape, shape[-2:])
    )
    planes = Planes(sci, dq, np.ones(shape, np.float32), poisson, read)
    return planes, prepare_flat(flat.astype(np.float32), error.astype(np.float32), fdq)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), inverse=st.booleans(), cube=st.booleans())
def test_every_pixel_by_itself(seed: int, inverse: bool, cube: bool) -> None:
    planes, flat = scene(seed, (2, 5, 4) if cube else (5, 4))
    before = copy.deepcopy(planes)
    apply_flat(planes, flat, inverse)
    assert before.var_poisson is not None and before.var_rnoise is not None
    for at in np.ndindex(before.sci.shape):
        f, e, q = flat.sci[at[-2:]], flat.err[at[-2:]], flat.dq[at[-2:]]
        s, p, r = before.sci[at], before.var_poisson[at], before.var_rnoise[at]
        s, p, r = (s * f, p * (f * f), r * (f * f)) if inverse else (s / f, p / (f * f), r / (f * f))
        v = f4(0) if inverse else s * s / (f * f) * (e * e)
        wanted = np.array([s, np.sqrt(p + r + v), p, r, v])
        assert wanted.dtype == np.float32
        dq = before.dq[at] | q
        if dq & 1 or np.isnan(wanted).any():
            wanted[:], dq = np.nan, dq | 1
        np.testing.assert_array_equal([plane[at] for plane in planes.numbers], wanted)
        assert planes.dq[at] == dq


def test_inverse_restores_the_image() -> None:
    planes, flat = scene(5, (40, 50))
    before = planes.sci.copy()
    apply_flat(planes, flat)
    apply_flat(planes, flat, inverse=True)
    good = np.isfinite(planes.sci)
    assert good.mean() > 0.4
    np.testing.assert_allclose(planes.sci[good], before[good], rtol=1e-6)


@pytest.mark.parametrize("missing", [(), ("var_rnoise",), ("var_poisson", "var_rnoise")])
def test_missing_variances_are_named(missing: tuple[str, ...]) -> None:
    planes, flat = scene(6, (8, 9))
    for name in missing:
        setattr(planes, name, None)
    assert apply_flat(planes, flat) == missing
    total = np.zeros((8, 9), np.float32)
    for variance in planes.variances:
        total += variance
    np.testing.assert_array_equal(planes.err, np.sqrt(total))
    assert len(planes.variances) == 3 - len(missing)


def test_flat_of_another_shape() -> None:
    """A row that NumPy would stretch is an error too."""
    planes, flat = scene(7, (8, 9))
    with pytest.raises(ValueError, match=r"flat field of shape \(1, 9\) for pixels of shape \(8, 9\)"):
        apply_flat(planes, Flat(*(plane[:1] for plane in flat)))
