"""A store of a thousand exposures is opened, and a piece of it read, with few requests and little memory."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import streamimg3
from streamimg3 import Observation
from streamimg3.geometry import Box
from streamimg3.store.documents import AlignedExposure, AlignmentDocument
from streamimg3.store.exposure import stack_path
from tests.s3.conftest import BUCKET, Proxy, Server

pytestmark = pytest.mark.s3

COUNT = 1000
SHAPE = (2048, 2048)
URL = f"s3://{BUCKET}/thousand.zarr"
PLAN = r"""
import itertools, re, sys
from streamimg3 import api
from streamimg3.pipelines import image3
session = api.Session(workers=2, storage_options=dict(pair.split("=", 1) for pair in sys.argv[2:]))
runner = session.runner(sys.argv[1])
obs = api.open(sys.argv[1], **session.storage_options)
params = image3.Params(skip=frozenset({"tweakreg"}))
tasks = image3.plan(obs, params, rough=True)
runner.require(list(itertools.chain(*tasks.values())))
assert len(obs.exposures()) == 1000
peak = re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]  # rusage would begin with that of its parent
print(len(tasks["resample"]), peak)
"""


def _make(obs: Observation, like: Observation) -> np.ndarray:
    """Metadata of a thousand exposures, moved along a strip; returns the only pixels, those of exposure 700 and of a tile."""
    (first, *_), path = like.exposures(), stack_path(SHAPE)
    obs.create_stack(SHAPE, COUNT, dict.fromkeys((*first.record.planes, "nan"), first.record.bunit))
    for name, text in (("cards_primary", first.cards("primary")), ("cards_sci", first.cards("sci"))):
        obs.create_table(SHAPE, name, [text.encode()] * COUNT)
    obs.create_table(SHAPE, "wcs", [first.wcs.text] * COUNT)
    records = [
        replace(first.record, name=f"e{i:04d}", index=i, row=i, shape=SHAPE, s_region=_moved(i), group_id=f"g{i}")
        for i in range(COUNT)
    ]
    obs.write_records(records)
    obs.commit(
        AlignmentDocument(status="COMPLETE", exposures=tuple(AlignedExposure(status="SUCCESS") for _ in records))
    )
    pixels = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    obs.write(f"{path}/sci", (700,), Box.of_shape(SHAPE), pixels)
    obs.write_group("mosaic", {})
    obs.create_image("mosaic/sci", (20480, 20480), 1024, None)
    obs.write("mosaic/sci", (), Box(1024, 2048, 2048, 3072), pixels[:1024, :1024])
    obs.write_root({"ingested": True})
    obs.consolidate()
    return pixels


def _moved(i: int) -> str:
    """An outline of a minute of arc, somewhere in a field of 20 by 50."""
    ra, dec = 150.0 + 0.01 * (i % 50), 2.0 + 0.01 * (i // 50)
    corners = ((0, 0), (0.0178, 0), (0.0178, 0.0178), (0, 0.0178))
    return "POLYGON ICRS  " + " ".join(f"{ra + x:.9f} {dec + y:.9f}" for x, y in corners)


@pytest.fixture(scope="module")
def pixels(server: Server, ingested: Observation) -> np.ndarray:
    """The store, at URL."""
    return _make(Observation.at(URL, server.options), ingested)


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    """Counts requests."""
    made = Proxy(server.ports["s3.port"])
    yield made
    made.close()


def _requests(proxy: Proxy) -> int:
    counts = proxy.reset()["requests"]
    assert isinstance(counts, dict)
    return int(sum(counts.values()))


def test_opening_and_a_cut_out(server: Server, proxy: Proxy, pixels: np.ndarray) -> None:
    """At most 20 requests and a second, for the store's own reader and for xarray alike."""
    options = server.options | {"endpoint_url": proxy.endpoint}
    proxy.reset()
    start = time.monotonic()
    exposures = streamimg3.open(URL, **options).exposures()
    cut = exposures[700].read("sci", Box(1000, 900, 1300, 1200))
    tile = exposures[0].observation.window("mosaic/sci", (), Box(1100, 2100, 1400, 2400))
    seconds, requests = time.monotonic() - start, _requests(proxy)
    print(f"\nopen, {len(exposures)} exposures, two cut-outs: {requests} requests, {seconds:.2f} s")
    assert len(exposures) == COUNT
    np.testing.assert_array_equal(cut, pixels[1000:1300, 900:1200])
    np.testing.assert_array_equal(tile, pixels[76:376, 52:352])
    assert requests <= 20
    assert seconds <= 1.0


def test_opening_with_xarray(server: Server, proxy: Proxy, pixels: np.ndarray) -> None:
    import xarray
    from obstore.store import S3Store
    from zarr.storage import ObjectStore

    where = S3Store(
        BUCKET, prefix="thousand.zarr", endpoint=proxy.endpoint, access_key_id=server.options["key"],
        secret_access_key=server.options["secret"], region="us-east-1", client_options={"allow_http": True},
    )  # fmt: skip
    proxy.reset()
    with xarray.open_datatree(ObjectStore(where, read_only=True), engine="zarr", chunks=None) as tree:
        cut = tree["exposures/2048x2048/sci"].isel(exposure=700, y=slice(1000, 1300), x=slice(900, 1200)).to_numpy()
    requests = _requests(proxy)
    print(f"\nxarray, one cut-out: {requests} requests")
    np.testing.assert_array_equal(cut, pixels[1000:1300, 900:1200])
    assert requests <= 20


def test_the_driver_stays_small(server: Server, pixels: np.ndarray, tmp_path: Path) -> None:
    """A driver of workers that knows all exposures and tasks, and has checked the budget, has less than 300 MiB resident."""
    options = [f"{key}={value}" for key, value in server.options.items()]
    command = [sys.executable, "-c", PLAN, URL, *options]
    done = subprocess.run(command, capture_output=True, text=True, env=server.environment, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    tiles, kib = map(int, done.stdout.split())
    print(f"\n{COUNT} exposures, {tiles} tiles: {kib / 1024:.0f} MiB")
    assert tiles > 100
    assert kib <= 300 * 1024
