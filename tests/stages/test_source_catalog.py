"""The source_catalog step: equal for any tiling and budget, what it knows without references, and what it does not do twice."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from streamimg3 import Observation
from streamimg3.engine import Runner, Task
from streamimg3.engine.runner import Outcome, Progress
from streamimg3.errors import InputError
from streamimg3.kernels.aperture import Circles
from streamimg3.kernels.background import background_mesh
from streamimg3.kernels.deblend import Levels
from streamimg3.kernels.segment_stars import divide
from streamimg3.kernels.segments import label, outlines, relabel
from streamimg3.kernels.smooth import gaussian, smooth
from streamimg3.stages import catalog_job, catalog_pixels, catalog_segments, catalog_sources, source_catalog
from streamimg3.stages.catalog_sources import Rulebook
from streamimg3.stages.source_catalog import Params
from streamimg3.store.documents import CatalogDocument, ResampleDocument
from tests.stages.catalog_scenes import EDGE, Scene, blob, crowded, segmentation, stored, table, with_references

SETTINGS: dict[str, Any] = {"npixels": 9, "bkg_boxsize": 50}


class Notes(Progress):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return crowded()


@pytest.fixture(scope="module")
def done(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> tuple[Observation, CatalogDocument]:
    """The catalogue of the scene in tiles; not to be changed."""
    obs = stored(str(tmp_path_factory.mktemp("catalog") / "field.zarr"), scene, EDGE)
    params = Params(**SETTINGS, **with_references(obs))
    return obs, source_catalog.run(obs, params, Runner(None, 1))


def again(obs: Observation, **settings: Any) -> CatalogDocument:
    return source_catalog.run(obs, Params(**SETTINGS | settings), Runner(None, 1))


# ---------------------------------------------------------------- parameters
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("aperture_ee1", 50), ("aperture_ee1", 0), ("starfinder", "sextractor"), ("snr_threshold", float("nan")),
        ("bkg_boxsize", 0), ("kernel_fwhm", 0.0), ("npixels", 0), ("connectivity", 6), ("nlevels", 0), ("contrast", 1.5),
        ("multithresh_mode", "cubic"), ("localbkg_width", -1), ("apermask_method", "no"), ("kron_params", (1.0,)),
        ("brightest", 0), ("gain", 0.0), ("read_noise", -1.0), ("largest_blend", -1),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^source_catalog\.{name} = "):
        Params(**{name: value})


def test_connectivity_may_be_text() -> None:
    assert Params(connectivity="4").connectivity == 4  # type: ignore[arg-type]


# ---------------------------------------------------------------- one result for all tilings
@pytest.mark.parametrize("tile", [32, 128, 256])
def test_labels_and_numbers_do_not_depend_on_tiles(
    done: tuple[Observation, CatalogDocument], scene: Scene, tmp_path: Path, tile: int
) -> None:
    obs = stored(str(tmp_path / "other.zarr"), scene, tile)
    document = again(obs, **with_references(obs))
    np.testing.assert_array_equal(segmentation(obs), segmentation(done[0]))
    theirs = table(done[0])
    assert document.sources == done[1].sources == segmentation(obs).max()
    for name, values in table(obs).items():
        np.testing.assert_array_equal(values, theirs[name], err_msg=name)


def test_the_scene_is_hard_on_tiles(done: tuple[Observation, CatalogDocument]) -> None:
    """Sources reach over corners and seams, one over several tiles, and blends are divided across seams."""
    labels = segmentation(done[0])
    tiles = [
        set(np.unique(labels[y : y + EDGE, x : x + EDGE])) - {0}
        for y in range(0, 205, EDGE)
        for x in range(0, 230, EDGE)
    ]
    counts = {n: sum(n in t for t in tiles) for t in tiles for n in t}
    assert sum(c >= 2 for c in counts.values()) >= 6 and max(counts.values()) >= 4
    assert 0 != labels[30, 60] != labels[30, 67] and 0 != labels[125, 30] != labels[132, 31]
    assert labels[150, 140] != labels[140, 160]


def test_equal_to_the_whole_image_at_once(done: tuple[Observation, CatalogDocument], scene: Scene) -> None:
    """The same kernels on one array, without tiles, seams and windows."""
    factor = np.float32(1e6 * 0.036**2 / float(np.rad2deg(3600)) ** 2)
    data, bad = scene.sci * factor, np.isnan(scene.err) | (scene.wht == 0)
    mesh = background_mesh(data, bad, 50)
    assert mesh is not None
    window = (0, 0, *data.shape)
    less = data - mesh.background(*window)
    smoothed = smooth(np.pad(less, 3), np.pad(bad, 3), gaussian(2.0))
    labels, count = label((smoothed > np.float32(3) * mesh.noise(*window)) & ~bad, True)
    found = outlines(labels, count)
    keep = found.area >= 9
    numbers = np.zeros(count + 1, np.int32)
    numbers[1:][keep] = np.arange(1, keep.sum() + 1)
    relabel(labels, numbers)
    divide(smoothed, labels, found.take(keep), Levels(9))
    np.testing.assert_array_equal(labels, segmentation(done[0]))


def test_equal_to_photutils(scene: Scene, tmp_path: Path) -> None:
    """Undivided labels exactly; sums to 1e-6, for the library adds some in another order or in float32."""
    pytest.importorskip("photutils")
    from astropy.convolution import Gaussian2DKernel, convolve
    from astropy.stats import SigmaClip
    from photutils.aperture import CircularAperture, aperture_photometry
    from photutils.background import Background2D, MedianBackground
    from photutils.segmentation import SourceCatalog, SourceFinder

    obs = stored(str(tmp_path / "field.zarr"), scene, EDGE)
    again(obs, deblend=False, localbkg_width=6, **with_references(obs))
    ours, labels = table(obs), segmentation(obs)
    factor = np.float32(1e6 * 0.036**2 / float(np.rad2deg(3600)) ** 2)
    data, err, bad = scene.sci * factor, scene.err * factor, np.isnan(scene.err) | (scene.wht == 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clip = SigmaClip(3.0)  # of five rounds
        mesh = Background2D(
            data, 50, filter_size=3, coverage_mask=bad, bkg_estimator=MedianBackground(), sigma_clip=clip
        )
        less = data - mesh.background
        smoothed = convolve(less, Gaussian2DKernel(2.0 / 2.3548200450309493), mask=bad)
        found = SourceFinder(9, deblend=False, progress_bar=False)(smoothed, 3.0 * mesh.background_rms, mask=bad)
        cat = SourceCatalog(less, found, convolved_data=smoothed, error=err, mask=bad, local_bkg_width=6)
        sums = aperture_photometry(data, CircularAperture(cat.centroid, 2.5 / 1.25), error=err)
    np.testing.assert_array_equal(labels, found.data)
    # the float32 noise of the library's sums of squared errors is some 2e-7
    for name, theirs in {
        "xcentroid": cat.x_centroid, "ycentroid": cat.y_centroid, "isophotal_flux": cat.segment_flux,
        "isophotal_flux_err": cat.segment_flux_err, "isophotal_area": cat.area.value,
        "semimajor_sigma": cat.semimajor_axis.value, "semiminor_sigma": cat.semiminor_axis.value,
        "orientation": cat.orientation.value,
    }.items():  # fmt: skip
        np.testing.assert_allclose(ours[name], theirs, rtol=1e-6, err_msg=name)
    area = np.pi * float(np.float32(2.5) / np.float32(1.25)) ** 2
    np.testing.assert_allclose(ours["aper70_flux"] + ours["aper_bkg_flux"] * area, sums["aperture_sum"], rtol=1e-6)


def test_a_source_read_in_bands_has_the_same_numbers(scene: Scene, tmp_path: Path) -> None:
    """As if memory were too small for any window: every source alone, in the lowest bands there are."""
    obs = stored(str(tmp_path / "field.zarr"), scene, EDGE)
    mosaic = obs.document(ResampleDocument)
    assert mosaic is not None
    sources = catalog_job.prepare(obs, Params(**SETTINGS), mosaic).scene
    source_catalog._start(obs, sources)
    for task in catalog_pixels.mesh_tasks(sources):
        catalog_pixels.mesh_work(task, obs=obs, scene=sources)
    catalog_pixels.keep_mesh(obs, sources, catalog_pixels.joined_mesh(obs, sources))
    for task in catalog_segments.label_tasks(sources):
        catalog_segments.label_work(task, obs=obs, scene=sources, rules=Params(**SETTINGS).rules)
    found = catalog_segments.join_tiles(obs, sources, Params(**SETTINGS).rules)
    catalog_segments.keep_tables(obs, sources, found)
    rules = Rulebook(Params(**SETTINGS).levels, 10**6, Circles((1.0, 2.0), (4.0, 7.0)), 5, 2.0)
    tasks = catalog_sources.source_tasks(sources, rules, found)
    tables: list[list[dict[str, NDArray[Any]]]] = []
    for limits in ([t.nbytes for t in tasks], [1] * len(tasks)):
        row = []
        for task, limit in zip(tasks, limits, strict=True):
            catalog_sources.source_work(dataclasses.replace(task, limit=limit), obs=obs, scene=sources, rules=rules)
            row.append(dict(catalog_pixels.read_table(obs, sources.key(f"sources/{task.key}"))))
        tables.append(row)
    for whole, banded in zip(*tables, strict=True):
        assert set(whole) == set(banded)
        for name, values in whole.items():
            np.testing.assert_array_equal(values, banded[name], err_msg=name)


# ---------------------------------------------------------------- what is known and what is not
def test_columns_of_the_reference_come_first(done: tuple[Observation, CatalogDocument]) -> None:
    names = [c.name for c in done[1].columns]
    assert names[:5] == ["label", "xcentroid", "ycentroid", "sky_centroid.ra", "sky_centroid.dec"]
    assert names[-4:] == ["x_err", "y_err", "ra_err", "dec_err"]
    assert names[5:9] == ["aper_bkg_flux", "aper_bkg_flux_err", "aper30_flux", "aper30_flux_err"]
    assert {"aper_total_vegamag_err", "CI_70_30", "is_extended", "nn_label", "sky_bbox_ur.dec"} < set(names)
    units = {c.name: c.unit for c in done[1].columns}
    assert units["isophotal_flux"] == "Jy" and units["isophotal_area"] == "pix2" and units["ra_err"] == "mas"
    assert done[1].meta["abvega_offset"] == 1.5 and done[1].meta["kron_params"] == [2.5, 1.4, 0.0]


def test_magnitudes_neighbours_and_corners(done: tuple[Observation, CatalogDocument]) -> None:
    found = table(done[0])
    bright = found["isophotal_flux"] > 0
    np.testing.assert_allclose(
        found["isophotal_abmag"][bright], -2.5 * np.log10(found["isophotal_flux"][bright]) + 8.9, rtol=1e-14
    )
    shift = found["aper50_abmag"] - found["aper50_vegamag"]
    np.testing.assert_allclose(shift[found["aper50_flux"] > 0], 1.5, rtol=1e-12)
    np.testing.assert_allclose(found["aper_total_flux"], 1.4 * found["aper70_flux"], rtol=1e-14)
    assert np.isnan(found["isophotal_abmag"][~bright]).all()
    for k in range(len(bright)):
        distance = np.hypot(found["xcentroid"] - found["xcentroid"][k], found["ycentroid"] - found["ycentroid"][k])
        distance[k] = np.inf
        assert found["nn_dist"][k] == pytest.approx(distance.min(), rel=1e-12)
        assert found["nn_label"][k] == found["label"][np.argmin(distance)]
    # corners are the outer ones: a box as high as its pixels
    y, _ = np.nonzero(segmentation(done[0]) == 1)
    height = (found["sky_bbox_ul.dec"][0] - found["sky_bbox_ll.dec"][0]) / 1e-5
    assert height == pytest.approx(np.ptp(y) + 1, abs=1e-3)


def test_position_errors_are_those_of_repeated_noise() -> None:
    """One star under 200 skies: the scatter of the centroid is what the catalogue says (itself known to 5 %)."""
    rng = np.random.default_rng(2)
    from streamimg3.kernels.measure import Pixels, Sums

    star, sigma = blob(20.3, 19.6, 600, 1.6, shape=(41, 41)), 0.6
    inside = (np.hypot(*(np.mgrid[:41, :41] - np.array([20.3, 19.6])[:, None, None])) < 4.5).astype(np.int32)
    errors, places = [], []
    for _ in range(200):
        data = (star + rng.normal(0, sigma, star.shape)).astype(np.float32)
        bad = np.zeros(data.shape, np.bool_)
        smoothed = np.maximum(smooth(np.pad(data, 3), np.pad(bad, 3), gaussian(2.0)), 0)
        sums = Sums(np.array([1], np.int32), np.array([[0, 0, 41, 41]]), gaussian(2.0))
        pixels = Pixels((0, 0), data, smoothed, np.full_like(data, sigma), bad, inside)
        sums.add(pixels)
        sums.add_central(pixels)
        shapes = sums.shapes(np.zeros(1))
        errors.append((shapes.x_err[0], shapes.y_err[0]))
        places.append((shapes.x[0], shapes.y[0]))
    np.testing.assert_allclose(np.mean(errors, axis=0), np.std(places, axis=0), rtol=0.15)


def test_without_reference_files(scene: Scene, tmp_path: Path) -> None:
    obs = stored(str(tmp_path / "field.zarr"), scene, EDGE)
    document = again(obs)
    names = {c.name for c in document.columns}
    assert document.status == "COMPLETE" and "isophotal_abmag" in names
    assert not any(n.startswith(("aper", "CI_", "is_ext")) or "vega" in n for n in names)
    assert any("APCORR" in note for note in document.notes) and any("ABVEGA" in note for note in document.notes)


def test_without_errors_and_units(scene: Scene, tmp_path: Path) -> None:
    obs = stored(str(tmp_path / "field.zarr"), scene, EDGE, bunit="DN/s", planes=("sci", "wht"))
    document = again(obs, gain=50.0)
    found, units = table(obs), {c.name: c.unit for c in document.columns}
    assert units["isophotal_flux"] == "DN/s" and not any("mag" in n for n in units)
    assert any("DN/s" in note for note in document.notes) and any("gain" in note for note in document.notes)
    # the scene's noise is 0.7 of its ERR, and has these two parts
    true = stored(str(tmp_path / "true.zarr"), scene, EDGE, bunit="DN/s")
    again(true)
    theirs = table(true)
    y, x = theirs["ycentroid"], theirs["xcentroid"]
    ratios = []
    for k in range(len(found["label"])):
        distance = np.hypot(y - found["ycentroid"][k], x - found["xcentroid"][k])
        if distance.min() < 0.1:
            ratios.append(found["isophotal_flux_err"][k] / theirs["isophotal_flux_err"][np.argmin(distance)])
    assert len(ratios) > 20 and np.median(ratios) == pytest.approx(0.9, abs=0.15)


@pytest.mark.parametrize("changes", [{"reason": "no row for F200W"}, {"rows": ()}])
def test_reference_files_without_these_optics(scene: Scene, tmp_path: Path, changes: dict[str, Any]) -> None:
    obs = stored(str(tmp_path / "field.zarr"), scene, EDGE)
    notes = Notes()
    params = Params(**SETTINGS, **with_references(obs, **changes))
    document = source_catalog.run(obs, params, Runner(None, 1, notes))
    assert document.status == "FAILED" and document.reason and not document.sources
    assert any("no catalogue" in text for text in notes.said)


def test_an_empty_sky(scene: Scene, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    flat = Scene(
        rng.normal(1, 0.1, (90, 80)).astype(np.float32),
        np.full((90, 80), 0.1, np.float32),
        np.ones((90, 80), np.float32),
    )
    obs = stored(str(tmp_path / "field.zarr"), flat, 32)
    document = again(obs)
    assert (document.status, document.sources) == ("FAILED", 0) and "no source" in (document.reason or "")
    nothing = Scene(np.full((90, 80), np.nan, np.float32), flat.err, np.zeros((90, 80), np.float32))
    obs = stored(str(tmp_path / "nothing.zarr"), nothing, 32)
    assert "no good pixel" in (again(obs).reason or "")


def test_without_a_mosaic(scene: Scene, tmp_path: Path) -> None:
    """As after resample with one mosaic for each group: the pipeline goes on."""
    obs = stored(str(tmp_path / "field.zarr"), scene, EDGE)
    obs.retract("resample")
    document = again(obs)
    assert document.status == "FAILED" and "no mosaic" in (document.reason or "")


def test_one_source_has_no_neighbour(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    image = blob(33, 31, 500, 1.6, shape=(70, 80)) + rng.normal(0, 0.2, (70, 80))
    lone = Scene(image.astype(np.float32), np.full((70, 80), 0.2, np.float32), np.ones((70, 80), np.float32))
    obs = stored(str(tmp_path / "field.zarr"), lone, 32)
    assert again(obs, npixels=15).sources == 1
    found = table(obs)
    assert found["nn_label"][0] == -1 and np.isnan(found["nn_dist"][0])


def test_blends_beyond_the_limit_stay_whole(scene: Scene, tmp_path: Path) -> None:
    obs = stored(str(tmp_path / "field.zarr"), scene, EDGE)
    document = again(obs, largest_blend=2000)
    labels = segmentation(obs)
    assert labels[150, 140] == labels[140, 160] != 0 and labels[30, 60] != labels[30, 67]
    assert any(note.startswith(f"source {labels[150, 140]} is larger") for note in document.notes)


@pytest.mark.parametrize("finder", ["iraf", "dao"])
def test_star_finders_do_not_depend_on_tiles(scene: Scene, tmp_path: Path, finder: str) -> None:
    tables = []
    for tile in (32, 256):
        obs = stored(str(tmp_path / f"{tile}.zarr"), scene, tile)
        settings = {"starfinder": finder, "sharplo": 0.2, "roundlo": -1.0, "roundhi": 1.0, "snr_threshold": 20.0}
        document = again(obs, **settings, **with_references(obs))
        assert document.sources > 5 and not document.segmentation
        assert "segmentation" not in obs.backend.keys("mosaic")
        tables.append(table(obs))
    for name, values in tables[0].items():
        np.testing.assert_array_equal(values, tables[1][name], err_msg=name)
    assert np.isnan(tables[0]["isophotal_area"]).all() and np.isfinite(tables[0]["aper70_flux"]).any()


def test_apertures_without_the_background(
    done: tuple[Observation, CatalogDocument], scene: Scene, tmp_path: Path
) -> None:
    """The sky level is in aper_bkg_flux unless asked otherwise; the fluxes, less the ring's level, hardly change."""
    obs = stored(str(tmp_path / "field.zarr"), scene, EDGE)
    again(obs, subtract_background=True, **with_references(obs))
    raw, less = table(done[0]), table(obs)
    level = 3.1 * 1e6 * 0.036**2 / float(np.rad2deg(3600)) ** 2
    assert np.nanmedian(raw["aper_bkg_flux"]) == pytest.approx(level, rel=0.2)
    assert abs(np.nanmedian(less["aper_bkg_flux"])) < 0.2 * level
    # where the ring has an edge or a neighbour in it, another pixel may be clipped: a few per cent of the sky
    difference = (less["aper70_flux"] - raw["aper70_flux"])[np.isfinite(raw["aper70_flux"])]
    assert 0 < np.median(np.abs(difference)) < 0.05 * level and np.abs(difference).max() < level


# ---------------------------------------------------------------- again, and after an interruption
def test_unchanged_is_kept_and_changed_is_not(scene: Scene, tmp_path: Path) -> None:
    obs = stored(str(tmp_path / "field.zarr"), scene, EDGE)
    first, notes = again(obs), Notes()
    assert source_catalog.run(obs, Params(**SETTINGS), Runner(None, 1, notes)) == first
    assert notes.said == ["source_catalog: unchanged, kept"]
    assert again(obs, snr_threshold=10.0).sources < first.sources
    assert set(obs.backend.keys("scratch")) <= {"zarr.json"}


def test_an_interrupted_run_goes_on(
    done: tuple[Observation, CatalogDocument], scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    obs = stored(str(tmp_path / "field.zarr"), scene, EDGE)
    settings = with_references(obs)
    work = catalog_sources.source_work
    seen: list[str] = []

    def failing(task: Task, **more: Any) -> dict[str, float]:
        seen.append(task.key)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return work(task, **more)

    monkeypatch.setattr(catalog_sources, "source_work", failing)
    with pytest.raises(KeyboardInterrupt):
        again(obs, **settings)
    assert obs.document(CatalogDocument) is None
    monkeypatch.undo()
    document = again(obs, **settings)
    assert document.cost.tasks_kept >= 2
    np.testing.assert_array_equal(segmentation(obs), segmentation(done[0]))
    theirs = table(done[0])
    for name, values in table(obs).items():
        np.testing.assert_array_equal(values, theirs[name], err_msg=name)


def test_plans_are_made_before_and_after_the_mosaic(
    done: tuple[Observation, CatalogDocument], ingested: Observation
) -> None:
    for obs in (done[0], ingested):
        tasks = source_catalog.plan(obs, Params())
        assert tasks and len({t.key for t in tasks}) == len(tasks)
        assert all(0 < t.least <= t.nbytes for t in tasks)


# ---------------------------------------------------------------- memory
def test_tasks_hold_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays that a task makes at a time, traced, on tiles large enough for pixels to matter; windows and thin bands."""
    import tracemalloc

    rng = np.random.default_rng(4)
    shape = (1030, 700)
    image = rng.normal(0, 0.2, shape).astype(np.float32)
    for y, x in rng.integers(30, 670, (60, 2)):
        image[y - 20 : y + 21, x - 20 : x + 21] += blob(20, 20, 300, 2.0, shape=(41, 41)).astype(np.float32)
    big = Scene(image, np.full(shape, 0.2, np.float32), np.ones(shape, np.float32))
    obs = stored(str(tmp_path / "field.zarr"), big, 512)
    settings = {"bkg_boxsize": 400, **with_references(obs)}
    again(obs, **settings)  # so that everything is loaded and compiled
    measured: dict[str, list[tuple[int, int]]] = {}

    def fill(self: Runner, work: Any, tasks: list[Task], ledger: Any) -> Outcome:
        for task in tasks:
            for limit in (task.least, task.nbytes):
                before = tracemalloc.get_traced_memory()[0]
                tracemalloc.reset_peak()
                work(dataclasses.replace(task, limit=limit))
                measured.setdefault(work.func.__name__, []).append((tracemalloc.get_traced_memory()[1] - before, limit))
        return Outcome()

    monkeypatch.setattr(Runner, "fill", fill)
    tracemalloc.start()
    try:
        again(obs, **settings, snr_threshold=3.5)
    finally:
        tracemalloc.stop()
    assert set(measured) == {"mesh_work", "label_work", "source_work", "paint_work"}
    for name, rows in measured.items():
        for held, said in rows:
            assert held <= said, (name, held, said)
        held, said = max(rows)  # the fixed part is mostly for the codec's own buffers, which are not traced
        assert held > 0.1 * (said - catalog_pixels.SPARE), (name, held, said)
