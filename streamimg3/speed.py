"""How fast this machine is: processor seconds by step, timed once on a small simulated field and kept in the user's cache."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from streamimg3.engine import Outcome, Task
from streamimg3.engine.runner import Progress

_VERSION = 1
# Stages by the step they belong to, where their names do not begin with it
_BELONGS = {"stars": "tweakreg"}


def path() -> Path:
    """Return where the timing is kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "streamimg3" / "speed.json"


def pixels(task: Task) -> int:
    """Return the pixels that a task reads, or if it reads none, writes."""
    return sum((y1 - y0) * (x1 - x0) for _, (y0, x0, y1, x1) in task.reads or task.writes)


@dataclass(frozen=True)
class Speed:
    """Processor seconds per million pixels of a step's tasks (``pixels``).

    Parameters
    ----------
    per_mpix : mapping
        By step.
    """

    per_mpix: Mapping[str, float]

    def seconds(self, step: str, tasks: Sequence[Task]) -> float | None:
        """Return the processor seconds that some tasks will take, None if such a step was not timed."""
        rate = self.per_mpix.get(step)
        return None if rate is None else rate * sum(map(pixels, tasks)) / 1e6

    @classmethod
    def kept(cls) -> Speed | None:
        """Return what this machine was timed at, None if it was not."""
        try:
            tree = json.loads(path().read_text())
            return cls(dict(tree["per_mpix"])) if tree["version"] == _VERSION else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self) -> None:
        """Remember it."""
        path().parent.mkdir(parents=True, exist_ok=True)
        path().write_text(json.dumps({"version": _VERSION, "per_mpix": dict(self.per_mpix)}))


@dataclass
class Stopwatch(Progress):
    """Adds up what the stages of a run take."""

    cpu_s: dict[str, float] = field(default_factory=dict)

    def finish(self, stage: str, outcome: Outcome) -> None:
        """See :class:`Progress`."""
        step = _BELONGS.get(stage, stage.partition("-")[0])
        self.cpu_s[step] = self.cpu_s.get(step, 0.0) + outcome.cpu_s


def measure() -> Speed:
    """Run image3 on a simulated field of eight 512² exposures, twice, and keep what the second run takes (a minute)."""
    from streamimg3 import api
    from streamimg3.formats.simulate import Field, simulate

    with tempfile.TemporaryDirectory(prefix="streamimg3-") as folder:
        association = str(simulate(Path(folder) / "in", Field(shape=(512, 512), dithers=4, detectors=2)))
        for number in range(2):  # the first one loads and compiles
            watch = Stopwatch()
            session = api.Session(output_dir=f"{folder}/{number}", workers=1, progress=watch)
            obs = api.run("image3", association, session=session)
        plans = api.plan("image3", obs.url, {}, api.Session(output_dir=f"{folder}/plan", workers=1))
        areas = {step: sum(map(pixels, tasks)) for step, tasks in plans.items()}
        areas["ingest"] = sum(r.shape[0] * r.shape[1] for r in obs.records())
    speed = Speed(
        {step: watch.cpu_s[step] / area * 1e6 for step, area in areas.items() if area and step in watch.cpu_s}
    )
    speed.keep()
    return speed
