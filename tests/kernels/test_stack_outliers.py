"""Outliers of a stack against one loop over pixels, written from the specification (others §3.2)."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from streamimg3.kernels.dq_match import Planes
from streamimg3.kernels.stack_outliers import Cut, flag_outliers, good_median

F4 = NDArray[np.float32]


def scene(nint: int = 5, shape: tuple[int, int] = (12, 14), seed: int = 3) -> Planes:
    rng = np.random.default_rng(seed)
    sci, err = (rng.normal(mean, 0.1, (nint, *shape)).astype(np.float32) for mean in (2.0, 0.15))
    dq = rng.choice(np.array([0, 0, 0, 0, 1, 4, 5], np.uint32), sci.shape)
    sci[rng.random(sci.shape) < 0.05] += 3
    for plane in (sci, err):
        plane[rng.random(sci.shape) < 0.05] = np.nan
    sci[:, 0, :3], sci[-1, 1, 1], err[-1, 2, 2] = np.nan, np.inf, np.inf
    return Planes(sci, dq, err, var_rnoise=np.full_like(sci, 0.01))


@pytest.mark.parametrize(
    "cut", [Cut(), Cut(snr=2.0), Cut(bad=0), Cut(bad=5), Cut(maskpt=0.0), Cut(maskpt=1.0), Cut(maskpt=1.2)]
)
@pytest.mark.parametrize("nint", [1, 4, 5])
def test_every_pixel(cut: Cut, nint: int) -> None:
    planes, before = scene(nint), scene(nint)
    assert before.err is not None and planes.err is not None
    found = flag_outliers(planes, cut)
    for j, i in np.ndindex(before.sci.shape[1:]):
        sci, err, dq = before.sci[:, j, i], np.nan_to_num(before.err[:, j, i]), before.dq[:, j, i]
        weight = ((dq & cut.bad) == 0).astype(np.float32)
        taken = sci[(weight >= cut.maskpt) & ~np.isnan(sci)]
        median = np.median(taken) if taken.size else np.float32(np.nan)
        with np.errstate(invalid="ignore", over="ignore"):
            outlier = np.abs(sci - median) > np.float32(cut.snr) * err
        np.testing.assert_array_equal(found.median[j, i], median)
        np.testing.assert_array_equal(found.outliers[:, j, i], outlier)
        invalid = outlier | np.isnan(sci) | np.isnan(before.err[:, j, i]) | ((dq & 1) > 0)
        np.testing.assert_array_equal(planes.dq[:, j, i], dq | np.where(outlier, 17, 0) | invalid)
        np.testing.assert_array_equal(planes.sci[:, j, i], np.where(invalid, np.float32(np.nan), sci))
        np.testing.assert_array_equal(np.isnan(planes.err[:, j, i]), invalid)
        np.testing.assert_array_equal(np.isnan(planes.variances[0][:, j, i]), invalid)
    assert nint == 1 or found.outliers.any() or cut.maskpt > 1


def test_windows_give_the_same_pixels() -> None:
    whole, left, right = scene(), scene(), scene()
    flag_outliers(whole, Cut())
    for planes, columns in ((left, slice(0, 5)), (right, slice(5, 14))):
        part = Planes(*(np.ascontiguousarray(p[..., columns]) for p in (planes.sci, planes.dq, planes.err)))
        flag_outliers(part, Cut())
        np.testing.assert_array_equal(part.dq, whole.dq[..., columns])
        np.testing.assert_array_equal(part.sci, whole.sci[..., columns])


def test_the_stack_is_left_alone() -> None:
    planes = scene()
    before = planes.sci.copy()
    good_median(planes.sci, planes.dq, Cut())
    np.testing.assert_array_equal(planes.sci, before)


def test_without_errors_nothing_is_flagged() -> None:
    planes = scene()
    planes.err = None
    assert not flag_outliers(planes, Cut()).outliers.any()
