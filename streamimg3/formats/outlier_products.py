"""What outlier_detection was told to keep: groups' mosaics, their median, and its blots (spec image3 §6.6)."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.formats.asdf_tree import asdf_unit
from streamimg3.formats.crf_header import crf_headers, crf_tree
from streamimg3.formats.fits_stream import Image, Unit, primary, write_units
from streamimg3.formats.i2d import described, image, mosaic_tree
from streamimg3.formats.i2d_header import Mosaic, wcs_keywords
from streamimg3.formats.names import absolute, is_remote
from streamimg3.formats.publish import UPLOAD_MEMORY, open_product
from streamimg3.formats.step_facts import StepFacts
from streamimg3.geometry import Box
from streamimg3.sky import footprint
from streamimg3.sky.wcs import Wcs
from streamimg3.store import Exposure, Observation
from streamimg3.store.documents import OutlierDocument, ResampleDocument
from streamimg3.store.layout import CHUNK

_ROOT = "outliers"
_LATER = ("outlier_detection", "resample", "source_catalog")


def export_outlier_products(
    obs: Observation,
    destination: str,
    options: Mapping[str, str],
    *,
    statuses: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> list[str]:
    """Write what ``outlier_detection.save_intermediate_results`` keeps as FITS files.

    Parameters
    ----------
    obs : Observation
        A store in which outlier_detection has finished with its intermediate results kept.
    destination, options, statuses, limit
        As for :func:`streamimg3.formats.crf.export_crf`.

    Returns
    -------
    list of str
        ``<exposure>_<association>_outlier_i2d.fits`` of each group, one ``_median.fits`` (both where exposures were
        resampled) and ``_blot.fits`` of each exposure.

    Raises
    ------
    InputError
        If nothing was kept.
    StoreError
        If pixels cannot be read or a product cannot be written.
    """
    document = obs.document(OutlierDocument)
    if document is None or not document.parameters.get("save_intermediate_results"):
        raise InputError(
            f"{obs.url} keeps no intermediate results: run with outlier_detection.save_intermediate_results=true"
        )
    if not document.wcs_asdf:  # compared in detector pixels: there is nothing but the flags
        return []
    before = {step: status for step, status in (statuses or {}).items() if step not in _LATER}
    facts = replace(StepFacts.of(obs, before), outliers=None)
    if limit is not None and is_remote(destination):
        limit -= UPLOAD_MEMORY
    writer = _Writer(obs, document, facts, limit)
    files = writer.mosaics() | {writer.name(e, "blot"): writer.blot(e) for e in obs.exposures()}
    written = []
    for name, units in files.items():
        folder = absolute(destination)
        written.append(posixpath.join(folder, name) if is_remote(folder) else os.path.join(folder, name))
        with open_product(written[-1], options) as product:
            write_units(product, units)
    return written


class _Writer:
    """Makes the units of all files; of the pixels, only where to read them."""

    def __init__(self, obs: Observation, document: OutlierDocument, facts: StepFacts, limit: int | None) -> None:
        self._obs, self._document, self._facts, self._limit = obs, document, facts, limit

    def name(self, exposure: Exposure, kind: str) -> str:
        """Return the name of a file that belongs to an exposure, or to the group that it is the first of."""
        return replace(self._facts, product=kind).file_name(exposure.record)

    def mosaics(self) -> dict[str, list[Unit]]:
        """Files of the groups' mosaics in order, and of the median."""
        groups: dict[str, list[Exposure]] = {}
        for exposure in self._obs.exposures():
            groups.setdefault(exposure.record.group_id, []).append(exposure)
        made: dict[str, list[Unit]] = {}
        for number, members in enumerate(groups.values()):
            name = self.name(members[0], "outlier_i2d")
            planes = {"SCI": (f"{_ROOT}/sci", (number,)), "WHT": (f"{_ROOT}/wht", (number,))}
            made[name] = self._mosaic(name, members, planes, self._outline())
        first = next(iter(groups.values()))
        name = self.name(first[0], "median")
        return made | {name: self._mosaic(name, first, {"SCI": (f"{_ROOT}/median", ())})}

    def _wcs(self) -> Wcs:
        return Wcs("gwcs", self._document.wcs_asdf.encode("latin-1"), self._obs.array(f"{_ROOT}/sci").shape[-2:])

    def _outline(self) -> str | None:
        """Outline of all exposures, which the reference gives to each group's mosaic."""
        return footprint.union([e.s_region for e in self._obs.exposures()], self._wcs())

    def _mosaic(
        self,
        name: str,
        members: list[Exposure],
        planes: Mapping[str, tuple[str, tuple[int, ...]]],
        s_region: str | None = None,
    ) -> list[Unit]:
        wcs = self._wcs()
        resampled = ResampleDocument(
            made=self._document.made,
            parameters={**self._document.parameters, "blendheaders": False},
            shape=wcs.shape,
            wcs_asdf=self._document.wcs_asdf,
            s_region=s_region,
            pixel_scale=abs(float(wcs_keywords(wcs)["CDELT2"])) * 3600,
        )
        mosaic = Mosaic(resampled, tuple(members), name, self._facts)
        headers, _ = described(mosaic)
        units: list[Unit] = [primary(headers.primary)]
        for extension, (path, lead) in planes.items():
            cards = headers.sci if extension == "SCI" else ()
            units.append(image(self._obs, path, extension, self._limit, cards, lead=lead))
        return [*units, asdf_unit(mosaic_tree(mosaic, headers), units)]

    def blot(self, exposure: Exposure) -> list[Unit]:
        """Units of the median in the pixels of an exposure."""
        facts = replace(self._facts, product="blot")
        headers = crf_headers(exposure, facts)
        read = partial(_blot_rows, exposure)
        units: list[Unit] = [primary(headers.primary)]
        units.append(Image("SCI", exposure.record.shape, "float32", read, CHUNK, tuple(headers.sci)))
        if exposure.record.wcs_kind != "gwcs":
            return [*units, *headers.tables]
        return [*units, asdf_unit(crf_tree(exposure, facts), units)]


def _blot_rows(exposure: Exposure, lead: tuple[int, ...], y0: int, y1: int) -> NDArray[np.generic]:
    return exposure.read("blot", Box(y0, 0, y1, exposure.record.shape[1]))
