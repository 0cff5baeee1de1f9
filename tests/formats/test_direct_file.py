"""Products written past the page cache are what was written, on any file system."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from streamimg3.formats import direct_file
from streamimg3.formats.direct_file import DirectFile


def _written(path: Path, sizes: list[int]) -> bytes:
    """Write pieces of these sizes; returns what they are."""
    noise = np.random.default_rng(1).integers(0, 256, sum(sizes), np.uint8).tobytes()
    file = DirectFile(str(path))
    at = 0
    for size in sizes:
        rest = memoryview(noise[at : at + size])
        while len(rest):
            rest = rest[file.write(rest) :]
        at += size
    file.sync()
    file.close()
    return noise


@pytest.mark.parametrize("sizes", [[], [1], [2880, 5, 4096], [2**21], [2**21 - 1, 2], [3 * 2**21 + 17, 2**20]])
@pytest.mark.parametrize("kind", ["as it is", "refused at once", "refused when written"])
def test_any_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[int], kind: str) -> None:
    """Also where the file system refuses direct writing, when it is asked or when it is written to."""
    if kind == "refused at once":
        monkeypatch.setattr(DirectFile, "_switch", lambda self, direct: False)
    if kind == "refused when written":
        monkeypatch.setattr(os, "write", _picky(os.write))
        monkeypatch.setattr(DirectFile, "_switch", lambda self, direct: direct)
    noise = _written(tmp_path / "x", sizes)
    assert (tmp_path / "x").read_bytes() == noise


def _picky(write: Callable[[int, memoryview], int]) -> Callable[[int, memoryview], int]:
    """A system call that refuses its first whole buffer, then takes a part only."""
    calls = []

    def picky(file: int, data: memoryview) -> int:
        calls.append(len(data))
        if len(data) == 2**21 and calls.count(2**21) == 1:
            raise OSError(errno.EINVAL, "Invalid argument")
        return write(file, data[: max(1, len(data) // 2)])

    return picky


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the disk comes to light at the next buffer, or at the end at the latest."""

    def full(file: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    file = DirectFile(str(tmp_path / "x"))
    monkeypatch.setattr(os, "write", full)
    file.write(bytes(direct_file._BUFFER))
    with pytest.raises(OSError, match="No space"):
        file.sync()
    file.close()
