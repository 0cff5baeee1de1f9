"""calwebb_coron3: reference stars are stacked, aligned and subtracted from the science exposures (spec others §3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from streamimg3.engine import Runner, Task
from streamimg3.errors import InputError
from streamimg3.stages import align_refs, hlsp, klip, outlier_coron, resample, stack_refs
from streamimg3.stages.psf_stack import Cast, cast_of
from streamimg3.store import Observation
from streamimg3.store.coron_documents import AlignRefsDocument, ContrastDocument, KlipDocument
from streamimg3.store.documents import OutlierDocument, RunDocument

STEPS = ("outlier_detection", "stack_refs", "align_refs", "klip", "resample", "hlsp")
# What each step leaves behind; a step that is skipped leaves nothing that a later one could see
_DOCUMENTS = {
    "outlier_detection": OutlierDocument.kind,
    "align_refs": AlignRefsDocument.kind,
    "klip": KlipDocument.kind,
    "hlsp": ContrastDocument.kind,
}
_NEEDED = {"klip": ("stack_refs",), "align_refs": ("stack_refs",), "resample": ("klip",), "hlsp": ("resample",)}


@dataclass(frozen=True)
class Params:
    """Parameters of the pipeline: one value per step, and the steps that the user skips."""

    outlier_detection: outlier_coron.Params = field(default_factory=outlier_coron.Params)
    stack_refs: stack_refs.Params = field(default_factory=stack_refs.Params)
    align_refs: align_refs.Params = field(default_factory=align_refs.Params)
    klip: klip.Params = field(default_factory=klip.Params)
    resample: resample.Params = field(default_factory=resample.Params)
    hlsp: hlsp.Params = field(default_factory=hlsp.Params)
    skip: frozenset[str] = frozenset()
    pipeline: ClassVar[Literal["coron3"]] = "coron3"

    def __post_init__(self) -> None:
        if self.resample.single:
            raise InputError("resample.single = True: coron3 combines all integrations; leave it at False")


STAGES: Mapping[str, Any] = {
    "outlier_detection": outlier_coron,
    "stack_refs": stack_refs,
    "align_refs": align_refs,
    "klip": klip,
    "resample": resample,
    "hlsp": hlsp,
}


def mosaic_path(truncate: int, params: Params) -> str:
    """Return where the mosaic for a number of components lies; a single one is that of the product.

    Examples
    --------
    >>> mosaic_path(50, Params())
    'mosaic'
    """
    return "mosaic" if len(params.klip.truncate) == 1 else f"single/kl{truncate}"


def _stacks(params: Params, digest: str) -> dict[str, resample.Subtracted]:
    return {
        mosaic_path(k, params): resample.Subtracted(f"{klip.ROOT}/kl{k}", f"{digest}-{k}") for k in params.klip.truncate
    }


def why_skipped(step: str, params: Params, statuses: Mapping[str, str] | None = None) -> str | None:
    """Return why a run leaves a step out, None if it does not."""
    if step in params.skip:
        return "by the user"
    for needed in _NEEDED.get(step, ()):
        if needed in params.skip or (statuses or {}).get(needed) == "SKIPPED":
            return f"because {needed} was skipped"
    return None


def plan(obs: Observation, params: Params, rough: bool = False) -> dict[str, list[Task]]:
    """Return the tasks of every step that will run, as far as they are known beforehand; reads no pixel."""
    cast = cast_of(obs)
    tasks: dict[str, list[Task]] = {}
    for step in (s for s in STEPS if why_skipped(s, params) is None):
        if step == "resample":
            tasks[step] = resample.plan_subtracted(obs, params.resample, cast.science, _stacks(params, ""), rough)
        elif step == "hlsp":
            tasks[step] = _hlsp_tasks(obs, params, cast)
        elif step == "klip":
            tasks[step] = klip.plan(obs, params.klip, each=params.align_refs.align_to == "each")
        elif step != "align_refs" or align_refs.masks_of(obs) is not None:
            tasks[step] = STAGES[step].plan(obs, getattr(params, step))
    return tasks


def _hlsp_tasks(obs: Observation, params: Params, cast: Cast) -> list[Task]:
    targets = resample.targets_subtracted(obs, params.resample, cast.science, _stacks(params, ""))
    return hlsp.tasks([t.frame.shape for t in targets])


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
        Status of each step up to the last one, with a reason where it was skipped, and the mosaics made; also kept in the
        store.
    """
    if until is not None and until not in STEPS:
        raise InputError(f"--until {until}: the steps are {', '.join(STEPS)}")
    cast_of(obs)  # refused before any work
    steps = STEPS[: STEPS.index(until) + 1] if until else STEPS
    made = _Run(obs, params, runner)
    for step in STEPS:
        if step in steps:
            made.step(step)
    document = RunDocument("coron3", made.statuses, made.reasons, made.mosaics)
    if obs.document(RunDocument) != document:
        obs.commit(document)
    return document


class _Run:
    """One run: how each step ended."""

    def __init__(self, obs: Observation, params: Params, runner: Runner) -> None:
        self.obs, self.params, self.runner = obs, params, runner
        self.statuses: dict[str, str] = {}
        self.reasons: dict[str, str] = {}
        self.mosaics: tuple[str, ...] = ()

    def step(self, step: str) -> None:
        """Run one step, or leave it out."""
        why = why_skipped(step, self.params, self.statuses)
        if why is not None:
            self.statuses[step], self.reasons[step] = "SKIPPED", why
            self.runner.progress.note(f"{step}: skipped {why}")
            self._forget(step)
            return
        status, reason = self._made(step)
        self.statuses[step] = status
        if reason:
            self.reasons[step] = reason

    def _made(self, step: str) -> tuple[str, str | None]:
        """Run a step; returns its status and the reason for it."""
        obs, runner, own = self.obs, self.runner, getattr(self.params, step)
        if step == "stack_refs":
            stack = stack_refs.run(obs, own)
            runner.progress.note(f"{step}: {stack.count} references of {len(stack.exposures)} exposures")
            return "COMPLETE", None
        if step == "resample":
            subtracted = obs.document(KlipDocument)
            assert subtracted is not None
            stacks = _stacks(self.params, subtracted.digest)
            mosaics = resample.run_subtracted(obs, own, runner, cast_of(obs).science, stacks)
            self.mosaics = tuple(resample.document_name(d.path) for d in mosaics)
            return mosaics[0].status, mosaics[0].reason
        document = hlsp.run(obs, own, runner, self.mosaics) if step == "hlsp" else STAGES[step].run(obs, own, runner)
        return document.status, document.reason

    def _forget(self, step: str) -> None:
        """Withdraw what an earlier run of a step found, so that the later steps do as if it had not been."""
        name = _DOCUMENTS.get(step)
        if name is not None and f"{name}.json" in self.obs.backend.keys("documents"):
            self.obs.retract(name)
