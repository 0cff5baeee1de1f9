"""Exposures of a real survey painted anew: pixels from a catalogue, pointing as the telescope reported it.

The survey's WCS files hold its own alignment as a step of the gWCS.  Pixels are painted through the aligned WCS, but the
files that are written carry the gWCS without that step, so the alignment can be found again and compared.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from streamimg3.formats.simulated_sky import Image, Painter
from streamimg3.sky.asdf_text import asdf_bytes
from streamimg3.sky.footprint import outline
from streamimg3.sky.wcs import Wcs

F8 = NDArray[np.float64]
NATIVE: Final = 2048
ARCSEC: Final = float(np.deg2rad(1.0 / 3600.0))
ALIGNED: Final = "v2v3corr"  # frame behind the survey's alignment
FAINTEST: Final = 27.5  # AB magnitude
BACKGROUND, NOISE, PER_SIGNAL = 0.15, 0.008, 2e-4  # MJy/sr, MJy/sr, variance per signal in MJy/sr
SECONDS: Final = 944.836
START: Final = 59751.2  # MJD
_NAME = re.compile(r"jw(\d{5})(\d{3})(\d{3})_(\d\d)(\d)(\d\d)_(\d{5})_(nrc[ab](?:\d|long))")
_REFERENCE = {  # wcsinfo -> keyword
    "v2_ref": "V2_REF", "v3_ref": "V3_REF", "roll_ref": "ROLL_REF", "ra_ref": "RA_REF", "dec_ref": "DEC_REF",
    "v3yangle": "V3I_YANG", "vparity": "VPARITY", "velosys": "VELOSYS",
}  # fmt: skip


@dataclass(frozen=True)
class Survey:
    """Where the survey's files are, where work is done, and the side of the cut-outs."""

    data: Path
    work: Path
    size: int

    @property
    def association(self) -> Path:
        """The association whose exposures are painted."""
        return self.data / "asn" / "nircam1_f277w.json"

    @property
    def catalog(self) -> Path:
        """The reference catalogue."""
        return self.data / "CEERS_EGS_HST_v1.9_cat_radecmag.ecsv"

    def pars(self, name: str) -> Path:
        """One of the parameter files."""
        return self.data / "pars" / name

    def exposures(self) -> list[Exposure]:
        """The exposures of the association, in its order."""
        members = json.loads(self.association.read_text())["products"][0]["members"]
        names = [m.group(0) for entry in members if (m := _NAME.search(entry["expname"]))]
        return [read_exposure(self.data / "wcs", name, self.size) for name in names]


@dataclass(frozen=True, eq=False)
class Sky:
    """Point sources: ICRS degrees and flux in Jy, arrays of one length."""

    ra: F8
    dec: F8
    flux: F8


def read_catalog(path: Path) -> Sky:
    """Read the survey's reference catalogue (columns RA, DEC, MAG in AB), without what is too faint to matter."""
    from astropy.table import Table

    table = Table.read(path)
    table = table[np.asarray(table["MAG"]) < FAINTEST]
    ra, dec, magnitude = (np.asarray(table[name], np.float64) for name in ("RA", "DEC", "MAG"))
    return Sky(ra, dec, 3631.0 * 10.0 ** (-0.4 * magnitude))


def unit_vectors(ra: F8, dec: F8) -> F8:
    """Cartesian unit vectors (3, n) of positions in degrees."""
    lon, lat = np.deg2rad(ra), np.deg2rad(dec)
    return np.array([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])


def angles(vectors: F8) -> tuple[F8, F8]:
    """Positions in degrees of unit vectors (3, n)."""
    x, y, z = vectors
    return np.rad2deg(np.arctan2(y, x)) % 360.0, np.rad2deg(np.arctan2(z, np.hypot(x, y)))


def offsets(ra: F8, dec: F8, centre: tuple[float, float]) -> F8:
    """Offsets (2, n) to the north and the east in arcsec from a centre (ra, dec) nearby."""
    here = unit_vectors(ra, dec)
    lon, lat = np.deg2rad(centre)
    east = np.array([-np.sin(lon), np.cos(lon), 0.0])
    north = np.array([-np.sin(lat) * np.cos(lon), -np.sin(lat) * np.sin(lon), np.cos(lat)])
    return np.stack([north @ here, east @ here]) / (unit_vectors(*map(np.asarray, centre)) @ here) / ARCSEC


@dataclass(frozen=True, eq=False)
class Pointing:
    """Where the pixels of a cut-out really are: a WCS of the whole detector, perhaps turned on the sky.

    Parameters
    ----------
    wcs : Wcs
        Of the whole detector.
    corner : tuple of int
        Row and column of the cut-out's first pixel.
    turn : ndarray, shape (3, 3)
        Rotation of the celestial sphere that follows the WCS.
    """

    wcs: Wcs
    corner: tuple[int, int]
    turn: F8 = field(default_factory=lambda: np.eye(3))

    def to_sky(self, y: F8, x: F8) -> tuple[F8, F8]:
        """Map pixels of the cut-out to ICRS degrees."""
        y0, x0 = self.corner
        return angles(self.turn @ unit_vectors(*self.wcs.to_sky(y + y0, x + x0, bounded=False)))

    def to_pixel(self, ra: F8, dec: F8) -> tuple[F8, F8]:
        """Map ICRS degrees to pixels: the inverse that the file has is only good to a tenth of a pixel, so it is refined."""
        y, x = self.wcs.to_pixel(*angles(self.turn.T @ unit_vectors(ra, dec)))
        y, x = y - self.corner[0], x - self.corner[1]
        middle = (np.array(self.wcs.shape) / 2.0 - np.array(self.corner))[:, None]
        centre = tuple(float(v[0]) for v in self.to_sky(*middle))
        probe = middle + np.array([[-1.0, 1.0, 0.0, 0.0], [0.0, 0.0, -1.0, 1.0]])
        moved = offsets(*self.to_sky(*probe), centre)
        to_pixels = np.linalg.inv(np.stack([moved[:, 1] - moved[:, 0], moved[:, 3] - moved[:, 2]], axis=1) / 2.0)
        wanted = offsets(ra, dec, centre)
        for _ in range(5):
            step = to_pixels @ (wanted - offsets(*self.to_sky(y, x), centre))
            y, x = y + step[0], x + step[1]
        return y, x


@dataclass(frozen=True, eq=False)
class Exposure:
    """A cut-out of one exposure of one detector.

    Parameters
    ----------
    name : str
        ``jw01345001001_02201_00001_nrcalong``.
    info : dict
        ``wcsinfo`` of the survey's file.
    reported : Wcs
        Of the cut-out, without the survey's alignment.
    true : Pointing
        With it.
    """

    name: str
    info: dict[str, Any]
    reported: Wcs
    true: Pointing

    @property
    def group(self) -> str:
        """What the detectors of one exposure have in common."""
        return self.name.rpartition("_")[0]


def read_exposure(folder: Path, name: str, size: int) -> Exposure:
    """Read one of the survey's WCS files and cut the middle of the detector out of it."""
    import asdf

    path = folder / f"{name}_tweakreg.asdf"
    with asdf.open(path, lazy_load=False) as tree:
        whole, info = tree["wcs"], dict(tree["wcsinfo"])
    corner = ((NATIVE - size) // 2,) * 2
    text = asdf_bytes({"wcs": _reported(whole, corner, size)})
    survey = Wcs("gwcs", path.read_bytes(), (NATIVE, NATIVE))
    return Exposure(name, info, Wcs("gwcs", text, (size, size)), Pointing(survey, corner))


def _reported(whole: Any, corner: tuple[int, int], size: int) -> Any:
    """The gWCS of the cut-out without the step of the survey's alignment."""
    import gwcs
    from astropy.modeling.models import Shift

    steps = [(step.frame, step.transform) for step in whole.pipeline]
    at = list(whole.available_frames).index(ALIGNED)
    steps[at - 1 : at + 1] = [(steps[at - 1][0], steps[at][1])]
    y0, x0 = corner
    steps[0] = (steps[0][0], Shift(x0) & Shift(y0) | steps[0][1])
    made = gwcs.WCS(steps, name="reported")
    made.bounding_box = ((-0.5, size - 0.5), (-0.5, size - 0.5))
    return made


def grid(size: int, nodes: int = 5) -> tuple[F8, F8]:
    """Rows and columns of a regular grid over a cut-out."""
    y, x = np.meshgrid(*[np.linspace(0.0, size - 1.0, nodes)] * 2, indexing="ij")
    return y.ravel(), x.ravel()


def made_rigid(exposures: list[Exposure]) -> list[Exposure]:
    """Let the detectors of each exposure share one alignment: the rotation of the sky that is nearest to the survey's."""
    rigid = []
    for exposure in exposures:
        there, here = [], []
        for member in (e for e in exposures if e.group == exposure.group):
            y, x = grid(member.reported.shape[0])
            there.append(unit_vectors(*member.true.to_sky(y, x)))
            here.append(unit_vectors(*member.reported.to_sky(y, x, bounded=False)))
        u, _, v = np.linalg.svd(np.hstack(there) @ np.hstack(here).T)
        turn = u @ np.diag([1.0, 1.0, float(np.linalg.det(u @ v))]) @ v
        rigid.append(replace(exposure, true=Pointing(exposure.reported, (0, 0), turn)))
    return rigid


def paint(exposure: Exposure, sky: Sky, seed: int) -> dict[str, Image | NDArray[np.uint32]]:
    """Make the planes of an exposure by extension name, MJy/sr and its square."""
    size, pixel_sr = exposure.reported.shape[0], pixel_area(exposure.reported)
    painter = Painter(np.zeros((size, size), np.float32), 0.05 * NOISE * 1e6 * pixel_sr)
    reach = np.cos(np.deg2rad(52.9))
    ra, dec = (float(v[0]) for v in exposure.true.to_sky(np.array([size / 2.0]), np.array([size / 2.0])))
    near = np.hypot((sky.ra - ra) * reach, sky.dec - dec) < 0.08 * size / 3600.0
    y, x = exposure.true.to_pixel(sky.ra[near], sky.dec[near])
    for row, column, flux in zip(y, x, sky.flux[near], strict=True):
        painter.star(float(row), float(column), float(flux))
    sci = painter.image * np.float32(1e-6 / pixel_sr) + np.float32(BACKGROUND)
    rng = np.random.default_rng([1345, seed])
    poisson, read = np.maximum(sci, 0.0) * np.float32(PER_SIGNAL), np.full_like(sci, NOISE**2)
    sci += rng.standard_normal(sci.shape, np.float32) * np.sqrt(poisson + read)
    err = np.sqrt(poisson + read)
    dq, flat = np.zeros(sci.shape, np.uint32), np.zeros_like(sci)
    return {"SCI": sci, "ERR": err, "DQ": dq, "VAR_POISSON": poisson, "VAR_RNOISE": read, "VAR_FLAT": flat}


def pixel_area(wcs: Wcs) -> float:
    """Area of the middle pixel in steradian."""
    (ny, nx), half = wcs.shape, 0.5
    y, x = ny / 2 + np.array([-half, half, half, -half]), nx / 2 + np.array([-half, -half, half, half])
    ra, dec = wcs.to_sky(y, x, bounded=False)
    north, east = offsets(ra, dec, (float(ra[0]), float(dec[0])))
    return 0.5 * abs(float(north @ np.roll(east, -1) - east @ np.roll(north, -1))) * ARCSEC**2


def write_exposure(path: Path, exposure: Exposure, sky: Sky, seed: int) -> None:
    """Paint an exposure and write it as the calibration pipeline would."""
    from astropy.io import fits

    hdus = fits.HDUList([fits.PrimaryHDU(header=fits.Header(_primary_cards(path, exposure)))])
    for name, plane in paint(exposure, sky, seed).items():
        hdus.append(fits.ImageHDU(plane, name=name, ver=1))
    hdus["SCI"].header.update(_sci_cards(exposure))
    tree = {"meta": {"filename": path.name, "model_type": "ImageModel", "wcs": exposure.reported.gwcs()}}
    content = np.frombuffer(asdf_bytes(tree), np.uint8)
    column = fits.Column("ASDF_METADATA", f"{content.size}B", array=content[None, :])
    hdus.append(fits.BinTableHDU.from_columns([column], name="ASDF"))
    path.parent.mkdir(parents=True, exist_ok=True)
    hdus.writeto(path, overwrite=True)


def _primary_cards(path: Path, exposure: Exposure) -> dict[str, str | int | float]:
    found = _NAME.fullmatch(exposure.name)
    if found is None:
        raise ValueError(f"{exposure.name} is no name of a NIRCam exposure")
    program, observation, visit, group, sequence, activity, number, detector = found.groups()
    size = exposure.reported.shape[0]
    first = (NATIVE - size) // 2 + 1
    start = START + (int(group) * 10 + int(number)) * SECONDS / 86400.0
    long = detector.endswith("long")
    return {
        "FILENAME": path.name, "DATAMODL": "ImageModel", "TELESCOP": "JWST", "CAL_VER": "1.7.2",
        "DATE-OBS": "2022-06-21", "PROGRAM": program, "OBSERVTN": observation, "VISIT": visit, "VISITGRP": group,
        "SEQ_ID": sequence, "ACT_ID": activity, "EXPOSURE": number, "TARGTYPE": "FIXED", "TARGNAME": "EGS",
        "INSTRUME": "NIRCAM", "DETECTOR": detector.upper(), "MODULE": detector[3].upper(),
        "CHANNEL": "LONG" if long else "SHORT", "FILTER": "F277W" if long else "F115W", "PUPIL": "CLEAR",
        "EXP_TYPE": "NRC_IMAGE", "SUBARRAY": "SUB" if size < NATIVE else "FULL", "SUBSTRT1": first, "SUBSTRT2": first,
        "SUBSIZE1": size, "SUBSIZE2": size, "EFFEXPTM": SECONDS, "TMEASURE": SECONDS, "DURATION": SECONDS,
        "EXPSTART": start, "EXPMID": start + SECONDS / 172800.0, "EXPEND": start + SECONDS / 86400.0,
    }  # fmt: skip


def _sci_cards(exposure: Exposure) -> dict[str, str | int | float]:
    """Units, pointing and a linear FITS WCS about the middle of the cut-out."""
    wcs, size, area = exposure.reported, exposure.reported.shape[0], pixel_area(exposure.reported)
    middle = (size - 1) / 2.0
    y, x = middle + np.array([0.0, 0.5, -0.5, 0.0, 0.0]), middle + np.array([0.0, 0.0, 0.0, 0.5, -0.5])
    ra, dec = wcs.to_sky(y, x, bounded=False)
    north, east = offsets(ra, dec, (float(ra[0]), float(dec[0]))) / 3600.0
    cards: dict[str, str | int | float] = {
        "BUNIT": "MJy/sr", "XPOSURE": SECONDS, "PIXAR_SR": area, "PIXAR_A2": area / ARCSEC**2, "RADESYS": "ICRS",
        "WCSAXES": 2, "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CUNIT1": "deg", "CUNIT2": "deg",
        "CRPIX1": middle + 1.0, "CRPIX2": middle + 1.0, "CRVAL1": float(ra[0]), "CRVAL2": float(dec[0]),
        "CD1_1": float(east[3] - east[4]), "CD1_2": float(east[1] - east[2]),
        "CD2_1": float(north[3] - north[4]), "CD2_2": float(north[1] - north[2]), "S_REGION": outline(wcs),
    }  # fmt: skip
    return cards | {keyword: exposure.info[name] for name, keyword in _REFERENCE.items()}
