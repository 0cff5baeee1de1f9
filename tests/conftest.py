"""What all tests share: a small simulated field, ingested once; the command line as a process of its own."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import streamimg3
from streamimg3 import Observation, Session, ingest
from streamimg3.formats.simulate import Field, simulate

SKIP = {
    step: {"skip": True} for step in ("assign_mtwcs", "tweakreg", "skymatch", "outlier_detection", "source_catalog")
}
DATA = Path(__file__).parent / "data"
M17 = DATA / "2mass_m17"


def python(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python in a process that finds the package under test, and whose memory is not that of all tests before."""
    path = os.pathsep.join([str(Path(streamimg3.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip


def command_line(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in such a process."""
    return python("-m", "streamimg3", *arguments)


@pytest.fixture(scope="session")
def field(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Association of four 192² exposures."""
    return simulate(tmp_path_factory.mktemp("field"), Field(shape=(192, 192), dithers=4))


@pytest.fixture(scope="session")
def ingested(field: Path, tmp_path_factory: pytest.TempPathFactory) -> Observation:
    """The same in a store; not to be changed."""
    return ingest(str(field), Session(store=str(tmp_path_factory.mktemp("store") / "field.zarr"), workers=1))


@pytest.fixture
def mosaic_sums() -> Iterator[object]:
    """A function that gives the SHA-256 of every array of a store's mosaic."""

    def sums(obs: Observation, path: str = "mosaic") -> dict[str, str]:
        from streamimg3.store.documents import ResampleDocument

        document = obs.document(ResampleDocument)
        assert document is not None
        planes = {plane: np.ascontiguousarray(obs.array(f"{path}/{plane}")[...]) for plane in document.planes}
        return {name: hashlib.sha256(values.tobytes()).hexdigest() for name, values in planes.items()}

    yield sums
