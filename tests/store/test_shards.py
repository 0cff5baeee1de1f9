"""Windows of sharded arrays, chunk by chunk: what Zarr itself reads, each chunk checked and named if it is damaged."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from streamimg3.errors import StoreError
from streamimg3.geometry import Box
from streamimg3.store import Observation
from streamimg3.store.exposure import stack_path
from streamimg3.store.layout import chunking, cube_chunking
from streamimg3.store.shards import Sharding

SHAPE = (600, 530)
PATH = f"{stack_path(SHAPE)}/sci"
NUMBERS = itertools.count()


def _stack(url: str) -> Observation:
    """Two planes of noise and an empty one between."""
    obs = Observation.at(url)
    obs.create_stack(SHAPE, 3, {"sci": None})
    for row in (0, 2):
        obs.write(PATH, (row,), Box.of_shape(SHAPE), _noise(row))
    return obs


def _noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


@pytest.fixture(scope="module", params=["local", "memory"])
def obs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Observation:
    """The stack on disk and behind fsspec."""
    local = str(tmp_path_factory.mktemp("shards") / "x.zarr")
    return _stack(local if request.param == "local" else f"memory://shards-{next(NUMBERS)}")


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(0, 599), st.integers(1, 600)),
    st.tuples(st.integers(0, 529), st.integers(1, 530)),
    st.integers(0, 2),
    st.integers(1, 3),
)
def test_windows_are_those_of_zarr(
    obs: Observation, rows: tuple[int, int], cols: tuple[int, int], first: int, deep: int
) -> None:
    """Any window, of one plane and of several, of what is there and of what is empty."""
    box = Box(rows[0], cols[0], min(rows[0] + rows[1], SHAPE[0]), min(cols[0] + cols[1], SHAPE[1]))
    array = zarr.open_array(obs.backend.zarr, path=PATH, mode="r")
    np.testing.assert_array_equal(obs.window(PATH, (first,), box), array[(first, *box.slices)])
    lead = slice(first, min(first + deep, 3))
    np.testing.assert_array_equal(obs.window(PATH, (lead,), box), array[(lead, *box.slices)])


def test_every_image_is_read_here() -> None:
    """The arrays of exposures, cubes and mosaics are all cut as this reader expects."""
    obs = Observation.at(f"memory://shards-{next(NUMBERS)}")
    obs.create_stack((40, 30), 2, {"dq": None})
    obs.create_cubes((40, 30), 50, {"sci": None})
    obs.create_image("mosaic/con", (2, 100, 100), 64, None)
    cuts = {
        path: Sharding.of(obs.array(path)) for path in ("exposures/40x30/dq", "integrations/40x30/sci", "mosaic/con")
    }
    for path, (chunk, shard) in {
        "exposures/40x30/dq": tuple((1, *part) for part in chunking((40, 30))),
        "integrations/40x30/sci": cube_chunking((40, 30), 50),
        "mosaic/con": ((1, 64, 64), (1, 64, 64)),
    }.items():
        found = cuts[path]
        assert found is not None and found.checked
        assert (found.chunk, found.shard) == (chunk, shard)


def test_a_flipped_bit_is_found_and_named(tmp_path: Path) -> None:
    """Wherever it is in a chunk, and however little of the chunk is wanted; other chunks are read as before."""
    obs = _stack(str(tmp_path / "x.zarr"))
    shard = tmp_path / "x.zarr" / PATH / "c" / "2" / "0" / "0"
    whole = shard.read_bytes()
    corner = Box(0, 0, 1, 1)
    for at in (0, 17, 5000, 200_000):
        data = bytearray(whole)
        data[at] ^= 1
        shard.write_bytes(data)
        with pytest.raises(StoreError, match=r"cannot read .*/sci/c/2/0/0, chunk 0/0/0 of it: it is damaged"):
            obs.window(PATH, (2,), corner)
        np.testing.assert_array_equal(obs.window(PATH, (2,), Box(300, 300, 301, 301)), _noise(2)[300:301, 300:301])
        np.testing.assert_array_equal(obs.window(PATH, (0,), corner), _noise(0)[:1, :1])
    data = bytearray(whole)
    data[-20] ^= 1  # the table of the chunks
    shard.write_bytes(data)
    with pytest.raises(StoreError, match=r"/sci/c/2/0/0: it is damaged \(the table of its chunks"):
        obs.window(PATH, (2,), corner)
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match=r"/sci/c/2/0/0: it is damaged"):
        obs.window(PATH, (2,), corner)


def test_a_window_outside_is_an_error(obs: Observation) -> None:
    with pytest.raises(StoreError, match="cannot read"):
        obs.window(PATH, (3,), Box(0, 0, 1, 1))
