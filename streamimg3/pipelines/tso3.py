"""calwebb_tso3: from calibrated time series to photometry, or to spectra and light curves (spec others §2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from streamimg3.engine import Runner, Task
from streamimg3.errors import InputError
from streamimg3.stages import extract_1d, photom, resample, tso_outlier_detection, tso_photometry, white_light
from streamimg3.stages.photometry_columns import unit_of
from streamimg3.stages.series_blocks import references_of
from streamimg3.store import Observation
from streamimg3.store.documents import OutlierDocument, RunDocument
from streamimg3.store.series_documents import (
    LightCurveDocument,
    PhotometryDocument,
    SeriesFacts,
    SpectraDocument,
)

STEPS = ("outlier_detection", "tso_photometry", "extract_1d", "photom", "white_light", "resample")
OPTIONAL = ("resample",)  # skipped unless the user says skip=false: the reference does not have it
ABSENT = ("adaptive_trace_model", "pixel_replace")  # the reference has them, and skips them unless told otherwise
_IMAGING = ("outlier_detection", "tso_photometry", "resample")
_SPECTRA = ("outlier_detection", "extract_1d", "photom", "white_light")
_SOSS = "NIS_SOSS"
_DOCUMENTS = {
    "outlier_detection": OutlierDocument.kind,
    "tso_photometry": PhotometryDocument.kind,
    "extract_1d": SpectraDocument.kind,
    "white_light": LightCurveDocument.kind,
}


@dataclass(frozen=True)
class Params:
    """Parameters of the pipeline: one value per step, and the steps that the user skips."""

    outlier_detection: tso_outlier_detection.Params = field(default_factory=tso_outlier_detection.Params)
    tso_photometry: tso_photometry.Params = field(default_factory=tso_photometry.Params)
    extract_1d: extract_1d.Params = field(default_factory=extract_1d.Params)
    photom: photom.Params = field(default_factory=photom.Params)
    white_light: white_light.Params = field(default_factory=white_light.Params)
    resample: resample.Params = field(default_factory=resample.Params)
    skip: frozenset[str] = frozenset(OPTIONAL)
    pipeline: ClassVar[Literal["tso3"]] = "tso3"


STAGES: Mapping[str, Any] = {
    "outlier_detection": tso_outlier_detection,
    "tso_photometry": tso_photometry,
    "extract_1d": extract_1d,
    "photom": photom,
    "white_light": white_light,
    "resample": resample,
}
_MOSAIC = {"mosaic": resample.AsTheyCame()}


def is_imaging(facts: SeriesFacts) -> bool:
    """Whether a time series is one of images; all others are spectra."""
    return facts.exp_type in tso_photometry.IMAGING


def applicable(obs: Observation) -> tuple[str, ...]:
    """Return the steps in order: those of images or those of spectra.

    Raises
    ------
    InputError
        If the exposures are of different kinds.
    """
    facts = [e.facts for e in references_of(obs).exposures]
    kinds = {is_imaging(f) for f in facts}
    if len(kinds) > 1:
        shown = ", ".join(sorted({f.exp_type for f in facts}))
        raise InputError(f"the exposures are images and spectra ({shown}): run tso3 on each kind by itself")
    if kinds == {True}:
        units = {unit_of(f) for f in facts}
        if len(units) > 1:
            raise InputError(
                f"the exposures have different units ({', '.join(sorted(units))}): run tso3 on each by itself"
            )
        return _IMAGING
    return _SPECTRA if any(f.exp_type == _SOSS for f in facts) else tuple(s for s in _SPECTRA if s != "photom")


def plan(obs: Observation, params: Params, rough: bool = False) -> dict[str, list[Task]]:
    """Return the tasks of every step that will run, as far as they are known beforehand; reads no pixel."""
    steps = [s for s in applicable(obs) if s not in params.skip and s != "photom"]
    if "extract_1d" in params.skip:
        steps = [s for s in steps if s != "white_light"]
    tasks = {step: STAGES[step].plan(obs, getattr(params, step), rough) for step in steps if step != "resample"}
    if "resample" in steps:
        cubes = obs.exposures(aligned=False)
        tasks["resample"] = resample.plan_subtracted(obs, params.resample, cubes, _MOSAIC, rough)
    return tasks


def run(obs: Observation, params: Params, runner: Runner, until: str | None = None) -> RunDocument:
    """Run the steps in order and record how each ended.

    Parameters
    ----------
    obs : Observation
        A store with time series and what reference files say of them.
    params : Params
        Parameters of all steps.
    runner : Runner
        Memory and workers.
    until : str, optional
        Last step to run.

    Raises
    ------
    InputError
        If the last step is none of those for these exposures.
    """
    steps = applicable(obs)
    if until is not None and until not in steps:
        raise InputError(f"--until {until}: the steps for these exposures are {', '.join(steps)}")
    made = _Run(obs, params, runner)
    for step in steps[: steps.index(until) + 1] if until else steps:
        made.step(step)
    document = RunDocument("tso3", made.statuses, made.reasons, made.mosaics)
    if obs.document(RunDocument) != document:
        obs.commit(document)
    return document


class _Run:
    """Runs step after step."""

    def __init__(self, obs: Observation, params: Params, runner: Runner) -> None:
        self.obs, self.params, self.runner = obs, params, runner
        self.statuses: dict[str, str] = {}
        self.reasons: dict[str, str] = {}
        self.mosaics: tuple[str, ...] = ()

    def step(self, step: str) -> None:
        """Run one step, or say why not."""
        why = self._why_skipped(step)
        if why is not None:
            self.statuses[step], self.reasons[step] = "SKIPPED", why
            if step not in OPTIONAL:
                self.runner.progress.note(f"{step}: skipped {why}")
            _forget(self.obs, step)
            return
        status, reason = self._done(step)
        self.statuses[step] = status
        if reason:
            self.reasons[step] = reason
            self.runner.progress.note(f"{step}: {status}: {reason}")

    def _why_skipped(self, step: str) -> str | None:
        if step in self.params.skip:
            return "unless asked for (resample.skip=false)" if step in OPTIONAL else "by the user"
        if step in ("photom", "white_light") and self.statuses.get("extract_1d") == "SKIPPED":
            return "because extract_1d was skipped: there are no spectra"
        return None

    def _done(self, step: str) -> tuple[str, str | None]:
        obs, params, runner = self.obs, self.params, self.runner
        flagged = self.statuses.get("outlier_detection") == "COMPLETE"
        if step == "outlier_detection":
            found = tso_outlier_detection.run(obs, params.outlier_detection, runner)
            return found.status, found.reason
        if step == "tso_photometry":
            table = tso_photometry.run(obs, params.tso_photometry, runner, flagged)
            return table.status, table.reason
        if step == "extract_1d":
            photom_too = "photom" not in params.skip
            spectra = extract_1d.run(obs, params.extract_1d, runner, flagged, photom_too)
            return spectra.status, spectra.reason
        if step == "photom":  # spectra were multiplied as they were written
            document = obs.document(SpectraDocument)
            calibrated = document is not None and all(s.flux_unit == "MJy" for s in document.spectra)
            return (
                ("COMPLETE", None) if calibrated else ("SKIPPED", "there is no photom reference file for these spectra")
            )
        if step == "resample":
            cubes = obs.exposures(aligned=False)
            mosaics = resample.run_subtracted(obs, params.resample, runner, cubes, _MOSAIC)
            self.mosaics = tuple(resample.document_name(d.path) for d in mosaics)
            return "COMPLETE", None
        curves = white_light.run(obs, params.white_light, runner)
        return curves.status, curves.reason


def _forget(obs: Observation, step: str) -> None:
    """Withdraw what an earlier run of a step found."""
    name = _DOCUMENTS.get(step)
    if name is not None and f"{name}.json" in obs.backend.keys("documents"):
        obs.retract(name)
