"""Running image3 again redoes only the steps that depend on what has changed, and says which are kept."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from streamimg3 import Observation, Session, run
from streamimg3.engine.runner import Outcome, Progress
from streamimg3.pipelines import image3
from streamimg3.stages import resample
from streamimg3.store.documents import CatalogDocument, ResampleDocument, RunDocument

STEPS = ("tweakreg", "skymatch", "outlier_detection", "resample", "source_catalog")


class Log(Progress):
    """Remembers notes and stages that did something."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.kept: set[str] = set()
        self.worked: set[str] = set()

    def note(self, text: str) -> None:
        self.notes.append(text)
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
    assert same.kept == {*STEPS, "export"}


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


@pytest.mark.parametrize("change", [{"skip": True}, {"single": True}])
def test_no_catalogue_of_an_earlier_runs_mosaic(store: str, change: dict[str, bool]) -> None:
    """A run that makes no mosaic of all exposures measures none, although the store has one; the next run does again."""
    obs = Observation.at(store)
    before = obs.document(ResampleDocument)
    assert before is not None and obs.document(CatalogDocument) is not None
    log = _again(store, resample=change, skymatch={"skip": True})
    document = obs.document(RunDocument)
    assert document is not None
    assert document.statuses["source_catalog"] == "SKIPPED"
    assert document.statuses["resample"] == ("SKIPPED" if "skip" in change else "COMPLETE")
    assert "resample" in document.reasons["source_catalog"]
    assert f"source_catalog: skipped {document.reasons['source_catalog']}" in log.notes
    assert "source_catalog" not in log.worked
    assert obs.document(ResampleDocument) == before and obs.document(CatalogDocument) is None
    assert not list(Path(store).parent.glob("*_cat.ecsv")) and not list(Path(store).parent.glob("*_segm.fits"))
    log = _again(store)
    assert "resample" in log.kept and "source_catalog" in log.worked
    assert list(Path(store).parent.glob("*_cat.ecsv"))


def test_what_is_not_run_is_not_planned(store: str) -> None:
    """The budget is not checked for a catalogue that will not be made."""
    obs = Observation.at(store)
    assert list(image3.plan(obs, image3.Params())) == list(STEPS)
    assert "source_catalog" not in image3.plan(obs, image3.Params(skip=frozenset({"resample"})))
    assert "source_catalog" not in image3.plan(obs, image3.Params(resample=resample.Params(single=True)))
