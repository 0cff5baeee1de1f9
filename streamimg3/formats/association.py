"""What a run is given: level-2 and level-3 association tables, or FITS files, folders and patterns."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from streamimg3.errors import InputError
from streamimg3.formats.local_copy import exists, files_in, matching, missing, read_text
from streamimg3.formats.names import (
    absolute,
    common_root,
    file_name,
    looks_like_fits,
    relative_to,
    root_name,
    without_companions,
)
from streamimg3.store.series import segment_number, series_name

_TABLES = (".json", ".yaml", ".yml")
_LEVEL2 = re.compile(r"lv2|level2|(image|spec|tso|wfs-image)-?2\b", re.IGNORECASE)
COMBINED = ("science", "psf")  # roles that have a place in a level-3 product
_NOTHING = ("", "null", "none")  # what stands where an exposure has no trouble

JSON: TypeAlias = None | bool | int | float | str | list["JSON"] | dict[str, "JSON"]


@dataclass(frozen=True)
class Member:
    """One file of an association.

    Parameters
    ----------
    url : str
        Absolute local path or fsspec URL.
    exptype : str
        Role as the association says it (``science``, ``background``, ``psf`` ...).
    group_id : str or None
        Overrides which members count as one simultaneous exposure.
    catalog : str or None
        URL of the member's own source catalogue.
    weight, dq : str or None
        URLs of the weight map and the data-quality map, when they are separate files.
    """

    url: str
    exptype: str
    group_id: str | None = None
    catalog: str | None = None
    weight: str | None = None
    dq: str | None = None


@dataclass(frozen=True)
class Product:
    """One product of a level-2 association: its name and its own members."""

    name: str
    members: tuple[Member, ...]

    def urls(self, exptype: str) -> tuple[str, ...]:
        """Return the files of the members of one role (lower case), in order."""
        return tuple(m.url for m in self.members if m.exptype.strip().lower() == exptype)


@dataclass(frozen=True)
class Association:
    """One product and what it is made of.

    Parameters
    ----------
    product : str
        Product name, the beginning of every product's file name.
    members : tuple of Member
        In association order, all roles.
    asn_id, pool, table : str or None
        Association id, pool name, and file name of the association; None for bare files.
    program, target, asn_type : str or None
        As the association says.
    notes : tuple of str
        What the association holds that is not used, and trouble that it reports.
    products : tuple of Product
        Of a level-2 association, each by itself.
    """

    product: str
    members: tuple[Member, ...]
    asn_id: str | None = None
    pool: str | None = None
    table: str | None = None
    program: str | None = None
    target: str | None = None
    asn_type: str | None = None
    notes: tuple[str, ...] = ()
    products: tuple[Product, ...] = ()

    @property
    def science(self) -> tuple[Member, ...]:
        """The members to be combined, in association order (their order fixes context bits)."""
        return tuple(member for member in self.members if member.exptype.strip().lower() == "science")

    @property
    def exposures(self) -> tuple[Member, ...]:
        """The members whose pixels come into a store: science, and reference stars (psf), in association order."""
        return tuple(member for member in self.members if member.exptype.strip().lower() in COMBINED)


def read_inputs(inputs: Sequence[str], options: Mapping[str, str]) -> Association:
    """Read what a run is given; no file but the association is opened.

    Parameters
    ----------
    inputs : sequence of str
        One association (``.json .yaml .yml``), or any mix of FITS files, folders and glob patterns; local paths or
        fsspec URLs. Files that are by their name the weight or DQ map of another one are not taken as exposures.
    options : mapping of str to str
        Storage options for remote URLs.

    Returns
    -------
    Association
        Only the first product of a level-3 association; all products of a level-2 one, in one list of members.

    Raises
    ------
    InputError
        If nothing usable is given: no input, an unreadable or empty association, a missing or repeated science member,
        a folder or pattern without FITS files.
    """
    tables = [name for name in inputs if file_name(name).lower().endswith(_TABLES)]
    if not inputs:
        raise InputError("no input given: name an association, FITS files, folders or patterns")
    if tables and len(inputs) > 1:
        raise InputError(f"{tables[0]}: is an association and must be the only input; {len(inputs)} were given")
    association = read_table(absolute(tables[0]), options) if tables else _from_files(inputs, options)
    for role in COMBINED:
        check_members(association, options, role)
    return association


def check_members(association: Association, options: Mapping[str, str], exptype: str = "science") -> None:
    """Check that the members of one role are there, each once, with the files they name.

    Parameters
    ----------
    association : Association
        To check.
    options : mapping of str to str
        Storage options for remote URLs.
    exptype : str
        Role, lower case.

    Raises
    ------
    InputError
        If a member is repeated, or it or a file it names does not exist.
    """
    label = association.table or "the given files"
    members = [member for member in association.members if member.exptype.strip().lower() == exptype]
    twice = [url for url, uses in Counter(member.url for member in members).items() if uses > 1]
    if twice:
        raise InputError(f"{twice[0]}: is listed more than once in {label}; list each exposure once")
    files = [name for m in members for name in (m.url, m.catalog, m.weight, m.dq) if name is not None]
    lost = missing(files, options)
    if lost:
        more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        if association.table is None:
            raise InputError(f"{lost[0]}: does not exist{more}; give FITS files, folders, an association or a store")
        raise InputError(
            f"{lost[0]}: does not exist{more} but is listed in {label}; fetch it or remove it from the list"
        )


def read_table(url: str, options: Mapping[str, str]) -> Association:
    """Read an association; its members need not exist.

    Parameters
    ----------
    url : str
        Absolute local path or fsspec URL of the table (``.json .yaml .yml``).
    options : mapping of str to str
        Storage options for remote URLs.

    Raises
    ------
    InputError
        If it is unreadable or no association, or has no science member.
    """
    content = _parse(read_text(url, options), url)
    if not isinstance(content, dict) or not isinstance(products := content.get("products"), list) or not products:
        raise InputError(f"{url}: is not an association (it has no list of products)")
    level2 = any(_LEVEL2.search(_text(content, key) or "") for key in ("asn_rule", "asn_type"))
    wanted = products if level2 else products[:1]
    members = tuple(member for product in wanted for member in _members(product, url))
    if level2:  # a background may serve several products
        members = tuple(dict.fromkeys(members))
    if not members:
        raise InputError(f"{url}: is an empty association (its product has no members)")
    association = Association(
        product=_product_name(wanted, members, url),
        members=members,
        asn_id=_text(content, "asn_id"),
        pool=_text(content, "asn_pool"),
        table=file_name(url),
        program=_text(content, "program"),
        target=_text(content, "target"),
        asn_type=_text(content, "asn_type"),
        notes=_notes(content, wanted, file_name(url)) if level2 else _notes(content, wanted, file_name(url), COMBINED),
        products=tuple(_product(product, url) for product in products) if level2 else (),
    )
    if not association.science:
        kinds = ", ".join(sorted({member.exptype for member in members}))
        raise InputError(f"{url}: has no member of exptype science (only {kinds})")
    return association


def _notes(
    content: Mapping[str, JSON], used: Sequence[JSON], label: str, roles: Sequence[str] | None = None
) -> tuple[str, ...]:
    """What is not used of an association, and trouble that it reports; ``roles`` are those with a place, None = all."""
    notes = []
    products = content["products"]
    if isinstance(products, list) and len(products) > len(used):
        notes.append(
            f"{label}: holds {len(products)} products; only the first is made, the others need associations of their own"
        )
    listed = [m for p in used if isinstance(p, dict) and isinstance(found := p.get("members"), list) for m in found]
    entries = [m for m in listed if isinstance(m, dict)]
    others = Counter(str(m.get("exptype")).strip().lower() for m in entries)
    if roles is not None:
        notes += [
            f"{label}: members of exptype {role} ({n}) are not used" for role, n in others.items() if role not in roles
        ]
    for entry in entries:
        if (trouble := _text(entry, "exposerr")) is not None and trouble.strip().lower() not in _NOTHING:
            notes.append(
                f"{label}: {_text(entry, 'expname')} is marked with an error ({trouble}) and used nevertheless"
            )
    state = _text(content, "degraded_status") or ""
    if state.strip().lower() not in _NOTHING and not state.lower().startswith("no known degraded"):
        notes.append(f"{label}: its exposures are marked as degraded ({state})")
    return tuple(notes)


def _parse(text: str, url: str) -> JSON:
    try:
        parsed: JSON = json.loads(text) if url.lower().endswith(".json") else _parse_yaml(text)
    except json.JSONDecodeError as exc:
        raise InputError(f"{url}: is not valid JSON (line {exc.lineno}, column {exc.colno}: {exc.msg})") from exc
    except Exception as exc:  # the YAML reader's errors have no public base class here
        raise InputError(f"{url}: is not valid YAML ({' '.join(str(exc).split())[:200]})") from exc
    return parsed


def _parse_yaml(text: str) -> JSON:
    from astropy.io.misc import yaml

    parsed: JSON = yaml.load(text)
    return parsed


def _members(product: JSON, url: str) -> Iterable[Member]:
    listed = product.get("members") if isinstance(product, dict) else None
    if not isinstance(listed, list):
        raise InputError(f"{url}: is not an association (a product has no list of members)")
    return [_member(entry, url) for entry in listed]


def _member(entry: JSON, url: str) -> Member:
    if not isinstance(entry, dict) or not isinstance(name := entry.get("expname"), str) or not name.strip():
        raise InputError(f"{url}: has a member without expname; name its file")
    if (exptype := _text(entry, "exptype")) is None:
        raise InputError(f"{url}: member {name} has no exptype; say what it is (science, background ...)")
    catalog, weight, dq = (_text(entry, key) for key in ("tweakreg_catalog", "weight", "dq"))
    return Member(
        url=relative_to(url, name.strip()),
        exptype=exptype,
        group_id=_text(entry, "group_id"),
        catalog=relative_to(url, catalog) if catalog else None,
        weight=relative_to(url, weight) if weight else None,
        dq=relative_to(url, dq) if dq else None,
    )


def _product(product: JSON, url: str) -> Product:
    members = tuple(_members(product, url))
    return Product(_product_name([product], members, url), members)


def _product_name(products: Sequence[JSON], members: Sequence[Member], url: str) -> str:
    first = products[0]
    name = _text(first, "name") if len(products) == 1 and isinstance(first, dict) else None
    if name is None:
        return common_root([member.url for member in members])
    if "/" in name or "\\" in name or name.strip(". ") == "":
        raise InputError(f"{url}: product name {name!r} is not a file name; give a plain name")
    return name


def _text(entry: Mapping[str, JSON], key: str) -> str | None:
    value = entry.get(key)
    return None if value is None or value == "" else str(value)


def _from_files(inputs: Sequence[str], options: Mapping[str, str]) -> Association:
    urls = without_companions([url for name in inputs for url in _expand(name, options)])
    members = tuple(Member(url, "science") for url in urls)
    return Association(product=common_root(urls), members=members)


def _expand(name: str, options: Mapping[str, str]) -> list[str]:
    """Return the files a path, folder or pattern stands for, sorted by name."""
    url = absolute(name)
    # "?" begins the query of a web address.
    pattern = any(mark in url for mark in ("*[" if url.startswith(("http://", "https://")) else "*?["))
    if pattern and not exists(url, options):
        found, what = matching(url, options), "no FITS file matches this pattern"
    elif not looks_like_fits(url) and (inside := files_in(url, options)) is not None:
        found, what = inside, "this folder holds no FITS file"
    else:
        return [url]
    files = sorted(hit for hit in found if looks_like_fits(hit))
    if not files:
        raise InputError(f"{name}: {what} (.fits .fit .fts, also .gz and .fz)")
    return files


def in_time(association: Association) -> Association:
    """Return an association whose segments follow one another: exposures as listed, each one's files by segment."""
    names = [root_name(m.url) for m in association.members]
    if not any(map(segment_number, names)):
        return association
    first: dict[str, int] = {}
    for place, name in enumerate(names):
        first.setdefault(series_name(name), place)
    order = sorted(range(len(names)), key=lambda i: (first[series_name(names[i])], segment_number(names[i]) or 0, i))
    return replace(association, members=tuple(association.members[i] for i in order))
