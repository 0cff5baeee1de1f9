"""How a declared memory is shared out, and what is in use (Linux /proc; elsewhere this process's own peak)."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import resource
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from streamimg3.engine.task import Task
from streamimg3.errors import BudgetError, InputError

MIB = 2**20
# Resident memory of idle processes, measured with numpy, zarr, numba and the compiled kernels loaded, rounded up
WORKER = 190 * MIB
SERVER = 40 * MIB  # the fork server that starts workers, and Python's resource tracker
SLACK = 28 * MIB  # allocator and codec buffers that no array accounts for
MORE = 16 * MIB  # the same in each further process
USABLE = 0.75  # of the limit of a cluster's worker: Dask holds workers up at 0.8 and ends them at 0.95
_UNITS = {
    "": 1,
    "b": 1,
    "k": 1000,
    "kb": 1000,
    "kib": 2**10,
    "m": 10**6,
    "mb": 10**6,
    "mib": 2**20,
    "g": 10**9,
    "gb": 10**9,
    "gib": 2**30,
    "t": 10**12,
    "tb": 10**12,
    "tib": 2**40,
}


def parse_size(text: str | int) -> int:
    """Return a number of bytes from text such as ``1GiB`` or ``512 MB``.

    Raises
    ------
    InputError
        If the text is no size.

    Examples
    --------
    >>> parse_size("512MiB")
    536870912
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]*)\s*", str(text))
    if not match or match[2].lower() not in _UNITS or float(match[1]) <= 0:
        raise InputError(f"'{text}' is no amount of memory: write for example 512MiB, 2GiB or 4e9 as 4GB")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def show_size(nbytes: float) -> str:
    """Return bytes in MiB or GiB for people.

    Examples
    --------
    >>> show_size(3 * 2**30)
    '3.0 GiB'
    """
    return f"{nbytes / 2**30:.1f} GiB" if nbytes >= 2**30 else f"{nbytes / MIB:.0f} MiB"


def resident(pid: int | str = "self") -> int:
    """Return the resident bytes of one process, 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        if pid == "self":
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            return peak if sys.platform == "darwin" else peak * 1024
        return 0


def family(pid: int) -> list[int]:
    """Return a process and all its descendants (Linux)."""
    found, queue = [], [pid]
    while queue:
        p = queue.pop()
        found.append(p)
        try:
            for thread in os.listdir(f"/proc/{p}/task"):
                with open(f"/proc/{p}/task/{thread}/children") as f:
                    queue += [int(c) for c in f.read().split()]
        except OSError:
            continue
    return found


def resident_family() -> int:
    """Return the resident bytes of this process and its descendants (pages shared between them count in each)."""
    return resident() + sum(resident(p) for p in family(os.getpid())[1:])


def steady_allocator() -> None:
    """Make glibc give freed arrays back to the system at once, so that memory does not creep up from task to task.

    Left alone it raises its threshold for private mappings up to 32 MiB and keeps an arena per codec thread; other C
    libraries have no such call and are left as they are.
    """
    trim, mmap, arenas = -1, -3, -8  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX of <malloc.h>
    _allocator_options({mmap: 4 * MIB, trim: 4 * MIB, arenas: 2})


@contextmanager
def roomy_allocator(nbytes: int) -> Iterator[None]:
    """Let the allocator keep so many bytes of freed memory for a while, for work that asks for the same again and again.

    Bands of a dozen planes are several MiB, that the system would otherwise take away and hand out again, page by page.
    """
    trim = -1
    _allocator_options({trim: nbytes})
    try:
        yield
    finally:
        _allocator_options({trim: 4 * MIB})
        give_back()


def _allocator_options(values: Mapping[int, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in values.items():
            mallopt(option, value)


def seldom_collect() -> None:
    """Have Python look for garbage less often: metadata trees are many small objects, of which few are garbage.

    Not seldom, though: a WCS that is used no more is some thousand objects, half a MiB, and goes only then.
    """
    gc.set_threshold(10_000, 3, 1)


def give_back() -> None:
    """Return what the allocator keeps of freed memory to the system (glibc; elsewhere nothing happens)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


class Watch:
    """Samples the resident memory of driver and workers while it is open."""

    def __init__(self, interval: float = 0.05) -> None:
        self.peak, self.now = 0, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(interval,), daemon=True)

    def _run(self, interval: float) -> None:
        while not self._stop.wait(interval):
            self.sample()

    def sample(self) -> None:
        """Take one sample now."""
        self.now = resident_family()
        self.peak = max(self.peak, self.now)

    def __enter__(self) -> Watch:
        self.sample()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        self.sample()


@dataclass(frozen=True)
class Share:
    """The outcome of sharing a budget: workers to use, bytes for each task, and the projected total."""

    workers: int
    each: int
    projected: int


def share(memory: int | None, workers: int, tasks: Sequence[Task], helpers: int | None = None) -> Share:
    """Share a budget between workers so that the largest task fits.

    Parameters
    ----------
    memory : int or None
        Declared bytes for driver and workers together; None = no bound.
    workers : int
        Most workers wanted; 1 = work in the driver's own process.
    tasks : sequence of Task
        What is to be done.
    helpers : int, optional
        Bytes that so many workers have resident now, while idle; default what fresh ones will have.

    Raises
    ------
    BudgetError
        If not even one worker can hold the largest task in its thinnest bands.
    """
    most, least = max(t.nbytes for t in tasks), max(t.least for t in tasks)
    libraries = max(t.libraries for t in tasks)
    driver = resident() + SLACK

    def overhead(n: int) -> int:
        idle = _overhead(n) if helpers is None or n != workers else helpers
        return idle + n * libraries + (n - 1) * MORE if n > 1 else idle

    if memory is None:
        return Share(workers, most, driver + overhead(workers) + workers * most)
    for n in range(min(workers, len(tasks)), 0, -1):
        each = (memory - driver - overhead(n)) // n
        if each >= least:
            each = min(each, most)
            return Share(n, each, driver + overhead(n) + n * each)
    largest = max(tasks, key=lambda t: t.least)
    raise BudgetError(
        f"a memory of {show_size(memory)} cannot hold task {largest.key}, which needs {show_size(largest.least)} beside the"
        f" {show_size(driver)} of the program itself: the smallest budget that works is --memory {smallest(tasks) // MIB}MiB"
    )


def smallest(tasks: Sequence[Task]) -> int:
    """Return the smallest budget with which this process can do tasks by itself, in whole steps of 8 MiB."""
    step = 8 * MIB  # what is resident differs by as much from run to run
    return -(-(resident() + SLACK + max((t.least for t in tasks), default=0) + step) // step) * step


def share_each(limit: int | None, floor: int, workers: int, tasks: Sequence[Task]) -> Share:
    """Share where every worker has a memory limit of its own, as those of a cluster have.

    Parameters
    ----------
    limit : int or None
        Bytes that each worker may have; None = no bound.
    floor : int
        Bytes that a worker has resident while idle.
    workers : int
        How many there are.
    tasks : sequence of Task
        What is to be done.

    Raises
    ------
    BudgetError
        If a worker cannot hold the largest task in its thinnest bands.
    """
    most, largest = max(t.nbytes for t in tasks), max(tasks, key=lambda t: t.least)
    idle = floor + SLACK + max(t.libraries for t in tasks)
    if limit is None:
        return Share(workers, most, resident() + workers * (idle + most))
    each = min(int(USABLE * limit) - idle, most)
    if each < largest.least:
        needed = -(-int((idle + largest.least) / USABLE) // MIB)
        raise BudgetError(
            f"the cluster's workers may have {show_size(limit)} each, which cannot hold task {largest.key}: it needs"
            f" {show_size(largest.least)} beside the {show_size(idle)} of the worker itself;"
            f" start them with a memory limit of at least {needed}MiB"
        )
    return Share(workers, each, resident() + workers * (idle + each))


def _overhead(workers: int) -> int:
    """Resident bytes of idle helper processes."""
    return 0 if workers == 1 else SERVER + workers * WORKER
