"""Cubes of integrations as JWST writes them (``_calints``), small and made up."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

SHAPE = (64, 256)
TAN: dict[str, Any] = {
    "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 150.0, "CRVAL2": 2.0, "CRPIX1": 128.0, "CRPIX2": 32.0,
    "CD1_1": -1e-5, "CD1_2": 2e-6, "CD2_1": 2e-6, "CD2_2": 1e-5,
}  # fmt: skip
FLOATS = ("sci", "err", "var_poisson", "var_rnoise", "var_flat")
TIMES = tuple(f"int_{moment}_{scale}" for scale in ("MJD_UTC", "BJD_TDB") for moment in ("start", "mid", "end"))


@dataclass(frozen=True)
class Recipe:
    """A file with so many integrations of a shape; ``planes`` of JWST's, ``cards`` for its two headers."""

    count: int
    seed: int = 1
    shape: tuple[int, int] = SHAPE
    planes: tuple[str, ...] = (*FLOATS, "dq")
    cards: dict[str, Any] = field(default_factory=dict)

    def pixels(self) -> dict[str, NDArray[np.generic]]:
        """Return the planes; NaN, in other places of each, and flags up to the highest bit."""
        rng = np.random.default_rng(self.seed)
        made: dict[str, NDArray[np.generic]] = {}
        for name in (p for p in self.planes if p in FLOATS):
            values = rng.normal(5.0, 1.0, (self.count, *self.shape)).astype(np.float32)
            values[rng.random(values.shape) < 0.01] = np.nan
            made[name] = values
        if "dq" in self.planes:
            made["dq"] = rng.integers(0, 2**32, (self.count, *self.shape), np.uint32)
        if "pixeldq" in self.planes:
            made["pixeldq"] = rng.integers(0, 2**32, self.shape, np.uint32)
        return made | {"area": rng.normal(1.0, 0.01, self.shape).astype(np.float32)}

    def times(self, first: int = 1) -> fits.BinTableHDU:
        """Return a table of times for as many integrations, numbered from ``first``."""
        return int_times(np.arange(first, first + self.count))


def int_times(numbers: NDArray[np.int64]) -> fits.BinTableHDU:
    """Return an INT_TIMES table; column ``i`` of integration ``n`` is 60000 + n + i / 10 days."""
    columns = [fits.Column("integration_number", "J", array=numbers)]
    columns += [fits.Column(name, "D", array=60000.0 + numbers + i / 10) for i, name in enumerate(TIMES)]
    return fits.BinTableHDU.from_columns(columns, name="INT_TIMES")


def write_cube(path: Path, recipe: Recipe, table: fits.BinTableHDU | None = None, compress: bool = False) -> str:
    """Write a recipe's file and return its path."""
    primary = fits.PrimaryHDU()
    primary.header.update(
        {
            "TELESCOP": "JWST",
            "INSTRUME": "NIRCAM",
            "DETECTOR": "NRCA3",
            "DATAMODL": "CubeModel",
            "EXP_TYPE": "NRC_TSIMAGE",
        }
        | {"NINTS": recipe.count, "EFFEXPTM": 100.0, "EXPSTART": 60001.0, "EXPEND": 60001.1}
        | {"PROGRAM": "01234", "OBSERVTN": "001", "VISIT": "001", "VISITGRP": "02", "SEQ_ID": "1", "ACT_ID": "01"}
        | {"EXPOSURE": f"{recipe.seed:05d}"}
    )
    hdus: list[Any] = [primary]
    for name, values in recipe.pixels().items():
        title = "DQ" if name == "pixeldq" else name.upper()
        if compress and values.ndim == 3:
            hdus.append(fits.CompImageHDU(values, name=title, compression_type="GZIP_1", quantize_level=0))
        else:
            hdus.append(fits.ImageHDU(values, name=title))
    hdus[1].header.update({"BUNIT": "MJy/sr", "PIXAR_SR": 2e-14} | TAN)
    for key, value in recipe.cards.items():
        hdus[0 if key in ("INTSTART", "INTEND", "DATAMODL") else 1].header[key] = value
    fits.HDUList([*hdus, *([table] if table else [])]).writeto(path, overwrite=True)
    return str(path)
