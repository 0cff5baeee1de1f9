"""Exposures join or leave a store that is there already: the others stay where they are.

A stack keeps its rows: those of exposures that leave are used again by exposures that come, and the stack grows where there
are none. Which row an exposure has is in its record, and by name in the attributes of the stack.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from streamimg3.formats import ingest
from streamimg3.formats.association import Association
from streamimg3.formats.ingest import Found
from streamimg3.store import Exposure, ExposureRecord, Observation
from streamimg3.store.documents import revive
from streamimg3.store.exposure import stack_path

_MEMBERS = "exposures/members.json"
_NUMBERED = re.compile(r"exposure\d{4,}")
# Documents that speak of exposures by their place, which may have changed
_BY_PLACE = ("alignment", "sky", "outliers", "skylist", "catalog", "provenance")
Prints = Sequence[tuple[str | None, ...]]


@dataclass(frozen=True)
class Change:
    """All exposures in their new order, and the numbers of the members whose pixels are in the store already."""

    found: list[Found]
    kept: frozenset[int]
    gone: int


def note_members(obs: Observation, association: Association, prints: Prints) -> None:
    """Keep what tells changed files from unchanged ones."""
    rows = {m.url: list(p) for m, p in zip(association.science, prints, strict=True)}
    obs.backend.put(_MEMBERS, json.dumps(rows).encode())


def changed(obs: Observation, association: Association, prints: Prints, options: Mapping[str, str]) -> Change | None:
    """Return how the members of an association differ from the store's; None where nothing of the store can be kept.

    Parameters
    ----------
    obs : Observation
        A store whose ingest has finished.
    association : Association
        What the store is to hold.
    prints : sequence
        From :func:`streamimg3.formats.ingest.fingerprints`, for its science members.
    options : mapping
        Storage options of the members' URLs.
    """
    known = json.loads(obs.backend.get(_MEMBERS) or b"{}")
    members = association.science
    same = [known.get(m.url) == list(p) for m, p in zip(members, prints, strict=True)]
    records: dict[str, list[ExposureRecord]] = {}
    for record in obs.records():
        records.setdefault(record.url, []).append(record)
    kept = frozenset(n for n, m in enumerate(members) if same[n] and m.url in records)
    if not kept or any(r.integrations for rs in records.values() for r in rs):
        return None
    added = [n for n in range(len(members)) if n not in kept]
    fresh = ingest.scan(replace(association, members=tuple(members[n] for n in added)), options) if added else []
    found: list[Found] = []
    for number, member in enumerate(members):
        if number in kept:
            found += [_stored(obs, r, number, chip) for chip, r in enumerate(records[member.url])]
        else:
            found += [replace(f, member=number) for f in fresh if f.member == added.index(number)]
    if not _fits(found, kept):
        return None
    ingest.one_unit([f.record for f in found])
    urls = {m.url for m in members}
    return Change(_placed(obs, _numbered(found), kept), kept, sum(url not in urls for url in records))


def _stored(obs: Observation, record: ExposureRecord, member: int, chip: int) -> Found:
    """What the headers of an exposure of the store have said."""
    exposure = Exposure(obs, record)
    text = obs.row_bytes(f"{exposure.group}/wcs", record.row)
    return Found(record, member, chip, exposure.cards("primary"), exposure.cards("sci"), text)


def _fits(found: Sequence[Found], kept: frozenset[int]) -> bool:
    """Whether what comes has the planes that the stacks have, and names of its own."""
    planes: dict[tuple[int, int], set[str]] = {}
    for item in found:
        if item.member in kept:
            planes.setdefault(item.record.shape, set()).update(item.record.planes)
    names = [f.record.name for f in found]
    return len(set(names)) == len(names) and all(
        not f.record.integrations and f.record.shape in planes and set(f.record.planes) <= planes[f.record.shape]
        for f in found
        if f.member not in kept
    )


def _numbered(found: list[Found]) -> list[Found]:
    """Exposures with their new places; groups that were numbered by place get their new number."""
    made = []
    for index, item in enumerate(found):
        group = item.record.group_id
        group = f"exposure{index + 1:04d}" if _NUMBERED.fullmatch(group) else group
        made.append(replace(item, record=replace(item.record, index=index, group_id=group)))
    return made


def _placed(obs: Observation, found: list[Found], kept: frozenset[int]) -> list[Found]:
    """Give those that come a row: one that has become free, or one more."""
    used: dict[tuple[int, int], set[int]] = {}
    for item in found:
        if item.member in kept:
            used.setdefault(item.record.shape, set()).add(item.record.row)
    made = []
    for item in found:
        if item.member not in kept:
            rows = used[item.record.shape]
            row = next(n for n in range(len(found) + len(rows)) if n not in rows)
            rows.add(row)
            item = replace(item, record=replace(item.record, row=row))
        made.append(item)
    return made


def apply(obs: Observation, association: Association, change: Change) -> None:
    """Make room for what comes and forget what speaks of exposures by their old places; no pixel is written.

    Until the ingest is finished the store counts as unfinished: if it is interrupted, everything is ingested anew.
    """
    obs.write_root({"ingested": False})
    for name in _BY_PLACE:
        obs.retract(name)
    obs.backend.remove_tree("receipts/ingest")
    obs.commit(ingest.association_document(association))
    for shape in dict.fromkeys(f.record.shape for f in change.found):
        items = [f for f in change.found if f.record.shape == shape]
        obs.resize_stack(shape, 1 + max(f.record.row for f in items))
        by_row = {f.record.row: f for f in items}
        rows = [by_row.get(n) for n in range(1 + max(by_row))]
        for table, text in (
            ("cards_primary", [f.primary_cards.encode("ascii", "replace") if f else b"" for f in rows]),
            ("cards_sci", [f.sci_cards.encode("ascii", "replace") if f else b"" for f in rows]),
            ("wcs", [f.wcs if f else b"" for f in rows]),
        ):
            obs.create_table(shape, table, text)
        names = [f.record.name if f else None for f in rows]
        obs.write_group(stack_path(shape), {"shape": list(shape), "exposures": names})
    obs.write_records([f.record for f in change.found])


def commit(obs: Observation, change: Change, digest: str) -> None:
    """Gather the records of what has come and mark the store as ingested."""
    records = [f.record for f in change.found]
    fresh = {f.record.index: f"ingest/{f.record.index:06d}.json" for f in change.found if f.member not in change.kept}
    for index, key in fresh.items():
        records[index] = revive(ExposureRecord, json.loads(obs.backend.get(key) or b"null"))
    obs.write_records(records)
    obs.write_root({"ingested": True, "ingest": digest, "exposures": [r.name for r in records]})
    obs.consolidate()
    obs.backend.remove([*fresh.values(), "ingest/order.json"])


def told(change: Change, association: Association) -> str:
    """Return one line about a change."""
    added = len(association.science) - len(change.kept)
    return f"ingest: {len(change.kept)} files kept, {added} new or changed, {change.gone} gone"
