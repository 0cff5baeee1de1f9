"""Shards written chunk by chunk are what Zarr itself writes and reads."""

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
from streamimg3.store.layout import cube_chunking
from streamimg3.store.shard_writer import with_checksum

NUMBERS = itertools.count()


@pytest.fixture(params=["local", "memory"])
def obs(request: pytest.FixtureRequest, tmp_path: Path) -> Observation:
    """An empty store."""
    return Observation.at(str(tmp_path / "x.zarr") if request.param == "local" else f"memory://shards-{next(NUMBERS)}")


def _pixels(seed: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Noise with a corner of nothing, so that some chunks are empty."""
    noise = np.random.default_rng(seed).normal(5.0, 1.0, shape)
    noise[..., : shape[-2] // 2, :] = np.nan if dtype == "float32" else 0
    return noise.astype(dtype)


def _store(obs: Observation, plane: str, values: np.ndarray) -> None:
    """Write a stack of cubes, one shard after the other, chunk by chunk from the last to the first."""
    count, ny, nx = values.shape
    (depth, cy, _), (deep, high, width) = cube_chunking((ny, nx), count)
    assert width >= nx
    for t, y in itertools.product(range(0, count, deep), range(0, ny, high)):
        with obs.shards(f"integrations/{ny}x{nx}", [plane], (t // deep, y // high, 0)) as shards:
            block = values[t : t + deep, y : y + high]
            for a, b in itertools.product(range(0, block.shape[0], depth)[::-1], range(0, block.shape[1], cy)[::-1]):
                shards[plane].put((a, b, 0), block[a : a + depth, b : b + cy])


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 90), st.integers(1, 70), st.sampled_from(["sci", "dq", "nan"]))
def test_zarr_reads_what_is_written(count: int, ny: int, nx: int, plane: str) -> None:
    """Any shape: chunks at the rim are filled up, shards at the rim have chunks that are not there."""
    obs = Observation.at(f"memory://shards-{next(NUMBERS)}")
    obs.create_cubes((ny, nx), count, {plane: None})
    array = obs.array(f"integrations/{ny}x{nx}/{plane}")
    values = _pixels(count, (count, ny, nx), array.dtype.name)
    _store(obs, plane, values)
    np.testing.assert_array_equal(array[:], values)


@pytest.mark.parametrize("plane", ["sci", "dq"])
def test_a_shard_is_zarrs_own(tmp_path: Path, plane: str) -> None:
    """Byte by byte, chunks in the order in which they came: a shard is as long, and its index has the same sizes."""
    shape, number = (4, 600, 1030), (0, 0, 0)
    found = {}
    for name in ("ours", "zarrs"):
        obs = Observation.at(str(tmp_path / name))
        obs.create_cubes(shape[1:], shape[0], {plane: None})
        array = obs.array(f"integrations/600x1030/{plane}")
        values = _pixels(1, shape, array.dtype.name)
        if name == "ours":
            _store(obs, plane, values)
        else:
            array[:] = values
        data = obs.backend.get(f"integrations/600x1030/{plane}/{array.metadata.encode_chunk_key(number)}")
        assert data is not None
        chunks = np.prod([s // c for s, c in zip(array.shards, array.chunks, strict=True)])
        index = np.frombuffer(data[-16 * chunks - 4 : -4], "<u8").reshape(-1, 2)
        assert data.endswith(with_checksum(data[-16 * chunks - 4 : -4]))
        stored = [data[o : o + n] if o != 2**64 - 1 else None for o, n in index.tolist()]
        found[name] = len(data), stored
        np.testing.assert_array_equal(zarr.open_array(str(tmp_path / name), path=array.path, mode="r")[:], values)
    assert found["ours"] == found["zarrs"]
    assert None in found["ours"][1] and any(found["ours"][1])


def test_empty_shards_are_not_stored(obs: Observation) -> None:
    """And one that was there before goes."""
    obs.create_cubes((64, 256), 3, {"sci": None})
    values = np.ones((3, 64, 256), np.float32)
    for given_values in (values, values * np.float32(np.nan)):
        _store(obs, "sci", given_values)
        found = obs.window("integrations/64x256/sci", (slice(0, 3),), Box(0, 0, 64, 256))
        np.testing.assert_array_equal(found, given_values)
    assert "c" not in obs.backend.keys("integrations/64x256/sci") or not obs.backend.keys(
        "integrations/64x256/sci/c/0/0"
    )


def test_a_shard_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    obs = Observation.at(str(tmp_path / "x.zarr"))
    obs.create_cubes((64, 256), 3, {"sci": None, "dq": None})
    with pytest.raises(ZeroDivisionError), obs.shards("integrations/64x256", ["sci", "dq"], (0, 0, 0)) as shards:
        shards["sci"].put((0, 0, 0), np.ones((3, 64, 256), np.float32))
        raise ZeroDivisionError
    assert not [p for p in (tmp_path / "x.zarr").rglob("*") if p.is_file() and p.name != "zarr.json"]
    with (
        pytest.raises(ValueError, match="no whole chunks"),
        obs.shards("integrations/64x256", ["sci"], (0, 0, 0)) as shards,
    ):
        shards["sci"].put((0, 8, 0), np.ones((3, 8, 256), np.float32))


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    """A file lies where the folder of a shard should be."""
    obs = Observation.at(str(tmp_path / "x.zarr"))
    obs.create_cubes((64, 256), 3, {"sci": None})
    (tmp_path / "x.zarr/integrations/64x256/sci/c").write_text("in the way")
    with pytest.raises(StoreError, match="cannot write"), obs.shards("integrations/64x256", ["sci"], (0, 0, 0)):
        pass
