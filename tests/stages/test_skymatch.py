"""The skymatch step: parameters, levels, memory, what is kept, and what it says of exposures it cannot match."""

from __future__ import annotations

import dataclasses
import shutil
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from streamimg3 import Observation, Session, ingest
from streamimg3.engine import Runner, Task
from streamimg3.engine.runner import Progress
from streamimg3.errors import BudgetError, InputError, TaskError
from streamimg3.formats.simulate import Field, simulate
from streamimg3.geometry import Box
from streamimg3.kernels.sky_level import Clipping, sky_level
from streamimg3.sky.correction import Correction
from streamimg3.sky.overlap import Overlap, overlaps
from streamimg3.stages import sky_measure
from streamimg3.stages import skymatch as step
from streamimg3.stages.sky_measure import Job, Memory, Region, measure
from streamimg3.stages.skymatch import Params
from streamimg3.store.documents import AlignedExposure, AlignmentDocument, SkyDocument, SkyListDocument

SHAPE = (192, 192)


@pytest.fixture
def obs(ingested: Observation, tmp_path: Path) -> Observation:
    """A copy of the shared store that may be changed."""
    shutil.copytree(ingested.url, tmp_path / "field.zarr")
    return Observation.at(str(tmp_path / "field.zarr"))


class Notes(Progress):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def run(obs: Observation, runner: Runner | None = None, **values: Any) -> SkyDocument:
    return step.run(obs, Params(**values), runner or Runner())


def levels(document: SkyDocument) -> NDArray[np.float64]:
    return np.array(document.levels, dtype=float)


def numbers(document: SkyDocument) -> SkyDocument:
    """Without what it took."""
    return replace(document, cost=SkyDocument().cost)


def change_records(obs: Observation, **values: Any) -> None:
    obs.write_records([replace(r, **values) for r in obs.records()])


def good_pixels(obs: Observation, index: int, bad: int = 513) -> NDArray[np.float32]:
    exposure, box = obs.exposures()[index], Box.of_shape(SHAPE)
    sci, dq = exposure.read("sci", box), exposure.read("dq", box)
    good = np.isfinite(sci) & ((dq & np.uint32(bad)) == 0)
    return np.asarray(sci[good], np.float32)


# ---------------------------------------------------------------- parameters
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("skymethod", "mean"), ("skystat", "average"), ("stepsize", 0), ("nclip", -1), ("lsigma", 0.0), ("usigma", -1.0),
        ("binwidth", 0.0), ("binwidth", float("inf")), ("lower", float("nan")), ("upper", float("inf")), ("dqbits", "HOTT"),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^skymatch\.{name} = "):
        Params(**{name: value})


def test_the_method_user_needs_a_list() -> None:
    with pytest.raises(InputError, match=r"^skymatch\.skylist = None: it must be a file"):
        Params(skymethod="user")


def test_defaults_are_the_references() -> None:
    """Those of jwst 3.0.0 (spec §5.1)."""
    assert dataclasses.asdict(Params()) == {
        "skymethod": "match", "match_down": True, "subtract": False, "skylist": None, "stepsize": None, "skystat": "mode",
        "dqbits": "~DO_NOT_USE+NON_SCIENCE", "lower": None, "upper": None, "nclip": 5, "lsigma": 4.0, "usigma": 4.0,
        "binwidth": 0.1,
    }  # fmt: skip


# ---------------------------------------------------------------- levels
def test_levels_follow_what_is_added_to_exposures(obs: Observation) -> None:
    """Constants added to the pixels come back as levels; 2e-7 is the rounding of float32 pixels of about 0.5."""
    before = levels(run(obs, skystat="median"))
    added = np.array([0.1, 0.0, 0.3, 0.05])
    for exposure, constant in zip(obs.exposures(), added, strict=True):
        sci = exposure.read("sci", Box.of_shape(SHAPE)) + np.float32(constant)
        obs.write(f"{exposure.group}/sci", (exposure.record.row,), Box.of_shape(SHAPE), sci)
    change_records(obs, checksums={"sci": "changed"})
    after = levels(run(obs, skystat="median"))
    expected = before + added
    np.testing.assert_allclose(after, expected - expected.min(), rtol=0, atol=2e-7)


@pytest.mark.parametrize("match_down", [True, False])
def test_the_reference_exposure_keeps_its_sky(obs: Observation, match_down: bool) -> None:
    found = levels(run(obs, match_down=match_down))
    assert (found.min() if match_down else found.max()) == 0.0
    assert np.ptp(found) > 0.0


def test_local_levels_are_those_of_all_good_pixels(obs: Observation) -> None:
    for statistic in ("mode", "mean"):
        found = run(obs, skymethod="local", skystat=statistic)
        values = [good_pixels(obs, k) for k in range(4)]
        expected = [sky_level(lambda v=v: [v], Clipping(statistic)) for v in values]  # type: ignore[misc]
        assert list(found.levels) == [e and e[0] for e in expected]


def test_global_takes_the_lowest_local_level(obs: Observation) -> None:
    local = levels(run(obs, skymethod="local"))
    assert run(obs, skymethod="global").levels == (local.min(),) * 4


@pytest.mark.parametrize("subtract", [False, True])
def test_global_and_match_adds_one_level_to_all(obs: Observation, subtract: bool) -> None:
    """With ``subtract`` the levels are measured on what is left of the pixels, which rounds a little differently."""
    matched = levels(run(obs, subtract=subtract))
    local = levels(run(obs, skymethod="local", subtract=subtract))
    both = levels(run(obs, skymethod="global+match", subtract=subtract))
    np.testing.assert_allclose(both - matched, (local - matched).min(), rtol=0, atol=1e-6 if subtract else 1e-12)


def test_exposures_of_a_group_share_one_level(obs: Observation) -> None:
    records = obs.records()
    obs.write_records([replace(r, group_id="ab"[k // 2]) for k, r in enumerate(records)])
    found = run(obs)
    assert found.items == ((0, 1), (2, 3))
    assert found.levels[0] == found.levels[1] and found.levels[2] == found.levels[3]
    (overlap,) = found.overlaps
    assert overlap.items == (0, 1) and min(overlap.pixels) > 192 * 192


def test_flags_and_limits_leave_pixels_out(obs: Observation) -> None:
    exposure, box = obs.exposures()[0], Box(90, 90, 100, 110)  # 10 rows: 100 pixels DO_NOT_USE, 100 pixels HOT
    flags = np.zeros(box.shape, np.uint32)
    flags[:, :10], flags[:, 10:] = 1, 2048
    obs.write(f"{exposure.group}/dq", (exposure.record.row,), box, flags)
    sci = exposure.read("sci", box)
    obs.write(f"{exposure.group}/sci", (exposure.record.row,), box, np.nan_to_num(sci, nan=0.3))
    ways = {"usual": Params(), "any": Params(dqbits="0"), "none": Params(dqbits=None)}
    box = Box.of_shape(SHAPE)
    finite = np.isfinite(exposure.read("sci", box))
    dq = exposure.read("dq", box)
    for way, bad in (("usual", 513), ("any", 0xFFFFFFFF), ("none", 0)):
        (job, *_) = step._whole_jobs(obs.exposures(), ways[way])
        (found,) = measure(obs, job, Clipping(nclip=0), 10**9)
        assert found.pixels == (finite & ((dq & np.uint32(bad)) == 0)).sum()
    limited = run(obs, lower=0.3, upper=0.4, skymethod="local", skystat="mean")
    assert all(level is not None and 0.3 < level < 0.4 for level in limited.levels)


def test_other_observatories_flags_all_count_unless_told(obs: Observation) -> None:
    change_records(obs, is_jwst=False)
    assert run(obs, skymethod="local").levels[0] == (
        sky_level(lambda: [good_pixels(obs, 0, 0xFFFFFFFF)], Clipping()) or (None,)
    )[0]  # fmt: skip
    assert step.plan(obs, Params(dqbits=None)) and run(obs, dqbits="4").status == "COMPLETE"


def test_exposures_without_flags_are_measured(obs: Observation) -> None:
    change_records(obs, planes=("sci", "err"))
    found = run(obs, skymethod="local", skystat="mean").levels[1]
    assert found == (sky_level(lambda: [good_pixels(obs, 1, 0)], Clipping("mean")) or (None,))[0]


# ---------------------------------------------------------------- earlier levels
def test_a_level_taken_off_before_is_added_to(obs: Observation) -> None:
    fresh = levels(run(obs, subtract=True))
    change_records(obs, bkgsub=True, bkglevel=0.25)
    document = run(obs, subtract=True)
    assert document.subtract
    np.testing.assert_allclose(levels(document), fresh + 0.25, rtol=1e-15)


def test_a_level_that_was_only_recorded_is_replaced(obs: Observation) -> None:
    fresh = run(obs).levels
    change_records(obs, bkgsub=False, bkglevel=0.25)
    assert run(obs).levels == fresh


@pytest.mark.parametrize(
    ("before", "message"),
    [
        ({"bkglevel": 0.1}, "has BKGLEVEL but no BKGSUB"), ({"bkgsub": False}, "has BKGSUB but no BKGLEVEL"),
        ({"bkgsub": True, "bkglevel": 0.1}, r"BKGSUB = True does not fit skymatch.subtract = False: set .*=true"),
    ],
)  # fmt: skip
def test_headers_that_contradict_the_parameters_are_refused(
    obs: Observation, before: dict[str, Any], message: str
) -> None:
    change_records(obs, **before)
    for call in (lambda: run(obs), lambda: step.plan(obs, Params())):
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert obs.records()[0].url in str(caught.value)


# ---------------------------------------------------------------- no level
def test_a_single_exposure_is_skipped_with_a_reason(obs: Observation) -> None:
    obs.write_records(obs.records()[:1])
    notes = Notes()
    document = run(obs, Runner(progress=notes))
    assert (document.status, document.levels) == ("SKIPPED", (None,))
    assert document.reason and any(document.reason in line for line in notes.lines)
    assert obs.document(SkyDocument) == document


def test_one_group_is_skipped(obs: Observation) -> None:
    change_records(obs, group_id="same")
    assert run(obs).status == "SKIPPED"


@pytest.mark.parametrize("method", ["match", "local", "global", "global+match"])
def test_limits_that_exclude_everything_leave_no_level(obs: Observation, method: str) -> None:
    document = run(obs, skymethod=method, lower=1e6)
    assert document.status == "SKIPPED" and document.levels == (None,) * 4 and document.overlaps == ()


def only(monkeypatch: pytest.MonkeyPatch, *pairs: tuple[int, int]) -> None:
    """Let only some exposures overlap."""

    def some(*args: Any) -> Iterator[Overlap]:
        return (o for o in overlaps(*args) if tuple(sorted((o.exposure, o.item))) in pairs)

    monkeypatch.setattr(step, "overlaps", some)


def test_sets_that_do_not_overlap_are_reported(obs: Observation, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, (0, 1), (2, 3))
    notes = Notes()
    document = run(obs, Runner(progress=notes))
    assert document.components == ((0, 1), (2, 3))
    (line,) = document.notes
    assert line.startswith("2 sets of exposures") and "floats freely" in line and f"skymatch: {line}" in notes.lines
    lowest = [min(c, key=lambda k: levels(document)[k]) for c in document.components]
    assert all(obs.records()[k].name in line for k in lowest)


def test_an_exposure_without_overlap_has_no_level_and_is_named(
    obs: Observation, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, (0, 1), (1, 2))
    document = run(obs)
    assert document.levels[3] is None and None not in document.levels[:3]
    assert document.status == "COMPLETE" and document.components == ((0, 1, 2),)
    assert document.notes == (f"no sky level for {obs.records()[3].name}: {step._NO_OVERLAP}",)
    both = run(obs, skymethod="global+match")
    assert None not in both.levels  # the lowest level counts for all


# ---------------------------------------------------------------- the user's levels
def test_levels_of_the_user_are_taken_as_they_are(obs: Observation) -> None:
    names = tuple(r.filename for r in obs.records())
    given = SkyListDocument("sky.txt", names, (0.5, 0.25, 0.125, 1.0))
    with pytest.raises(InputError, match=r"sky\.txt: the list was not read"):
        run(obs, skymethod="user", skylist="sky.txt")
    obs.commit(given)
    document = run(obs, skymethod="user", skylist="sky.txt", subtract=True)
    assert (document.levels, document.method, document.subtract) == (given.levels, "user", True)
    assert step.plan(obs, Params(skymethod="user", skylist="sky.txt")) == []
    obs.commit(replace(given, levels=(0.0, 0.0, 0.0, 0.0)))
    assert run(obs, skymethod="user", skylist="sky.txt", subtract=True).levels == (0.0,) * 4


# ---------------------------------------------------------------- memory
@pytest.mark.parametrize("method", ["match", "local"])
@pytest.mark.parametrize("statistic", ["mode", "median"])
def test_memory_makes_no_difference_to_any_bit(obs: Observation, method: str, statistic: str) -> None:
    params = Params(skymethod=method, skystat=statistic)
    exposures = obs.exposures()
    jobs = step._overlap_jobs(exposures, params) if method == "match" else step._whole_jobs(exposures, params)
    assert len(jobs) == 4
    for job in jobs:
        memory = Memory.of(job, params.clipping)
        assert memory.least < memory.values < memory.frame
        limits = (memory.frame, memory.values, memory.least)
        found = [measure(obs, job, params.clipping, limit) for limit in limits]
        assert len(found[0]) == len(job.regions)
        assert found[0] == found[1] == found[2]


def test_workers_make_no_difference(obs: Observation) -> None:
    alone = run(obs, skymethod="global+match")
    obs.retract("sky")
    assert numbers(run(obs, Runner(workers=2), skymethod="global+match")) == numbers(alone)


def test_too_little_memory_is_refused_before_pixels_are_read(obs: Observation) -> None:
    with pytest.raises(BudgetError, match="overlaps-000000"):
        run(obs, Runner(memory=2**20))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Observation:
    """Two exposures of a size at which their pixels outweigh everything else."""
    field = simulate(tmp_path_factory.mktemp("large"), Field(shape=(1024, 1024), dithers=2))
    return ingest(str(field), Session(store=str(tmp_path_factory.mktemp("store") / "large.zarr"), workers=1))


@pytest.mark.parametrize("kind", ["least", "values", "frame"])
@pytest.mark.parametrize("statistic", ["mode", "median"])
def test_the_declared_memory_is_kept_and_not_far_too_much(large: Observation, kind: str, statistic: str) -> None:
    """Arrays and buffers as Python knows them; a bound twice what is needed would waste workers."""
    params = Params(skystat=statistic)
    (job, _) = step._overlap_jobs(large.exposures(), params)
    limit = getattr(Memory.of(job, params.clipping), kind)
    measure(large, job, params.clipping, limit)  # what is loaded once is the idle worker's
    tracemalloc.start()
    measure(large, job, params.clipping, limit)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0.4 * limit < peak <= limit


def test_only_the_overlap_is_read(obs: Observation, monkeypatch: pytest.MonkeyPatch) -> None:
    (first, *_) = step._overlap_jobs(obs.exposures(), Params())
    corner = replace(first.regions[0].polygons[0], vertices=((0, 0), (0, 40), (30, 40), (0, 0)), shift=(0, 0))
    job = replace(first, regions=(Region(1, (corner,)),))
    read: list[Box] = []
    window = Observation.window

    def watched(self: Observation, path: str, lead: tuple[int, ...], box: Box) -> NDArray[Any]:
        read.append(box)
        return window(self, path, lead, box)

    monkeypatch.setattr(Observation, "window", watched)
    assert len(measure(obs, job, Clipping(), Memory.of(job, Clipping()).frame)) == 1
    assert set(read) == {Box(0, 0, 31, 41)} and len(read) == 2  # sci and dq, once


# ---------------------------------------------------------------- again
def test_what_is_there_is_kept(obs: Observation) -> None:
    document = run(obs)
    notes = Notes()
    assert run(obs, Runner(progress=notes)) == document
    assert notes.lines == ["skymatch: unchanged, kept"]
    assert document.cost.tasks_done == 4 and document.cost.cpu_s > 0
    assert "scratch" not in obs.backend.keys("") or obs.backend.keys("scratch") == []
    assert "skymatch" not in obs.backend.keys("receipts")


def test_the_digest_follows_what_changes_the_levels(obs: Observation) -> None:
    def mark(**values: Any) -> str:
        return step._Run(obs, Params(**values), Runner(), obs.exposures()).mark

    base = mark()
    assert base == mark() != mark(nclip=3)
    still, moved = (
        AlignedExposure("REFERENCE"),
        AlignedExposure("SUCCESS", correction=Correction("moving", shift=(1e-4, 0.0))),
    )
    obs.commit(AlignmentDocument("a", exposures=(still,) * 4))
    assert mark() == base  # no exposure has moved
    obs.commit(AlignmentDocument("b", exposures=(still, still, moved, still)))
    assert mark() != base
    obs.retract("alignment")
    for change in ({"group_id": "same"}, {"bkgsub": False, "bkglevel": 1.0}, {"checksums": {"sci": "other"}}):
        change_records(obs, **change)
        assert mark() != base


def test_a_run_that_was_cut_short_goes_on_where_it_was(obs: Observation, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = run(obs)
    obs.retract("sky")

    def failing(obs: Observation, job: Job, clipping: Clipping, limit: int) -> list[sky_measure.Measured]:
        if job.exposure == 2:
            raise OSError("gone")
        return measure(obs, job, clipping, limit)

    monkeypatch.setattr(step, "measure", failing)
    with pytest.raises(TaskError, match="overlaps-000002"):
        run(obs)
    monkeypatch.undo()
    document = run(obs)
    assert (document.cost.tasks_kept, document.cost.tasks_done) == (2, 2)
    assert numbers(document) == numbers(undisturbed)


def test_receipts_without_numbers_do_not_count(obs: Observation, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(obs: Observation, job: Job, clipping: Clipping, limit: int) -> list[sky_measure.Measured]:
        if job.exposure == 3:
            raise OSError("gone")
        return measure(obs, job, clipping, limit)

    monkeypatch.setattr(step, "measure", failing)
    with pytest.raises(TaskError):
        run(obs)
    monkeypatch.undo()
    obs.backend.remove_tree("scratch")  # as another step does when it has finished
    assert run(obs).cost.tasks_kept == 0


def test_the_plan_names_what_is_read(obs: Observation) -> None:
    tasks = step.plan(obs, Params(skymethod="global+match"))
    assert [t.key for t in tasks] == [f"{kind}-{k:06d}" for kind in ("overlaps", "whole") for k in range(4)]
    for task in tasks:
        assert isinstance(task, Task) and 0 < task.least <= task.nbytes
        ((name, box),) = task.reads
        assert name.startswith("exposures/192x192[") and Box(*box).intersect(Box.of_shape(SHAPE)) == Box(*box)
