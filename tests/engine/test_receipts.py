"""Receipts: what is done under which digest."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamimg3.engine.receipts import Ledger, digest
from streamimg3.store.backend import Backend

numbers = st.dictionaries(st.text(max_size=4), st.integers() | st.floats(allow_nan=False) | st.none(), max_size=5)


@settings(max_examples=40, deadline=None)
@given(numbers, numbers)
def test_equal_values_have_equal_digests(a: dict, b: dict) -> None:
    assert digest(a, b) == digest(dict(reversed(a.items())), dict(reversed(b.items())))
    assert digest(a, [1, 2]) == digest(a, (1, 2)), "JSON knows no tuples"
    if repr(sorted(a.items(), key=str)) != repr(sorted(b.items(), key=str)):
        assert digest(a) != digest(b)
    assert digest(a, b) != digest([a, b])


def test_digests_see_the_last_bit_of_a_number() -> None:
    assert digest({"scale": 0.1 + 0.2}) != digest({"scale": 0.3})
    assert digest(1) != digest(1.0) != digest("1.0")
    assert len(digest()) == 32


@pytest.fixture
def blobs(tmp_path) -> Backend:  # type: ignore[no-untyped-def]
    return Backend(str(tmp_path / "s"))


def test_marks_are_kept_by_stage_and_digest(blobs: Backend) -> None:
    ledger = Ledger(blobs, "resample", "d1")
    assert ledger.done() == set()
    ledger.mark("r0000c0000")
    ledger.mark("r0000c0001")
    assert Ledger(blobs, "resample", "d1").done() == {"r0000c0000", "r0000c0001"}
    assert Ledger(blobs, "resample", "d2").done() == set()
    assert Ledger(blobs, "ingest", "d1").done() == set()


def test_others_are_forgotten(blobs: Backend) -> None:
    old, new, neighbour = (Ledger(blobs, *names) for names in (("s", "old"), ("s", "new"), ("t", "old")))
    for ledger in (old, new, neighbour):
        ledger.mark("k")
    new.forget_others()
    assert (old.done(), new.done(), neighbour.done()) == (set(), {"k"}, {"k"})
    neighbour.forget_others(["old", "never"])
    assert neighbour.done() == {"k"}
