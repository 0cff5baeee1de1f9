"""calwebb_image3: from calibrated exposures to one mosaic (spec image3 §2)."""

from __future__ import annotations

from dataclasses import dataclass, field

from streamimg3.engine import Runner, Task
from streamimg3.errors import InputError
from streamimg3.stages import resample
from streamimg3.store import Observation
from streamimg3.store.documents import RunDocument

STEPS = ("assign_mtwcs", "tweakreg", "skymatch", "outlier_detection", "resample", "source_catalog")
_PRESENT = ("resample",)
_ALIGNMENT = ("assign_mtwcs", "tweakreg")  # which of them applies depends on the target


@dataclass(frozen=True)
class Params:
    """Parameters of the pipeline: one value per step, and the steps that the user skips."""

    resample: resample.Params = field(default_factory=resample.Params)
    skip: frozenset[str] = frozenset()


def check(params: Params) -> None:
    """Refuse steps that this version does not have, unless they are skipped; needs no input.

    Raises
    ------
    InputError
        Naming the steps and how to skip them.
    """
    absent = [s for s in STEPS if s not in _PRESENT and s not in params.skip and s not in _ALIGNMENT]
    if not any(s in params.skip for s in _ALIGNMENT):
        absent = ["tweakreg", *absent]
    _refuse(absent)


def _refuse(absent: list[str]) -> None:
    if absent:
        flags = " ".join(f"--set {s}.skip=true" for s in absent)
        raise InputError(f"image3 steps not in this version: {', '.join(absent)}; run without them by {flags}")


def applicable(obs: Observation) -> list[str]:
    """Return the steps in order; a moving target is aligned by assign_mtwcs, all others by tweakreg."""
    moving = (obs.exposures()[0].record.targtype or "").lower() == "moving"
    return [s for s in STEPS if s != ("tweakreg" if moving else "assign_mtwcs")]


def plan(obs: Observation, params: Params) -> dict[str, list[Task]]:
    """Return the tasks of every step that will run; reads no pixel.

    Raises
    ------
    InputError
        If a step that applies is not in this version and not skipped.
    """
    _refuse([s for s in applicable(obs) if s not in _PRESENT and s not in params.skip])
    return {} if "resample" in params.skip else {"resample": resample.plan(obs, params.resample)}


def run(obs: Observation, params: Params, runner: Runner, until: str | None = None) -> RunDocument:
    """Run the steps in order and record how each ended.

    Parameters
    ----------
    obs : Observation
        A store whose ingest has finished.
    params : Params
        Parameters of all steps.
    runner : Runner
        Memory and workers.
    until : str, optional
        Last step to run.

    Returns
    -------
    RunDocument
        Status of each step that ran, and the mosaics made; also kept in the store.
    """
    steps = applicable(obs)
    _refuse([s for s in steps if s not in _PRESENT and s not in params.skip])
    if until is not None and until not in steps:
        raise InputError(f"--until {until}: the steps for this target are {', '.join(steps)}")
    statuses: dict[str, str] = {}
    mosaics: tuple[str, ...] = ()
    for step in steps[: steps.index(until) + 1] if until else steps:
        if step in params.skip:
            statuses[step] = "SKIPPED"
            runner.progress.note(f"{step}: skipped by the user")
        elif step == "resample":
            made = resample.run(obs, params.resample, runner)
            statuses[step] = made[0].status
            mosaics = tuple(resample.document_name(d.path) for d in made)
    document = RunDocument("image3", statuses, mosaics=mosaics)
    if obs.document(RunDocument) != document:
        obs.commit(document)
    return document
