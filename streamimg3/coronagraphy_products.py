"""What coron3 leaves outside the store: exposures, stacked, aligned and subtracted images, mosaics, contrast."""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from streamimg3.engine import Runner, Task
from streamimg3.engine.budget import MIB, resident
from streamimg3.errors import InputError
from streamimg3.formats import contrast, i2d
from streamimg3.formats.cal_file import Product, write_product
from streamimg3.formats.fits_stream import write_units
from streamimg3.formats.i2d_header import Mosaic
from streamimg3.formats.names import absolute, is_remote
from streamimg3.formats.publish import open_product
from streamimg3.formats.stack_products import (
    HeldBlock,
    depth_of,
    four_dimensional,
    image_units,
    replaced_planes,
    seen_product,
    stack_product,
)
from streamimg3.formats.step_facts import Changes, StepFacts
from streamimg3.geometry import Box
from streamimg3.kept_products import Made, write_products
from streamimg3.kernels.bad_fill import Filling, fill_bad
from streamimg3.products import mosaic_task, rest_of
from streamimg3.session import Session
from streamimg3.stages import klip
from streamimg3.stages.psf_stack import Cast, cast_of
from streamimg3.stages.reference_planes import Recipe, moved, ready, recipe_of, shifts_to
from streamimg3.store import Exposure, Observation
from streamimg3.store.coron_documents import (
    AlignRefsDocument,
    ContrastDocument,
    KlipDocument,
    PsfmaskDocument,
)
from streamimg3.store.documents import (
    AssociationDocument,
    OutlierDocument,
    ResampleDocument,
    RunDocument,
)
from streamimg3.store.layout import cube_chunking
from streamimg3.store.seen_cube import SeenCube

# Products in the order in which they are told
_KINDS = ("crfints", "median", "psfstack", "psfalign", "psfsub", "i2d", "snr", "contrast")
_LIBRARIES = 64 * MIB
_PIXEL = 40  # bytes per pixel of the images that are read at a time: a plane, flags, masks, what they are made from
_MOVED = 96  # bytes per pixel of an image that is moved
# Step: its name in JWST's headers, and the products that tell its status
_TOLD = {
    "outlier_detection": ("outlier_detection", ("crfints", "psfstack", "psfalign", "psfsub", "i2d")),
    "stack_refs": ("stack_psfs", ("psfstack", "psfalign")),
    "align_refs": ("align_psfs", ("psfalign",)),
    "klip": ("klip", ("psfsub", "i2d")),
}


def export_coron3(obs: Observation, session: Session, runner: Runner, run: RunDocument) -> list[str]:
    """Write the products of a run of coron3.

    Parameters
    ----------
    obs : Observation
        The store.
    session : Session
        Output folder.
    runner : Runner
        Who does the work.
    run : RunDocument
        How the steps ended.

    Returns
    -------
    list of str
        Paths or URLs of what was written.
    """
    work = partial(
        _work, obs=obs, destination=session.output_dir, options=dict(session.storage_options), statuses=run.statuses
    )
    products = write_products(obs, session, runner, work, product_tasks(obs, session, run), run.statuses)
    written = products.urls(_KINDS)
    if run.statuses.get("hlsp") == "COMPLETE":
        written += _contrast(obs, session)
    written += _lock(obs, session)
    products.tell(session, written)
    return written


def product_tasks(obs: Observation, session: Session, run: RunDocument) -> list[Task]:
    """Return one task for each file that holds pixels."""
    cast, done, rest = cast_of(obs), run.statuses, rest_of(session)
    tasks = []
    for name in run.mosaics:
        mosaic = obs.document(ResampleDocument, name)
        if mosaic is not None:
            tasks.append(mosaic_task(f"i2d-{name}", mosaic.shape, mosaic.tile, rest))
            if done.get("hlsp") == "COMPLETE" and "err" in mosaic.planes:
                tasks.append(mosaic_task(f"snr-{name}", mosaic.shape, mosaic.tile, rest))
    files = _files(obs, cast, done)
    return [*tasks, *(_task(cast, kind, number, rest) for kind, number in files)]


def foreseen_products(obs: Observation, session: Session) -> list[Task]:
    """Return the tasks of the largest files, as far as their memory goes."""
    cast, rest = cast_of(obs), rest_of(session) + 40 * MIB
    return [_task(cast, "psfalign", 0, rest), _task(cast, "psfsub-0", 0, rest)]


def _files(obs: Observation, cast: Cast, done: Mapping[str, str]) -> list[tuple[str, int]]:
    """Kinds and numbers of the files of single exposures and stacks."""
    found: list[tuple[str, int]] = []
    if done.get("outlier_detection") == "COMPLETE":
        found += [("crfints", e.record.index) for e in cast.everything]
        document = obs.document(OutlierDocument)
        if document is not None and document.parameters.get("save_intermediate_results"):
            found += [("median", e.record.index) for e in cast.everything]
    if done.get("stack_refs") == "COMPLETE":
        found.append(("psfstack", 0))
    if done.get("align_refs") == "COMPLETE":
        found += [("psfalign", n) for n in range(len(cast.science))]
    if done.get("klip") == "COMPLETE":
        subtracted = obs.document(KlipDocument)
        numbers = subtracted.truncate if subtracted is not None else ()
        found += [(f"psfsub-{k}", n) for k in numbers for n in range(len(cast.science))]
    return found


def _task(cast: Cast, kind: str, number: int, rest: int) -> Task:
    """Return the task of writing one file."""
    ny, nx = cast.psf.shape
    (depth, _, _), _ = cube_chunking((ny, nx), max(e.record.first + e.depth for e in cast.everything))
    need = rest + ny * nx * (depth * _PIXEL + _MOVED)
    return Task(f"{kind}-{number:06d}", need, need, item=number, libraries=_LIBRARIES)


def _work(
    task: Task, *, obs: Observation, destination: str, options: dict[str, str], statuses: Mapping[str, str]
) -> Made:
    """Write one file."""
    import gwcs  # noqa: F401 (before the memory is measured)

    kind, _, name = task.key.partition("-")
    limit = resident() + task.limit
    facts = _facts(obs, statuses, kind)
    if kind == "i2d":
        return ((kind, i2d.export_i2d(obs, destination, options, name=name, limit=limit, statuses=facts.statuses)),)
    if kind == "snr":
        mosaic, url = _mosaic(obs, destination, name, facts.statuses)
        return ((kind, contrast.write_snr(obs, mosaic, url, options)),)
    number = task.item if isinstance(task.item, int) else task.item[0]
    return ((kind, _Writer(obs, destination, options, facts).write(kind, name, number)),)


def _facts(obs: Observation, statuses: Mapping[str, str], product: str) -> StepFacts:
    """Return what the headers of a kind of product tell of the steps."""
    kind = "i2d" if product == "snr" else "crfints" if product == "median" else product
    told = {name: statuses[step] for step, (name, products) in _TOLD.items() if kind in products and step in statuses}
    facts = StepFacts.of(obs, told)
    return replace(facts, product=product)


def _mosaic(obs: Observation, destination: str, name: str, statuses: Mapping[str, str]) -> tuple[Mosaic, str]:
    """Return what the headers of a mosaic's signal-to-noise image are made from, and its URL."""
    document = obs.document(ResampleDocument, name)
    if document is None:
        raise InputError(f"{obs.url} holds no finished mosaic '{name}': run coron3 first")
    url = i2d.mosaic_url(obs, destination, name).removesuffix("_i2d.fits") + "_snr.fits"
    return i2d.mosaic_of(obs, document, url, statuses), url


def _contrast(obs: Observation, session: Session) -> list[str]:
    """Write the contrast curves, and a picture of them."""
    from streamimg3.report.contrast import contrast_picture

    document = obs.document(ContrastDocument)
    if document is None:
        return []
    written = []
    for curve in document.curves:
        root = i2d.mosaic_url(obs, session.output_dir, curve.mosaic).removesuffix("_i2d.fits")
        written.append(contrast.write_contrast(obs, curve, f"{root}_contrast.ecsv", session.storage_options))
    url = _url(session.output_dir, f"{_product(obs)}_contrast.png")
    with open_product(url, session.storage_options) as sink:
        sink.write(contrast_picture(obs))
    return [*written, url]


def _lock(obs: Observation, session: Session) -> list[str]:
    """Write which reference files were taken, so that a later run can be given the same."""
    document = obs.document(PsfmaskDocument)
    if document is None or not any(document.paths):
        return []
    url = _url(session.output_dir, f"{_product(obs)}_references.json")
    with open_product(url, session.storage_options) as sink:
        sink.write(json.dumps({"references": list(document.lock)}, indent=1).encode())
    return [url]


def _product(obs: Observation) -> str:
    association = obs.document(AssociationDocument)
    return association.product if association is not None else "coron3"


def _url(destination: str, name: str) -> str:
    folder = absolute(destination)
    return posixpath.join(folder, name) if is_remote(folder) else os.path.join(folder, name)


@dataclass(frozen=True)
class _Writer:
    """Writes cubes, one file at a time."""

    obs: Observation
    destination: str
    options: Mapping[str, str]
    facts: StepFacts

    def write(self, kind: str, name: str, number: int) -> str:
        """Write one file; returns its URL."""
        cast = cast_of(self.obs)
        if kind in ("crfints", "median"):
            exposure = next(e for e in cast.everything if e.record.index == number)
            url = _url(self.destination, self.facts.file_name(exposure.record))
            product = seen_product(SeenCube(exposure, cast.psf.judged), self._changes(exposure, url))
            return self._written(product, url) if kind == "crfints" else self._median(exposure, product, url)
        if kind == "psfstack":
            return self._psfstack(cast)
        if kind == "psfalign":
            return self._psfalign(cast, number)
        return self._psfsub(cast, cast.science[number], int(name.partition("-")[0]))

    def _written(self, product: Product, url: str) -> str:
        return write_product(product, url, self.options, product.shape[0])

    def _changes(self, exposure: Exposure, url: str, made: str = "") -> tuple[Changes, Changes]:
        """Keywords that the steps decide, and the name of the file."""
        primary, sci = self.facts.exposure(exposure.record)
        primary["FILENAME"] = posixpath.basename(url) if is_remote(url) else os.path.basename(url)
        return primary | ({"DATE": made} if made else {}), sci

    def _median(self, exposure: Exposure, product: Product, url: str) -> str:
        """Write the median over the integrations of an exposure."""
        whole = Box(0, 0, *exposure.record.shape)

        def read(first: int, last: int) -> NDArray[np.generic]:
            return self.obs.window(
                f"{exposure.group}/median", (slice(exposure.record.row, exposure.record.row + 1),), whole
            )

        with open_product(url, self.options) as sink:
            write_units(sink, image_units(product, "sci", read))
        return url

    def _psfstack(self, cast: Cast) -> str:
        """Write the stack of references."""
        url, first = _url(self.destination, f"{_product(self.obs)}_psfstack.fits"), cast.psf.exposures[0]
        whole, size = Box(0, 0, *cast.psf.shape), depth_of(first)
        planes = {
            plane: HeldBlock(partial(_stacked, cast, plane, whole), cast.psf.count, size)
            for plane in ("sci", "err", "dq")
        }
        return self._written(stack_product(first, self._changes(first, url), cast.psf.count, planes), url)

    def _psfalign(self, cast: Cast, number: int) -> str:
        """Write the references as they are aligned with one science exposure; planes that are not kept are made here."""
        document = self.obs.document(AlignRefsDocument)
        assert document is not None
        found, science = document.exposures[number], cast.science[number]
        url = _url(self.destination, self.facts.file_name(science.record))
        changes = self._changes(cast.psf.exposures[0], url, document.made)
        masks = self.obs.document(PsfmaskDocument)
        if masks is not None:
            changes[0]["R_PSFMAS"] = masks.references[number].value
        maker = _Aligned(cast, document, number)
        total = cast.psf.count * found.targets
        planes = {
            plane: HeldBlock(
                partial(maker.block, self.obs, plane), total, 1 if found.targets > 1 else depth_of(science)
            )
            for plane in ("sci", "err", "dq")
        }
        product = stack_product(cast.psf.exposures[0], changes, cast.psf.count, planes)
        if found.targets == 1:
            return self._written(product, url)
        with open_product(url, self.options) as sink:
            write_units(sink, four_dimensional(product, (found.targets, cast.psf.count), planes))
        return url

    def _psfsub(self, cast: Cast, exposure: Exposure, truncate: int) -> str:
        """Write a science exposure without its star."""
        document = self.obs.document(KlipDocument)
        assert document is not None
        kind = "psfsub" if len(document.truncate) == 1 else f"kl{truncate}_psfsub"
        url = _url(self.destination, replace(self.facts, product=kind).file_name(exposure.record))
        changes = self._changes(exposure, url, document.made)
        own, whole = klip.folder(truncate, exposure), Box(0, 0, *exposure.record.shape)
        targets = self.obs.array(f"{own}/err").shape[0]

        def sci(first: int, last: int) -> NDArray[np.generic]:
            return self.obs.window(f"{own}/sci", (slice(first, last),), whole)

        def err(first: int, last: int) -> NDArray[np.generic]:
            if targets > 1:
                return self.obs.window(f"{own}/err", (slice(first, last),), whole)
            return np.broadcast_to(self.obs.window(f"{own}/err", (0,), whole), (last - first, *whole.shape))

        blocks = {"sci": HeldBlock(sci, exposure.depth, 8), "err": HeldBlock(err, exposure.depth, 8)}
        product = seen_product(SeenCube(exposure, cast.psf.judged), changes)
        return self._written(replaced_planes(product, blocks), url)


def _stacked(cast: Cast, plane: str, whole: Box, first: int, last: int) -> NDArray[np.generic]:
    if plane == "dq":
        return cast.psf.flags(first, last, whole)
    if not all(e.has(plane) for e in cast.psf.exposures):
        return np.full((last - first, *whole.shape), np.nan, np.float32)
    return cast.psf.floats(plane, first, last, whole)


@dataclass(frozen=True)
class _Aligned:
    """Aligned references, plane by plane: kept ones are read, others are made."""

    cast: Cast
    document: AlignRefsDocument
    number: int

    def block(self, obs: Observation, plane: str, first: int, last: int) -> NDArray[np.generic]:
        """Return some planes; those of the second target follow those of the first."""
        found, stack = self.document.exposures[self.number], self.cast.psf
        whole = Box(0, 0, *stack.shape)
        if plane == "dq":
            return np.zeros((last - first, *whole.shape), np.uint32)
        if plane == "sci" and found.path:
            return obs.window(f"{found.path}/sci", (slice(first, last),), whole)
        made = np.empty((last - first, *whole.shape), np.float32)
        for k in range(first, last):
            target, at = divmod(k, stack.count)
            made[k - first] = moved(self._ready(plane, at), shifts_to(found, target, stack.count)[at])
        return made

    def _ready(self, plane: str, at: int) -> NDArray[np.float32]:
        """Return a reference, or its error, without a bad pixel that would spread when it is moved."""
        ((seen, first, last),) = self.cast.psf.parts(at, at + 1)
        whole, recipe = Box(0, 0, *self.cast.psf.shape), recipe_of(self.document)
        if plane == "sci":
            filled: NDArray[np.float32] = ready(seen, first, last, whole, recipe)[0]
            return filled
        if not seen.exposure.has("err"):
            return np.full(whole.shape, np.nan, np.float32)
        errors = seen.floats("err", first, last, whole)
        fill_bad(errors, None, _for_errors(recipe, seen.exposure))
        return np.asarray(errors[0])


def _for_errors(recipe: Recipe, exposure: Exposure) -> Filling:
    """How errors are filled: all NaN, from what is around them."""
    return replace(recipe.filling(exposure), blank=0, compat=False)
