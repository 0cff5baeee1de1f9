"""What tso3 leaves outside the store: cubes with their outliers, tables of photometry, spectra, light curves, pictures."""

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
from streamimg3.formats import i2d
from streamimg3.formats.cal_file import write_product
from streamimg3.formats.fits_stream import write_units
from streamimg3.formats.names import absolute, is_remote
from streamimg3.formats.publish import open_product
from streamimg3.formats.series_tables import write_series_table
from streamimg3.formats.stack_products import HeldBlock, depth_of, image_units, seen_product
from streamimg3.formats.step_facts import Changes, StepFacts, status_keyword
from streamimg3.formats.x1dints import SpectraFile, in_file_order, row_bytes, write_spectra
from streamimg3.geometry import Box
from streamimg3.kept_products import Made, write_products
from streamimg3.products import mosaic_task, rest_of
from streamimg3.session import Session
from streamimg3.stages import tso_photometry, white_light
from streamimg3.store import Exposure, ExposureRecord, Observation
from streamimg3.store.documents import (
    AssociationDocument,
    OutlierDocument,
    ResampleDocument,
    RunDocument,
    UsedReference,
)
from streamimg3.store.layout import cube_chunking
from streamimg3.store.rows import read_rows
from streamimg3.store.seen_cube import SeenCube
from streamimg3.store.series import time_series
from streamimg3.store.series_documents import (
    LightCurveDocument,
    PhotometryDocument,
    SeriesReferencesDocument,
    SpectraDocument,
)

_KINDS = ("crfints", "median", "phot", "x1dints", "profile", "whtlt", "i2d")  # in the order in which they are told
_LIBRARIES = 64 * MIB
_PIXEL = 40  # bytes per pixel of the images that are read at a time: a plane, flags, masks, what they are made from
_SPECTRA = 48 * MIB  # a band of rows being read and one being written
_REFERENCES = {"extract1d": "R_EXTR1D", "apcorr": "R_APCORR", "photom": "R_PHOTOM", "gain": "R_GAIN"}


def export_tso3(obs: Observation, session: Session, runner: Runner, run: RunDocument) -> list[str]:
    """Write the products of a run of tso3.

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
    options = dict(session.storage_options)
    work = partial(_work, obs=obs, destination=session.output_dir, options=options, statuses=run.statuses)
    products = write_products(obs, session, runner, work, _tasks(obs, session, run), run.statuses)
    written = products.urls(_KINDS)
    references = obs.document(SeriesReferencesDocument)
    if references is not None and references.lock:
        url = _url(session.output_dir, f"{_product(obs)}_references.json")
        with open_product(url, options) as sink:
            sink.write(json.dumps({"references": list(references.lock)}, indent=1).encode())
        written.append(url)
    products.tell(session, written)
    return written


def foreseen_products(obs: Observation, session: Session) -> list[Task]:
    """Return the tasks of the largest files, as far as their memory goes."""
    rest = rest_of(session) + 40 * MIB
    records = {r.shape: r for r in obs.records()}
    return [_cube_task("crfints", r, rest) for r in records.values()]


def _tasks(obs: Observation, session: Session, run: RunDocument) -> list[Task]:
    """One task for each file."""
    rest, done = rest_of(session), [s for s, status in run.statuses.items() if status == "COMPLETE"]
    tasks = []
    if "outlier_detection" in done:
        document = obs.document(OutlierDocument)
        chosen = document.parameters if document is not None else {}
        wanted = {"crfints": chosen.get("save_results", True), "median": chosen.get("save_intermediate_results")}
        for kind in (kind for kind, asked in wanted.items() if asked):
            tasks += [_cube_task(kind, r, rest) for r in obs.records()]
    table = Task("", rest + 16 * MIB, rest + 16 * MIB, libraries=_LIBRARIES)
    if "tso_photometry" in done:
        photometry = obs.document(PhotometryDocument)
        tasks.append(replace(table, key="phot", item=-1))
        if photometry is not None and photometry.parameters.get("save_catalog"):
            tasks += [replace(table, key=f"phot-{r.index:06d}", item=r.index) for r in obs.records()]
    if "extract_1d" in done:
        tasks += _spectra_tasks(obs, rest)
    for name in run.mosaics:
        mosaic = obs.document(ResampleDocument, name)
        if mosaic is not None:
            tasks.append(mosaic_task(f"i2d-{name}", mosaic.shape, mosaic.tile, rest))
    if "white_light" in done:
        tasks.append(replace(table, key="whtlt", item=-1))
    return tasks


def _spectra_tasks(obs: Observation, rest: int) -> list[Task]:
    document = obs.document(SpectraDocument)
    if document is None:
        return []
    need = rest + _SPECTRA + 6 * max(row_bytes(s.points) for s in document.spectra)
    spectra = Task("x1dints", need, need, item=-1, libraries=_LIBRARIES)
    if document.parameters.get("by_segment"):
        indices = dict.fromkeys(s.index for one in document.spectra for s in one.segments)
        tasks = [replace(spectra, key=f"x1dints-{i:06d}", item=i) for i in indices]
    else:
        tasks = [spectra]
    if document.parameters.get("save_profile"):
        tasks.append(replace(spectra, key="profile", item=-1))
    return tasks


def _cube_task(kind: str, record: ExposureRecord, rest: int) -> Task:
    ny, nx = record.shape
    depth = cube_chunking(record.shape, record.first + record.integrations)[0][0]
    need = rest + ny * nx * depth * _PIXEL
    return Task(f"{kind}-{record.index:06d}", need, need, item=record.index, libraries=_LIBRARIES)


def _work(
    task: Task, *, obs: Observation, destination: str, options: dict[str, str], statuses: Mapping[str, str]
) -> Made:
    """Write one file."""
    kind, _, name = task.key.partition("-")
    if kind == "i2d":
        limit = resident() + task.limit
        told = {step: status for step, status in statuses.items() if step == "outlier_detection"}
        return ((kind, i2d.export_i2d(obs, destination, options, name=name, limit=limit, statuses=told)),)
    index = task.item if isinstance(task.item, int) else task.item[0]
    writer = _Writer(obs, destination, options, statuses)
    make = {
        "crfints": writer.cube, "median": writer.median, "phot": writer.photometry, "x1dints": writer.spectra,
        "profile": writer.profile, "whtlt": writer.light_curve,
    }[kind]  # fmt: skip
    return ((kind, make(index)),)


def _url(destination: str, name: str) -> str:
    folder = absolute(destination)
    return posixpath.join(folder, name) if is_remote(folder) else os.path.join(folder, name)


def _product(obs: Observation) -> str:
    association = obs.document(AssociationDocument)
    return association.product if association is not None else "tso3"


@dataclass(frozen=True)
class _Writer:
    """Writes files, one at a time."""

    obs: Observation
    destination: str
    options: Mapping[str, str]
    statuses: Mapping[str, str]

    # ------------------------------------------------------------ cubes
    def cube(self, index: int) -> str:
        """Write a segment with its outliers."""
        exposure = self._exposure(index)
        url = _url(self.destination, self._name(exposure.record, "crfints.fits"))
        product = seen_product(SeenCube(exposure), (self._changes(exposure.record, url, ("outlier_detection",)), {}))
        return write_product(product, url, self.options, product.shape[0])

    def median(self, index: int) -> str:
        """Write the medians of a segment."""
        exposure = self._exposure(index)
        record, whole = exposure.record, Box.of_shape(exposure.record.shape)
        url = _url(self.destination, self._name(record, "median.fits"))
        product = seen_product(SeenCube(exposure), (self._changes(record, url, ("outlier_detection",)), {}))

        def block(first: int, last: int) -> NDArray[np.generic]:
            span = slice(record.first + first, record.first + last)
            return self.obs.window(f"{exposure.group}/median", (span,), whole)

        held = HeldBlock(block, record.integrations, depth_of(exposure))
        read = product.read

        def rows(plane: str, integration: int, y0: int, y1: int) -> NDArray[np.generic]:
            return held.rows(integration, y0, y1) if plane == "sci" else read(plane, integration, y0, y1)

        made = replace(product, planes=("sci",), read=rows, times=None)
        return write_product(made, url, self.options, record.shape[0])

    # ------------------------------------------------------------ tables
    def photometry(self, index: int) -> str:
        """Write the table of all segments, or (``index`` from 0) of one."""
        document = self.obs.document(PhotometryDocument)
        assert document is not None
        rows, name = (0, document.rows), f"{_product(self.obs)}_phot.ecsv"
        if index >= 0:
            record = self._exposure(index).record
            start = 0
            for one in time_series(self.obs.records()):
                if record.index in {r.index for r in one.records}:
                    start += one.start(record)
                    break
                start += one.count
            rows, name = (start, start + record.integrations), f"{record.name}_phot.ecsv"
        meta = document.meta | {"number_of_integrations": rows[1] - rows[0]}
        target = _url(self.destination, name), self.options
        return write_series_table(self.obs, tso_photometry.PATH, document.columns, meta, target, rows)

    def light_curve(self, index: int) -> str:
        """Write the light curves."""
        document = self.obs.document(LightCurveDocument)
        assert document is not None
        target = _url(self.destination, f"{_product(self.obs)}_whtlt.ecsv"), self.options
        rows = 0, document.rows
        return write_series_table(self.obs, white_light.PATH, document.columns, document.meta, target, rows)

    # ------------------------------------------------------------ spectra
    def spectra(self, index: int) -> str:
        """Write the spectra of all segments, or (``index`` from 0) of one."""
        document = self.obs.document(SpectraDocument)
        assert document is not None
        name = f"{_product(self.obs)}_x1dints.fits"
        extensions = in_file_order(document.spectra)
        if index >= 0:
            name = self._name(self._exposure(index).record, "x1dints.fits")
            extensions = tuple(e for e in extensions if e.segment.index == index)
        url = _url(self.destination, name)
        steps = ("outlier_detection", "extract_1d", "photom")
        changes = {
            e.segment.index: self._changes(self._exposure(e.segment.index).record, url, steps, document.made)
            | {"FILENAME": self._exposure(e.segment.index).record.filename}
            for e in extensions
        }
        return write_spectra(SpectraFile(self.obs, name, extensions, changes, document.made), url, self.options)

    def profile(self, index: int) -> str:
        """Write the weights of the pixels of the first segment."""
        document = self.obs.document(SpectraDocument)
        assert document is not None
        segment = document.spectra[0].segments[0]
        exposure = self._exposure(segment.index)
        url = _url(self.destination, f"{_product(self.obs)}_profile.fits")
        changes = self._changes(exposure.record, url, ("outlier_detection", "extract_1d"), document.made)
        product = replace(seen_product(SeenCube(exposure), (changes, {})), integrations=0, times=None)

        def read(first: int, last: int) -> NDArray[np.generic]:
            return read_rows(self.obs, f"profiles/{segment.profile}/source").astype(np.float32)[None]

        with open_product(url, self.options) as sink:
            write_units(sink, image_units(product, "sci", read))
        return url

    # ------------------------------------------------------------ headers
    def _exposure(self, index: int) -> Exposure:
        return self.obs.exposures(aligned=False)[index]

    def _name(self, record: ExposureRecord, ending: str) -> str:
        """Return the name of a segment's product: the association's id is in it once."""
        association = self.obs.document(AssociationDocument)
        mark = association.asn_id if association is not None else None
        root = record.name.replace(f"_{mark}", "") if mark else record.name
        return "_".join([root, *([mark] if mark else []), ending])

    def _changes(self, record: ExposureRecord, url: str, steps: tuple[str, ...], made: str = "") -> Changes:
        """Keywords of PRIMARY that the steps decide."""
        facts = StepFacts({}, self.obs.document(AssociationDocument))
        outliers, references = self.obs.document(OutlierDocument), self.obs.document(SeriesReferencesDocument)
        changes: Changes = dict(facts.common)
        changes["FILENAME"] = posixpath.basename(url) if is_remote(url) else os.path.basename(url)
        when = made or (outliers.made if outliers is not None else "")
        changes |= {"DATE": when} if when else {}
        changes |= {status_keyword(s): self.statuses[s] for s in steps if s in self.statuses}
        if "extract_1d" in steps:
            changes |= {status_keyword("pixel_replace"): "SKIPPED", status_keyword("adaptive_trace_model"): "SKIPPED"}
            used: tuple[UsedReference, ...] = references.exposures[record.index].references if references else ()
            changes |= {_REFERENCES[u.reftype]: u.value for u in used if u.reftype in _REFERENCES}
        return changes
