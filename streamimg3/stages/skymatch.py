"""Find the sky level of every exposure so that overlapping ones agree (spec image3 §5).

Each exposure is read by one task, which measures its sky in all its overlaps; the few numbers that come back are one
small set of linear equations.  No pixel is changed: the levels are a document that later steps and products heed.
"""

from __future__ import annotations

import dataclasses
import json
import math
import operator
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from streamimg3.engine import Outcome, Runner, Task
from streamimg3.engine.receipts import Ledger, digest
from streamimg3.errors import InputError, StoreError
from streamimg3.kernels.sky_equations import connected, solve
from streamimg3.kernels.sky_level import STATISTICS, Clipping
from streamimg3.sky.overlap import overlaps
from streamimg3.stages.sky_measure import WHOLE, Job, Measured, Memory, Region, measure, paired
from streamimg3.store import Exposure, Observation
from streamimg3.store.documents import SkyDocument, SkyListDocument, SkyOverlap, StageCost, plain, revive
from streamimg3.store.flags import bad_bits

NAME = "skymatch"
METHODS = ("local", "global", "match", "global+match", "user")
_OWN = ("local", "global", "global+match")  # those that measure exposures as a whole
DQBITS = "~DO_NOT_USE+NON_SCIENCE"
_CORNERS = 16_000  # bytes for the outline of an overlap with one more exposure
_CODE = 1  # raised when the numbers a given input leads to change
_NO_OVERLAP = "no overlap with another exposure that has good pixels on both sides"
_NO_PIXELS = "no good pixels within the limits"
_WHY = {"match": _NO_OVERLAP, "global+match": _NO_PIXELS, "local": _NO_PIXELS, "global": _NO_PIXELS, "user": ""}


@dataclass(frozen=True)
class Params:
    """Parameters of the skymatch step: names, meaning and defaults of jwst 3.0.0 (spec §5.1).

    Parameters
    ----------
    skymethod : str
        match (levels that make overlaps agree), local (each exposure its own), global (the lowest of those for all),
        global+match, or user (from ``skylist``).
    match_down : bool
        match: the exposure with the lowest (else highest) level keeps its sky.
    subtract : bool
        Products of single exposures come with the level taken off; if not, it is only recorded and taken off on the way
        to the mosaic.
    skylist : str or None
        File with a file name and a level on each line, for the method user.
    stepsize : int or None
        Largest distance in pixels between vertices of an exposure's outline; None = its corners.
    skystat : str
        mode, median, midpt or mean.
    dqbits : str or None
        Flags that do not exclude a pixel; None = flags are ignored. Where an exposure is not JWST's, the default
        excludes every flagged pixel.
    lower, upper : float or None
        Values outside are not used, in the image's unit.
    nclip : int
        Passes of clipping.
    lsigma, usigma : float
        Clipping limits below and above the mean in standard deviations.
    binwidth : float
        Of the histogram behind mode and midpt, in standard deviations.

    Raises
    ------
    InputError
        If a value is out of range.
    """

    skymethod: str = "match"
    match_down: bool = True
    subtract: bool = False
    skylist: str | None = None
    stepsize: int | None = None
    skystat: str = "mode"
    dqbits: str | None = DQBITS
    lower: float | None = None
    upper: float | None = None
    nclip: int = 5
    lsigma: float = 4.0
    usigma: float = 4.0
    binwidth: float = 0.1

    def __post_init__(self) -> None:
        checks = [
            (self.skymethod in METHODS, "skymethod", "one of " + ", ".join(METHODS)),
            (self.skymethod != "user" or bool(self.skylist), "skylist", "a file, for skymethod user"),
            (self.stepsize is None or self.stepsize >= 1, "stepsize", "at least 1"),
            (self.skystat in STATISTICS, "skystat", "one of " + ", ".join(STATISTICS)),
            (self.lower is None or math.isfinite(self.lower), "lower", "finite"),
            (self.upper is None or math.isfinite(self.upper), "upper", "finite"),
            (self.nclip >= 0, "nclip", "0 or more"),
            *((0 < getattr(self, n) < math.inf, n, "positive") for n in ("lsigma", "usigma", "binwidth")),
        ]
        for good, name, wanted in checks:
            if not good:
                raise InputError(f"{NAME}.{name} = {getattr(self, name)!r}: it must be {wanted}")
        try:
            bad_bits(self.dqbits)
        except InputError as error:
            raise InputError(f"{NAME}.dqbits = {self.dqbits!r}: {error}") from error

    @property
    def clipping(self) -> Clipping:
        """How a level is found from pixels."""
        return Clipping(self.skystat, self.lower, self.upper, self.nclip, self.lsigma, self.usigma, self.binwidth)


# ---------------------------------------------------------------- plan
def items_of(exposures: Sequence[Exposure]) -> tuple[tuple[int, ...], ...]:
    """Return the sets of exposures that share one level: the groups, in order of their first exposures."""
    groups: dict[str, list[int]] = {}
    for exposure in exposures:
        groups.setdefault(exposure.record.group_id, []).append(exposure.record.index)
    return tuple(tuple(members) for members in groups.values())


def plan(obs: Observation, params: Params, rough: bool = False) -> list[Task]:
    """Return the tasks, one per exposure that overlaps another and one per exposure to be measured as a whole.

    With ``rough`` every exposure is taken to overlap as a whole, for overlaps take the WCS of all.

    Raises
    ------
    InputError
        If an earlier sky level in a header does not fit the parameters, or a WCS cannot be used.
    """
    exposures = obs.exposures()
    _check_levels(exposures, params)
    jobs: list[Job] = []
    if "match" in params.skymethod:
        jobs = _whole_jobs(exposures, params) if rough else _overlap_jobs(exposures, params)
    corners = _CORNERS * len(exposures) if rough else 0
    tasks = [_task("overlaps", job, params, corners) for job in jobs]
    if params.skymethod in _OWN:
        tasks += [_task("whole", job, params) for job in _whole_jobs(exposures, params)]
    return tasks


def _check_levels(exposures: Sequence[Exposure], params: Params) -> None:
    """Refuse exposures whose earlier levels would be lost or counted twice (spec §5.2)."""
    if params.skymethod == "user":
        return
    for r in (e.record for e in exposures):
        if (r.bkgsub is None) != (r.bkglevel is None):
            has, lacks = ("BKGLEVEL", "BKGSUB") if r.bkgsub is None else ("BKGSUB", "BKGLEVEL")
            raise InputError(f"{r.url}: has {has} but no {lacks}: remove {has} or set {lacks}, or skip {NAME}")
        if r.bkgsub is not None and r.bkgsub != params.subtract:
            raise InputError(
                f"{r.url}: BKGSUB = {r.bkgsub} does not fit {NAME}.subtract = {params.subtract}:"
                f" set {NAME}.subtract={str(r.bkgsub).lower()} or skip {NAME}"
            )


def _overlap_jobs(exposures: Sequence[Exposure], params: Params) -> list[Job]:
    names = [e.record.url for e in exposures]
    found = overlaps(lambda i: exposures[i].wcs, names, items_of(exposures), params.stepsize)
    regions: dict[int, list[Region]] = {}
    for overlap in found:
        regions.setdefault(overlap.exposure, []).append(Region(overlap.item, overlap.polygons))
    jobs = [_job(exposures[i], params, parts) for i, parts in regions.items()]
    return [job for job in jobs if job is not None]


def _whole_jobs(exposures: Sequence[Exposure], params: Params, offsets: Sequence[float] = ()) -> list[Job]:
    jobs = [_job(e, params, [Region(WHOLE)], *offsets[k : k + 1]) for k, e in enumerate(exposures)]
    return [job for job in jobs if job is not None]


def _job(exposure: Exposure, params: Params, regions: Sequence[Region], offset: float = 0.0) -> Job | None:
    """The task of an exposure; None where no region reaches a pixel of it."""
    record = exposure.record
    kept = tuple(region for region in regions if region.box(record.shape) is not None)
    if not kept:
        return None
    usual = "0" if params.dqbits == DQBITS and not record.is_jwst else params.dqbits
    bad = bad_bits(usual) if exposure.has("dq") else 0
    return Job(record.index, record.row, exposure.group, record.shape, bad, offset, kept)


def _task(kind: str, job: Job, params: Params, more: int = 0) -> Task:
    """Return the task of a job; ``more`` bytes for what is not known of it yet."""
    memory = Memory.of(job, params.clipping)
    reads = ((f"{job.path}[{job.row}]", job.window.as_tuple()),)
    return Task(f"{kind}-{job.exposure:06d}", memory.frame + more, memory.least + more, reads, (), job.exposure)


# ---------------------------------------------------------------- work
def work(task: Task, *, obs: Observation, mark: str, clipping: Clipping) -> dict[str, float]:
    """Measure the sky of one exposure in each of its regions and keep the numbers in the store.

    Parameters
    ----------
    task : Task
        Names the job; its ``limit`` bounds the memory.
    obs : Observation
        The store.
    mark : str
        Digest under which the job is kept and the numbers will be.
    clipping : Clipping
        How a level is found from pixels.

    Returns
    -------
    dict
        Processor seconds.
    """
    start = time.process_time()
    found = measure(obs, Job.read(obs, _job_key(mark, task.key)), clipping, task.limit)
    data = json.dumps([dataclasses.asdict(m) for m in found], allow_nan=False)
    obs.backend.put(_result_key(mark, task.key), data.encode())
    return {"measure": time.process_time() - start}


def _scratch(mark: str) -> str:
    return f"scratch/{mark}"


def _job_key(mark: str, key: str) -> str:
    return f"{_scratch(mark)}/{key}.job.json"


def _result_key(mark: str, key: str) -> str:
    return f"{_scratch(mark)}/{key}.json"


def _result(obs: Observation, mark: str, key: str) -> list[Measured]:
    data = obs.backend.get(_result_key(mark, key))
    if data is None:
        raise StoreError(f"{obs.url}/{_result_key(mark, key)} is missing: run the step again")
    return [revive(Measured, m) for m in json.loads(data)]


# ---------------------------------------------------------------- run
def run(obs: Observation, params: Params, runner: Runner) -> SkyDocument:
    """Find the sky levels of all exposures unless the store holds the same levels already.

    Returns
    -------
    SkyDocument
        ``status`` SKIPPED with a reason where no exposure got a level.

    Raises
    ------
    InputError
        If parameters and exposures do not fit each other.
    BudgetError
        If the memory cannot hold the work.
    """
    exposures = obs.exposures()
    made = _Run(obs, params, runner, exposures)
    kept = obs.document(SkyDocument)
    if kept is not None and kept.digest == made.mark:
        runner.progress.note(f"{NAME}: unchanged, kept")
        return kept
    _check_levels(exposures, params)
    if params.skymethod == "user":
        made.user()
    if "match" in params.skymethod:
        made.match()
    if params.skymethod in _OWN:
        made.whole()
    document = made.document()
    for note in (*document.notes, *([f"SKIPPED: {document.reason}"] if document.reason else [])):
        runner.progress.note(f"{NAME}: {note}")
    runner.progress.note(f"{NAME}: {summary(document)}")
    obs.commit(document)
    obs.backend.remove_tree(f"receipts/{NAME}")  # before the numbers that the receipts speak of
    obs.backend.remove_tree(_scratch(made.mark))
    return document


def summary(document: SkyDocument) -> str:
    """Return one line: the range of the levels, and by how much overlaps differ without and with them."""
    known = [level for level in document.levels if level is not None]
    if not known:
        return "no exposure got a level"
    text = f"{len(known)} of {len(document.levels)} exposures have a level, {min(known):.4g} to {max(known):.4g}"
    level = {k: document.levels[members[0]] for k, members in enumerate(document.items)}
    before, after = [], []
    for overlap in document.overlaps:
        a, b = (level[i] for i in overlap.items)
        if a is not None and b is not None:
            before.append(overlap.values[0] - overlap.values[1])
            after.append(before[-1] - (a - b))
    if not before:
        return text
    rms = [math.sqrt(sum(d * d for d in part) / len(part)) for part in (before, after)]
    return f"{text}; {len(before)} overlaps differ by {rms[0]:.4g} before and {rms[1]:.4g} after (rms)"


def _digest(obs: Observation, exposures: Sequence[Exposure], params: Params) -> str:
    """Digest of everything that decides the levels."""
    given = obs.document(SkyListDocument) if params.skymethod == "user" else None
    facts = [
        (r.group_id, r.bkglevel, r.bkgsub, r.is_jwst, r.shape, [r.checksums.get(k) for k in ("sci", "dq", "wcs")])
        for r in (e.record for e in exposures)
    ]
    corrections = [e.correction and dataclasses.asdict(e.correction) for e in exposures]
    return digest(_CODE, NAME, plain(params), facts, corrections, given and (given.filenames, given.levels))


class _Run:
    """One run of the step: its parts, what they found and what they took."""

    def __init__(self, obs: Observation, params: Params, runner: Runner, exposures: Sequence[Exposure]) -> None:
        self.obs, self.params, self.runner, self.exposures = obs, params, runner, exposures
        self.mark = _digest(obs, exposures, params)
        self.ledger = Ledger(obs.backend, NAME, self.mark)
        self.items = items_of(exposures)
        self.single = params.skystat == "median"  # the reference goes on with a median in single precision
        self.cost, self.notes = Outcome(), list[str]()
        before = [e.record.bkglevel if params.subtract and e.record.bkgsub else None for e in exposures]
        self.sky = [level or 0.0 for level in before]
        self.known = [False] * len(exposures)
        self.pairs: list[SkyOverlap] = []

    def user(self) -> None:
        """Take the levels from the user's list."""
        given = self.obs.document(SkyListDocument)
        names = tuple(e.record.filename for e in self.exposures)
        if given is None or given.filenames != names:
            raise InputError(f"{self.params.skylist}: the list was not read for these exposures: give it again")
        self.sky, self.known = list(given.levels), [True] * len(names)

    def match(self) -> None:
        """Add the levels that make overlapping items agree."""
        found = self._measure("overlaps", _overlap_jobs(self.exposures, self.params))
        self.pairs = paired(self.items, found, self.single)
        deltas = solve(
            len(self.items), np.array([o.items for o in self.pairs], np.int64).reshape(-1, 2),
            np.array([o.values for o in self.pairs]), np.array([o.pixels for o in self.pairs]),
        )  # fmt: skip
        met = np.isfinite(deltas)
        if met.any():
            deltas[met] -= deltas[met].min() if self.params.match_down else deltas[met].max()
        self._add([float(d) if math.isfinite(d) else None for d in deltas])
        self._tell_apart(deltas)

    def whole(self) -> None:
        """Add each item's own level, or the lowest of them to all."""
        subtract = self.params.subtract
        offsets = self.sky if subtract and self.pairs else [0.0] * len(self.exposures)
        taken = [0.0 if subtract else level for level in self.sky]
        found = self._measure("whole", _whole_jobs(self.exposures, self.params, offsets))
        values = {m.exposure: self._sum(m.value, -taken[m.exposure]) for m in found}
        levels = [min((values[e] for e in members if e in values), default=None) for members in self.items]
        if "global" in self.params.skymethod:
            lowest = min((level for level in levels if level is not None), default=None)
            levels = [lowest] * len(levels)
        self._add(levels, self._sum)

    def _sum(self, one: float, other: float) -> float:
        """Add two levels of which one was measured."""
        return float(np.float32(one) + np.float32(other)) if self.single else one + other

    def _add(self, levels: Sequence[float | None], add: Callable[[float, float], float] = operator.add) -> None:
        for members, level in zip(self.items, levels, strict=True):
            if level is not None:
                for e in members:
                    self.sky[e] = add(self.sky[e], level)
                    self.known[e] = True

    def _tell_apart(self, deltas: NDArray[np.float64]) -> None:
        """Say which sets of items float freely against each other."""
        sets = connected(o.items for o in self.pairs)
        if len(sets) > 1:
            first = min if self.params.match_down else max
            names = [self._name(first(members, key=lambda k: deltas[k])) for members in sets]
            which = "lowest" if self.params.match_down else "highest"
            self.notes.append(
                f"{len(sets)} sets of exposures do not overlap each other: each floats freely against the others"
                f" ({which} of each: {', '.join(names)})"
            )

    def _name(self, item: int) -> str:
        return self.exposures[self.items[item][0]].record.name

    def _measure(self, kind: str, jobs: Sequence[Job]) -> list[Measured]:
        """Run one task per job and gather the numbers, in the order of the jobs."""
        tasks = [_task(kind, job, self.params) for job in jobs]
        kept = set(self.obs.backend.keys(_scratch(self.mark)))
        if not {f"{key}.json" for key in self.ledger.done()} <= kept:
            self.obs.backend.remove_tree(self.ledger.prefix)  # the numbers behind these receipts are gone
        for task, job in zip(tasks, jobs, strict=True):
            job.write(self.obs, _job_key(self.mark, task.key))
        call = partial(work, obs=self.obs, mark=self.mark, clipping=self.params.clipping)
        self.cost += self.runner.fill(call, tasks, self.ledger)
        return [found for task in tasks for found in _result(self.obs, self.mark, task.key)]

    def document(self) -> SkyDocument:
        """Return what was found."""
        lost = [e.record.name for e, known in zip(self.exposures, self.known, strict=True) if not known]
        if 0 < len(lost) < len(self.exposures):
            self.notes.append(f"no sky level for {', '.join(lost)}: {_WHY[self.params.skymethod]}")
        nothing = len(lost) == len(self.exposures)
        return SkyDocument(
            digest=self.mark, method=self.params.skymethod, status="SKIPPED" if nothing else "COMPLETE",
            reason=_WHY[self.params.skymethod] if nothing else None, parameters=plain(self.params), subtract=self.params.subtract,
            levels=tuple(level if known else None for level, known in zip(self.sky, self.known, strict=True)),
            items=self.items, overlaps=tuple(self.pairs), components=connected(o.items for o in self.pairs),
            notes=tuple(self.notes), cost=StageCost.of(self.cost),
        )  # fmt: skip
