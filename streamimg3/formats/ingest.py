"""Files into the store: headers first, then every plane once, in bands of whole shards (cubes: see ingest_cubes)."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from astropy.io import fits

from streamimg3.errors import InputError
from streamimg3.formats import ingest_cubes
from streamimg3.formats.association import Association, Member
from streamimg3.formats.ingest_planes import store_images
from streamimg3.formats.local_copy import file_mark, missing
from streamimg3.formats.names import dq_names, weight_names
from streamimg3.formats.sources import Cube, Opener, Source, open_sources
from streamimg3.sky import footprint
from streamimg3.sky.wcs import Wcs
from streamimg3.store import ExposureRecord, Observation
from streamimg3.store.cubes import cube_stacks
from streamimg3.store.documents import AssociationDocument, MemberEntry, revive
from streamimg3.store.exposure import stack_path

_SPECTRAL = b"gwcs/spectral_frame-"  # in the text of a gWCS that gives wavelengths besides positions
_FILTERS = ("FILTER", "FILTER1", "FILTER2", "PUPIL")
_RENAMED = {"instrume": "instrument"}
_ORDER = "ingest/order.json"
_LEVEL2 = ("backgrounds", "rectified")
_CORONAGRAPHY = ("psfmask", "psfalign", "psfsub", "components")
_SERIES = ("references", "photometry", "spectra", "profiles", "white_light")


@dataclass(frozen=True)
class Found:
    """What the headers of one exposure say, and of a cube its table of times; its pixels have not been read."""

    record: ExposureRecord
    member: int
    chip: int
    primary_cards: str
    sci_cards: str
    wcs: bytes
    cube: Cube | None = field(default=None, compare=False)


def scan(
    association: Association, options: Mapping[str, str], opener: Opener = open_sources, mixed: bool = False
) -> list[Found]:
    """Read the headers of all members that come into the store.

    Parameters
    ----------
    association : Association
        What is to be combined.
    options : mapping
        Storage options of the members' URLs.
    opener : callable
        Opens a member; its exposures need not be as they are in the file.
    mixed : bool
        Images may have different units.

    Raises
    ------
    InputError
        If a file is unreadable, has no WCS, or the images' units differ.
    """
    found: list[Found] = []
    rows: dict[str, int] = {}
    filled: dict[str, int] = {}
    for number, member in enumerate(association.exposures):
        with opener(member, options) as sources:
            for chip, source in enumerate(sources):
                group = stack_path(source.shape, cubes=source.cube is not None)
                row, first = rows.get(group, 0), filled.get(group, 0)
                item = _found(source, len(found), row, (number, chip))
                rows[group], filled[group] = row + 1, first + item.record.integrations
                found.append(replace(item, record=replace(item.record, first=first)))
    if not mixed:
        one_unit([f.record for f in found])
    return _unique_groups(_unique_names(found), [m.group_id for m in association.exposures])


def _found(source: Source, index: int, row: int, where: tuple[int, int]) -> Found:
    """Facts of one source under the store's names."""
    names = {f.name for f in fields(ExposureRecord)}
    facts = {_RENAMED.get(k, k): v for k, v in source.record.items()}
    facts = {k: v for k, v in facts.items() if k in names and k not in ("group_id", "s_region")}
    kind: Literal["gwcs", "fits"] = "fits" if source.asdf is None else "gwcs"
    text = source.asdf if source.asdf is not None else (source.wcs_cards or "").encode("ascii")
    if source.asdf is None and source.wcs_tables:
        text += Wcs.TABLES + source.wcs_tables
    spectral = source.cube is not None and _SPECTRAL in text
    if kind == "gwcs" and not spectral:
        _require_finite(Wcs(kind, text, source.shape), source.url)
    region = source.record.get("s_region") or ("" if spectral else footprint.outline(Wcs(kind, text, source.shape)))
    if facts.get("vparity") is not None:
        facts["vparity"] = int(facts["vparity"])  # type: ignore[arg-type]
    record = ExposureRecord(
        name=source.name, filename=source.filename, url=source.url, index=index, shape=source.shape, row=row,
        group_id=str(source.record.get("group_id") or f"exposure{index + 1:04d}"),
        planes=source.names, integrations=source.cube.count if source.cube else 0,
        checksums={"wcs": hashlib.sha256(text).hexdigest()}, wcs_kind=kind, is_jwst=source.is_jwst,
        s_region=str(region), notes=source.notes, **facts,  # type: ignore[arg-type]
    )  # fmt: skip
    cube = replace(source.cube, planes=()) if source.cube else None  # the file is about to be closed
    return Found(record, where[0], where[1], source.primary_cards, source.sci_cards, text, cube)


def _require_finite(wcs: Wcs, url: str) -> None:
    """Refuse a gWCS that gives no positions; FITS WCS were checked when they were read."""
    ny, nx = wcs.shape
    try:
        sky = wcs.to_sky(np.array([0.25, 0.5, 0.75]) * ny, np.array([0.5, 0.25, 0.75]) * nx, bounded=False)
    except InputError as error:
        raise InputError(f"{url}: {error}") from error
    if not np.isfinite(sky).all():
        raise InputError(
            f"{url}: its gWCS gives NaN for positions on the sky: run assign_wcs again, or leave the file out"
        )


def unlike(found: Sequence[Found]) -> list[str]:
    """Return what a user should know of exposures that differ in what is not made equal: filters, exposure times."""
    optics = Counter(map(_optics, found))
    told = []
    if len(optics) > 1:
        each = "; ".join(f"{n} {names or 'without a filter named'}" for names, n in optics.items())
        told.append(f"exposures through different filters are combined as they are: {each}")
    units = {(f.record.bunit or "").replace(" ", "").lower() for f in found}
    times = [f.record.exposure_time for f in found if f.record.exposure_time and not f.record.is_jwst]
    if times and max(times) > 1.05 * min(times) and not any("/s" in unit or "jy" in unit for unit in units):
        told.append(f"exposure times differ ({min(times):g} to {max(times):g} s): pixels are not scaled by them")
    return told


def _optics(found: Found) -> str:
    """Values of the keywords that name filters."""
    named = {}
    for cards in (found.primary_cards, found.sci_cards):
        for card in (cards[i : i + 80] for i in range(0, len(cards), 80)):
            if card[:8].rstrip() in _FILTERS:
                named[card[:8]] = str(fits.Card.fromstring(card).value).strip()
    return " ".join(named.values())


def one_unit(records: Sequence[ExposureRecord]) -> None:
    """Refuse images of different units: they cannot be combined."""
    units = {r.bunit: r.url for r in reversed(records)}
    if len(units) > 1:
        listed = "; ".join(f"{unit or 'no BUNIT'} in {url}" for unit, url in units.items())
        raise InputError(f"the images have different units ({listed}): combine images of one BUNIT")


def _unique_names(found: list[Found]) -> list[Found]:
    """Number exposures whose file names are equal (same name in different folders)."""
    seen: dict[str, int] = {}
    unique = []
    for item in found:
        count = seen[item.record.name] = seen.get(item.record.name, 0) + 1
        name = item.record.name if count == 1 else f"{item.record.name}-{count}"
        unique.append(replace(item, record=replace(item.record, name=name)))
    return unique


def _unique_groups(found: list[Found], given: Sequence[str | None]) -> list[Found]:
    """Keep files apart whose groups have one name only because the files do (not JWST's, and not named by the user)."""
    owner: dict[str, int] = {}
    unique = []
    for item in found:
        group = item.record.group_id
        first = owner.setdefault(group, item.member)
        if first != item.member and not item.record.is_jwst and given[item.member] is None:
            item = replace(item, record=replace(item.record, group_id=f"{group}-{item.member + 1}"))
        unique.append(item)
    return unique


def fingerprints(members: Sequence[Member], options: Mapping[str, str]) -> list[tuple[str | None, ...]]:
    """Return what tells a changed file from an unchanged one, for members and the maps that lie beside them."""
    beside = [[*weight_names(m.url), *dq_names(m.url)] for m in members]
    absent = set(missing([name for names in beside for name in names], options))
    rows: list[tuple[str | None, ...]] = []
    for member, names in zip(members, beside, strict=True):
        files = [member.url, member.weight, member.dq, *(n for n in names if n not in absent)]
        rows.append((member.group_id, *(f"{f} {file_mark(f, options)}" for f in files if f is not None)))
    return rows


def clear(obs: Observation) -> None:
    """Remove what an earlier ingest left, and all results made from it."""
    obs.write_root({"ingested": False})
    for folder in (
        "documents",
        "receipts",
        "scratch",
        "mosaic",
        "single",
        *_LEVEL2,
        *_CORONAGRAPHY,
        *_SERIES,
        "ingest",
        "exposures",
        "integrations",
    ):
        obs.backend.remove_tree(folder)


def write_order(obs: Observation, association: Association, found: Sequence[Found]) -> None:
    """Leave the members and their records where workers read them."""
    rows = [
        {"member": asdict(m), "records": [asdict(f.record) for f in found if f.member == n]}
        for n, m in enumerate(association.exposures)
    ]
    obs.backend.put(_ORDER, json.dumps(rows, allow_nan=False).encode())


@lru_cache(maxsize=1)
def read_order(obs: Observation, mark: str) -> list[tuple[Member, list[ExposureRecord]]]:
    """Return the members and their records (read once per process and ingest, which ``mark`` names)."""
    rows = json.loads(obs.backend.get(_ORDER) or b"[]")
    return [(Member(**r["member"]), [revive(ExposureRecord, x) for x in r["records"]]) for r in rows]


def create(obs: Observation, association: Association, found: Sequence[Found]) -> None:
    """Create empty stacks and write everything that comes from headers.

    Parameters
    ----------
    obs : Observation
        A store that :func:`clear` has emptied.
    association : Association
        What is to be combined.
    found : sequence of Found
        What :func:`scan` returned.
    """
    obs.commit(association_document(association))
    images = [f for f in found if not f.record.integrations]
    for shape in dict.fromkeys(f.record.shape for f in images):
        members = [f for f in images if f.record.shape == shape]
        planes = dict.fromkeys(p for f in members for p in f.record.planes)
        obs.create_stack(shape, len(members), dict.fromkeys((*planes, "nan"), _unit(members)))
        _create_tables(obs, members)
    for stack in cube_stacks([f.record for f in found]):
        members = [found[r.index] for r in stack.records]
        cubes = [f.cube for f in members if f.cube]
        columns = ingest_cubes.integration_columns(stack, [c.numbers for c in cubes], [c.times for c in cubes])
        ingest_cubes.create_cubes(obs, stack, columns, _unit(members))
        _create_tables(obs, members)
    obs.write_records([f.record for f in found])


def _unit(members: Sequence[Found]) -> str | None:
    """Unit of the images of a stack; None where they have several."""
    units = {f.record.bunit for f in members}
    return units.pop() if len(units) == 1 else None


def _create_tables(obs: Observation, members: Sequence[Found]) -> None:
    """Write cards and WCS of the exposures of a stack."""
    shape, cubes = members[0].record.shape, members[0].record.integrations > 0
    obs.create_table(shape, "cards_primary", [f.primary_cards.encode("ascii", "replace") for f in members], cubes)
    obs.create_table(shape, "cards_sci", [f.sci_cards.encode("ascii", "replace") for f in members], cubes)
    obs.create_table(shape, "wcs", [f.wcs for f in members], cubes)


def association_document(association: Association) -> AssociationDocument:
    """Return the document that keeps an association in the store."""
    members = tuple(MemberEntry(m.url, m.exptype, m.group_id, m.catalog) for m in association.members)
    a = association
    return AssociationDocument(a.product, members, a.asn_id, a.pool, a.table, a.program, a.target, a.asn_type)


def store_member(
    obs: Observation,
    member: Member,
    records: Sequence[ExposureRecord],
    options: Mapping[str, str],
    opener: Opener = open_sources,
) -> None:
    """Write the pixels of one file's exposures and leave their completed records as blobs.

    Parameters
    ----------
    obs : Observation
        A store made by :func:`create`.
    member : Member
        The file.
    records : sequence of ExposureRecord
        Its exposures in the file's order.
    options : mapping
        Storage options of the file's URL.
    opener : callable
        Opens the file, as for :func:`scan`.
    """
    with opener(member, options) as sources:
        for source, record in zip(sources, records, strict=True):
            checksums = store_images(obs, stack_path(source.shape), record, source.planes)
            done = replace(record, checksums=record.checksums | checksums)
            obs.backend.put(f"ingest/{record.index:06d}.json", json.dumps(asdict(done), allow_nan=False).encode())


def commit(obs: Observation, found: Sequence[Found], digest: str) -> None:
    """Gather the records and mark the store as ingested."""
    records = [f.record for f in found]
    keys = {r.index: f"ingest/{r.index:06d}.json" for r in records if not r.integrations}
    for index, key in keys.items():
        records[index] = revive(ExposureRecord, json.loads(obs.backend.get(key) or b"null"))
    records = ingest_cubes.completed(obs, records)
    obs.write_records(records)
    obs.write_root({"ingested": True, "ingest": digest, "exposures": [r.name for r in records]})
    obs.consolidate()
    obs.backend.remove([*keys.values(), *ingest_cubes.blobs(records), _ORDER])
