"""Parameters of bkg_subtract, and the mean of backgrounds that lie elsewhere on the detector."""

from __future__ import annotations

import numpy as np
import pytest

from streamimg3.errors import InputError
from streamimg3.stages import bkg_subtract
from streamimg3.stages.bkg_subtract import Params, Piece
from streamimg3.stages.calibrated_band import Planes


def piece(value: float, corner: tuple[int, int], shape: tuple[int, ...] = (4, 6), flag: int = 0) -> Piece:
    """A background of one value, error 0.5."""
    return Piece(
        np.full(shape, value, np.float32), np.full(shape, 0.5, np.float32), np.full(shape, flag, np.uint32), corner
    )


@pytest.mark.parametrize(
    ("name", "value"), [("sigma", 0.0), ("sigma", float("nan")), ("sigma", -3.0), ("maxiters", -1)]
)
def test_values_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"bkg_subtract\.{name} = {value}"):
        Params(**{name: value})  # type: ignore[arg-type]


def test_the_mean_is_taken_where_backgrounds_are() -> None:
    """Each pixel counts the backgrounds that cover it; ERR is the root of the sum of squares over their number."""
    mean = bkg_subtract.mean_of(
        [piece(1.0, (10, 20)), piece(3.0, (12, 20), flag=4), None], (10, 20), (4, 6), Params().clip
    )
    assert np.array_equal(mean.sci[:2], np.full((2, 6), 1.0, np.float32))
    assert np.array_equal(mean.sci[2:], np.full((2, 6), 2.0, np.float32))
    assert mean.err[0, 0] == np.float32(0.5) and mean.err[3, 0] == np.float32(np.sqrt(0.5) / 2)
    assert np.array_equal(mean.dq[:, 0], [0, 0, 4, 4])


def test_a_band_is_part_of_the_whole() -> None:
    rng = np.random.default_rng(3)
    pieces = [Piece(rng.normal(size=(5, 12, 7)).astype("f4"), np.ones((5, 12, 7), "f4"), np.zeros((5, 12, 7), "u4"), (0, 0))
              for _ in range(6)]  # fmt: skip
    whole = bkg_subtract.mean_of(pieces, (0, 0), (12, 7), Params().clip)
    cut = [Piece(p.sci[:, 5:8], p.err[:, 5:8], p.dq[:, 5:8], (5, 0)) for p in pieces]
    band = bkg_subtract.mean_of(cut, (5, 0), (3, 7), Params().clip)
    assert np.array_equal(whole.sci[5:8], band.sci) and np.array_equal(whole.err[5:8], band.err)


def test_only_counts_and_flags_change() -> None:
    ones = np.ones((4, 6), np.float32)
    planes = Planes(ones * 5, np.full((4, 6), 2, np.uint32), ones.copy(), ones.copy(), ones.copy())
    bkg_subtract.apply(planes, bkg_subtract.mean_of([piece(2.0, (0, 0), flag=4)], (0, 0), (4, 6), Params().clip))
    assert (planes.sci == 3).all() and (planes.dq == 6).all()
    assert planes.err is not None and (planes.err == 1).all() and all((v == 1).all() for v in planes.variances)


def test_more_backgrounds_and_integrations_want_more_memory() -> None:
    assert bkg_subtract.memory(100, 4, 1) < bkg_subtract.memory(100, 8, 1) < bkg_subtract.memory(100, 8, 50)
