"""coron3 from exposures to products: against arithmetic of our own, cut in other ways, resumed and changed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from numpy.typing import NDArray

from streamimg3 import Observation, Session, api, config, ingest, run
from streamimg3.engine.runner import Progress
from streamimg3.errors import BudgetError, InputError
from streamimg3.kernels.bad_fill import Filling, fill_bad
from streamimg3.store.coron_documents import AlignRefsDocument, KlipDocument
from streamimg3.store.documents import ResampleDocument, RunDocument
from tests.pipelines.conftest import Recorder
from tests.pipelines.coronagraphs import PRODUCT, Files, Scene, make, name_of, write_association

STEPS = ("outlier_detection", "stack_refs", "align_refs", "klip", "resample", "hlsp")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Two rolls, nine references."""
    return make(tmp_path_factory.mktemp("coron"))


def go(files: Files, folder: Path, progress: Progress | None = None, **more: Any) -> Observation:
    """Run coron3 in this process, into a folder."""
    until, memory, workers = more.pop("until", None), more.pop("memory", None), more.pop("workers", 1)
    session = Session(
        store=str(folder / "x.zarr"), output_dir=str(folder), workers=workers, progress=progress or Progress(),
        memory=memory,
    )  # fmt: skip
    return run("coron3", files.association, session=session, until=until, **files.steps(**more))


@pytest.fixture(scope="module")
def done(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; not to be changed."""
    folder = tmp_path_factory.mktemp("done")
    go(files, folder)
    return folder


def pixels(folder: Path, kind: str, extension: str = "SCI", number: int = 0) -> NDArray[Any]:
    """Pixels of a product."""
    path = sorted(folder.glob(f"*_{kind}.fits"))[number]
    data = fits.getdata(path, extension)
    return np.array(data, data.dtype.newbyteorder("="))


def sums(obs: Observation) -> dict[str, str]:
    """SHA-256 of every result array."""
    found = {}
    for node in sorted(Path(obs.url).rglob("zarr.json")):
        path = str(node.parent.relative_to(obs.url))
        if json.loads(node.read_text())["node_type"] == "array" and not path.startswith("receipts"):
            found[path] = hashlib.sha256(np.ascontiguousarray(obs.array(path)[...]).tobytes()).hexdigest()
    return found


def plain_klip(refs: NDArray[Any], science: NDArray[Any], modes: int, use: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Subtract the first principal components, by a singular value decomposition of everything at once."""
    r = refs[:, use].astype(float)
    r -= r.mean(axis=1, keepdims=True)
    t = science[:, use].astype(float)
    t -= t.mean(axis=1, keepdims=True)
    basis = np.linalg.svd(r, full_matrices=False)[2][:modes]
    left = np.full(science.shape, np.nan)
    left[:, use] = t - (t @ basis.T) @ basis
    return left


def brightest(image: NDArray[Any], star: tuple[float, float]) -> tuple[int, int]:
    """Place of the brightest pixel that is more than 6 pixels from the star."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    far = np.where(np.hypot(y - star[0], x - star[1]) > 6, image, -np.inf)
    j, i = np.unravel_index(int(np.nanargmax(far)), image.shape)
    return int(j), int(i)


# ---------------------------------------------------------------- results
def test_products(done: Path) -> None:
    """Names, extensions and what the headers say of the steps."""
    names = {p.name for p in done.iterdir() if p.suffix in (".fits", ".ecsv", ".png", ".json")}
    science = [name_of("science", n).replace("_calints", "_a3001_{}") for n in range(2)]
    wanted = {name.format(kind) for name in science for kind in ("crfints", "psfalign", "psfsub")}
    wanted |= {name_of("psf", n).replace("_calints", "_a3001_crfints") for n in range(2)}
    wanted |= {f"{PRODUCT}_{end}" for end in ("psfstack.fits", "i2d.fits", "snr.fits", "contrast.ecsv", "contrast.png")}
    assert names == wanted | {f"{PRODUCT}_{end}.json" for end in ("references", "qa", "run")}
    told = {
        "crfints": "S_OUTLIR",
        "psfstack": "S_PSFSTK",
        "psfalign": "S_PSFALI",
        "psfsub": "S_KLIP",
        "i2d": "S_RESAMP",
    }
    for kind, keyword in told.items():
        header = fits.getheader(next(done.glob(f"*_{kind}.fits")))
        assert header[keyword] == "COMPLETE"
    assert fits.getheader(next(done.glob("*_psfalign.fits")))["R_PSFMAS"].endswith("psfmask.fits")
    assert pixels(done, "psfstack").shape == pixels(done, "psfalign").shape == (9, 40, 44)
    assert pixels(done, "psfsub").shape == (3, 40, 44)


def test_shifts_are_found(files: Files, done: Path) -> None:
    """Where the references were put, within what their own speckles do to the fit."""
    document = Observation.at(str(done / "x.zarr")).document(AlignRefsDocument)
    assert document is not None
    for found in document.exposures:
        wanted = np.repeat(np.array(files.scene.shifts), files.scene.psf, axis=0)
        assert np.abs(np.array([found.y, found.x]).T - wanted).max() < 0.15
        assert all(found.converged)


def test_known_shifts(tmp_path: Path) -> None:
    """The same star in all images: to 1e-3 pixels."""
    scene = Scene(bad=0.0, speckles=0.0, noise=1e-3, companion=None, science=(1,), psf=(1, 1))
    document = go(make(tmp_path / "in", scene), tmp_path, until="align_refs").document(AlignRefsDocument)
    assert document is not None
    (found,) = document.exposures
    assert np.abs(np.array([found.y, found.x]).T - np.array(scene.shifts)).max() < 1e-3
    assert not list(tmp_path.glob("*_psfsub.fits"))


def test_klip_is_that_of_the_whole_cube(done: Path) -> None:
    """What bands of rows give is what a decomposition of whole images gives, from the aligned references as written."""
    obs = Observation.at(str(done / "x.zarr"))
    for number in range(2):
        refs, science = pixels(done, "psfalign", number=number), pixels(done, "crfints", number=number)
        fill_bad(science, pixels(done, "crfints", "DQ", number).astype(np.uint32), Filling())
        whole = plain_klip(refs, science, 4, np.ones(science.shape[1:], bool))
        assert np.abs(pixels(done, "psfsub", number=number) - whole).max() < 1e-6 * np.abs(science).max()
    document = obs.document(KlipDocument)
    assert document is not None
    assert [one.kept for one in document.exposures] == [((4,),), ((4,),)]


def test_klip_without_bad_pixels(tmp_path: Path) -> None:
    """The same to the last digits of float32; ERR is the scatter of what is left of the references."""
    files = make(tmp_path / "in", Scene(bad=0.0))
    go(files, tmp_path, outlier_detection={"skip": True})
    refs = pixels(tmp_path, "psfalign")
    planes = files.scene.pixels(0, 3, (0.0, 0.0), 0)
    whole = plain_klip(refs, planes["SCI"], 4, np.ones(refs.shape[1:], bool))
    peak = np.abs(planes["SCI"]).max()
    assert np.abs(pixels(tmp_path, "psfsub") - whole).max() < 1e-6 * peak
    centred = refs.reshape(9, -1) - refs.reshape(9, -1).mean(axis=1, dtype=float, keepdims=True)
    basis = np.linalg.svd(centred, full_matrices=False)[2][:4]
    left = (centred - centred @ basis.T @ basis).std(axis=0).reshape(refs.shape[1:])
    assert np.abs(pixels(tmp_path, "psfsub", "ERR") - left).max() < 1e-6 * peak


def test_companion_stands_out(files: Files, done: Path) -> None:
    """The star is gone, the companion is at its place in both rolls and in the mosaic."""
    scene = files.scene
    for number in range(2):
        left, star = pixels(done, "psfsub", number=number), pixels(done, "crfints", number=number)
        assert np.nanstd(left) < 0.15 * np.nanstd(star)
        found = brightest(left.mean(axis=0), scene.centre)
        assert np.hypot(*(np.array(found) - scene.companion_at(number))) < 1.0
    i2d, snr = pixels(done, "i2d"), pixels(done, "snr")
    x, y = WCS(fits.getheader(next(done.glob("*_i2d.fits")), "SCI")).all_world2pix(150.0, 2.0, 0)
    found = brightest(i2d, (float(y), float(x)))
    assert brightest(snr, (float(y), float(x))) == found
    assert i2d[found] > 0.3
    assert scene.companion is not None
    assert np.hypot(found[0] - y, found[1] - x) == pytest.approx(np.hypot(*scene.companion[:2]), abs=1.0)
    table = Table.read(next(done.glob("*_contrast.ecsv")))
    assert table.colnames == ["radius", "sigma", "separation"]
    assert table["radius"][1] == 3.0


def test_context_counts_integrations(done: Path) -> None:
    """Five integrations, five bits; one row of HDRTAB for each science exposure."""
    context = pixels(done, "i2d", "CON")
    assert context.shape[0] == 1
    assert np.bitwise_or.reduce(context, axis=None) == 0b11111
    assert len(fits.getdata(next(done.glob("*_i2d.fits")), "HDRTAB")) == 2


# ---------------------------------------------------------------- the same in another way
@pytest.mark.parametrize(("workers", "tile"), [(1, 7), (2, 16), (2, 64)])
def test_bits_do_not_depend_on_bands_and_workers(
    files: Files, done: Path, tmp_path: Path, workers: int, tile: int
) -> None:
    """Heights of bands and workers."""
    obs = go(files, tmp_path, workers=workers, klip={"tile": tile})
    assert sums(obs) == sums(Observation.at(str(done / "x.zarr")))


def test_several_numbers_of_components(files: Files, done: Path, tmp_path: Path) -> None:
    """A list gives what single runs give, each with products of its own."""
    go(files, tmp_path, klip={"truncate": [0, 4, 50]})
    for extension in ("SCI", "ERR"):
        np.testing.assert_array_equal(pixels(tmp_path, "kl4_psfsub", extension), pixels(done, "psfsub", extension))
        np.testing.assert_array_equal(pixels(tmp_path, "kl4_i2d", extension), pixels(done, "i2d", extension))
    assert len(list(tmp_path.glob("*_psfsub.fits"))) == 6
    assert {p.name for p in tmp_path.glob("*_i2d.fits")} == {f"{PRODUCT}_kl{k}_i2d.fits" for k in (0, 4, 50)}
    assert len(list(tmp_path.glob("*_contrast.ecsv"))) == 3
    science = pixels(tmp_path, "kl0_psfsub")[0]
    assert abs(float(science.mean())) < 1e-4  # only means are subtracted


def test_each_integration_with_its_own_references(files: Files, done: Path, tmp_path: Path) -> None:
    """The first integration as when all are aligned to it; the aligned stack has four dimensions."""
    obs = go(files, tmp_path, align_refs={"align_to": "each"})
    document = obs.document(AlignRefsDocument)
    assert document is not None
    assert document.exposures[0].targets == 3
    stack = pixels(tmp_path, "psfalign")
    assert stack.shape == (3, 9, 40, 44)
    np.testing.assert_array_equal(stack[0], pixels(done, "psfalign"))
    assert (stack[1] != stack[0]).any()
    left, first = pixels(tmp_path, "psfsub"), pixels(done, "psfsub")
    np.testing.assert_allclose(left[0], first[0], atol=2e-6)
    err = pixels(tmp_path, "psfsub", "ERR")
    assert (err[0] != err[1]).any()
    assert not obs.backend.keys("components")


def test_aligned_to_the_mean(files: Files, done: Path, tmp_path: Path) -> None:
    """Other shifts, hardly."""
    found, before = (
        o.document(AlignRefsDocument)
        for o in (go(files, tmp_path, align_refs={"align_to": "mean"}), Observation.at(str(done / "x.zarr")))
    )
    assert found is not None and before is not None
    apart = np.abs(np.array(found.exposures[0].y) - np.array(before.exposures[0].y))
    assert 0 < apart.max() < 0.05


def test_rings_and_sectors(tmp_path: Path) -> None:
    """Each region has components of its own; outside of them there is nothing."""
    files = make(tmp_path / "in", Scene(bad=0.0, science=(2,), psf=(6,)))
    settings = {"annuli": [3, 9, 15], "sectors": 2, "centre": [21.5, 19.5], "truncate": 2}
    obs = go(files, tmp_path, outlier_detection={"skip": True}, klip=settings)
    refs, left = pixels(tmp_path, "psfalign"), pixels(tmp_path, "psfsub")
    science = files.scene.pixels(0, 2, (0.0, 0.0), 0)["SCI"]
    y, x = np.mgrid[:40, :44]
    r, upper = np.hypot(y - 19.5, x - 21.5), y > 19.5
    for inner, outer in ((3, 9), (9, 15)):
        for half in (upper, ~upper):
            use = (r >= inner) & (r < outer) & half
            whole = plain_klip(refs, science, 2, use)
            assert np.abs(left - whole)[:, use].max() < 1e-5
    assert np.isnan(left[:, (r < 3) | (r >= 15)]).all()
    again = go(files, tmp_path / "again", outlier_detection={"skip": True}, klip={**settings, "tile": 5}, workers=2)
    assert {k: v for k, v in sums(again).items() if k.startswith("psfsub")} == {
        k: v for k, v in sums(obs).items() if k.startswith("psfsub")
    }


def test_nan_and_a_single_reference(tmp_path: Path) -> None:
    """Without weights references stay as they are, NaN and all; one reference has one component."""
    files = make(tmp_path / "in", Scene(psf=(1,)))
    recorder = Recorder()
    obs = go(files, tmp_path, recorder, align_refs={"override_psfmask": "N/A"})
    document = obs.document(RunDocument)
    assert document is not None
    assert (document.statuses["align_refs"], document.reasons["align_refs"]) == ("SKIPPED", "psfmask is N/A")
    assert any("single reference" in note for note in recorder.notes)
    assert any("pixels are missing in a reference" in note for note in recorder.notes)
    left = pixels(tmp_path, "psfsub")
    assert 0.9 < np.isfinite(left).mean() < 1.0
    assert not list(tmp_path.glob("*_psfalign.fits"))


# ---------------------------------------------------------------- again, changed, refused
def test_second_run_keeps_everything(files: Files, tmp_path: Path) -> None:
    """Nothing is done twice; another number of components leaves the alignment as it is."""
    first = sums(go(files, tmp_path))
    recorder = Recorder()
    assert sums(go(files, tmp_path, recorder)) == first
    kept = [f"{step}: unchanged, kept" for step in ("outlier_detection", "align_refs", "klip", "resample", "hlsp")]
    assert [note for note in recorder.notes if note in kept] == kept
    recorder = Recorder()
    changed = sums(go(files, tmp_path, recorder, klip={"truncate": 2}))
    assert "align_refs: unchanged, kept" in recorder.notes
    assert changed["mosaic/sci"] != first["mosaic/sci"]
    assert not any("kl4" in path for path in changed)


def test_steps_that_are_skipped(files: Files, tmp_path: Path) -> None:
    """Later ones that need them are skipped too, and say why."""
    document = go(files, tmp_path, klip={"skip": True}).document(RunDocument)
    assert document is not None
    assert list(document.statuses) == list(STEPS)
    assert document.reasons["klip"] == "by the user"
    assert document.reasons["resample"] == "because klip was skipped"
    assert document.reasons["hlsp"] == "because resample was skipped"
    assert not list(tmp_path.glob("*_i2d.fits"))


def test_plan_and_budget(files: Files, tmp_path: Path) -> None:
    """A plan names the tasks of all steps; a budget that is too small is refused before pixels are read."""
    session = Session(store=str(tmp_path / "x.zarr"), output_dir=str(tmp_path), workers=1)
    planned = api.plan("coron3", files.association, config.as_settings(files.steps()), session)
    assert list(planned) == ["ingest", *STEPS]
    assert [len(planned[s]) for s in STEPS] == [4 + 1, 0, 2, 2 * (3 + 1), 1, 1]
    with pytest.raises(BudgetError, match="smallest budget"):
        go(files, tmp_path / "small", memory="10MiB")
    assert not list((tmp_path / "small").rglob("sci/c/*"))


def test_bad_input(files: Files, tmp_path: Path) -> None:
    """What cannot be subtracted is refused, in a line that says what to do."""
    listed = json.loads(Path(files.association).read_text())["products"][0]["members"]
    only = make(tmp_path / "only", Scene(psf=()))
    with pytest.raises(InputError, match="has no member of exptype psf"):
        go(only, tmp_path / "a")
    write_association(only.folder, [m for m in listed if m["exptype"] == "psf"])
    with pytest.raises(InputError, match="has no member of exptype science"):
        go(only, tmp_path / "b")
    other = make(tmp_path / "other", Scene(science=(2,), psf=(2,)))
    smaller = make(tmp_path / "smaller", Scene(shape=(38, 44), science=(), psf=(2, 2)))
    (smaller.folder / name_of("psf", 1)).rename(other.folder / name_of("psf", 1))
    names = [name_of("science", 0), name_of("psf", 0), name_of("psf", 1)]
    write_association(
        other.folder, [{"expname": n, "exptype": k} for n, k in zip(names, ("science", "psf", "psf"), strict=True)]
    )
    with pytest.raises(InputError, match="different shapes"):
        go(other, tmp_path / "c")
    with pytest.raises(InputError, match="needs a psfmask reference"):
        go(files, tmp_path / "d", align_refs={"override_psfmask": None})
    with pytest.raises(InputError, match="give coron3 or tso3 the cubes"):
        run("image3", files.association, session=Session(store=str(tmp_path / "e.zarr"), output_dir=str(tmp_path)))


@pytest.mark.parametrize(
    ("step", "values"),
    [
        ("klip", {"truncate": -1}), ("klip", {"truncate": [3, 3]}), ("klip", {"annuli": [5, 2]}), ("klip", {"sectors": 0}),
        ("align_refs", {"align_to": "last"}), ("align_refs", {"median_box_length": -1}), ("align_refs", {"bad_bits": "X"}),
        ("align_refs", {"compat": "2"}), ("outlier_detection", {"snr": 0}), ("hlsp", {"annuli_width": 0}),
        ("resample", {"single": True}), ("outlier_detection", {"maskpt": 2}), ("klip", {"tile": 0}),
    ],
)  # fmt: skip
def test_bad_parameters(files: Files, tmp_path: Path, step: str, values: dict[str, Any]) -> None:
    """Each is refused by name."""
    with pytest.raises(InputError, match=f"{step}.{next(iter(values))}|names 'X'"):
        go(files, tmp_path, **{step: values})


def test_store_of_cubes_opens_in_xarray(done: Path) -> None:
    """Everything that coron3 leaves behind."""
    import xarray

    tree = xarray.open_datatree(str(done / "x.zarr"), engine="zarr", chunks=None)
    name = name_of("science", 0).removesuffix("_calints.fits")
    assert tree[f"psfsub/kl4/{name}"]["sci"].dims == ("frame", "y", "x")
    assert tree[f"psfalign/{name}"]["sci"].dims == ("reference", "y", "x")
    assert set(tree["mosaic"].data_vars) >= {"sci", "err", "wht", "con"}


def test_ingest_takes_references_too(files: Files, tmp_path: Path) -> None:
    """A store can be made first; coron3 then finds roles in it."""
    obs = ingest(files.association, Session(store=str(tmp_path / "x.zarr"), workers=1))
    assert [r.integrations for r in obs.records()] == [3, 2, 4, 5]
    session = Session(output_dir=str(tmp_path), workers=1)
    run("coron3", obs.url, session=session, **files.steps())
    assert obs.document(ResampleDocument) is not None
