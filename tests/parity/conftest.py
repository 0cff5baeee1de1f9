"""The reference's environment: the one that is given, or one that all tests of a run share."""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))


@pytest.fixture(scope="session")
def peer_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its interpreter; the first test that asks for it makes it, in whichever process that runs."""
    from peer import find_peer

    if given := os.environ.get("STREAMIMG3_PEER_PYTHON"):
        return given
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each has a folder of its own in the one of the run
        folder = folder.parent
    with open(folder / "peer.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return str(find_peer(folder / "peer", None).python)
