"""KLIP in bands against the plain algebra of whole planes (spec others §3.5, §3.8)."""

from __future__ import annotations

from functools import reduce
from itertools import pairwise
from operator import add

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamimg3.kernels.klip import Coefficients, Projection, Sums, accumulate, project, solve

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]


def scene(nref: int = 7, nint: int = 3, ny: int = 21, nx: int = 18, seed: int = 1) -> tuple[F4, F4]:
    """References and integrations: one star whose wings differ, noise, and a companion in the integrations."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:ny, :nx]
    r, angle = np.hypot(y - ny / 2, x - nx / 2), np.arctan2(y - ny / 2, x - nx / 2)
    waves = np.array([np.cos(k * angle + 0.3 * k) * np.cos(r / (1 + k)) for k in range(4)])

    def planes(count: int) -> F8:
        mix = 1 + 0.2 * rng.standard_normal((count, 4))
        return 100 * np.exp(-r / 6) * (3 + np.einsum("nk,kyx->nyx", mix, waves)) + 0.05 * rng.standard_normal(
            (count, ny, nx)
        )

    science = planes(nint) + 4 * np.exp(-((y - 5) ** 2 + (x - 4) ** 2) / 3)
    return planes(nref).astype(np.float32), science.astype(np.float32)


def whole(refs: F4, science: F4, truncate: int) -> tuple[F8, F8]:
    """Subtracted integrations and errors, with a singular value decomposition of the planes."""
    r = refs.astype(np.float64).reshape(len(refs), -1)
    t = science.astype(np.float64).reshape(len(science), -1)
    r -= r.mean(axis=1, keepdims=True)
    z = np.linalg.svd(r, full_matrices=False)[2][:truncate]
    err = (r - (r @ z.T) @ z).std(axis=0)
    return (t - t.mean(axis=1, keepdims=True) - (t @ z.T) @ z).reshape(science.shape), err.reshape(science.shape[1:])


def run(refs: F4, science: F4, truncate: list[int], mask: NDArray[np.bool_] | None = None) -> Projection:
    return project(refs, science, solve(accumulate(refs, science, mask), truncate), with_model=True)


# What pyKLIP 2.10.1 (klip_math) leaves of `scene`: by number of components the pixels PLACES, and the rms of all
PLACES = ((0, 0, 0), (0, 5, 4), (1, 10, 9), (2, 20, 17))
PYKLIP = {
    1: ((3.251188284, 9.814474323, 12.519521589, 4.452265021), 5.332651530528772),
    4: ((-0.145006389, 3.744301681, -2.089541004, 3.499930509), 3.555404536271767),
    6: ((-0.181853659, 3.735913083, -0.227862541, -0.159259403), 0.43417158305547315),
}


def test_recorded_values_of_pyklip() -> None:
    """1e-6 of the peak, which is the demand; 2e-9 was measured over all pixels."""
    refs, science = scene()
    peak = float(science.max())
    found = run(refs, science, list(PYKLIP)).subtracted
    for left, (values, rms) in zip(found, PYKLIP.values(), strict=True):
        np.testing.assert_allclose([left[place] for place in PLACES], values, rtol=0, atol=1e-6 * peak)
        assert float(np.sqrt((left.astype(np.float64) ** 2).mean())) == pytest.approx(rms, abs=1e-6 * peak)


@pytest.mark.parametrize("truncate", [0, 1, 4, 6, 7, 50])
def test_whole_planes(truncate: int) -> None:
    """Only the rounding of the result to single precision is left: 1e-6 of the peak is the demand, 1e-7 what it is."""
    refs, science = scene()
    found, (wanted, err) = run(refs, science, [truncate]), whole(refs, science, truncate)
    np.testing.assert_allclose(found.subtracted[0], wanted, rtol=0, atol=1e-7 * science.max())
    np.testing.assert_allclose(found.err[0], err, rtol=1e-6, atol=1e-12 * science.max())
    assert found.model is not None
    mean = science.mean(axis=(1, 2), keepdims=True, dtype=np.float64)
    np.testing.assert_allclose(found.model[0] + found.subtracted[0], science - mean, atol=2e-7 * science.max())


def test_all_numbers_of_components_at_once() -> None:
    refs, science = scene()
    together = run(refs, science, [6, 0, 50, 2, 2])
    assert together.model is not None
    for k, truncate in enumerate([6, 0, 50, 2, 2]):
        alone = run(refs, science, [truncate])
        # products of matrices of another shape may round otherwise
        np.testing.assert_allclose(together.subtracted[k], alone.subtracted[0], rtol=0, atol=2e-7 * science.max())
        np.testing.assert_allclose(together.err[k], alone.err[0], rtol=1e-6, atol=1e-12 * science.max())


@settings(max_examples=15, deadline=None)
@given(cuts=st.sets(st.integers(1, 20)), seed=st.integers(0, 9999), blind=st.booleans())
def test_no_bit_depends_on_the_bands(cuts: set[int], seed: int, blind: bool) -> None:
    refs, science = scene()
    if blind:
        refs[2, 4, 4] = science[1, 7, 3] = science[0, :3] = np.nan
    edges = [0, *sorted(cuts), refs.shape[1]]
    bands = [slice(a, b) for a, b in pairwise(edges)]
    sums = [accumulate(refs[:, band], science[:, band], None, band.start) for band in bands]
    shuffled = [sums[k] for k in np.random.default_rng(seed).permutation(len(sums))]
    found, wanted = solve(reduce(add, shuffled, Sums()), [3]), solve(accumulate(refs, science), [3])
    for name in ("vectors", "amplitudes", "mean", "science", "strengths"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    one = project(refs, science, wanted)
    for band in bands:
        part = project(refs[:, band], science[:, band], found)
        np.testing.assert_array_equal(part.subtracted, one.subtracted[:, :, band])
        np.testing.assert_array_equal(part.err, one.err[:, band])


def test_a_large_level_makes_no_difference() -> None:
    """A level of 1.6e4 under a star of 300 goes with the means."""
    refs, science = (planes.astype(np.float64) for planes in scene())
    level = 2.0**14
    refs, science = (np.float32(level + planes) - np.float32(level) for planes in (refs, science))
    wanted = run(refs.astype(np.float32), science.astype(np.float32), [4])
    found = run((refs + level).astype(np.float32), (science + level).astype(np.float32), [4])
    np.testing.assert_allclose(found.subtracted, wanted.subtracted, rtol=0, atol=1e-7 * science.max())


def test_masked_pixels_take_no_part() -> None:
    """Components of a region are those of the region by itself; the rest is treated with them."""
    refs, science = scene()
    mask = np.zeros(refs.shape[1:], np.bool_)
    mask[3:15, 2:16] = True
    inside = (slice(None), slice(3, 15), slice(2, 16))
    found, alone = run(refs, science, [3], mask), run(refs[inside], science[inside], [3])
    np.testing.assert_allclose(found.subtracted[0][inside], alone.subtracted[0], rtol=0, atol=1e-7 * science.max())
    np.testing.assert_allclose(found.err[0][inside[1:]], alone.err[0], rtol=1e-6)
    assert np.isfinite(found.subtracted).all() and np.isfinite(found.err).all()


def test_a_missing_pixel_of_a_reference() -> None:
    """It is left out of everything, and everything else is as if it had been masked."""
    refs, science = scene()
    mask = np.ones(refs.shape[1:], np.bool_)
    mask[4, 5] = False
    wanted = run(refs, science, [3], mask)
    refs[2, 4, 5] = np.nan
    found = run(refs, science, [3])
    assert np.isnan(found.subtracted[:, :, 4, 5]).all() and np.isnan(found.err[:, 4, 5]).all()
    np.testing.assert_array_equal(found.subtracted[..., mask], wanted.subtracted[..., mask])


def test_a_missing_pixel_of_an_integration() -> None:
    """It is as good as the mean of the others, and costs the other integrations nothing."""
    refs, science = scene()
    whole_planes = run(refs, science, [3])
    science[1, 10, 9] = science[1, 3] = np.nan
    found = run(refs, science, [3])
    there = np.isfinite(science[1])
    np.testing.assert_array_equal(np.isnan(found.subtracted[0, 1]), ~there)
    np.testing.assert_allclose(
        found.subtracted[0, [0, 2]], whole_planes.subtracted[0, [0, 2]], atol=1e-7 * science[0].max()
    )
    filled = science.astype(np.float64)
    filled[1, ~there] = filled[1, there].mean()
    r = refs.astype(np.float64).reshape(len(refs), -1)
    r -= r.mean(axis=1, keepdims=True)
    z = np.linalg.svd(r, full_matrices=False)[2][:3]
    t = (filled[1] - filled[1].mean()).ravel()
    wanted = (t - (t @ z.T) @ z).reshape(there.shape)
    np.testing.assert_allclose(found.subtracted[0, 1][there], wanted[there], rtol=0, atol=1e-7 * filled.max())


def test_one_reference() -> None:
    refs, science = scene(nref=1)
    found, (wanted, _) = run(refs, science, [50]), whole(refs, science, 50)
    np.testing.assert_allclose(found.subtracted[0], wanted, rtol=0, atol=1e-7 * science.max())
    assert (found.err == 0).all()


def test_equal_references_count_once() -> None:
    """What a copy adds is rounding, which is no component."""
    refs, science = scene()
    twice = np.concatenate([refs, refs[:3]])
    coefficients = solve(accumulate(twice, science), [4, 50])
    assert coefficients.kept == (4, 7)
    found, wanted = project(twice, science, coefficients), run(refs, science, [50])
    np.testing.assert_allclose(found.subtracted[1], wanted.subtracted[0], rtol=0, atol=1e-7 * science.max())


def test_nothing_is_left_when_there_is_nothing() -> None:
    refs, science = scene()
    refs[0] = np.nan
    coefficients = solve(accumulate(refs, science), [3])
    assert (coefficients.kept, coefficients.pixels) == ((0,), 0)
    assert np.isnan(project(refs, science, coefficients).subtracted).all()
    level = solve(accumulate(np.full_like(refs, 3.0), science), [3])
    assert level.kept == (0,)


def test_mistakes() -> None:
    refs, science = scene()
    band = accumulate(refs[:, 4:7], science[:, 4:7], None, 4)
    for again in (band, accumulate(refs[:, 5:6], science[:, 5:6], None, 5), accumulate(refs, science)):
        with pytest.raises(ValueError, match="added up before"):
            band + again
    with pytest.raises(ValueError, match="0 or more"):
        solve(band, [3, -1])
    with pytest.raises(ValueError, match="no rows"):
        solve(Sums(), [3])
    assert isinstance(solve(band, []), Coefficients)
