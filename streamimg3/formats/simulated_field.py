"""What a simulated field is, and which exposures it takes: where each looks, and where its file says it looks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np

from streamimg3.errors import InputError
from streamimg3.formats.simulated_wcs import Aim, Camera, Detector, Mount, aim_of, attitude, make_detector, plane_to_sky

OVERHEAD: Final = 60.0  # s between exposures
NATIVE_SIZE: Final = 2048  # px; smaller arrays are centred cut-outs of this
VA_RMS: Final = 5e-5
VISIT_ROLL: Final = 0.2  # deg that each pointing of a mosaic is turned with respect to the one before
GAP: Final = 0.07  # between detectors, in detector sides
TARGET_RATE: Final = (0.0016, 0.004)  # arcsec/s north and east


@dataclass(frozen=True)
class Instrument:
    """What the headers need to know about an instrument: optics, mode, detectors and where the first one is."""

    cards: tuple[tuple[str, str], ...]
    optics: str
    detectors: tuple[str, ...]
    aperture: str
    mount: Mount
    outside: int  # columns on the left and on the right beyond the bounding box
    filters: tuple[str, ...]  # the usual one first


INSTRUMENTS: Final[dict[str, Instrument]] = {
    "NIRCAM": Instrument(
        (("EXP_TYPE", "NRC_IMAGE"), ("FILTER", "F200W"), ("PUPIL", "CLEAR"), ("MODULE", "B"), ("CHANNEL", "SHORT"),
         ("READPATT", "SHALLOW4")),
        "clear-f200w", ("NRCB1", "NRCB2", "NRCB3", "NRCB4"), "{}_FULL", Mount(-122.0, -458.0, 0.35, -1), 0,
        ("F200W", "F070W", "F090W", "F115W", "F150W"),
    ),
    "NIRISS": Instrument(
        (("EXP_TYPE", "NIS_IMAGE"), ("FILTER", "CLEAR"), ("PUPIL", "F200W"), ("READPATT", "NIS")),
        "clear-f200w", ("NIS",), "NIS_CEN", Mount(-290.0, -698.0, 0.57, -1), 0,
        ("F200W", "F090W", "F115W", "F150W"),
    ),
    "MIRI": Instrument(
        (("EXP_TYPE", "MIR_IMAGE"), ("FILTER", "F770W"), ("READPATT", "FASTR1")),
        "f770w", ("MIRIMAGE",), "MIRIM_FULL", Mount(-453.0, -374.0, 4.8, -1), 4,
        ("F770W", "F560W", "F1000W", "F1500W", "F2100W"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Field:
    """What to simulate.

    Attributes
    ----------
    shape : tuple of int
        (ny, nx) of a detector, each 32 to 4096.
    dithers : int
        Exposures of each pointing.
    mosaic : tuple of int
        (rows, columns) of pointings.
    detectors : int
        Detectors that expose at once, 1 to 4 for NIRCam, else 1; two are side by side, four make a square.
    instrument : str
        ``NIRCAM``, ``NIRISS`` or ``MIRI``.  MIRI's bounding box leaves out four columns on the left and on the right.
    filter : str
        Of the instrument's; empty = the usual one. Through another one the same sources have other fluxes, and pointing
        and noise are others.
    ra, dec, roll : float
        Centre of the field and position angle of V3 there, deg.
    pixel_scale : float
        Arcsec.
    seed : int
    cosmic_rays : float
        Mean number of hits per million pixels and exposure.
    background, background_scatter : float
        Mean sky and its scatter from exposure to exposure (the detectors of one exposure share it), MJy/sr.
    pointing_rms : float
        Error of the stored WCS along each axis, mas; the first exposure has none and the detectors of one exposure
        share it.
    roll_rms : float
        Error of the stored roll, arcsec; the first exposure has none.
    dither_arcsec : float
        Radius of the dither pattern.
    overlap : float
        Of neighbouring pointings, as a share of the side.
    star_density, galaxy_density : float
        Per square arcsecond.
    extended : int
        Number of big galaxies in the field, up to hundreds of pixels wide.
    exposure_time : float
        s.
    bad_fraction : float
        Share of flawed pixels.
    moving : bool
        The telescope tracks a target that moves across the sky; ``ra`` and ``dec`` are its place at the first exposure.
        Stars are not trailed within an exposure.

    Raises
    ------
    InputError
        A value that makes no field.
    """

    shape: tuple[int, int] = (512, 512)
    dithers: int = 4
    mosaic: tuple[int, int] = (1, 1)
    detectors: int = 1
    instrument: str = "NIRCAM"
    filter: str = ""
    ra: float = 150.1163
    dec: float = 2.2010
    roll: float = 32.0
    pixel_scale: float = 0.031
    seed: int = 1
    cosmic_rays: float = 450.0
    background: float = 0.35
    background_scatter: float = 0.04
    pointing_rms: float = 12.0
    roll_rms: float = 5.0
    dither_arcsec: float = 1.0
    overlap: float = 0.12
    star_density: float = 0.25
    galaxy_density: float = 0.25
    extended: int = 1
    exposure_time: float = 515.0
    bad_fraction: float = 0.003
    moving: bool = False

    def __post_init__(self) -> None:
        if self.instrument not in INSTRUMENTS:
            raise InputError(f"field: instrument={self.instrument!r} is unknown; use one of {', '.join(INSTRUMENTS)}")
        known = INSTRUMENTS[self.instrument]
        self._require("filter", f"one of {', '.join(known.filters)}", self.filter in ("", *known.filters))
        most = len(known.detectors)
        amounts = (
            "cosmic_rays background background_scatter pointing_rms roll_rms dither_arcsec star_density galaxy_density "
            "extended"
        )
        self._require(
            "shape", "(ny, nx), each 32 to 4096", len(self.shape) == 2 and set(self.shape) <= set(range(32, 4097))
        )
        self._require("dithers", "1 to 99999", 1 <= self.dithers <= 99999)
        rows_columns = len(self.mosaic) == 2 and min(self.mosaic) >= 1 and math.prod(self.mosaic) <= 999
        self._require("mosaic", "(rows, columns), at least (1, 1) and at most 999 pointings", rows_columns)
        self._require("detectors", f"1 to {most} for {self.instrument}", 1 <= self.detectors <= most)
        self._require("dec", "-90 to 90", -90.0 <= self.dec <= 90.0)
        self._require("seed", "0 or more", self.seed >= 0)
        for name in ("pixel_scale", "exposure_time"):
            self._require(name, "positive", 0.0 < getattr(self, name) < math.inf)
        for name in amounts.split():
            self._require(name, "0 or more", 0.0 <= getattr(self, name) < math.inf)
        for name in ("overlap", "bad_fraction"):
            self._require(name, "at least 0 and below 1", 0.0 <= getattr(self, name) < 1.0)

    @property
    def usual(self) -> str:
        """The instrument's usual filter."""
        return INSTRUMENTS[self.instrument].filters[0]

    @property
    def other(self) -> int:
        """0 for the usual filter; for another one a number that is its own."""
        return INSTRUMENTS[self.instrument].filters.index(self.filter or self.usual)

    @property
    def optics(self) -> str:
        """What names of products call the optics."""
        return INSTRUMENTS[self.instrument].optics.replace(self.usual.lower(), (self.filter or self.usual).lower())

    def _require(self, name: str, rule: str, kept: bool) -> None:
        if not kept:
            raise InputError(f"field: {name}={getattr(self, name)!r} makes no field; it must be {rule}")


presets: Final[dict[str, Field]] = {
    "a": Field(),
    "b": Field(shape=(2048, 2048), dithers=8, dither_arcsec=3.0, star_density=0.06, extended=3),
    "c": Field(
        shape=(2048, 2048), dithers=3, mosaic=(1, 2), detectors=4, dither_arcsec=6.0, star_density=0.06, extended=8
    ),
}
"""Fields of increasing size: ``a`` has 4 exposures of 512², ``b`` 8 of 2048², ``c`` 24 of 2048² (four detectors, two
pointings, three dithers)."""


@dataclass(frozen=True, eq=False)
class Exposure:
    """One exposure of one detector: where it really looks and where its file says it looks.

    Attributes
    ----------
    index, group, pointing, dither : int
        Number of the exposure, of its group (detectors that expose at once), of its pointing, and within the pointing.
    true, stored : Camera
    error : tuple of float
        Stored minus true: north, east (mas) and roll (arcsec).
    target : tuple of float
        RA and Dec of the target, deg.
    background : float
        MJy/sr.
    """

    index: int
    group: int
    pointing: int
    dither: int
    true: Camera
    stored: Camera
    error: tuple[float, float, float]
    target: tuple[float, float]
    background: float

    @property
    def root(self) -> str:
        """Root of the file name."""
        return f"jw01234001{self.pointing + 1:03}_02101_{self.dither + 1:05}_{self.true.detector.name.lower()}"

    @property
    def filename(self) -> str:
        """Name of the file."""
        return f"{self.root}_cal.fits"


class Stream(IntEnum):
    """What a random stream belongs to; the last element of its seed."""

    SKY = 0
    DETECTOR = 1
    GROUP = 2
    EXPOSURE = 3
    COLOUR = 4


def random_stream(field: Field, index: int, stream: Stream) -> np.random.Generator:
    """Return the generator of one sky, detector, group or exposure, whatever has been drawn for the others.

    All but sky and detector are drawn for each filter by itself.
    """
    own = [field.other] * (field.other > 0 and stream not in (Stream.SKY, Stream.DETECTOR))
    return np.random.default_rng([field.seed, index, stream, *own])


def make_detectors(field: Field) -> list[Detector]:
    """Place the detectors of the field side by side in the V2V3 plane and invent their distortions."""
    instrument = INSTRUMENTS[field.instrument]
    pitch_y, pitch_x = (side * field.pixel_scale * (1.0 + GAP) for side in field.shape)
    detectors = []
    for number, name in enumerate(instrument.detectors[: field.detectors]):
        row, column = divmod(number, 2)
        at = instrument.mount
        mount = Mount(at.v2 + column * pitch_x, at.v3 + row * pitch_y, at.yangle + 0.2 * number, at.parity)
        detectors.append(make_detector(name, mount, number, field.pixel_scale, max(field.shape) / 2.0))
    return detectors


def _pattern(field: Field, detectors: list[Detector]) -> list[tuple[int, int, float, float]]:
    """Pointing, dither and offsets along V3 and V2 (arcsec) of each group."""
    (rows, columns), radius = field.mosaic, field.dither_arcsec
    spans = [max(place) - min(place) for place in ([d.v3 for d in detectors], [d.v2 for d in detectors])]
    steps = [
        (span + side * field.pixel_scale) * (1.0 - field.overlap) for span, side in zip(spans, field.shape, strict=True)
    ]
    groups = []
    for pointing in range(rows * columns):
        row, column = divmod(pointing, columns)
        for dither in range(field.dithers):
            # Sunflower: even coverage for any number, and all subpixel phases.
            angle, reach = dither * 2.399963, radius * math.sqrt((dither + 0.5) / field.dithers)
            v3 = (row - (rows - 1) / 2.0) * steps[0] + reach * math.sin(angle)
            v2 = (column - (columns - 1) / 2.0) * steps[1] + reach * math.cos(angle)
            groups.append((pointing, dither, v3, v2))
    return groups


def plan_exposures(field: Field) -> list[Exposure]:
    """List the exposures of a field in the order of its association: pointing, dither, detector."""
    detectors = make_detectors(field)
    v2 = (min(d.v2 for d in detectors) + max(d.v2 for d in detectors)) / 2.0
    v3 = (min(d.v3 for d in detectors) + max(d.v3 for d in detectors)) / 2.0
    cut = [max(0, (NATIVE_SIZE - side) // 2) for side in field.shape]
    origin = tuple((max(NATIVE_SIZE, side) - 1) / 2.0 - start for side, start in zip(field.shape, cut, strict=True))
    exposures: list[Exposure] = []
    for group, (pointing, dither, up, left) in enumerate(_pattern(field, detectors)):
        rng = random_stream(field, group, Stream.GROUP)
        roll = field.roll + VISIT_ROLL * pointing
        seconds = group * (field.exposure_time + OVERHEAD) if field.moving else 0.0
        target = place(TARGET_RATE[0] * seconds, TARGET_RATE[1] * seconds, (field.ra, field.dec))
        c, s = math.cos(math.radians(roll)), math.sin(math.radians(roll))
        looks_at = place(up * c - left * s, up * s + left * c, target)
        north, east, turn = _pointing_error(field, rng) if group else (0.0, 0.0, 0.0)
        said = place(north / 1000.0, east / 1000.0, looks_at)
        matrices = attitude(v2, v3, Aim(*looks_at, roll)), attitude(v2, v3, Aim(*said, roll + turn / 3600.0))
        va_scale, level = 1.0 + VA_RMS * rng.normal(), field.background + field.background_scatter * rng.normal()
        for d in detectors:
            true, stored = (Camera(d, (origin[0], origin[1]), aim_of(m, d.v2, d.v3), va_scale) for m in matrices)
            error = (north, east, turn)
            exposures.append(Exposure(len(exposures), group, pointing, dither, true, stored, error, target, level))
    return exposures


def _pointing_error(field: Field, rng: np.random.Generator) -> tuple[float, float, float]:
    """North and east (mas) and roll (arcsec)."""
    north, east, turn = rng.normal(size=3)
    return float(north * field.pointing_rms), float(east * field.pointing_rms), float(turn * field.roll_rms)


def place(north: float, east: float, centre: tuple[float, float]) -> tuple[float, float]:
    """RA and Dec (deg) at an offset north and east (arcsec) of ``centre``."""
    ra, dec = plane_to_sky(north, east, *centre)
    return float(ra), float(dec)
