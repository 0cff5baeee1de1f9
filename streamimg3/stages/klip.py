"""Subtract the star with the principal components of the references, in two passes over bands of rows (spec others §3.5, §3.8)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from streamimg3.engine import Outcome, Runner, Task
from streamimg3.kernels.klip import Coefficients, Sums
from streamimg3.stages.klip_job import (
    NAME,
    ROOT,
    WORKING,
    Job,
    Params,
    Target,
    folder,
    move_tasks,
    prepare,
    project_tasks,
    sum_tasks,
)
from streamimg3.stages.klip_work import (
    RegionSums,
    coefficients_key,
    move_work,
    project_work,
    read_coefficients,
    solved,
    sum_work,
    write_coefficients,
)
from streamimg3.store import Observation
from streamimg3.store.coron_documents import KlipDocument, SubtractedExposure
from streamimg3.store.documents import StageCost, plain, utc_now

__all__ = ["ROOT", "Params", "folder", "plan", "run"]
_CREATED = "_created"


def plan(obs: Observation, params: Params, each: bool = False) -> list[Task]:
    """Return all tasks: for each science exposure the bands of the first pass, and those of the second.

    Parameters
    ----------
    obs : Observation
        A store whose ingest has finished.
    params : Params
        The step's parameters.
    each : bool
        Every integration will have references of its own: a task as large is then run for each.
    """
    job = prepare(obs, params)
    tasks = []
    for number in range(len(job.cast.science)):
        target = job.targets(number)[0]
        target = replace(target, last=target.first + 1) if each else target
        tasks += [*move_tasks(job, target), *sum_tasks(job, target), *project_tasks(job, target)]
    return tasks


def run(obs: Observation, params: Params, runner: Runner) -> KlipDocument:
    """Subtract the star from every science exposure unless the store holds the same result already.

    Raises
    ------
    BudgetError
        If the memory cannot hold the work.
    """
    job = prepare(obs, params)
    kept = obs.document(KlipDocument)
    if kept is not None and kept.digest == job.mark:
        runner.progress.note(f"{NAME}: unchanged, kept")
        return kept
    runner.check(plan(obs, params, each=any(a.targets > 1 for a in job.aligned)))
    ledger = job.ledger(obs)
    if _CREATED not in ledger.done():
        obs.retract(KlipDocument.kind)
        _forget(obs)
        _create(obs, job)
        ledger.mark(_CREATED)
    obs.backend.sweep()
    made = _Run(obs, job, runner)
    found = tuple(made.exposure(number) for number in range(len(job.cast.science)))
    document = KlipDocument(
        digest=job.mark, made=utc_now(), parameters=plain(params), truncate=params.truncate,
        references=job.cast.psf.count, exposures=found, notes=tuple(_notes(job, found)), cost=StageCost.of(made.cost),
    )  # fmt: skip
    for note in document.notes:
        runner.progress.note(f"{NAME}: {note}")
    obs.backend.remove_tree(WORKING)
    obs.consolidate()
    obs.commit(document)
    obs.backend.remove_tree(f"receipts/{NAME}")
    obs.backend.remove_tree(f"scratch/{job.mark}")
    return document


def _forget(obs: Observation) -> None:
    for path in (ROOT, WORKING, f"receipts/{NAME}"):
        obs.backend.remove_tree(path)


def _create(obs: Observation, job: Job) -> None:
    """Create the empty results."""
    ny, nx = job.cast.psf.shape
    for number, exposure in enumerate(job.cast.science):
        targets, rows, unit = job.targets(number), job.rows(number), exposure.record.bunit
        many = len(targets) > 1
        for truncate in job.params.truncate:
            for plane, count in (("sci", exposure.depth), ("err", len(targets))):
                obs.create_series(
                    folder(truncate, exposure), "frame" if plane == "sci" else "target", (count, ny, nx), {plane: unit},
                    rows=rows, deep=not many,
                )  # fmt: skip


class _Run:
    """One run of the step."""

    def __init__(self, obs: Observation, job: Job, runner: Runner) -> None:
        self.obs, self.job, self.runner = obs, job, runner
        self.cost = Outcome()

    def exposure(self, number: int) -> SubtractedExposure:
        """Subtract the star from one science exposure, target by target."""
        job, exposure = self.job, self.job.cast.science[number]
        kept: list[tuple[int, ...]] = []
        pixels: list[int] = []
        strengths: tuple[float, ...] = ()
        for target in job.targets(number):
            found = self._components(target)
            work = partial(project_work, obs=self.obs, params=job.params)
            self.cost += self.runner.fill(work, project_tasks(job, target), job.ledger(self.obs))
            self._drop(target)
            kept += [one.kept for one in found]
            pixels += [one.pixels for one in found]
            strengths = strengths or tuple(float(v) for v in found[0].strengths)
        return SubtractedExposure(exposure.record.index, exposure.record.name, tuple(kept), tuple(pixels), strengths)

    def _components(self, target: Target) -> list[Coefficients]:
        """Return the components of a target; what was solved before an interruption is taken as it is."""
        obs, job = self.obs, self.job
        if obs.backend.get(coefficients_key(job, target)) is None:
            ledger = job.ledger(obs)
            moves = move_tasks(job, target)
            self._make_room(target)
            if moves:
                self.cost += self.runner.fill(partial(move_work, obs=obs, params=job.params), moves, ledger)
            zero = RegionSums(Sums() for _ in range(job.regions(target.number).count))
            work = partial(sum_work, obs=obs, params=job.params)
            sums = self.runner.fold(work, sum_tasks(job, target), zero, f"{NAME}-sums", self.cost)
            write_coefficients(obs, job, target, solved(job, target, sums))
        return read_coefficients(obs, job, target)

    def _make_room(self, target: Target) -> None:
        """Create the stack of references of one integration, unless it is there."""
        made, ledger = f"room-{target.number:04d}-{target.frame:06d}", self.job.ledger(self.obs)
        if target.path.startswith(f"{WORKING}/") and made not in ledger.done():
            unit = self.job.cast.science[target.number].record.bunit
            shape = (self.job.cast.psf.count, *self.job.cast.psf.shape)
            self.obs.create_series(target.path, "reference", shape, {"sci": unit})
            ledger.mark(made)

    def _drop(self, target: Target) -> None:
        if target.path.startswith(f"{WORKING}/"):
            self.obs.backend.remove_tree(target.path)


def _notes(job: Job, found: Sequence[SubtractedExposure]) -> Iterator[str]:
    """What a user should know."""
    count, whole = job.cast.psf.count, math.prod(job.cast.psf.shape)
    if count == 1:
        yield "there is a single reference: it has one component, itself"
    for one in found:
        fewer = sorted({n for region in one.kept for n in region})
        wanted = ", ".join(map(str, job.params.truncate))
        yield f"{one.path}: {count} references, truncate {wanted}: kept {', '.join(map(str, fewer))}"
        if not job.params.annuli and one.pixels and min(one.pixels) < whole:
            yield f"{one.path}: {whole - min(one.pixels)} pixels are missing in a reference and take no part"
