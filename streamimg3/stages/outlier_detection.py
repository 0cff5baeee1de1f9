"""Find pixels that disagree with the median of all exposures (spec image3 §6)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import partial

from streamimg3.engine import Outcome, Runner, Task
from streamimg3.engine.receipts import Ledger, digest
from streamimg3.errors import InputError
from streamimg3.kernels.outliers import Thresholds
from streamimg3.sky.mosaic_frame import FrameOptions, MosaicFrame, mosaic_frame
from streamimg3.sky.pixmap import Sampling
from streamimg3.stages import outlier_flags as flags
from streamimg3.stages import outlier_median as groups
from streamimg3.stages import outlier_stack as stack
from streamimg3.stages.layers import Selection, Setup, make_layers, reference
from streamimg3.stages.outlier_median import ROOT, Group
from streamimg3.stages.pixel_maps import make_map, map_folder, rough_maps
from streamimg3.stages.placement import Placed, placed
from streamimg3.store import Exposure, Observation
from streamimg3.store.documents import OutlierDocument, SkyDocument, StageCost, plain, utc_now
from streamimg3.store.flags import bad_bits
from streamimg3.store.layout import TILE, inner_chunk

NAME = "outlier_detection"
DOCUMENT = OutlierDocument.kind
PARTS = ("groups", "median", "flags")
_CREATED = "_created"
_CODE = 1  # raised when the numbers a given input leads to change
KERNELS = ("square", "point", "turbo")
WEIGHTS = ("ivm", "exptime")


@dataclass(frozen=True)
class Params:
    """Parameters of the outlier_detection step: names, meaning and defaults of jwst 3.0.0 (spec §6.1) unless said otherwise.

    Parameters
    ----------
    weight_type : str
        ivm or exptime.
    pixfrac, kernel, fillval
        As in resample; kernels square, point, turbo. Pixels without weight never enter the median, whatever ``fillval``.
    maskpt : float
        Pixels of a group below this fraction of its mean weight do not enter the median.
    snr, scale : pair of float
        First and second threshold: times the noise, and times the local derivative of the median.
    backg : float
        What an exposure has more than the median where no sky level is known.
    save_intermediate_results : bool
        Keep the groups' mosaics, the median and the blotted medians in the store.
    resample_data : bool
        False = compare in detector pixels, without resampling (all exposures of one shape and pointing).
    good_bits : str or None
        Flags that do not exclude a pixel; None = all but DO_NOT_USE for JWST, no flag for others.
    pixmap_stepsize, pixmap_order
        As in resample.
    noise : str
        exposure (the exposure's ERR) or median (ours: the error of the blotted median, which does not know the outlier).
    gain, read_noise : float or None
        Ours, for exposures without ERR: electrons per unit of the image, and the noise of a pixel without signal in that
        unit; without them the noise is that of the background.
    tile : int
        Side of a mosaic tile in pixels.

    Raises
    ------
    InputError
        If a value is out of range.
    """

    weight_type: str = "ivm"
    pixfrac: float = 1.0
    kernel: str = "square"
    fillval: str = "NAN"
    maskpt: float = 0.7
    snr: tuple[float, float] = (5.0, 4.0)
    scale: tuple[float, float] = (1.2, 0.7)
    backg: float = 0.0
    save_intermediate_results: bool = False
    resample_data: bool = True
    good_bits: str | None = None
    pixmap_stepsize: float | None = None
    pixmap_order: int = 1
    noise: str = "exposure"
    gain: float | None = None
    read_noise: float | None = None
    tile: int = TILE

    def __post_init__(self) -> None:
        checks = [
            (self.weight_type in WEIGHTS, "weight_type", "one of " + ", ".join(WEIGHTS)),
            (0.0 <= self.pixfrac <= 1.0, "pixfrac", "a number from 0 to 1"),
            (self.kernel in KERNELS, "kernel", "one of " + ", ".join(KERNELS)),
            (0.0 <= self.maskpt <= 1.0, "maskpt", "a number from 0 to 1"),
            (all(v > 0 and math.isfinite(v) for v in self.snr), "snr", "two positive numbers, for example '5.0 4.0'"),
            (all(v >= 0 and math.isfinite(v) for v in self.scale), "scale", "two numbers, for example '1.2 0.7'"),
            (math.isfinite(self.backg), "backg", "a finite number"),
            (self.pixmap_stepsize is None or self.pixmap_stepsize >= 1, "pixmap_stepsize", "at least 1"),
            (self.pixmap_order in (1, 3), "pixmap_order", "1 or 3"),
            (self.noise in ("exposure", "median"), "noise", "exposure or median"),
            (self.gain is None or 0 < self.gain < math.inf, "gain", "positive"),
            (self.read_noise is None or 0 <= self.read_noise < math.inf, "read_noise", "positive"),
            (
                16 <= self.tile <= 8192 and inner_chunk(self.tile) >= min(self.tile, 64),
                "tile",
                "16 to 8192, best a multiple of 64",
            ),
        ]
        for good, name, wanted in checks:
            if not good:
                raise InputError(f"{NAME}.{name} = {getattr(self, name)!r}: it must be {wanted}")
        bad_bits(self.good_bits)

    @property
    def selection(self) -> Selection:
        """Which pixels take part in the median."""
        return Selection(self.weight_type, self.good_bits, "~DO_NOT_USE")

    @property
    def sampling(self) -> Sampling:
        """How pixel maps are made."""
        return Sampling(self.pixmap_stepsize, self.pixmap_order)


@dataclass(frozen=True)
class Work:
    """What a run is about: the set-up that the workers read, the frame, the exposures in order and their groups."""

    setup: Setup
    frame: MosaicFrame
    exposures: tuple[Exposure, ...]
    members: dict[str, list[int]]


def prepare(obs: Observation, params: Params) -> Work:
    """Work out frame, layers and groups; reads metadata only."""
    exposures = obs.exposures()
    frame = mosaic_frame([e.s_region for e in exposures], reference(exposures[0]), FrameOptions())
    members: dict[str, list[int]] = {}
    for bit, exposure in enumerate(exposures):
        members.setdefault(exposure.record.group_id, []).append(bit)
    by_median = params.noise == "median" and all(e.has("err") for e in exposures)
    planes = ("sci", "wht", "err") if by_median else ("sci", "wht")
    setup = Setup(
        "", ROOT, frame.shape, params.tile, planes, (), params.kernel, params.pixfrac, frame.ratio, frame.measured, None,
        by_median, map_folder(frame, params.sampling), frame.wcs.text.decode("latin-1"),
        make_layers(obs, exposures, params.selection),
    )  # fmt: skip
    sky = obs.document(SkyDocument)
    mark = digest(
        _CODE, dataclasses.asdict(setup), dataclasses.asdict(params), [e.record.checksums for e in exposures],
        members, sky and (sky.subtract, sky.levels),
    )  # fmt: skip
    return Work(dataclasses.replace(setup, digest=mark), frame, exposures, members)


def plan(obs: Observation, params: Params, rough: bool = False) -> list[Task]:
    """Return all tasks whose size is known beforehand; reads no pixel, with ``rough`` not even a WCS."""
    if len(obs.records()) < 2:
        return []
    job = prepare(obs, params)
    if not params.resample_data:
        return stack.stack_tasks(job.setup)
    places = _places(obs, job, params, rough)
    found = _groups(job, places)
    return [
        *_drizzle_tasks(job.setup, found, places),
        *_later_tasks(job.setup, found, places, params.save_intermediate_results),
    ]


def _drizzle_tasks(setup: Setup, found: list[Group], places: list[Placed]) -> list[Task]:
    return groups.group_tasks(setup, found, max(p.nbytes for p in places))


def _later_tasks(setup: Setup, found: list[Group], places: list[Placed], blots: bool) -> list[Task]:
    later = [*groups.threshold_tasks(setup, found), *groups.median_tasks(setup, found)]
    return [*later, *flags.flag_tasks(setup, places, blots)]


def _places(obs: Observation, job: Work, params: Params, rough: bool = False) -> list[Placed]:
    """Where the exposures lie; one map is held at a time."""
    if rough:
        return [placed(made, job.setup) for made in rough_maps(job.exposures, job.frame)]
    return [placed(make_map(obs, job.setup.maps, e, job.frame, params.sampling), job.setup) for e in job.exposures]


def _groups(job: Work, places: list[Placed]) -> list[Group]:
    found = [groups.make_group(name, bits, places) for name, bits in job.members.items()]
    if not any(g.tiles for g in found):
        raise InputError("no exposure touches the output image: check S_REGION and WCS of the exposures")
    return found


def run(obs: Observation, params: Params, runner: Runner) -> OutlierDocument:
    """Flag the outliers of all exposures unless the store holds the same flags already.

    Returns
    -------
    OutlierDocument
        ``status`` FAILED with a reason where there is nothing to compare.

    Raises
    ------
    InputError
        If parameters and exposures do not fit each other.
    BudgetError
        If the memory cannot hold the work.
    """
    count = len(obs.records())
    if count < 2:
        return _failed(obs, params, runner, f"only {count} exposure: nothing to compare it with")
    job = prepare(obs, params)
    kept = obs.document(OutlierDocument)
    if kept is not None and kept.digest == job.setup.digest:
        runner.progress.note(f"{NAME}: unchanged, kept")
        return kept
    made = _Run(obs, params, runner, job)
    document = made.resampled() if params.resample_data else made.stacked()
    obs.consolidate()
    made.forget()  # from here on the document tells what is done
    obs.commit(document)
    if not params.save_intermediate_results:
        obs.backend.remove_tree(ROOT)
        obs.consolidate()
    return document


def _failed(obs: Observation, params: Params, runner: Runner, reason: str) -> OutlierDocument:
    runner.progress.note(f"{NAME}: FAILED: {reason}")
    document = OutlierDocument(status="FAILED", reason=reason, parameters=plain(params))
    if obs.document(OutlierDocument) != document:
        obs.commit(document)
    return document


class _Run:
    """One run of the step: the parts in order, and what they took."""

    def __init__(self, obs: Observation, params: Params, runner: Runner, job: Work) -> None:
        self.obs, self.params, self.runner, self.job = obs, params, runner, job
        self.setup, self.mark = job.setup, job.setup.digest
        self.cost = Outcome()
        self.notes: list[str] = []

    def resampled(self) -> OutlierDocument:
        """Compare with the median of the resampled groups."""
        places = _places(self.obs, self.job, self.params)
        found = _groups(self.job, places)
        blots = self.params.save_intermediate_results
        self.runner.check([*_drizzle_tasks(self.setup, found, places), *_later_tasks(self.setup, found, places, blots)])
        self._create(len(found))
        obs, mark = self.obs, self.mark
        self._fill("groups", partial(groups.group_work, obs=obs, mark=mark), _drizzle_tasks(self.setup, found, places))
        weigh = partial(groups.threshold_work, obs=obs, mark=mark, maskpt=self.params.maskpt)
        thresholds = self._fold("weights", weigh, groups.threshold_tasks(self.setup, found))
        limits = tuple(None if math.isnan(t) else t for t in thresholds)
        combine = partial(groups.median_work, obs=obs, mark=mark, thresholds=limits)
        self._fill("median", combine, groups.median_tasks(self.setup, found))
        compare = partial(flags.flag_work, obs=obs, mark=mark, comparison=self._comparison())
        self._fill("flags", compare, flags.flag_tasks(self.setup, places, blots))
        return self._document([g.name for g in found], limits)

    def stacked(self) -> OutlierDocument:
        """Compare in detector pixels."""
        stack.check_shapes(self.setup)
        self._create(0)
        thresholds = self._fold(
            "weights", partial(stack.threshold_work, obs=self.obs, layers=self.setup.layers, maskpt=self.params.maskpt),
            stack.threshold_tasks(self.setup),
        )  # fmt: skip
        limits = tuple(None if math.isnan(t) else t for t in thresholds)
        compare = partial(
            stack.stack_work,
            obs=self.obs,
            mark=self.mark,
            thresholds=limits,
            snr=self.params.snr[0],
            noise=self._noise(),
        )
        self._fill("flags", compare, stack.stack_tasks(self.setup))
        self.notes.append("compared without resampling: sky levels are not taken off, as in the reference")
        return self._document([e.record.name for e in self.job.exposures], limits)

    def _create(self, count: int) -> None:
        """Create the arrays of this run, unless they are there from a run that was interrupted."""
        ledger = Ledger(self.obs.backend, NAME, self.mark)
        if _CREATED not in ledger.done():
            self.obs.retract(DOCUMENT)
            self.forget()
            self._arrays(count)
            ledger.mark(_CREATED)
        self.obs.backend.sweep()
        self.setup.write(self.obs)

    def forget(self) -> None:
        """Drop all receipts of the step: the arrays that they speak of are removed or made anew."""
        for part in ("", *(f"-{p}" for p in PARTS)):
            self.obs.backend.remove_tree(f"receipts/{NAME}{part}")

    def _arrays(self, count: int) -> None:
        unit = self.job.exposures[0].record.bunit
        self.obs.backend.remove_tree(ROOT)
        if count:
            self.obs.write_group(ROOT, {})
            for plane in self.setup.planes:
                self.obs.create_image(f"{ROOT}/{plane}", (count, *self.setup.shape), self.setup.tile, unit)
            for plane in ("median", "median_err")[: 1 + self.setup.drizzle_err]:
                self.obs.create_image(f"{ROOT}/{plane}", self.setup.shape, self.setup.tile, unit)
        stacks: dict[tuple[int, int], int] = {}
        for e in self.job.exposures:
            stacks[e.record.shape] = max(stacks.get(e.record.shape, 0), e.record.row + 1)
        blots = {"blot": unit} if self.params.save_intermediate_results and count else {}
        for shape, rows in stacks.items():
            self.obs.create_stack(shape, rows, {"outlier": None} | blots)

    def _comparison(self) -> flags.Comparison:
        sky = self.obs.document(SkyDocument)
        backgrounds = []
        for e in self.job.exposures:
            level = e.record.bkglevel if not e.record.bkgsub else None
            if sky is not None and sky.levels[e.record.index] is not None:
                level = sky.levels[e.record.index]
            backgrounds.append(level)
        p = self.params
        return flags.Comparison(
            Thresholds(p.snr, p.scale), tuple(backgrounds), p.backg, sky is not None and sky.subtract, self._noise(),
            p.save_intermediate_results,
        )  # fmt: skip

    def _noise(self) -> flags.Noise:
        """Measure the background noise of exposures that came without ERR."""
        layers = self.setup.layers
        level: list[float | None] = [None] * len(layers)
        rms: list[float | None] = [None] * len(layers)
        tasks = flags.rms_tasks(layers)
        if tasks:
            for index, median, std in self._fold("noise", partial(flags.rms_work, obs=self.obs, layers=layers), tasks):
                level[index], rms[index] = median, std
            model = "background rms" if self.params.read_noise is None else "read noise"
            model += " and Poisson noise" if self.params.gain is not None else ""
            self.notes.append(f"{len(tasks)} exposures have no ERR: their noise is modelled as {model}")
            self.runner.progress.note(f"{NAME}: {self.notes[-1]}")
        return flags.Noise(tuple(level), tuple(rms), self.params.gain, self.params.read_noise)

    def _fill(self, part: str, work, tasks: list[Task]) -> None:  # type: ignore[no-untyped-def]
        self.cost += self.runner.fill(work, tasks, Ledger(self.obs.backend, f"{NAME}-{part}", self.mark))

    def _fold(self, part: str, work, tasks: list[Task]):  # type: ignore[no-untyped-def]
        return self.runner.fold(work, tasks, (), f"{NAME}-{part}", self.cost)

    def _document(self, names: list[str], thresholds: tuple[float | None, ...]) -> OutlierDocument:
        layers = self.setup.layers
        counts = self._fold("count", partial(flags.count_work, obs=self.obs, layers=layers), flags.count_tasks(layers))
        if self.params.noise == "median" and not self.setup.drizzle_err:
            self.notes.append("noise = median needs ERR in every exposure: the exposures' own noise was used")
        share = sum(counts) / sum(la.shape[0] * la.shape[1] for la in layers)
        self.runner.progress.note(f"{NAME}: {sum(counts)} pixels flagged ({share:.3%})")
        kept = self.params.save_intermediate_results and self.params.resample_data
        return OutlierDocument(
            digest=self.mark, made=utc_now(), wcs_asdf=self.setup.wcs_asdf if kept else "",
            parameters=plain(self.params), flagged=tuple(counts), layers=tuple(names),
            thresholds=thresholds, notes=tuple(self.notes),
            cost=StageCost.of(self.cost),
        )  # fmt: skip
