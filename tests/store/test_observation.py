"""The Zarr group of a product, on local disk and in memory."""

from __future__ import annotations

import itertools
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from streamimg3.errors import InputError, StoreError
from streamimg3.geometry import Box, TileGrid
from streamimg3.store import ExposureRecord, Observation
from streamimg3.store.cubes import cube_stacks
from streamimg3.store.documents import AlignedExposure, AlignmentDocument, SkyDocument
from streamimg3.store.exposure import Exposure, stack_path
from streamimg3.store.layout import CHUNK, FLAGS, PLANES, SHARD_BYTES, chunking, cube_chunking, unit_of

SHAPE = (300, 270)
WHOLE = Box.of_shape(SHAPE)
NUMBERS = itertools.count()


@pytest.fixture(params=["local", "memory"])
def obs(request: pytest.FixtureRequest, tmp_path: Path) -> Observation:
    """An empty store."""
    return Observation.at(str(tmp_path / "x.zarr") if request.param == "local" else f"memory://obs-{next(NUMBERS)}")


def record(**changes: object) -> ExposureRecord:
    facts: dict[str, object] = {
        "name": "jw1", "filename": "jw1_cal.fits", "url": "/d/jw1_cal.fits", "index": 0, "group_id": "g", "shape": SHAPE,
        "row": 0, "planes": ("sci", "dq"), "wcs_kind": "fits", "is_jwst": True, "s_region": "POLYGON ICRS  1 2 3 4 5 6",
    }  # fmt: skip
    return ExposureRecord(**(facts | changes))  # type: ignore[arg-type]


def noise(seed: int, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# ---------------------------------------------------------------- arrays
def test_stacks_hold_what_is_written(obs: Observation) -> None:
    obs.create_stack(SHAPE, 3, {"sci": "MJy/sr", "dq": None})
    path = stack_path(SHAPE)
    values, flags = noise(1), np.random.default_rng(2).integers(0, 2**32, SHAPE, np.uint32)
    obs.write(f"{path}/sci", (1,), WHOLE, values)
    obs.write(f"{path}/dq", (2,), WHOLE, flags)
    np.testing.assert_array_equal(obs.window(f"{path}/sci", (1,), WHOLE), values)
    np.testing.assert_array_equal(obs.window(f"{path}/dq", (2,), WHOLE), flags)
    for row in (0, 2):
        assert np.isnan(obs.window(f"{path}/sci", (row,), WHOLE)).all()
    assert not obs.window(f"{path}/dq", (0,), WHOLE).any()
    box = Box(17, 250, 300, 263)
    found = Exposure(obs, record(row=1)).read("sci", box)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values[box.slices])


def test_stacks_describe_themselves(obs: Observation) -> None:
    """What xarray shows: dimensions, units, flag names."""
    obs.create_stack(SHAPE, 2, {"sci": "MJy/sr", "var_poisson": "MJy/sr", "dq": "MJy/sr"})
    sci, dq = obs.array(f"{stack_path(SHAPE)}/sci"), obs.array(f"{stack_path(SHAPE)}/dq")
    assert sci.metadata.dimension_names == ("exposure", "y", "x")
    assert sci.attrs["units"] == "MJy/sr" and sci.attrs["long_name"] == "science image"
    assert obs.array(f"{stack_path(SHAPE)}/var_poisson").attrs["units"] == "(MJy/sr)^2"
    assert dq.attrs["units"] == "1" and dq.dtype == np.uint32
    assert dict(zip(dq.attrs["flag_meanings"], dq.attrs["flag_masks"], strict=True)) == FLAGS
    assert np.isnan(sci.fill_value) and dq.fill_value == 0


def test_a_stack_made_again_has_its_new_size(obs: Observation) -> None:
    """A store that is ingested again with one more exposure, in the same process."""
    path = f"{stack_path(SHAPE)}/sci"
    obs.create_stack(SHAPE, 1, {"sci": None})
    obs.write(path, (0,), WHOLE, noise(1))
    obs.create_stack(SHAPE, 2, {"sci": None})
    assert obs.array(path).shape == (2, *SHAPE)
    obs.write(path, (1,), WHOLE, noise(2))
    np.testing.assert_array_equal(obs.window(path, (1,), WHOLE), noise(2))
    assert np.isnan(obs.window(path, (0,), WHOLE)).all()


def test_rows_of_bytes(obs: Observation) -> None:
    rows = [b"SIMPLE  =                    T", b"", bytes(range(256)), b"ends in zeros\0\0"]
    obs.create_table(SHAPE, "cards_primary", rows)
    path = f"{stack_path(SHAPE)}/cards_primary"
    assert [obs.row_bytes(path, k) for k in range(4)] == rows
    obs.create_table(SHAPE, "cards_primary", [b"other text", b"x"])
    assert [obs.row_bytes(path, k) for k in range(2)] == [b"other text", b"x"]


def test_cards_and_wcs_of_an_exposure(obs: Observation) -> None:
    cards = "SIMPLE  =                    T".ljust(80) + "INSTRUME= 'NIRCAM  '".ljust(80)
    obs.create_table(SHAPE, "cards_primary", [b"?", cards.encode()])
    obs.create_table(SHAPE, "wcs", [b"#ASDF 1.0.0\n", b"CRPIX1  =  1.0"])
    exposure = Exposure(obs, record(row=1))
    assert exposure.cards("primary") == cards.rstrip()
    assert exposure.wcs.kind == "fits" and exposure.wcs.text == b"CRPIX1  =  1.0"
    assert Exposure(obs, record(row=0, wcs_kind="gwcs")).wcs.text == b"#ASDF 1.0.0\n"
    assert exposure.has("sci") and not exposure.has("err")


@pytest.mark.parametrize("tile", [100, 16, 512])
def test_tiles_of_an_image(obs: Observation, tile: int) -> None:
    """Every tile is whole shards, so tiles can be written by different workers."""
    obs.write_group("mosaic", {})
    obs.create_image("mosaic/sci", SHAPE, tile, "MJy/sr")
    obs.create_image("mosaic/con", (2, *SHAPE), tile, None)
    assert obs.array("mosaic/sci").shards == (tile, tile)
    assert obs.array("mosaic/con").shards == (1, tile, tile)
    values = noise(5)
    for part in TileGrid(SHAPE, tile):
        obs.write("mosaic/sci", (), part.box, values[part.box.slices])
    np.testing.assert_array_equal(obs.window("mosaic/sci", (), WHOLE), values)
    obs.write("mosaic/con", (1,), WHOLE, np.full(SHAPE, -(2**31), np.int32))
    assert (obs.window("mosaic/con", (1,), WHOLE) == -(2**31)).all()
    assert not obs.window("mosaic/con", (0,), WHOLE).any()


def test_an_image_has_the_fill_value_that_is_asked_for(obs: Observation) -> None:
    obs.write_group("mosaic", {})
    obs.create_image("mosaic/sci", SHAPE, 128, None)
    assert np.isnan(obs.window("mosaic/sci", (), WHOLE)).all()
    obs.create_image("mosaic/sci", (40, 50), 64, None, fill=-7.0)
    assert (obs.window("mosaic/sci", (), Box(0, 0, 40, 50)) == -7.0).all()


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9000), st.integers(1, 9000)), itemsize=st.sampled_from([1, 2, 4, 8]),
)  # fmt: skip
def test_chunks_and_shards(shape: tuple[int, int], itemsize: int) -> None:
    (cy, cx), (sy, sx) = chunking(shape, itemsize)
    assert cy <= min(CHUNK, shape[0]) and cx <= min(CHUNK, shape[1])
    assert sy % cy == 0 and sx % cx == 0, "shards are whole chunks"
    assert sx >= shape[1] > sx - cx, "a shard is as wide as the image"
    assert sy < shape[0] + cy
    assert sy * sx * itemsize <= SHARD_BYTES or sy == cy
    if sy < shape[0]:
        assert (sy + cy) * sx * itemsize > SHARD_BYTES, "no smaller than need be"


def test_units() -> None:
    assert unit_of("sci", "MJy/sr") == "MJy/sr" and unit_of("var_flat", "DN/s") == "(DN/s)^2"
    assert unit_of("dq", "MJy/sr") == "1" and unit_of("err", None) == "1"
    assert set(PLANES) >= {"sci", "err", "dq", "wht", "con", "ncontrib"}


# ---------------------------------------------------------------- errors
def test_a_missing_array_is_named(obs: Observation) -> None:
    with pytest.raises(StoreError, match="has no array mosaic/sci"):
        obs.array("mosaic/sci")
    with pytest.raises(StoreError, match="mosaic/sci"):
        obs.window("mosaic/sci", (), WHOLE)


def test_a_damaged_chunk_is_named(tmp_path: Path) -> None:
    obs = Observation.at(str(tmp_path / "x.zarr"))
    obs.create_stack(SHAPE, 1, {"sci": None})
    path = f"{stack_path(SHAPE)}/sci"
    obs.write(path, (0,), WHOLE, noise(1))
    (shard,) = [p for p in (tmp_path / "x.zarr" / path / "c").rglob("*") if p.is_file()]
    data = bytearray(shard.read_bytes())
    data[100:200] = bytes(100)
    shard.write_bytes(data[: len(data) // 2])
    with pytest.raises(StoreError, match=rf"cannot read .*{path}"):
        obs.window(path, (0,), WHOLE)


def test_a_damaged_row_is_named(tmp_path: Path) -> None:
    obs = Observation.at(str(tmp_path / "x.zarr"))
    path = f"{stack_path(SHAPE)}/wcs"
    obs.create_table(SHAPE, "wcs", [b"a" * 5000, b"b"])
    (shard,) = [p for p in (tmp_path / "x.zarr" / path / "c").rglob("*") if p.is_file()]
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(StoreError, match=path):
        obs.row_bytes(path, 0)


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    obs = Observation.at(str(tmp_path / "x.zarr"))
    obs.create_stack(SHAPE, 1, {"sci": None})
    path = f"{stack_path(SHAPE)}/sci"
    (tmp_path / "x.zarr" / path / "c").write_text("a file where the chunks should go")
    with pytest.raises(StoreError, match=rf"cannot write .*{path}"):
        obs.write(path, (0,), WHOLE, noise(1))


# ---------------------------------------------------------------- the whole store
def test_root_of_no_store_is_none(obs: Observation) -> None:
    assert obs.root() is None
    with pytest.raises(InputError, match="holds no finished store"):
        obs.require()


def test_an_unfinished_store_is_refused(obs: Observation) -> None:
    obs.write_root({"ingested": False})
    assert obs.root() is not None
    with pytest.raises(InputError, match="holds no finished store"):
        obs.require()


def test_records_come_back(obs: Observation) -> None:
    records = (record(), record(name="jw2", index=1, row=1, checksums={"sci": "00"}, notes=("a",), vparity=-1))
    obs.write_records(records)
    obs.write_root({"ingested": True})
    assert obs.records() == records
    assert [e.record for e in obs.exposures()] == list(records)
    assert obs.exposures()[1].group == "exposures/300x270"


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("step", ["tweakreg", "assign_mtwcs"])
def test_an_alignment_of_other_exposures_is_refused(obs: Observation, step: str, count: int) -> None:
    """Which correction belongs to which exposure is not known; what came is still there."""
    obs.write_records((record(), record(name="jw2", index=1, row=1)))
    obs.commit(AlignmentDocument(step=step, exposures=(AlignedExposure("REFERENCE"),) * count))
    told = rf"{re.escape(obs.url)}/documents/alignment\.json is of {count} exposures, .* holds 2: .* run {step} again$"
    with pytest.raises(StoreError, match=told):
        obs.exposures()
    assert len(obs.exposures(aligned=False)) == 2
    obs.commit(AlignmentDocument(step=step, exposures=(AlignedExposure("REFERENCE"), AlignedExposure("FAILED"))))
    assert [e.record.name for e in obs.exposures()] == ["jw1", "jw2"]
    assert [e.aligned.status for e in obs.exposures() if e.aligned] == ["REFERENCE", "FAILED"]


@pytest.mark.parametrize(
    ("data", "word", "kind"),
    [
        (b"{", "damaged", StoreError),
        (
            b'{"attributes": {"schema": "other/store", "version": 1}}',
            r"not one of streamimg3.*'other/store'",
            InputError,
        ),
        (b'{"attributes": {"schema": "streamimg3/store", "version": 99}}', "upgrade", StoreError),
        (b'{"zarr_format": 3, "node_type": "group"}', "not one of streamimg3", InputError),
        (b'{"attributes": {"schema": "streamimg3/store", "version": "new"}}', "zarr.json is damaged", StoreError),
        (b"[]", "damaged", StoreError),
    ],
)
def test_a_root_that_is_not_ours(obs: Observation, data: bytes, word: str, kind: type[Exception]) -> None:
    obs.backend.put("zarr.json", data)
    with pytest.raises(kind, match=word):
        obs.require()


@pytest.mark.parametrize("index", [None, b"", b"[{}]", b'{"a": 1}', b'[{"name": "jw1"}]'])
def test_a_damaged_index_is_named(obs: Observation, index: bytes | None) -> None:
    obs.write_root({"ingested": True})
    if index is not None:
        obs.backend.put("exposures/index.json", index)
    with pytest.raises(StoreError, match=r"exposures/index\.json"):
        obs.records()


def test_documents_are_committed_and_retracted(obs: Observation) -> None:
    document = SkyDocument(method="match", levels=(0.5, None))
    assert obs.document(SkyDocument) is None
    obs.commit(document)
    obs.commit(SkyDocument(method="global"), "sky-other")
    assert obs.document(SkyDocument) == document
    assert obs.document(SkyDocument, "sky-other") == SkyDocument(method="global")
    obs.retract("sky")
    obs.retract("sky")
    assert obs.document(SkyDocument) is None and obs.document(SkyDocument, "sky-other") is not None


def test_a_damaged_document_is_named(obs: Observation) -> None:
    obs.backend.put("documents/sky.json", b"{")
    with pytest.raises(StoreError, match=r"documents/sky\.json is damaged"):
        obs.document(SkyDocument)


def test_consolidated_metadata_know_every_array(obs: Observation) -> None:
    obs.write_root({"ingested": True})
    obs.create_stack(SHAPE, 2, {"sci": None, "dq": None})
    obs.create_table(SHAPE, "wcs", [b"a", b"b"])
    obs.consolidate()
    group = zarr.open_consolidated(obs.backend.zarr)
    assert set(group[stack_path(SHAPE)].array_keys()) == {"sci", "dq", "wcs"}
    assert obs.require()["ingested"] is True


def test_an_observation_travels_as_a_value(tmp_path: Path) -> None:
    obs = Observation.at(str(tmp_path / "x.zarr"), {"key": "k", "anon": "no"})
    twin = pickle.loads(pickle.dumps(obs))
    assert twin == obs and hash(twin) == hash(obs)
    assert twin.options == (("anon", "no"), ("key", "k"))


def test_the_shared_store_is_whole(ingested: Observation) -> None:
    """The ingested field: records, planes and their checksums agree with the pixels."""
    import hashlib

    exposures = ingested.exposures()
    assert [e.record.index for e in exposures] == [0, 1, 2, 3]
    for exposure in exposures[:2]:
        whole = Box.of_shape(exposure.record.shape)
        for plane in exposure.record.planes:
            values = np.ascontiguousarray(exposure.read(plane, whole))
            assert hashlib.sha256(values.tobytes()).hexdigest() == exposure.record.checksums[plane]
        nan = exposure.read("nan", whole)
        planes = ("sci", "err", "var_poisson", "var_rnoise", "var_flat")
        wanted = np.any([np.isnan(exposure.read(p, whole)) for p in planes], axis=0)
        np.testing.assert_array_equal(nan, wanted)
        assert exposure.wcs.shape == exposure.record.shape
        assert "INSTRUME= 'NIRCAM" in exposure.cards("primary")


@settings(max_examples=100, deadline=None)
@given(shape=st.tuples(st.integers(1, 5000), st.integers(1, 5000)), count=st.integers(1, 10**5))
def test_chunks_and_shards_of_cubes(shape: tuple[int, int], count: int) -> None:
    (depth, cy, cx), (deep, sy, sx) = cube_chunking(shape, count)
    ny, nx = shape
    assert deep % depth == 0 and sy % cy == 0 and sx % cx == 0, "shards are whole chunks"
    assert cy <= ny and cx <= min(nx, 2048) and deep < count + depth
    assert sx >= nx and sx - nx < -(-nx // cx), "a shard is as wide as the image, but for what makes chunks equal"
    if deep > 1:
        assert sy >= ny, "several integrations are whole ones"
    assert 4 * deep * sy * sx <= SHARD_BYTES or (deep == depth == 1 and sy == cy)
    whole = 4 * sx * -(-ny // cy) * cy
    if sy >= ny and deep + depth <= count:
        assert (deep + depth) * whole > SHARD_BYTES, "no smaller than need be"


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12), ends=st.tuples(st.integers(0, 480), st.integers(0, 480))
)  # fmt: skip
def test_parts_of_a_stack_of_cubes(sizes: list[int], ends: tuple[int, int]) -> None:
    """Each integration is found once, in its exposure; blocks cover the stack."""
    firsts = [sum(sizes[:i]) for i in range(len(sizes))]
    records = [
        record(index=2 * i, row=i, integrations=n, first=f)
        for i, (n, f) in enumerate(zip(sizes, firsts, strict=True))
    ]  # fmt: skip
    (stack,) = cube_stacks([*records, record(index=1), record(index=3)])
    assert stack.count == sum(sizes) and stack.path == "integrations/300x270"
    blocks = stack.blocks()
    assert blocks[0][0] == 0 and blocks[-1][1] == stack.count
    assert all(a[1] == b[0] for a, b in itertools.pairwise(blocks))
    first, last = sorted(e % stack.count for e in ends)
    owners = [(2 * i, k) for i, n in enumerate(sizes) for k in range(n)]
    parts = stack.parts(first, last + 1)
    assert [(p.record.index, k) for p in parts for k in range(p.first, p.last)] == owners[first : last + 1]
    assert [p.start for p in parts] == [p.record.first + p.first - first for p in parts]


@given(sizes=st.lists(st.integers(1, 300), min_size=1, max_size=8), side=st.sampled_from([256, 1024, 2048]))
def test_batches_of_a_stack_of_cubes(sizes: list[int], side: int) -> None:
    """Whole shards, all of them once; several together only if they are of one or two exposures, and never all."""
    firsts = [sum(sizes[:i]) for i in range(len(sizes))]
    pairs = enumerate(zip(sizes, firsts, strict=True))
    records = [record(index=i, row=i, integrations=n, first=f, shape=(side, side)) for i, (n, f) in pairs]
    (stack,) = cube_stacks(records)
    blocks, batches = stack.blocks(), stack.batches()
    ends = {last for _, last in blocks}
    assert batches[0][0] == 0 and batches[-1][1] == stack.count
    assert all(a[1] == b[0] for a, b in itertools.pairwise(batches)) and {last for _, last in batches} <= ends
    for first, last in batches:
        shards = [b for b in blocks if first <= b[0] < last]
        assert len(shards) == 1 or (len(shards) <= 5 and len(stack.parts(first, last)) <= 2)
        assert len(shards) <= -(-len(blocks) // 4)  # for four workers there is something to do
