"""Object stores: ranges of objects, conditional writes, and what options mean."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import obstore
import pytest
from obstore.store import MemoryStore

from streamimg3.errors import InputError
from streamimg3.store import objects
from streamimg3.store.objects import (
    GAP,
    RemoteObject,
    for_others,
    object_store,
    remove,
    retries,
    settings,
    swap,
    timeout,
)
from streamimg3.store.recent import Recent


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    """An object store in memory, in place of the one that a URL names, and nothing fetched before."""
    store = MemoryStore()
    monkeypatch.setattr(objects, "object_store", lambda url, options: store)
    kept = Recent(most=4 * GAP)
    monkeypatch.setattr(objects, "recent", lambda: kept)
    return store


@pytest.mark.parametrize("size", [100, GAP, GAP + 1, 9 * GAP])
def test_ranges(memory: MemoryStore, size: int) -> None:
    """Of small objects and of large ones, with and without what came with the end or was fetched before."""
    data = np.random.default_rng(size).bytes(size)
    obstore.put(memory, "a/b", data)
    spans = [(0, 10), (5, size // 2), (size - 30, size), (size // 3, size // 3 + 7)]
    for _ in range(3):
        found = RemoteObject("s3://b", (), "a/b")
        assert found.tail(20) == data[-20:]
        assert found.ranges(spans) == [data[start:end] for start, end in spans]
    assert RemoteObject("s3://b", (), "a/c").tail(20) is None


def test_what_was_fetched_is_not_fetched_again(memory: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the object has changed, or too much has been fetched since."""
    asked: list[int] = []
    get_ranges = obstore.get_ranges
    monkeypatch.setattr(obstore, "get_ranges", lambda *a, **k: asked.append(1) or get_ranges(*a, **k))

    def read(key: str) -> bytes:
        found = RemoteObject("s3://b", (), key)
        found.tail(20)
        return found.ranges([(0, GAP)])[0]

    old, new = (np.random.default_rng(seed).bytes(3 * GAP) for seed in (1, 2))
    obstore.put(memory, "a", old)
    assert read("a") == read("a") == old[:GAP] and len(asked) == 1
    obstore.put(memory, "a", new)
    assert read("a") == read("a") == new[:GAP] and len(asked) == 2
    obstore.put(memory, "b", old)
    obstore.put(memory, "c", old)
    assert read("b") == read("c") == old[:GAP] and len(asked) == 4
    assert read("a") == new[:GAP] and len(asked) == 5  # it had to make room
    obstore.delete(memory, "a")
    assert RemoteObject("s3://b", (), "a").tail(20) is None


def test_a_swap_takes_place_once() -> None:
    store = MemoryStore()
    assert not swap(store, "k", b"old", b"new")
    assert swap(store, "k", None, b"one")
    assert not swap(store, "k", None, b"two")
    assert not swap(store, "k", b"other", b"two")
    assert swap(store, "k", b"one", b"two")
    assert bytes(obstore.get(store, "k").bytes()) == b"two"


def test_many_are_removed() -> None:
    store = MemoryStore()
    for name in ("a", "b/c", "d"):
        obstore.put(store, name, b"x")
    remove(store, ["a", "b/c"])
    remove(store, [])
    assert [item["path"] for page in obstore.list(store) for item in page] == ["d"]


def test_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of fsspec, patience, and the environment where nothing is given."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    options = {"key": "k", "secret": "s", "endpoint_url": "http://127.0.0.1:1", "retries": "3", "timeout": "2.5"}
    how = settings("s3://b/x", tuple(options.items()))
    assert how["config"]["access_key_id"] == "k" and how["config"]["endpoint"] == "http://127.0.0.1:1"
    assert how["client_options"]["allow_http"] is True
    assert how["client_options"]["timeout"] == timedelta(seconds=2.5)
    assert how["retry_config"]["max_retries"] == 3
    assert for_others(options) == {k: v for k, v in options.items() if k not in ("retries", "timeout")}
    assert settings("s3://b/x", ())["config"] == {"region": "us-east-1"}
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://all")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://mine")
    assert settings("s3://b/x", ())["config"]["endpoint"] == "https://mine"
    assert settings("gs://b/x", (("token", "t"),))["config"] == {"token": "t"}


def test_wrong_options() -> None:
    with pytest.raises(InputError, match=r"--storage-option nonsense: for s3:// the options are key, secret,"):
        object_store("s3://b/x", (("nonsense", "1"),))
    for name, text in (("retries", "many"), ("retries", "-1"), ("timeout", "0")):
        with pytest.raises(InputError, match=rf"--storage-option {name}={text}: give a number"):
            (retries if name == "retries" else timeout)({name: text})


def test_every_object_store_is_opened() -> None:
    """Without asking anybody: the address says which service it is."""
    assert type(object_store("s3a://b/x", ())).__name__ == "S3Store"
    assert not objects.serves("memory://x") and not objects.serves("https://x")
