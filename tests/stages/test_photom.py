"""The factor of photom, its keywords, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from streamimg3.errors import InputError
from streamimg3.stages import photom
from streamimg3.stages.calibrated_band import Planes

LINEAR = {"linear": {"t0": 59000.0, "lossperyear": 0.02}}


def test_without_tables_nothing_is_corrected_and_no_time_needed() -> None:
    assert photom.correction({}, None, "x") == 1.0


def test_a_loss_of_two_per_cent_a_year() -> None:
    """Half a year later; the arithmetic is in single precision."""
    assert photom.correction(LINEAR, 59182.5, "x") == pytest.approx(0.99, rel=1e-6)


@pytest.mark.parametrize("day", [None, math.nan, math.inf])
def test_a_missing_time_is_named(day: float | None) -> None:
    with pytest.raises(InputError, match=r"jw_rate\.fits: has no EXPMID.*apply_time_correction"):
        photom.correction(LINEAR, day, "jw_rate.fits")


def test_a_response_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="response of"):
        photom.correction({"linear": {"t0": 0.0, "lossperyear": 1.0}}, 59182.5, "x")


def test_keywords_are_those_of_the_factor() -> None:
    assert photom.keywords(2.5, 1.0) == {
        "PHOTMJSR": 2.5,
        "PHOTUJA2": float(np.float32(2.5) * np.float32(23.50443053909789)),
    }
    assert photom.keywords(2.5, 0.5)["PHOTMJSR"] == 5.0


def test_there_and_back() -> None:
    ones = np.ones((3, 3), np.float32)
    planes = Planes(ones * 7, np.zeros((3, 3), np.uint32), ones.copy(), ones.copy())
    photom.apply(planes, 2.5, 0.97, inverse=False)
    assert planes.var_poisson is not None and planes.var_poisson[0, 0] == pytest.approx((2.5 / 0.97) ** 2, rel=1e-6)
    photom.apply(planes, 2.5, 0.97, inverse=True)
    np.testing.assert_allclose(planes.sci, 7.0, rtol=1e-6)


def test_source_types_are_known() -> None:
    with pytest.raises(InputError, match=r"photom\.source_type = 'BOTH'"):
        photom.Params(source_type="BOTH")
