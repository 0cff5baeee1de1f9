"""The passes of klip over bands of rows: sums over the references, and what is left of the star (spec others §3.8)."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from streamimg3.engine import Task
from streamimg3.errors import StoreError
from streamimg3.geometry import Box
from streamimg3.kernels.klip import Coefficients, Sums, accumulate, project, solve
from streamimg3.kernels.regions import Regions
from streamimg3.stages.klip_job import Job, Params, Target, band_memory, folder, prepare, target_of
from streamimg3.stages.reference_planes import moved, ready, shifts_to
from streamimg3.stages.tile_drizzle import Clock
from streamimg3.store import Observation
from streamimg3.store.seen_cube import SeenCube

F4 = NDArray[np.float32]


class RegionSums(tuple[Sums, ...]):
    """Sums of several regions; + adds those of the same region."""

    __slots__ = ()

    def __add__(self, other: object) -> RegionSums:
        """Return the sums over the rows of both."""
        if not isinstance(other, RegionSums):
            return NotImplemented
        return RegionSums(a + b for a, b in zip(self, other, strict=True))


# ---------------------------------------------------------------- passes
def move_work(task: Task, *, obs: Observation, params: Params) -> dict[str, float]:
    """Write one shard of the references as they are aligned with one integration."""
    job, clock = prepare(obs, params), Clock()
    target, (first, last) = target_of(job, task)
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
    target, (y0,) = target_of(job, task)
    ny, nx = job.cast.psf.shape
    regions = job.regions(target.number)
    total = RegionSums(Sums() for _ in range(regions.count))
    fixed = task.nbytes - band_memory(job, target, job.rows_first)
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
    while step > 1 and band_memory(job, target, step) > free:
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
    target, (y0,) = target_of(job, task)
    (ny, nx), exposure = job.cast.psf.shape, job.cast.science[target.number]
    y1 = min(y0 + job.rows(target.number), ny)
    regions, found = job.regions(target.number), read_coefficients(obs, job, target)
    shape = (len(params.truncate), target.last - target.first, y1 - y0, nx)
    sci, err = np.full(shape, np.nan, np.float32), np.full((shape[0], *shape[2:]), np.nan, np.float32)
    columns = _columns(regions, (ny, nx))
    fixed = task.nbytes - band_memory(job, target, y1 - y0)
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


def coefficients_key(job: Job, target: Target) -> str:
    """Return where the coefficients of a target are kept."""
    return f"scratch/{job.mark}/{target.number:04d}-{target.frame:06d}.npz"


def write_coefficients(obs: Observation, job: Job, target: Target, found: Sequence[Coefficients]) -> None:
    """Keep the coefficients of a target, by region."""
    arrays: dict[str, NDArray[np.generic]] = {}
    for region, one in enumerate(found):
        arrays |= {f"{name}_{region}": getattr(one, name) for name in _FIELDS}
        arrays |= {f"kept_{region}": np.array(one.kept), f"pixels_{region}": np.array(one.pixels)}
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    obs.backend.put(coefficients_key(job, target), stream.getvalue())


def read_coefficients(obs: Observation, job: Job, target: Target) -> list[Coefficients]:
    """Return what was solved for a target, by region.

    Raises
    ------
    StoreError
        If it is missing.
    """
    data = obs.backend.get(coefficients_key(job, target))
    if data is None:
        raise StoreError(f"{obs.url}/{coefficients_key(job, target)} is missing: run the step again")
    found = []
    with np.load(io.BytesIO(data)) as arrays:
        for region in range(job.regions(target.number).count):
            vectors, amplitudes, mean, science, strengths = (arrays[f"{name}_{region}"] for name in _FIELDS)
            kept = tuple(int(n) for n in arrays[f"kept_{region}"])
            pixels = int(arrays[f"pixels_{region}"])
            truncate = job.params.truncate
            found.append(Coefficients(truncate, kept, vectors, amplitudes, mean, science, pixels, strengths))
    return found


def solved(job: Job, target: Target, sums: RegionSums) -> list[Coefficients]:
    """Solve region by region; one without a pixel has no components."""
    count = job.cast.psf.count
    nothing = Coefficients(
        job.params.truncate, (0,) * len(job.params.truncate), np.zeros((0, count)),
        np.zeros((0, target.last - target.first)), np.zeros(count), np.zeros(target.last - target.first), 0, np.zeros(count),
    )  # fmt: skip
    return [solve(one, job.params.truncate) if one.nodes else nothing for one in sums]
