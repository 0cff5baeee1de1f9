"""Align the images of reference stars with those of the science exposures (spec others §3.4)."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from streamimg3.engine import Outcome, Runner, Task
from streamimg3.engine.receipts import Ledger, digest
from streamimg3.errors import InputError, StoreError
from streamimg3.geometry import Box
from streamimg3.kernels.align import Alignment, Target, align
from streamimg3.stages.psf_stack import Cast, cast_of
from streamimg3.stages.reference_planes import PLANE, Recipe, flags_of, moved, ready
from streamimg3.stages.tile_drizzle import Clock
from streamimg3.store import Exposure, Observation
from streamimg3.store.coron_documents import AlignedReferences, AlignRefsDocument, PsfmaskDocument
from streamimg3.store.documents import (
    OutlierDocument,
    StageCost,
    plain,
    utc_now,
)
from streamimg3.store.layout import cube_chunking
from streamimg3.store.seen_cube import SeenCube

NAME = "align_refs"
ROOT = "psfalign"
REFTYPES = ("psfmask",)
TARGETS = ("first", "mean", "each")
COMPAT = "jwst-3.0.0"
_CREATED = "_created"
_CODE = 1  # raised when the numbers a given input leads to change
_FIT = 240  # bytes per pixel of an image while it is aligned: transforms, derivatives, weights
_CODEC = 13  # bytes per pixel of a shard that is being written, besides itself
_REST = 8 * 2**20


@dataclass(frozen=True)
class Params:
    """Parameters of the align_refs step: names, meaning and defaults of jwst 3.0.0 unless said otherwise.

    Parameters
    ----------
    median_box_length : int
        Side of the square whose median replaces a bad pixel.
    bad_bits : str or None
        Flags of bad pixels; None or empty = only NaN are bad.
    override_psfmask : str or None
        Weights of the pixels in the fit, 0 = ignored; N/A = the references are not aligned.
    align_to : str
        What the references of a science exposure are aligned to: its first integration, their mean, or each of them
        (ours; the reference has first).
    compat : str
        Empty, or jwst-3.0.0 (ours): bad pixels near the first row and column become 0, as in the reference.

    Raises
    ------
    InputError
        If a value is out of range.
    """

    median_box_length: int = 3
    bad_bits: str | None = "DO_NOT_USE"
    override_psfmask: str | None = None
    align_to: str = "first"
    compat: str = ""

    def __post_init__(self) -> None:
        if self.median_box_length < 0:
            raise InputError(f"{NAME}.median_box_length = {self.median_box_length}: it must be 0 or more")
        if self.align_to not in TARGETS:
            raise InputError(f"{NAME}.align_to = {self.align_to!r}: it must be one of {', '.join(TARGETS)}")
        if self.compat not in ("", COMPAT):
            raise InputError(f"{NAME}.compat = {self.compat!r}: it must be empty or {COMPAT}")
        flags_of(self.bad_bits or "")

    @property
    def recipe(self) -> Recipe:
        """How planes are made ready."""
        return Recipe(self.median_box_length, flags_of(self.bad_bits or ""), bool(self.compat))


def folder(exposure: Exposure) -> str:
    """Return where the aligned references of a science exposure are kept."""
    return f"{ROOT}/{exposure.record.name}"


def masks_of(obs: Observation) -> PsfmaskDocument | None:
    """Return the weights of a store; None where they are N/A for all exposures or were never read."""
    found = obs.document(PsfmaskDocument)
    return found if found is not None and any(found.paths) else None


# ---------------------------------------------------------------- tasks
def plan(obs: Observation, params: Params) -> list[Task]:
    """Return all tasks: for each science exposure what it is compared with, and one for each shard of references."""
    cast = cast_of(obs)
    return [*_target_tasks(cast, params), *_tasks(cast, params)]


def _target_tasks(cast: Cast, params: Params) -> list[Task]:
    """One for each science exposure whose mean is made."""
    if params.align_to != "mean":
        return []
    ny, nx = cast.psf.shape
    need = ny * nx * (8 + PLANE) + _REST
    return [
        Task(f"t{e.record.index:06d}", need, need, ((e.group, (0, 0, e.depth * ny, nx)),), item=number)
        for number, e in enumerate(cast.science)
    ]


def _blocks(cast: Cast) -> list[tuple[int, int]]:
    """References in each shard."""
    _, (depth, _, _) = cube_chunking(cast.psf.shape, cast.psf.count)
    return [(first, min(first + depth, cast.psf.count)) for first in range(0, cast.psf.count, depth)]


def _tasks(cast: Cast, params: Params) -> list[Task]:
    """For each science exposure one for each shard of references; with each target, if they are many, by itself."""
    ny, nx = cast.psf.shape
    kept = params.align_to != "each"
    tasks = []
    for number, exposure in enumerate(cast.science):
        for block, (first, last) in enumerate(_blocks(cast)):
            box = (first * ny, 0, last * ny, nx)
            shard = (last - first) * ny * nx * (4 + _CODEC) if kept else 0
            need = shard + ny * nx * (_FIT + PLANE) + _REST
            writes = ((f"{folder(exposure)}/sci", box),) if kept else ()
            tasks.append(Task(f"a{number:04d}-{block:06d}", need, need, (("psf", box),), writes, (number, block)))
    return tasks


# ---------------------------------------------------------------- work
def target_work(task: Task, *, obs: Observation, params: Params, mark: str) -> dict[str, float]:
    """Keep the mean over the filled integrations of a science exposure."""
    cast = cast_of(obs)
    exposure = cast.science[task.item if isinstance(task.item, int) else task.item[0]]
    clock = Clock()
    with clock.on("target"):
        seen, box = SeenCube(exposure, cast.psf.judged), Box(0, 0, *exposure.record.shape)
        total = np.zeros(box.shape, np.float64)
        for k in range(exposure.depth):
            total += ready(seen, k, k + 1, box, params.recipe)[0]
        _put_array(obs, _mean_key(mark, exposure), total / exposure.depth)
    return clock.seconds


def work(task: Task, *, obs: Observation, params: Params, mark: str) -> dict[str, float]:
    """Measure how one shard of references lies to a science exposure; write them aligned, and what was measured.

    Parameters
    ----------
    task : Task
        Its ``item`` is the number of the science exposure and that of the shard.
    obs : Observation
        The store.
    params : Params
        The step's parameters.
    mark : str
        Digest under which measurements are kept.
    """
    cast, clock = cast_of(obs), Clock()
    number, block = task.item  # type: ignore[misc]
    exposure, (first, last) = cast.science[number], _blocks(cast)[block]
    ny, nx = cast.psf.shape
    kept = params.align_to != "each"
    aligned = np.empty((last - first, ny, nx), np.float32) if kept else None
    fits: list[list[Alignment]] = []
    weight = _weight(obs, number)
    for image in _targets(obs, cast, exposure, params, mark):
        target = Target(image, weight)
        mine: list[Alignment] = []
        for k in range(first, last):
            with clock.on("read"):
                plane = reference(cast, k, params.recipe)
            with clock.on("fit"):
                mine.append(_sound(align(plane, target)))
            if aligned is not None:
                with clock.on("shift"):
                    aligned[k - first] = moved(plane, mine[-1].shift)
        fits.append(mine)
    with clock.on("write"):
        if aligned is not None:
            obs.write(f"{folder(exposure)}/sci", (slice(first, last),), Box(0, 0, ny, nx), aligned)
        obs.backend.put(_fit_key(mark, number, block), json.dumps(fits).encode())
    return clock.seconds


def reference(cast: Cast, k: int, recipe: Recipe) -> NDArray[np.float32]:
    """Return one reference with its bad pixels filled: float32, shape (ny, nx)."""
    ((seen, at, end),) = cast.psf.parts(k, k + 1)
    plane: NDArray[np.float32] = ready(seen, at, end, Box(0, 0, *cast.psf.shape), recipe)[0]
    return plane


def _sound(found: Alignment) -> Alignment:
    """A fit that came to nothing leaves the reference where it is."""
    if math.isfinite(sum(found.shift)) and math.isfinite(found.beta):
        return found
    return Alignment((0.0, 0.0), 0.0, found.iterations, False)


def _targets(
    obs: Observation, cast: Cast, exposure: Exposure, params: Params, mark: str
) -> Sequence[NDArray[np.floating]]:
    """Return what the references are aligned to, one or several images (made when they are asked for)."""
    if params.align_to == "mean":
        return [_get_array(obs, _mean_key(mark, exposure))]
    return _Integrations(SeenCube(exposure, cast.psf.judged), params)


class _Integrations(Sequence[NDArray[np.floating]]):  # type: ignore[type-arg]
    """The integrations of a science exposure that references are aligned to, filled."""

    def __init__(self, seen: SeenCube, params: Params) -> None:
        self._seen, self._recipe = seen, params.recipe
        self._count = seen.exposure.depth if params.align_to == "each" else 1

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, k):  # type: ignore[no-untyped-def]
        if not 0 <= k < self._count:
            raise IndexError(k)
        return ready(self._seen, k, k + 1, Box(0, 0, *self._seen.exposure.record.shape), self._recipe)[0]


def _weight(obs: Observation, number: int) -> NDArray[np.float32] | None:
    masks = masks_of(obs)
    if masks is None or not masks.paths[number]:
        return None
    ny, nx = obs.array(masks.paths[number]).shape[1:]
    return obs.window(masks.paths[number], (0,), Box(0, 0, ny, nx)).astype(np.float32)


def _fit_key(mark: str, number: int, block: int) -> str:
    return f"scratch/{mark}/{number:04d}-{block:06d}.json"


def _mean_key(mark: str, exposure: Exposure) -> str:
    return f"scratch/{mark}/mean-{exposure.record.index:06d}.npy"


def _put_array(obs: Observation, key: str, values: NDArray[np.float64]) -> None:
    stream = io.BytesIO()
    np.save(stream, values)
    obs.backend.put(key, stream.getvalue())


def _get_array(obs: Observation, key: str) -> NDArray[np.float64]:
    data = obs.backend.get(key)
    if data is None:
        raise StoreError(f"{obs.url}/{key} is missing: run the step again")
    values: NDArray[np.float64] = np.load(io.BytesIO(data))
    return values


# ---------------------------------------------------------------- run
def run(obs: Observation, params: Params, runner: Runner) -> AlignRefsDocument:
    """Align the references with every science exposure unless the store holds the same alignment already.

    Returns
    -------
    AlignRefsDocument
        SKIPPED where there are no weights (psfmask is N/A).

    Raises
    ------
    BudgetError
        If the memory cannot hold the work.
    """
    cast, masks = cast_of(obs), masks_of(obs)
    if masks is None:
        return _skipped(obs, params, runner)
    mark = _mark(obs, params, cast, masks)
    kept = obs.document(AlignRefsDocument)
    if kept is not None and kept.digest == mark:
        runner.progress.note(f"{NAME}: unchanged, kept")
        return kept
    runner.check(plan(obs, params))
    ledgers = [Ledger(obs.backend, f"{NAME}-{part}", mark) for part in ("target", "fit")]
    if _CREATED not in ledgers[1].done():
        obs.retract(AlignRefsDocument.kind)
        forget(obs)
        _create(obs, cast, params)
        ledgers[1].mark(_CREATED)
    obs.backend.sweep()
    cost = Outcome()
    means = _target_tasks(cast, params)
    if means:
        cost += runner.fill(partial(target_work, obs=obs, params=params, mark=mark), means, ledgers[0])
    cost += runner.fill(partial(work, obs=obs, params=params, mark=mark), _tasks(cast, params), ledgers[1])
    found = tuple(_gathered(obs, cast, params, mark, number) for number in range(len(cast.science)))
    notes = _notes(found, cast)
    for note in notes:
        runner.progress.note(f"{NAME}: {note}")
    document = AlignRefsDocument(
        digest=mark, made=utc_now(), parameters=plain(params), exposures=found, notes=notes, cost=StageCost.of(cost)
    )
    obs.consolidate()
    obs.commit(document)
    for ledger in ledgers:
        obs.backend.remove_tree(f"receipts/{ledger.stage}")
    obs.backend.remove_tree(f"scratch/{mark}")
    return document


def forget(obs: Observation) -> None:
    """Remove what an earlier run has made; its document goes first."""
    obs.backend.remove_tree(ROOT)
    for part in ("target", "fit"):
        obs.backend.remove_tree(f"receipts/{NAME}-{part}")


def _mark(obs: Observation, params: Params, cast: Cast, masks: PsfmaskDocument) -> str:
    outliers = obs.document(OutlierDocument) if cast.psf.judged else None
    return digest(
        _CODE, params.median_box_length, flags_of(params.bad_bits or ""), params.align_to, params.compat,
        [m.sha256 for m in masks.references], [e.record.checksums for e in cast.science],
        [e.record.checksums for e in cast.psf.exposures], outliers and outliers.digest,
    )  # fmt: skip


def _skipped(obs: Observation, params: Params, runner: Runner) -> AlignRefsDocument:
    document = AlignRefsDocument(status="SKIPPED", reason="psfmask is N/A", parameters=plain(params))
    runner.progress.note(f"{NAME}: skipped: {document.reason}: the references stay where they are")
    if obs.document(AlignRefsDocument) != document:
        obs.retract(AlignRefsDocument.kind)
        forget(obs)
        obs.commit(document)
    return document


def _create(obs: Observation, cast: Cast, params: Params) -> None:
    """Create the empty stacks of aligned references."""
    if params.align_to == "each":
        return
    for exposure in cast.science:
        shape = (cast.psf.count, *cast.psf.shape)
        obs.create_series(folder(exposure), "reference", shape, {"sci": exposure.record.bunit})


def _gathered(obs: Observation, cast: Cast, params: Params, mark: str, number: int) -> AlignedReferences:
    """Put together what the tasks have measured for one science exposure."""
    exposure = cast.science[number]
    count = exposure.depth if params.align_to == "each" else 1
    rows: list[list[list[object]]] = [[] for _ in range(count)]
    for block in range(len(_blocks(cast))):
        data = obs.backend.get(_fit_key(mark, number, block))
        if data is None:
            raise StoreError(f"{obs.url}/{_fit_key(mark, number, block)} is missing: run the step again")
        for target, mine in enumerate(json.loads(data)):
            rows[target] += mine
    fits = [Alignment((s[0], s[1]), b, n, c) for row in rows for s, b, n, c in row]  # type: ignore[index, arg-type]
    return AlignedReferences(
        exposure=exposure.record.index, targets=count, path="" if params.align_to == "each" else folder(exposure),
        y=tuple(f.shift[0] for f in fits), x=tuple(f.shift[1] for f in fits), beta=tuple(f.beta for f in fits),
        iterations=tuple(f.iterations for f in fits), converged=tuple(f.converged for f in fits),
    )  # fmt: skip


def _notes(found: Sequence[AlignedReferences], cast: Cast) -> tuple[str, ...]:
    """What a user should know about the fits."""
    notes = []
    for item, exposure in zip(found, cast.science, strict=True):
        far = max((math.hypot(*pair) for pair in zip(item.y, item.x, strict=True)), default=0.0)
        lost = item.converged.count(False)
        text = f"{len(item.y)} references to {exposure.record.name}: shifts up to {far:.3f} px"
        notes.append(text + (f"; {lost} fits did not converge" if lost else ""))
    return tuple(notes)
