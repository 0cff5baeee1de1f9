"""Count-rate exposures of image2, small and made up: images and cubes, with backgrounds, association and reference files."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from tests.formats.cubes import int_times
from tests.formats.reference_files import NIRCAM, Optics, kit

SHAPE = (96, 80)
POINTING = {
    "V2_REF": 120.0, "V3_REF": -490.0, "RA_REF": 10.0, "DEC_REF": -20.0, "ROLL_REF": 30.0, "V3I_YANG": -0.5, "VPARITY": -1,
    "VA_SCALE": 1.00001, "CRPIX1": 40.5, "CRPIX2": 48.5,
}  # fmt: skip
CORON = replace(NIRCAM, exp_type="NRC_CORON", pupil="MASKRND")


@dataclass(frozen=True)
class Rate:
    """One exposure: its pixels follow from the seed; ``start`` is (SUBSTRT2, SUBSTRT1)."""

    seed: int = 1
    optics: Optics = NIRCAM
    shape: tuple[int, int] = SHAPE
    start: tuple[int, int] = (1, 1)
    nints: int = 0
    stars: bool = True

    def planes(self) -> dict[str, NDArray[np.generic]]:
        """SCI ERR DQ VAR_POISSON VAR_RNOISE, with NaN and flags here and there."""
        rng = np.random.default_rng(self.seed)
        shape = (self.nints, *self.shape) if self.nints else self.shape
        sci = rng.normal(0.5, 0.02, shape)
        y, x = np.mgrid[: self.shape[0], : self.shape[1]]
        for k in range(6 if self.stars else 0):
            y0, x0 = (15 + 13 * k) % self.shape[0], (11 + 29 * k) % self.shape[1]
            sci = sci + (5.0 + k) * np.exp(-((y - y0) ** 2 + (x - x0) ** 2) / 4.0)
        dq = (rng.random(shape) < 0.01).astype(np.uint32) * np.uint32(4)
        dead = rng.random(shape) < 0.005
        dq[dead] |= 1
        made = {"SCI": sci, "VAR_POISSON": rng.uniform(2e-4, 3e-4, shape), "VAR_RNOISE": rng.uniform(1e-4, 2e-4, shape)}
        floats = {k: np.asarray(v, np.float32) for k, v in made.items()}
        floats["SCI"][dead] = np.nan
        floats["SCI"][rng.random(shape) < 0.002] = np.nan
        err = np.sqrt(floats["VAR_POISSON"] + floats["VAR_RNOISE"])
        return {"SCI": floats.pop("SCI"), "ERR": err, "DQ": dq, **floats}

    def write(self, path: Path, without: tuple[str, ...] = (), **cards: Any) -> str:
        """Write the file and return its path; ``cards`` go into PRIMARY, those that are None are left out."""
        number = f"{self.seed:05d}"
        given = {
            "DATAMODL": "CubeModel" if self.nints else "ImageModel", "EXPSTART": 60000.0, "EXPMID": 60000.1, "EXPEND": 60000.2,
            "EFFEXPTM": 100.0, "TMEASURE": 95.0, "DURATION": 110.0, "PROGRAM": "01234", "OBSERVTN": "001", "VISIT": "001",
            "VISITGRP": "02", "SEQ_ID": "1", "ACT_ID": "01", "EXPOSURE": number, "NINTS": max(1, self.nints), **cards,
        }  # fmt: skip
        primary = fits.PrimaryHDU(header=self.optics.header(self.shape, self.start, **given))
        units: list[Any] = [primary]
        for name, values in self.planes().items():
            if name not in without:
                units.append(fits.ImageHDU(values, name=name))
        units[1].header.update({"BUNIT": "DN/s", **POINTING})
        if self.nints:
            units.append(int_times(np.arange(1, self.nints + 1)))
        fits.HDUList(units).writeto(path, overwrite=True)
        return str(path)


@dataclass(frozen=True)
class Case:
    """A folder with exposures, reference files and the association ``image2_asn.json``."""

    folder: Path
    references: dict[str, str]

    @property
    def association(self) -> str:
        """Path of the association."""
        return str(self.folder / "image2_asn.json")

    @property
    def steps(self) -> dict[str, dict[str, Any]]:
        """Parameters that point to the reference files."""
        own = self.references
        return {
            "assign_wcs": {f"override_{k}": own[k] for k in ("distortion", "filteroffset") if k in own},
            "flat_field": {"override_flat": own["flat"]},
            "photom": {f"override_{k}": own[k] for k in ("photom", "area")},
        }


def make(folder: Path, products: dict[str, tuple[Rate, tuple[Rate, ...]]], area: tuple[int, int] = (128, 128)) -> Case:
    """Write products (name: science, backgrounds); reference files are larger than the exposures."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for name, (science, backgrounds) in products.items():
        kind = "rateints" if science.nints else "rate"
        members = [{"expname": f"{name}_{kind}.fits", "exptype": "science"}]
        science.write(folder / f"{name}_{kind}.fits")
        for background in backgrounds:
            file = f"bkg{background.seed:03d}_{kind}.fits"
            background.write(folder / file)
            members.append({"expname": file, "exptype": "background"})
        listed.append({"name": name, "members": members})
    tree = {"asn_type": "image2", "asn_rule": "Asn_Lv2Image", "asn_id": "o001", "asn_pool": "pool", "products": listed}
    (folder / "image2_asn.json").write_text(json.dumps(tree))
    optics = next(iter(products.values()))[0].optics
    return Case(folder, kit(folder / "references", optics, area))
