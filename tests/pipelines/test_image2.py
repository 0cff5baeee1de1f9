"""image2 from count rates to products: against arithmetic of our own, resumed, changed, and on to image3."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from streamimg3 import Observation, Session, api, config, ingest, run
from streamimg3.engine.runner import Progress
from streamimg3.errors import BudgetError, InputError
from streamimg3.store.documents import CalibrationDocument, RunDocument
from tests.conftest import SKIP
from tests.formats import reference_files
from tests.pipelines.conftest import Recorder
from tests.pipelines.rates import CORON, Case, Rate, make

PLANES = ("SCI", "ERR", "DQ", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT")
SKY = (Rate(11, stars=False), Rate(12, stars=False))
DATES = ("DATE", "FILENAME")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Two products that share two backgrounds."""
    products = {f"jw0{n}_nrca2": (Rate(n), SKY) for n in (1, 2)}
    return make(tmp_path_factory.mktemp("images"), products)


@pytest.fixture(scope="module")
def cubes(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A cube of a sub-array, with backgrounds of other lengths."""
    cube = Rate(1, CORON, (40, 48), (21, 31), 3)
    sky = tuple(Rate(10 + n, CORON, (40, 48), (21, 31), n, stars=False) for n in (4, 5))
    return make(tmp_path_factory.mktemp("cubes"), {"jw03_nrca2": (cube, sky)})


def go(case: Case, folder: Path, progress: Progress | None = None, **more: Any) -> Observation:
    """Run image2 in this process, into a folder."""
    steps = {k: dict(v) for k, v in case.steps.items()}
    until, memory = more.pop("until", None), more.pop("memory", None)
    for step, values in more.items():
        steps[step] = {**steps.get(step, {}), **values}
    session = Session(
        store=str(folder / "x.zarr"), output_dir=str(folder), workers=1, progress=progress or Progress(), memory=memory
    )
    return run("image2", case.association, session=session, until=until, **steps)


@pytest.fixture(scope="module")
def done(images: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on images; not to be changed."""
    folder = tmp_path_factory.mktemp("done")
    saved = {"save_results": True}
    go(
        images,
        folder,
        bkg_subtract={**saved, "save_combined_background": True},
        flat_field={"save_interpolated_flat": True},
    )
    return folder


def pixels(path: Path) -> dict[str, Any]:
    """All images of a file."""
    with fits.open(path) as hdus:
        return {h.name: np.array(h.data) for h in hdus if h.is_image and h.data is not None}


def sums(obs: Observation) -> list[dict[str, str]]:
    """Checksums of the pixels of all exposures; metadata have the date in them."""
    return [{k: v for k, v in r.checksums.items() if k != "wcs"} for r in obs.records()]


def by_hand(case: Case, rate: Rate, sky: tuple[Rate, ...]) -> dict[str, Any]:
    """The calibrated exposure, written down anew (spec others §1.2, §1.4, §1.5)."""
    p, backs = rate.planes(), [b.planes() for b in sky]
    stack = np.stack([b["SCI"].astype(float) for b in backs])
    mean = np.nansum(stack, axis=0) / np.maximum(1, (~np.isnan(stack)).sum(axis=0))
    sci = p["SCI"] - mean.astype("f4")
    dq = p["DQ"] | np.bitwise_or.reduce([b["DQ"] for b in backs])
    ny, nx = rate.shape
    with fits.open(case.references["flat"]) as file:
        flat, ferr, fdq = (np.array(file[n].data[:ny, :nx]) for n in ("SCI", "ERR", "DQ"))
    none = np.isnan(flat) | (flat == 0) | (fdq & 2**18 > 0)
    fdq = np.where(np.isnan(flat) | (flat == 0), fdq | 2**18, fdq)
    flat = np.where(none, np.float32(1), flat.astype("f4"))
    sci = sci / flat
    made = {"VAR_POISSON": p["VAR_POISSON"] / flat**2, "VAR_RNOISE": p["VAR_RNOISE"] / flat**2}
    made["VAR_FLAT"] = sci**2 / flat**2 * ferr.astype("f4") ** 2
    made["ERR"] = np.sqrt(sum(made.values()))
    dq = dq | fdq | none
    bad = (dq & 1 > 0) | np.isnan(sci)
    factors = {"ERR": 2.5, "SCI": 2.5}
    found = {n: np.where(bad, np.nan, v * factors.get(n, 6.25)) for n, v in {**made, "SCI": sci}.items()}
    return {**found, "DQ": dq | bad}


def test_calibrated_images_are_what_the_formulae_say(images: Case, done: Path) -> None:
    """To a few units of the last digit: the order of operations differs."""
    for n in (1, 2):
        ours, wanted = pixels(done / f"jw0{n}_nrca2_cal.fits"), by_hand(images, Rate(n), SKY)
        for plane in PLANES:
            np.testing.assert_allclose(ours[plane], wanted[plane], rtol=1e-6, err_msg=plane)
        y, x = np.indices(Rate(n).shape)
        assert np.array_equal(ours["AREA"], (1 + (1000 * y + x) / 1e6).astype("f4"))


def test_headers_say_what_was_done(images: Case, done: Path) -> None:
    path = done / "jw01_nrca2_cal.fits"
    head, sci = fits.getheader(path), fits.getheader(path, "SCI")
    assert [head[f"S_{s}"] for s in ("BKDSUB", "WCS", "FLAT", "PHOTOM")] == ["COMPLETE"] * 4
    assert head["R_FLAT"] == images.references["flat"] and head["R_MSA"] == "N/A"
    assert (head["ASNTABLE"], head["FILENAME"]) == ("image2_asn.json", "jw01_nrca2_cal.fits")
    assert (sci["BUNIT"], sci["PHOTMJSR"]) == ("MJy/sr", 2.5) and "PC1_1" not in sci and "CD1_1" in sci
    assert fits.getheader(path, "ERR")["BUNIT"] == "MJy/sr"
    assert "S_RESAMP" not in head and fits.getheader(done / "jw01_nrca2_i2d.fits")["S_RESAMP"] == "COMPLETE"
    with fits.open(path) as hdus:
        names = [h.name for h in hdus]
    assert names == ["PRIMARY", "SCI", "ERR", "DQ", "AREA", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT", "ASDF"]


def test_what_steps_are_asked_to_save(images: Case, done: Path) -> None:
    rate, backs = Rate(1).planes(), [b.planes() for b in SKY]
    mean, bsub = pixels(done / "jw01_nrca2_combinedbackground.fits"), pixels(done / "jw01_nrca2_bsub.fits")
    assert np.array_equal(mean["DQ"], backs[0]["DQ"] | backs[1]["DQ"])
    assert np.array_equal(bsub["SCI"], rate["SCI"] - mean["SCI"], equal_nan=True)
    assert np.array_equal(bsub["DQ"], rate["DQ"] | mean["DQ"])
    assert all(np.array_equal(bsub[n], rate[n]) for n in ("ERR", "VAR_POISSON", "VAR_RNOISE"))
    assert "S_FLAT" not in fits.getheader(done / "jw01_nrca2_bsub.fits")
    flat = pixels(done / "jw01_nrca2_interpolatedflat.fits")
    assert flat["SCI"].shape == Rate(1).shape and flat["SCI"][3, 4] == 1 and flat["DQ"][3, 4] == 1 | 2**18


def test_the_flat_that_was_saved_serves_as_the_users_own(images: Case, done: Path, tmp_path: Path) -> None:
    own = str(done / "jw01_nrca2_interpolatedflat.fits")
    go(images, tmp_path, flat_field={"user_supplied_flat": own, "override_flat": "N/A"})
    ours, before = pixels(tmp_path / "jw01_nrca2_cal.fits"), pixels(done / "jw01_nrca2_cal.fits")
    assert all(np.array_equal(ours[n], before[n], equal_nan=n != "DQ") for n in PLANES)
    assert fits.getheader(tmp_path / "jw01_nrca2_cal.fits")["R_FLAT"] == "jw01_nrca2_interpolatedflat.fits"


def test_the_lock_file_gives_the_same_references(images: Case, done: Path, tmp_path: Path) -> None:
    (lock,) = done.glob("*_references.json")
    assert {r["type"] for r in json.loads(lock.read_text())["references"]} >= {"flat", "photom", "distortion"}
    progress = Recorder()
    session = Session(
        store=str(tmp_path / "x.zarr"), output_dir=str(tmp_path), workers=1, references=str(lock), progress=progress
    )
    run("image2", images.association, session=session)
    ours, before = pixels(tmp_path / "jw01_nrca2_cal.fits"), pixels(done / "jw01_nrca2_cal.fits")
    assert all(np.array_equal(ours[n], before[n], equal_nan=n != "DQ") for n in PLANES)
    assert any(n.startswith("reference flat: ") for n in progress.notes)


def test_cubes(cubes: Case, tmp_path: Path) -> None:
    """Every integration by the same flat field, no rectified image; times come along."""
    obs = go(cubes, tmp_path, bkg_subtract={"save_results": True})
    ours = pixels(tmp_path / "jw03_nrca2_calints.fits")
    assert ours["SCI"].shape == (3, 40, 48) and ours["AREA"].shape == (40, 48)
    assert not list(tmp_path.glob("*_i2d.fits"))
    document = obs.document(RunDocument)
    assert document is not None and document.statuses["resample"] == "SKIPPED"
    with fits.open(cubes.references["flat"]) as file:
        flat = file["SCI"].data[20:60, 30:78].astype("f4")
    bsub = pixels(tmp_path / "jw03_nrca2_bsubints.fits")["SCI"]
    good = ~np.isnan(ours["SCI"])
    assert 0.9 < good.mean() < 0.995
    np.testing.assert_allclose(ours["SCI"][good], (bsub / flat * np.float32(2.5))[good], rtol=1e-6)
    table = fits.getdata(tmp_path / "jw03_nrca2_calints.fits", "INT_TIMES")
    assert list(table["integration_number"]) == [1, 2, 3] and table["int_mid_BJD_TDB"][1] == 60002.4
    assert fits.getheader(tmp_path / "jw03_nrca2_calints.fits")["FILENAME"] == "jw03_nrca2_calints.fits"


@pytest.mark.parametrize("kind", ["images", "cubes"])
def test_little_memory_gives_the_same_bytes(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bands of other heights, and planes worked out one by one."""
    from streamimg3 import calibrated_pixels

    case = request.getfixturevalue(kind)
    obs = go(case, tmp_path / "much")
    monkeypatch.setattr(calibrated_pixels, "BAND", 700)
    monkeypatch.setattr(calibrated_pixels, "readable", _one_by_one(calibrated_pixels.readable))
    thin = go(case, tmp_path / "little")
    assert sums(obs) == sums(thin)


def _one_by_one(reader: Any) -> Any:
    def read(*arguments: Any, **more: Any) -> Any:
        return reader(*arguments, **{**more, "keep": False})

    return read


def test_a_small_budget_is_refused_before_a_pixel(images: Case, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="smallest budget that works"):
        go(images, tmp_path, memory="64MiB")


# ---------------------------------------------------------------- again
def test_unchanged_exposures_are_kept_and_changed_parameters_calibrate_again(images: Case, tmp_path: Path) -> None:
    obs = go(images, tmp_path)
    first, progress = obs.records(), Recorder()
    go(images, tmp_path, progress)
    assert "ingest: 2 files unchanged, kept" in progress.notes and "ingest" not in progress.outcomes
    assert "rectified-jw01_nrca2: unchanged, kept" in progress.notes
    progress = Recorder()
    again = go(images, tmp_path, progress, photom={"inverse": True})
    assert "ingest" in progress.outcomes
    assert again.records()[0].checksums["sci"] != first[0].checksums["sci"] and again.records()[0].bunit == "DN/s"


def test_saving_more_calibrates_nothing_again(images: Case, tmp_path: Path) -> None:
    go(images, tmp_path)
    progress = Recorder()
    go(images, tmp_path, progress, bkg_subtract={"save_results": True})
    assert "ingest" not in progress.outcomes and (tmp_path / "jw02_nrca2_bsub.fits").exists()


def test_another_reference_of_the_same_name_calibrates_again(images: Case, tmp_path: Path) -> None:
    shutil.copytree(images.folder, tmp_path / "in")
    case = Case(
        tmp_path / "in", {k: v.replace(str(images.folder), str(tmp_path / "in")) for k, v in images.references.items()}
    )
    first = go(case, tmp_path).records()[0].checksums["sci"]
    reference_files.photom(case.references["photom"], reference_files.NIRCAM, [("F200W", "CLEAR", 5.0, 0.1)])
    assert go(case, tmp_path).records()[0].checksums["sci"] != first


def test_a_run_that_stopped_goes_on(images: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second exposure cannot be written at first; the first is not written again."""
    from streamimg3.formats import ingest as door

    whole = sums(go(images, tmp_path / "whole"))
    stored: list[str] = []
    write = door.store_member

    def stop_at_the_second(obs: Any, member: Any, *more: Any) -> None:
        stored.append(member.url)
        if len(stored) == 2:
            raise KeyboardInterrupt
        write(obs, member, *more)

    monkeypatch.setattr(door, "store_member", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        go(images, tmp_path)
    obs = go(images, tmp_path)
    assert len(stored) == 3 and stored[0] not in stored[1:]
    assert sums(obs) == whole
    for exposure in obs.exposures():  # headers are those of the run that began
        assert hashlib.sha256(exposure.wcs.text).hexdigest() == exposure.record.checksums["wcs"]


# ---------------------------------------------------------------- skipped and refused
def test_statuses_of_what_is_skipped(images: Case, tmp_path: Path) -> None:
    photom = reference_files.photom(tmp_path / "other.fits", reference_files.NIRCAM, [("F444W", "CLEAR", 1.0, 0.1)])
    small = reference_files.flat(tmp_path / "small.fits", reference_files.NIRCAM, (20, 20))
    obs = go(
        images, tmp_path, bkg_subtract={"skip": True}, flat_field={"override_flat": small},
        photom={"override_photom": photom},
    )  # fmt: skip
    document = obs.document(RunDocument)
    assert document is not None
    assert document.statuses == {
        "bkg_subtract": "SKIPPED", "assign_wcs": "COMPLETE", "flat_field": "SKIPPED", "photom": "SKIPPED",
        "resample": "COMPLETE",
    }  # fmt: skip
    assert "smaller than the exposure" in document.reasons["flat_field"]
    assert "no row for filter F200W" in document.reasons["photom"]
    path = tmp_path / "jw01_nrca2_cal.fits"
    head, sci = fits.getheader(path), fits.getheader(path, "SCI")
    assert (head["S_BKDSUB"], head["S_FLAT"], head["S_PHOTOM"]) == ("SKIPPED",) * 3
    assert sci["BUNIT"] == "DN/s" and "PHOTMJSR" not in sci and "PIXAR_SR" in sci
    ours, rate = pixels(path), Rate(1).planes()
    bad = np.isnan(rate["SCI"]) | (rate["DQ"] & 1 > 0)
    assert np.array_equal(ours["SCI"], np.where(bad, np.nan, rate["SCI"]), equal_nan=True)
    assert np.array_equal(np.isnan(ours["ERR"]), bad)  # resample makes them the same in all planes


def test_until(images: Case, tmp_path: Path) -> None:
    obs = go(images, tmp_path, until="flat_field")
    document = obs.document(RunDocument)
    assert document is not None and list(document.statuses) == ["bkg_subtract", "assign_wcs", "flat_field"]
    assert obs.records()[0].bunit == "DN/s" and not list(tmp_path.glob("*_i2d.fits"))
    with pytest.raises(InputError, match="--until tweakreg: the steps are bkg_subtract"):
        go(images, tmp_path, until="tweakreg")


def test_an_exposure_without_variances(images: Case, tmp_path: Path) -> None:
    Rate(1).write(tmp_path / "jw09_nrca2_rate.fits", without=("VAR_POISSON", "VAR_RNOISE"))
    session = Session(
        store=str(tmp_path / "x.zarr"), output_dir=str(tmp_path), workers=1, progress=(told := Recorder())
    )
    run("image2", str(tmp_path / "jw09_nrca2_rate.fits"), session=session, **images.steps)
    ours = pixels(tmp_path / "jw09_nrca2_cal.fits")
    assert np.isfinite(ours["ERR"]).mean() > 0.95 and "VAR_POISSON" not in ours
    assert any("neither VAR_POISSON nor VAR_RNOISE" in n for n in told.notes)


BAD = {
    "no flat": ({"flat_field": {"override_flat": None}}, "needs a flat reference.*--set flat_field.override_flat=FILE"),
    "flat of another type": ({"flat_field": {"override_flat": "photom"}}, "is a photom reference file"),
    "flat of another detector": ({"flat_field": {"override_flat": "other"}}, "has DETECTOR NRCB4"),
    "unknown parameter": (
        {"flat_field": {"inverted": True}},
        "unknown parameter flat_field.inverted .did you mean inverse",
    ),
    "unknown step": ({"tweakreg": {"skip": True}}, "unknown step 'tweakreg'"),
    "sigma": ({"bkg_subtract": {"sigma": 0}}, "bkg_subtract.sigma = 0"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_parameters_and_references_end_in_one_line(what: str, images: Case, tmp_path: Path) -> None:
    from dataclasses import replace

    other = reference_files.flat(tmp_path / "o.fits", replace(reference_files.NIRCAM, detector="NRCB4"), (128, 128))
    files = {**images.references, "other": other}
    steps, wanted = BAD[what]
    given = {s: {k: files.get(str(v), v) for k, v in values.items()} for s, values in steps.items()}
    with pytest.raises(InputError, match=wanted) as found:
        go(images, tmp_path, **given)
    assert "\n" not in str(found.value)


def test_backgrounds_of_another_kind_are_refused(images: Case, cubes: Case, tmp_path: Path) -> None:
    cube = next(str(p) for p in cubes.folder.glob("bkg*"))
    alone = str(images.folder / "jw01_nrca2_rate.fits")
    session = Session(store=str(tmp_path / "x.zarr"), output_dir=str(tmp_path), workers=1)
    with pytest.raises(InputError, match=r"is a cube of integrations, but .*jw01_nrca2_rate\.fits is an image"):
        run("image2", alone, session=session, **images.steps, bkg_subtract={"bkg_list": [cube]})


def test_files_that_are_no_rates(images: Case, field: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no JWST exposure"):
        session = Session(store=str(tmp_path / "x.zarr"), output_dir=str(tmp_path), workers=1)
        other = tmp_path / "hst.fits"
        fits.PrimaryHDU(np.ones((9, 9), "f4"), fits.Header({"TELESCOP": "HST"})).writeto(other)
        run("image2", str(other), session=session, **images.steps)
    calibrated = sorted(field.parent.glob("*_cal.fits"))[0]
    with pytest.raises(InputError, match=r"calibrated already.*image2 takes _rate files"):
        run("image2", str(calibrated), session=session, **images.steps)


# ---------------------------------------------------------------- on to image3
def test_the_store_holds_what_ingest_of_the_products_would(done: Path, tmp_path: Path) -> None:
    """Records (with the checksums of all planes), cards and metadata trees; they differ in where they came from only."""
    from dataclasses import replace

    ours = Observation.at(str(done / "x.zarr"))
    files = sorted(map(str, done.glob("*_cal.fits")))
    theirs = ingest(files, Session(store=str(tmp_path / "b.zarr"), workers=1))
    for a, b in zip(ours.exposures(), theirs.exposures(), strict=True):
        assert replace(a.record, url="") == replace(b.record, url="")
        assert a.wcs.text == b.wcs.text
        assert [a.cards(h) for h in ("primary", "sci")] == [b.cards(h) for h in ("primary", "sci")]


def test_image3_goes_on_from_the_same_store(done: Path, tmp_path: Path) -> None:
    """From the store as from the files: the same bytes of products but for dates."""
    store = tmp_path / "x.zarr"
    shutil.copytree(done / "x.zarr", store)
    files = sorted(p.name for p in done.glob("*_cal.fits"))
    table = tmp_path / "level3_asn.json"
    members = [{"expname": name, "exptype": "science"} for name in files]
    table.write_text(json.dumps({"asn_id": "a3001", "products": [{"name": "mosaic", "members": members}]}))
    steps = {k: v for k, v in SKIP.items() if k != "outlier_detection"}
    progress = Recorder()
    session = Session(store=str(store), output_dir=str(tmp_path / "a"), workers=1, progress=progress)
    run("image3", str(table), session=session, **steps)
    assert any("those that image2 has calibrated" in n for n in progress.notes)
    (tmp_path / "in").mkdir()
    for name in (*files, table.name):
        shutil.copy((done if name in files else tmp_path) / name, tmp_path / "in" / name)
    session = Session(store=str(tmp_path / "y.zarr"), output_dir=str(tmp_path / "b"), workers=1)
    run("image3", str(tmp_path / "in" / table.name), session=session, **steps)
    names = sorted(p.name for p in (tmp_path / "b").glob("*.fits"))
    assert names == sorted(p.name for p in (tmp_path / "a").glob("*.fits")) and len(names) == 3
    for name in names:
        first, second = (fits.open(tmp_path / side / name) for side in "ab")
        with first, second:
            found = fits.FITSDiff(first, second, ignore_keywords=["DATE"], ignore_fields=["DATE"], ignore_hdus=["ASDF"])
            assert not found.diff_hdus, found.report()


def test_image2_again_after_image3_leaves_its_results_alone(done: Path, images: Case, tmp_path: Path) -> None:
    shutil.copytree(done / "x.zarr", tmp_path / "x.zarr")
    run("image3", str(tmp_path / "x.zarr"), session=Session(output_dir=str(tmp_path), workers=1), **SKIP)
    progress = Recorder()
    go(images, tmp_path, progress)
    assert "rectified-jw01_nrca2: unchanged, kept" in progress.notes
    assert (tmp_path / "x.zarr" / "documents" / "resample.json").exists()


def test_a_plan_reads_no_pixel(images: Case, tmp_path: Path) -> None:
    session = Session(store=str(tmp_path / "x.zarr"), output_dir=str(tmp_path), workers=1)
    plans = api.plan("image2", images.association, config.as_settings(images.steps), session)
    assert list(plans) == ["bkg_subtract", "calibration", "resample"] and all(plans.values())
    assert not (Observation.at(str(tmp_path / "x.zarr")).root() or {}).get("ingested")


def test_the_document_says_what_was_used(images: Case, done: Path) -> None:
    document = Observation.at(str(done / "x.zarr")).document(CalibrationDocument)
    assert document is not None and len(document.backgrounds) == 1  # both products share one mean
    used = {r.reftype: r for r in document.exposures[0].references}
    assert used["flat"].url == images.references["flat"] and len(used["flat"].sha256) == 64
