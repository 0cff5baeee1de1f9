"""For any output frame, also one that cuts the field: small tiles and one big tile give the same bits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamimg3 import Observation, Session, ingest
from streamimg3.engine import Runner
from streamimg3.formats.simulate import Field, simulate
from streamimg3.stages import resample
from tests.pipelines.conftest import planes_of, sums_of

SHAPE = (96, 96)
CENTRE = (150.1163, 2.2010)  # of the simulated field, deg


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Observation:
    """Two exposures in a store."""
    folder = tmp_path_factory.mktemp("pair")
    association = simulate(folder, Field(shape=SHAPE, dithers=2))
    return ingest(str(association), Session(store=str(folder / "x.zarr"), workers=1))


WINDOWS = st.none() | st.tuples(st.integers(40, 200), st.integers(40, 200))


@settings(max_examples=10, deadline=None)
@given(
    rotation=st.none() | st.floats(-180, 180),
    ratio=st.floats(0.6, 1.7),
    window=WINDOWS,
    # Fractions of the window: the field's centre lies on it, or a little off.
    aim=st.tuples(st.floats(-0.1, 1.1), st.floats(-0.1, 1.1)),
    kernel=st.sampled_from(["square", "square", "point", "turbo", "gaussian"]),
    pixfrac=st.sampled_from([1.0, 0.7]),
)
def test_any_frame_in_tiles_is_the_whole(
    pair: Observation, rotation: float | None, ratio: float, window: tuple[int, int] | None,
    aim: tuple[float, float], kernel: str, pixfrac: float,
) -> None:  # fmt: skip
    """Rotation, pixel scale, kernel and a window that cuts the field leave no trace of the tiles."""
    whole = resample.Params(rotation=rotation, pixel_scale_ratio=ratio, kernel=kernel, pixfrac=pixfrac, tile=1024)
    if window is not None:
        crpix = (aim[0] * window[0], aim[1] * window[1])
        whole = replace(whole, output_shape=window, crpix=crpix, crval=CENTRE)
    resample.run(pair, whole, Runner())
    planes, expected = planes_of(pair), sums_of(pair)
    if window is not None:
        assert planes["sci"].shape == window[::-1]
    assert planes["ncontrib"].any()
    resample.run(pair, replace(whole, tile=64), Runner())
    assert sums_of(pair) == expected
