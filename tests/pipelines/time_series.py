"""Time series with a transit whose truth is known: a jittering star or spectrum, noise, cosmic rays; in segments."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from streamimg3.formats.fits_stream import Image, Unit, Whole, primary, table, write_units
from streamimg3.store.layout import TIMES
from tests.formats.cubes import TAN

F4 = NDArray[np.float32]
DAY = 60000.0
STEP = 5e-4  # days from integration to integration
AREA = 1e-13  # steradians of a pixel
APERTURE = {
    "id": "NRC_TSGRISM", "region_type": "target", "bkg_order": 0, "dispaxis": 1, "xstart": 2, "xstop": -3,
    "bkg_coeff": [[1.5], [7.5], [-8.5], [-2.5]],
}  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """What is seen; ``dimmed`` integrations (first and last, numbers from 1) have 1 - ``depth`` of the light."""

    spectra: bool = False
    shape: tuple[int, int] = (32, 40)
    count: int = 300
    depth: float = 0.01
    dimmed: tuple[int, int] = (120, 200)
    flux: float = 100.0
    noise: float = 0.35
    jitter: float = 0.03
    rays: int = 4
    cards: dict[str, Any] = field(default_factory=dict, compare=False, hash=False)

    def light(self, number: int) -> float:
        """Return the light of an integration."""
        return self.flux * (1 - self.depth * (self.dimmed[0] <= number <= self.dimmed[1]))

    def hits(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return rows and columns of the cosmic rays of an integration."""
        rng = np.random.default_rng([number, 1])
        return rng.integers(self.shape[0], size=self.rays), rng.integers(self.shape[1], size=self.rays)

    @property
    def place(self) -> tuple[float, float]:
        """Where the star is on average (y, x); of a spectrum, the row."""
        return self.shape[0] / 2 - 0.3, self.shape[1] / 2 + 0.4

    def image(self, number: int) -> F4:
        """Return an integration, always the same one for a number."""
        return _image(self, number)


@lru_cache(maxsize=4)
def _image(scene: Scene, number: int) -> F4:
    rng = np.random.default_rng([number, 2])
    y0, x0 = (place + scene.jitter * rng.standard_normal() for place in scene.place)
    y, x = np.arange(scene.shape[0])[:, None], np.arange(scene.shape[1])[None, :]
    bell = np.exp(-0.5 * ((y - y0) / 1.3) ** 2)
    bell = bell * (0.8 + 0.4 * x / scene.shape[1]) if scene.spectra else bell * np.exp(-0.5 * ((x - x0) / 1.2) ** 2)
    sci = (2.0 + scene.light(number) * bell + scene.noise * rng.standard_normal(scene.shape)).astype(np.float32)
    sci[scene.hits(number)] += np.float32(100.0 * scene.noise)
    sci.flags.writeable = False
    return sci


def _read(scene: Scene, plane: str, first: int, lead: tuple[int, ...], y0: int, y1: int) -> NDArray[np.generic]:
    number = first + lead[0]
    if plane == "SCI":
        return np.array(scene.image(number)[y0:y1])
    shape = (y1 - y0, scene.shape[1])
    if plane == "DQ":
        return np.zeros(shape, np.uint32)
    level = {"ERR": scene.noise, "VAR_POISSON": 0.6 * scene.noise**2, "VAR_RNOISE": 0.4 * scene.noise**2}
    return np.full(shape, level.get(plane, 0.0), np.float32)


def _wavelength(scene: Scene, lead: tuple[int, ...], y0: int, y1: int) -> NDArray[np.generic]:
    line = np.linspace(2.5, 4.0, scene.shape[1], dtype=np.float32)
    return np.broadcast_to(line, (y1 - y0, scene.shape[1])).copy()


def _int_times(first: int, last: int) -> Whole:
    numbers = np.arange(first, last + 1)
    rows = np.empty(len(numbers), [("n", ">i4"), ("t", ">f8", (len(TIMES),))])
    begin = DAY + STEP * (numbers - 1)
    rows["n"] = numbers
    rows["t"] = np.stack([begin + a + b for b in (0.0, 0.003) for a in (0.0, STEP / 2, STEP)], axis=1)
    titles = [n.replace("mjd_utc", "MJD_UTC").replace("bjd_tdb", "BJD_TDB") for n in TIMES]
    return table("INT_TIMES", [("integration_number", "J"), *((t, "D") for t in titles)], rows.tobytes(), len(rows))


def units(scene: Scene, segment: int, first: int, last: int) -> Iterator[Unit]:
    """Yield the units of a segment with the integrations from ``first`` to ``last``."""
    ny, nx = scene.shape
    cards: dict[str, Any] = {
        "TELESCOP": "JWST", "INSTRUME": "NIRCAM", "DETECTOR": "NRCALONG" if scene.spectra else "NRCA1",
        "DATAMODL": "CubeModel", "EXP_TYPE": "NRC_TSGRISM" if scene.spectra else "NRC_TSIMAGE", "TSOVISIT": True,
        "FILTER": "F322W2", "PUPIL": "GRISMR" if scene.spectra else "CLEAR", "TARGNAME": "STAR", "SUBARRAY": "SUB",
        "NINTS": scene.count, "INTSTART": first, "INTEND": last, "EXSEGNUM": segment, "EFFINTTM": 40.0, "EFFEXPTM": 100.0,
        "EXPSTART": DAY, "EXPMID": DAY + 1, "EXPEND": DAY + 2, "SUBSTRT1": 1, "SUBSTRT2": 1, "SUBSIZE1": nx, "SUBSIZE2": ny,
        "S_PHOTOM": "COMPLETE",
    }  # fmt: skip
    sci = {
        "BUNIT": "MJy/sr",
        "PIXAR_SR": AREA,
        "XREF_SCI": nx / 2 + 2.0,
        "YREF_SCI": ny / 2 - 1.0,
        "SRCTYPE": "POINT",
    } | TAN
    sci |= {"DISPAXIS": 1, "SPORDER": 1} if scene.spectra else {}
    yield primary([fits.Card(k, v) for k, v in (cards | {k: v for k, v in scene.cards.items() if k in cards}).items()])
    shape = (last - first + 1, ny, nx)
    for plane in ("SCI", "ERR", "DQ", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT"):
        extra = sci | {k: v for k, v in scene.cards.items() if k not in cards} if plane == "SCI" else {}
        kind = "uint32" if plane == "DQ" else "float32"
        mine = tuple(fits.Card(k, v) for k, v in extra.items())
        yield Image(plane, shape, kind, partial(_read, scene, plane, first), ny, mine)
    if scene.spectra:
        yield Image("WAVELENGTH", (ny, nx), "float32", partial(_wavelength, scene), ny)
    yield _int_times(first, last)


def write_series(folder: Path, scene: Scene, lengths: tuple[int, ...]) -> str:
    """Write the segments, an extract1d file and the association; returns the association's path."""
    folder.mkdir(parents=True, exist_ok=True)
    first, members = 1, []
    for segment, length in enumerate(lengths, 1):
        members.append(f"jw00042001001_03101_00001-seg{segment:03d}_nrca1_calints.fits")
        with open(folder / members[-1], "wb") as sink:
            write_units(sink, list(units(scene, segment, first, first + length - 1)))
        first += length
    ny, nx = scene.shape
    middle = scene.place[0]
    aperture = APERTURE | {"xstop": nx - 3, "ystart": middle - 4, "ystop": middle + 4}
    aperture["bkg_coeff"] = [[0.5], [middle - 7.0], [middle + 7.0], [ny - 1.5]]
    tree: dict[str, Any] = {"reftype": "EXTRACT1D", "telescope": "JWST", "apertures": [aperture]}
    (folder / "extract1d.json").write_text(json.dumps(tree))
    product = {
        "name": "jw00042-o001_t001_nircam_series",
        "members": [{"expname": m, "exptype": "science"} for m in members],
    }
    path = folder / "series_tso3_asn.json"
    path.write_text(json.dumps({"asn_type": "tso3", "asn_id": "o001", "asn_pool": "none", "products": [product]}))
    return str(path)
