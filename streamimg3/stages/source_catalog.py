"""Find and measure the sources of the mosaic, tile by tile (spec image3 §9)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from platform import python_version
from typing import Any

import numpy as np

from streamimg3.engine import Outcome, Runner, Task
from streamimg3.engine.receipts import Ledger
from streamimg3.geometry import Box
from streamimg3.kernels.aperture import Circles
from streamimg3.stages import catalog_labels as labels
from streamimg3.stages import catalog_pixels as pixels
from streamimg3.stages import catalog_segments as segments
from streamimg3.stages import catalog_sources as sources
from streamimg3.stages import catalog_stars as stars
from streamimg3.stages.catalog_columns import Column, columns
from streamimg3.stages.catalog_job import Job, prepare
from streamimg3.stages.catalog_params import NAME, SEGMENTATION, Params
from streamimg3.stages.catalog_pixels import Scene
from streamimg3.stages.catalog_sources import Measured, Rulebook
from streamimg3.store import Observation
from streamimg3.store.columns import write_columns
from streamimg3.store.documents import CatalogDocument, ResampleDocument, StageCost, plain
from streamimg3.store.layout import TILE

__all__ = ["NAME", "Params", "plan", "run"]
PATH = "catalog"  # group of the columns
_CREATED = "_created"
_NO_MOSAIC = "there is no mosaic of all exposures"


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
    if params.starfinder != SEGMENTATION:
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
        Its status is FAILED, with a reason, where there is no mosaic or no source, or the reference files have nothing to say.

    Raises
    ------
    InputError
        If the reference files have not been read.
    BudgetError
        If the memory cannot hold the work.
    """
    mosaic = obs.document(ResampleDocument)
    if mosaic is None:
        nothing = CatalogDocument(made=_now(), status="FAILED", reason=_NO_MOSAIC, parameters=plain(params))
        runner.progress.note(f"{NAME}: no catalogue: {_NO_MOSAIC}")
        obs.commit(nothing)
        return nothing
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
    else:
        runner.progress.note(f"{NAME}: {document.sources} sources")
    if not document.segmentation:
        obs.backend.remove_tree(labels.label_path(job.scene))
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
        obs.backend.remove_tree(Ledger(obs.backend, f"{NAME}-{stage}", scene.mark).prefix)
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
        self._total = Outcome()

    def fill(self, stage: str, work: Callable[..., dict[str, float]], tasks: Sequence[Task], **more: object) -> None:
        """Run one pass; tasks that an interrupted run has finished are kept."""
        ledger = Ledger(self._obs.backend, f"{NAME}-{stage}", self._scene.mark)
        ledger.forget_others()
        if tasks:
            self._runner.check(tasks)
            self._total += self._runner.fill(pixels.bound(work, self._obs, self._scene, **more), tasks, ledger)

    def forget(self) -> None:
        """Remove the receipts: the document stands for them now."""
        for stage in self.STAGES:
            self._obs.backend.remove_tree(Ledger(self._obs.backend, f"{NAME}-{stage}", self._scene.mark).prefix)

    @property
    def cost(self) -> StageCost:
        """What all passes took."""
        return StageCost.of(self._total)


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
    made, notes = (_from_segments if params.starfinder == SEGMENTATION else _from_stars)(obs, params, job, passes)
    if not made:
        return _failed(job, params, "no source was found")
    write_columns(obs, PATH, made)
    return CatalogDocument(
        digest=scene.mark, made=_now(), parameters=plain(params), sources=len(made[0][1]),
        columns=tuple(column for column, _ in made), meta=_meta(params, job, notes),
        segmentation=params.starfinder == SEGMENTATION, notes=(*job.notes, *notes),
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
    tables = [pixels.read_table(obs, scene.key(f"sources/{task.key}"), without="cut_") for task in tasks]
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


def _meta(params: Params, job: Job, notes: list[str]) -> dict[str, Any]:
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
            "aperture_corrections": list(photometry.corrections),
            "bkg_aperture_inner_radius": circles.ring[0], "bkg_aperture_outer_radius": circles.ring[1],
        }  # fmt: skip
    if photometry.offset is not None:
        meta["abvega_offset"] = photometry.offset
    return meta | ({"notes": [*job.notes, *notes]} if job.notes or notes else {})


def _versions() -> dict[str, str]:
    found = {"Python": python_version()}
    for package in ("numpy", "scipy", "streamimg3"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
