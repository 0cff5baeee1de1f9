"""Documents come back as they were written; what is foreign, newer or damaged is refused in one clear line."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamimg3.errors import StoreError
from streamimg3.sky.correction import Correction
from streamimg3.store.documents import (
    AssociationDocument,
    Document,
    MemberEntry,
    OutputWcsDocument,
    ResampleDocument,
    SkyDocument,
    StageCost,
    revive,
)
from streamimg3.store.exposure import ExposureRecord

KINDS = Document.__subclasses__()
finite = st.floats(allow_nan=False, allow_infinity=False)
plain = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | finite | st.text(max_size=8)
json_values = st.recursive(plain, lambda inner: st.lists(inner, max_size=3), max_leaves=5)


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Values of an annotated type, as they look after a visit to JSON."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return st.one_of([values_of(a) for a in args])
    if kind is Correction:  # its kinds are listed
        hints = typing.get_type_hints(kind)
        rest = {f.name: values_of(hints[f.name]) for f in dataclasses.fields(kind) if f.name != "kind"}
        return st.builds(kind, kind=st.sampled_from(["tangent", "moving"]), **rest)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return st.builds(kind, **{f.name: values_of(hints[f.name]) for f in dataclasses.fields(kind)})
    if origin is tuple and args[1:] == (Ellipsis,):
        return st.lists(values_of(args[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*(values_of(a) for a in args))
    if origin is dict:
        return st.dictionaries(st.text(max_size=6), json_values if args[1] is Any else values_of(args[1]), max_size=3)
    simple = {bool: st.booleans(), int: st.integers(-(2**62), 2**62), float: finite, str: st.text(max_size=12)}
    return st.none() if kind is type(None) else simple[kind]


def test_every_kind_has_a_name_of_its_own() -> None:
    assert {AssociationDocument, OutputWcsDocument, ResampleDocument, SkyDocument} <= set(KINDS)
    assert len({kind.kind for kind in KINDS}) == len(KINDS) and all(kind.kind for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_documents_come_back(kind: type[Document], data: st.DataObject) -> None:
    document = data.draw(values_of(kind))
    back = kind.from_json(document.to_json(), "here")
    assert back == document and type(back) is kind
    assert back.to_json() == document.to_json()


@settings(max_examples=40, deadline=None)
@given(values_of(ExposureRecord))
def test_records_come_back(record: ExposureRecord) -> None:
    assert revive(ExposureRecord, json.loads(json.dumps(dataclasses.asdict(record)))) == record


@pytest.mark.parametrize("kind", KINDS)
def test_schema_and_version_come_first(kind: type[Document]) -> None:
    tree = json.loads(kind().to_json())
    assert list(tree)[:2] == ["schema", "version"]
    assert tree["schema"] == f"streamimg3/{kind.kind}" and tree["version"] == kind.version


def test_nested_values_have_their_types() -> None:
    document = AssociationDocument(product="p", members=(MemberEntry("a.fits", "science"),))
    back = AssociationDocument.from_json(document.to_json(), "here")
    assert isinstance(back.members, tuple) and isinstance(back.members[0], MemberEntry)
    cost = ResampleDocument.from_json(ResampleDocument(cost=StageCost(wall_s=2)).to_json(), "here").cost
    assert isinstance(cost, StageCost) and isinstance(cost.wall_s, float)


def changed(document: Document, **changes: Any) -> bytes:
    return json.dumps(json.loads(document.to_json()) | changes).encode()


@pytest.mark.parametrize("kind", KINDS)
def test_a_newer_version_asks_for_an_upgrade(kind: type[Document]) -> None:
    with pytest.raises(StoreError, match=r"where/it\.json has schema version 99, newer than .* upgrade streamimg3"):
        kind.from_json(changed(kind(), version=99), "where/it.json")


def test_another_kind_is_refused() -> None:
    with pytest.raises(StoreError, match=r"it\.json holds 'streamimg3/sky' where 'streamimg3/resample'"):
        ResampleDocument.from_json(SkyDocument().to_json(), "it.json")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe\x00",
        b'{"schema": "streamimg3/sky", "version": 1, "met',
        b"[1, 2]",
        b"7",
        b"null",
        b'{"schema": "streamimg3/sky"}',
        b'{"version": 1}',
        b'{"schema": "streamimg3/sky", "version": "one", "method": "", "levels": []}',
        b'{"schema": "streamimg3/sky", "version": null, "method": "", "levels": []}',
        b'{"schema": "streamimg3/sky", "version": 1, "method": "", "levels": 3}',
        b'{"schema": "streamimg3/sky", "version": 1, "method": "", "levels": ["x"]}',
        b'{"schema": "streamimg3/sky", "version": 1, "method": "", "levels": [], "colour": "red"}',
    ],
)
def test_damaged_text_is_refused(data: bytes) -> None:
    with pytest.raises(StoreError, match=r"^where/sky\.json [^\n]*$"):
        SkyDocument.from_json(data, "where/sky.json")


def test_fields_that_came_later_have_their_defaults() -> None:
    """Within a version a field may be added with a default: older text stays readable."""
    tree = json.loads(SkyDocument(method="match").to_json())
    del tree["levels"]
    assert SkyDocument.from_json(json.dumps(tree).encode(), "here") == SkyDocument(method="match")
