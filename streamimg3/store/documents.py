"""Documents: small frozen values under a schema version; a stage's document is its commit."""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from streamimg3.errors import StoreError

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


@dataclass(frozen=True)
class OutputWcsDocument(Document):
    """An output WCS that the user supplied; ``text`` is an ASDF file as text."""

    kind: ClassVar[str] = "output_wcs"
    source: str = ""
    text: str = ""
    shape: tuple[int, int] = (0, 0)
    pixel_scale: float | None = None


@dataclass(frozen=True)
class SkyDocument(Document):
    """Background level of each exposure in the image's unit; None = unknown (nothing is subtracted)."""

    kind: ClassVar[str] = "sky"
    method: str = ""
    levels: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class RunDocument(Document):
    """The last run of a pipeline: how each step ended, and the documents of the mosaics it made or kept."""

    kind: ClassVar[str] = "run"
    pipeline: str = ""
    statuses: dict[str, str] = field(default_factory=dict)
    mosaics: tuple[str, ...] = ()


@dataclass(frozen=True)
class StageCost:
    """What a stage took: seconds, bytes and where the processor time went."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_rss: int = 0
    tasks_done: int = 0
    tasks_kept: int = 0
    split: dict[str, float] = field(default_factory=dict)


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
