"""Find and measure the sources of the mosaic, tile by tile (spec image3 §9)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from platform import python_version
from typing import Any

import numpy as np

from streamimg3.engine import Outcome, Runner, Task
from streamimg3.engine.receipts import Ledger, digest
from streamimg3.errors import InputError
from streamimg3.geometry import Box
from streamimg3.kernels.aperture import Circles
from streamimg3.kernels.deblend import MODES, Levels
from streamimg3.kernels.stars import FINDERS, FinderOptions
from streamimg3.sky.wcs import Wcs
from streamimg3.stages import catalog_labels as labels
from streamimg3.stages import catalog_pixels as pixels
from streamimg3.stages import catalog_segments as segments
from streamimg3.stages import catalog_sources as sources
from streamimg3.stages import catalog_stars as stars
from streamimg3.stages.catalog_columns import Column, Photometry, columns
from streamimg3.stages.catalog_pixels import Scene
from streamimg3.stages.catalog_segments import Rules
from streamimg3.stages.catalog_sources import Measured, Rulebook
from streamimg3.store import Observation
from streamimg3.store.columns import write_columns
from streamimg3.store.documents import ApertureDocument, CatalogDocument, ResampleDocument, StageCost, plain
from streamimg3.store.layout import TILE

NAME = "source_catalog"
PATH = "catalog"  # group of the columns
_CREATED = "_created"
_CODE = 1  # raised when the numbers a given input leads to change
_SEGMENTATION = "segmentation"
_MASKS = ("correct", "mask", "none")


@dataclass(frozen=True)
class Params:
    """Parameters of the source_catalog step: names, meaning and defaults of jwst 3.0.0 (spec §9.1) unless said otherwise.

    Parameters
    ----------
    aperture_ee1, aperture_ee2, aperture_ee3 : int
        Encircled energies of the apertures in per cent, increasing; the APCORR file must have them.
    ci1_star_threshold, ci2_star_threshold : float
        Concentration indices above which a source is extended.
    starfinder : str
        segmentation, iraf or dao.
    snr_threshold : float
        Detection threshold in units of the background's noise.
    bkg_boxsize : int
        Side of a background box in pixels.
    kernel_fwhm : float
        Width of the Gaussian that the image is smoothed with, in pixels.
    minsep_fwhm, sigma_radius, sharplo, sharphi, roundlo, roundhi, brightest, peakmax
        Of iraf and dao only; see :class:`streamimg3.kernels.stars.FinderOptions`.
    npixels : int
        Fewest pixels of a source.
    connectivity : int
        4 or 8: whether corners connect.
    nlevels, contrast, multithresh_mode
        How blends are divided.
    localbkg_width : int
        Width of the frame that a local background for the isophotal flux comes from; 0 = none.
    apermask_method, kron_params
        Without influence on any column, as in the reference.
    deblend : bool
        Divide blends.
    override_apcorr, override_abvegaoffset : str
        Reference files; without them the columns that need them are left out.
    gain : float or None
        Ours, for a mosaic without errors: electrons per unit of the image; None = the sources' photons add no noise.
    read_noise : float or None
        Ours, for a mosaic without errors: noise of a pixel without signal, in the image's unit; None = as measured.
    largest_blend : int
        Ours: pixels of the largest bounding box that is divided; larger sources stay whole, and are named in the notes.
    subtract_background : bool
        Ours: apertures are measured on the image without its background; the reference leaves it in.

    Raises
    ------
    InputError
        If a value is out of range.
    """

    aperture_ee1: int = 30
    aperture_ee2: int = 50
    aperture_ee3: int = 70
    ci1_star_threshold: float = 2.0
    ci2_star_threshold: float = 1.8
    starfinder: str = _SEGMENTATION
    snr_threshold: float = 3.0
    bkg_boxsize: int = 1000
    kernel_fwhm: float = 2.0
    minsep_fwhm: float = 0.0
    sigma_radius: float = 1.5
    sharplo: float = 0.5
    sharphi: float = 2.0
    roundlo: float = 0.0
    roundhi: float = 0.2
    brightest: int | None = 200
    peakmax: float | None = None
    npixels: int = 25
    connectivity: int = 8
    nlevels: int = 32
    contrast: float = 0.001
    multithresh_mode: str = "exponential"
    localbkg_width: int = 0
    apermask_method: str = "correct"
    kron_params: tuple[float, ...] | None = None
    deblend: bool = True
    override_apcorr: str = ""
    override_abvegaoffset: str = ""
    gain: float | None = None
    read_noise: float | None = None
    largest_blend: int = 2048 * 2048
    subtract_background: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.connectivity, str) and self.connectivity in ("4", "8"):
            object.__setattr__(self, "connectivity", int(self.connectivity))
        energies, kron = self.energies, self.kron_params
        checks = [
            (0 < energies[0] < energies[1] < energies[2] < 100, "aperture_ee1", "less than ee2, this less than ee3, from 1 to 99"),
            (self.starfinder in (_SEGMENTATION, *FINDERS), "starfinder", "one of " + ", ".join((_SEGMENTATION, *FINDERS))),
            (0 <= self.snr_threshold < math.inf, "snr_threshold", "a number that is not negative"),
            (self.bkg_boxsize >= 1, "bkg_boxsize", "at least 1"),
            (0 < self.kernel_fwhm <= 100, "kernel_fwhm", "positive, at most 100"),
            (self.npixels >= 1, "npixels", "at least 1"),
            (self.connectivity in (4, 8), "connectivity", "4 or 8"),
            (self.nlevels >= 1, "nlevels", "at least 1"),
            (0 <= self.contrast <= 1, "contrast", "a number from 0 to 1"),
            (self.multithresh_mode in MODES, "multithresh_mode", "one of " + ", ".join(MODES)),
            (self.localbkg_width >= 0, "localbkg_width", "0 or more"),
            (self.apermask_method in _MASKS, "apermask_method", "one of " + ", ".join(_MASKS)),
            (kron is None or len(kron) in (2, 3), "kron_params", "two or three numbers"),
            (self.brightest is None or self.brightest >= 1, "brightest", "at least 1"),
            (self.gain is None or 0 < self.gain < math.inf, "gain", "positive and finite"),
            (self.read_noise is None or 0 <= self.read_noise < math.inf, "read_noise", "0 or more, and finite"),
            (self.largest_blend >= 0, "largest_blend", "0 or more"),
        ]  # fmt: skip
        for good, name, wanted in checks:
            if not good:
                raise InputError(f"{NAME}.{name} = {getattr(self, name)!r}: it must be {wanted}")
        if self.starfinder != _SEGMENTATION:
            try:
                _ = self.finder
            except InputError as error:
                raise InputError(f"{NAME}.{error}") from error

    @property
    def energies(self) -> tuple[int, int, int]:
        """Encircled energies of the apertures, per cent."""
        return self.aperture_ee1, self.aperture_ee2, self.aperture_ee3

    @property
    def finder(self) -> FinderOptions:
        """Parameters of iraf and dao."""
        names = [f.name for f in dataclasses.fields(FinderOptions)]
        return FinderOptions(**{name: getattr(self, name) for name in names})

    @property
    def rules(self) -> Rules:
        """What a segment is."""
        return Rules(self.snr_threshold, self.npixels, self.connectivity == 8)

    @property
    def levels(self) -> Levels | None:
        """How blends are divided."""
        if not self.deblend:
            return None
        return Levels(self.npixels, self.nlevels, self.contrast, self.multithresh_mode, self.connectivity == 8)


# ---------------------------------------------------------------- set-up
@dataclass(frozen=True)
class Job:
    """What a run is about: the mosaic, how it is looked at, and what is not known."""

    scene: Scene
    rules: Rulebook
    photometry: Photometry
    wcs: Wcs
    notes: tuple[str, ...]
    failure: str | None = None


def prepare(obs: Observation, params: Params, mosaic: ResampleDocument) -> Job:
    """Return the set-up; reads documents, no pixel."""
    bunit = next((r.bunit for r in obs.records() if r.bunit), None)
    in_jansky = bunit == "MJy/sr" and mosaic.pixel_scale > 0
    factor = 1e6 * mosaic.pixel_scale**2 / float(np.rad2deg(3600)) ** 2 if in_jansky else 1.0
    notes = [] if in_jansky else [f"fluxes are in the image's unit ({bunit or 'unknown'}), not Jy: no magnitudes"]
    has_err = "err" in mosaic.planes
    if not has_err:
        model = "read_noise" if params.read_noise is not None else "the background's noise"
        photons = " and the sources' photons (gain)" if params.gain is not None else ""
        notes.append(f"the mosaic has no ERR: errors come from {model}{photons}")
    references = _references(obs, params)
    mark = digest(_CODE, plain(params), mosaic.digest, references and references.to_json().decode(), bunit)
    scene = Scene(
        mark, mosaic.path, mosaic.shape, mosaic.tile, has_err, factor, params.bkg_boxsize, params.kernel_fwhm,
        None if has_err else params.gain, None if has_err else params.read_noise,
    )  # fmt: skip
    circles, photometry, more, failure = _apertures(params, references, mosaic, "Jy" if in_jansky else bunit)
    rules = Rulebook(
        params.levels, params.largest_blend, circles, params.localbkg_width, params.kernel_fwhm, params.subtract_background
    )  # fmt: skip
    wcs = Wcs("gwcs", mosaic.wcs_asdf.encode("latin-1"), mosaic.shape)
    return Job(scene, rules, photometry, wcs, (*notes, *more), failure)


def _references(obs: Observation, params: Params) -> ApertureDocument | None:
    """What the reference files say, if there are any."""
    if not (params.override_apcorr or params.override_abvegaoffset):
        return None
    found = obs.document(ApertureDocument)
    if found is None:
        raise InputError(
            f"{NAME}.override_apcorr = {params.override_apcorr!r}: its rows are not in the store; run image3 with it again"
        )
    return found


def _apertures(
    params: Params, references: ApertureDocument | None, mosaic: ResampleDocument, unit: str | None
) -> tuple[Circles | None, Photometry, list[str], str | None]:
    """Return apertures and photometry, notes on what is not known, and why there can be no catalogue."""
    limits = (params.ci1_star_threshold, params.ci2_star_threshold)
    offset = references.offset if references is not None and references.abvegaoffset else None
    bare = Photometry(unit, offset=offset, star_limits=limits)
    notes = []
    if offset is None and unit == "Jy":
        notes.append("no ABVEGAOFFSET reference file (override_abvegaoffset): no Vega magnitudes")
    if references is not None and references.reason is not None:
        return None, bare, notes, references.reason
    if references is None or not references.apcorr:
        return None, bare, [*notes, "no APCORR reference file (override_apcorr): no aperture photometry"], None
    rows = []
    for energy in params.energies:
        found = [row for row in references.rows if row.energy == energy]
        if len(found) != 1:
            how = "no row" if not found else f"{len(found)} rows"
            return None, bare, notes, f"{references.apcorr}: {how} for an encircled energy of {energy}%"
        rows += found
    rings = {(row.sky_in, row.sky_out) for row in rows}
    if len(rings) != 1:
        return None, bare, notes, f"{references.apcorr}: the apertures' rows differ in skyin or skyout"
    ratio = np.float32(mosaic.pixel_scale_ratio)  # the file's numbers are float32, and so is the reference's division
    scaled = [float(np.float32(v) / ratio) for v in (*(r.radius for r in rows), *rings.pop())]
    circles = Circles(tuple(scaled[:3]), (scaled[3], scaled[4]))
    areas = tuple(math.pi * radius**2 for radius in circles.radii)
    return circles, Photometry(unit, params.energies, areas, rows[-1].correction, offset, limits), notes, None


def plan(obs: Observation, params: Params) -> list[Task]:
    """Return the tasks whose size is known beforehand, and the largest that may follow; reads no pixel.

    A mosaic that is not made yet is taken to have the usual tiles.
    """
    mosaic = obs.document(ResampleDocument)
    if mosaic is None:
        mosaic = ResampleDocument(shape=(TILE, TILE), tile=TILE, planes=("sci", "err", "wht"), pixel_scale=1.0)
        circles = Circles((10.0,), (16.0, 26.0))
        scene = Scene("", "mosaic", mosaic.shape, mosaic.tile, True, 1.0, params.bkg_boxsize, params.kernel_fwhm)
        return _planned(params, scene, Rulebook(params.levels, params.largest_blend, circles, 0, params.kernel_fwhm))
    job = prepare(obs, params, mosaic)
    return _planned(params, job.scene, job.rules)


def _planned(params: Params, scene: Scene, rules: Rulebook) -> list[Task]:
    if params.starfinder != _SEGMENTATION:
        return [*pixels.mesh_tasks(scene), *stars.find_tasks(scene, params.finder)]
    tasks = [*pixels.mesh_tasks(scene), *segments.label_tasks(scene)]
    ny, nx = scene.shape
    side = math.isqrt(params.largest_blend) if params.deblend else scene.tile
    blend = Box(0, 0, min(side, ny) or 1, min(side, nx) or 1)
    need = sources.least_bytes(scene, rules, sources.Source(0, blend.size, blend))
    return [*tasks, Task("sources", need, need, item=0)]


# ---------------------------------------------------------------- run
def run(obs: Observation, params: Params, runner: Runner) -> CatalogDocument:
    """Make the catalogue and the segmentation map unless the store already holds them.

    Returns
    -------
    CatalogDocument
        Its status is FAILED, with a reason, where there is no source or the reference files have nothing to say.

    Raises
    ------
    InputError
        If there is no mosaic, or the reference files have not been read.
    BudgetError
        If the memory cannot hold the work.
    """
    mosaic = obs.document(ResampleDocument)
    if mosaic is None:
        raise InputError(f"{obs.url} holds no finished mosaic: run resample first")
    job = prepare(obs, params, mosaic)
    kept = obs.document(CatalogDocument)
    if kept is not None and kept.digest == job.scene.mark:
        runner.progress.note(f"{NAME}: unchanged, kept")
        return kept
    runner.check(_planned(params, job.scene, job.rules))
    _start(obs, job.scene)
    passes = _Passes(obs, job.scene, runner)
    document = _failed(job, params, job.failure) if job.failure else _make(obs, params, job, passes)
    document = dataclasses.replace(document, cost=passes.cost)
    if document.status == "FAILED":
        runner.progress.note(f"{NAME}: no catalogue: {document.reason}")
        obs.backend.remove_tree(PATH)
    obs.consolidate()  # before the commit: who sees the document must see the arrays
    obs.commit(document)
    passes.forget()
    obs.backend.remove_tree(job.scene.key("").rstrip("/"))
    return document


def _start(obs: Observation, scene: Scene) -> None:
    """Begin, or go on where an interrupted run has stopped."""
    obs.retract(CatalogDocument.kind)
    obs.backend.sweep()
    if obs.backend.get(scene.key(_CREATED)) is not None:
        return
    for stage in _Passes.STAGES:
        obs.backend.remove_tree(Ledger(obs.backend, f"{NAME}_{stage}", scene.mark).prefix)
    obs.backend.remove_tree(labels.label_path(scene))
    for parent in ("scratch", scene.key("").rstrip("/"), scene.key("labels")):
        obs.write_group(parent, {})
    for path in (segments.labels_path(scene), labels.label_path(scene)):
        obs.create_image(path, scene.shape, scene.tile, None)
    obs.backend.put(scene.key(_CREATED), b"done\n")


class _Passes:
    """Runs the passes of the stage over the mosaic and adds up what they take."""

    STAGES = ("background", "detect", "measure", "labels")

    def __init__(self, obs: Observation, scene: Scene, runner: Runner) -> None:
        self._obs, self._scene, self._runner = obs, scene, runner
        self._outcomes: list[Outcome] = []

    def fill(self, stage: str, work: Callable[..., dict[str, float]], tasks: Sequence[Task], **more: object) -> None:
        """Run one pass; tasks that an interrupted run has finished are kept."""
        ledger = Ledger(self._obs.backend, f"{NAME}_{stage}", self._scene.mark)
        ledger.forget_others()
        if tasks:
            self._runner.check(tasks)
            done = self._runner.fill(pixels.bound(work, self._obs, self._scene, **more), tasks, ledger)
            self._outcomes.append(done)

    def forget(self) -> None:
        """Remove the receipts: the document stands for them now."""
        for stage in self.STAGES:
            self._obs.backend.remove_tree(Ledger(self._obs.backend, f"{NAME}_{stage}", self._scene.mark).prefix)

    @property
    def cost(self) -> StageCost:
        """What all passes took."""
        found = self._outcomes
        split: dict[str, float] = {}
        for outcome in found:
            for kind, seconds in outcome.split.items():
                split[kind] = split.get(kind, 0.0) + seconds
        return StageCost(
            sum(o.wall_s for o in found), sum(o.cpu_s for o in found), max((o.peak_rss for o in found), default=0),
            sum(o.tasks_done for o in found), sum(o.tasks_kept for o in found), split,
        )  # fmt: skip


def _make(obs: Observation, params: Params, job: Job, passes: _Passes) -> CatalogDocument:
    """Go through the mosaic and write the catalogue's columns."""
    scene = job.scene
    passes.fill("background", pixels.mesh_work, pixels.mesh_tasks(scene))
    mesh = pixels.joined_mesh(obs, scene)
    if mesh is None:
        passes.fill("background", pixels.whole_mesh_work, [pixels.whole_mesh_task(scene)])
    else:
        pixels.keep_mesh(obs, scene, mesh)
    if pixels.read_mesh(obs, scene) is None:
        return _failed(job, params, "the mosaic has no good pixel")
    made, notes = (_from_segments if params.starfinder == _SEGMENTATION else _from_stars)(obs, params, job, passes)
    if not made:
        return _failed(job, params, "no source was found")
    write_columns(obs, PATH, made)
    return CatalogDocument(
        digest=scene.mark, made=_now(), parameters=plain(params), sources=len(made[0][1]),
        columns=tuple(column for column, _ in made), meta=_meta(params, job),
        segmentation=params.starfinder == _SEGMENTATION, notes=(*job.notes, *notes),
    )  # fmt: skip


def _from_segments(obs: Observation, params: Params, job: Job, passes: _Passes) -> tuple[list[Column], list[str]]:
    scene, rules = job.scene, job.rules
    passes.fill("detect", segments.label_work, segments.label_tasks(scene), rules=params.rules)
    found = segments.join_tiles(obs, scene, params.rules)
    if not len(found):
        return [], []
    segments.keep_tables(obs, scene, found)
    tasks = sources.source_tasks(scene, rules, found)
    passes.fill("measure", sources.source_work, tasks, rules=rules)
    tables = [pixels.read_table(obs, scene.key(f"sources/{task.key}")) for task in tasks]
    measured = Measured.stack([Measured.of_table(table) for table in tables])
    labels.keep_labels(obs, scene, found, measured)
    passes.fill("labels", labels.paint_work, labels.paint_tasks(scene, found, measured))
    number = labels.final_labels(measured)
    order = np.argsort(number)
    values = {name: column[order] for name, column in measured.values.items()}
    made = columns(number[order], values, measured.box[order], job.wcs, job.photometry)
    return made, _too_large(params, found, measured)


def _too_large(params: Params, found: segments.Segments, measured: Measured) -> list[str]:
    """Name the sources that were too large to be divided."""
    box = found.outlines.box
    size = np.prod(box[:, 2:] - box[:, :2], axis=1)
    large = np.flatnonzero(size > params.largest_blend) + 1 if params.deblend else np.zeros(0, np.int64)
    number = labels.final_labels(measured)[np.isin(measured.segment, large)]
    return [
        f"source {n} is larger than largest_blend ({params.largest_blend} pixels): not divided" for n in sorted(number.tolist())
    ]  # fmt: skip


def _from_stars(obs: Observation, params: Params, job: Job, passes: _Passes) -> tuple[list[Column], list[str]]:
    scene, options = job.scene, params.finder
    passes.fill("detect", stars.threshold_work, [stars.threshold_task(scene)], options=options)
    passes.fill("detect", stars.find_work, stars.find_tasks(scene, options), options=options)
    found = stars.joined_stars(obs, scene, options)
    if not len(found):
        return [], []
    inside = stars.keep_stars(obs, scene, found)
    passes.fill("measure", stars.measure_work, stars.measure_tasks(scene, job.rules, inside), rules=job.rules)
    values = stars.joined_values(obs, scene, found, inside)
    return columns(found.id, values, None, job.wcs, job.photometry), []


def _failed(job: Job, params: Params, reason: str) -> CatalogDocument:
    return CatalogDocument(
        digest=job.scene.mark, made=_now(), status="FAILED", reason=reason, parameters=plain(params), notes=job.notes
    )


def _now() -> str:
    """UTC time to the millisecond."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]


def _meta(params: Params, job: Job) -> dict[str, Any]:
    """The table's metadata: plain values under the reference's names."""
    meta: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "version": _versions(),
        "local_bkg_width": params.localbkg_width,
        "aperture_mask_method": params.apermask_method,
        "kron_params": list(params.kron_params or (2.5, 1.4, 0.0)),
    }
    circles, photometry = job.rules.circles, job.photometry
    if circles is not None:
        meta["aperture_params"] = {
            "aperture_ee": list(photometry.energies), "aperture_radii": list(circles.radii),
            "aperture_correction": photometry.correction,
            "bkg_aperture_inner_radius": circles.ring[0], "bkg_aperture_outer_radius": circles.ring[1],
        }  # fmt: skip
    if photometry.offset is not None:
        meta["abvega_offset"] = photometry.offset
    return meta | ({"notes": list(job.notes)} if job.notes else {})


def _versions() -> dict[str, str]:
    found = {"Python": python_version()}
    for package in ("numpy", "scipy", "streamimg3"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
