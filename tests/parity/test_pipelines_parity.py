"""image2, coron3 and tso3 beside the reference, and the checklists that judge them."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from parity_pipelines import PIPELINES, Pipeline  # noqa: E402

NUMBERS = {"image2": range(1, 19), "tso3": range(19, 40), "coron3": range(40, 54)}  # lines of the specification
each = pytest.mark.parametrize("pipeline", PIPELINES.values(), ids=list(PIPELINES))


@pytest.mark.parity
@each
def test_small_run(pipeline: Pipeline, tmp_path: Path, peer_python: str) -> None:
    """Every statement that a few small cases can show holds, or differs on purpose."""
    work = Path(os.environ.get("STREAMIMG3_PARITY_WORK", tmp_path))
    command = [sys.executable, str(ROOT / "scripts" / "parity.py"), pipeline.name, "--small", "--work", str(work)]
    command += ["--peer-python", peer_python]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    judged = [row for row in rows if len(row) > 1 and row[0] in pipeline.small]
    assert len(judged) == sum(len(pipeline.checklist.of(case)) for case in pipeline.small) > 0


@each
def test_every_statement_can_be_judged(pipeline: Pipeline) -> None:
    """The checklist is complete; each line has products that show it, or tests that hold it."""
    lines, checks = pipeline.checklist.lines, pipeline.checklist.checks
    assert [line.number for line in lines] == list(NUMBERS[pipeline.name])
    for line in lines:
        assert line.cases or line.tests
        assert [name for name in line.tests if not (ROOT / "tests" / name).exists()] == []
    assert set(checks) == {line.number for line in lines if line.cases}
    assert set(pipeline.small) <= set(pipeline.cases)


@each
def test_every_difference_is_known(pipeline: Pipeline) -> None:
    """A typing error in the tables is found without running the reference."""
    shown = {(line.number, case) for line in pipeline.checklist.lines for case in line.cases}
    for known in pipeline.checklist.deliberate:
        assert all((known.line, case) in shown for case in known.cases)
        assert known.reason and 0 < known.limit <= math.inf
