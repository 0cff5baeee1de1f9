"""What comes before the steps of tso3: which exposures it takes, and what headers and reference files say of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar, cast

import numpy as np

from streamimg3.engine.receipts import digest
from streamimg3.errors import InputError
from streamimg3.formats.fits_file import parse_cards
from streamimg3.formats.reference_card import ExposureFacts
from streamimg3.formats.reference_crds import CrdsModule
from streamimg3.formats.reference_image import PlaneReader, cut, open_reference, science_hdu, subarray_of
from streamimg3.formats.reference_source import NONE, References
from streamimg3.formats.reference_spectra import (
    read_extract1d,
    read_soss_photom,
    read_spectral_apcorr,
    read_wavelengthrange,
)
from streamimg3.formats.series_headers import series_facts
from streamimg3.geometry import Box
from streamimg3.pipelines import tso3
from streamimg3.session import Session
from streamimg3.stages import photom
from streamimg3.store import Exposure, Observation
from streamimg3.store.documents import UsedReference
from streamimg3.store.rows import write_rows
from streamimg3.store.series_documents import (
    ApertureCorrection,
    SeriesExposure,
    SeriesFacts,
    SeriesReferencesDocument,
    SpectralResponse,
    SpectrumAperture,
    WavelengthRange,
)

T = TypeVar("T")

_CODE = 1
_SOSS = "NIS_SOSS"
_GAIN = "references/gain"


def _crds() -> CrdsModule:
    return cast(CrdsModule, importlib.import_module("crds"))


def bring(obs: Observation, params: tso3.Params, session: Session) -> None:
    """Read what headers and reference files say into a store, unless it is there already.

    Raises
    ------
    InputError
        If the exposures are no time series, or a reference file is missing or unusable.
    """
    gatherer = _Gatherer(params, session)
    exposures = obs.exposures(aligned=False)
    for exposure in exposures:
        facts = series_facts(exposure)
        if not exposure.record.integrations:
            raise InputError(
                f"{exposure.record.url}: is one image, and tso3 takes cubes of integrations (_calints): leave it out"
            )
        if exposure.record.index == 0 and not facts.tso:
            raise InputError(
                f"{exposure.record.url}: is no time series (TSOVISIT is not true, and EXP_TYPE is "
                f"{facts.exp_type or 'unknown'}): tso3 makes no product of it; other pipelines take it"
            )
        gatherer.add(exposure, facts)
    document = gatherer.document([e.record.checksums.get("wcs", "") for e in exposures])
    for note in dict.fromkeys(document.notes):
        session.progress.note(note)
    before = obs.document(SeriesReferencesDocument)
    if before is not None and before.digest == document.digest:
        return
    gatherer.write_gains(obs)
    obs.commit(document)


@dataclass
class _Gatherer:
    """Collects what applies to each exposure; files that several exposures share are read once."""

    params: tso3.Params
    session: Session
    files: References = field(init=False)
    apertures: list[SpectrumAperture] = field(default_factory=list)
    corrections: list[ApertureCorrection] = field(default_factory=list)
    responses: list[SpectralResponse] = field(default_factory=list)
    ranges: tuple[WavelengthRange, ...] | None = None
    entries: list[SeriesExposure] = field(default_factory=list)
    gains: list[tuple[str, tuple[int, int, int, int]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _read: dict[tuple[str, str], tuple[int, ...]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        given = {
            "gain": self.params.tso_photometry.override_gain,
            "extract1d": self.params.extract_1d.override_extract1d,
            "apcorr": self.params.extract_1d.override_apcorr,
            "photom": self.params.photom.override_photom,
            "wavelengthrange": self.params.white_light.override_wavelengthrange,
        }
        s = self.session
        overrides = {kind: url for kind, url in given.items() if url}
        self.files = References(overrides, s.references, s.storage_options, s.offline, _crds)

    def add(self, exposure: Exposure, facts: SeriesFacts) -> None:
        """Find the files of one exposure, as far as its steps need them."""
        entry = SeriesExposure(facts)
        step = "tso_photometry" if tso3.is_imaging(facts) else "extract_1d"
        if step not in self.params.skip and (step == "extract_1d" or facts.bunit == "DN/s"):
            who = ExposureFacts.of_header(parse_cards(exposure.cards("primary")), exposure.record.url)
            entry = self._spectra(entry, who) if step == "extract_1d" else self._gain(entry, exposure, who)
        self.entries.append(entry)

    def _gain(self, entry: SeriesExposure, exposure: Exposure, who: ExposureFacts) -> SeriesExposure:
        card = self.files.choose("gain", who)
        if card is None:
            return replace(entry, references=self._used(who))
        where = subarray_of(parse_cards(exposure.cards("primary")), exposure.record.shape, exposure.record.url)
        with open_reference(card.url, self.session.storage_options, "gain") as file:
            _, shape = science_hdu(file)
            box = cut(subarray_of(file.hdus[0].header, shape, card.url), where, card.url)
        key = card.url, box.as_tuple()
        if key not in self.gains:
            self.gains.append(key)
        return replace(entry, gain=self.gains.index(key), references=self._used(who))

    def _spectra(self, entry: SeriesExposure, who: ExposureFacts) -> SeriesExposure:
        facts, options = entry.facts, self.session.storage_options
        card = self.files.choose("extract1d", who, needed=False)
        if card is not None:
            file = card.url
            found = self._once("extract1d", file, self.apertures, lambda: read_extract1d(file, options))
            entry = replace(entry, apertures=found, has_extract1d=True)
        else:
            self.notes.append(f"{who.name}: there is no extract1d file: whole images are summed, without background")
        card_apcorr = self.files.choose("apcorr", who, needed=False) if self.params.extract_1d.apply_apcorr else None
        if card_apcorr is not None and facts.source_type == "POINT":
            url = card_apcorr.url
            found = self._once(
                "apcorr", url, self.corrections, lambda: (read_spectral_apcorr(url, facts, options),), facts
            )
            entry = replace(entry, apcorr=found[0])
        if facts.exp_type == _SOSS:
            entry = self._soss(entry, who)
        return replace(entry, references=self._used(who))

    def _soss(self, entry: SeriesExposure, who: ExposureFacts) -> SeriesExposure:
        facts, options = entry.facts, self.session.storage_options
        card = self.files.choose("photom", who, needed=False) if "photom" not in self.params.skip else None
        if card is not None:
            url = card.url
            found = self._once("photom", url, self.responses, lambda: self._responses(url, facts), facts)
            entry = replace(entry, responses=found)
        limits = self.params.white_light.min_wavelength, self.params.white_light.max_wavelength
        ranged = self.files.choose("wavelengthrange", who, needed=False)
        if "white_light" not in self.params.skip and None in limits and ranged is not None and self.ranges is None:
            self.ranges = read_wavelengthrange(ranged.url, options)
        return entry

    def _responses(self, url: str, facts: SeriesFacts) -> tuple[SpectralResponse, ...]:
        """Return the responses of all orders, with the change of each since the file was made."""
        found = read_soss_photom(url, facts, self.session.storage_options)
        if not self.params.photom.apply_time_correction:
            return tuple(response for response, _ in found)
        return tuple(replace(r, correction=photom.correction(times, facts.day, url)) for r, times in found)

    def _once(
        self, kind: str, url: str, kept: list[T], read: Callable[[], Sequence[T]], facts: SeriesFacts | None = None
    ) -> tuple[int, ...]:
        """Read a file once for all exposures of the same optics; returns the places of what is in it."""
        mark = (
            ""
            if facts is None
            else f"{facts.filter} {facts.pupil} {facts.grating} {facts.subarray} {facts.slit} {facts.day}"
        )
        key = f"{kind} {url}", mark
        if key not in self._read:
            made = read()
            self._read[key] = tuple(range(len(kept), len(kept) + len(made)))
            kept.extend(made)
        return self._read[key]

    def _used(self, who: ExposureFacts) -> tuple[UsedReference, ...]:
        mine = [c for c in self.files.choices() if c.exposure == who]
        return tuple(
            UsedReference(c.reftype, c.card.url if c.card else NONE, c.card.sha256 if c.card else "", c.value, c.why)
            for c in mine
        )

    def document(self, checksums: Sequence[str]) -> SeriesReferencesDocument:
        """Return all that was found."""
        chosen = {(u.reftype, u.value, u.why) for e in self.entries for u in e.references}
        told = [f"reference {kind}: {value} ({why})" for kind, value, why in sorted(chosen)]
        made = SeriesReferencesDocument(
            "", tuple(self.apertures), tuple(self.corrections), tuple(self.responses), self.ranges, tuple(self.entries),
            tuple(self.files.lock()), self.files.context, (*told, *self.files.notes, *self.notes),
        )  # fmt: skip
        sums = [(u.reftype, u.sha256) for e in self.entries for u in e.references]
        basis = [self.apertures, self.corrections, self.responses, self.ranges, [e.facts for e in self.entries], sums]
        return replace(made, digest=digest(_CODE, [repr(b) for b in basis], self.gains, list(checksums)))

    def write_gains(self, obs: Observation) -> None:
        """Write the parts of gain files that exposures lie on."""
        if self.gains:
            obs.write_group("references", {})
        for number, (url, box) in enumerate(self.gains):
            with open_reference(url, self.session.storage_options, "gain") as file:
                hdu, _ = science_hdu(file)
                window = Box(*box)
                values = PlaneReader(file, hdu, window).floats(0, window.shape[0])
            attrs = {"units": "electron/DN", "long_name": f"gain, from {url}"}
            obs.create_array(f"{_GAIN}{number}", values.shape, "float32", values.shape, ("y", "x"), attrs)
            write_rows(obs, f"{_GAIN}{number}", 0, np.asarray(values, np.float32))
