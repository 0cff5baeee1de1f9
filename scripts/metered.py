"""Run a program and say what it cost: CPU, wall time and the peak memory of its whole process tree."""

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cost:
    """CPU (user + system, children included) and wall in seconds, peak resident memory of the process tree in bytes."""

    cpu_s: float
    wall_s: float
    peak_rss: float


def run_metered(command: Sequence[str], log: Path, folder: Path, environment: Mapping[str, str]) -> Cost:
    """Run `command` in `folder` with output to `log` and measure it.

    Memory is the sum of the resident sets of the process and its descendants, sampled every 20 ms; pages shared between
    them count once per process, so the figure is an upper bound.

    Raises
    ------
    RuntimeError
        If the exit code is not 0; the message names command, code and log.
    """
    started = time.monotonic()
    with log.open("w") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, cwd=folder, env=environment)
    peak, spent, stop = [0], dict[int, float](), threading.Event()
    sampler = threading.Thread(target=_sample, args=(process.pid, peak, spent, stop))
    sampler.start()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # already reaped: Popen must not wait for it again
    stop.set()
    sampler.join()
    if process.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
        raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}, see {log}\n{tail}")
    # Workers of a fork server are not waited for by the process itself: what they were last seen to have used counts.
    cpu_s = max(usage.ru_utime + usage.ru_stime, sum(spent.values()))
    return Cost(cpu_s, time.monotonic() - started, float(peak[0]))


def _sample(root: int, peak: list[int], spent: dict[int, float], stop: threading.Event) -> None:
    while not stop.wait(0.02):
        tree = family(root)
        peak[0] = max(peak[0], sum(_rss(pid) for pid in tree))
        for pid in tree:
            spent[pid] = max(spent.get(pid, 0.0), _cpu(pid))


def _cpu(pid: int) -> float:
    """User and system seconds of a process, without its children; 0 once it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


def family(root: int) -> set[int]:
    """Process `root` and all its descendants."""
    processes = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    parents = {pid: _parent(pid) for pid in processes}
    tree = {root}
    grown = True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in tree} - tree
        tree |= more
        grown = bool(more)
    return tree


def _parent(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # ended meanwhile
        return -1
    return int(stat.rpartition(")")[2].split()[1])


def _rss(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except OSError:  # ended meanwhile
        return 0
