"""What all tests share: a small simulated field, ingested once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from streamimg3 import Observation, Session, ingest
from streamimg3.formats.simulate import Field, simulate

SKIP = {
    step: {"skip": True} for step in ("assign_mtwcs", "tweakreg", "skymatch", "outlier_detection", "source_catalog")
}
DATA = Path(__file__).parent / "data"
M17 = DATA / "2mass_m17"


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
