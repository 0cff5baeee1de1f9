"""Find pixels of a time series that disagree with the median over integrations (spec others §2.2)."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise

import numpy as np

from streamimg3.engine import Outcome, Runner, Task
from streamimg3.engine.budget import MIB
from streamimg3.engine.receipts import Ledger, digest
from streamimg3.errors import InputError
from streamimg3.geometry import Box
from streamimg3.kernels.rolling_median import rolls
from streamimg3.stages import series_medians as medians
from streamimg3.stages.series_medians import Method
from streamimg3.store import ExposureRecord, Observation
from streamimg3.store.cubes import CubeStack, cube_stacks
from streamimg3.store.documents import OutlierDocument, StageCost, plain, utc_now
from streamimg3.store.flags import bad_bits
from streamimg3.store.layout import strip_chunking
from streamimg3.store.series import time_series

NAME = "outlier_detection"
METHODS = ("median", "sigma_clip")
SCOPES = ("segment", "exposure")
UNUSED = dict.fromkeys(
    ("weight_type", "pixfrac", "kernel", "fillval", "scale", "backg", "resample_data", "pixmap_stepsize", "pixmap_order"),
    "it belongs to images that are resampled",
)  # fmt: skip
_CODE = 1  # raised when the flags that a given input leads to change
_CREATED = "_created"
_REST = 12 * MIB  # codecs, chunks that are read in part


@dataclass(frozen=True)
class Params:
    """Parameters of outlier_detection for time series: names and defaults of jwst 3.0.0 unless said otherwise.

    Parameters
    ----------
    rolling_window_width : int
        Integrations in the window of the median; the median of them all serves where it is 1 or less, or not less than the
        number of integrations.
    snr : pair of float
        The first: allowed distance from the median, in errors of the pixel. The second has no meaning here.
    maskpt : float
        Without effect, as in the reference, which gives good pixels weight 1 and bad ones 0.
    good_bits : str or None
        Flags that do not keep a pixel out of the median; None = none does.
    save_intermediate_results : bool
        Write the medians (``_median``).
    save_results : bool
        Write the cubes with their outliers (``_crfints``), as the reference always does.
    window_scope : str
        Ours: ``segment`` (windows end with the file, as in the reference) or ``exposure`` (they reach into the next one).
    method : str
        Ours: ``median``, or ``sigma_clip``: clip every pixel's series at ``snr`` standard deviations, again and again.
    maxiters : int or None
        Ours: rounds of ``sigma_clip``; None = until nothing more is clipped.
    nan_aware : bool
        Ours: leave NaN out of the windows. In the reference a NaN keeps outliers within half a window from being found.
    variability : bool
        Ours: count what a pixel varies by in the window as its error, where that is larger.
    compat : bool
        Ours: do as the reference does with windows of 2, which all give way to the last one.

    Raises
    ------
    InputError
        If a value is out of range.
    """

    rolling_window_width: int = 25
    snr: tuple[float, float] = (5.0, 4.0)
    maskpt: float = 0.7
    good_bits: str | None = "~DO_NOT_USE"
    save_intermediate_results: bool = False
    save_results: bool = True
    window_scope: str = "segment"
    method: str = "median"
    maxiters: int | None = None
    nan_aware: bool = False
    variability: bool = False
    compat: bool = False

    def __post_init__(self) -> None:
        checks = [
            (self.rolling_window_width >= 0, "rolling_window_width", "a number of integrations, at least 0"),
            (all(v > 0 and math.isfinite(v) for v in self.snr), "snr", "two positive numbers, for example '5.0 4.0'"),
            (0.0 <= self.maskpt <= 1.0, "maskpt", "a number from 0 to 1"),
            (self.window_scope in SCOPES, "window_scope", "one of " + ", ".join(SCOPES)),
            (self.method in METHODS, "method", "one of " + ", ".join(METHODS)),
            (self.maxiters is None or self.maxiters >= 1, "maxiters", "at least 1, or None"),
        ]
        for good, name, wanted in checks:
            if not good:
                raise InputError(f"{NAME}.{name} = {getattr(self, name)!r}: it must be {wanted}")
        bad_bits(self.good_bits)

    @property
    def _whole(self) -> bool:
        """Whether whole series are looked at, however long they are."""
        return self.method == "sigma_clip" or self.rolling_window_width <= 1

    @property
    def rule(self) -> Method:
        """What is done to the pixels, as a value for the work."""
        return Method(
            self.rolling_window_width, self.snr[0], bad_bits(self.good_bits), self.method == "sigma_clip",
            self.maxiters, self.nan_aware, self.variability, self.compat, self.save_intermediate_results,
        )  # fmt: skip


Scope = tuple[int, int]  # first integration of the stack, and the one behind the last, that a median may be taken over


def scopes_of(obs: Observation, params: Params) -> dict[tuple[int, int], tuple[Scope, ...]]:
    """Return the scopes of every stack, by the shape of its images.

    Raises
    ------
    InputError
        If windows are to reach over segments that do not follow one another in the store.
    """
    found: dict[tuple[int, int], list[Scope]] = {}
    for series in time_series(obs.records()):
        spans = [(r.first, r.first + r.integrations) for r in series.records]
        if params.window_scope == "exposure":
            if any(a[1] != b[0] for a, b in pairwise(spans)):
                raise InputError(
                    f"{series.name}: its segments are not in order of time in {obs.url}: ingest them again"
                )
            spans = [(spans[0][0], spans[-1][1])]
        found.setdefault(series.shape, []).extend(spans)
    return {shape: tuple(sorted(spans)) for shape, spans in found.items()}


@lru_cache(maxsize=4)
def _stacks(obs: Observation, mark: str) -> tuple[CubeStack, ...]:
    """The stacks of a store (read once per process and run, which ``mark`` names)."""
    return cube_stacks(obs.records())


def plan(obs: Observation, params: Params, rough: bool = False) -> list[Task]:
    """Return the tasks: strips of rows through a block of integrations (through all, where whole series are looked at)."""
    tasks: list[Task] = []
    scopes = scopes_of(obs, params)
    for number, stack in enumerate(cube_stacks(obs.records())):
        _, (depth, rows, _) = strip_chunking(stack.shape, stack.count)
        for first in range(0, stack.count, stack.count if params._whole else depth):
            last = stack.count if params._whole else min(first + depth, stack.count)
            tasks += [
                _task(stack, (number, first, last, y0), rows, params, scopes[stack.shape])
                for y0 in range(0, stack.shape[0], rows)
            ]
    return tasks


def _task(
    stack: CubeStack, item: tuple[int, int, int, int], rows: int, params: Params, scopes: tuple[Scope, ...]
) -> Task:
    number, first, last, y0 = item
    ny, nx = stack.shape
    y1 = min(y0 + rows, ny)
    longest = max(min(last, b) - max(first, a) for a, b in scopes if a < last and b > first)
    width = params.rolling_window_width
    if params._whole:
        longest = max(b - a for a, b in scopes)
    row = nx * params.rule.bytes_per_pixel * (longest + (0 if params._whole else 2 * width))
    kept = (last - first) * (y1 - y0) * (nx // 8 + 1) + min(last - first, 1024) * (y1 - y0) * nx * 2
    kept += (last - first) * (y1 - y0) * nx * 4 if params.save_intermediate_results else 0
    box = (first * (y1 - y0), 0, last * (y1 - y0), nx)  # the rows of the integrations one below the other
    reads = tuple((f"{stack.path}/{p} rows {y0}", box) for p in ("sci", "err", "dq"))
    writes = ((f"{stack.path}/outlier rows {y0}", box),)
    most, least = _REST + kept + (y1 - y0) * row, _REST + kept + row
    return Task(f"s{number}i{first:08d}y{y0:05d}", most, least, reads, writes, item)


def work(
    task: Task, *, obs: Observation, params: Params, scopes: dict[tuple[int, int], tuple[Scope, ...]], mark: str
) -> dict[str, float]:
    """Flag the pixels of a strip."""
    start = time.process_time()
    number, first, last, y0 = task.item if isinstance(task.item, tuple) else (0, 0, 0, 0)
    stack = _stacks(obs, mark)[number]
    _, (depth, rows, _) = strip_chunking(stack.shape, stack.count)
    y1 = min(y0 + rows, stack.shape[0])
    strip = medians.Strip(obs, stack, (first, last), (y0, y1))
    spans = [(a, b) for a, b in scopes[stack.shape] if a < last and b > first]
    row = (task.nbytes - task.least) // max(1, y1 - y0 - 1)
    step = max(1, (task.limit - task.least) // row + 1) if row else y1 - y0
    for b0 in range(y0, y1, step):
        for span in spans:
            medians.flag_band(strip, span, (b0, min(b0 + step, y1)), params.rule)
    for block in range(first, last, depth):
        strip.write(block, min(block + depth, last))
    del strip
    return {NAME: time.process_time() - start}


def _count(task: Task, *, obs: Observation) -> tuple[tuple[int, int], ...]:
    """Count the outliers of each segment in a block: (place of the exposure, pixels)."""
    number, first, last, _ = task.item if isinstance(task.item, tuple) else (0, 0, 0, 0)
    stack = cube_stacks(obs.records())[number]
    ny, nx = stack.shape
    found = []
    for part in stack.parts(first, last):
        total = 0
        for k in range(part.first, part.last, 64):
            span = slice(part.record.first + k, part.record.first + min(k + 64, part.last))
            total += int(np.count_nonzero(obs.window(f"{stack.path}/outlier", (span,), Box(0, 0, ny, nx))))
        found.append((part.record.index, total))
    return tuple(found)


def _count_tasks(obs: Observation) -> list[Task]:
    found = []
    for number, stack in enumerate(cube_stacks(obs.records())):
        depth = strip_chunking(stack.shape, stack.count)[1][0]
        need = _REST + 3 * 64 * stack.shape[0] * stack.shape[1]
        for first in range(0, stack.count, depth):
            item = (number, first, min(first + depth, stack.count), 0)
            found.append(Task(f"s{number}i{first:08d}", need, need, item=item))
    return found


def run(obs: Observation, params: Params, runner: Runner) -> OutlierDocument:
    """Flag the outliers of all time series unless the store holds the same flags already.

    Returns
    -------
    OutlierDocument
        With the number of flagged pixels of every segment.
    """
    records = obs.records()
    checksums = [{k: v for k, v in r.checksums.items() if k in ("sci", "err", "dq", "pixeldq")} for r in records]
    mark = digest(
        _CODE,
        "tso",
        dataclasses.asdict(dataclasses.replace(params, save_results=True)),
        [r.name for r in records],
        checksums,
    )
    kept = obs.document(OutlierDocument)
    if kept is not None and kept.digest == mark:
        runner.progress.note(f"{NAME}: unchanged, kept")
        if kept.parameters != plain(params):  # what is written has no influence on what was found
            kept = dataclasses.replace(kept, parameters=plain(params))
            obs.commit(kept)
        return kept
    ledger = Ledger(obs.backend, NAME, mark)
    if _CREATED not in ledger.done():
        if kept is not None:
            obs.retract(OutlierDocument.kind)
        ledger.forget_others()
        _create(obs, params)
        ledger.mark(_CREATED)
    cost = Outcome()
    run_work = partial(work, obs=obs, params=params, scopes=scopes_of(obs, params), mark=mark)
    cost += runner.fill(run_work, plan(obs, params), ledger)
    none: tuple[tuple[int, int], ...] = ()
    counted = runner.fold(partial(_count, obs=obs), _count_tasks(obs), none, f"{NAME}: count", cost)
    flagged = [0] * len(records)
    for index, total in counted:
        flagged[index] += total
    notes = tuple(_notes(records, params))
    for note in notes:
        runner.progress.note(f"{NAME}: {note}")
    obs.consolidate()
    document = OutlierDocument(
        mark, utc_now(), parameters=plain(params), flagged=tuple(flagged), notes=notes, cost=StageCost.of(cost)
    )
    obs.commit(document)
    obs.backend.remove_tree(f"receipts/{NAME}")
    return document


def _create(obs: Observation, params: Params) -> None:
    for stack in cube_stacks(obs.records()):
        cut = strip_chunking(stack.shape, stack.count)
        names = ("outlier", "median") if params.save_intermediate_results else ("outlier",)
        obs.create_cubes(stack.shape, stack.count, dict.fromkeys(names, stack.records[0].bunit), cut)


def _notes(records: tuple[ExposureRecord, ...], params: Params) -> Iterator[str]:
    for record in (r for r in records if r.integrations and "err" not in r.planes):
        yield f"{record.name} has no ERR: none of its pixels is flagged"
    if params.method == "median" and params.window_scope == "segment":
        short = [r for r in records if r.integrations and not rolls(params.rolling_window_width, r.integrations)]
        if short and params.rolling_window_width > 1:
            yield f"{len(short)} segments are not longer than the window: the median of all their integrations serves"
