"""Time series and coronagraphs from S3 to S3 on a Dask cluster: the bytes of a serial run on local disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest

from streamimg3 import Observation, Session, run
from tests.pipelines.coronagraphs import make
from tests.pipelines.time_series import Scene, write_series
from tests.s3.arrays import pixels_of, sums_of
from tests.s3.conftest import BUCKET, Cluster, Server

pytestmark = pytest.mark.s3


@pytest.fixture(scope="module")
def cluster(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A scheduler and two worker processes."""
    made = Cluster(tmp_path_factory.mktemp("dask"), server.environment, workers=2, memory="1GiB")
    yield made
    made.close()


def coron3(folder: Path) -> tuple[str, str, dict[str, Any]]:
    """Files of coron3: association, an array that must be made, parameters."""
    files = make(folder)
    return files.association, "mosaic/sci", {"align_refs.override_psfmask": files.weights, "klip.truncate": 4}


def tso3(folder: Path) -> tuple[str, str, dict[str, Any]]:
    """The same of tso3."""
    radii = {"radius": 4.0, "radius_inner": 7.0, "radius_outer": 10.0}
    association = write_series(folder, Scene(shape=(24, 32), count=120, dimmed=(40, 80)), (70, 50))
    return association, "photometry/aperture_sum", {f"tso_photometry.{k}": v for k, v in radii.items()}


@pytest.mark.parametrize("write", [coron3, tso3], ids=lambda write: write.__name__)
def test_same_bytes_as_on_disk(server: Server, cluster: Cluster, tmp_path: Path, write: Any) -> None:
    """Members, reference files, store and products lie on S3; workers know nothing else."""
    name, folder = write.__name__, tmp_path / "in"
    association, made, parameters = write(folder)
    for path in folder.iterdir():
        obstore.put(server.bucket(), f"{name}/in/{path.name}", path)
    root = f"s3://{BUCKET}/{name}"
    there = {key: str(value).replace(str(folder), f"{root}/in") for key, value in parameters.items()}
    sets = [word for key, value in there.items() for word in ("--set", f"{key}={value}")]
    where = ["--store", f"{root}/x.zarr", "--output-dir", f"{root}/out", "--cluster", cluster.file]
    done = server.run("run", name, association.replace(str(folder), f"{root}/in"), *where, *sets)
    assert done.returncode == 0, done.stderr

    steps: dict[str, dict[str, Any]] = {}
    for key, value in parameters.items():
        step, _, parameter = key.partition(".")
        steps.setdefault(step, {})[parameter] = value
    local = run(name, association, session=Session(output_dir=str(tmp_path / "out"), workers=1), **steps)
    assert sums_of(Observation.at(f"{root}/x.zarr", server.options), made) == sums_of(local, made)

    products = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir() if p.is_file()}
    keys = server.keys(f"{name}/out/")
    assert {os.path.basename(key) for key in keys} == set(products)
    for key in (k for k in keys if k.endswith(".fits")):
        found = bytes(obstore.get(server.bucket(), key).bytes())
        assert pixels_of(found) == pixels_of(products[os.path.basename(key)]), key
