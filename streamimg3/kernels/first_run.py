"""The loops are compiled once for an installation, by a process of its own: its memory is given back before work starts."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

_HERE = Path(__file__).parent


def compiled() -> bool:
    """Whether numba's cache holds the loops as they are now, as far as an earlier `compile_loops` has noted."""
    name = _name()
    return any((folder / name).exists() for folder in _folders())


def compile_loops() -> None:
    """Compile all loops into numba's cache, and note that they are there.

    Raises
    ------
    RuntimeError
        If a loop cannot be compiled; the message is the compiler's last line.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "import streamimg3.kernels.ready, streamimg3.kernels.ready_series"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(f"the loops cannot be compiled: {said[-1]}")
    _note()


def _folders() -> list[Path]:
    """Where a note may be: beside numba's cache, so that it goes when that is emptied, or in the user's cache."""
    given = os.environ.get("NUMBA_CACHE_DIR")
    return [Path(given)] if given else [_HERE / "__pycache__", Path.home() / ".cache" / "streamimg3"]


def _name() -> str:
    """Name of the note: numba looks at the same things to tell whether what it has is still good."""
    sources = [(p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(_HERE.glob("*.py"))]
    facts = (str(_HERE), version("numba"), version("numpy"), sys.version, *sources)
    return f"compiled-{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}"


def _note() -> None:
    """Leave a note in the first folder that takes it; where none does, the loops are looked at again in every run."""
    for folder in _folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for old in folder.glob("compiled-*"):
                old.unlink(missing_ok=True)
            (folder / _name()).touch()
        except OSError:
            continue
        return
