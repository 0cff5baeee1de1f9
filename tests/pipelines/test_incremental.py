"""Exposures join, leave or move: only the tiles they touch are made again, and the bytes are those of a fresh run."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamimg3 import Observation, Session, plan, run
from streamimg3.errors import TaskError
from streamimg3.formats.simulate import Field, simulate
from streamimg3.geometry import Box
from streamimg3.stages import overviews
from streamimg3.store.documents import OverviewDocument
from tests.conftest import SKIP
from tests.pipelines.conftest import Recorder, sums_of

GRID = {"crval": (150.1165, 2.2), "crpix": (300.0, 300.0), "output_shape": (600, 600), "rotation": 0.0, "tile": 64}


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pointings beside each other, three dithers each, of 128² pixels."""
    return simulate(tmp_path_factory.mktemp("field"), Field(shape=(128, 128), dithers=3, mosaic=(1, 2)))


def _with(field: Path, chosen: list[int], folder: Path) -> Path:
    """The same association with some of its members."""
    tree = json.loads(field.read_text())
    members = tree["products"][0]["members"]
    for member in members:
        member["expname"] = str(field.parent / member["expname"])
    tree["products"][0]["members"] = [members[i] for i in chosen]
    folder.mkdir(exist_ok=True)
    (folder / field.name).write_text(json.dumps(tree))
    return folder / field.name


def _run(association: Path, folder: Path, **steps: Any) -> tuple[Observation, Recorder]:
    told = Recorder()
    session = Session(output_dir=str(folder), workers=1, progress=told, report=False)
    return run("image3", str(association), session=session, **({**SKIP, "resample": GRID} | steps)), told


@pytest.mark.parametrize(
    ("before", "after", "share"),
    [
        ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5], 0.75),
        ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4], 0.75),
        ([0, 1, 2], [0, 3, 2], 0.99),  # one pointing loses an exposure, and where the other one is there was nothing
    ],
)
def test_equal_to_a_fresh_run(field: Path, tmp_path: Path, before: list[int], after: list[int], share: float) -> None:
    """One joins, one leaves, one takes the place of another; files that stay are not read again."""
    _run(_with(field, before, tmp_path / "a"), tmp_path / "kept")
    grown, told = _run(_with(field, after, tmp_path / "b"), tmp_path / "kept")
    fresh, everything = _run(_with(field, after, tmp_path / "b"), tmp_path / "fresh")
    assert sums_of(grown) == sums_of(fresh)
    kept = len(set(before) & set(after))
    assert f"ingest: {kept} files kept, {len(after) - kept} new or changed, {len(before) - kept} gone" in told.notes
    assert (
        told.outcomes["ingest"].tasks_done == len(after) - kept if len(after) > kept else "ingest" not in told.outcomes
    )
    redone, all_tiles = told.outcomes["resample"].tasks_done, everything.outcomes["resample"].tasks_done
    assert 0 < redone <= share * all_tiles and told.outcomes["resample"].tasks_kept == all_tiles - redone
    assert [r.name for r in grown.records()] == [r.name for r in fresh.records()]
    assert [r.checksums for r in grown.records()] == [r.checksums for r in fresh.records()]
    again, _ = _run(_with(field, after, tmp_path / "b"), tmp_path / "kept")
    assert sums_of(again) == sums_of(fresh)


@pytest.mark.parametrize("tile", [128, 256, 608])
@pytest.mark.parametrize(
    ("before", "after"),
    [([0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]), ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4]), ([0, 1, 2, 5], [0, 1, 2])],
)
def test_of_a_tile_only_the_part_that_changes(
    field: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tile: int, before: list[int], after: list[int]
) -> None:
    """The bytes are those of a fresh run, also where the run is stopped after the first tile and begun again."""
    from streamimg3.stages import resample

    steps = {"resample": GRID | {"tile": tile, "propagate_dq": True}}
    make, made = resample.drizzle_tile, list[tuple[Box, Box]]()

    def told(obs, setup, layers, boxes, limit):  # type: ignore[no-untyped-def]
        made.append(boxes)
        if len(made) == 2:
            half = obs.window(f"{setup.path}/sci", (), boxes[0])
            half[boxes[1].within(boxes[0])] = 1.0
            obs.write(f"{setup.path}/sci", (), boxes[0], half)
            raise RuntimeError("stopped")
        return make(obs, setup, layers, boxes, limit)

    _run(_with(field, before, tmp_path / "a"), tmp_path / "kept", **steps)
    fresh, _ = _run(_with(field, after, tmp_path / "b"), tmp_path / "fresh", **steps)
    monkeypatch.setattr(resample, "drizzle_tile", told)
    with contextlib.suppress(TaskError):
        _run(_with(field, after, tmp_path / "b"), tmp_path / "kept", **steps)
    grown, _ = _run(_with(field, after, tmp_path / "b"), tmp_path / "kept", **steps)
    assert any(part.size <= 0.8 * whole.size for whole, part in made)
    assert all(whole.union(part) == whole for whole, part in made)
    assert sums_of(grown) == sums_of(fresh)


def test_the_whole_pipeline_is_equal_too(field: Path, tmp_path: Path) -> None:
    """With alignment, sky, outliers and catalogue: what depends on all exposures is worked out again."""
    steps: dict[str, Any] = {name: {} for name in SKIP} | {"tweakreg": {"minobj": 5}}
    _run(_with(field, [0, 1, 2, 3, 4], tmp_path / "a"), tmp_path / "kept", **steps)
    grown, _ = _run(_with(field, [0, 1, 2, 3, 4, 5], tmp_path / "b"), tmp_path / "kept", **steps)
    fresh, _ = _run(_with(field, [0, 1, 2, 3, 4, 5], tmp_path / "b"), tmp_path / "fresh", **steps)
    assert sums_of(grown) == sums_of(fresh)
    for column in ("label", "isophotal_flux", "sky_centroid.ra"):
        np.testing.assert_array_equal(grown.array(f"catalog/{column}")[...], fresh.array(f"catalog/{column}")[...])
    flags = [np.asarray(o.exposures()[i].read("outlier", _whole()).sum()) for o in (grown, fresh) for i in range(6)]
    assert flags[:6] == flags[6:]


def _whole():  # type: ignore[no-untyped-def]
    from streamimg3.geometry import Box

    return Box(0, 0, 128, 128)


def test_a_plan_leaves_a_finished_store_alone(field: Path, tmp_path: Path) -> None:
    """One exposure more is planned as a whole; the store with its mosaic stays as it is."""
    obs, _ = _run(_with(field, [0, 1, 2], tmp_path / "a"), tmp_path / "kept")
    before = {path: path.stat().st_mtime_ns for path in Path(obs.url).rglob("*") if path.is_file()}
    session = Session(output_dir=str(tmp_path / "kept"), workers=1)
    settings = {name: {"skip": True} for name in SKIP} | {"resample": GRID}
    tasks = plan("image3", str(_with(field, [0, 1, 2, 3], tmp_path / "b")), settings, session)
    assert len(tasks["ingest"]) == 4 and len(tasks["resample"]) > 4
    assert {path: path.stat().st_mtime_ns for path in Path(obs.url).rglob("*") if path.is_file()} == before
    again = plan("image3", str(_with(field, [0, 1, 2], tmp_path / "a")), settings, session)
    assert "ingest" not in again and len(again["resample"]) > 4


def _maps(obs: Observation) -> dict[str, int]:
    """The pixel maps that a store on disk keeps, and when they were written."""
    return {path.name: path.stat().st_mtime_ns for path in Path(obs.url, "receipts", "maps").glob("*/*")}


def test_pixel_maps_are_made_once(field: Path, tmp_path: Path) -> None:
    """Those of exposures that stay are there in the next run; what is not needed any more goes; a damaged one is made anew."""
    first, _ = _run(_with(field, [0, 1, 2], tmp_path / "a"), tmp_path / "kept")
    before = _maps(first)
    assert len(before) == 3
    grown, _ = _run(_with(field, [0, 1, 3], tmp_path / "b"), tmp_path / "kept")
    after = _maps(grown)
    assert len(after) == 3 and len(after.items() & before.items()) == 2
    sums = sums_of(grown)
    whole = {path: path.read_bytes() for path in sorted(Path(grown.url, "receipts", "maps").glob("*/*"))}
    for number, (path, data) in enumerate(whole.items()):
        path.write_bytes((b"", data[: len(data) // 2], data[:2000] + bytes([data[2000] ^ 1]) + data[2001:])[number])
    other: dict[str, Any] = {"resample": GRID | {"pixfrac": 0.9}}
    _run(_with(field, [0, 1, 3], tmp_path / "b"), tmp_path / "kept", **other)
    assert {path: path.read_bytes() for path in whole} == whole and len(_maps(grown)) == 3
    again, _ = _run(_with(field, [0, 1, 3], tmp_path / "b"), tmp_path / "kept")
    assert sums_of(again) == sums
    smaller, _ = _run(_with(field, [0, 1, 3], tmp_path / "b"), tmp_path / "kept", resample={})
    assert len(_maps(smaller)) == 3


def test_an_exposure_that_moves(field: Path, tmp_path: Path) -> None:
    """A correction of one exposure redoes the tiles where it was and where it is."""
    from streamimg3.engine import Runner
    from streamimg3.sky.correction import Correction
    from streamimg3.stages import resample
    from streamimg3.store.documents import AlignedExposure, AlignmentDocument

    association = _with(field, [0, 1, 2, 3, 4, 5], tmp_path / "a")
    params = resample.Params(**GRID)
    sums = []
    for name in ("kept", "fresh"):
        obs, _ = _run(association, tmp_path / name, resample={"skip": True} if name == "fresh" else GRID)
        moved = Correction("tangent", (1.0, 0.0, 0.0, 1.0), (0.05, 0.02), (0.0, 0.0, 0.0), "")
        entries = [AlignedExposure("REFERENCE")] * 5 + [AlignedExposure("SUCCESS", correction=moved)]
        obs.commit(AlignmentDocument(exposures=tuple(entries)))
        told = Recorder()
        resample.run(obs, params, Runner(progress=told))
        sums.append(sums_of(obs))
        tiles = told.outcomes["resample"]
        assert tiles.tasks_kept == 0 if name == "fresh" else 0 < tiles.tasks_done < tiles.tasks_kept + tiles.tasks_done
    assert sums[0] == sums[1]


def test_overviews_follow(field: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the overviews too, only what lies above changed tiles is made again, and it is what a fresh run makes."""
    monkeypatch.setattr(overviews, "SMALLEST", 100)
    monkeypatch.setattr(overviews, "_TILE", 64)
    _run(_with(field, [0, 1, 2, 3, 4], tmp_path / "a"), tmp_path / "kept")
    grown, told = _run(_with(field, [0, 1, 2, 3, 4, 5], tmp_path / "b"), tmp_path / "kept")
    fresh, everything = _run(_with(field, [0, 1, 2, 3, 4, 5], tmp_path / "b"), tmp_path / "fresh")
    made = fresh.document(OverviewDocument)
    assert made is not None and [level.shape for level in made.levels] == [(300, 300), (150, 150), (75, 75)]
    for level in made.levels:
        for plane in made.planes:
            ours, theirs = (o.array(f"{level.path}/{plane}")[...] for o in (grown, fresh))
            np.testing.assert_array_equal(ours, theirs)
    assert 0 < told.outcomes["overviews-1"].tasks_done < everything.outcomes["overviews-1"].tasks_done == 25


def test_another_store_is_still_refused(field: Path, tmp_path: Path) -> None:
    """A store that has none of the files is not taken over."""
    from streamimg3 import InputError

    _run(_with(field, [0, 1], tmp_path / "a"), tmp_path / "kept")
    with pytest.raises(InputError, match="holds other exposures"):
        _run(_with(field, [2, 3], tmp_path / "b"), tmp_path / "kept")
