"""Blobs on local disk and in memory: the same calls, the same answers."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from streamimg3.errors import StoreError
from streamimg3.store.backend import Backend, freeze, is_local, normalise, reason

NUMBERS = itertools.count()


@pytest.fixture(params=["local", "memory"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    """An empty place."""
    return Backend(str(tmp_path / "store") if request.param == "local" else f"memory://backend-{next(NUMBERS)}")


def test_a_blob_comes_back(backend: Backend) -> None:
    backend.put("a/b.json", b"one")
    assert backend.get("a/b.json") == b"one"
    backend.put("a/b.json", b"")
    assert backend.get("a/b.json") == b""
    every = bytes(range(256)) * 300
    backend.put("every", every)
    assert backend.get("every") == every


def test_what_is_missing_is_none(backend: Backend) -> None:
    assert backend.get("nothing") is None
    assert backend.keys("nothing/here") == []
    backend.put("a/b", b"1")
    assert backend.get("a") is None


def test_looking_leaves_nothing_behind(tmp_path: Path) -> None:
    backend = Backend(str(tmp_path / "mistyped" / "store"))
    assert backend.get("zarr.json") is None and backend.keys("receipts") == []
    backend.remove(["never"])
    backend.remove_tree("scratch")
    assert not list(tmp_path.iterdir())


def test_keys_are_the_names_right_under_a_prefix(backend: Backend) -> None:
    for key in ("r/b", "r/a", "r/deep/c", "r/deep/d", "rest/e"):
        backend.put(key, b"x")
    assert backend.keys("r") == ["a", "b", "deep"]
    assert backend.keys("r/deep") == ["c", "d"]


def test_removal(backend: Backend) -> None:
    for key in ("r/a", "r/b", "r/deep/c", "s/a"):
        backend.put(key, b"x")
    backend.remove(["r/a", "r/never"])
    assert backend.get("r/a") is None and backend.get("r/b") == b"x"
    backend.remove_tree("r")
    assert backend.keys("r") == [] and backend.get("r/deep/c") is None
    assert backend.get("s/a") == b"x"
    backend.remove_tree("r")


def test_two_places_do_not_mix() -> None:
    first, second = (Backend(f"memory://backend-{next(NUMBERS)}") for _ in range(2))
    first.put("k", b"1")
    assert second.get("k") is None


@pytest.mark.parametrize("call", ["write", "read"])
def test_a_file_in_place_of_the_folder(tmp_path: Path, call: str) -> None:
    """One line with the place and the reason, whatever the backend says."""
    (tmp_path / "file").write_text("not a folder")
    backend = Backend(str(tmp_path / "file" / "store.zarr"))
    with pytest.raises(StoreError, match=rf"^cannot {call} [^\n]*file/store\.zarr/a/b: [^\n]+$"):
        backend.put("a/b", b"1") if call == "write" else backend.get("a/b")


def test_nobody_has_given_credentials() -> None:
    """Clients then ask an address inside a cloud, which tells nobody anything elsewhere."""
    error = OSError("Error performing PUT http://169.254.169.254/latest/api/token in 3.1s, after 3 retries")
    assert "AWS_ACCESS_KEY_ID" in reason(error) and "169" not in reason(error)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreError, match="cannot write"):
            Backend(str(tmp_path / "store")).put("k", b"1")
    finally:
        tmp_path.chmod(0o700)


def test_an_unknown_protocol() -> None:
    with pytest.raises(StoreError, match="nonsense"):
        Backend("nonsense://bucket/x").put("k", b"1")


def test_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert normalise("x.zarr") == str(tmp_path / "x.zarr")
    assert normalise("x.zarr/") == str(tmp_path / "x.zarr")
    assert normalise("~/x.zarr") == "/home/somebody/x.zarr"
    assert normalise("file:///a/b/") == "/a/b"
    assert normalise("s3://bucket/x/") == "s3://bucket/x"
    assert is_local("/a/b") and not is_local("memory://a")


def test_options_are_hashable_and_ordered() -> None:
    assert freeze({"b": "2", "a": "1"}) == freeze((("a", "1"), ("b", "2"))) == (("a", "1"), ("b", "2"))
    assert freeze(None) == ()
    assert hash(Backend("s3://b", freeze({"key": "k"})))
