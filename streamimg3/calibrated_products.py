"""What image2 leaves outside the store: calibrated exposures, rectified images, and what its steps are asked to save."""

from __future__ import annotations

import json
import math
import os
import posixpath
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from streamimg3.calibrated_headers import SUFFIXES, Labels, flat_of, parameters_of
from streamimg3.calibrated_means import mean_path
from streamimg3.calibrated_pixels import WORKING, calibrating, readable
from streamimg3.engine import Runner, Task
from streamimg3.engine.budget import MIB, resident, roomy_allocator
from streamimg3.formats.asdf_tree import asdf_unit
from streamimg3.formats.association import Member
from streamimg3.formats.cal_file import product_of, stored_product, write_product
from streamimg3.formats.fits_stream import Image, Unit, primary, write_units
from streamimg3.formats.i2d_header import own_card
from streamimg3.formats.names import absolute, is_remote
from streamimg3.formats.publish import open_product
from streamimg3.formats.reference_flat import open_flat
from streamimg3.formats.sources import open_sources
from streamimg3.geometry import Box
from streamimg3.kept_products import Made, write_products
from streamimg3.pipelines import image2
from streamimg3.products import exposure_task, mosaic_task, rest_of
from streamimg3.session import Session
from streamimg3.stages import flat_field
from streamimg3.stages.calibrated_band import FlatPixels
from streamimg3.store import ExposureRecord, Observation
from streamimg3.store.documents import AssociationDocument, CalibrationDocument, ResampleDocument, RunDocument
from streamimg3.store.layout import CHUNK, cube_chunking

_KINDS = ("cal", "i2d", *SUFFIXES, "combinedbackground", "interpolatedflat")  # in the order in which they are told
_LIBRARIES = 64 * MIB
_OTHERS = 36 * MIB  # what products of many exposures hold beside pixels and these do not, measured
_ROWS = 128
_ROOM = 16 * MIB  # of freed memory that is kept from band to band


def export_calibrated(obs: Observation, session: Session, runner: Runner, run: RunDocument) -> list[str]:
    """Write the products of a run of image2.

    Parameters
    ----------
    obs : Observation
        The store.
    session : Session
        Output folder.
    runner : Runner
        Who does the work.
    run : RunDocument
        Which rectified images there are.

    Returns
    -------
    list of str
        Paths or URLs of what was written.
    """
    document = image2.calibration(obs)
    work = partial(_work, obs=obs, destination=session.output_dir, options=dict(session.storage_options))
    tasks = _tasks(obs, document, run, rest_of(session) - _OTHERS)
    products = write_products(obs, session, runner, work, tasks, run.statuses)
    written = [*products.urls(_KINDS), _write_lock(obs, document, session)]
    products.tell(session, written)
    return written


def _tasks(obs: Observation, document: CalibrationDocument, run: RunDocument, rest: int) -> list[Task]:
    """One task for each file."""
    params = parameters_of(document)
    tasks = []
    for name in run.mosaics:
        mosaic = obs.document(ResampleDocument, name)
        if mosaic is not None:
            tasks.append(mosaic_task(f"i2d-{name}", mosaic.shape, mosaic.tile, rest))
    for record, entry in zip(obs.records(), document.exposures, strict=True):
        more = _block(record) if record.integrations else 0
        tasks.append(replace(exposure_task(record.index, record.shape, rest + more), key=f"cal-{record.index:06d}"))
        need = rest + WORKING + record.shape[1] * _ROWS * 16 + more
        kinds = [s for s in SUFFIXES if getattr(params, s).save_results and entry.statuses.get(s) == "COMPLETE"]
        if params.bkg_subtract.save_combined_background and entry.background is not None:
            kinds.append("combinedbackground")
        if params.flat_field.save_interpolated_flat and entry.flat is not None:
            kinds.append("interpolatedflat")
        tasks += [Task(f"{k}-{record.index:06d}", need, need, item=record.index, libraries=_LIBRARIES) for k in kinds]
    return tasks


def _block(record: ExposureRecord) -> int:
    """Bytes of the integrations of a cube that are read together, and of what decodes them."""
    depth = cube_chunking(record.shape, record.integrations)[0][0]
    return 0 if depth == 1 else 8 * depth * math.prod(record.shape)


def _work(task: Task, *, obs: Observation, destination: str, options: dict[str, str]) -> Made:
    """Write one file."""
    import gwcs  # noqa: F401 (before the memory is measured)

    from streamimg3.formats import i2d
    from streamimg3.formats.crf import band_rows

    kind, _, name = task.key.partition("-")
    limit = resident() + task.limit + _OTHERS  # the writers keep that free
    if kind == "i2d":
        return ((kind, i2d.export_i2d(obs, destination, options, name=name, limit=limit)),)
    exposure = obs.exposures(aligned=False)[task.item if isinstance(task.item, int) else task.item[0]]
    if kind == "cal":
        url = _url(destination, exposure.record.filename)
        cube = bool(exposure.record.integrations)  # its planes are read one by one, and as they are
        rows = CHUNK if cube else band_rows(exposure.record.shape, limit)
        with roomy_allocator(_ROOM):
            return ((kind, write_product(stored_product(exposure), url, options, rows)),)
    folder = _Folder(obs, destination, options)
    return ((kind, folder.write(kind, exposure.record.index)),)


def _url(destination: str, name: str) -> str:
    folder = absolute(destination)
    return posixpath.join(folder, name) if is_remote(folder) else os.path.join(folder, name)


def _write_lock(obs: Observation, document: CalibrationDocument, session: Session) -> str:
    """Write which reference files were taken, so that a later run can be given the same."""
    association = obs.document(AssociationDocument)
    url = _url(session.output_dir, f"{association.product if association else 'image2'}_references.json")
    with open_product(url, session.storage_options) as sink:
        sink.write(json.dumps({"references": list(document.lock)}, indent=1).encode())
    return url


class _Folder:
    """Writes what steps are asked to save, from the exposures' own files."""

    def __init__(self, obs: Observation, destination: str, options: Mapping[str, str]) -> None:
        self._obs, self._destination, self._options = obs, destination, options
        self._document = image2.calibration(obs)

    def write(self, kind: str, index: int) -> str:
        """Write one file; returns its URL."""
        if kind in SUFFIXES:
            return self._step(kind, index)
        name = f"{self._document.exposures[index].name}_{kind}.fits"
        url = _url(self._destination, name)
        units = self._mean(index, name) if kind == "combinedbackground" else self._flat(index, name)
        with open_product(url, self._options) as sink:
            write_units(sink, units)
        return url

    def _step(self, step: str, index: int) -> str:
        """Write an exposure as a step leaves it."""
        entry = self._document.exposures[index]
        association = self._obs.document(AssociationDocument)
        pool, table = (association.pool, association.table) if association else (None, None)
        labels = Labels(self._document, self._options, pool, table)
        with (
            open_sources(Member(entry.url, "science"), self._options, bare=True) as (raw,),
            calibrating(self._obs, raw, entry, self._document, step, self._options) as calibrated,
        ):
            labelled, _ = labels.labelled(raw, entry, step)
            product = product_of(readable(labelled, calibrated, keep=False))
            return write_product(product, _url(self._destination, labelled.filename), self._options, _ROWS)

    def _mean(self, index: int, name: str) -> list[Unit]:
        """Units of the mean of an exposure's backgrounds."""
        number = self._document.exposures[index].background or 0
        shape = self._document.backgrounds[number].shape

        def read(plane: str, lead: tuple[int, ...], y0: int, y1: int) -> NDArray[np.generic]:
            """Rows of a plane."""
            return self._obs.window(f"{mean_path(number)}/{plane}", (), Box(y0, 0, y1, shape[1]))

        kinds = (("sci", "float32"), ("dq", "uint32"), ("err", "float32"))
        cards = [
            fits.Card("DATE", self._document.made),
            fits.Card("FILENAME", name),
            fits.Card("DATAMODL", "ImageModel"),
        ]
        images = [Image(plane.upper(), shape, kind, partial(read, plane), _ROWS) for plane, kind in kinds]
        units: list[Unit] = [primary([*cards, own_card()]), *images]
        return [*units, asdf_unit({"meta": {"filename": name, "date": self._document.made}}, units)]

    def _flat(self, index: int, name: str) -> list[Unit]:
        """Units of the flat field as it was applied to an exposure."""
        entry = self._document.exposures[index]
        record = self._obs.records()[index]
        assert entry.flat is not None

        cut = entry.flat

        def read(plane: str, lead: tuple[int, ...], y0: int, y1: int) -> NDArray[np.generic]:
            """Rows of a plane."""
            with open_flat(flat_of(cut), self._options) as reader:
                band = reader.read(y0, y1)
            found: NDArray[np.generic] = getattr(flat_field.ready(FlatPixels(band.sci, band.err, band.dq)), plane)
            return found

        (ny, nx), (y, x) = record.shape, entry.corner
        cards = [
            fits.Card("DATE", self._document.made), fits.Card("FILENAME", name), fits.Card("DATAMODL", "FlatModel"),
            fits.Card("TELESCOP", "JWST"), fits.Card("REFTYPE", "FLAT"), fits.Card("INSTRUME", record.instrument),
            fits.Card("DETECTOR", record.detector), fits.Card("SUBSTRT1", x + 1), fits.Card("SUBSTRT2", y + 1),
            fits.Card("SUBSIZE1", nx), fits.Card("SUBSIZE2", ny),
        ]  # fmt: skip
        kinds = (("sci", "float32"), ("err", "float32"), ("dq", "uint32"))
        images = [Image(plane.upper(), (ny, nx), kind, partial(read, plane), _ROWS) for plane, kind in kinds]
        units: list[Unit] = [primary([*cards, own_card()]), *images]
        return [*units, asdf_unit({"meta": {"filename": name, "date": self._document.made}}, units)]
