"""Find pixels of an integration that disagree with the median of the exposure's integrations (spec others §3.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from streamimg3.engine import Outcome, Runner, Task
from streamimg3.engine.receipts import Ledger, digest
from streamimg3.errors import InputError
from streamimg3.geometry import Box
from streamimg3.kernels.outliers import stacked_outliers
from streamimg3.kernels.stack_outliers import Cut, good_median
from streamimg3.stages.tile_drizzle import Clock
from streamimg3.store import Exposure, Observation
from streamimg3.store.cubes import CubeStack, cube_stacks
from streamimg3.store.documents import OutlierDocument, StageCost, plain, utc_now
from streamimg3.store.flags import bad_bits
from streamimg3.store.layout import cube_chunking

NAME = "outlier_detection"
_CREATED = "_created"
_CODE = 1  # raised when the numbers a given input leads to change
_PIXEL = 24  # bytes per pixel of a band through all integrations: image, flags, what enters the median, its copy
_FLAGS = 28  # bytes per pixel of a shard: image, error, difference, flags, and the codec's copies
_CODEC = 8 * 2**20


@dataclass(frozen=True)
class Params:
    """Parameters of the outlier_detection step of coronagraphy: names, meaning and defaults of jwst 3.0.0.

    Parameters
    ----------
    snr : sequence of float
        First number: allowed distance from the median, in errors of the pixel; others belong to images.
    good_bits : str or None
        Flags that do not keep a pixel out of the median; None = no flag does.
    maskpt : float
        Pixels of less than this weight do not enter the median; weights are 0 and 1 here, so that values from above 0 to 1
        mean the same.
    save_intermediate_results : bool
        Keep the medians.
    weight_type, pixfrac, kernel, fillval, scale, backg, resample_data, pixmap_stepsize, pixmap_order
        For images only; they have no effect here.

    Raises
    ------
    InputError
        If a value is out of range.
    """

    snr: tuple[float, ...] = (5.0, 4.0)
    good_bits: str | None = "~DO_NOT_USE"
    maskpt: float = 0.7
    save_intermediate_results: bool = False
    weight_type: str = "ivm"
    pixfrac: float = 1.0
    kernel: str = "square"
    fillval: str = "NAN"
    scale: tuple[float, ...] = (1.2, 0.7)
    backg: float = 0.0
    resample_data: bool = True
    pixmap_stepsize: float | None = None
    pixmap_order: int = 1

    def __post_init__(self) -> None:
        if not self.snr or not all(v > 0 and math.isfinite(v) for v in self.snr):
            raise InputError(f"{NAME}.snr = {self.snr!r}: it must be positive numbers, for example '5.0 4.0'")
        if not 0.0 <= self.maskpt <= 1.0:
            raise InputError(f"{NAME}.maskpt = {self.maskpt!r}: it must be a number from 0 to 1")
        bad_bits(self.good_bits)

    @property
    def cut(self) -> Cut:
        """What is too far from the median."""
        return Cut(self.snr[0], bad_bits(self.good_bits), self.maskpt)


def plan(obs: Observation, params: Params) -> list[Task]:
    """Return all tasks: one for the median of each exposure, one for each shard of flags."""
    (stack,) = cube_stacks(obs.records())
    return [*_median_tasks(stack), *_flag_tasks(stack)]


def _median_tasks(stack: CubeStack) -> list[Task]:
    """One for each exposure."""
    ny, nx = stack.shape
    (_, rows, _), _ = cube_chunking(stack.shape, stack.count)
    tasks = []
    for record in stack.records:
        fixed = 2 * 4 * ny * nx + _CODEC
        least, most = (fixed + record.integrations * nx * n * _PIXEL for n in (1, 4 * rows))
        reads = ((f"{stack.path}/sci", (record.first * ny, 0, (record.first + record.integrations) * ny, nx)),)
        writes = ((f"{stack.path}/median[{record.row}]", (0, 0, ny, nx)),)
        tasks.append(Task(f"m{record.index:06d}", max(most, least), least, reads, writes, record.index))
    return tasks


def _flag_tasks(stack: CubeStack) -> list[Task]:
    """One for each shard."""
    ny, nx = stack.shape
    tasks = []
    for number, (first, last) in enumerate(stack.blocks()):
        box = (first * ny, 0, last * ny, nx)
        fixed = 3 * (last - first) * ny * nx + _CODEC
        least, most = (fixed + n * (last - first) * nx * _FLAGS for n in (1, ny))
        boxes = ((f"{stack.path}/sci", box),), ((f"{stack.path}/outlier", box),)
        tasks.append(Task(f"f{number:06d}", max(most, least), least, *boxes, number))
    return tasks


def median_work(task: Task, *, obs: Observation, cut: Cut) -> dict[str, float]:
    """Write the median over the integrations of one exposure, in bands of rows that fit the memory."""
    exposure = obs.exposures(aligned=False)[task.item if isinstance(task.item, int) else task.item[0]]
    ny, nx = exposure.record.shape
    (_, chunk, _), _ = cube_chunking(exposure.record.shape, exposure.depth)
    free = task.limit - 2 * 4 * ny * nx - _CODEC
    rows = max(1, free // (exposure.depth * nx * _PIXEL))
    rows = rows // chunk * chunk if rows >= chunk else rows  # so that no chunk is decoded twice
    clock, median = Clock(), np.empty((ny, nx), np.float32)
    for y0 in range(0, ny, rows):
        box = Box(y0, 0, min(y0 + rows, ny), nx)
        with clock.on("read"):
            sci = exposure.read_block("sci", 0, exposure.depth, box)
            dq = _flags(exposure, 0, exposure.depth, box)
        with clock.on("median"):
            median[box.y0 : box.y1] = good_median(sci.astype(np.float32, copy=False), dq, cut)
    with clock.on("write"):
        obs.write(f"{exposure.group}/median", (exposure.record.row,), Box(0, 0, ny, nx), median)
    return clock.seconds


def flag_work(task: Task, *, obs: Observation, snr: float) -> dict[str, float]:
    """Compare the integrations of one shard with the medians of their exposures, in bands of rows that fit the memory."""
    (stack,) = cube_stacks(obs.records())
    first, last = stack.blocks()[task.item if isinstance(task.item, int) else task.item[0]]
    ny, nx = stack.shape
    exposures = obs.exposures(aligned=False)
    flags = np.zeros((last - first, ny, nx), np.uint8)
    rows = max(1, min(ny, (task.limit - 3 * flags.nbytes - _CODEC) // ((last - first) * nx * _FLAGS)))
    clock = Clock()
    for part in stack.parts(first, last):
        exposure = exposures[part.record.index]
        if not exposure.has("err"):
            continue
        span = slice(part.start, part.start + part.last - part.first)
        for y0 in range(0, ny, rows):
            box = Box(y0, 0, min(y0 + rows, ny), nx)
            with clock.on("read"):
                sci, err = (
                    exposure.read_block(p, part.first, part.last, box).astype(np.float32, copy=False)
                    for p in ("sci", "err")
                )
                median = obs.window(f"{stack.path}/median", (part.record.row,), box).astype(np.float32, copy=False)
            with clock.on("flag"), np.errstate(invalid="ignore", over="ignore"):
                flags[span, box.y0 : box.y1] = stacked_outliers(sci, err, median, snr)
    with clock.on("write"):
        obs.write(f"{stack.path}/outlier", (slice(first, last),), Box(0, 0, ny, nx), flags)
    return clock.seconds


def _flags(exposure: Exposure, first: int, last: int, box: Box) -> NDArray[np.uint32]:
    if not exposure.has("dq"):
        return np.zeros((last - first, *box.shape), np.uint32)
    return exposure.read_block("dq", first, last, box).astype(np.uint32, copy=False)


def count_work(task: Task, *, obs: Observation) -> tuple[tuple[int, int], ...]:
    """Return exposure and number of its outliers, for the exposures in one shard."""
    (stack,) = cube_stacks(obs.records())
    first, last = stack.blocks()[task.item if isinstance(task.item, int) else task.item[0]]
    found = []
    for part in stack.parts(first, last):
        span = slice(first + part.start, first + part.start + part.last - part.first)
        flags = obs.window(f"{stack.path}/outlier", (span,), Box(0, 0, *stack.shape))
        found.append((part.record.index, int(np.count_nonzero(flags))))
    return tuple(found)


def run(obs: Observation, params: Params, runner: Runner) -> OutlierDocument:
    """Flag the outliers of all exposures unless the store holds the same flags already.

    Raises
    ------
    BudgetError
        If the memory cannot hold the work.
    """
    records = obs.records()
    (stack,) = cube_stacks(records)
    cut = params.cut
    mark = digest(_CODE, cut.snr, cut.bad, cut.maskpt, [r.checksums for r in records])
    kept = obs.document(OutlierDocument)
    if kept is not None and kept.digest == mark and (_has_median(obs, stack) or not params.save_intermediate_results):
        runner.progress.note(f"{NAME}: unchanged, kept")
        return kept
    runner.check(plan(obs, params))
    ledgers = {part: Ledger(obs.backend, f"{NAME}-{part}", mark) for part in ("median", "flags")}
    if _CREATED not in ledgers["flags"].done():
        obs.retract(OutlierDocument.kind)
        _forget(obs)
        obs.create_cubes(stack.shape, stack.count, {"outlier": None})
        obs.create_stack(stack.shape, len(stack.records), {"median": records[0].bunit}, cubes=True)
        ledgers["flags"].mark(_CREATED)
    obs.backend.sweep()
    cost = Outcome()
    cost += runner.fill(partial(median_work, obs=obs, cut=cut), _median_tasks(stack), ledgers["median"])
    cost += runner.fill(partial(flag_work, obs=obs, snr=cut.snr), _flag_tasks(stack), ledgers["flags"])
    none: tuple[tuple[int, int], ...] = ()
    pairs = runner.fold(partial(count_work, obs=obs), _flag_tasks(stack), none, f"{NAME}-count", cost)
    flagged = tuple(sum(n for index, n in pairs if index == r.index) for r in records)
    share = sum(flagged) / (stack.count * math.prod(stack.shape))
    runner.progress.note(f"{NAME}: {sum(flagged)} pixels flagged ({share:.3%})")
    if not params.save_intermediate_results:
        obs.backend.remove_tree(f"{stack.path}/median")
    obs.consolidate()
    _forget(obs)
    notes = tuple(f"{r.name} has no ERR: nothing is flagged in it" for r in records if "err" not in r.planes)
    document = OutlierDocument(
        digest=mark, made=utc_now(), parameters=plain(params), flagged=flagged, layers=tuple(r.name for r in records),
        notes=notes, cost=StageCost.of(cost),
    )  # fmt: skip
    obs.commit(document)
    return document


def _has_median(obs: Observation, stack: CubeStack) -> bool:
    return "median" in obs.backend.keys(stack.path)


def _forget(obs: Observation) -> None:
    """Drop the receipts: from here on the document, or nothing, tells what is done."""
    for part in ("median", "flags"):
        obs.backend.remove_tree(f"receipts/{NAME}-{part}")
