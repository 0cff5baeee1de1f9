"""Fields, runs and plain comparisons that the pipeline tests share."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from streamimg3 import Observation, Session, run
from streamimg3.engine.runner import Outcome, Progress
from streamimg3.store.documents import ResampleDocument
from tests.conftest import SKIP


@dataclass
class Recorder(Progress):
    """Keeps what a run tells about itself."""

    notes: list[str] = field(default_factory=list)
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def note(self, text: str) -> None:
        """Keep a note."""
        self.notes.append(text)

    def finish(self, stage: str, outcome: Outcome) -> None:
        """Keep what a stage took."""
        self.outcomes[stage] = outcome


def planes_of(obs: Observation, name: str = "resample") -> dict[str, NDArray[np.generic]]:
    """Return every plane of a mosaic, whole."""
    document = obs.document(ResampleDocument, name)
    assert document is not None
    return {plane: np.asarray(obs.array(f"{document.path}/{plane}")[...]) for plane in document.planes}


def sums_of(obs: Observation, name: str = "resample") -> dict[str, str]:
    """Return the SHA-256 of every plane of a mosaic, whole."""
    return {plane: hashlib.sha256(values.tobytes()).hexdigest() for plane, values in planes_of(obs, name).items()}


Run = Callable[..., Observation]


@pytest.fixture
def store(ingested: Observation, tmp_path: Path) -> Path:
    """A copy of the ingested field."""
    return Path(shutil.copytree(ingested.url, tmp_path / "field.zarr"))


@pytest.fixture
def mosaic(store: Path, tmp_path: Path) -> Run:
    """Run image3 on the copy with these resample parameters."""

    def go(progress: Progress | None = None, **parameters: object) -> Observation:
        session = Session(output_dir=str(tmp_path / "out"), workers=1, progress=progress or Progress())
        return run("image3", str(store), session=session, **SKIP, resample=parameters)

    return go
