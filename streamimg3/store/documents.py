"""Documents: small frozen values under a schema version; a stage's document is its commit."""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar, Protocol, TypeVar

from streamimg3.errors import StoreError
from streamimg3.sky.correction import Correction

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
D = TypeVar("D", bound="Document")


@dataclass(frozen=True)
class Document:
    """Base of all documents: ``kind`` names the schema, ``version`` counts its changes."""

    kind: ClassVar[str] = ""
    version: ClassVar[int] = 1

    def to_json(self) -> bytes:
        """Return the document as UTF-8 JSON with its schema name and version first."""
        head = {"schema": f"streamimg3/{self.kind}", "version": self.version}
        return json.dumps(head | dataclasses.asdict(self), indent=1, allow_nan=False).encode()

    @classmethod
    def from_json(cls: type[D], data: bytes, where: str) -> D:
        """Read a document.

        Raises
        ------
        StoreError
            If it is of another kind, newer than this software, or damaged.
        """
        try:
            tree = json.loads(data)
            kind, version = tree.pop("schema"), tree.pop("version")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise StoreError(f"{where} is damaged ({error}): remove it and run the stage again") from error
        check_schema(kind, version, (f"streamimg3/{cls.kind}", cls.version), where)
        try:
            return typing.cast(D, revive(cls, tree))
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise StoreError(f"{where} does not fit its schema ({error}): remove it and run the stage again") from error


def check_schema(kind: object, version: object, ours: tuple[str, int], where: str) -> None:
    """Refuse what another kind of software, or a newer version of this one, wrote.

    Raises
    ------
    StoreError
        Saying which.
    """
    if kind != ours[0]:
        raise StoreError(f"{where} holds {kind!r} where {ours[0]!r} was expected: is this the right store?")
    if isinstance(version, bool) or not isinstance(version, int):
        raise StoreError(f"{where} is damaged (its schema version is {version!r}): make it again")
    if version > ours[1]:
        raise StoreError(
            f"{where} has schema version {version}, newer than the {ours[1]} this software reads: upgrade streamimg3"
        )


@functools.lru_cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def revive(kind: Any, value: Any) -> Any:
    """Turn parsed JSON into the annotated type."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return revive(next(a for a in args if a is not type(None)), value)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = _hints(kind)
        return kind(**{k: revive(hints[k], v) for k, v in value.items()})  # type: ignore[operator]
    if origin is tuple:
        inner = [args[0]] * len(value) if len(args) == 2 and args[1] is Ellipsis else args
        return tuple(revive(a, v) for a, v in zip(inner, value, strict=True))
    return float(value) if kind is float else value


def utc_now() -> str:
    """Return the UTC time to the millisecond, as documents carry it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]


def plain(parameters: Any) -> dict[str, Any]:
    """Return the parameters of a step as a document gives them back (lists for tuples)."""
    tree: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(parameters)))
    return tree


@dataclass(frozen=True)
class MemberEntry:
    """One member of the association, science or not."""

    url: str
    exptype: str
    group_id: str | None = None
    catalog: str | None = None


@dataclass(frozen=True)
class AssociationDocument(Document):
    """What the run was asked to combine."""

    kind: ClassVar[str] = "association"
    product: str = ""
    members: tuple[MemberEntry, ...] = ()
    asn_id: str | None = None
    pool: str | None = None
    table: str | None = None
    program: str | None = None
    target: str | None = None
    asn_type: str | None = None

    @property
    def exposures(self) -> tuple[MemberEntry, ...]:
        """The members whose pixels are in the store, in its order: science and reference stars (psf)."""
        return tuple(m for m in self.members if m.exptype.strip().lower() in ("science", "psf"))


@dataclass(frozen=True)
class OutputWcsDocument(Document):
    """An output WCS that the user supplied; ``text`` is an ASDF file as text."""

    kind: ClassVar[str] = "output_wcs"
    source: str = ""
    text: str = ""
    shape: tuple[int, int] = (0, 0)
    pixel_scale: float | None = None


@dataclass(frozen=True)
class SkyListDocument(Document):
    """Sky levels that the user supplied, in the image's unit: one per exposure, in store order."""

    kind: ClassVar[str] = "skylist"
    source: str = ""
    filenames: tuple[str, ...] = ()
    levels: tuple[float, ...] = ()


@dataclass(frozen=True)
class RunDocument(Document):
    """The last run of a pipeline: how each step ended and why, and the documents of the mosaics it made or kept."""

    kind: ClassVar[str] = "run"
    pipeline: str = ""
    statuses: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    mosaics: tuple[str, ...] = ()


class _Took(Protocol):
    wall_s: float
    cpu_s: float
    peak_rss: int
    tasks_done: int
    tasks_kept: int
    split: dict[str, float]


@dataclass(frozen=True)
class StageCost:
    """What a stage took: seconds, bytes and where the processor time went."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_rss: int = 0
    tasks_done: int = 0
    tasks_kept: int = 0
    split: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, took: _Took) -> StageCost:
        """Return what a runner has counted."""
        return cls(took.wall_s, took.cpu_s, took.peak_rss, took.tasks_done, took.tasks_kept, dict(took.split))


@dataclass(frozen=True)
class AlignedExposure:
    """How the alignment of one exposure ended.

    ``status`` is SUCCESS (``correction`` is set), REFERENCE or FAILED (the WCS stays as it was), with a ``reason`` where
    something failed; ``s_region`` and ``sip`` are the refreshed outline and FITS-SIP keywords of a corrected exposure;
    ``stars`` and ``matched`` count sources, ``rms`` (arcsec) is the fit's, ``offset`` (arcsec) its shift on the sky.
    """

    status: str
    reason: str | None = None
    correction: Correction | None = None
    s_region: str | None = None
    sip: dict[str, str | int | float] = field(default_factory=dict)
    stars: int = 0
    matched: int = 0
    rms: float | None = None
    offset: tuple[float, float] | None = None


@dataclass(frozen=True)
class AlignmentDocument(Document):
    """Corrections of the exposures' WCS, in store order; ``step`` is the one that made them, tweakreg or assign_mtwcs.

    ``target`` is the mean position of a moving target, (RA, Dec) in degrees.
    """

    kind: ClassVar[str] = "alignment"
    digest: str = ""
    step: str = "tweakreg"
    status: str = "COMPLETE"
    reason: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    exposures: tuple[AlignedExposure, ...] = ()
    target: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()
    cost: StageCost = StageCost()


@dataclass(frozen=True)
class SkyOverlap:
    """Sky statistics of two items in their overlap, in the image's unit, with the number of pixels behind them."""

    items: tuple[int, int]
    values: tuple[float, float]
    pixels: tuple[int, int]


@dataclass(frozen=True)
class SkyDocument(Document):
    """Background level of each exposure in the image's unit; None = unknown (nothing is subtracted, status SKIPPED).

    ``subtract`` says that products carry the exposures with the level taken off (BKGSUB); ``items`` are the groups of
    exposures (store indices) that share one level, ``overlaps`` what was measured, ``components`` the sets of items that
    are connected by overlaps.
    """

    kind: ClassVar[str] = "sky"
    digest: str = ""
    method: str = ""
    status: str = "COMPLETE"
    reason: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    subtract: bool = False
    levels: tuple[float | None, ...] = ()
    items: tuple[tuple[int, ...], ...] = ()
    overlaps: tuple[SkyOverlap, ...] = ()
    components: tuple[tuple[int, ...], ...] = ()
    notes: tuple[str, ...] = ()
    cost: StageCost = StageCost()


@dataclass(frozen=True)
class OutlierDocument(Document):
    """The commit of outlier_detection: ``flagged`` pixels per exposure, the weight ``thresholds`` of the layers.

    ``made`` is its UTC time; ``wcs_asdf`` the frame of the groups' mosaics and the median, where they are kept.
    """

    kind: ClassVar[str] = "outliers"
    digest: str = ""
    made: str = ""
    status: str = "COMPLETE"
    reason: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    flagged: tuple[int, ...] = ()
    layers: tuple[str, ...] = ()
    thresholds: tuple[float | None, ...] = ()
    notes: tuple[str, ...] = ()
    wcs_asdf: str = ""
    cost: StageCost = StageCost()


@dataclass(frozen=True)
class UsedReference:
    """A reference file: ``value`` is what the header says of it (``N/A`` = none is used), ``why`` it was chosen."""

    reftype: str
    url: str
    sha256: str
    value: str
    why: str


@dataclass(frozen=True)
class ReferenceCut:
    """The pixels ``box`` (y0, x0, y1, x1) of a reference file that belong to an exposure.

    ``flags`` pairs a bit of the file with JWST's bit of the same meaning; None = the file has JWST's own. ``own`` says that
    it is a file of the user's.
    """

    url: str
    box: tuple[int, int, int, int]
    flags: tuple[tuple[int, int], ...] | None = None
    own: bool = False


@dataclass(frozen=True)
class BackgroundSet:
    """Backgrounds whose mean is made for exposures with this first pixel (y, x, from 0) and shape; cubes or images."""

    members: tuple[str, ...]
    corner: tuple[int, int]
    shape: tuple[int, int]
    cubes: bool = False


@dataclass(frozen=True)
class CalibratedExposure:
    """What is done to one exposure, ``url``, to become the product ``name``.

    ``background`` is the number of a set; ``photmjsr`` (MJy/sr for 1 DN/s) and ``correction`` (response then over response
    for which that holds) convert counts; ``statuses`` and ``reasons`` are by step, without resample; ``image`` says that
    there is a rectified image of it; ``matched`` that invalid pixels are made the same in all planes although no step has.
    """

    name: str
    url: str
    corner: tuple[int, int] = (0, 0)
    background: int | None = None
    flat: ReferenceCut | None = None
    area: ReferenceCut | None = None
    photmjsr: float | None = None
    correction: float = 1.0
    pixar_sr: float | None = None
    pixar_a2: float | None = None
    image: bool = False
    matched: bool = False
    statuses: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    references: tuple[UsedReference, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class CalibrationDocument(Document):
    """What the exposures of a store were calibrated by, in store order; ``parameters`` are by step, without resample.

    It is written before the pixels: a store whose ingest has finished holds what it says. ``lock`` lists the choices of
    reference files as a later run can be given them, ``last`` is the last step that was done to the pixels, ``context``
    that of the crds package.
    """

    kind: ClassVar[str] = "calibration"
    digest: str = ""
    made: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    last: str = "photom"
    context: str | None = None
    backgrounds: tuple[BackgroundSet, ...] = ()
    exposures: tuple[CalibratedExposure, ...] = ()
    lock: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ApertureRow:
    """One aperture: encircled energy in per cent, radius and sky ring in detector pixels, and the correction to all light."""

    energy: int
    radius: float
    correction: float
    sky_in: float
    sky_out: float


@dataclass(frozen=True)
class ApertureDocument(Document):
    """What the reference files of aperture photometry say for the observation's optics.

    ``apcorr`` and ``abvegaoffset`` name the files ("" = not given), ``selector`` what rows were chosen by, ``offset`` is
    AB minus Vega magnitude; ``reason`` says why the files have nothing for these optics, where they have nothing.
    """

    kind: ClassVar[str] = "apertures"
    apcorr: str = ""
    abvegaoffset: str = ""
    selector: dict[str, str] = field(default_factory=dict)
    rows: tuple[ApertureRow, ...] = ()
    offset: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class CatalogColumn:
    """One column of a catalogue: array ``catalog/<name>`` in the store, unit as astropy writes it."""

    name: str
    dtype: str
    unit: str | None = None
    description: str = ""
    format: str | None = None


@dataclass(frozen=True)
class CatalogDocument(Document):
    """The commit of source_catalog: columns in order and the table's metadata; ``segmentation`` tells whether there is one.

    ``meta`` holds plain values only (what the ECSV header carries); ``notes`` says what could not be known.
    """

    kind: ClassVar[str] = "catalog"
    digest: str = ""
    made: str = ""
    status: str = "COMPLETE"
    reason: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    sources: int = 0
    columns: tuple[CatalogColumn, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    segmentation: bool = False
    notes: tuple[str, ...] = ()
    cost: StageCost = StageCost()


@dataclass(frozen=True)
class ResampleDocument(Document):
    """The commit of a mosaic: parameters, frame and the accuracy of the pixel maps; ``made`` is its UTC time."""

    kind: ClassVar[str] = "resample"
    digest: str = ""
    made: str = ""
    status: str = "COMPLETE"
    reason: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    path: str = "mosaic"
    planes: tuple[str, ...] = ()
    shape: tuple[int, int] = (0, 0)
    tile: int = 0
    wcs_asdf: str = ""
    pixel_scale: float = 0.0
    pixel_scale_ratio: float = 1.0
    s_region: str | None = None
    exposures: tuple[int, ...] = ()
    map_errors: tuple[float | None, ...] = ()
    notes: tuple[str, ...] = ()
    cost: StageCost = StageCost()
