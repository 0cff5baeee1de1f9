"""Every example in a docstring runs as it is written, and every public name has one.

The examples may use ``streamimg3``, ``store`` (a finished store), ``association`` (its input) and ``folder`` (an empty one).
"""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import shutil
from pathlib import Path
from typing import Any

import pytest

import streamimg3
from streamimg3 import Session, run

MODULES = sorted(
    m.name for m in pkgutil.walk_packages(streamimg3.__path__, "streamimg3.") if not m.name.endswith("__main__")
)
FINDER = doctest.DocTestFinder(exclude_empty=True)


def examples(name: str) -> list[doctest.DocTest]:
    """The docstrings of a module that hold examples, read without importing it twice."""
    return [t for t in FINDER.find(importlib.import_module(name), name) if t.examples]


WITH_EXAMPLES = [n for n in MODULES if ">>>" in Path(importlib.util.find_spec(n).origin or "").read_text()]


@pytest.fixture(scope="module")
def finished(field: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small field after image3."""
    folder = tmp_path_factory.mktemp("examples")
    run("image3", str(field), session=Session(output_dir=str(folder), workers=1, report=False))
    return next(folder.glob("*.zarr"))


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_run(name: str, finished: Path, field: Path, tmp_path: Path) -> None:
    store = shutil.copytree(finished, tmp_path / finished.name)
    shared: dict[str, Any] = {
        "streamimg3": streamimg3, "store": str(store), "association": str(field), "folder": str(tmp_path),
    }  # fmt: skip
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    said: list[str] = []
    tests = examples(name)
    assert tests
    for test in tests:
        test.globs |= shared
        runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)


@pytest.mark.parametrize("name", [n for n in streamimg3.__all__ if n != "__version__"])
def test_public_names_have_examples(name: str) -> None:
    text = inspect.getdoc(getattr(streamimg3, name)) or ""
    assert "Examples\n--------\n>>> " in text, f"{name} has no example"
