"""Sky levels: the reference's numbers, plain formulae, and no difference however the values are cut."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from streamimg3.kernels import sky_level as module
from streamimg3.kernels.sky_level import STATISTICS, Clipping, Pieces, histogram_bytes, sky_level

F4 = NDArray[np.float32]


def whole(values: F4) -> Pieces:
    return lambda: [values]


def sample(n: int) -> F4:
    """Near-normal values with some bright ones, from operations that round alike everywhere."""
    k = np.arange(n, dtype=np.uint64)
    factors = (2654435761, 2246822519, 3266489917)
    u = [((k * np.uint64(m)) % np.uint64(2**32)).astype(np.float64) / 2**32 for m in factors]
    sky = 0.3 + 0.1 * (u[0] + u[1] + u[2] - 1.5)
    return (sky + np.where(k % 97 == 0, 3.0 * u[0], 0.0)).astype(np.float32)


# what stsci.imagestats 1.8.4 gives for sample(20000)
USUAL, NARROW, UNCLIPPED = Clipping(), Clipping("mode", 0.25, 1.0, 2, 3.0, 2.0, 0.03), Clipping(nclip=0)
REFERENCE = [
    (USUAL, "mode", 0.2931677179038525, 19810), (NARROW, "mode", 0.28644388284372246, 15743),
    (UNCLIPPED, "mode", 0.30042559784135703, 20000), (USUAL, "median", 0.3000444769859314, 19810),
    (NARROW, "median", 0.30839622020721436, 15743), (UNCLIPPED, "median", 0.3006702661514282, 20000),
    (USUAL, "midpt", 0.29806039286777375, 19810), (NARROW, "midpt", 0.30838773396098984, 15743),
    (UNCLIPPED, "midpt", 0.30033031981438396, 20000), (USUAL, "mean", 0.30003976821899414, 19810),
    (NARROW, "mean", 0.310430109500885, 15743), (UNCLIPPED, "mean", 0.315728098154068, 20000),
]  # fmt: skip


@pytest.mark.parametrize(("how", "statistic", "level", "pixels"), REFERENCE)
def test_the_numbers_are_the_references_to_the_last_bit(
    how: Clipping, statistic: str, level: float, pixels: int
) -> None:
    clipping = Clipping(statistic, how.lower, how.upper, how.nclip, how.lsigma, how.usigma, how.binwidth)
    assert sky_level(whole(sample(20000)), clipping) == (level, pixels)


# ---------------------------------------------------------------- plain formulae
def in_order(values: NDArray[np.float64]) -> float:
    """Sum of doubles one after the other."""
    return float(np.add.accumulate(values)[-1])


def plain_clip(values: F4, c: Clipping) -> tuple[F4, float, float, tuple[np.float32, np.float32]]:
    """Kept values, mean, deviation and last limits as spec image3 §5.4 has them."""
    lower = values.min() if c.lower is None else np.float32(c.lower)
    upper = values.max() if c.upper is None else np.float32(c.upper)
    low, high = lower, upper
    for k in range(c.nclip + 1):
        kept = values[(values >= low) & (values <= high)]
        mean = np.float32(in_order(kept.astype(np.float64)) / kept.size)
        squares = in_order(((kept - mean) ** 2).astype(np.float64))
        std = np.float32(np.sqrt(squares / (kept.size - 1)))
        if k < c.nclip:
            low = np.float32(max(float(lower), float(mean) - c.lsigma * float(std)))
            high = np.float32(min(float(upper), float(mean) + c.usigma * float(std)))
    return kept, float(mean), float(std), (low, high)


@pytest.mark.parametrize("nclip", [0, 1, 5])
@pytest.mark.parametrize("count", [7, 1000, 1001])
def test_mean_and_median_are_the_plain_ones(count: int, nclip: int) -> None:
    values = sample(count) - np.float32(0.3)  # of both signs
    kept, mean, _, (low, high) = plain_clip(values, Clipping(nclip=nclip))
    assert sky_level(whole(values), Clipping("mean", nclip=nclip)) == (mean, kept.size)
    middle = values[(values >= low) & (values <= high)] if nclip else values
    assert sky_level(whole(values), Clipping("median", nclip=nclip)) == (float(np.median(middle)), kept.size)


@given(arrays(np.float32, st.integers(1, 40), elements=st.floats(-(2.0**90), 2.0**90, width=32)))
@settings(max_examples=100, deadline=None)
def test_the_median_is_numpys_for_any_numbers(values: F4) -> None:
    found = sky_level(whole(values), Clipping("median", nclip=0))
    with np.errstate(over="ignore"):
        expected = float(np.median(values))
    assert (found is None and not math.isfinite(expected)) or (found is not None and found[0] == expected)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_level_close_to_the_true_sky(statistic: str) -> None:
    """Noise 0.05 / sqrt(20000) = 0.0004 for mean and median; the mode of bins of 0.1 sigma is good to 0.01."""
    level, _ = sky_level(whole(sample(20000)), Clipping(statistic)) or (math.nan, 0)
    assert level == pytest.approx(0.3, abs=0.01)


# ---------------------------------------------------------------- pieces
@given(cuts=st.lists(st.integers(0, 3000), max_size=6), statistic=st.sampled_from(STATISTICS), nclip=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_pieces_make_no_difference(cuts: list[int], statistic: str, nclip: int) -> None:
    values, clipping = sample(3000), Clipping(statistic, nclip=nclip)
    pieces = np.split(values, sorted(cuts))
    assert sky_level(lambda: iter(pieces), clipping) == sky_level(whole(values), clipping)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_the_fast_sums_give_what_the_slow_ones_give(statistic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = sample(100_000)
    fast = sky_level(whole(values), Clipping(statistic))
    monkeypatch.setattr(module, "_DOUBT", math.inf)  # now every sum is made one value after the other
    assert sky_level(whole(values), Clipping(statistic)) == fast


def test_a_sum_at_the_edge_of_a_rounding_is_made_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean lies exactly between two float32 numbers: the order of the sum could decide, so it must be the right one."""
    one, above = np.float32(1.0), np.nextafter(np.float32(1.0), np.float32(2.0))
    values = np.array([one, above] * 50, np.float32)
    calls: list[int] = []
    slow = module._in_order

    def counted(*args: Any) -> float:
        calls.append(1)
        return slow(*args)

    monkeypatch.setattr(module, "_in_order", counted)
    assert sky_level(whole(values), Clipping("mean", nclip=0)) == (float(one), 100)  # half to even
    assert calls


# ---------------------------------------------------------------- nothing to measure
@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize(
    ("values", "lower", "upper"),
    [([], None, None), ([1.0, 2.0], 3.0, None), ([1.0, 2.0], None, 0.5), ([1.0, 2.0, 9.0], 4.0, 3.0), ([1.0, 9.0], 3.0, 4.0)],
)  # fmt: skip
def test_no_level_without_values_within_the_limits(
    values: list[float], lower: float | None, upper: float | None, statistic: str
) -> None:
    pieces = whole(np.array(values, np.float32))
    assert sky_level(pieces, Clipping(statistic, lower, upper)) is None


def test_one_pixel_has_a_mean_and_a_median_but_no_histogram() -> None:
    pieces = whole(np.array([2.5], np.float32))
    assert [sky_level(pieces, Clipping(s)) for s in ("mean", "median")] == [(2.5, 1)] * 2
    assert [sky_level(pieces, Clipping(s)) for s in ("mode", "midpt")] == [None] * 2


@pytest.mark.parametrize("statistic", STATISTICS)
def test_equal_values_are_their_own_level(statistic: str) -> None:
    assert sky_level(whole(np.full(50, 0.25, np.float32)), Clipping(statistic)) == (0.25, 50)


def test_a_histogram_keeps_to_its_bound() -> None:
    """One value far away from all others makes the range as large as it can be for its spread."""
    values = np.zeros(10_000, np.float32)
    values[5] = 1e6
    deviation = float(values.std(ddof=1))
    assert 8 * (1e6 / (0.1 * deviation)) < histogram_bytes(values.size, 0.1)
    assert sky_level(whole(values), Clipping("mode", nclip=0)) is not None
