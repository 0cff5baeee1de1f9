"""Subtract the star with the principal components of the references, in two passes over bands of rows (spec others §3.5, §3.8)."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from streamimg3.engine import Outcome, Runner, Task
from streamimg3.engine.receipts import Ledger, digest
from streamimg3.errors import InputError, StoreError
from streamimg3.geometry import Box
from streamimg3.kernels.klip import Coefficients, Sums, accumulate, project, solve
from streamimg3.kernels.regions import Regions
from streamimg3.stages.psf_stack import Cast, cast_of
from streamimg3.stages.reference_planes import PLANE, Recipe, moved, ready, recipe_of, shifts_to
from streamimg3.stages.tile_drizzle import Clock
from streamimg3.store import Exposure, Observation
from streamimg3.store.documents import (
    AlignedReferences,
    AlignRefsDocument,
    KlipDocument,
    OutlierDocument,
    StageCost,
    SubtractedExposure,
    plain,
    utc_now,
)
from streamimg3.store.layout import SHARD_BYTES, cube_chunking
from streamimg3.store.seen_cube import SeenCube

NAME = "klip"
ROOT = "psfsub"
WORKING = "components"  # aligned references of one integration, where each has its own
F4 = NDArray[np.float32]
_CREATED = "_created"
_CODE = 1  # raised when the numbers a given input leads to change
_BANDS = 8  # of the first pass, at most: the sums of each are kept until the last is there
_READ = 8  # bytes per pixel of the references and integrations of a band: themselves, and a chunk on its way
_ROW = 40  # bytes per pixel of a row of them: in double precision, less the mean, its square
_CODEC = 8  # bytes per pixel of a shard besides itself
_REST = 8 * 2**20


@dataclass(frozen=True)
class Params:
    """Parameters of the klip step: names, meaning and defaults of jwst 3.0.0 unless said otherwise.

    Parameters
    ----------
    truncate : sequence of int
        Numbers of components to keep (ours: several are made in one pass); no more than there are references are kept.
    annuli : sequence of float or None
        Ours: radii in pixels between which rings are treated separately; nothing is made of pixels outside. None = the
        whole image at once.
    sectors : int
        Ours: sectors of a ring, treated separately.
    centre : pair of float or None
        Ours: the star, x and y from 0; None = CRPIX of the exposure, else the middle of the image.
    tile : int
        Ours: most rows of a band.

    Raises
    ------
    InputError
        If a value is out of range.
    """

    truncate: tuple[int, ...] = (50,)
    annuli: tuple[float, ...] | None = None
    sectors: int = 1
    centre: tuple[float, float] | None = None
    tile: int = 64

    def __post_init__(self) -> None:
        edges = self.annuli or ()
        rising = all(a < b for a, b in itertools.pairwise(edges)) and all(e >= 0 and math.isfinite(e) for e in edges)
        checks = [
            (bool(self.truncate) and min(self.truncate) >= 0, "truncate", "numbers of components, 0 or more"),
            (len(set(self.truncate)) == len(self.truncate), "truncate", "different numbers"),
            (self.annuli is None or (len(edges) > 1 and rising), "annuli", "two or more increasing radii in pixels"),
            (self.sectors >= 1, "sectors", "1 or more"),
            (self.centre is None or all(map(math.isfinite, self.centre)), "centre", "two finite numbers, x and y"),
            (1 <= self.tile <= 8192, "tile", "1 to 8192 rows"),
        ]
        for good, name, wanted in checks:
            if not good:
                raise InputError(f"{NAME}.{name} = {getattr(self, name)!r}: it must be {wanted}")


class RegionSums(tuple[Sums, ...]):
    """Sums of several regions; + adds those of the same region."""

    __slots__ = ()

    def __add__(self, other: object) -> RegionSums:
        """Return the sums over the rows of both."""
        if not isinstance(other, RegionSums):
            return NotImplemented
        return RegionSums(a + b for a, b in zip(self, other, strict=True))


@dataclass(frozen=True)
class Target:
    """Integrations of a science exposure that share one set of references.

    Parameters
    ----------
    number : int
        Of the science exposure.
    frame : int
        0, or the integration where each has its own references.
    first, last : int
        Integrations, half-open.
    path : str
        Stack of the aligned references, "" = they are not aligned.
    """

    number: int
    frame: int
    first: int
    last: int
    path: str


@dataclass(frozen=True)
class Job:
    """What a run is about.

    Parameters
    ----------
    cast : Cast
        Exposures by their roles.
    params : Params
        The step's parameters.
    recipe : Recipe
        How planes are made ready.
    aligned : tuple of AlignedReferences
        By science exposure; empty = references are not aligned.
    mark : str
        Digest.
    """

    cast: Cast
    params: Params
    recipe: Recipe
    aligned: tuple[AlignedReferences, ...]
    mark: str

    def targets(self, number: int) -> list[Target]:
        """Return the targets of a science exposure."""
        depth = self.cast.science[number].depth
        if not self.aligned:
            return [Target(number, 0, 0, depth, "")]
        found = self.aligned[number]
        if found.path:
            return [Target(number, 0, 0, depth, found.path)]
        return [Target(number, t, t, t + 1, f"{WORKING}/{number:04d}-{t:06d}") for t in range(depth)]

    def rows(self, number: int) -> int:
        """Return the rows of a band of the second pass, which is a shard of the results."""
        (ny, nx), depth = self.cast.psf.shape, self.cast.science[number].depth
        return max(1, min(ny, self.params.tile, SHARD_BYTES // (4 * depth * nx)))

    def ledger(self, obs: Observation) -> Ledger:
        """Return the receipts of this run: they speak of shards, which depend on the height of a band."""
        return Ledger(obs.backend, NAME, f"{self.mark}-{self.params.tile}")

    @property
    def rows_first(self) -> int:
        """Rows of a band of the first pass: a power of two, so that sums of few nodes come out."""
        wanted = max(-(-self.cast.psf.shape[0] // _BANDS), min(16, self.params.tile))
        return 1 << (wanted - 1).bit_length()

    def regions(self, number: int) -> Regions:
        """Return what is treated separately in a science exposure."""
        params = self.params
        x, y = params.centre or star(self.cast.science[number])
        return Regions((y, x), params.annuli or (), params.sectors)


def star(exposure: Exposure) -> tuple[float, float]:
    """Return where the star is, x and y from 0: CRPIX, else the middle of the image."""
    ny, nx = exposure.record.shape
    found = []
    for name, middle in (("CRPIX1", (nx - 1) / 2), ("CRPIX2", (ny - 1) / 2)):
        cards = exposure.cards("sci")
        lines = [cards[i : i + 80] for i in range(0, len(cards), 80)]
        value = next((line[10:].partition("/")[0].strip() for line in lines if line[:9] == f"{name:<8}="), "")
        try:
            found.append(float(value) - 1.0)
        except ValueError:
            found.append(middle)
    return found[0], found[1]


def folder(truncate: int, exposure: Exposure) -> str:
    """Return where a subtracted exposure is kept."""
    return f"{ROOT}/kl{truncate}/{exposure.record.name}"


def prepare(obs: Observation, params: Params) -> Job:
    """Work out what is to be done; reads documents only."""
    cast = cast_of(obs)
    document = obs.document(AlignRefsDocument)
    outliers = obs.document(OutlierDocument) if cast.psf.judged else None
    there = document is not None and document.status == "COMPLETE"
    mark = digest(
        _CODE, params.truncate, params.annuli, params.sectors, params.centre, document.digest if there and document else "",
        [e.record.checksums for e in cast.everything], [e.record.name for e in cast.science], outliers and outliers.digest,
    )  # fmt: skip
    return Job(cast, params, recipe_of(document), document.exposures if there and document else (), mark)


# ---------------------------------------------------------------- tasks
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
        tasks += [*_move_tasks(job, target), *_sum_tasks(job, target), *_project_tasks(job, target)]
    return tasks


def _moments(job: Job, target: Target) -> int:
    """Bytes of the sums over some rows, for all regions."""
    references, count = job.cast.psf.count, target.last - target.first
    return 8 * (references**2 + 3 * references * count + references) * job.regions(target.number).count


def _band_memory(job: Job, target: Target, rows: int) -> int:
    """Bytes of a band of both, with what is around it for filling, and of one row in double precision."""
    nx, planes = job.cast.psf.shape[1], job.cast.psf.count + target.last - target.first
    (_, chunk, _), _ = cube_chunking(job.cast.psf.shape, job.cast.psf.count)
    grown = min(job.cast.psf.shape[0], rows + 2 * job.recipe.reach)
    return nx * planes * (rows * _READ + _ROW) + (target.last - target.first) * grown * nx * PLANE + chunk * nx * 4 * 32


def _sum_tasks(job: Job, target: Target) -> list[Task]:
    """Bands of the first pass."""
    ny, nx = job.cast.psf.shape
    bands = range(0, ny, job.rows_first)
    fixed = (len(bands) + 4) * _moments(job, target) + _REST
    least, most = (fixed + _band_memory(job, target, rows) for rows in (1, job.rows_first))
    tasks = []
    for y0 in bands:
        box = (y0, 0, min(y0 + job.rows_first, ny), nx)
        reads = ((target.path or "psf", box),)
        tasks.append(Task(_key("s", target, y0), most, least, reads, (), (*_place(target), y0)))
    return tasks


def _project_tasks(job: Job, target: Target) -> list[Task]:
    """Bands of the second pass: shards of the results."""
    (ny, nx), exposure = job.cast.psf.shape, job.cast.science[target.number]
    rows, count = job.rows(target.number), target.last - target.first
    shards = len(job.params.truncate) * (count + 1) * rows * nx * 4 + (count + 1) * rows * nx * _CODEC
    fixed = shards + 2 * _moments(job, target) + _REST
    sizes = (fixed + _band_memory(job, target, n) + len(job.params.truncate) * count * nx * n * 8 for n in (1, rows))
    least, most = sizes
    tasks = []
    for y0 in range(0, ny, rows):
        box = (y0, 0, min(y0 + rows, ny), nx)
        reads = ((target.path or "psf", box),)
        writes = tuple((f"{folder(k, exposure)}/sci", box) for k in job.params.truncate)
        tasks.append(Task(_key("p", target, y0), most, least, reads, writes, (*_place(target), y0)))
    return tasks


def _move_tasks(job: Job, target: Target) -> list[Task]:
    """Shards of the references as they are aligned with one integration, where each has its own."""
    if not target.path.startswith(f"{WORKING}/"):
        return []
    (ny, nx), count = job.cast.psf.shape, job.cast.psf.count
    _, (depth, _, _) = cube_chunking((ny, nx), count)
    tasks = []
    for first in range(0, count, depth):
        last = min(first + depth, count)
        need = (last - first) * ny * nx * 17 + ny * nx * (PLANE + 64) + _REST
        box = (first * ny, 0, last * ny, nx)
        item = (*_place(target), first, last)
        tasks.append(Task(_key("m", target, first), need, need, (("psf", box),), ((target.path, box),), item))
    return tasks


def _key(kind: str, target: Target, at: int) -> str:
    return f"{kind}{target.number:04d}-{target.frame:06d}-{at:06d}"


def _place(target: Target) -> tuple[int, int]:
    return target.number, target.frame


def _target(job: Job, task: Task) -> tuple[Target, tuple[int, ...]]:
    """Return the target of a task, and what else its item says."""
    number, frame, *rest = task.item if isinstance(task.item, tuple) else (task.item, 0)
    return job.targets(number)[frame], tuple(rest)


# ---------------------------------------------------------------- work
def move_work(task: Task, *, obs: Observation, params: Params) -> dict[str, float]:
    """Write one shard of the references as they are aligned with one integration."""
    job, clock = prepare(obs, params), Clock()
    target, (first, last) = _target(job, task)
    ny, nx = job.cast.psf.shape
    shifts = shifts_to(job.aligned[target.number], target.frame, job.cast.psf.count)
    block = np.empty((last - first, ny, nx), np.float32)
    with clock.on("shift"):
        for k in range(first, last):
            ((seen, at, end),) = job.cast.psf.parts(k, k + 1)
            block[k - first] = moved(ready(seen, at, end, Box(0, 0, ny, nx), job.recipe)[0], shifts[k])
    with clock.on("write"):
        obs.write(f"{target.path}/sci", (slice(first, last),), Box(0, 0, ny, nx), block)
    return clock.seconds


def sum_work(task: Task, *, obs: Observation, params: Params) -> RegionSums:
    """Return the sums over one band of rows, region by region."""
    job = prepare(obs, params)
    target, (y0,) = _target(job, task)
    ny, nx = job.cast.psf.shape
    regions = job.regions(target.number)
    total = RegionSums(Sums() for _ in range(regions.count))
    fixed = task.nbytes - _band_memory(job, target, job.rows_first)
    for top, end in _bands(job, target, (y0, min(y0 + job.rows_first, ny)), task.limit - fixed):
        refs, science = _read(obs, job, target, Box(top, 0, end, nx))
        labels = regions.labels(top, end, nx)
        parts = []
        for region, columns in enumerate(_columns(regions, (ny, nx))):
            mask = labels[:, columns] == region if regions.edges or regions.sectors > 1 else None
            parts.append(accumulate(refs[:, :, columns], science[:, :, columns], mask, top))
        total = total + RegionSums(parts)
    return total


def _columns(regions: Regions, shape: tuple[int, int]) -> list[slice]:
    """Return the columns that each region spans, whatever the band: sums of a row do not depend on bands."""
    if regions.count == 1 and not regions.edges:
        return [slice(0, shape[1])]
    first, last = np.full(regions.count, shape[1]), np.zeros(regions.count, int)
    for y in range(shape[0]):
        labels = regions.labels(y, y + 1, shape[1])[0]
        at = np.nonzero(labels >= 0)[0]
        np.minimum.at(first, labels[at], at)
        np.maximum.at(last, labels[at], at + 1)
    return [slice(int(a), int(b)) if a < b else slice(0, 0) for a, b in zip(first, last, strict=True)]


def _bands(job: Job, target: Target, rows: tuple[int, int], free: int) -> Iterator[tuple[int, int]]:
    """Yield bands of rows that fit the memory."""
    step = rows[1] - rows[0]
    while step > 1 and _band_memory(job, target, step) > free:
        step = -(-step // 2)
    for top in range(rows[0], rows[1], step):
        yield top, min(top + step, rows[1])


def _read(obs: Observation, job: Job, target: Target, box: Box) -> tuple[F4, F4]:
    """Return references and integrations of a band: float32, shapes (nref, rows, nx) and (nint, rows, nx)."""
    count = job.cast.psf.count
    if target.path:
        refs = obs.window(f"{target.path}/sci", (slice(0, count),), box).astype(np.float32, copy=False)
    else:
        refs = job.cast.psf.floats("sci", 0, count, box)
    seen = SeenCube(job.cast.science[target.number], job.cast.psf.judged)
    return refs, ready(seen, target.first, target.last, box, job.recipe)


def project_work(task: Task, *, obs: Observation, params: Params) -> dict[str, float]:
    """Subtract the star in one band of rows and write it, for each number of components."""
    job, clock = prepare(obs, params), Clock()
    target, (y0,) = _target(job, task)
    (ny, nx), exposure = job.cast.psf.shape, job.cast.science[target.number]
    y1 = min(y0 + job.rows(target.number), ny)
    regions, found = job.regions(target.number), read_coefficients(obs, job, target)
    shape = (len(params.truncate), target.last - target.first, y1 - y0, nx)
    sci, err = np.full(shape, np.nan, np.float32), np.full((shape[0], *shape[2:]), np.nan, np.float32)
    columns = _columns(regions, (ny, nx))
    fixed = task.nbytes - _band_memory(job, target, y1 - y0)
    for top, end in _bands(job, target, (y0, y1), task.limit - fixed):
        with clock.on("read"):
            refs, science = _read(obs, job, target, Box(top, 0, end, nx))
        with clock.on("subtract"):
            labels, rows = regions.labels(top, end, nx), slice(top - y0, end - y0)
            for region, span in enumerate(columns):
                mask = labels[:, span] == region
                if not mask.any() or not found[region].pixels:
                    continue
                made = project(refs[:, :, span], science[:, :, span], found[region])
                np.copyto(sci[:, :, rows, span], made.subtracted, where=mask)
                np.copyto(err[:, rows, span], made.err, where=mask)
    with clock.on("write"):
        for k, number in enumerate(params.truncate):
            place = folder(number, exposure)
            obs.write(f"{place}/sci", (slice(target.first, target.last),), Box(y0, 0, y1, nx), sci[k])
            obs.write(f"{place}/err", (slice(target.frame, target.frame + 1),), Box(y0, 0, y1, nx), err[k : k + 1])
    return clock.seconds


# ---------------------------------------------------------------- between the passes
_FIELDS = ("vectors", "amplitudes", "mean", "science", "strengths")


def _coefficients_key(job: Job, target: Target) -> str:
    return f"scratch/{job.mark}/{target.number:04d}-{target.frame:06d}.npz"


def _write_coefficients(obs: Observation, job: Job, target: Target, found: Sequence[Coefficients]) -> None:
    arrays: dict[str, NDArray[np.generic]] = {}
    for region, one in enumerate(found):
        arrays |= {f"{name}_{region}": getattr(one, name) for name in _FIELDS}
        arrays |= {f"kept_{region}": np.array(one.kept), f"pixels_{region}": np.array(one.pixels)}
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    obs.backend.put(_coefficients_key(job, target), stream.getvalue())


def read_coefficients(obs: Observation, job: Job, target: Target) -> list[Coefficients]:
    """Return what was solved for a target, by region.

    Raises
    ------
    StoreError
        If it is missing.
    """
    data = obs.backend.get(_coefficients_key(job, target))
    if data is None:
        raise StoreError(f"{obs.url}/{_coefficients_key(job, target)} is missing: run the step again")
    found = []
    with np.load(io.BytesIO(data)) as arrays:
        for region in range(job.regions(target.number).count):
            vectors, amplitudes, mean, science, strengths = (arrays[f"{name}_{region}"] for name in _FIELDS)
            kept = tuple(int(n) for n in arrays[f"kept_{region}"])
            pixels = int(arrays[f"pixels_{region}"])
            truncate = job.params.truncate
            found.append(Coefficients(truncate, kept, vectors, amplitudes, mean, science, pixels, strengths))
    return found


def _solved(job: Job, target: Target, sums: RegionSums) -> list[Coefficients]:
    """Solve region by region; one without a pixel has no components."""
    count = job.cast.psf.count
    nothing = Coefficients(
        job.params.truncate, (0,) * len(job.params.truncate), np.zeros((0, count)),
        np.zeros((0, target.last - target.first)), np.zeros(count), np.zeros(target.last - target.first), 0, np.zeros(count),
    )  # fmt: skip
    return [solve(one, job.params.truncate) if one.nodes else nothing for one in sums]


# ---------------------------------------------------------------- run
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
            self.cost += self.runner.fill(work, _project_tasks(job, target), job.ledger(self.obs))
            self._drop(target)
            kept += [one.kept for one in found]
            pixels += [one.pixels for one in found]
            strengths = strengths or tuple(float(v) for v in found[0].strengths)
        return SubtractedExposure(exposure.record.index, exposure.record.name, tuple(kept), tuple(pixels), strengths)

    def _components(self, target: Target) -> list[Coefficients]:
        """Return the components of a target; what was solved before an interruption is taken as it is."""
        obs, job = self.obs, self.job
        if obs.backend.get(_coefficients_key(job, target)) is None:
            ledger = job.ledger(obs)
            moves = _move_tasks(job, target)
            self._make_room(target)
            if moves:
                self.cost += self.runner.fill(partial(move_work, obs=obs, params=job.params), moves, ledger)
            zero = RegionSums(Sums() for _ in range(job.regions(target.number).count))
            work = partial(sum_work, obs=obs, params=job.params)
            sums = self.runner.fold(work, _sum_tasks(job, target), zero, f"{NAME}-sums", self.cost)
            _write_coefficients(obs, job, target, _solved(job, target, sums))
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
