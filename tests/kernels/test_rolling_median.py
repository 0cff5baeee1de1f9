"""Rolling medians against NumPy's medians of every window; clipping against astropy's (spec others §2.2)."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamimg3.errors import InputError
from streamimg3.kernels.rolling_median import (
    QUARTILES,
    Window,
    clip_series,
    outliers,
    rolling_median,
    rolls,
)

f4 = np.float32


def cube(count: int, seed: int = 3, holes: float = 0.02) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.normal(0.0, 1.0, (count, 5, 7)).astype(f4)
    values = np.where(rng.random(values.shape) < 0.3, np.round(values), values)  # equal values in a window
    values[rng.random(values.shape) < holes] = np.nan
    values[rng.random(values.shape) < 0.01] = np.inf
    values[rng.random(values.shape) < 0.01] = -np.inf
    return values.astype(f4)


def windows(values: np.ndarray, width: int, aware: bool) -> np.ndarray:
    """Median of every integration's window in double precision; the reference's rule for the ends, said in slices."""
    middle = np.nanmedian if aware else np.median
    count, half = len(values), width // 2
    found = np.full(values.shape, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for start in range(count - width + 1):
            found[start + half] = middle(values[start : start + width].astype(np.float64), axis=0)
    found[:half] = found[half]
    found[count - width + half + 1 :] = found[count - width + half]
    return found


@pytest.mark.parametrize("aware", [False, True])
@pytest.mark.parametrize("width", [2, 3, 4, 5, 24, 25])
def test_every_window(width: int, aware: bool) -> None:
    values = cube(31)
    found = rolling_median(values, None, Window(width, 31, aware), (0, 31)).median
    np.testing.assert_array_equal(found, windows(values, width, aware))


def test_pixels_without_number_spread_only_where_they_are_not_left_out() -> None:
    values = cube(12, holes=0.0)
    values[6, 2, 3] = np.nan
    plain = rolling_median(values, None, Window(5, 12), (0, 12)).median
    aware = rolling_median(values, None, Window(5, 12, aware=True), (0, 12)).median
    assert np.flatnonzero(np.isnan(plain[:, 2, 3])).tolist() == [4, 5, 6, 7, 8]
    assert not np.isnan(aware[:, 2, 3]).any()


def test_bad_pixels_are_not_numbers() -> None:
    values = cube(20, holes=0.0)
    bad = np.random.default_rng(8).random(values.shape) < 0.1
    blank = np.where(bad, f4(np.nan), values)
    for aware in (False, True):
        window = Window(6, 20, aware)
        np.testing.assert_array_equal(
            rolling_median(values, bad, window, (0, 20)).median, rolling_median(blank, None, window, (0, 20)).median
        )


def test_the_references_windows_of_two() -> None:
    values = cube(9, holes=0.0)
    window = Window(2, 9, compat=True)
    assert window.needed(0, 9) == (7, 9)
    found = rolling_median(values[7:], None, window, (0, 9)).median
    last = values[7:].astype(np.float64).mean(axis=0)
    np.testing.assert_array_equal(found, np.broadcast_to(last, found.shape))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_blocks_of_time_change_no_bit(data: st.DataObject) -> None:
    """Zeros of both signs too, of which a median might take either."""
    count = data.draw(st.integers(3, 40))
    width = data.draw(st.integers(2, count - 1))
    aware = data.draw(st.booleans())
    values = cube(count, seed=count)
    values[np.abs(values) < 0.5] *= f4(0.0)
    window = Window(width, count, aware)
    whole = rolling_median(values, None, window, (0, count), scatter=True)
    first = data.draw(st.integers(0, count - 1))
    last = data.draw(st.integers(first + 1, count))
    lo, hi = window.needed(first, last)
    assert hi - lo <= last - first + width - 1
    part = rolling_median(values[lo:hi], None, window, (first, last), scatter=True)
    assert part.scatter is not None and whole.scatter is not None
    assert part.median.tobytes() == whole.median[first:last].tobytes()
    assert part.scatter.tobytes() == whole.scatter[first:last].tobytes()


def test_many_pixels() -> None:
    """More pixels than are worked on at once, and not a multiple of them."""
    values = np.random.default_rng(2).normal(0.0, 1.0, (8, 37, 41)).astype(f4)
    found = rolling_median(values, None, Window(3, 8), (0, 8)).median
    np.testing.assert_array_equal(found, windows(values, 3, False))


def test_scatter_is_the_distance_of_the_quartiles() -> None:
    values = np.random.default_rng(4).normal(5.0, 2.0, (40, 6, 6)).astype(f4)
    values[np.random.default_rng(5).random(values.shape) < 0.1] = np.nan
    window = Window(20, 40, aware=True)
    lo, hi = window.needed(10, 12)
    found = rolling_median(values[lo:hi], None, window, (10, 12), scatter=True)
    assert found.scatter is not None
    low, high = np.nanpercentile(values[0:20].astype(np.float64), [25, 75], axis=0)
    np.testing.assert_allclose(found.scatter[0], (high - low) / QUARTILES, rtol=1e-6)


def test_windows_that_do_not_fit() -> None:
    assert rolls(25, 26) and not rolls(25, 25) and not rolls(1, 10)
    with pytest.raises(InputError, match=r"rolling_window_width = 25.*less than the number of integrations"):
        Window(25, 25)
    with pytest.raises(InputError, match="need 0 to 5, not 4"):
        rolling_median(cube(4), None, Window(3, 9), (0, 5))


def test_flags() -> None:
    sci = np.array([6.0, 5.0, 5.1, 0.5, np.nan, 9.0], f4).reshape(1, 1, 6)
    err = np.array([1.0, 1.0, 1.0, np.nan, 1.0, 1.0], f4).reshape(1, 1, 6)
    median = np.array([0.0, 0.0, 0.0, 0.0, 0.0, np.nan]).reshape(1, 1, 6)
    assert outliers(sci, err, median, 5.0)[0, 0].tolist() == [True, False, True, True, False, False]
    assert outliers(sci, err, median[0].astype(f4), 5.0)[0, 0].tolist() == [True, False, True, True, False, False]
    scatter = np.full(sci.shape, 1.1, f4)
    assert outliers(sci, err, median, 5.0, scatter)[0, 0].tolist() == [True, False, False, False, False, False]


def test_rounding_of_flags() -> None:
    """A difference from a rolling median is exact, one from the median of all is rounded to single precision."""
    sci, err = np.full((1, 1, 1), 16777216.0, f4), np.full((1, 1, 1), 16777215.0 / 5, f4)
    threshold = float(f4(5.0) * err[0, 0, 0])
    median = np.full((1, 1, 1), float(sci[0, 0, 0]) - threshold - 0.25)
    assert outliers(sci, err, median, 5.0).all()
    assert not outliers(sci, err, (sci[0] - f4(threshold)).astype(f4), 5.0).any()


@pytest.mark.parametrize("rounds", [1, 2, None])
@pytest.mark.parametrize("sigma", [2.0, 3.0])
def test_clipping_is_astropys(sigma: float, rounds: int | None) -> None:
    from astropy.stats import sigma_clip

    rng = np.random.default_rng(11)
    values = rng.standard_t(2.0, (30, 8, 9)).astype(f4)
    values[rng.random(values.shape) < 0.05] = np.nan
    values[:, 0, 0] = np.nan
    values[:, 0, 1] = 7.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = sigma_clip(values.astype(np.float64), sigma, maxiters=rounds, axis=0).mask & ~np.isnan(values)
    np.testing.assert_array_equal(clip_series(values, sigma, rounds), expected)


def test_clipping_leaves_something() -> None:
    values = np.array([0.0, 1.0, np.inf, -np.inf], f4).reshape(4, 1, 1)
    assert clip_series(values, 0.5, None)[:, 0, 0].tolist() == [False, False, True, True]
