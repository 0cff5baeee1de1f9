"""Running image3 again redoes only the steps that depend on what has changed, and says which are kept."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from streamimg3 import Observation, Session, run
from streamimg3.engine.runner import Outcome, Progress

STEPS = ("tweakreg", "skymatch", "outlier_detection", "resample", "source_catalog")


class Log(Progress):
    """Remembers notes and stages that did something."""

    def __init__(self) -> None:
        self.kept: set[str] = set()
        self.worked: set[str] = set()

    def note(self, text: str) -> None:
        if text.endswith("unchanged, kept"):
            self.kept.add(text.split(":")[0])

    def finish(self, stage: str, outcome: Outcome) -> None:
        if outcome.tasks_done:
            self.worked.add(stage.split("-")[0])


@pytest.fixture(scope="module")
def first(field: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store after a whole run."""
    folder = tmp_path_factory.mktemp("first")
    run("image3", str(field), session=Session(output_dir=str(folder), workers=1))
    return next(folder.glob("*.zarr"))


@pytest.fixture
def store(first: Path, tmp_path: Path) -> str:
    """A copy of it."""
    return str(shutil.copytree(first, tmp_path / first.name))


def _again(store: str, **steps: Any) -> Log:
    log = Log()
    run("image3", store, session=Session(output_dir=str(Path(store).parent), workers=1, progress=log), **steps)
    return log


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ({}, 0),
        ({"source_catalog": {"npixels": 20}}, 1),
        ({"resample": {"pixfrac": 0.8}}, 2),
        ({"outlier_detection": {"snr": "6.0 5.0"}}, 3),
        ({"skymatch": {"skystat": "median"}}, 4),
    ],
)
def test_only_what_depends_on_the_change(store: str, change: dict[str, Any], redone: int) -> None:
    """The steps before the changed one are kept; it and those after it run."""
    log = _again(store, **change)
    assert log.kept == set(STEPS[: len(STEPS) - redone])


def test_alignment_with_another_outcome(store: str) -> None:
    """Everything after the alignment depends on where the exposures are, not on how that was found out."""
    log = _again(store, tweakreg={"minobj": 14})
    assert "tweakreg" not in log.kept
    same = _again(store, tweakreg={"minobj": 14})
    assert same.kept == set(STEPS)


def test_stars_are_detected_once(store: str) -> None:
    """Another fit reads no pixel; another detection threshold does."""
    assert "stars" not in _again(store, tweakreg={"fitgeometry": "shift"}).worked
    assert "stars" in _again(store, tweakreg={"snr_threshold": 12.0}).worked


def test_a_skipped_step_leaves_nothing_behind(store: str) -> None:
    """After a run without the sky levels the mosaic is made without them, and with them again as at first."""
    obs = Observation.at(store)
    sums = obs.array("mosaic/sci")[:].tobytes()
    assert "resample" not in _again(store, skymatch={"skip": True}).kept
    assert obs.array("mosaic/sci")[:].tobytes() != sums
    _again(store)
    assert obs.array("mosaic/sci")[:].tobytes() == sums
