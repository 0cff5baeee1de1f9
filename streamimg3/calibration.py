"""What image2 does to each exposure: which reference files it takes, which steps apply, and what its headers come to say."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any, cast

import numpy as np

from streamimg3.engine import Task
from streamimg3.engine.receipts import digest
from streamimg3.errors import InputError
from streamimg3.formats.association import Association, Member, Product, check_members
from streamimg3.formats.blend import jwst_keywords, keyword_at
from streamimg3.formats.cal_file import EXTENSIONS, calibrated_source
from streamimg3.formats.fits_file import card_value, number, parse_cards
from streamimg3.formats.names import absolute, file_name, root_name
from streamimg3.formats.reference_area import inspect_area
from streamimg3.formats.reference_asdf import read_tree
from streamimg3.formats.reference_card import ExposureFacts, checksum
from streamimg3.formats.reference_crds import CrdsModule
from streamimg3.formats.reference_flat import Flat, check_flat, inspect_flat
from streamimg3.formats.reference_image import Subarray, subarray_of
from streamimg3.formats.reference_photom import Photometry, read_photom
from streamimg3.formats.reference_source import NONE, References
from streamimg3.formats.sources import Source, open_sources
from streamimg3.formats.step_facts import Changes, is_sip, status_keyword
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
    revive,
    utc_now,
)

_CODE = 1  # raised when the pixels that a given input leads to change
REFTYPES = {"assign_wcs": assign_wcs.REFTYPES, "flat_field": flat_field.REFTYPES, "photom": photom.REFTYPES}
SUFFIXES = {"bkg_subtract": "bsub", "assign_wcs": "assign_wcs", "flat_field": "flat_field", "photom": "photom"}
_OPTICS = ("instrument", "detector", "exp_type", "filter", "pupil")
_TILT = 1e-8  # degrees by which a background's grating wheel may be elsewhere
_DONE, _SKIPPED = "COMPLETE", "SKIPPED"
_BY_USER = "by the user"


# ---------------------------------------------------------------- what is given
def products_of(association: Association, backgrounds: Sequence[str] = ()) -> Association:
    """Return an association with the members that image2 takes: of each product the first science exposure.

    Parameters
    ----------
    association : Association
        Of level 2, or of bare files: each is then a product by itself.
    backgrounds : sequence of str
        For the products that have none.

    Raises
    ------
    InputError
        If a product has no science exposure, or two have one name or one exposure.
    """
    products = association.products or tuple(Product(root_name(m.url), (m,)) for m in association.science)
    more = tuple(Member(absolute(url), "background") for url in backgrounds)
    products = tuple(p if p.urls("background") else replace(p, members=(*p.members, *more)) for p in products)
    notes = list(association.notes)
    kept: list[Member] = []
    for product in products:
        science = [m for m in product.members if m.exptype.strip().lower() == "science"]
        if not science:
            raise InputError(f"{association.table}: product {product.name} has no member of exptype science")
        if len(science) > 1:
            notes.append(f"{product.name}: has {len(science)} science exposures; only {science[0].url} is used")
        kept.append(science[0])
    for what in ([p.name for p in products], [m.url for m in kept]):
        twice = next((w for w in what if what.count(w) > 1), None)
        if twice is not None:
            raise InputError(f"{association.table or 'the given files'}: {twice} is there more than once; list it once")
    shared = dict.fromkeys(u for p in products for u in p.urls("background"))
    members = (*kept, *(Member(url, "background") for url in shared))
    name = products[0].name if len(products) == 1 else association.product
    return replace(association, product=name, members=members, products=tuple(products), notes=tuple(notes))


def _crds() -> CrdsModule:
    return cast(CrdsModule, importlib.import_module("crds"))


def references(params: image2.Params, session: Session) -> References:
    """Return where the reference files of a run come from."""
    overrides = {
        reftype: url
        for step, kinds in REFTYPES.items()
        for reftype in kinds
        if (url := getattr(getattr(params, step), f"override_{reftype}", None))
    }
    return References(overrides, session.references, session.storage_options, session.offline, _crds)


# ---------------------------------------------------------------- plan
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
    _others: dict[str, _Background] = field(default_factory=dict, repr=False)
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
            exposure = _Exposure.of(sources[0], product.name)
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
            not exposure.count
            and exposure.facts.exp_type in image2.IMAGES
            and entry.statuses.get("assign_wcs") == _DONE
        )
        applied = _DONE in (entry.statuses.get("flat_field"), entry.statuses.get("photom"))
        wanted = image and self._reached("resample") and "resample" not in self.params.skip
        return replace(entry, image=image, matched=wanted and not applied)

    # ------------------------------------------------------------ steps
    def _background(self, entry: CalibratedExposure, exposure: _Exposure, product: Product) -> CalibratedExposure:
        given = product.urls("background")
        if not given:
            return entry
        if "bkg_subtract" in self.params.skip:
            return _ended(entry, "bkg_subtract", _SKIPPED, _BY_USER)
        for url in given:
            other = self._other(url)
            _check_background(other, exposure)
            if exposure.facts.instrument == "NIRSPEC" and not _same_tilt(other.tilts, exposure.optics.tilts):
                why = f"{url}: the grating wheel is not where it is in the exposure"
                return _ended(entry, "bkg_subtract", _SKIPPED, why)
        wanted = BackgroundSet(given, exposure.subarray.corner, exposure.subarray.shape, bool(exposure.count))
        if wanted not in self.sets:
            entry = replace(entry, notes=(*entry.notes, *self._uncovered(wanted)))
        return replace(_ended(entry, "bkg_subtract"), background=self.sets.setdefault(wanted, len(self.sets)))

    def _other(self, url: str) -> _Background:
        """Facts of a background (each is opened once)."""
        if url not in self._others:
            with open_sources(Member(url, "background"), self.options, bare=True) as sources:
                self._others[url] = _Background.of(sources[0])
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

    def _wcs(self, entry: CalibratedExposure, exposure: _Exposure, product: Product) -> CalibratedExposure:
        if "assign_wcs" in self.params.skip:
            return _ended(entry, "assign_wcs", _SKIPPED, _BY_USER)
        wanted = assign_wcs.needed(exposure.optics)
        if not wanted:
            return _ended(entry, "assign_wcs", _SKIPPED, f"EXP_TYPE {exposure.facts.exp_type} is no imaging mode")
        for reftype, needed in wanted:
            self.files.choose(reftype, exposure.facts, needed)
        return self._using(_ended(entry, "assign_wcs"), exposure, assign_wcs.REFTYPES)

    def _flat(self, entry: CalibratedExposure, exposure: _Exposure, product: Product) -> CalibratedExposure:
        if "flat_field" in self.params.skip:
            return _ended(entry, "flat_field", _SKIPPED, _BY_USER)
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

    def _photom(self, entry: CalibratedExposure, exposure: _Exposure, product: Product) -> CalibratedExposure:
        if "photom" in self.params.skip:
            return _ended(entry, "photom", _SKIPPED, _BY_USER)
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

    def _correction(self, found: Photometry, exposure: _Exposure) -> float:
        if not self.params.photom.apply_time_correction:
            return 1.0
        times = {kind: {k: float(v) for k, v in table.items()} for kind, table in found.times.items()}
        return photom.correction(times, exposure.middle, exposure.facts.name)

    def _using(self, entry: CalibratedExposure, exposure: _Exposure, kinds: Sequence[str]) -> CalibratedExposure:
        """Add what was chosen for an exposure of these types."""
        mine = [c for c in self.files.choices() if c.exposure == exposure.facts and c.reftype in kinds]
        used = tuple(
            UsedReference(c.reftype, c.card.url if c.card else NONE, c.card.sha256 if c.card else "", c.value, c.why)
            for c in mine
        )
        return replace(entry, references=(*entry.references, *used))


def _ended(entry: CalibratedExposure, step: str, status: str = _DONE, reason: str = "") -> CalibratedExposure:
    reasons = entry.reasons | ({step: reason} if reason else {})
    return replace(entry, statuses=entry.statuses | {step: status}, reasons=reasons)


def _basis(document: CalibrationDocument) -> object:
    """What calibrated pixels and headers depend on: not on where products are saved, nor on how files were named."""
    kept = {
        step: {k: v for k, v in values.items() if not k.startswith(("save_", "override_"))}
        for step, values in document.parameters.items()
    }
    return [kept, document.last, [asdict(s) for s in document.backgrounds], [asdict(e) for e in document.exposures]]


@dataclass(frozen=True)
class _Exposure:
    """Facts of one science exposure."""

    facts: ExposureFacts
    optics: assign_wcs.Facts
    subarray: Subarray
    count: int
    middle: float | None
    extracted: bool
    variances: bool

    @classmethod
    def of(cls, source: Source, product: str) -> _Exposure:
        header, url = parse_cards(source.primary_cards), source.url
        facts = ExposureFacts.of_header(header, url)
        return cls(
            facts, _optics(source, facts), subarray_of(header, source.shape, url), source.cube.count if source.cube else 0,
            number(header, "EXPMID", url), card_value(header, "S_EXTR2D", url) == _DONE,
            any(v in source.names for v in ("var_poisson", "var_rnoise")),
        )  # fmt: skip


def _optics(source: Source, facts: ExposureFacts) -> assign_wcs.Facts:
    header = parse_cards(source.primary_cards)
    values = {name: getattr(facts, name) for name in _OPTICS}
    grating, lamp = (str(card_value(header, k, source.url) or "").upper() for k in ("GRATING", "LAMP"))
    tilts = number(header, "GWA_XTIL", source.url), number(header, "GWA_YTIL", source.url)
    return assign_wcs.Facts(source.url, grating=grating, lamp=lamp, tilts=tilts, **values)


@dataclass(frozen=True)
class _Background:
    """Facts of one background."""

    url: str
    count: int
    detector: str
    subarray: Subarray
    tilts: tuple[float | None, float | None]
    has_err: bool

    @classmethod
    def of(cls, source: Source) -> _Background:
        header, url = parse_cards(source.primary_cards), source.url
        detector = str(card_value(header, "DETECTOR", url) or "").upper()
        tilts = number(header, "GWA_XTIL", url), number(header, "GWA_YTIL", url)
        count = source.cube.count if source.cube else 0
        return cls(url, count, detector, subarray_of(header, source.shape, url), tilts, "err" in source.names)


def _check_background(other: _Background, exposure: _Exposure) -> None:
    """Refuse a background that cannot be subtracted from an exposure."""
    kinds = {True: "a cube of integrations", False: "an image"}
    if bool(other.count) != bool(exposure.count):
        raise InputError(
            f"{other.url}: is {kinds[bool(other.count)]}, but {exposure.facts.name} is {kinds[bool(exposure.count)]}:"
            " give backgrounds of the same kind (_rateints for _rateints)"
        )
    if not other.has_err:
        raise InputError(f"{other.url}: has no ERR, which a background needs; make the file again")
    if other.detector != exposure.facts.detector:
        raise InputError(
            f"{other.url}: is a background of detector {other.detector or 'unknown'}, but {exposure.facts.name} is of"
            f" {exposure.facts.detector}: give backgrounds of the same detector"
        )


def _same_tilt(a: tuple[float | None, float | None], b: tuple[float | None, float | None]) -> bool:
    return all(p is not None and q is not None and abs(p - q) <= _TILT for p, q in zip(a, b, strict=True))


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


def parameters_of(document: CalibrationDocument) -> image2.Params:
    """Return the parameters of the steps that a document speaks of."""
    return image2.Params(**{step: revive(image2.STAGES[step].Params, v) for step, v in document.parameters.items()})


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
        from streamimg3.calibrated_pixels import create_means

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
    from streamimg3.calibrated_pixels import background_tasks

    used = products_of(association, params.bkg_subtract.bkg_list or ())
    check_members(used, session.storage_options, "background")
    planner = Planner(params, session, until)
    document = planner.document(used)
    for note in notes_of(document):
        session.progress.note(note)
    labels = Labels(document, dict(session.storage_options), used.pool, used.table)
    return used, Plan(document, labels, tuple(background_tasks(document, planner.depths)))


# ---------------------------------------------------------------- headers
def planes_after(names: Sequence[str], entry: CalibratedExposure, last: str = "photom") -> tuple[str, ...]:
    """Return the planes that an exposure has after the steps up to a last one.

    Parameters
    ----------
    names : sequence of str
        Those that came.
    entry : CalibratedExposure
        What is done to it.
    last : str
        Last step.
    """
    steps = image2.STEPS[: image2.STEPS.index(last) + 1]
    have = {"dq" if n == "pixeldq" else n for n in names} | {"dq"}
    have |= {"err", "var_flat"} if entry.flat and "flat_field" in steps else set()
    have |= {"area"} if entry.area and "photom" in steps else set()
    return tuple(p for p in EXTENSIONS if p in have)


@dataclass(frozen=True)
class Labels:
    """Makes the headers of calibrated exposures; needs no store and travels to workers.

    Parameters
    ----------
    document : CalibrationDocument
        What is done to them.
    options : mapping
        Storage options.
    pool, table : str or None
        Of the association.
    """

    document: CalibrationDocument
    options: Mapping[str, str]
    pool: str | None = None
    table: str | None = None

    @property
    def params(self) -> image2.Params:
        """Parameters of the steps."""
        return parameters_of(self.document)

    @contextmanager
    def opened(self, member: Member, options: Mapping[str, str]) -> Iterator[list[Source]]:
        """Open a member as the calibrated exposure that it becomes; its planes are not to be read."""
        entry = next(e for e in self.document.exposures if e.url == member.url)
        with open_sources(member, options, bare=entry.statuses.get("assign_wcs") == _DONE) as sources:
            if entry.flat is not None:
                _check_flat(entry.flat, tuple(sorted(self.options.items())))
            yield [self.labelled(sources[0], entry, self.document.last)[0]]

    def labelled(self, source: Source, entry: CalibratedExposure, last: str) -> tuple[Source, tuple[str, ...]]:
        """Return an exposure with its headers after the steps up to a last one, and what could not be made of them."""
        steps = image2.STEPS[: image2.STEPS.index(last) + 1]
        ends = "ints" if source.cube else ""
        name = f"{entry.name}_{'cal' if last == self.document.last else SUFFIXES[last]}"
        url = f"{name}{ends if last in ('bkg_subtract', self.document.last) else ''}.fits"
        assigned = None
        if "assign_wcs" in steps and entry.statuses.get("assign_wcs") == _DONE:
            assigned = self._assigned(source, entry)
        changes = self._primary(entry, url, steps), self._sci(entry, steps, assigned)
        wcs = assigned.wcs if assigned else None
        planes = planes_after(source.names, entry, last)
        return calibrated_source(source, url, changes, planes, wcs), assigned.notes if assigned else ()

    def _assigned(self, source: Source, entry: CalibratedExposure) -> assign_wcs.Assigned:
        facts = ExposureFacts.of_header(parse_cards(source.primary_cards), source.url)
        headers = [parse_cards(cards) for cards in (source.sci_cards, source.primary_cards)]
        numbers = {}
        for keyword in assign_wcs.KEYWORDS:
            found = [number(header, keyword, source.url) for header in headers]
            numbers[keyword] = found[0] if found[0] is not None else found[1]
        used = [r for r in entry.references if r.reftype in assign_wcs.REFTYPES and r.url != NONE]
        shared = tuple(sorted(self.options.items()))
        files = {r.reftype: (r.url, _tree(r.url, r.reftype, r.sha256, shared)) for r in used}
        return assign_wcs.assign(_optics(source, facts), numbers, source.shape, files, self.params.assign_wcs)

    def _primary(self, entry: CalibratedExposure, name: str, steps: Sequence[str]) -> Changes:
        found: Changes = {"DATE": self.document.made, "FILENAME": name}
        found |= {"ASNPOOL": self.pool} if self.pool else {}
        found |= {"ASNTABLE": file_name(self.table)} if self.table else {}
        values = {r.reftype: r.value for r in entry.references}
        asked = [s for s in steps if s in REFTYPES and entry.statuses.get(s) and entry.reasons.get(s) != _BY_USER]
        for kind in (kind for step in asked for kind in REFTYPES[step]):
            keyword = keyword_at(f"meta.ref_file.{kind}.name")
            found |= {keyword.name: values.get(kind, NONE)} if keyword else {}
        if asked and self.document.context:
            found["CRDS_CTX"] = self.document.context
        return found | {status_keyword(s): entry.statuses[s] for s in steps if s in entry.statuses}

    def _sci(self, entry: CalibratedExposure, steps: Sequence[str], assigned: assign_wcs.Assigned | None) -> Changes:
        found: Changes = _in_jwsts_order(assigned.keywords) if assigned else {}
        if "photom" not in steps:
            return found
        found |= {k: v for k, v in (("PIXAR_SR", entry.pixar_sr), ("PIXAR_A2", entry.pixar_a2)) if v is not None}
        if entry.photmjsr is not None:
            found |= photom.keywords(entry.photmjsr, entry.correction)
            found["BUNIT"] = photom.COUNTS if self.params.photom.inverse else photom.UNIT
        return found


def _in_jwsts_order(keywords: Mapping[str, str | int | float]) -> Changes:
    """Return those keywords of a WCS that JWST's headers have; of SIP polynomials all orders, then coefficients."""
    known = {k.name for k in jwst_keywords() if k.hdu == "SCI"}
    kept = {k: v for k, v in keywords.items() if (k in known and k != "RADESYS") or is_sip(k)}
    orders = {k: v for k, v in kept.items() if is_sip(k) and k.endswith("_ORDER")}
    return {
        **{k: v for k, v in kept.items() if not is_sip(k)},
        **orders,
        **{k: v for k, v in kept.items() if is_sip(k)},
    }


@lru_cache(maxsize=64)
def _check_flat(cut: ReferenceCut, options: tuple[tuple[str, str], ...]) -> None:
    """Refuse a flat field without a single usable pixel."""
    check_flat(flat_of(cut), dict(options))


def flat_of(cut: ReferenceCut) -> Flat:
    """Return a flat field that was looked at before."""
    return Flat(cut.url, Box(*cut.box), flags=cut.flags, own=cut.own)


@lru_cache(maxsize=32)
def _tree(url: str, reftype: str, total: str, options: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    return read_tree(url, dict(options), reftype)
