"""Decides how the spectra of each segment are extracted: from apertures, wavelengths and headers to designs (spec others §2.5)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.geometry import Box as Window
from streamimg3.kernels.box_profile import ALONG_X, Box, background_profile, profile_wavelength, source_profile
from streamimg3.sky import spectral
from streamimg3.stages.series_blocks import Setting
from streamimg3.stages.spectrum_design import Design, Recipe
from streamimg3.store import Exposure, ExposureRecord
from streamimg3.store.series_documents import ApertureCorrection, SeriesFacts, SpectralResponse, SpectrumAperture

F8 = NDArray[np.float64]
_SOSS = "NIS_SOSS"
_MOVED = (
    "NRS_BRIGHTOBJ",
    "NRS_FIXEDSLIT",
    "NRS_MSASPEC",
)  # whose boxes follow the source unless someone says otherwise
_PRISMS = (("MIRI", "P750L"), ("NIRSPEC", "PRISM"))


@dataclass(frozen=True)
class Wanted:
    """What the user says of boxes and backgrounds, under the names of the step's parameters; None = as the file says."""

    subtract_background: bool | None
    apply_apcorr: bool
    use_source_posn: bool | None
    position_offset: float
    smoothing_length: int | None
    bkg_fit: str | None
    bkg_order: int | None


@dataclass
class Found:
    """The designs of all segments: by exposure, each once, and what could not be done."""

    by_exposure: dict[int, tuple[Design, ...]] = field(default_factory=dict)
    unique: list[Design] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def of(self, record: ExposureRecord, order: int) -> Design:
        """Return the design of an order of a segment."""
        return next(d for d in self.by_exposure[record.index] if d.recipe.order == order)

    def note(self, text: str) -> None:
        """Say something once."""
        if text not in self.notes:
            self.notes.append(text)


class Designer:
    """Makes the designs of all segments; segments that agree in everything share theirs."""

    def __init__(self, setting: Setting, params: Wanted, photom: bool) -> None:
        self._setting, self._params, self._photom = setting, params, photom
        self._found = Found()
        self._made: dict[object, tuple[Design, ...]] = {}

    def designs(self) -> Found:
        """Return the designs.

        Raises
        ------
        InputError
            If what is needed is not known.
        """
        for record in (r for one in self._setting.series for r in one.records):
            entry = self._setting.entry(record)
            facts = dataclasses.replace(entry.facts, segment=None, integrations=None, day=None)
            sums = record.checksums.get("wcs"), record.checksums.get("wavelength")
            key = (record.shape, sums, facts, entry.apertures, entry.apcorr, entry.responses, entry.has_extract1d)
            if key not in self._made:
                self._made[key] = tuple(self._shared(design) for design in self._segment(record))
            if self._made[key]:
                self._found.by_exposure[record.index] = self._made[key]
        return self._found

    def _shared(self, design: Design) -> Design:
        """Return the design that another segment has already, if it is the same: their metadata may still differ."""
        same = (
            d
            for d in self._found.unique
            if d.mark == design.mark and d.recipe == dataclasses.replace(design.recipe, number=d.recipe.number)
        )
        found = next(same, None)
        if found is None:
            found = dataclasses.replace(
                design, recipe=dataclasses.replace(design.recipe, number=len(self._found.unique))
            )
            self._found.unique.append(found)
        return found

    def _segment(self, record: ExposureRecord) -> list[Design]:
        facts = self._setting.entry(record).facts
        if facts.dispaxis not in (1, 2):
            self._found.note(f"{record.name}: its header does not say the direction of dispersion (DISPAXIS)")
            return []
        made: list[Design] = []
        for order in self._orders(record):
            if order == 0 and not any(facts.instrument == i and p in (facts.filter, facts.grating) for i, p in _PRISMS):
                self._found.note(f"{record.name}: order 0 of a grism is no spectrum")
                continue
            design = self._order(record, facts, order)
            made += [design] if design is not None else []
        return made

    def _orders(self, record: ExposureRecord) -> list[int]:
        entry = self._setting.entry(record)
        if entry.facts.exp_type != _SOSS:
            return [1 if entry.facts.order is None else entry.facts.order]
        apertures = [self._setting.references.apertures[n] for n in entry.apertures]
        return sorted({a.spectral_order for a in apertures if a.spectral_order is not None}) or [entry.facts.order or 1]

    def _order(self, record: ExposureRecord, facts: SeriesFacts, order: int) -> Design | None:
        exposure = Exposure(self._setting.obs, record)
        aperture = self._aperture(record, facts, order)
        if aperture is None:
            return None
        wavelength = self._wavelength(exposure, order)
        box, fit, fit_order, smoothing = self._box(aperture, facts, record.shape)
        box, trace = self._placed(box, aperture, exposure, facts, wavelength)
        profile = source_profile(box, wavelength, trace)
        line = profile_wavelength(profile.weights, wavelength, box.dispaxis)
        if not np.isfinite(line).any():
            self._found.note(f"{record.name}: no pixel of the box has a wavelength")
            return None
        background = background_profile(box, wavelength) if fit is not None else None
        y, x = _middle(profile.weights)
        position = self._position(exposure, y, x, order)
        response = self._response(record, order, line)
        solid_angle = self._solid_angle(record, facts)
        recipe = Recipe(
            0, order, box.dispaxis, fit, fit_order, smoothing, solid_angle,
            facts.calibrated and facts.instrument == "NIRSPEC" and facts.source_type == "POINT",
            self._correction(exposure, facts, (y, x), order), response is not None,
        )  # fmt: skip
        return Design(recipe, profile, background, line, response, _slit(facts), position)

    # ------------------------------------------------------------ apertures
    def _aperture(self, record: ExposureRecord, facts: SeriesFacts, order: int) -> SpectrumAperture | None:
        """Return the entry of the extract1d file: the first one of the slit and order."""
        entry = self._setting.entry(record)
        if not entry.has_extract1d:
            return SpectrumAperture()
        slit, chosen = _slit(facts), [self._setting.references.apertures[n] for n in entry.apertures]
        mine = [a for a in chosen if a.id in (slit, "ANY") or slit == "ANY"]
        if not mine:
            listed = ", ".join(sorted({a.id for a in chosen})) or "none"
            raise InputError(
                f"{record.url}: the extract1d file has no target aperture with id {slit} or ANY (it has {listed}): give "
                "extract_1d.override_extract1d another file, or N/A to sum whole images"
            )
        found = next((a for a in mine if a.spectral_order in (None, order)), None)
        if found is None:
            self._found.note(f"{record.name}: the extract1d file has no aperture for order {order}")
        return found

    def _box(
        self, aperture: SpectrumAperture, facts: SeriesFacts, shape: tuple[int, int]
    ) -> tuple[Box, str | None, int, int]:
        """Return the box as the file has it, and fit, order and smoothing of the background."""
        chosen = self._params
        subtract = bool(aperture.bkg_coeff) if chosen.subtract_background is None else chosen.subtract_background
        fit: str | None = None
        order = aperture.bkg_order or 0 if chosen.bkg_order is None else chosen.bkg_order
        if subtract and aperture.bkg_coeff:
            fit = chosen.bkg_fit or aperture.bkg_fit or "poly"
            fit, order = ("poly", 0) if fit == "mean" else (fit, order)
        wanted = aperture.smoothing_length if chosen.smoothing_length is None else chosen.smoothing_length
        smoothing = round(wanted or 0)
        if smoothing and (smoothing < 3 or smoothing % 2 == 0):
            used = 0 if smoothing < 3 else smoothing - 1
            self._found.note(f"smoothing_length {smoothing} is taken as {used}: it must be an odd number of at least 3")
            smoothing = used
        ny, nx = shape
        start = 0.0 if aperture.ystart is None else aperture.ystart, 0.0 if aperture.xstart is None else aperture.xstart
        stop = (
            (ny - 1 if aperture.ystop is None else aperture.ystop),
            (nx - 1 if aperture.xstop is None else aperture.xstop),
        )
        assert facts.dispaxis is not None
        box = Box(
            facts.dispaxis, start, stop, aperture.extract_width, aperture.src_coeff,
            aperture.bkg_coeff if fit else (), aperture.independent_var == "wavelength", fit == "median",
        )  # fmt: skip
        return box, fit, order, smoothing

    def _placed(
        self, box: Box, aperture: SpectrumAperture, exposure: Exposure, facts: SeriesFacts, wavelength: F8
    ) -> tuple[Box, F8 | None]:
        """Move the box to the source and by the offset; returns the source's trace too, if there is one."""
        if not self._setting.entry(exposure.record).has_extract1d:
            return box, None
        wanted = self._params.use_source_posn
        if wanted is None and facts.source_type == "POINT":
            wanted = facts.exp_type in _MOVED if aperture.use_source_posn is None else aperture.use_source_posn
        offset, trace = self._params.position_offset, None
        source = self._source(exposure, facts) if wanted else None
        if source is not None:
            nominal = _centre(source_profile(box, wavelength).weights, box.dispaxis, source.along)
            box, trace = box.shifted(source.across - nominal), source.trace + offset
        return box.shifted(offset) if offset else box, trace

    def _source(self, exposure: Exposure, facts: SeriesFacts) -> spectral.Source | None:
        name = exposure.record.name
        if facts.exp_type not in _MOVED or facts.source is None or exposure.record.wcs_kind != "gwcs":
            self._found.note(f"{name}: where the source is in the slit is not known; the box stays where it is")
            return None
        try:
            found = spectral.slit_source(exposure.wcs, facts.dispaxis or 1, facts.source)
        except InputError as error:
            self._found.note(f"{name}: {error}; the box stays where it is")
            return None
        if found is None:
            self._found.note(f"{name}: its WCS puts the source outside the image; the box stays where it is")
        return found

    # ------------------------------------------------------------ wavelengths and units
    def _wavelength(self, exposure: Exposure, order: int) -> F8:
        if exposure.has("wavelength"):
            found = np.asarray(exposure.read("wavelength", Window.of_shape(exposure.record.shape)), np.float64)
            if np.isfinite(found).any() and np.nanmax(np.abs(found)) > 0:
                return found
        if exposure.record.wcs_kind != "gwcs":
            raise InputError(
                f"{exposure.record.url}: has neither WAVELENGTH nor a gWCS with wavelengths: run assign_wcs on it again"
            )
        try:
            return spectral.wavelengths(exposure.wcs, order)
        except InputError as error:
            raise InputError(f"{exposure.record.url}: {error}") from error

    def _position(self, exposure: Exposure, y: float, x: float, order: int) -> tuple[float, float] | None:
        if exposure.record.wcs_kind != "gwcs":
            return None
        try:
            return spectral.position(exposure.wcs, y, x, order)
        except InputError:  # wavelengths were in the file; the sky is a courtesy
            self._found.note(f"{exposure.record.name}: its WCS cannot be read; SLIT_RA and SLIT_DEC are unknown")
            return None

    def _solid_angle(self, record: ExposureRecord, facts: SeriesFacts) -> float | None:
        if not facts.calibrated:
            self._found.note("photom has not been run: spectra are count rates")
            return None
        if facts.pixel_area is None:
            self._found.note(f"{record.name}: has no PIXAR_SR; fluxes are sums of its pixels times 10^6")
            return 1.0
        return facts.pixel_area

    def _response(self, record: ExposureRecord, order: int, line: F8) -> F8 | None:
        entry = self._setting.entry(record)
        if not self._photom or entry.facts.exp_type != _SOSS:
            return None
        curves = [self._setting.references.responses[n] for n in entry.responses]
        curve = next((c for c in curves if c.order in (None, order)), None)
        if curve is None:
            self._found.note(f"{record.name}: the photom file has nothing for order {order}; it stays in DN/s")
            return None
        return _response_at(curve, line[np.isfinite(line)])

    def _correction(
        self, exposure: Exposure, facts: SeriesFacts, place: tuple[float, float], order: int
    ) -> ApertureCorrection | None:
        entry = self._setting.entry(exposure.record)
        if entry.apcorr is None or not self._params.apply_apcorr or facts.source_type != "POINT":
            return None
        table = self._setting.references.corrections[entry.apcorr]
        if not table.unit.startswith("arcsec"):
            return table
        try:
            scale = spectral.across_scale(exposure.wcs, *place, facts.dispaxis or 1, order)
        except InputError as error:
            raise InputError(f"{exposure.record.url}: {error}") from error
        return dataclasses.replace(table, size=tuple(s / scale for s in table.size), unit="pixels")


def _slit(facts: SeriesFacts) -> str:
    """Name under which an extract1d file has the spectrum."""
    return facts.slit or "ANY" if facts.exp_type == "NRS_BRIGHTOBJ" else facts.exp_type


def _middle(weights: F8) -> tuple[float, float]:
    """Weighted mean pixel (y, x); of the whole image where nothing has weight."""
    used = weights if weights.sum() > 0 else np.ones(weights.shape)
    y, x = np.mgrid[: weights.shape[0], : weights.shape[1]]
    return float(np.average(y, weights=used)), float(np.average(x, weights=used))


def _centre(weights: F8, dispaxis: int, along: int) -> float:
    """Weighted mean pixel across the dispersion at a place along it."""
    line = weights[:, along] if dispaxis == ALONG_X else weights[along]
    used = line if line.sum() > 0 else np.ones(line.shape)
    return float(np.average(np.arange(len(line)), weights=used))


def _response_at(curve: SpectralResponse, wavelength: F8) -> F8:
    """Factor from DN/s to MJy at some wavelengths; 0 where the curve says nothing."""
    at, relative = np.array(curve.wavelength), np.array(curve.relresponse)
    order = np.argsort(at)
    found = np.interp(wavelength, at[order], relative[order], left=0.0, right=0.0)
    return np.asarray(found * (curve.photmj / curve.correction), np.float64)
