"""image3 from files to products: the same bits whatever the tiles, workers and memory; every switch does what it says."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from streamimg3 import BudgetError, Observation, Session, ingest, run
from streamimg3.engine import Runner
from streamimg3.formats.simulate import Field, simulate
from streamimg3.pipelines import image3
from streamimg3.stages import resample, tile_drizzle
from streamimg3.store.documents import ResampleDocument
from tests.conftest import SKIP, command_line
from tests.pipelines.conftest import Recorder, Run, planes_of, sums_of

PRODUCT = "jw01234-o001_t001_nircam_clear-f200w"
WHOLE = 1024  # a tile larger than any mosaic here


def _tree(folder: Path) -> dict[str, tuple[str, int]]:
    """Content and time of change of every file."""
    files = [f for f in sorted(folder.rglob("*")) if f.is_file()]
    return {
        str(f.relative_to(folder)): (hashlib.sha256(f.read_bytes()).hexdigest(), f.stat().st_mtime_ns) for f in files
    }


@pytest.fixture(scope="module")
def plain(field: Path, tmp_path_factory: pytest.TempPathFactory) -> Observation:
    """The field's mosaic made from files, in one tile, in this process, without a bound on memory; not to be changed."""
    session = Session(output_dir=str(tmp_path_factory.mktemp("plain")), workers=1, memory=None)
    return run("image3", str(field), session=session, **SKIP, resample={"tile": WHOLE})


@pytest.fixture(scope="module")
def expected(plain: Observation) -> dict[str, str]:
    """Sums of its planes."""
    return sums_of(plain)


# ---------------------------------------------------------------- products
def test_products_and_statuses(field: Path, tmp_path: Path, expected: dict[str, str]) -> None:
    """A run from the association leaves a store, a product with JWST's extensions, and says which steps were skipped."""
    recorder = Recorder()
    session = Session(output_dir=str(tmp_path), workers=1, progress=recorder)
    obs = run("calwebb_image3", str(field), session=session, **SKIP)
    assert Path(obs.url) == tmp_path / f"{PRODUCT}.zarr"
    document = obs.document(ResampleDocument)
    assert document is not None and document.status == "COMPLETE"
    assert sums_of(obs) == expected
    kinds = [".zarr", "_i2d.fits", "_qa.json", "_report.html", "_run.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{PRODUCT}{kind}" for kind in kinds]
    skipped = [n for n in recorder.notes if n.endswith("skipped by the user")]
    assert [n.split(":")[0] for n in skipped] == ["tweakreg", "skymatch", "outlier_detection", "source_catalog"]
    with fits.open(tmp_path / f"{PRODUCT}_i2d.fits") as hdus:
        names = ["PRIMARY", "SCI", "ERR", "CON", "WHT", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT", "HDRTAB", "ASDF"]
        assert [h.name for h in hdus] == names
        assert hdus[0].header["S_RESAMP"] == "COMPLETE"
        assert {hdus[0].header[k] for k in ("S_TWKREG", "S_SKYMAT", "S_OUTLIR")} == {"SKIPPED"}
        planes = planes_of(obs)
        for name in names[1:8]:
            assert np.array_equal(hdus[name].data, planes[name.lower()], equal_nan=name != "CON"), name
        assert hdus["HDRTAB"].data.shape == (4,)


def test_until_stops_before_resample(field: Path, tmp_path: Path) -> None:
    """Nothing is made after the step named by until."""
    obs = run("image3", str(field), session=Session(output_dir=str(tmp_path), workers=1), until="skymatch", **SKIP)
    assert obs.document(ResampleDocument) is None
    assert not list(tmp_path.glob("*.fits"))


# ---------------------------------------------------------------- same bits
@pytest.mark.parametrize("tile", [64, 100, 256])
def test_tile_size_leaves_no_trace(mosaic: Run, expected: dict[str, str], tile: int) -> None:
    """Tiles, powers of two or not, give the bits of one tile that holds everything."""
    assert sums_of(mosaic(tile=tile)) == expected


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_leave_no_trace(field: Path, tmp_path: Path, expected: dict[str, str], workers: int) -> None:
    """Neither in the arrays nor in the product."""
    session = Session(output_dir=str(tmp_path), workers=workers, memory="4GiB")
    obs = run("image3", str(field), session=session, **SKIP, resample={"tile": 64})
    assert sums_of(obs) == expected
    assert (tmp_path / f"{PRODUCT}_i2d.fits").exists()


@pytest.mark.parametrize(("workers", "memory"), [(1, 512), (2, 1024)])
def test_memory_leaves_no_trace(
    field: Path, tmp_path: Path, expected: dict[str, str], workers: int, memory: int
) -> None:
    """Nor does a small budget (MiB), which a process of its own keeps to."""
    skips = [f"--steps.{step}.skip=true" for step in SKIP]
    done = command_line(
        "run", "image3", field, "--output-dir", tmp_path, "--workers", workers, "--memory", f"{memory}MiB", *skips,
        "--set", "resample.tile=64", "--log-json", tmp_path / "log.jsonl",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sums_of(Observation.at(str(tmp_path / f"{PRODUCT}.zarr"))) == expected
    assert (tmp_path / f"{PRODUCT}_i2d.fits").exists()
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    projected = {e["stage"]: e["projected"] for e in events if e["event"] == "stage"}
    assert projected.keys() >= {"ingest", "resample"}
    assert max(projected.values()) <= memory * 2**20


def test_thin_bands_leave_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exposures sent through in the thinnest bands, and in those of the smallest budget that works, give the same bits."""
    association = simulate(tmp_path / "in", Field(shape=(512, 512), dithers=2))
    obs = ingest(str(association), Session(store=str(tmp_path / "x.zarr"), workers=1))
    params = resample.Params(tile=256)
    resample.run(obs, params, Runner())
    wanted = sums_of(obs)
    counts: list[int] = []
    plain = tile_drizzle.bands

    def counted(*args: object) -> object:
        found = plain(*args)  # type: ignore[arg-type]
        counts.append(len(found))
        return found

    monkeypatch.setattr(tile_drizzle, "bands", counted)
    obs.retract(resample.NAME)
    obs.backend.remove_tree("receipts/resample")
    with pytest.raises(BudgetError) as refusal:
        resample.run(obs, params, Runner(memory=2**20))
    found = re.search(r"--memory (\d+)MiB", str(refusal.value))
    assert found and not counts
    resample.run(obs, params, Runner(memory=int(found[1]) * 2**20))
    assert sums_of(obs) == wanted
    counts.clear()
    roomy = resample.drizzle_tile
    monkeypatch.setattr(
        resample, "drizzle_tile", lambda obs, setup, layers, box, limit: roomy(obs, setup, layers, box, 0)
    )
    obs.retract(resample.NAME)
    obs.backend.remove_tree("receipts/resample")
    resample.run(obs, params, Runner())
    assert max(counts) > 2
    assert sums_of(obs) == wanted


# ---------------------------------------------------------------- again
def test_second_run_does_nothing(field: Path, tmp_path: Path) -> None:
    """Run twice: everything is kept, no file of the store is touched, and the product has the same bytes."""
    first, second = Recorder(), Recorder()
    session = Session(output_dir=str(tmp_path), workers=1, progress=first)
    obs = run("image3", str(field), session=session, **SKIP)
    before, product = _tree(Path(obs.url)), (tmp_path / f"{PRODUCT}_i2d.fits").read_bytes()
    session.progress = second
    run("image3", str(field), session=session, **SKIP)
    assert not [n for n in first.notes if "kept" in n]
    kept = ["ingest: 4 files unchanged, kept", "resample: unchanged, kept", "export: 1 file unchanged, kept"]
    assert [n for n in second.notes if "kept" in n] == kept
    assert second.outcomes.keys() <= {"report"}
    assert _tree(Path(obs.url)) == before
    assert (tmp_path / f"{PRODUCT}_i2d.fits").read_bytes() == product


def test_changed_parameter_redoes(mosaic: Run, expected: dict[str, str]) -> None:
    """Another parameter makes another mosaic; going back makes the first one again."""
    digests = []
    for parameters in ({}, {"pixfrac": 0.5}, {}):
        recorder = Recorder()
        obs = mosaic(recorder, **parameters)
        document = obs.document(ResampleDocument)
        assert document is not None
        digests.append(document.digest)
        assert recorder.outcomes["resample"].tasks_done > 0
        assert (sums_of(obs) == expected) is (not parameters)
        assert document.parameters["pixfrac"] == parameters.get("pixfrac", 1.0)
    assert digests[0] == digests[2] != digests[1]


def test_changed_member_redoes(field: Path, tmp_path: Path, expected: dict[str, str]) -> None:
    """A member that has changed, even if it kept its size, is ingested again and the mosaic follows."""
    folder = Path(shutil.copytree(field.parent, tmp_path / "in"))
    session = Session(output_dir=str(tmp_path / "out"), workers=1)
    obs = run("image3", str(folder / field.name), session=session, **SKIP)
    assert sums_of(obs) == expected
    member = sorted(folder.glob("*_cal.fits"))[1]
    with fits.open(member, mode="update") as hdus:
        hdus["SCI"].data[100, 100] = 1e4
        hdus["DQ"].data[100, 100] = 0
    os.utime(member, (1, 1))
    obs = run("image3", str(folder / field.name), session=session, **SKIP)
    changed = planes_of(obs)["sci"]
    assert sums_of(obs)["sci"] != expected["sci"]
    assert np.nanmax(changed) > 1e3
    with fits.open(tmp_path / "out" / f"{PRODUCT}_i2d.fits") as hdus:
        assert np.array_equal(hdus["SCI"].data, changed, equal_nan=True)


# ---------------------------------------------------------------- switches
def test_single_gives_one_mosaic_per_group(tmp_path: Path) -> None:
    """Two pointings of two detectors: two mosaics, each of the two detectors that exposed at once."""
    association = simulate(tmp_path / "in", Field(shape=(96, 96), dithers=2, detectors=2))
    session = Session(output_dir=str(tmp_path / "out"), workers=1)
    obs = run("image3", str(association), session=session, **SKIP, resample={"single": True})
    names = [k.removesuffix(".json") for k in obs.backend.keys("documents") if k.startswith("resample")]
    documents = [obs.document(ResampleDocument, n) for n in names]
    assert [d.exposures for d in documents if d is not None] == [(0, 1), (2, 3)]
    assert len({d.shape for d in documents if d is not None}) == 1
    assert len({sums_of(obs, n)["sci"] for n in names}) == 2
    for name in names:
        planes = planes_of(obs, name)
        assert set(planes) == {"sci", "wht", "ncontrib", "con", "err"}
        assert set(np.unique(planes["con"])) <= {0, 1, 2, 3} and planes["con"].max() >= 2
    products = sorted(p.name for p in (tmp_path / "out").glob("*.fits"))
    assert len(products) == 2
    assert not any(p.startswith("jw01234-o001") for p in products)


def test_planes_that_are_switched_off(mosaic: Run, expected: dict[str, str], tmp_path: Path) -> None:
    """enable_ctx, enable_err and report_var take away their planes and leave the others as they were."""
    cases = {
        "enable_ctx": {"con"},
        "enable_err": {"err", "var_rnoise", "var_flat", "var_poisson"},
        "report_var": {"var_rnoise", "var_flat", "var_poisson"},
    }
    for switch, gone in cases.items():
        obs = mosaic(**{switch: False})
        assert sums_of(obs) == {k: v for k, v in expected.items() if k not in gone}, switch
        with fits.open(tmp_path / "out" / f"{PRODUCT}_i2d.fits") as hdus:
            assert not {h.name.lower() for h in hdus} & gone


def test_no_plane_of_an_earlier_mosaic_stays(mosaic: Run) -> None:
    """A plane that the new parameters do not make is not left over from the old ones, in another shape at that."""
    mosaic()
    obs = mosaic(enable_err=False, pixel_scale_ratio=2.0)
    left = {p.name for p in (Path(obs.url) / "mosaic").iterdir() if p.is_dir()}
    assert left == {"sci", "wht", "ncontrib", "con"}


def test_propagated_flags(mosaic: Run, expected: dict[str, str], ingested: Observation) -> None:
    """propagate_dq adds a plane whose bits all come from the exposures, and changes nothing else."""
    obs = mosaic(propagate_dq=True)
    planes = planes_of(obs)
    assert {k: v for k, v in sums_of(obs).items() if k != "dq"} == expected
    known = np.bitwise_or.reduce(np.asarray(ingested.array("exposures/192x192/dq")[...]), axis=None)
    made = np.bitwise_or.reduce(planes["dq"], axis=None)
    assert planes["dq"].dtype == np.uint32 and made != 0
    assert made & ~known == 0
    # Pixels that were not used pass on nothing.
    assert not (made & 1)
    assert not planes["dq"][planes["ncontrib"] == 0].any()


@pytest.mark.parametrize(("text", "value"), [("-5.5", -5.5), ("INDEF", np.nan), ("0", 0.0)])
def test_fill_value(mosaic: Run, plain: Observation, text: str, value: float) -> None:
    """Pixels without weight have the fill value, in tiles that nothing touches too; all others are as before."""
    before, filled = planes_of(plain), planes_of(mosaic(tile=64, fillval=text))
    empty = before["wht"] == 0
    assert empty.any() and not empty.all()
    assert np.array_equal(filled["sci"][empty], np.full(empty.sum(), value, np.float32), equal_nan=True)
    for name, values in before.items():
        equal = (filled[name] == values) | (np.isnan(filled[name]) & np.isnan(values))
        assert equal[..., ~empty].all() and (name == "sci" or equal.all()), name


@pytest.mark.parametrize("tile", [64, 256])
def test_what_is_foreseen_from_outlines_suffices(plain: Observation, tile: int) -> None:
    """The budget is checked before the pixel maps are made: no task comes to need more than was foreseen then."""
    params = image3.Params(resample=resample.Params(tile=tile))
    rough, exact = (image3.plan(plain, params, rough=how) for how in (True, False))
    assert {"outlier_detection", "resample"} <= exact.keys() and rough.keys() == exact.keys()
    for step, tasks in exact.items():
        if tasks:
            assert max(t.least for t in rough[step]) >= max(t.least for t in tasks), step
