"""Rings and sectors around a star."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from streamimg3.kernels.regions import Regions


def test_one_region_is_everything() -> None:
    """Without edges, also where sectors are 1."""
    assert (Regions((3.0, 4.0)).labels(0, 7, 9) == 0).all()


def test_rings_and_sectors() -> None:
    """Distances decide on the ring, the outer edge excluded; angles from +x towards +y on the sector."""
    regions = Regions((10.0, 10.0), (2.0, 5.0, 8.0), 4)
    assert regions.count == 8
    labels = regions.labels(0, 21, 21)
    assert labels[10, 11] == -1  # 1 px
    assert labels[10, 12] == 0  # 2 px, along +x
    assert labels[12, 10] == 1  # along +y
    assert labels[10, 8] == 2
    assert labels[8, 10] == 3
    assert labels[10, 15] == 4  # 5 px: the second ring
    assert labels[10, 18] == -1  # 8 px
    assert set(np.unique(labels)) == {-1, *range(8)}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 19), st.integers(1, 20), st.integers(1, 5), st.floats(-3, 23))
def test_bands_are_parts_of_the_whole(y0: int, rows: int, sectors: int, centre: float) -> None:
    """The label of a pixel does not depend on the band."""
    regions = Regions((centre, 7.5), (1.0, 4.5, 9.0), sectors)
    whole, y1 = regions.labels(0, 20, 15), min(y0 + rows, 20)
    np.testing.assert_array_equal(regions.labels(y0, y1, 15), whole[y0:y1])
