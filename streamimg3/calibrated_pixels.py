"""The pixels of image2: count rates out of files, calibrated band by band on their way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamimg3.calibrated_headers import flat_of, planes_after
from streamimg3.calibrated_means import StoredMean, stored_document
from streamimg3.errors import InputError
from streamimg3.formats.association import Member
from streamimg3.formats.cal_file import SHARED, named_cube, named_planes
from streamimg3.formats.reference_area import Area, open_area
from streamimg3.formats.reference_flat import FlatReader, open_flat
from streamimg3.formats.reference_image import PlaneReader
from streamimg3.formats.sources import Source, open_sources
from streamimg3.geometry import Box
from streamimg3.pipelines import image2
from streamimg3.stages import flat_field
from streamimg3.stages.calibrated_band import BAND, PIXEL, FlatPixels, Given, MeanBackground, Planes
from streamimg3.store import Observation
from streamimg3.store.documents import CalibratedExposure, CalibrationDocument

Pixels = NDArray[np.generic]
_FLOATS = ("sci", "err", "var_poisson", "var_rnoise", "var_flat")
WORKING = BAND * PIXEL  # bytes beside the planes that are handed out


# ---------------------------------------------------------------- joint planes
@dataclass
class Bands:
    """Bands of an exposure, all planes of which are worked out together and handed out one by one.

    Parameters
    ----------
    compute : callable
        ``compute(first, last, y0, y1, planes)``: the planes of these names (None = all), by name.
    keep : bool
        Hold what was worked out until each plane has been asked for once; if not, it is worked out for each plane anew,
        which takes less memory and more time.
    """

    compute: Callable[[tuple[int, int, int, int], tuple[str, ...] | None], dict[str, Pixels]]
    keep: bool
    _held: dict[tuple[int, int, int, int], dict[str, Pixels]] = field(default_factory=dict)

    def read(self, name: str, where: tuple[int, int, int, int]) -> Pixels:
        """Return rows ``y0..y1`` of integrations ``first..last`` of a plane, ``where`` = (first, last, y0, y1)."""
        if not self.keep:
            return self.compute(where, (name,))[name]
        held = self._held.get(where)
        if held is None or name not in held:
            held = self._held[where] = self.compute(where, None)
        plane = held.pop(name)
        if not held:
            del self._held[where]
        return plane


@dataclass(frozen=True)
class Calibrated:
    """An open exposure and all that belongs to it.

    Parameters
    ----------
    raw : Source
        As it is in its file.
    entry : CalibratedExposure
        What is done to it.
    inverse : mapping of str to bool
        Whether a step is inverse.
    last : str
        Last step.
    flat, area : readers or None
        Open reference files.
    background : callable or None
        ``background(y0, y1)``.
    kept : dict
        What belongs to the rows that were asked for last.
    """

    raw: Source
    entry: CalibratedExposure
    inverse: Mapping[str, bool]
    last: str
    flat: FlatReader | None
    area: PlaneReader | None
    background: Callable[[int, int], MeanBackground] | None
    kept: dict[tuple[int, int], Given] = field(default_factory=dict, compare=False, repr=False)

    def compute(self, where: tuple[int, int, int, int], names: tuple[str, ...] | None) -> dict[str, Pixels]:
        """Work out rows of some integrations (an image: 0..1), in bands that keep the working memory small."""
        first, last, y0, y1 = where
        nx = self.raw.shape[1]
        step = max(1, BAND // (nx * (last - first)))
        if y1 - y0 <= step:
            return self._band(where)
        made: dict[str, Pixels] = {}
        for b0 in range(y0, y1, step):
            b1 = min(y1, b0 + step)
            for name, values in self._band((first, last, b0, b1)).items():
                if names is None or name in names:
                    if name not in made:
                        made[name] = np.empty((*values.shape[:-2], y1 - y0, nx), values.dtype)
                    made[name][..., b0 - y0 : b1 - y0, :] = values
        return made

    def _band(self, where: tuple[int, int, int, int]) -> dict[str, Pixels]:
        planes = self._planes(where)
        image2.calibrate(planes, self._given(where[2:]), self.inverse, self.last)
        found: dict[str, Pixels] = {"dq": planes.dq}
        for name in _FLOATS:
            values = getattr(planes, name)
            if values is not None:
                found[name] = values
        return found

    def _given(self, rows: tuple[int, int]) -> Given:
        """What belongs to some rows; kept, for the next integration asks for the same."""
        if rows not in self.kept:
            self.kept.clear()
            self.kept[rows] = Given(
                self.background(*rows) if self.background else None,
                flat_field.ready(FlatPixels(*_values(self.flat, *rows))) if self.flat else None,
                self.entry.photmjsr, self.entry.correction, self.entry.matched,
            )  # fmt: skip
        return self.kept[rows]

    def _planes(self, where: tuple[int, int, int, int]) -> Planes:
        made_anew = self.flat is not None and not {"var_poisson", "var_rnoise"}.isdisjoint(self.raw.names)
        found = {name: self._raw(name, where) for name in (*_FLOATS, "dq") if not (name == "err" and made_anew)}
        sci, dq = found["sci"], found["dq"]
        if sci is None:
            raise InputError(f"{self.raw.url}: has no SCI; make the file again")
        flags = np.zeros(sci.shape, np.uint32) if dq is None else dq
        others = {name: found.get(name) for name in _FLOATS[1:]}
        return Planes(sci, flags, **others)  # type: ignore[arg-type]

    def _raw(self, name: str, where: tuple[int, int, int, int]) -> Pixels | None:
        """Rows of a plane as they are in the file, to be changed; None = there is no such plane."""
        first, last, y0, y1 = where
        if self.raw.cube is None:
            image = self.raw.plane(name)
            return None if image is None else image.read(y0, y1)
        deep = next((p for p in self.raw.cube.planes if p.name == name), None)
        if deep is not None:
            return deep.read(first, last, y0, y1)
        shared = self.raw.plane("pixeldq") if name == "dq" else None
        return None if shared is None else np.repeat(shared.read(y0, y1)[None], last - first, axis=0)

    def area_rows(self, y0: int, y1: int) -> NDArray[np.float32]:
        """Return rows of the relative pixel area."""
        if self.area is not None:
            return self.area.floats(y0, y1)
        plane = self.raw.plane("area")
        if plane is None:
            raise ValueError(f"{self.raw.url}: has no AREA")
        return np.asarray(plane.read(y0, y1), np.float32)


def _values(flat: FlatReader, y0: int, y1: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint32]]:
    band = flat.read(y0, y1)
    return band.sci, band.err, band.dq


@contextmanager
def calibrating(
    obs: Observation,
    raw: Source,
    entry: CalibratedExposure,
    document: CalibrationDocument,
    last: str,
    options: Mapping[str, str],
) -> Iterator[Calibrated]:
    """Open the reference files of an open exposure.

    Parameters
    ----------
    obs : Observation
        The store, with the means of backgrounds.
    raw : Source
        The exposure, as it is in its file.
    entry : CalibratedExposure
        What is done to it.
    document : CalibrationDocument
        All of them.
    last : str
        Last step.
    options : mapping
        Storage options of the reference files.
    """
    inverse = {step: bool(values.get("inverse")) for step, values in document.parameters.items()}
    steps = image2.STEPS[: image2.STEPS.index(last) + 1]
    with ExitStack() as held:
        flat = area = None
        if entry.flat is not None and "flat_field" in steps:
            flat = held.enter_context(open_flat(flat_of(entry.flat), options))
        if entry.area is not None and "photom" in steps:
            cut = Area(entry.area.url, Box(*entry.area.box), None, None)
            area = held.enter_context(open_area(cut, options))
        background = None if entry.background is None else StoredMean(obs, entry.background, raw.shape).rows
        yield Calibrated(raw, entry, inverse, last, flat, area, background)


def readable(source: Source, calibrated: Calibrated, keep: bool) -> Source:
    """Return an exposure with planes that are calibrated as they are read.

    Parameters
    ----------
    source : Source
        With the names of the planes.
    calibrated : Calibrated
        The open files.
    keep : bool
        See `Bands`.
    """
    bands = Bands(calibrated.compute, keep)
    planes = tuple(
        replace(p, read=calibrated.area_rows if p.name in SHARED else partial(_image_rows, bands, p.name))
        for p in source.planes
    )
    if source.cube is None:
        return replace(source, planes=planes)
    deep = tuple(replace(p, read=partial(_cube_rows, bands, p.name)) for p in source.cube.planes)
    return replace(source, planes=planes, cube=replace(source.cube, planes=deep))


def _image_rows(bands: Bands, name: str, y0: int, y1: int) -> Any:
    return bands.read(name, (0, 1, y0, y1))


def _cube_rows(bands: Bands, name: str, first: int, last: int, y0: int, y1: int) -> Any:
    return bands.read(name, (first, last, y0, y1))


@contextmanager
def open_calibrated(
    member: Member, options: Mapping[str, str], *, obs: Observation, mark: str
) -> Iterator[list[Source]]:
    """Open a member of image2's as the calibrated exposure that goes into the store; its headers are those of the file.

    Parameters
    ----------
    member : Member
        A science exposure.
    options : mapping
        Storage options of the files.
    obs : Observation
        The store with the calibration document and the means of backgrounds.
    mark : str
        Digest of the document.
    """
    document = stored_document(obs, mark)
    entry = next(e for e in document.exposures if e.url == member.url)
    with (
        open_sources(member, options, bare=True) as (raw,),
        calibrating(obs, raw, entry, document, document.last, options) as calibrated,
    ):
        names = planes_after(raw.names, entry, document.last)
        source = replace(raw, planes=named_planes(raw, names), cube=named_cube(raw, names))
        yield [readable(source, calibrated, keep=True)]
