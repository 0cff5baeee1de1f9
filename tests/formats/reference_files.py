"""Small reference files of each imaging instrument, made on the spot, and exposures that they fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import asdf
import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.modeling.models import Mapping as Axes
from astropy.modeling.models import Polynomial2D, Shift
from numpy.typing import NDArray

from streamimg3.formats.reference_card import ExposureFacts

USEAFTER = "2022-06-01T00:00:00"
PIXAR_SR, PIXAR_A2 = 9.3e-14, 0.003969


@dataclass(frozen=True)
class Optics:
    """An exposure's instrument and how it was set up."""

    instrument: str
    detector: str
    exp_type: str
    filter: str = ""
    pupil: str = ""
    channel: str = ""
    module: str = ""
    subarray: str = "FULL"
    date: str = "2023-05-06T12:00:00.000"

    def facts(self, **changes: str) -> ExposureFacts:
        """What the package makes of its header."""
        mine = {k: v for k, v in vars(self).items() if k not in ("instrument", "detector")}
        return replace(ExposureFacts("jw_rate.fits", self.instrument, self.detector, **mine), **changes)

    def header(self, shape: tuple[int, int] = (32, 40), start: tuple[int, int] = (1, 1), **cards: Any) -> fits.Header:
        """Primary header of an exposure; `start` is (SUBSTRT2, SUBSTRT1), a card that is None is left out."""
        day, _, time = self.date.partition("T")
        values: dict[str, Any] = {
            "TELESCOP": "JWST",
            **_optics_cards(self),
            "EXP_TYPE": self.exp_type,
            "SUBARRAY": self.subarray,
        }
        values |= {"DATE-OBS": day, "TIME-OBS": time, **_place(shape, start), **cards}
        return fits.Header([fits.Card(k, v) for k, v in values.items() if v is not None])


NIRCAM = Optics("NIRCAM", "NRCA2", "NRC_IMAGE", "F200W", "CLEAR", "SHORT", "A")
NIRISS = Optics("NIRISS", "NIS", "NIS_IMAGE", "CLEAR", "F150W")
MIRI = Optics("MIRI", "MIRIMAGE", "MIR_IMAGE", "F770W")
FGS = Optics("FGS", "GUIDER1", "FGS_IMAGE")
ALL = (NIRCAM, NIRISS, MIRI, FGS)

PHOTOM_KEYS = {
    "NIRCAM": ("filter", "pupil"),
    "NIRISS": ("filter", "pupil"),
    "MIRI": ("filter", "subarray"),
    "FGS": (),
}


def kit(folder: Path, optics: Optics, shape: tuple[int, int] = (32, 40)) -> dict[str, str]:
    """Write one file of each type an imaging exposure needs; path by type."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = str(folder / f"jwst_{optics.instrument.lower()}_")
    made = {
        "flat": flat(f"{stem}flat_0001.fits", optics, shape),
        "photom": photom(f"{stem}photom_0001.fits", optics),
        "area": area(f"{stem}area_0001.fits", optics, shape),
        "distortion": distortion(f"{stem}distortion_0001.asdf", optics),
    }
    if optics.instrument != "FGS":
        made["filteroffset"] = filteroffset(f"{stem}filteroffset_0001.asdf", optics)
    return made


def flat(
    path: str | Path,
    optics: Optics,
    shape: tuple[int, int] = (32, 40),
    planes: Mapping[str, NDArray[Any] | None] | None = None,
    dq_def: Sequence[tuple[int, str]] = (),
    **cards: Any,
) -> str:
    """A flat near 1 with a NaN, a zero and a NO_FLAT_FIELD pixel; `planes` replaces or (None) leaves out images."""
    sci = (1 + 0.03 * np.random.default_rng(1).standard_normal(shape)).astype(np.float32)
    dq = np.zeros(shape, np.uint32)
    if min(shape) > 8:
        sci[3, 4], sci[5, 6], dq[7, 8] = np.nan, 0, 2**18
    images = {"SCI": sci, "ERR": np.full(shape, 0.002, np.float32), "DQ": dq, **(planes or {})}
    head = _reference("FLAT", optics, {**_optics_cards(optics), **_place(shape), "SUBARRAY": "FULL", **cards})
    tables = []
    if dq_def:
        bits, names = [value for value, _ in dq_def], [name for _, name in dq_def]
        columns = [
            fits.Column("BIT", "J", array=[value.bit_length() - 1 for value in bits]),
            fits.Column("VALUE", "J", array=np.array(bits, np.uint32), bzero=2**31),
            fits.Column("NAME", "40A", array=names),
            fits.Column("DESCRIPTION", "80A", array=["" for _ in bits]),
        ]
        tables = [fits.BinTableHDU.from_columns(columns, name="DQ_DEF")]
    return _write(path, head, [fits.ImageHDU(v, name=k) for k, v in images.items() if v is not None] + tables)


def area(path: str | Path, optics: Optics, shape: tuple[int, int] = (32, 40), **cards: Any) -> str:
    """An area map whose pixel (y, x) is 1 + (1000 y + x) / 1e6."""
    y, x = np.indices(shape)
    values = (1 + (1000 * y + x) / 1e6).astype(np.float32)
    head = _reference("AREA", optics, {"PIXAR_SR": PIXAR_SR, "PIXAR_A2": PIXAR_A2, **_optics_cards(optics), **cards})
    return _write(path, head, [fits.ImageHDU(values, name="SCI")])


def photom(
    path: str | Path,
    optics: Optics,
    rows: Sequence[tuple[Any, ...]] | None = None,
    times: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    keys: Sequence[str] | None = None,
    **cards: Any,
) -> str:
    """A PHOTOM table; `rows` are the key columns, photmjsr and uncertainty; without, 2.5 for `optics` and another row.

    `times` gives further tables: extension, then coefficients by column.
    """
    keys = PHOTOM_KEYS[optics.instrument] if keys is None else keys
    if rows is None:
        mine = tuple(getattr(optics, key) for key in keys)
        rows = [(*mine, 2.5, 0.1)] + [("OTHER",) * len(keys) + (9.0, 0.1)] * bool(keys)
    values = list(zip(*rows, strict=True))
    columns = [fits.Column(k, "17A", array=list(v)) for k, v in zip(keys, values, strict=False)]
    columns += [
        fits.Column("photmjsr", "E", array=values[len(keys)]),
        fits.Column("uncertainty", "E", array=values[len(keys) + 1]),
    ]
    tables = [fits.BinTableHDU.from_columns(columns, name="PHOTOM")]
    for extension, terms in (times or {}).items():
        made = [fits.Column(name, "E", array=v) for name, v in terms.items()]
        tables.append(fits.BinTableHDU.from_columns(made, name=extension))
    head = {"PIXAR_SR": PIXAR_SR, "PIXAR_A2": PIXAR_A2, "EXP_TYPE": optics.exp_type, **cards}
    return _write(path, _reference("PHOTOM", optics, head), tables)


def distortion(path: str | Path, optics: Optics, **meta: Any) -> str:
    """Detector pixels to V2, V3 in arcsec: a slightly bent scale, with an inverse to match."""
    scale, bend, v2, v3, middle = 0.063, 1e-6, 120.0, -490.0, 19.5
    forward = (
        (Shift(-middle) & Shift(-middle))
        | Axes((0, 1, 0, 1))
        | (Polynomial2D(2, c1_0=-scale, c2_0=bend * scale) & Polynomial2D(2, c0_1=scale, c1_1=0.7 * bend * scale))
    )
    forward = forward | (Shift(v2) & Shift(v3))
    backward = Polynomial2D(2, c1_0=-1 / scale, c2_0=bend / scale**2), Polynomial2D(2, c0_1=1 / scale)
    there = (Shift(-v2) & Shift(-v3)) | Axes((0, 1, 0, 1)) | (backward[0] & backward[1])
    forward.inverse = there | (Shift(middle) & Shift(middle))
    facts = {"input_units": u.pix, "output_units": u.arcsec, **meta}
    return _tree(path, "distortion", optics, {"model": forward}, facts)


def filteroffset(path: str | Path, optics: Optics, offset: tuple[float, float] = (-0.25, 0.5), **meta: Any) -> str:
    """Row and column offset (in this order) of the optics' filter, and of another one."""
    pupil = optics.pupil or "N/A"
    rows = [
        {"filter": optics.filter, "pupil": pupil, "row_offset": offset[0], "column_offset": offset[1]},
        {"filter": "OTHER", "pupil": pupil, "row_offset": 9.0, "column_offset": 9.0},
    ]
    return _tree(path, "filteroffset", optics, {"filters": rows}, meta)


def _tree(path: str | Path, reftype: str, optics: Optics, content: dict[str, Any], meta: Mapping[str, Any]) -> str:
    instrument = {"name": optics.instrument, "detector": optics.detector}
    if optics.instrument == "NIRCAM":
        instrument |= {"channel": optics.channel, "module": optics.module}
    facts = {
        "reftype": reftype,
        "telescope": "JWST",
        "instrument": instrument,
        "exposure": {"type": optics.exp_type},
        "useafter": USEAFTER,
        "pedigree": "DUMMY",
        "author": "test",
        **meta,
    }
    asdf.AsdfFile({"meta": facts, **content}).write_to(path)
    return str(path)


def _reference(reftype: str, optics: Optics, cards: Mapping[str, Any]) -> dict[str, Any]:
    common = {"TELESCOP": "JWST", "REFTYPE": reftype, "INSTRUME": optics.instrument, "DETECTOR": optics.detector}
    return {**common, "USEAFTER": USEAFTER, "PEDIGREE": "DUMMY", "AUTHOR": "test", **cards}


def _optics_cards(optics: Optics) -> dict[str, str]:
    named = {"CHANNEL": optics.channel, "MODULE": optics.module, "FILTER": optics.filter, "PUPIL": optics.pupil}
    cards = {"INSTRUME": optics.instrument, "DETECTOR": optics.detector, **named}
    return {k: v for k, v in cards.items() if v}


def _place(shape: tuple[int, int], start: tuple[int, int] = (1, 1)) -> dict[str, int]:
    return {"SUBSTRT1": start[1], "SUBSTRT2": start[0], "SUBSIZE1": shape[1], "SUBSIZE2": shape[0]}


def _write(path: str | Path, cards: Mapping[str, Any], units: Sequence[Any]) -> str:
    primary = fits.PrimaryHDU()
    for keyword, value in cards.items():
        if value is not None:
            primary.header[keyword] = value
    fits.HDUList([primary, *units]).writeto(path, overwrite=True)
    return str(path)
