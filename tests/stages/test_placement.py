"""Where exposures lie: the tiles and pixels that their maps touch, found by mapping every pixel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from streamimg3.geometry import Box
from streamimg3.sky.pixmap import Sampling, pixel_map
from streamimg3.stages.layers import Setup
from streamimg3.stages.placement import by_tile, placed
from tests.sky.test_pixmap import exposure, mosaic_for

TILE = 48


@pytest.mark.parametrize("shift", [(0.0, 0.0), (37.0, -51.0)])
def test_every_pixel_is_in_the_windows_of_its_tile(shift: tuple[float, float]) -> None:
    source = exposure(1)
    target = mosaic_for(source, 33.0, 1.1, shift)
    found = pixel_map(source, target, Sampling())
    place = placed(found, _setup(target.shape))
    y, x = np.meshgrid(*(np.arange(n, dtype=float) for n in source.shape), indexing="ij")
    rows, cols = target.to_pixel(*source.to_sky(y, x))
    inside = (rows > -0.5) & (cols > -0.5) & (rows < target.shape[0] - 0.5) & (cols < target.shape[1] - 0.5)
    tiles = {
        (int(r), int(c)) for r, c in zip(np.rint(rows[inside]) // TILE, np.rint(cols[inside]) // TILE, strict=True)
    }
    assert tiles and tiles <= set(place.windows)
    for tile in tiles:
        own = inside & (np.rint(rows) // TILE == tile[0]) & (np.rint(cols) // TILE == tile[1])
        box = place.windows[tile]
        assert box.union(Box(int(y[own].min()), int(x[own].min()), int(y[own].max()) + 1, int(x[own].max()) + 1)) == box
    assert place.nbytes == found.nbytes and place.slopes is not None
    for (along, across), value in zip(place.slopes, (rows, cols), strict=True):
        # The map's nodes lie on the pixels' outer edges, half a pixel further out at each end.
        assert along == pytest.approx(np.abs(value[:, -1] - value[:, 0]).max(), abs=2.5)
        assert across * (source.shape[0] - 1) == pytest.approx(np.abs(value[-1] - value[0]).max(), abs=2.5)


def test_a_map_with_nothing_in_it() -> None:
    source = exposure(1)
    found = pixel_map(source, mosaic_for(source, 33.0), Sampling())
    assert placed(replace(found, extent=np.full_like(found.extent, np.nan)), _setup(source.shape)).slopes is None


def test_tiles_come_in_order() -> None:
    source = exposure(1)
    target = mosaic_for(source, 33.0)
    place = placed(pixel_map(source, target, Sampling()), _setup(target.shape))
    found = list(by_tile([(7, place), (3, place)]))
    assert [key for key, _ in found] == sorted(place.windows)
    assert all(list(boxes) == [7, 3] for _, boxes in found)


def _setup(shape: tuple[int, int]) -> Setup:
    return Setup("", "mosaic", shape, TILE, ("sci",), (), "square", 1.0, 1.0, False, None, False, "", "", ())
