"""What calibrated exposures come to say: planes, keywords and WCS after each step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from streamimg3.calibration_members import optics_of
from streamimg3.formats.association import Member
from streamimg3.formats.blend import jwst_keywords, keyword_at
from streamimg3.formats.cal_file import EXTENSIONS, calibrated_source
from streamimg3.formats.fits_file import number, parse_cards
from streamimg3.formats.names import file_name
from streamimg3.formats.reference_asdf import read_tree
from streamimg3.formats.reference_card import ExposureFacts
from streamimg3.formats.reference_flat import Flat, check_flat
from streamimg3.formats.reference_source import NONE
from streamimg3.formats.sources import Source, open_sources
from streamimg3.formats.step_facts import Changes, is_sip, status_keyword
from streamimg3.geometry import Box
from streamimg3.pipelines import image2
from streamimg3.stages import assign_wcs, flat_field, photom
from streamimg3.store.documents import (
    CalibratedExposure,
    CalibrationDocument,
    ReferenceCut,
    revive,
)

REFTYPES = {"assign_wcs": assign_wcs.REFTYPES, "flat_field": flat_field.REFTYPES, "photom": photom.REFTYPES}
SUFFIXES = {"bkg_subtract": "bsub", "assign_wcs": "assign_wcs", "flat_field": "flat_field", "photom": "photom"}
DONE, BY_USER = "COMPLETE", "by the user"  # how a step ended, and why it did not


def parameters_of(document: CalibrationDocument) -> image2.Params:
    """Return the parameters of the steps that a document speaks of."""
    return image2.Params(**{step: revive(image2.STAGES[step].Params, v) for step, v in document.parameters.items()})


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
        with open_sources(member, options, bare=entry.statuses.get("assign_wcs") == DONE) as sources:
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
        if "assign_wcs" in steps and entry.statuses.get("assign_wcs") == DONE:
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
        return assign_wcs.assign(optics_of(source, facts), numbers, source.shape, files, self.params.assign_wcs)

    def _primary(self, entry: CalibratedExposure, name: str, steps: Sequence[str]) -> Changes:
        found: Changes = {"DATE": self.document.made, "FILENAME": name}
        found |= {"ASNPOOL": self.pool} if self.pool else {}
        found |= {"ASNTABLE": file_name(self.table)} if self.table else {}
        values = {r.reftype: r.value for r in entry.references}
        asked = [s for s in steps if s in REFTYPES and entry.statuses.get(s) and entry.reasons.get(s) != BY_USER]
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
