"""What the steps of a pipeline say about each exposure, as keywords: its crf file and the mosaic's HDRTAB carry them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from streamimg3.formats.blend import Value, jwst_keywords, keyword_at
from streamimg3.formats.names import file_name
from streamimg3.store import ExposureRecord, Observation
from streamimg3.store.documents import AlignmentDocument, AssociationDocument, OutlierDocument, SkyDocument

Changes = dict[str, Value | None]  # keyword -> value; None = the keyword is removed

# Steps whose status a mosaic says itself, or which come after it has been made
_LATER = ("resample", "source_catalog")
# What a refreshed SIP approximation replaces as a whole: a matrix in another form, coefficients of another degree
_SIP = re.compile(r"(?:A|B|AP|BP)_(?:ORDER|DMAX|\d_\d)")
_REPLACED = re.compile(rf"CDELT[12]|PC[12]_[12]|{_SIP.pattern}")


@dataclass(frozen=True)
class StepFacts:
    """How the steps ended and what they found.

    Parameters
    ----------
    statuses : mapping of str to str
        Status of the pipeline's steps, by the step's name; a step that is SKIPPED left nothing that counts, even if the
        store still holds a document of an earlier run. Empty = whatever documents there are count.
    association : AssociationDocument or None
        What was combined.
    alignment, sky, outliers : documents or None
        Results of assign_mtwcs or tweakreg, of skymatch, and of outlier_detection.
    product : str
        Kind of the exposures' products, which ends their names.
    """

    statuses: Mapping[str, str] = field(default_factory=dict)
    association: AssociationDocument | None = None
    alignment: AlignmentDocument | None = None
    sky: SkyDocument | None = None
    outliers: OutlierDocument | None = None
    product: str = "crf"

    @classmethod
    def of(cls, obs: Observation, statuses: Mapping[str, str]) -> StepFacts:
        """Return the facts in a store, without those of steps that did not run."""
        alignment = obs.document(AlignmentDocument)
        made = cls(statuses, obs.document(AssociationDocument))
        return replace(
            made,
            alignment=alignment if alignment is not None and made.ran(alignment.step) else None,
            sky=obs.document(SkyDocument) if made.ran("skymatch") else None,
            outliers=obs.document(OutlierDocument) if made.ran("outlier_detection") else None,
        )

    def ran(self, step: str) -> bool:
        """Whether a step has run (and may have failed)."""
        return not self.statuses or self.statuses.get(step, "SKIPPED") != "SKIPPED"

    @property
    def outlier_status(self) -> str | None:
        """How outlier_detection ended; None where nothing is known of it."""
        return self.statuses.get("outlier_detection") or (self.outliers.status if self.outliers else None)

    @property
    def has_crf(self) -> bool:
        """Whether exposures have products of their own: not where the user skips outlier_detection (spec image3 §2)."""
        return self.outlier_status not in (None, "SKIPPED")

    def file_name(self, record: ExposureRecord) -> str:
        """Return the name of an exposure's product (spec image3 §10)."""
        mark = self.association.asn_id if self.association is not None else None
        return "_".join([record.name, *([mark] if mark else []), f"{self.product}.fits"])

    def level(self, index: int) -> float | None:
        """Background level of an exposure that skymatch found, None = unknown."""
        return None if self.sky is None else self.sky.levels[index]

    def taken_off(self, record: ExposureRecord) -> float:
        """Return what products subtract from an exposure's stored pixels; they may have come without a part of it."""
        level = self.level(record.index)
        if self.sky is None or not self.sky.subtract or level is None:
            return 0.0
        return level - (record.bkglevel or 0.0) if record.bkgsub else level

    @property
    def common(self) -> Changes:
        """Keywords of PRIMARY that are the same for all exposures and for the mosaic."""
        found: Changes = {}
        if self.association is not None and self.association.pool:
            found["ASNPOOL"] = self.association.pool
        if self.association is not None and self.association.table:
            found["ASNTABLE"] = file_name(self.association.table)
        return found | {status_keyword(s): status for s, status in self.statuses.items() if s not in _LATER}

    def exposure(self, record: ExposureRecord) -> tuple[Changes, Changes]:
        """Return the keywords of PRIMARY and SCI of one exposure that the steps decide."""
        primary: Changes = dict(self.common)
        if self.sky is not None and self.level(record.index) is None:
            primary[status_keyword("skymatch")] = "SKIPPED"
        elif self.sky is not None:
            primary |= {"BKGMETH": self.sky.method, "BKGLEVEL": self.level(record.index), "BKGSUB": self.sky.subtract}
        if self.alignment is not None and self.alignment.parameters.get("save_catalogs"):
            kind = str(self.alignment.parameters.get("catalog_format", "ecsv"))
            primary["TCATFILE"] = f"{record.filename.removesuffix('.fits')}_cat.{kind}"
        if self.has_crf or self.product != "crf":
            primary["FILENAME"] = self.file_name(record)
            if self.outliers is not None and self.outliers.made:
                primary["DATE"] = self.outliers.made
        return primary, self._aligned(record)

    def _aligned(self, record: ExposureRecord) -> Changes:
        if self.alignment is None:
            return {}
        changes: Changes = {}
        if self.alignment.target is not None:
            changes["MT_AVRA"], changes["MT_AVDEC"] = self.alignment.target
        if record.index >= len(self.alignment.exposures):
            return changes
        exposure = self.alignment.exposures[record.index]
        if exposure.s_region is not None:
            changes["S_REGION"] = exposure.s_region
        known = {k.name for k in jwst_keywords() if k.hdu == "SCI"}
        return changes | {k: v for k, v in exposure.sip.items() if k in known or is_sip(k)}


def is_sip(name: str) -> bool:
    """Whether a keyword is a coefficient or the order of a SIP polynomial."""
    return _SIP.fullmatch(name) is not None


def replaced(name: str, changes: Changes) -> bool:
    """Whether a keyword goes because a refreshed SIP approximation among the changes stands for it."""
    return "CD1_1" in changes and name not in changes and _REPLACED.fullmatch(name) is not None


def status_keyword(step: str) -> str:
    """Return the ``S_xxxxxx`` keyword of a step."""
    keyword = keyword_at(f"meta.cal_step.{step}")
    return keyword.name if keyword else f"S_{step[:6].upper()}"
