"""How the spectra of each segment are extracted: from apertures, wavelengths and headers to weights (spec others §2.5)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from streamimg3.kernels.box_profile import (
    ALONG_X,
    Profile,
)
from streamimg3.kernels.boxcar import Background, Extraction
from streamimg3.kernels.spectrum_columns import ApertureTable, PhasedTable, aperture_factors, phased_factors
from streamimg3.store import Observation
from streamimg3.store.rows import write_rows
from streamimg3.store.series_documents import ApertureCorrection

F8 = NDArray[np.float64]
_PROFILES = "profiles"
_SOSS = "NIS_SOSS"
_MOVED = (
    "NRS_BRIGHTOBJ",
    "NRS_FIXEDSLIT",
    "NRS_MSASPEC",
)  # whose boxes follow the source unless someone says otherwise
_PRISMS = (("MIRI", "P750L"), ("NIRSPEC", "PRISM"))


@dataclass(frozen=True)
class Recipe:
    """What a worker needs beside the arrays under ``profiles/<number>`` to extract a spectrum."""

    number: int
    order: int
    dispaxis: int
    fit: str | None
    fit_order: int
    smoothing: int
    solid_angle: float | None
    point: bool
    correction: ApertureCorrection | None
    responds: bool


@dataclass(frozen=True)
class Design:
    """A recipe with its arrays; ``background`` is None where nothing is subtracted, ``wavelength`` is along the dispersion."""

    recipe: Recipe
    profile: Profile
    background: F8 | None
    wavelength: F8
    response: F8 | None
    slit: str | None = None
    position: tuple[float, float] | None = None
    extraction: Extraction = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        recipe = self.recipe
        fitted = None
        if self.background is not None and recipe.fit is not None:
            fitted = Background(self.background, recipe.fit, recipe.fit_order, recipe.smoothing)
        object.__setattr__(self, "extraction", Extraction(self.profile, recipe.dispaxis, fitted))

    @property
    def points(self) -> NDArray[np.bool_]:
        """Which pixels along the dispersion have a wavelength."""
        return np.isfinite(self.wavelength)

    @property
    def limits(self) -> tuple[float, float, float, float]:
        """First and last pixel of the box, (y0, x0, y1, x1)."""
        along_x = self.recipe.dispaxis == ALONG_X
        used = np.flatnonzero(self.profile.weights.sum(axis=0 if along_x else 1) > 0)
        first, last = float(used[0]), float(used[-1])
        low, high = self.profile.lower, self.profile.upper
        return (low, first, high, last) if along_x else (first, low, last, high)

    @property
    def brightness(self) -> float:
        """Surface brightness for each unit of flux and pixel; 0 = it has none."""
        if self.recipe.point or self.recipe.responds:
            return 0.0
        return 1.0 if self.recipe.solid_angle is None else 1.0 / (self.recipe.solid_angle * 1.0e6)

    @property
    def units(self) -> tuple[str, str]:
        """Units of flux and of what is per pixel."""
        if self.recipe.responds:
            return "MJy", "MJy"
        return ("DN/s", "DN/s") if self.recipe.solid_angle is None else ("Jy", "MJy/sr")

    @property
    def mark(self) -> str:
        """A digest of the arrays and of what headers say."""
        total = hashlib.sha256(repr((self.slit, self.position, self.profile.lower, self.profile.upper)).encode())
        for values in (self.profile.weights, self.background, self.wavelength, self.response):
            total.update(b"none" if values is None else values.tobytes())
        return total.hexdigest()

    def factors(self, pixels: F8) -> F8 | None:
        """Return the aperture correction of the points of some integrations, None = there is none."""
        table = self.recipe.correction
        if table is None:
            return None
        at, factor = np.array(table.wavelength), np.array(table.factor)
        points = self.wavelength[self.points]
        if table.by_wavelength:
            sizes = np.array(table.size).reshape(len(at), -1)
            return phased_factors(PhasedTable(sizes, at, factor), pixels, points)
        return aperture_factors(ApertureTable(np.array(table.size), at, factor), pixels, points)

    def store(self, obs: Observation) -> None:
        """Write the arrays."""
        place = f"{_PROFILES}/{self.recipe.number}"
        obs.write_group(place, {"lower": self.profile.lower, "upper": self.profile.upper})
        arrays = {"source": self.profile.weights, "background": self.background}
        for name, values in arrays.items():
            if values is not None:
                attrs = {"units": "1", "long_name": f"weights of the pixels of the {name}"}
                obs.create_array(f"{place}/{name}", values.shape, "float64", values.shape, ("y", "x"), attrs)
                write_rows(obs, f"{place}/{name}", 0, values)
        for name, line in (("wavelength", self.wavelength), ("response", self.response)):
            if line is not None:
                obs.create_array(f"{place}/{name}", line.shape, "float64", line.shape, ("along",), {})
                write_rows(obs, f"{place}/{name}", 0, line)


@lru_cache(maxsize=16)
def stored_design(obs: Observation, recipe: Recipe, mark: str) -> Design:
    """Return a design whose arrays have been stored (read once per process and run, which ``mark`` names)."""
    place = f"{_PROFILES}/{recipe.number}"

    def read(name: str) -> F8:
        return np.asarray(obs.array(f"{place}/{name}")[:], np.float64)

    profile = Profile(read("source"), 0.0, 0.0)
    background = read("background") if recipe.fit is not None else None
    return Design(recipe, profile, background, read("wavelength"), read("response") if recipe.responds else None)
