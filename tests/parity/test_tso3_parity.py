"""tso3 beside the reference, and the checklist that judges it."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from parity_tso3 import SMALL  # noqa: E402
from peer_tso3 import CASES  # noqa: E402
from tso3_checks import CHECKS, DELIBERATE, LINES  # noqa: E402


@pytest.mark.parity
def test_small_tso3_run(tmp_path: Path) -> None:
    """Every statement that a few small time series can show holds, or differs on purpose."""
    work = Path(os.environ.get("STREAMIMG3_PARITY_WORK", tmp_path))
    command = [sys.executable, str(ROOT / "scripts" / "parity.py"), "tso3", "--small", "--work", str(work)]
    if python := os.environ.get("STREAMIMG3_PEER_PYTHON"):
        command += ["--peer-python", python]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    wanted = [(line, case) for line in LINES for case in line.cases if case in SMALL]
    assert len([row for row in rows if len(row) > 1 and row[0] in SMALL]) == len(wanted)


def test_every_statement_can_be_judged() -> None:
    """The checklist is complete; each line has products that show it, or tests that hold it."""
    assert [line.number for line in LINES] == list(range(19, 40))
    for line in LINES:
        assert line.cases or line.tests
        assert not line.cases or line.number in CHECKS
        assert [name for name in line.tests if not (ROOT / "tests" / name).exists()] == []
    assert set(CHECKS) == {line.number for line in LINES if line.cases}


def test_every_difference_is_known() -> None:
    """A typing error in the tables is found without running the reference."""
    shown = {(line.number, case) for line in LINES for case in line.cases}
    for known in DELIBERATE:
        assert set(known.cases) <= set(CASES)
        assert all((known.line, case) in shown for case in known.cases)
        assert known.reason and 0 < known.limit <= math.inf
