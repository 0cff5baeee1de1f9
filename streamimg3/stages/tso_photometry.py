"""Photometry of a star in every integration of imaging time series (spec others §2.3)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from streamimg3.engine import Outcome, Runner, Task
from streamimg3.engine.receipts import Ledger, digest
from streamimg3.errors import InputError
from streamimg3.kernels.centroid import Boxes, typical
from streamimg3.kernels.time_aperture import Apertures
from streamimg3.stages import photometry_passes as passes
from streamimg3.stages.photometry_columns import photometry_columns, table_meta
from streamimg3.stages.photometry_passes import Aim, How
from streamimg3.stages.series_blocks import Setting, block_length, block_tasks, references_of
from streamimg3.store import ExposureRecord, Observation
from streamimg3.store.documents import OutlierDocument, StageCost, plain, utc_now
from streamimg3.store.rows import create_rows, read_rows, write_table
from streamimg3.store.series import Series, time_series
from streamimg3.store.series_documents import PhotometryDocument, SeriesExposure

NAME = "tso_photometry"
REFTYPES = ("gain",)
PATH = "photometry"
IMAGING = ("NRC_TSIMAGE", "MIR_IMAGE")
UNUSED: dict[str, str] = {}
_CODE = 1  # raised when the numbers that a given input leads to change

F8 = NDArray[np.float64]


@dataclass(frozen=True)
class Params:
    """Parameters of tso_photometry: names and defaults of jwst 3.0.0 unless said otherwise.

    Parameters
    ----------
    save_catalog : bool
        Write a table for each segment too.
    radius, radius_inner, radius_outer : float
        Of the aperture and of the ring of the background, pixels.
    centroid_source : bool
        Look for the star; otherwise it is where it was planned to be.
    search_box_width, fit_box_width : int
        Sides of the boxes of the first and of the second centroid, odd numbers of pixels (even ones: one less).
    moving_centroid : bool
        Apertures follow the star.
    radii : tuple of float
        Ours: further apertures, measured in the same pass; their columns are added at the end.
    track : bool
        Ours: look for the star where it was in the integration before; for fields that drift far.
    override_gain : str or None
        Reference file, or ``N/A``.

    Raises
    ------
    InputError
        If a value is out of range.
    """

    save_catalog: bool = False
    radius: float = 3.0
    radius_inner: float = 4.0
    radius_outer: float = 5.0
    centroid_source: bool = True
    search_box_width: int = 41
    fit_box_width: int = 11
    moving_centroid: bool = False
    radii: tuple[float, ...] = ()
    track: bool = False
    override_gain: str | None = None

    def __post_init__(self) -> None:
        for box in (self.search_box, self.fit_box, self.apertures):
            assert box is not None  # making them says what is wrong with their numbers

    @property
    def search_box(self) -> Boxes:
        """The box of the first centroid."""
        return Boxes(_odd(self.search_box_width), self.radius_inner)

    @property
    def fit_box(self) -> Boxes:
        """The box of the second centroid."""
        return Boxes(_odd(self.fit_box_width), self.radius_inner)

    @property
    def apertures(self) -> Apertures:
        """All circles and the ring."""
        return Apertures((self.radius, *self.radii), (self.radius_inner, self.radius_outer))

    @property
    def moves(self) -> bool:
        """Whether apertures follow the star."""
        return self.centroid_source and (self.moving_centroid or self.track)


def _odd(width: int) -> int:
    return width - 1 if width % 2 == 0 and width > 1 else width


def plan(obs: Observation, params: Params, rough: bool = False) -> list[Task]:
    """Return the tasks of all passes."""
    series = time_series(obs.records())
    names = ("search", "fit", "sums") if params.centroid_source else ("sums",)
    return [dataclasses.replace(t, key=f"{name}-{t.key}") for name in names for t in _tasks(series, name, params)]


def _tasks(series: tuple[Series, ...], name: str, params: Params) -> list[Task]:
    """Return the tasks of one pass."""
    planes = ("sci", "err", "dq", "nan", "outlier") if name == "sums" else ("sci", "dq", "nan", "outlier")
    tasks = block_tasks(series, (passes.BYTES[name], 0), planes, f"{passes.SCRATCH}/{name}")
    if name != "search" or not params.track:
        return tasks
    # Every integration begins where the last one ended: one task goes through them all, as thinly as the first block's
    first = {task.item[0]: task for task in reversed(tasks) if isinstance(task.item, tuple)}
    return [dataclasses.replace(first[n], item=(n, 0, one.count)) for n, one in enumerate(series)]


def run(obs: Observation, params: Params, runner: Runner, matched: bool) -> PhotometryDocument:
    """Measure the star in every integration unless the store holds the same measurements already.

    Parameters
    ----------
    obs : Observation
        A store with time series of images.
    params : Params
        Boxes and apertures.
    runner : Runner
        Memory and workers.
    matched : bool
        Whether outliers were looked for: those that the store holds count then, and bad pixels are NaN in all planes.

    Raises
    ------
    InputError
        If a header does not say where the star is, or in which unit the pixels are.
    """
    references, records = references_of(obs), obs.records()
    outliers = obs.document(OutlierDocument) if matched else None
    basis = [r.checksums for r in records], outliers and outliers.digest, references.digest
    mark = digest(_CODE, dataclasses.asdict(params), [dataclasses.asdict(e.facts) for e in references.exposures], basis)
    kept = obs.document(PhotometryDocument)
    if kept is not None and kept.digest == mark:
        runner.progress.note(f"{NAME}: unchanged, kept")
        return kept
    for record, entry in zip(records, references.exposures, strict=True):
        _check(record, entry)
    made = _Run(Setting(obs, mark, matched), params, runner)
    document = made.document(mark)
    for note in document.notes:
        runner.progress.note(f"{NAME}: {note}")
    obs.consolidate()
    obs.commit(document)
    for name in passes.BYTES:
        obs.backend.remove_tree(f"receipts/{NAME}-{name}")
    obs.backend.remove_tree(passes.SCRATCH)
    obs.consolidate()  # without what is gone
    return document


def _check(record: ExposureRecord, entry: SeriesExposure) -> None:
    facts = entry.facts
    if facts.position is None:
        raise InputError(
            f"{record.url}: has no XREF_SCI and YREF_SCI: where the star is meant to be is not known; add them"
        )
    if facts.bunit is None:
        raise InputError(f"{record.url}: has no BUNIT: the unit of its pixels is not known; add it")
    if "err" not in record.planes:
        raise InputError(f"{record.url}: has no ERR, which the errors of the photometry come from; make the file again")
    if facts.bunit == "DN/s" and (entry.gain is None or facts.integration_time is None):
        what = (
            "EFFINTTM"
            if facts.integration_time is None
            else f"a gain reference: give {NAME}.override_gain or --references"
        )
        raise InputError(f"{record.url}: is in DN/s, and its electrons need {what}")
    if facts.bunit == "MJy/sr" and facts.pixel_area is None:
        raise InputError(f"{record.url}: is in MJy/sr and has no PIXAR_SR: the fluxes are not known; add it")


class _Run:
    """One run over the passes."""

    def __init__(self, setting: Setting, params: Params, runner: Runner) -> None:
        self.setting, self.params, self.runner = setting, params, runner
        self.cost = Outcome()
        self.notes: list[str] = []
        self.how = How(params.search_box, params.fit_box, params.apertures, params.track, params.moves)
        self.aims = {
            r.index: Aim(e.facts.position or (math.nan, math.nan), whole=passes.sums_all(e.facts))
            for one in setting.series
            for r in one.records
            for e in (setting.entry(r),)
        }

    def document(self, mark: str) -> PhotometryDocument:
        """Make the passes and write the table; returns what commits it."""
        fits = None
        if self.params.centroid_source:
            self._aim("guess", self._fill("search", 2))
            fits = self._fill("fit", 5)
            self._aim("centre", [rows[:, :2] for rows in fits])
        else:
            self.aims = {k: dataclasses.replace(a, centre=a.start) for k, a in self.aims.items()}
        sums = self._fill("sums", 3 * (len(self.params.radii) + 2))
        obs, references = self.setting.obs, self.setting.references
        columns, notes = photometry_columns(self.setting, self.how, self.aims, fits, sums)
        times = [column.name for column, _ in columns[:2]]
        write_table(obs, PATH, columns, times)
        rows = len(columns[0][1])
        facts = [references.exposures[r.index].facts for one in self.setting.series for r in one.records]
        meta = table_meta(facts[0], self.params.apertures, any(a.whole for a in self.aims.values()), rows)
        centres = tuple(self.aims[r.index].centre for r in obs.records())
        return PhotometryDocument(
            mark, utc_now(), parameters=plain(self.params), rows=rows, columns=tuple(c for c, _ in columns), meta=meta,
            centres=centres, notes=(*self.notes, *notes), cost=StageCost.of(self.cost),
        )  # fmt: skip

    def _fill(self, name: str, width: int) -> list[F8]:
        """Make a pass; returns its rows for each series."""
        obs, series = self.setting.obs, self.setting.series
        mark = digest(self.setting.mark, name, {k: dataclasses.asdict(a) for k, a in self.aims.items()})
        ledger = Ledger(obs.backend, f"{NAME}-{name}", mark)
        if "_created" not in ledger.done():
            ledger.forget_others()
            for number, one in enumerate(series):
                block = one.count if name == "search" and self.params.track else block_length(one)
                create_rows(obs, f"{passes.SCRATCH}/{name}/{number}", (one.count, width), block, {})
            ledger.mark("_created")
        work = partial(passes.WORKS[name], setting=self.setting, how=self.how, aims=self.aims)
        self.cost += self.runner.fill(work, _tasks(series, name, self.params), ledger)
        return [read_rows(obs, f"{passes.SCRATCH}/{name}/{n}") for n in range(len(series))]

    def _aim(self, field: str, found: list[F8]) -> None:
        """Take the median of what was found in each segment as the next guess, or as the aperture's centre."""
        for one, rows in zip(self.setting.series, found, strict=True):
            for record in one.records:
                start = one.start(record)
                place = typical(rows[start : start + record.integrations])
                aim = self.aims[record.index]
                if math.isnan(place[0]):
                    self.notes.append(f"{record.name}: no star was found; it is taken to be where it was planned to be")
                    self.aims[record.index] = dataclasses.replace(aim, lost=True, guess=aim.start, centre=aim.start)
                elif not aim.lost:
                    moving = field == "centre" and self.params.moves
                    self.aims[record.index] = dataclasses.replace(aim, **{field: None if moving else place})  # type: ignore[arg-type]
