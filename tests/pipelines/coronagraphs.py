"""Coronagraphic exposures, made up: stars behind a mask, speckles that change from image to image, a companion."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray
from scipy.ndimage import fourier_shift

from streamimg3.formats.fits_stream import Image, primary, write_units

F4 = NDArray[np.float32]
PRODUCT = "jw00001-a3001_t001_coron"
_CARDS = {
    "TELESCOP": "JWST", "INSTRUME": "NIRCAM", "DETECTOR": "NRCALONG", "CHANNEL": "LONG", "MODULE": "A", "FILTER": "F356W",
    "PUPIL": "MASKRND", "CORONMSK": "MASK335R", "EXP_TYPE": "NRC_CORON", "DATAMODL": "CubeModel", "SUBARRAY": "SUB320A335R",
    "PROGRAM": "00001", "VISIT": "001", "VISITGRP": "02", "SEQ_ID": "1", "ACT_ID": "01", "SUBSTRT1": 1, "SUBSTRT2": 1,
    "EFFEXPTM": 100.0, "TMEASURE": 95.0, "DURATION": 110.0, "EXPSTART": 60001.0, "EXPEND": 60001.1,
    "DATE-OBS": "2023-01-01", "TIME-OBS": "00:00:00.000",
}  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """An observation.

    Parameters
    ----------
    shape : tuple of int
        Rows and columns of an image.
    science, psf : sequence of int
        Integrations of each exposure.
    shifts : sequence of (float, float)
        Where the star is off (y, x) in the PSF exposures, in turn, against the science exposures.
    companion : tuple of float or None
        Place (y, x) against the star and peak of a companion, turned with the roll from exposure to exposure.
    bad : float
        Share of pixels that are spoiled: cosmic rays, flags, NaN.
    rolls : tuple of float
        Degrees, of the science exposures in turn.
    noise : float
        Of a pixel.
    speckles : float
        Strength of what is different in each image.
    """

    shape: tuple[int, int] = (40, 44)
    science: Sequence[int] = (3, 2)
    psf: Sequence[int] = (4, 5)
    shifts: Sequence[tuple[float, float]] = ((0.31, -0.22), (-0.4, 0.15))
    companion: tuple[float, float, float] | None = (9.0, -4.0, 0.8)
    bad: float = 0.003
    rolls: tuple[float, float] = (0.0, 12.0)
    speckles: float = 0.02
    noise: float = 0.02
    cards: dict[str, Any] = field(default_factory=dict)

    @property
    def centre(self) -> tuple[float, float]:
        """Where the star of the science exposures is (y, x)."""
        return (self.shape[0] - 1) / 2, (self.shape[1] - 1) / 2

    def star(self, rng: np.random.Generator, shift: tuple[float, float]) -> NDArray[np.float64]:
        """A star with speckles of its own, moved by phases."""
        y, x = np.mgrid[: self.shape[0], : self.shape[1]].astype(float)
        y, x = y - self.centre[0], x - self.centre[1]
        r, angle = np.hypot(y, x), np.arctan2(y, x)
        image = 1 + 0.4 * np.cos(6 * angle) + 0.3 * np.cos(0.9 * r)
        for k in range(4):
            image += self.speckles * rng.standard_normal() * np.cos((k + 2) * angle + k) * np.cos((0.2 + 0.1 * k) * r)
        image *= 10 * np.exp(-r / 5)
        return np.fft.ifftn(fourier_shift(np.fft.fftn(image), shift)).real

    def companion_at(self, number: int) -> tuple[float, float]:
        """Where the companion is in a science exposure, in pixels."""
        assert self.companion is not None
        dy, dx, _ = self.companion
        turn = np.deg2rad(self.rolls[number % len(self.rolls)])
        return (
            self.centre[0] + dy * np.cos(turn) - dx * np.sin(turn),
            self.centre[1] + dy * np.sin(turn) + dx * np.cos(turn),
        )

    def pixels(self, seed: int, count: int, shift: tuple[float, float], number: int | None) -> dict[str, F4]:
        """Planes of an exposure; `number` is that of a science exposure."""
        rng = np.random.default_rng(seed)
        sci = np.array([self.star(rng, shift) for _ in range(count)])
        if number is not None and self.companion is not None:
            y, x = np.mgrid[: self.shape[0], : self.shape[1]]
            y0, x0 = self.companion_at(number)
            sci += self.companion[2] * np.exp(-((y - y0) ** 2 + (x - x0) ** 2) / 2.5)
        sci += self.noise * rng.standard_normal(sci.shape)
        err = np.full(sci.shape, self.noise)
        dq = np.zeros(sci.shape, np.uint32)
        if self.bad:
            sci[rng.random(sci.shape) < self.bad] += 5.0
            flagged = rng.random(sci.shape) < self.bad
            dq[flagged] |= 1
            sci[flagged & (rng.random(sci.shape) < 0.5)] = np.nan
            err[rng.random(sci.shape) < self.bad / 2] = np.nan
        made = {"SCI": sci, "ERR": err, "VAR_POISSON": err**2 / 3, "VAR_RNOISE": 2 * err**2 / 3, "VAR_FLAT": 0 * err}
        return {name: plane.astype(np.float32) for name, plane in made.items()} | {"DQ": dq}  # type: ignore[dict-item]


@dataclass(frozen=True)
class Files:
    """A folder with exposures, weights and the association."""

    folder: Path
    scene: Scene

    @property
    def association(self) -> str:
        """Path of the association."""
        return str(self.folder / "coron3_asn.json")

    @property
    def weights(self) -> str:
        """Path of the psfmask file."""
        return str(self.folder / "psfmask.fits")

    def steps(self, **more: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Parameters by step."""
        found: dict[str, dict[str, Any]] = {"align_refs": {"override_psfmask": self.weights}, "klip": {"truncate": 4}}
        for step, values in more.items():
            found[step] = {**found.get(step, {}), **values}
        return found


def name_of(kind: str, number: int) -> str:
    """Name of an exposure's file."""
    visit = {"science": "001", "psf": "003"}[kind]
    return f"jw00001{visit}001_{number + 3100 + 1:05d}_00001_nrcalong_calints.fits"


def headers(scene: Scene, kind: str, number: int, count: int) -> tuple[list[fits.Card], list[fits.Card]]:
    """Cards of PRIMARY and SCI of an exposure."""
    ny, nx = scene.shape
    own = {"NINTS": count, "OBSERVTN": {"science": "001", "psf": "003"}[kind], "EXPOSURE": f"{number + 1:05d}"}
    more = {**_CARDS, "SUBSIZE1": nx, "SUBSIZE2": ny, "FILENAME": name_of(kind, number), **own, **scene.cards}
    turn = np.deg2rad(scene.rolls[number % len(scene.rolls)] if kind == "science" else 0.0)
    scale = 1.75e-5
    wcs = {
        "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 150.0, "CRVAL2": 2.0, "CRPIX1": scene.centre[1] + 1,
        "CRPIX2": scene.centre[0] + 1, "CD1_1": -scale * np.cos(turn), "CD1_2": -scale * np.sin(turn),
        "CD2_1": -scale * np.sin(turn), "CD2_2": scale * np.cos(turn), "BUNIT": "MJy/sr", "PIXAR_SR": 9.2e-14,
    }  # fmt: skip
    return [fits.Card(k, v) for k, v in more.items()], [fits.Card(k, v) for k, v in wcs.items()]


def write_exposure(path: Path, scene: Scene, kind: str, number: int, planes: dict[str, F4]) -> None:
    """Write one file."""
    head, wcs = headers(scene, kind, number, len(planes["SCI"]))
    units = []
    for name in ("SCI", "ERR", "DQ", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT"):
        values = planes[name]

        def read(lead: tuple[int, ...], y0: int, y1: int, values: F4 = values) -> F4:
            return values[lead[0], y0:y1].copy()

        units.append(Image(name, values.shape, str(values.dtype), read, 4096, tuple(wcs) if name == "SCI" else ()))
    with path.open("wb") as sink:
        write_units(sink, [primary(head), *units])


def write_weights(path: Path, scene: Scene) -> None:
    """Write weights: 0 within 2 pixels of the star and at the border."""
    y, x = np.mgrid[: scene.shape[0], : scene.shape[1]]
    weights = (np.hypot(y - scene.centre[0], x - scene.centre[1]) > 2).astype(np.float32)
    weights[[0, -1]], weights[:, [0, -1]] = 0.0, 0.0
    head = fits.PrimaryHDU()
    head.header.update({"TELESCOP": "JWST", "REFTYPE": "PSFMASK", "INSTRUME": "NIRCAM", "DETECTOR": "NRCALONG"})
    head.header.update({"USEAFTER": "2021-01-01T00:00:00", "FILTER": "F356W", "EXP_TYPE": "NRC_CORON"})
    fits.HDUList([head, fits.ImageHDU(weights, name="SCI")]).writeto(path, overwrite=True)


def make(folder: Path, scene: Scene | None = None) -> Files:
    """Write the exposures of a scene, weights and the association."""
    scene = scene or Scene()
    folder.mkdir(parents=True, exist_ok=True)
    members = []
    for kind, counts in (("science", scene.science), ("psf", scene.psf)):
        for number, count in enumerate(counts):
            science = number if kind == "science" else None
            shift = (0.0, 0.0) if kind == "science" else scene.shifts[number % len(scene.shifts)]
            planes = scene.pixels(100 * (kind == "psf") + number, count, shift, science)
            write_exposure(folder / name_of(kind, number), scene, kind, number, planes)
            members.append({"expname": name_of(kind, number), "exptype": kind})
    write_weights(folder / "psfmask.fits", scene)
    write_association(folder, members)
    return Files(folder, scene)


def write_association(folder: Path, members: Sequence[dict[str, str]]) -> None:
    """Write the association."""
    tree = {
        "asn_type": "coron3", "asn_rule": "Asn_Lv3Coron", "asn_id": "a3001", "asn_pool": "pool", "target": "t001",
        "products": [{"name": PRODUCT, "members": list(members)}],
    }  # fmt: skip
    (folder / "coron3_asn.json").write_text(json.dumps(tree))
