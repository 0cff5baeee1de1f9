"""calwebb_image3: from calibrated exposures to one mosaic (spec image3 §2)."""

from __future__ import annotations

from dataclasses import dataclass, field

from streamimg3.engine import Runner, Task
from streamimg3.errors import InputError
from streamimg3.stages import resample
from streamimg3.store import Observation

STEPS = ("assign_mtwcs", "tweakreg", "skymatch", "outlier_detection", "resample", "source_catalog")
_PRESENT = ("resample",)


@dataclass(frozen=True)
class Params:
    """Parameters of the pipeline: one value per step, and the steps that the user skips."""

    resample: resample.Params = field(default_factory=resample.Params)
    skip: frozenset[str] = frozenset()


def check(obs: Observation, params: Params) -> None:
    """Refuse steps that this version does not have, unless they are skipped.

    Raises
    ------
    InputError
        Naming the steps and how to skip them.
    """
    missing = [s for s in applicable(obs) if s not in _PRESENT and s not in params.skip]
    if missing:
        flags = " ".join(f"--set {s}.skip=true" for s in missing)
        raise InputError(f"image3 steps not in this version: {', '.join(missing)}; run without them by {flags}")


def applicable(obs: Observation) -> list[str]:
    """Return the steps in order; a moving target is aligned by assign_mtwcs, all others by tweakreg."""
    moving = (obs.exposures()[0].record.targtype or "").lower() == "moving"
    return [s for s in STEPS if s != ("tweakreg" if moving else "assign_mtwcs")]


def plan(obs: Observation, params: Params) -> dict[str, list[Task]]:
    """Return the tasks of every step that will run; reads no pixel."""
    check(obs, params)
    return {} if "resample" in params.skip else {"resample": resample.plan(obs, params.resample)}


def run(obs: Observation, params: Params, runner: Runner, until: str | None = None) -> dict[str, str]:
    """Run the steps in order.

    Returns
    -------
    dict
        Status of each applicable step: COMPLETE or SKIPPED.
    """
    check(obs, params)
    status: dict[str, str] = {}
    for step in applicable(obs):
        if step in params.skip:
            status[step] = "SKIPPED"
            runner.progress.note(f"{step}: skipped by the user")
        elif step == "resample":
            status[step] = resample.run(obs, params.resample, runner).status
        if step == until:
            break
    return status
