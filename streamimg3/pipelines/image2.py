"""calwebb_image2: from count rates to calibrated exposures and a rectified image of each (spec others §1.1)."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from streamimg3.engine import Runner, Task
from streamimg3.errors import InputError
from streamimg3.stages import assign_wcs, bkg_subtract, flat_field, photom, resample
from streamimg3.stages.calibrated_band import Given, Planes, invalid
from streamimg3.store import Exposure, Observation
from streamimg3.store.documents import CalibrationDocument, RunDocument

STEPS = ("bkg_subtract", "assign_wcs", "flat_field", "photom", "resample")
PIXEL_STEPS = STEPS[:-1]  # those that make the calibrated exposure
IMAGES = ("MIR_IMAGE", "NRC_IMAGE", "NIS_IMAGE", "FGS_IMAGE")  # EXP_TYPE of what is rectified


@dataclass(frozen=True)
class Params:
    """Parameters of the pipeline: one value per step, and the steps that the user skips."""

    bkg_subtract: bkg_subtract.Params = field(default_factory=bkg_subtract.Params)
    assign_wcs: assign_wcs.Params = field(default_factory=assign_wcs.Params)
    flat_field: flat_field.Params = field(default_factory=flat_field.Params)
    photom: photom.Params = field(default_factory=photom.Params)
    resample: resample.Params = field(default_factory=resample.Params)
    skip: frozenset[str] = frozenset()
    pipeline: ClassVar[Literal["image2"]] = "image2"


STAGES: Mapping[str, Any] = {
    "bkg_subtract": bkg_subtract,
    "assign_wcs": assign_wcs,
    "flat_field": flat_field,
    "photom": photom,
    "resample": resample,
}


def reached(until: str | None) -> tuple[str, ...]:
    """Return the steps up to a last one.

    Raises
    ------
    InputError
        If there is no such step.
    """
    if until is not None and until not in STEPS:
        raise InputError(f"--until {until}: the steps are {', '.join(STEPS)}")
    return STEPS[: STEPS.index(until) + 1] if until else STEPS


def calibrate(planes: Planes, given: Given, params: Mapping[str, Any], last: str = "photom") -> None:
    """Take a band of an exposure through the steps, in place.

    Parameters
    ----------
    planes : Planes
        Count rates; of cubes all integrations at hand.
    given : Given
        What belongs to the same rows.
    params : mapping
        Whether each step is inverse, by step.
    last : str
        Last step to be done.
    """
    steps = STEPS[: STEPS.index(last) + 1]
    if given.background is not None:
        bkg_subtract.apply(planes, given.background)
    if given.flat is not None and "flat_field" in steps:
        flat_field.apply(planes, given.flat, bool(params.get("flat_field")))
    if given.photmjsr is not None and "photom" in steps:
        photom.apply(planes, given.photmjsr, given.correction, bool(params.get("photom")))
    if given.matched and "photom" in steps:
        invalid(planes)


def rectifiable(obs: Observation, params: Params) -> tuple[Exposure, ...]:
    """Return the exposures of which a rectified image is made."""
    document = calibration(obs)
    if "resample" in params.skip:
        return ()
    pairs = zip(obs.exposures(aligned=False), document.exposures, strict=True)
    return tuple(exposure for exposure, entry in pairs if entry.image)


def calibration(obs: Observation) -> CalibrationDocument:
    """Return what the exposures of a store were calibrated by.

    Raises
    ------
    InputError
        If the store holds other exposures.
    """
    document = obs.document(CalibrationDocument)
    if document is None:
        raise InputError(f"{obs.url} was not made by image2: give the _rate files, or another --store")
    return document


def rectified(params: Params) -> resample.Params:
    """Return the parameters of resample for one exposure by itself."""
    return dataclasses.replace(params.resample, single=False, blendheaders=False)


def plan(obs: Observation, params: Params, rough: bool = False) -> dict[str, list[Task]]:
    """Return the tasks of resample; the other steps are done while pixels come in."""
    chosen = rectifiable(obs, params)
    return {"resample": resample.plan_each(obs, rectified(params), chosen, rough)} if chosen else {}


def run(obs: Observation, params: Params, runner: Runner, until: str | None = None) -> RunDocument:
    """Rectify the calibrated exposures of a store and record how each step ended.

    Parameters
    ----------
    obs : Observation
        A store whose exposures are calibrated.
    params : Params
        Parameters of all steps.
    runner : Runner
        Memory and workers.
    until : str, optional
        Last step to run.
    """
    document = calibration(obs)
    statuses, reasons = gathered(document)
    mosaics: tuple[str, ...] = ()
    if "resample" in reached(until):
        chosen = rectifiable(obs, params)
        made = resample.run_each(obs, rectified(params), runner, chosen)
        mosaics = tuple(resample.document_name(d.path) for d in made)
        statuses["resample"] = "COMPLETE" if made else "SKIPPED"
        if not made:
            reasons["resample"] = (
                "by the user"
                if "resample" in params.skip
                else f"no exposure is a 2-D image of type {', '.join(IMAGES)} with a gWCS"
            )
    for step in (s for s in STEPS if s in reasons):
        runner.progress.note(f"{step}: skipped {reasons[step]}")
    found = RunDocument("image2", statuses, reasons, mosaics)
    if obs.document(RunDocument) != found:
        obs.commit(found)
    return found


def gathered(document: CalibrationDocument) -> tuple[dict[str, str], dict[str, str]]:
    """Return status and reason by step for all exposures together: COMPLETE if it is for any."""
    statuses: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for step in PIXEL_STEPS:
        found = [e.statuses[step] for e in document.exposures if step in e.statuses]
        if found:
            statuses[step] = "COMPLETE" if "COMPLETE" in found else found[0]
        why = Counter(e.reasons[step] for e in document.exposures if step in e.reasons)
        if why:
            reasons[step] = "; ".join(
                text if n == len(document.exposures) else f"{text} ({n} of {len(document.exposures)} exposures)"
                for text, n in why.items()
            )
    return statuses, reasons
