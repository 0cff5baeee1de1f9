"""Light curves of spectra: which spectra, which wavelengths, which rows (spec others §2.7)."""

from __future__ import annotations

import numpy as np
import pytest

from streamimg3.errors import InputError
from streamimg3.kernels.white_light import EVERYTHING, BandSums, RangeRow, Series, band_sums, light_curves, order_limits

WAVELENGTH = np.array([5.0, 6.0, 7.0, 8.0])
ROWS = [RangeRow(1, "CLEAR", 0.9, 2.8), RangeRow(2, "CLEAR", 0.6, 1.4), RangeRow(1, "F277W", 2.4, 2.8)]


def series(times: list[float], flux: list[float], order: int | None = None, detector: str = "") -> Series:
    values = np.array(flux)
    sums = BandSums(values, 0.1 * values, np.full(len(values), 7))
    return Series(np.array(times), np.array(times) + 0.003, sums, order, detector)


def test_sums_over_a_range_with_both_ends() -> None:
    flux = np.array([[1.0, 2.0, 4.0, 8.0], [1.0, np.nan, 4.0, 8.0], [np.nan] * 4])
    error = np.array([[0.1, 3.0, 4.0, 0.1], [0.1, 3.0, 5.0, 0.1], [0.1] * 4])
    found = band_sums(flux, error, WAVELENGTH, (6.0, 7.0))
    assert found.flux.tolist() == [6.0, 4.0, 0.0]
    assert found.error.tolist() == [5.0, 5.0, 0.0]
    assert found.points.tolist() == [2, 1, 0]
    each = band_sums(flux, None, np.array([WAVELENGTH, WAVELENGTH + 1, WAVELENGTH]), (6.0, 7.0))
    assert each.flux.tolist() == [6.0, 1.0, 0.0] and np.isnan(each.error).all()
    assert band_sums(flux, error, WAVELENGTH, EVERYTHING).flux.tolist() == [15.0, 13.0, 0.0]


def test_limits_of_orders() -> None:
    assert order_limits([1, 2, 1], "CLEAR", ROWS) == {1: (0.9, 2.8), 2: (0.6, 1.4)}
    assert order_limits([1, 2], "CLEAR", ROWS, compat=True) == {1: (0.9, 2.8), 2: (0.9, 2.8)}
    assert order_limits([1, 2], "CLEAR", ROWS, (1.0, None)) == {1: (1.0, 2.8), 2: (1.0, 1.4)}
    assert order_limits([None], "P750L", None) == {None: EVERYTHING}
    assert order_limits([], "P750L", None, compat=True) == {}
    with pytest.raises(InputError, match="0 rows for order 3 and filter CLEAR, not 1"):
        order_limits([3], "CLEAR", ROWS)


def test_segments_are_put_in_order_of_time() -> None:
    (table,) = light_curves([series([3.0, 4.0], [30.0, 40.0]), series([1.0, 2.0], [10.0, 20.0])])
    assert table.mjd_utc.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert table.bjd_tdb.tolist() == [1.003, 2.003, 3.003, 4.003]
    assert table.curves[None].flux.tolist() == [10.0, 20.0, 30.0, 40.0]
    assert table.curves[None].error.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert table.dropped == 0


def test_the_first_of_spectra_with_one_time_counts_and_nothing_is_changed() -> None:
    given = series([1.0, 2.0, 2.0, np.nan], [10.0, 20.0, 21.0, 30.0])
    (table,) = light_curves([given, series([2.0, 3.0], [22.0, 33.0])])
    assert table.mjd_utc.tolist() == [1.0, 2.0, 3.0]
    assert table.curves[None].flux.tolist() == [10.0, 20.0, 33.0]
    assert table.dropped == 2
    np.testing.assert_array_equal(given.mjd_utc, [1.0, 2.0, 2.0, np.nan])


def test_orders_and_detectors() -> None:
    found = light_curves([
        series([1.0, 2.0], [10.0, 20.0], 1, "NRS1"), series([2.0, 3.0], [5.0, 6.0], 2, "NRS1"),
        series([7.0], [70.0], 1, "NRS2"),
    ])  # fmt: skip
    assert [table.detector for table in found] == ["NRS1", "NRS2"]
    first, second = found
    np.testing.assert_array_equal(first.curves[1].flux, [10.0, 20.0, np.nan])
    np.testing.assert_array_equal(first.curves[2].flux, [np.nan, 5.0, 6.0])
    assert first.curves[2].points.tolist() == [0, 7, 7]
    np.testing.assert_array_equal(second.curves[2].flux, [np.nan])


def test_a_curve_divided_by_its_median() -> None:
    (table,) = light_curves([series([1.0, 2.0, 3.0], [-10.0, -20.0, -40.0])])
    unit = table.curves[None].normalized()
    assert unit.flux.tolist() == [0.5, 1.0, 2.0]
    np.testing.assert_allclose(unit.error, [-0.05, -0.1, -0.2])
