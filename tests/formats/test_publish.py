"""Products appear whole or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import obstore
import pytest
from obstore.store import MemoryStore

from streamimg3.errors import InputError, StoreError
from streamimg3.formats import upload
from streamimg3.formats.publish import Product, open_product


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    """The in-memory file system, empty."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    yield fs
    fs.store.clear()


def test_local_product(tmp_path: Path) -> None:
    """Missing folders are made; nothing but the product remains, with ordinary permissions."""
    path = tmp_path / "new" / "folder" / "p.fits"
    with open_product(str(path), {}) as product:
        product.write(b"abc")
        assert not path.exists()
        product.write(memoryview(b"def"))
    assert path.read_bytes() == b"abcdef"
    assert os.listdir(path.parent) == ["p.fits"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_failure_keeps_the_product_of_before(tmp_path: Path) -> None:
    """An exception inside the context leaves what was there, and no partial file."""
    path = tmp_path / "p.fits"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="boom"), open_product(str(path), {}) as product:
        product.write(b"new")
        raise RuntimeError("boom")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["p.fits"]


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    """Partial files of the same name go, those of other names stay."""
    (tmp_path / ".p.fits.0123456789ab.partial").write_bytes(b"x")
    (tmp_path / ".q.fits.0123456789ab.partial").write_bytes(b"x")
    with open_product(str(tmp_path / "p.fits"), {}) as product:
        product.write(b"abc")
    assert sorted(os.listdir(tmp_path)) == [".q.fits.0123456789ab.partial", "p.fits"]


def test_names_with_pattern_characters(tmp_path: Path) -> None:
    """Brackets and stars in a name are no patterns."""
    (tmp_path / ".pxq.fits.0123456789ab.partial").write_bytes(b"x")
    with open_product(str(tmp_path / "p[x]*q.fits"), {}) as product:
        product.write(b"abc")
    assert sorted(os.listdir(tmp_path)) == [".pxq.fits.0123456789ab.partial", "p[x]*q.fits"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_full_disk_is_one_line() -> None:
    """A write for which there is no room names the product and what to do."""
    with (
        open("/dev/full", "wb", buffering=0) as full,
        pytest.raises(
            StoreError, match=r"^cannot write /out/p\.fits \(No space left on device\): free some space"
        ) as info,
    ):
        Product(full, "/out/p.fits").write(b"abc")
    assert "\n" not in str(info.value)


def test_place_that_cannot_be_written(tmp_path: Path) -> None:
    """A folder that cannot be made, and a folder in place of the product, are one line each."""
    (tmp_path / "file").write_bytes(b"")
    with (
        pytest.raises(StoreError, match=r"cannot write .*file/p .*: give an output folder"),
        open_product(str(tmp_path / "file/p"), {}),
    ):
        pass
    with pytest.raises(StoreError, match="there is a folder of this name"), open_product(str(tmp_path), {}):
        pass


def test_url(memory: fsspec.AbstractFileSystem) -> None:
    """Behind a URL the product appears at the end; leftovers of the same name go."""
    memory.pipe("/out/.p.fits.0123456789ab.partial", b"x")
    with open_product("memory://out/p.fits", {}) as product:
        product.write(b"abc")
        assert not memory.exists("/out/p.fits")
    assert memory.find("/") == ["/out/p.fits"]
    assert memory.cat("/out/p.fits") == b"abc"


def test_url_failure(memory: fsspec.AbstractFileSystem) -> None:
    """An exception leaves nothing behind a URL, and what was there before stays."""
    memory.pipe("/out/p.fits", b"old")
    with pytest.raises(RuntimeError, match="boom"), open_product("memory://out/p.fits", {}) as product:
        product.write(b"new")
        raise RuntimeError("boom")
    assert memory.find("/") == ["/out/p.fits"]
    assert memory.cat("/out/p.fits") == b"old"


def test_unknown_kind_of_url() -> None:
    """A URL nothing can open is bad input."""
    with pytest.raises(InputError, match="nosuch://"), open_product("nosuch://a/p.fits", {}):
        pass


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    """An object store in memory, in place of the one that a URL names."""
    store = MemoryStore()
    monkeypatch.setattr(upload, "object_store", lambda url, options: store)
    return store


def _names(store: MemoryStore) -> list[str]:
    return [item["path"] for page in obstore.list(store) for item in page]


@pytest.mark.parametrize("size", [0, 3, upload.PART, 2 * upload.PART + 5])
def test_upload_is_committed_or_discarded(objects: MemoryStore, size: int) -> None:
    """Nothing is there before the end, and nothing at all after a failure, of small files and of large ones."""
    data = np.random.default_rng(size).bytes(size)
    with pytest.raises(RuntimeError, match="boom"), open_product("s3://b/p.fits", {}) as product:
        product.write(data)
        raise RuntimeError("boom")
    assert _names(objects) == []
    with open_product("s3://b/p.fits", {}) as product:
        for start in range(0, size, 7_000_000):
            product.write(data[start : start + 7_000_000])
        assert _names(objects) == []
    assert bytes(obstore.get(objects, "p.fits").bytes()) == data


def test_an_upload_that_breaks_off_is_told(objects: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong beside the writing is one line, and ends it soon."""

    def put(store: MemoryStore, name: str, pieces: object, **how: object) -> None:
        raise OSError("the network is down")

    monkeypatch.setattr(obstore, "put", put)
    with (
        pytest.raises(StoreError, match=r"^cannot write s3://b/p.fits \(the network is down\): check the address"),
        open_product("s3://b/p.fits", {}) as product,
    ):
        for _ in range(10):
            product.write(bytes(upload.PART // 2))
    assert _names(objects) == []
