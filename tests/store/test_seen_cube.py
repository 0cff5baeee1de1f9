"""Cubes seen through the flags of outlier_detection, against the rule applied to whole files."""

from __future__ import annotations

import numpy as np
import pytest

from streamimg3 import Observation, Session, ingest
from streamimg3.geometry import Box
from streamimg3.store.seen_cube import SeenCube
from tests.formats.cubes import Recipe, write_cube

RECIPE = Recipe(3, shape=(12, 10))
WHOLE = Box(0, 0, 12, 10)


@pytest.fixture(scope="module")
def obs(tmp_path_factory: pytest.TempPathFactory) -> Observation:
    """A cube with outliers at two pixels."""
    folder = tmp_path_factory.mktemp("seen")
    path = write_cube(folder / "jw01_calints.fits", RECIPE)
    store = ingest(path, Session(store=str(folder / "x.zarr"), workers=1))
    store.create_cubes((12, 10), 3, {"outlier": None})
    flags = np.zeros((3, 12, 10), np.uint8)
    flags[1, 4, 5] = flags[2, 0, 0] = 1
    store.write("integrations/12x10/outlier", (slice(0, 3),), WHOLE, flags)
    return store


def test_invalid_pixels_are_so_in_all_planes(obs: Observation) -> None:
    """NaN in any of them, DO_NOT_USE, or an outlier."""
    (exposure,) = obs.exposures()
    planes = RECIPE.pixels()
    outlier = np.zeros((3, 12, 10), bool)
    outlier[1, 4, 5] = outlier[2, 0, 0] = True
    bad = (planes["dq"] & np.uint32(1)) != 0
    for name in ("sci", "err", "var_poisson", "var_rnoise", "var_flat"):
        bad |= np.isnan(planes[name])
    bad |= outlier
    seen = SeenCube(exposure)
    np.testing.assert_array_equal(seen.invalid(0, 3, WHOLE), bad)
    for name in ("sci", "err", "var_flat"):
        np.testing.assert_array_equal(seen.floats(name, 0, 3, WHOLE), np.where(bad, np.float32(np.nan), planes[name]))
    flags = planes["dq"] | np.where(bad, np.uint32(1), np.uint32(0)) | np.where(outlier, np.uint32(16), np.uint32(0))
    np.testing.assert_array_equal(seen.flags(0, 3, WHOLE), flags)
    part = Box(3, 2, 9, 10)
    np.testing.assert_array_equal(seen.flags(1, 2, part), flags[1:2, 3:9, 2:10])


def test_before_anything_was_judged(obs: Observation) -> None:
    """Planes and flags are as they came."""
    (exposure,) = obs.exposures()
    planes, seen = RECIPE.pixels(), SeenCube(exposure, judged=False)
    np.testing.assert_array_equal(seen.floats("sci", 0, 3, WHOLE), planes["sci"])
    np.testing.assert_array_equal(seen.flags(0, 3, WHOLE), planes["dq"])
