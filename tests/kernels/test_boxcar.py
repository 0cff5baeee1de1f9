"""Boxcar extraction against one column at a time with NumPy's least squares (spec others §2.5)."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from streamimg3.errors import InputError
from streamimg3.kernels.box_profile import (
    Box,
    Profile,
    background_profile,
    profile_wavelength,
    source_profile,
)
from streamimg3.kernels.boxcar import Background, Extraction, Sums, Variances, selected, smoothed
from streamimg3.kernels.spectrum_columns import ApertureTable, aperture_factors, calibrated, corrected

f4 = np.float32
NY, NX, N = 26, 31, 5
WAVELENGTH = np.broadcast_to(5.0 + 0.1 * np.arange(NX), (NY, NX)).copy()
BOX = Box(1, (8.0, 2.0), (15.0, 28.0), background=((1.5,), (6.5,), (18.5,), (23.5,)))


def pixels(seed: int = 2) -> tuple[np.ndarray, Variances]:
    rng = np.random.default_rng(seed)
    y = np.mgrid[:NY, :NX][0]
    sci = 3.0 + 0.2 * y + 0.01 * y**2 + 40 * np.exp(-((y - 11.3) ** 2) / 4) + rng.normal(0, 0.3, (N, NY, NX))
    planes = [rng.uniform(0.5, 1.5, sci.shape).astype(f4) for _ in range(3)]
    sci, low = sci.astype(f4), rng.random(sci.shape) < 0.04
    sci[low] = np.nan
    sci[rng.random(sci.shape) < 0.01] = np.inf
    planes[1][rng.random(sci.shape) < 0.03] = np.nan
    sci[1, :, 7] = np.nan  # nothing left
    sci[2, :8, 9] = sci[2, 17:, 9] = np.nan  # no background
    sci[3, 3:, 11] = np.nan  # two rows of background
    sci[3, :2, 11] = (1.0, 2.0)
    return sci, Variances(*planes)


def one_column(
    column: np.ndarray,
    variances: list[np.ndarray],
    profile: np.ndarray,
    used: np.ndarray,
    fit: str,
    order: int,
    raw: np.ndarray,
) -> dict[str, float | np.ndarray]:
    """Sums of one column; ``column`` may be smoothed, ``raw`` is not."""
    y = np.linspace(-1, 1, len(raw))
    count = used & np.isfinite(raw) & np.isfinite(sum(variances))
    matrix = np.vander(y, order + 1, increasing=True)
    share, level = np.zeros(len(raw)), np.zeros(len(raw))
    if fit == "median":
        some = used & ~np.isnan(column)
        level[:] = np.median(column[some]) if some.any() else np.nan
        if count.any():
            share[count] = 1.2 * profile.sum() / count.sum()
    elif count.any() and np.linalg.cond(matrix[count].T @ matrix[count]) < 1e10:
        solve = np.linalg.pinv(matrix[count])
        level = matrix @ (solve @ column[count])
        share[count] = (profile @ matrix) @ solve
    value = raw - level
    weight = np.where(np.isfinite(value), profile, 0.0)
    background = [np.sum(plane[count] * share[count] ** 2) for plane in variances]
    own = [np.nansum(plane * weight**2) for plane in variances]
    return {
        "flux": np.sum(np.where(weight > 0, value, 0) * weight) if weight.sum() > 0 else np.nan,
        "pixels": weight.sum(),
        "background": np.sum(np.where(weight > 0, level, 0) * weight),
        "variances": np.add(own, background),
        "background_variances": np.array(background),
    }


def compare(
    found: Sums, sci: np.ndarray, planes: Variances, profile: np.ndarray, background: Background | None
) -> None:
    fit, order = (background.fit, background.order) if background else ("none", 0)
    used = background.weights != 0 if background else np.zeros((NY, NX), bool)
    values = smoothed(sci, background.smoothing) if background and background.smoothing > 1 else sci.astype(float)
    for t in range(N):
        for k in range(NX):
            variances = [plane[t, :, k].astype(float) for plane in planes]
            expected = one_column(
                values[t, :, k],
                variances,
                profile[:, k],
                used[:, k],
                fit,
                order if fit == "poly" else 0,
                sci[t, :, k].astype(float),
            )
            for name, value in expected.items():
                mine = getattr(found, name)
                got = [plane[t, k] for plane in mine] if name.endswith("variances") else mine[t, k]
                tolerance = 1e-6 if fit == "median" else 1e-11  # single precision
                np.testing.assert_allclose(got, value, rtol=tolerance, atol=1e-10, err_msg=f"{name} {t} {k}")


@pytest.mark.parametrize(("fit", "order", "smoothing"), [
    ("poly", 0, 0), ("poly", 1, 0), ("poly", 3, 0), ("poly", 1, 5), ("median", 0, 0), ("median", 0, 3),
])  # fmt: skip
def test_every_column(fit: str, order: int, smoothing: int) -> None:
    sci, planes = pixels()
    sci[np.isinf(sci)] = np.nan if smoothing else np.inf
    if fit == "median":
        sci[np.isinf(sci)] = np.nan
    profile = source_profile(BOX, WAVELENGTH)
    background = Background(background_profile(BOX, WAVELENGTH), fit, order, smoothing)
    compare(Extraction(profile, 1, background)(sci, planes), sci, planes, profile.weights, background)


def test_no_background() -> None:
    sci, planes = pixels()
    profile = source_profile(BOX, WAVELENGTH)
    compare(Extraction(profile, 1)(sci, planes), sci, planes, profile.weights, None)
    bare = Extraction(profile, 1)(sci, None)
    np.testing.assert_array_equal(bare.flux, Extraction(profile, 1)(sci, planes).flux)
    assert not np.any(bare.variances)


@pytest.mark.parametrize("fit", ["poly", "median"])
def test_dispersion_along_columns_and_blocks_of_time(fit: str) -> None:
    sci, planes = pixels()
    sci[np.isinf(sci)] = np.nan
    weights = background_profile(BOX, WAVELENGTH)
    found = Extraction(source_profile(BOX, WAVELENGTH), 1, Background(weights, fit, 1))(sci, planes)
    (y0, x0), (y1, x1) = BOX.start, BOX.stop
    turned = Box(2, (x0, y0), (x1, y1), background=BOX.background)
    run = Extraction(
        source_profile(turned, WAVELENGTH.T), 2, Background(background_profile(turned, WAVELENGTH.T), fit, 1)
    )
    for first, last in ((0, 5), (0, 1), (1, 4)):
        cut = slice(first, last)
        part = run(sci[cut].swapaxes(1, 2), Variances(*(plane[cut].swapaxes(1, 2) for plane in planes)))
        for name in ("flux", "background", "pixels"):
            np.testing.assert_array_equal(getattr(part, name), getattr(found, name)[cut])
        for name in ("variances", "background_variances"):
            for mine, theirs in zip(getattr(part, name), getattr(found, name), strict=True):
                np.testing.assert_array_equal(mine, theirs[cut])


def column(profile: np.ndarray, k: int = 10) -> list[float]:
    return [round(float(v), 12) for v in profile[:, k]]


def test_limits_by_their_priority() -> None:
    def rows(box: Box, trace: np.ndarray | None = None) -> dict[int, float]:
        weights = column(source_profile(box, WAVELENGTH, trace).weights)
        return {j: weight for j, weight in enumerate(weights) if weight}

    plain = Box(1, (8.25, 0.0), (10.5, 30.0))
    assert rows(plain) == {8: 0.75, 9: 1.0, 10: 1.0, 11: 0.5}
    wide = Box(1, (8.0, 0.0), (11.0, 30.0), width=2.5)
    assert rows(wide) == {8: 0.25, 9: 1.0, 10: 1.0, 11: 0.25}
    assert rows(wide, np.full(NX, 20.0)) == {19: 0.75, 20: 1.0, 21: 0.75}
    polynomial = Box(1, (8.0, 0.0), (11.0, 30.0), 2.5, source=((4.5, 0.1), (7.0, 0.1)))
    assert rows(polynomial, np.full(NX, 20.0)) == {6: 1.0, 7: 1.0, 8: 0.5}
    by_wavelength = Box(1, (8.0, 0.0), (11.0, 30.0), source=((1.5, 0.5), (4.0, 0.5)), by_wavelength=True)
    assert rows(by_wavelength) == {5: 1.0, 6: 1.0, 7: 0.5}  # 6 microns
    assert rows(plain.shifted(0.25)) == {8: 0.5, 9: 1.0, 10: 1.0, 11: 0.75}
    assert source_profile(wide, WAVELENGTH).lower == 8.75 and source_profile(wide, WAVELENGTH).upper == 10.25


def test_strips_that_touch_and_medians_take_whole_pixels() -> None:
    strips = ((2.75,), (5.75,), (5.0,), (8.0,))
    box = Box(1, (0.0, 0.0), (25.0, 30.0), background=strips)
    assert column(background_profile(box, WAVELENGTH))[2:10] == [0.0, 0.75, 1.0, 1.0, 1.0, 1.0, 0.5, 0.0]
    whole = Box(1, (0.0, 0.0), (25.0, 30.0), background=strips, whole=True)
    assert column(background_profile(whole, WAVELENGTH))[2:10] == [0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0]


def test_ends_and_wavelengths() -> None:
    wavelength = WAVELENGTH + 0.01 * np.arange(NY)[:, None]
    wavelength[:, 20] = np.nan
    wavelength[9, 12] = np.nan
    weights = source_profile(Box(1, (8.5, 2.2), (10.0, 27.9)), wavelength).weights
    assert np.flatnonzero(weights.any(axis=0)).tolist() == [*range(3, 20), *range(21, 28)]
    found = profile_wavelength(weights, wavelength, 1)
    assert np.isnan(found[[0, 2, 20, 28]]).all()
    assert found[5] == pytest.approx((0.5 * wavelength[8, 5] + wavelength[9, 5] + wavelength[10, 5]) / 2.5, rel=1e-15)
    assert found[12] == pytest.approx((0.5 * wavelength[8, 12] + wavelength[10, 12]) / 1.5, rel=1e-15)
    np.testing.assert_array_equal(profile_wavelength(weights.T, wavelength.T, 2), found)


@pytest.mark.parametrize("width", [3, 5])
def test_smoothing_is_astropys(width: int) -> None:
    from astropy.convolution import convolve

    sci, _ = pixels()
    sci[np.isinf(sci)] = np.nan
    sci[4] = np.nan_to_num(sci[4])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [convolve(image, np.ones((1, width)) / width, boundary="extend") for image in sci]
    np.testing.assert_array_equal(smoothed(sci, width), expected)


def sums() -> Sums:
    sci, planes = pixels()
    found = Extraction(source_profile(BOX, WAVELENGTH), 1, Background(background_profile(BOX, WAVELENGTH)))(sci, planes)
    return selected(found, np.isfinite(profile_wavelength(source_profile(BOX, WAVELENGTH).weights, WAVELENGTH, 1)))


def test_units() -> None:
    given = sums()
    assert given.flux.shape == (N, 27)
    area = np.where(given.pixels > 0, given.pixels, 1)
    total = np.sqrt(sum(given.variances))
    jansky = calibrated(given, 2.5e-13)
    np.testing.assert_allclose(jansky.flux, given.flux * 2.5e-7, rtol=1e-15)
    np.testing.assert_allclose(jansky.error, total * 2.5e-7, rtol=1e-15)
    np.testing.assert_allclose(jansky.brightness, given.flux / area, rtol=1e-15)
    np.testing.assert_allclose(jansky.brightness_error, total / area, rtol=1e-15)
    np.testing.assert_allclose(jansky.background, given.background / area, rtol=1e-15)
    np.testing.assert_array_equal(jansky.dq, np.isnan(given.flux))
    rates = calibrated(given, None)
    np.testing.assert_array_equal(rates.flux, given.flux)
    np.testing.assert_allclose(rates.background_error, np.sqrt(sum(given.background_variances)) / area, rtol=1e-15)
    point = calibrated(given, 2.5e-13, point_fluxes=True)
    np.testing.assert_array_equal(point.flux, given.flux * 1e6)
    assert not point.brightness.any() and not point.brightness_error[given.pixels > 0].any()
    np.testing.assert_allclose(point.background, given.background / area / 2.5e-13, rtol=1e-15)


def test_aperture_correction() -> None:
    table = ApertureTable(np.array([2.0, 4.0, 8.0]), np.array([9.0, 5.0]), np.array([[9.0, 7.0, 3.0], [5.0, 3.0, 2.0]]))
    at = np.array([[3.0, 8.0, 1.0, 6.0]])
    np.testing.assert_allclose(aperture_factors(table, at, np.array([7.0, 5.0, 99.0, 6.0]))[0], [6.0, 2.0, 9.0, 3.125])
    columns = calibrated(sums(), 1e-12)
    factors = np.full(columns.flux.shape, 1.5)
    after = corrected(columns, factors)
    for name in ("flux", "error", "brightness", "brightness_error"):
        np.testing.assert_array_equal(getattr(after, name), 1.5 * getattr(columns, name))
    for name in ("variances", "brightness_variances"):
        np.testing.assert_array_equal(getattr(after, name), np.multiply(2.25, getattr(columns, name)))
    np.testing.assert_array_equal(after.background, columns.background)
    with pytest.raises(InputError, match="must increase"):
        aperture_factors(table._replace(size=np.array([2.0, 8.0, 4.0])), at, np.full(4, 7.0))


def test_what_cannot_be() -> None:
    with pytest.raises(InputError, match="direction of dispersion 3"):
        Box(3, (0, 0), (1, 1))
    with pytest.raises(InputError, match="bkg_coeff must give lower and upper limits"):
        Box(1, (0, 0), (1, 1), background=((1.0,),))
    for arguments, text in (
        (("mode", 0, 0), "bkg_fit = 'mode'"), (("poly", -1, 0), "bkg_order = -1"), (("poly", 0, 4), "smoothing_length = 4"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=text):
            Background(np.ones((2, 2)), *arguments)
    assert Profile(np.ones((2, 2)), 0.0, 1.0).upper == 1.0
