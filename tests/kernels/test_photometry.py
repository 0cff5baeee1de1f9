"""The photometric factor against the reference's numbers, and its multiplication in either precision (others §1.5)."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from streamimg3.kernels.dq_match import Planes
from streamimg3.kernels.photometry import (
    Change,
    Exponential,
    Factor,
    Linear,
    PowerLaw,
    conversion,
    convert,
    per_square_arcsec,
    time_correction,
)

DAY = 59900.0006
LINEAR = Linear(59700.0, 0.011)
EXPONENTIAL = Exponential(59650.0, 0.12, 250.0, 0.9)
POWER_LAW = PowerLaw(59520.0, 0.93, 12.0, -0.045)

# jwst 3.0.0: PHOTMJSR of the reference file, coefficients; PHOTMJSR and PHOTUJA2 of the product
RECORDED = [
    (2.5, (), 2.5, 58.761077880859375),
    (2.5, (LINEAR,), 2.5151598758774014, 59.11740059728645),
    (0.31, (EXPONENTIAL,), 0.3283392254345339, 7.717426517487206),
    (0.31, (POWER_LAW,), 0.3339191059771024, 7.8485784321164695),
    (0.27, (LINEAR, EXPONENTIAL), 0.28770700829351453, 6.762389392046573),
    (2.5, (LINEAR, EXPONENTIAL, POWER_LAW), 2.8695000727697293, 67.44596514235243),
]


@pytest.mark.parametrize(("photmjsr", "changes", "mjsr", "uja2"), RECORDED)
def test_recorded_factors(photmjsr: float, changes: tuple[Change, ...], mjsr: float, uja2: float) -> None:
    """Equal, but for single precision exp and powers, whose last bit is the processor's: 2 ulp of a float32."""
    factor = conversion(photmjsr, time_correction(changes, DAY))
    exact = all(isinstance(change, Linear) for change in changes)
    tolerance = 0.0 if exact else 2.5e-7
    np.testing.assert_allclose(factor, mjsr, rtol=tolerance)
    np.testing.assert_allclose(per_square_arcsec(factor), uja2, rtol=tolerance)
    assert isinstance(factor, np.float64 if changes else np.float32)


def test_formulae() -> None:
    """In double precision, to what single precision days and coefficients leave."""
    t = DAY - 59000.0
    assert time_correction([], DAY) == 1.0
    wanted = 1 - 0.2 * t / 365
    assert time_correction([Linear(59000.0, 0.2)], DAY) == pytest.approx(wanted, rel=1e-5)
    wanted = 0.4 * np.exp(-t / 300.0) + 0.5
    assert time_correction([Exponential(59000.0, 0.4, 300.0, 0.5)], DAY) == pytest.approx(wanted, rel=1e-5)
    wanted = 0.8 * ((t + 30) / (365 + 30)) ** -0.3
    assert time_correction([PowerLaw(59000.0, 0.8, 30.0, -0.3)], DAY) == pytest.approx(wanted, rel=1e-5)


def test_a_year_after() -> None:
    """After a year a power law has its value of year 1, and a linear loss is the loss of a year."""
    assert time_correction([POWER_LAW], 59520.0 + 365.0) == np.float32(0.93)
    assert time_correction([LINEAR], 59700.0 + 365.0) == np.float32(1.0) - np.float32(0.011)


def test_a_factor_stays_single_unless_it_changes() -> None:
    assert isinstance(conversion(2.5, 1.0), np.float32)
    assert conversion(0.1, 0.5) == np.float64(np.float32(0.1)) / 0.5


def scene(seed: int, shape: tuple[int, ...] = (20, 30)) -> Planes:
    rng = np.random.default_rng(seed)
    planes = rng.uniform(-1.0, 5.0, (5, *shape)).astype(np.float32)
    planes[rng.random(planes.shape) < 0.03] = np.nan
    sci, *others = planes
    return Planes(sci, rng.choice(np.array([0, 0, 0, 1, 4], np.uint32), shape), *others)


@pytest.mark.parametrize("factor", [np.float32(0.31), np.float64(0.3283392254345339)])
@pytest.mark.parametrize("inverse", [False, True])
def test_precision_is_that_of_the_factor(factor: Factor, inverse: bool) -> None:
    planes = scene(1)
    before = copy.deepcopy(planes)
    convert(planes, factor, inverse)
    kind = type(factor)
    bad = np.isnan(before.numbers).any(axis=0) | ((before.dq & 1) != 0)
    for k, (now, then) in enumerate(zip(planes.numbers, before.numbers, strict=True)):
        power = factor if k < 2 else factor * factor
        wanted = then.astype(kind) / power if inverse else then.astype(kind) * power
        np.testing.assert_array_equal(now, np.where(bad, np.nan, wanted).astype(np.float32))
        assert now.dtype == np.float32
    np.testing.assert_array_equal(planes.dq, before.dq | bad)
    assert bad.any() and not bad.all()


def test_single_and_double_differ() -> None:
    """Else the test above would show nothing."""
    one, two = scene(2), scene(2)
    convert(one, np.float32(0.31))
    convert(two, np.float64(np.float32(0.31)))
    assert not np.array_equal(one.variances, two.variances, equal_nan=True)


def test_inverse_restores_and_absent_planes_stay_absent() -> None:
    planes = Planes(scene(3, (2, 9, 9)).sci, np.zeros((2, 9, 9), np.uint32))
    before = planes.sci.copy()
    factor = conversion(2.5, time_correction([LINEAR], DAY))
    convert(planes, factor)
    convert(planes, factor, inverse=True)
    np.testing.assert_allclose(planes.sci, before, rtol=1e-6)
    assert planes.err is None and planes.variances == []
