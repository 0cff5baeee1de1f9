"""How a run tells what it does: a bar on a terminal, plain lines elsewhere, JSON lines for machines."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

from streamimg3.engine.budget import show_size
from streamimg3.engine.runner import Outcome, Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bar


class Reporter(Progress):
    """Writes progress to standard error.

    Parameters
    ----------
    log_json : str or None
        File for one JSON line per event.
    quiet : bool
        Only the JSON lines.
    """

    def __init__(self, log_json: str | None = None, quiet: bool = False) -> None:
        self._log: TextIO | None = open(log_json, "a", buffering=1) if log_json else None  # noqa: SIM115 (closed on exit)
        self._quiet = quiet
        self._bar: Bar | None = None
        self._started = 0.0
        self._total = self._done = 0
        self._spoken = 0.0

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *exc: object) -> None:
        self._close_bar()
        if self._log:
            self._log.close()

    def _event(self, **what: Any) -> None:
        if self._log:
            self._log.write(json.dumps({"time": round(time.time(), 3), **what}) + "\n")

    def _say(self, text: str) -> None:
        if not self._quiet:
            print(text, file=sys.stderr, flush=True)

    def start(self, stage: str, total: int, kept: int) -> None:
        """See :class:`Progress`."""
        self._event(event="start", stage=stage, tasks=total, kept=kept)
        self._started = self._spoken = time.monotonic()
        self._total, self._done = total - kept, 0
        if kept:
            self._say(f"{stage}: {kept} of {total} tasks were done before")
        if sys.stderr.isatty() and not self._quiet and total > kept:
            self._open_bar(stage)

    def _open_bar(self, stage: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description:>12}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[rss]}"),
        )  # fmt: skip
        self._bar = Bar(*columns, console=Console(stderr=True))
        self._bar.start()
        self._bar.add_task(stage, total=self._total, rate="", rss="")

    def _close_bar(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None

    def advance(self, stage: str, key: str, rss: int) -> None:
        """See :class:`Progress`."""
        self._done += 1
        self._event(event="task", stage=stage, key=key, rss=rss)
        passed = time.monotonic() - self._started
        rate = f"{self._done / passed:.1f}/s" if passed > 0 else ""
        if self._bar:
            self._bar.update(self._bar.task_ids[0], advance=1, rate=rate, rss=show_size(rss))
        elif time.monotonic() - self._spoken > 10:
            self._spoken = time.monotonic()
            self._say(f"{stage}: {self._done} of {self._total} tasks, {rate}, {show_size(rss)} in use")

    def finish(self, stage: str, outcome: Outcome) -> None:
        """See :class:`Progress`."""
        self._close_bar()
        self._event(
            event="stage", stage=stage, done=outcome.tasks_done, kept=outcome.tasks_kept,
            retried=outcome.retried, pixels=outcome.pixels,
            wall_s=outcome.wall_s, cpu_s=outcome.cpu_s, peak_rss=outcome.peak_rss, projected=outcome.projected, split=outcome.split,
        )  # fmt: skip
        if not outcome.tasks_done:
            return
        mpix, seconds = outcome.pixels / 1e6, max(outcome.wall_s, 1e-9)
        pixels, rate = (f", {mpix:.1f} Mpix", f"{mpix / seconds:.1f} Mpix/s, ") if outcome.pixels else ("", "")
        self._say(
            f"{stage}: {outcome.tasks_done} tasks{pixels} in {outcome.wall_s:.1f} s ({rate}{outcome.cpu_s:.1f} s of processor"
            f" time), peak memory {show_size(outcome.peak_rss)}"
        )

    def note(self, text: str) -> None:
        """See :class:`Progress`."""
        self._event(event="note", text=text)
        self._say(text)
