"""Simulated fields for the tests of memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import streamimg3


@pytest.fixture(autouse=True)
def _found_by_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let subprocesses import the package that is under test."""
    path = os.pathsep.join([str(Path(streamimg3.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)


def simulate(folder: Path, *options: object) -> str:
    """Simulate a field in a process of its own and return its association."""
    path = os.pathsep.join([str(Path(streamimg3.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "streamimg3", "simulate", str(folder), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path})
    return done.stdout.splitlines()[-1]


@pytest.fixture(scope="session")
def preset_c(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """24 exposures of 2048 x 2048 (2.7 GB)."""
    folder = tmp_path_factory.mktemp("preset_c")
    yield simulate(folder, "--preset", "c")
    shutil.rmtree(folder)
