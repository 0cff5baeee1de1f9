"""What klip is about: parameters, targets, and the tasks of its passes (spec others §3.8)."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from streamimg3.engine import Task
from streamimg3.engine.receipts import Ledger, digest
from streamimg3.errors import InputError
from streamimg3.kernels.regions import Regions
from streamimg3.stages.psf_stack import Cast, cast_of
from streamimg3.stages.reference_planes import PLANE, Recipe, recipe_of
from streamimg3.store import Exposure, Observation
from streamimg3.store.coron_documents import AlignedReferences, AlignRefsDocument
from streamimg3.store.documents import OutlierDocument
from streamimg3.store.layout import SHARD_BYTES, cube_chunking

NAME = "klip"
ROOT = "psfsub"
WORKING = "components"  # aligned references of one integration, where each has its own
_CODE = 1  # raised when the numbers a given input leads to change
_BANDS = 8  # of the first pass, at most: the sums of each are kept until the last is there
_READ = (
    5  # bytes per pixel of the references and integrations of a band: themselves, and chunks on their way (measured)
)
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
def _moments(job: Job, target: Target) -> int:
    """Bytes of the sums over some rows, for all regions."""
    references, count = job.cast.psf.count, target.last - target.first
    return 8 * (references**2 + 3 * references * count + references) * job.regions(target.number).count


def _coefficients(job: Job, target: Target) -> int:
    """Bytes of what is solved between the passes, for all regions, and of its file."""
    references, count = job.cast.psf.count, target.last - target.first
    kept = min(max(job.params.truncate), references)
    return 16 * kept * (references + count) * job.regions(target.number).count


def band_memory(job: Job, target: Target, rows: int) -> int:
    """Return the bytes of a band of both, with what is around it for filling, and of one row in double precision."""
    nx, planes = job.cast.psf.shape[1], job.cast.psf.count + target.last - target.first
    (_, chunk, _), _ = cube_chunking(job.cast.psf.shape, job.cast.psf.count)
    grown = min(job.cast.psf.shape[0], rows + 2 * job.recipe.reach)
    return nx * planes * (rows * _READ + _ROW) + (target.last - target.first) * grown * nx * PLANE + chunk * nx * 4 * 32


def sum_tasks(job: Job, target: Target) -> list[Task]:
    """Return one task for each band of the first pass."""
    ny, nx = job.cast.psf.shape
    bands = range(0, ny, job.rows_first)
    fixed = (len(bands) + 4) * _moments(job, target) + _REST
    least, most = (fixed + band_memory(job, target, rows) for rows in (1, job.rows_first))
    tasks = []
    for y0 in bands:
        box = (y0, 0, min(y0 + job.rows_first, ny), nx)
        reads = ((target.path or "psf", box),)
        tasks.append(Task(_key("s", target, y0), most, least, reads, (), (*_place(target), y0)))
    return tasks


def project_tasks(job: Job, target: Target) -> list[Task]:
    """Return one task for each band of the second pass: a shard of the results."""
    (ny, nx), exposure = job.cast.psf.shape, job.cast.science[target.number]
    rows, count = job.rows(target.number), target.last - target.first
    shards = len(job.params.truncate) * (count + 1) * rows * nx * 4 + (count + 1) * rows * nx * _CODEC
    fixed = shards + _coefficients(job, target) + _REST
    sizes = (fixed + band_memory(job, target, n) + len(job.params.truncate) * count * nx * n * 4 for n in (1, rows))
    least, most = sizes
    tasks = []
    for y0 in range(0, ny, rows):
        box = (y0, 0, min(y0 + rows, ny), nx)
        reads = ((target.path or "psf", box),)
        writes = tuple((f"{folder(k, exposure)}/sci", box) for k in job.params.truncate)
        tasks.append(Task(_key("p", target, y0), most, least, reads, writes, (*_place(target), y0)))
    return tasks


def move_tasks(job: Job, target: Target) -> list[Task]:
    """Return one task for each shard of the references as they are aligned with one integration, where each has its own."""
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


def target_of(job: Job, task: Task) -> tuple[Target, tuple[int, ...]]:
    """Return the target of a task, and what else its item says."""
    number, frame, *rest = task.item if isinstance(task.item, tuple) else (task.item, 0)
    return job.targets(number)[frame], tuple(rest)
