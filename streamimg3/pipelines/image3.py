"""calwebb_image3: from calibrated exposures to one mosaic and its catalogue (spec image3 §2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from streamimg3.engine import Runner, Task
from streamimg3.errors import InputError
from streamimg3.stages import assign_mtwcs, outlier_detection, resample, skymatch, source_catalog, tweakreg
from streamimg3.store import Observation
from streamimg3.store.documents import (
    AlignmentDocument,
    AssociationDocument,
    CatalogDocument,
    OutlierDocument,
    RunDocument,
    SkyDocument,
)

STEPS = ("assign_mtwcs", "tweakreg", "skymatch", "outlier_detection", "resample", "source_catalog")
_ALIGNMENT = ("assign_mtwcs", "tweakreg")  # which of them applies depends on the target
_PLACED = ("skymatch", "outlier_detection", "resample")  # their tasks depend on where exposures lie
# What each step leaves behind; a step that is skipped leaves nothing that a later one could see
_DOCUMENTS = {
    "assign_mtwcs": AlignmentDocument.kind,
    "tweakreg": AlignmentDocument.kind,
    "skymatch": SkyDocument.kind,
    "outlier_detection": OutlierDocument.kind,
    "source_catalog": CatalogDocument.kind,
}


@dataclass(frozen=True)
class Params:
    """Parameters of the pipeline: one value per step, and the steps that the user skips."""

    assign_mtwcs: assign_mtwcs.Params = field(default_factory=assign_mtwcs.Params)
    tweakreg: tweakreg.Params = field(default_factory=tweakreg.Params)
    skymatch: skymatch.Params = field(default_factory=skymatch.Params)
    outlier_detection: outlier_detection.Params = field(default_factory=outlier_detection.Params)
    resample: resample.Params = field(default_factory=resample.Params)
    source_catalog: source_catalog.Params = field(default_factory=source_catalog.Params)
    skip: frozenset[str] = frozenset()
    pipeline: ClassVar[Literal["image3"]] = "image3"


STAGES: Mapping[str, Any] = {
    "assign_mtwcs": assign_mtwcs,
    "tweakreg": tweakreg,
    "skymatch": skymatch,
    "outlier_detection": outlier_detection,
    "resample": resample,
    "source_catalog": source_catalog,
}


def applicable(obs: Observation) -> list[str]:
    """Return the steps in order; a moving target is aligned by assign_mtwcs, all others by tweakreg.

    Raises
    ------
    InputError
        If an exposure is a cube of integrations, saying who takes it.
    """
    records = obs.records()
    cube = next((r for r in records if r.integrations), None)
    if cube is not None:
        raise InputError(
            f"{cube.url}: is a cube of {cube.integrations} integrations, and image3 combines images: "
            "give coron3 or tso3 the cubes, or image3 the files with one image each (_cal)"
        )
    association = obs.document(AssociationDocument)
    if association is not None and len(association.exposures) != sum(
        m.exptype.strip().lower() == "science" for m in association.members
    ):
        raise InputError(f"{obs.url} holds reference stars (exptype psf): give it to coron3")
    units = {r.bunit: r.name for r in reversed(records)}
    if len(units) > 1:
        listed = "; ".join(f"{unit or 'no BUNIT'} in {name}" for unit, name in units.items())
        raise InputError(f"the images have different units ({listed}): combine images of one BUNIT")
    moving = (records[0].targtype or "").lower() == "moving"
    return [s for s in STEPS if s != ("tweakreg" if moving else "assign_mtwcs")]


def plan(obs: Observation, params: Params, rough: bool = False) -> dict[str, list[Task]]:
    """Return the tasks of every step that will run, as far as they are known beforehand; reads no pixel.

    With ``rough`` steps that depend on where exposures lie go by their outlines: enough to check a budget, at once.
    """
    tasks = {}
    for step in (s for s in applicable(obs) if _why_skipped(s, params) is None):
        more = {"rough": True} if rough and step in _PLACED else {}
        tasks[step] = STAGES[step].plan(obs, getattr(params, step), **more)
    return tasks


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
        Status of each step up to the last one, with a reason where it was skipped or failed, and the mosaics made; also
        kept in the store.
    """
    steps = applicable(obs)
    if until is not None and until not in steps:
        raise InputError(f"--until {until}: the steps for this target are {', '.join(steps)}")
    statuses: dict[str, str] = {}
    reasons: dict[str, str] = {}
    mosaics: tuple[str, ...] = ()
    for step in steps[: steps.index(until) + 1] if until else steps:
        why = _why_skipped(step, params)
        if why is not None:
            statuses[step], reasons[step] = "SKIPPED", why
            runner.progress.note(f"{step}: skipped {why}")
            _forget(obs, step)
            continue
        made = STAGES[step].run(obs, getattr(params, step), runner)
        documents = made if isinstance(made, tuple) else (made,)
        statuses[step] = documents[0].status
        if documents[0].reason:
            reasons[step] = documents[0].reason
        if step == "resample":
            mosaics = tuple(resample.document_name(d.path) for d in documents)
    document = RunDocument("image3", statuses, reasons, mosaics)
    if obs.document(RunDocument) != document:
        obs.commit(document)
    return document


def _why_skipped(step: str, params: Params) -> str | None:
    """Why a run leaves a step out, None if it does not.

    The catalogue is one of the mosaic that the same run made or kept: without that one (spec image3 §2) the store may
    still hold the mosaic of an earlier run, made of the exposures as they were then.
    """
    if step in params.skip:
        return "by the user"
    if step == "source_catalog" and "resample" in params.skip:
        return "because resample was skipped: this run has no mosaic"
    if step == "source_catalog" and params.resample.single:
        return "because resample.single makes no mosaic of all exposures"
    return None


def _forget(obs: Observation, step: str) -> None:
    """Withdraw what an earlier run of a step found, so that the later steps do as if it had not been."""
    name = _DOCUMENTS.get(step)
    if name is not None and f"{name}.json" in obs.backend.keys("documents"):
        obs.retract(name)
