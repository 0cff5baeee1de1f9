"""What image2 does to each exposure: which reference files it takes, and which steps apply."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import cast

import numpy as np

from streamimg3.calibrated_headers import BY_USER, DONE, REFTYPES, Labels
from streamimg3.calibration_members import Background, Exposure, check_background, products_of, same_tilt
from streamimg3.engine import Task
from streamimg3.engine.receipts import digest
from streamimg3.formats.association import Association, Member, Product, check_members
from streamimg3.formats.names import absolute, file_name
from streamimg3.formats.reference_area import inspect_area
from streamimg3.formats.reference_card import checksum
from streamimg3.formats.reference_crds import CrdsModule
from streamimg3.formats.reference_flat import inspect_flat
from streamimg3.formats.reference_photom import Photometry, read_photom
from streamimg3.formats.reference_source import NONE, References
from streamimg3.formats.sources import open_sources
from streamimg3.geometry import Box
from streamimg3.pipelines import image2
from streamimg3.session import Session
from streamimg3.stages import assign_wcs, flat_field, photom
from streamimg3.store import Observation
from streamimg3.store.documents import (
    BackgroundSet,
    CalibratedExposure,
    CalibrationDocument,
    ReferenceCut,
    UsedReference,
    plain,
    utc_now,
)

_CODE = 1  # raised when the pixels that a given input leads to change
_SKIPPED = "SKIPPED"


def crds_package() -> CrdsModule:
    """Import the crds package, which chooses reference files by its mappings."""
    return cast(CrdsModule, importlib.import_module("crds"))


def references(params: image2.Params, session: Session) -> References:
    """Return where the reference files of a run come from."""
    overrides = {
        reftype: url
        for step, kinds in REFTYPES.items()
        for reftype in kinds
        if (url := getattr(getattr(params, step), f"override_{reftype}", None))
    }
    return References(overrides, session.references, session.storage_options, session.offline, crds_package)


@dataclass
class Planner:
    """Decides exposure by exposure; headers are read, of reference files no pixels.

    Parameters
    ----------
    params : image2.Params
        Of all steps.
    session : Session
        Where files are.
    until : str or None
        Last step.
    sets, depths
        Sets of backgrounds and their numbers, and integrations of each background, as they were found.
    """

    params: image2.Params
    session: Session
    until: str | None = None
    sets: dict[BackgroundSet, int] = field(default_factory=dict)
    depths: dict[str, int] = field(default_factory=dict)
    _others: dict[str, Background] = field(default_factory=dict, repr=False)
    files: References = field(init=False)

    def __post_init__(self) -> None:
        self.files = references(self.params, self.session)

    @property
    def options(self) -> Mapping[str, str]:
        """Storage options."""
        return self.session.storage_options

    def document(self, association: Association) -> CalibrationDocument:
        """Return what is to be done to all exposures of an association.

        Raises
        ------
        InputError
            If a reference file is missing or unusable, or a background does not fit.
        """
        entries = tuple(self._entry(product) for product in association.products)
        steps = [s for s in image2.reached(self.until) if s in image2.PIXEL_STEPS]
        shown = {step: plain(getattr(self.params, step)) for step in image2.PIXEL_STEPS}
        notes = tuple(self.files.notes)
        made = CalibrationDocument(
            "",
            utc_now(),
            shown,
            steps[-1],
            self.files.context,
            tuple(self.sets),
            entries,
            tuple(self.files.lock()),
            notes,
        )
        return replace(made, digest=digest(_CODE, _basis(made)))

    def _reached(self, step: str) -> bool:
        return step in image2.reached(self.until)

    def _entry(self, product: Product) -> CalibratedExposure:
        url = product.urls("science")[0]
        with open_sources(Member(url, "science"), self.options, bare=True) as sources:
            exposure = Exposure.of(sources[0])
        entry = CalibratedExposure(product.name, url, exposure.subarray.corner)
        for step, decide in (
            ("bkg_subtract", self._background),
            ("assign_wcs", self._wcs),
            ("flat_field", self._flat),
            ("photom", self._photom),
        ):
            if self._reached(step):
                entry = decide(entry, exposure, product)
        image = (
            not exposure.count and exposure.facts.exp_type in image2.IMAGES and entry.statuses.get("assign_wcs") == DONE
        )
        applied = DONE in (entry.statuses.get("flat_field"), entry.statuses.get("photom"))
        wanted = image and self._reached("resample") and "resample" not in self.params.skip
        return replace(entry, image=image, matched=wanted and not applied)

    # ------------------------------------------------------------ steps
    def _background(self, entry: CalibratedExposure, exposure: Exposure, product: Product) -> CalibratedExposure:
        given = product.urls("background")
        if not given:
            return entry
        if "bkg_subtract" in self.params.skip:
            return _ended(entry, "bkg_subtract", _SKIPPED, BY_USER)
        for url in given:
            other = self._other(url)
            check_background(other, exposure)
            if exposure.facts.instrument == "NIRSPEC" and not same_tilt(other.tilts, exposure.optics.tilts):
                why = f"{url}: the grating wheel is not where it is in the exposure"
                return _ended(entry, "bkg_subtract", _SKIPPED, why)
        wanted = BackgroundSet(given, exposure.subarray.corner, exposure.subarray.shape, bool(exposure.count))
        if wanted not in self.sets:
            entry = replace(entry, notes=(*entry.notes, *self._uncovered(wanted)))
        return replace(_ended(entry, "bkg_subtract"), background=self.sets.setdefault(wanted, len(self.sets)))

    def _other(self, url: str) -> Background:
        """Facts of a background (each is opened once)."""
        if url not in self._others:
            with open_sources(Member(url, "background"), self.options, bare=True) as sources:
                self._others[url] = Background.of(sources[0])
            self.depths[url] = self._others[url].count
        return self._others[url]

    def _uncovered(self, wanted: BackgroundSet) -> tuple[str, ...]:
        """Say where no background lies: nothing is subtracted there."""
        bare = np.ones(wanted.shape, np.bool_)
        for url in wanted.members:
            here = self._others[url].subarray.box.shift(-wanted.corner[0], -wanted.corner[1])
            there = here.intersect(Box.of_shape(wanted.shape))
            if there is not None:
                bare[there.slices] = False
        count = int(bare.sum())
        return (
            (f"no background lies on {count} of its {bare.size} pixels: nothing is subtracted there",) if count else ()
        )

    def _wcs(self, entry: CalibratedExposure, exposure: Exposure, product: Product) -> CalibratedExposure:
        if "assign_wcs" in self.params.skip:
            return _ended(entry, "assign_wcs", _SKIPPED, BY_USER)
        wanted = assign_wcs.needed(exposure.optics)
        if not wanted:
            return _ended(entry, "assign_wcs", _SKIPPED, f"EXP_TYPE {exposure.facts.exp_type} is no imaging mode")
        for reftype, needed in wanted:
            self.files.choose(reftype, exposure.facts, needed)
        return self._using(_ended(entry, "assign_wcs"), exposure, assign_wcs.REFTYPES)

    def _flat(self, entry: CalibratedExposure, exposure: Exposure, product: Product) -> CalibratedExposure:
        if "flat_field" in self.params.skip:
            return _ended(entry, "flat_field", _SKIPPED, BY_USER)
        own = self.params.flat_field.user_supplied_flat
        if exposure.extracted:
            return _ended(entry, "flat_field", _SKIPPED, "extract_2d has been done already")
        if own:
            url = absolute(own)
            used = UsedReference("flat", url, checksum(url, self.options), file_name(url), "user_supplied_flat")
            entry = replace(entry, references=(*entry.references, used))
        else:
            card = self.files.choose("flat", exposure.facts)
            entry = self._using(entry, exposure, flat_field.REFTYPES)
            if card is None:
                return _ended(entry, "flat_field", _SKIPPED, "there is no flat field (N/A)")
            url = card.url
        flat = inspect_flat(url, exposure.subarray, self.options, own=bool(own))
        entry = replace(entry, notes=(*entry.notes, *flat.notes))
        if flat.box is None:
            return _ended(entry, "flat_field", _SKIPPED, flat.reason)
        if not exposure.variances:
            note = (
                "has neither VAR_POISSON nor VAR_RNOISE: ERR after the flat field is made of its own ERR and VAR_FLAT"
            )
            entry = replace(entry, notes=(*entry.notes, note))
        cut = ReferenceCut(url, flat.box.as_tuple(), flat.flags, bool(own))
        return replace(_ended(entry, "flat_field"), flat=cut)

    def _photom(self, entry: CalibratedExposure, exposure: Exposure, product: Product) -> CalibratedExposure:
        if "photom" in self.params.skip:
            return _ended(entry, "photom", _SKIPPED, BY_USER)
        card = self.files.choose("photom", exposure.facts)
        map_card = self.files.choose("area", exposure.facts, needed=False)
        entry = self._using(entry, exposure, photom.REFTYPES)
        if card is None:
            return _ended(entry, "photom", _SKIPPED, "there is no photometric reference file (N/A)")
        found = read_photom(card.url, self.options).of(exposure.facts)
        entry = replace(entry, pixar_sr=found.pixar_sr, pixar_a2=found.pixar_a2)
        if map_card is not None:
            area = inspect_area(map_card.url, exposure.subarray, self.options)
            entry = replace(
                entry, area=ReferenceCut(area.url, area.box.as_tuple()), pixar_sr=area.pixar_sr, pixar_a2=area.pixar_a2,
                notes=(*entry.notes, *area.notes),
            )  # fmt: skip
        if exposure.facts.instrument == "NIRISS" and exposure.count:
            return _ended(entry, "photom", _SKIPPED, "cubes of NIRISS have no photometric conversion")
        if found.reason:
            return _ended(entry, "photom", _SKIPPED, found.reason)
        return replace(
            _ended(entry, "photom"), photmjsr=float(found.photmjsr), correction=self._correction(found, exposure)
        )

    def _correction(self, found: Photometry, exposure: Exposure) -> float:
        if not self.params.photom.apply_time_correction:
            return 1.0
        times = {kind: {k: float(v) for k, v in table.items()} for kind, table in found.times.items()}
        return photom.correction(times, exposure.middle, exposure.facts.name)

    def _using(self, entry: CalibratedExposure, exposure: Exposure, kinds: Sequence[str]) -> CalibratedExposure:
        """Add what was chosen for an exposure of these types."""
        mine = [c for c in self.files.choices() if c.exposure == exposure.facts and c.reftype in kinds]
        used = tuple(
            UsedReference(c.reftype, c.card.url if c.card else NONE, c.card.sha256 if c.card else "", c.value, c.why)
            for c in mine
        )
        return replace(entry, references=(*entry.references, *used))


def _ended(entry: CalibratedExposure, step: str, status: str = DONE, reason: str = "") -> CalibratedExposure:
    reasons = entry.reasons | ({step: reason} if reason else {})
    return replace(entry, statuses=entry.statuses | {step: status}, reasons=reasons)


def _basis(document: CalibrationDocument) -> object:
    """What calibrated pixels and headers depend on: not on where products are saved, nor on how files were named."""
    kept = {
        step: {k: v for k, v in values.items() if not k.startswith(("save_", "override_"))}
        for step, values in document.parameters.items()
    }
    return [kept, document.last, [asdict(s) for s in document.backgrounds], [asdict(e) for e in document.exposures]]


def notes_of(document: CalibrationDocument) -> list[str]:
    """Return what a user should know: every choice of a reference file, once, and whatever looks odd."""
    chosen: dict[tuple[str, str, str], int] = {}
    for entry in document.exposures:
        for used in entry.references:
            key = used.reftype, used.value, used.why
            chosen[key] = chosen.get(key, 0) + 1
    count = len(document.exposures)
    lines = [
        f"reference {reftype}: {value} ({why})" + (f", for {n} of {count} exposures" if n < count else "")
        for (reftype, value, why), n in chosen.items()
    ]
    return [*lines, *document.notes, *(f"{e.name}: {note}" for e in document.exposures for note in e.notes)]


@dataclass(frozen=True)
class Plan:
    """What is done to the exposures of a run, and before that."""

    document: CalibrationDocument
    labels: Labels
    means: tuple[Task, ...]

    def dated(self, obs: Observation) -> Plan:
        """Return the plan as a store already has it: what goes on or is kept has the time at which it was begun."""
        before = obs.document(CalibrationDocument)
        if before is None or before.digest != self.document.digest:
            return self
        document = replace(self.document, made=before.made)
        return replace(self, document=document, labels=replace(self.labels, document=document))

    def create(self, obs: Observation, bunit: str | None) -> None:
        """Write the document, and the empty planes of the means of backgrounds."""
        from streamimg3.calibrated_means import create_means

        obs.commit(self.document)
        create_means(obs, self.document, bunit)


def planned(
    association: Association, params: image2.Params, session: Session, until: str | None
) -> tuple[Association, Plan]:
    """Decide what is done to the exposures of an association, and tell the user.

    Returns
    -------
    association
        With the members that are used.
    plan
        What is done.

    Raises
    ------
    InputError
        If a reference file is missing or unusable, or a background is missing or does not fit.
    """
    from streamimg3.calibrated_means import background_tasks

    used = products_of(association, params.bkg_subtract.bkg_list or ())
    check_members(used, session.storage_options, "background")
    planner = Planner(params, session, until)
    document = planner.document(used)
    for note in notes_of(document):
        session.progress.note(note)
    labels = Labels(document, dict(session.storage_options), used.pool, used.table)
    return used, Plan(document, labels, tuple(background_tasks(document, planner.depths)))
