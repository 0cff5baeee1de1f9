"""The loops are compiled once for an installation, and again when anything of them changes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from streamimg3.kernels import first_run


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_note_is_good_as_long_as_the_sources_are(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The note goes with numba's cache, and holds for these very sources."""
    assert not first_run.compiled()
    first_run._note()
    assert first_run.compiled() and len(list(cache.iterdir())) == 1
    with monkeypatch.context() as other:
        other.setattr(first_run, "version", lambda name: "another")
        assert not first_run.compiled()
        first_run._note()
        assert first_run.compiled() and len(list(cache.iterdir())) == 1
    assert not first_run.compiled()


def test_a_place_that_takes_no_note(cache: Path) -> None:
    """A folder that cannot be made is no failure: the next run looks again."""
    cache.write_text("a file")
    first_run._note()
    assert not first_run.compiled()


def test_what_the_compiler_says_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_run.sys, "executable", shutil.which("false"))
    with pytest.raises(RuntimeError, match="cannot be compiled: exit code 1"):
        first_run.compile_loops()
    assert not first_run.compiled()
