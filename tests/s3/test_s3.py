"""Everything on S3: members, store and products; the same bytes as on local disk, and nothing half-done when it fails."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import obstore
import pytest
from astropy.io import fits

from streamimg3 import Observation, Session, cutouts, run
from streamimg3.sky.wcs import Wcs
from streamimg3.store.documents import ResampleDocument
from tests.conftest import SKIP
from tests.pipelines.rates import Rate, make
from tests.s3.conftest import BUCKET, Server

pytestmark = pytest.mark.s3

PRODUCT = "jw01234-o001_t001_nircam_clear-f200w_i2d.fits"
STEPS = [f"--steps.{step}.skip=true" for step in SKIP]
TILE = 64


def _arguments(association: str, name: str, *more: object) -> list[object]:
    where = ["--store", f"s3://{BUCKET}/{name}.zarr", "--output-dir", f"s3://{BUCKET}/{name}"]
    return ["run", "image3", association, *where, *STEPS, "--set", f"resample.tile={TILE}", "--no-report", *more]


def _sums(obs: Observation) -> dict[str, str]:
    """SHA-256 of every image in a store: all planes of the exposures and of the mosaic."""
    document = obs.document(ResampleDocument)
    assert document is not None
    paths = [f"{document.path}/{plane}" for plane in document.planes]
    paths += [f"{e.group}/{plane}" for e in obs.exposures()[:1] for plane in (*e.record.planes, "nan")]
    return {p: hashlib.sha256(np.ascontiguousarray(obs.array(p)[...]).tobytes()).hexdigest() for p in paths}


def _undated(product: bytes) -> bytes:
    """The product without the date of writing and the digest that depends on it."""
    date = re.search(rb"DATE    = '([^']+)'", product)
    assert date is not None
    return re.sub(rb"_fits_hash: [0-9a-f]{64}", b"_fits_hash", product.replace(date[1], b"date"))


@pytest.fixture(scope="session")
def local(field: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], bytes]:
    """Sums and product of the same run on local disk."""
    folder = tmp_path_factory.mktemp("local")
    obs = run("image3", str(field), session=Session(output_dir=str(folder), workers=1), **SKIP, resample={"tile": TILE})
    return _sums(obs), (folder / PRODUCT).read_bytes()


@pytest.fixture(scope="session")
def finished(server: Server, association: str) -> Observation:
    """The store of a finished run."""
    done = server.run(*_arguments(association, "one", "--workers", 1))
    assert done.returncode == 0, done.stderr
    return Observation.at(f"s3://{BUCKET}/one.zarr", server.options)


def test_same_bytes_as_on_disk(server: Server, finished: Observation, local: tuple[dict[str, str], bytes]) -> None:
    """Exposures, mosaic and product are those of a local run, in one process."""
    assert _sums(finished) == local[0]
    assert server.keys("one/") == [f"one/{PRODUCT}"]
    product = bytes(obstore.get(server.bucket(), f"one/{PRODUCT}").bytes())
    with fits.open(BytesIO(product)) as ours, fits.open(BytesIO(local[1])) as theirs:
        assert fits.FITSDiff(ours, theirs, ignore_keywords=["DATE"], ignore_hdus=["ASDF"]).identical
    assert _undated(product) == _undated(local[1])


def test_workers_write_the_same(server: Server, association: str, local: tuple[dict[str, str], bytes]) -> None:
    """So they are with two worker processes; the same command again keeps everything."""
    done = server.run(*_arguments(association, "two", "--workers", 2))
    assert done.returncode == 0, done.stderr
    assert _sums(Observation.at(f"s3://{BUCKET}/two.zarr", server.options)) == local[0]
    again = server.run(*_arguments(association, "two", "--workers", 2))
    assert again.returncode == 0, again.stderr
    assert "ingest: 4 files unchanged, kept" in again.stderr and "resample: unchanged, kept" in again.stderr
    assert "export: 1 file unchanged, kept" in again.stderr
    obstore.put(server.bucket(), f"two/{PRODUCT}", b"somebody else's")
    mended = server.run(*_arguments(association, "two", "--workers", 2))
    assert mended.returncode == 0 and f"wrote s3://{BUCKET}/two/{PRODUCT}" in mended.stderr
    assert len(bytes(obstore.get(server.bucket(), f"two/{PRODUCT}").bytes())) == len(local[1])


def test_all_steps_on_s3(server: Server, association: str, field: Path, tmp_path: Path) -> None:
    """Alignment, sky, outliers and catalogue too: every array and every product name as in a run on local disk."""
    tiles = {step: {"tile": TILE} for step in ("resample", "outlier_detection")}
    here = run("image3", str(field), session=Session(output_dir=str(tmp_path / "out"), workers=1), **tiles)
    words = [w for step in tiles for w in ("--set", f"{step}.tile={TILE}")]
    where = ["--store", f"s3://{BUCKET}/all.zarr", "--output-dir", f"s3://{BUCKET}/all"]
    done = server.run("run", "image3", association, *where, *words, "--workers", 2)
    assert done.returncode == 0, done.stderr
    there = Observation.at(f"s3://{BUCKET}/all.zarr", server.options)
    names = [str(n.parent.relative_to(here.url)) for n in Path(here.url).rglob("zarr.json")]
    arrays = [n for n in names if json.loads((Path(here.url) / n / "zarr.json").read_text())["node_type"] == "array"]
    assert {"mosaic/segmentation", "catalog/label", "exposures/192x192/outlier"} <= set(arrays)
    for name in sorted(set(arrays) - {"exposures/192x192/wcs"}):
        ours, theirs = (np.ascontiguousarray(obs.array(name)[...]).tobytes() for obs in (there, here))
        assert ours == theirs, name
    made = sorted(p.name for p in (tmp_path / "out").iterdir() if p.is_file())
    assert server.keys("all/") == [f"all/{name}" for name in made]
    assert len(made) == 4 + 3 + 3  # exposures; mosaic, catalogue, segmentation; record, report and its numbers


def test_cutouts(server: Server, finished: Observation, tmp_path: Path) -> None:
    """Stamps go to S3 as an array, as one file and as a file each, and are those of local disk."""
    document = finished.document(ResampleDocument)
    assert document is not None
    wcs = Wcs("gwcs", document.wcs_asdf.encode("latin-1"), document.shape)
    y, x = np.random.default_rng(2).uniform(5.0, min(document.shape) - 5.0, (2, 300))
    places = wcs.to_sky(y, x, bounded=False)
    base = f"s3://{BUCKET}/stamps"
    outputs = {name: f"{base}/{name}" for name in ("s.zarr", "all.fits", "each")}
    for name, url in outputs.items():
        assert cutouts(finished, places, "16pix", url, **server.options) == 300
        assert cutouts(finished, places, "16pix", str(tmp_path / name)) == 300
    ours, theirs = (
        Observation.at(u, o) for u, o in ((outputs["s.zarr"], server.options), (str(tmp_path / "s.zarr"), {}))
    )
    for column in ("sci", "ra", "dec", "y0", "x0"):
        assert np.array_equal(ours.array(column)[...], theirs.array(column)[...], equal_nan=True)
    local = {"all.fits": tmp_path / "all.fits"} | {
        f"each/{i}.fits": tmp_path / "each" / f"{i}.fits" for i in range(1, 301)
    }
    assert [k for k in server.keys("stamps/") if "zarr" not in k] == sorted(f"stamps/{name}" for name in local)
    for name, path in local.items():
        assert bytes(obstore.get(server.bucket(), f"stamps/{name}").bytes()) == path.read_bytes()


def test_credentials_as_options(server: Server, finished: Observation) -> None:
    """--storage-option does what the environment does."""
    bare = {k: v for k, v in server.environment.items() if not k.startswith("AWS_")} | {
        "AWS_EC2_METADATA_DISABLED": "true"
    }
    options = [text for pair in server.options.items() for text in ("--storage-option", "=".join(pair))]
    command = [sys.executable, "-m", "streamimg3", "info", finished.url, *options]
    done = subprocess.run(command, capture_output=True, text=True, env=bare, check=False)
    assert done.returncode == 0, done.stderr
    assert "exposures: 4" in done.stdout


def test_opens_with_xarray(server: Server, finished: Observation) -> None:
    """Xarray opens the store through Zarr alone, and reads a window."""
    import xarray
    from obstore.store import S3Store
    from zarr.storage import ObjectStore

    where = S3Store(
        BUCKET, prefix="one.zarr", endpoint=server.endpoint, access_key_id=server.options["key"],
        secret_access_key=server.options["secret"], region="us-east-1", client_options={"allow_http": True},
    )  # fmt: skip
    with xarray.open_datatree(ObjectStore(where, read_only=True), engine="zarr", chunks=None) as tree:
        sci = tree["mosaic/sci"]
        assert sci.dims == ("y", "x") and sci.attrs["units"] == "MJy/sr"
        assert tree["exposures/192x192/sci"].shape == (4, 192, 192)
        window = sci.isel(y=slice(100, 110), x=slice(100, 110)).to_numpy()
    assert np.array_equal(window, finished.array("mosaic/sci")[100:110, 100:110], equal_nan=True)


def test_what_is_not_there_is_one_line(server: Server, association: str) -> None:
    """A bucket, member or store that does not exist, and wrong credentials, end in one line that names the URL."""
    table = json.loads(bytes(obstore.get(server.bucket(), association.split("/", 3)[3]).bytes()))
    table["products"][0]["members"][1]["expname"] = "lost_cal.fits"
    obstore.put(server.bucket(), "in/lost_asn.json", json.dumps(table).encode())
    cases = (
        (f"s3://{BUCKET}/in/lost_asn.json", "lost_cal.fits", 2),
        (f"s3://{BUCKET}/in/none_asn.json", "none_asn.json", 2),
    )
    for url, word, code in cases:
        done = server.run(*_arguments(url, "none"))
        assert done.returncode == code, done.stderr
        lines = done.stderr.splitlines()
        assert len(lines) == 1 and lines[0].startswith("streamimg3: ") and word in lines[0], done.stderr
    done = server.run("info", f"s3://{BUCKET}/none.zarr")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "none.zarr" in done.stderr, done.stderr
    done = server.run("info", f"s3://{BUCKET}/one.zarr", "--storage-option", "secret=wrong")
    assert done.returncode in (1, 2) and len(done.stderr.splitlines()) == 1, done.stderr
    assert "one.zarr" in done.stderr and "credentials" in done.stderr, done.stderr
    assert server.keys("none") == []


# ---------------------------------------------------------------- the server goes away
def _kill_server_when(
    server: Server, arguments: list[object], log: Path, event: str, after: float = 0.0
) -> tuple[int, str, float]:
    """Start a run, kill the server some time after an event; returns exit code, what was said and seconds it took to give up."""
    command = [sys.executable, "-m", "streamimg3", *map(str, arguments), "--log-json", str(log)]
    command += ["--storage-option", "retries=3"]  # so that it gives up sooner
    said = log.with_suffix(".err")
    with open(said, "wb") as file:
        process = subprocess.Popen(command, stderr=file, env=server.environment)
    while not (log.exists() and event in log.read_text()):
        assert process.poll() is None, said.read_text()
        time.sleep(0.01)
    time.sleep(after)
    start = time.monotonic()
    server.kill()
    try:
        code = process.wait(timeout=300)
    finally:
        process.kill()
        server.start()
    return code, said.read_text(), time.monotonic() - start


def _assert_failed(code: int, said: str, name: str) -> None:
    lines = [line for line in said.splitlines() if line.startswith("streamimg3: ")]
    assert code == 1, said
    assert len(lines) == 1 and name in lines[0] and said.splitlines()[-1] == lines[0], said
    assert "Traceback" not in said


def test_server_lost_while_tiles_are_made(
    server: Server, association: str, tmp_path: Path, local: tuple[dict[str, str], bytes]
) -> None:
    """A run that loses its store fails in one line and leaves no product; afterwards it goes on where it was."""
    arguments = _arguments(association, "lost", "--workers", 1)
    code, said, seconds = _kill_server_when(server, arguments, tmp_path / "log", '"event": "task", "stage": "resample"')
    print(f"gave up {seconds:.0f} s after the server was lost")
    _assert_failed(code, said, "lost.zarr")
    assert server.keys("lost/") == []
    assert "lost.zarr/documents/resample.json" not in server.keys("lost.zarr/documents")
    done = server.run(*arguments)
    assert done.returncode == 0, done.stderr
    kept = re.search(r"resample: (\d+) of \d+ tasks were done before", done.stderr)
    assert kept and int(kept[1]) >= 1
    assert _sums(Observation.at(f"s3://{BUCKET}/lost.zarr", server.options)) == local[0]
    assert server.keys("lost/") == [f"lost/{PRODUCT}"]


@pytest.mark.parametrize("after", [0.0, 0.3, 0.7])
def test_server_lost_while_the_product_is_written(server: Server, field: Path, tmp_path: Path, after: float) -> None:
    """The product is there whole or not at all; more than one part is uploaded here."""
    name = f"part{after}"
    arguments = [
        "run", "image3", field, "--store", tmp_path / "x.zarr", "--output-dir", f"s3://{BUCKET}/{name}", "--workers", 1,
        "--no-report", *STEPS, "--set", "resample.pixel_scale_ratio=0.2",
    ]  # fmt: skip
    code, said, _ = _kill_server_when(server, arguments, tmp_path / "log", "source_catalog: skipped", after)
    print(f"server lost {after} s after the mosaic was made: exit code {code}")
    there = server.keys(f"{name}/")
    if code == 0:  # it was quicker
        assert there == [f"{name}/{PRODUCT}"]
    else:
        _assert_failed(code, said, PRODUCT)
        assert there == []
    done = server.run(*arguments)
    assert done.returncode == 0 and "resample: unchanged, kept" in done.stderr, done.stderr
    product = bytes(obstore.get(server.bucket(), f"{name}/{PRODUCT}").bytes())
    assert len(product) > 2 * 16 * 2**20
    with fits.open(BytesIO(product)) as hdus:
        mosaic = Observation.at(str(tmp_path / "x.zarr")).array("mosaic/sci")[...]
        assert np.array_equal(hdus["SCI"].data, mosaic, equal_nan=True)


def test_image2_on_s3_equals_image2_on_disk(server: Server, tmp_path: Path) -> None:
    """Count rates, backgrounds, a folder of reference files, store and products, with two workers."""
    case = make(tmp_path / "rates", {f"jw0{n}_nrca2": (Rate(n), (Rate(11, stars=False),)) for n in (1, 2)})
    for path in (p for p in case.folder.rglob("*") if p.is_file()):
        obstore.put(server.bucket(), f"image2/{path.relative_to(case.folder)}", path)
    root = f"s3://{BUCKET}/image2"
    command = ["run", "image2", f"{root}/image2_asn.json", "--references", f"{root}/references", "--workers", 2]
    done = server.run(*command, "--store", f"{root}/x.zarr", "--output-dir", f"{root}/out")
    assert done.returncode == 0, done.stderr
    here = Session(output_dir=str(tmp_path), workers=1, references=str(case.folder / "references"))
    local = run("image2", case.association, session=here)
    there = Observation.at(f"{root}/x.zarr", server.options)
    pixels = [[{k: v for k, v in r.checksums.items() if k != "wcs"} for r in obs.records()] for obs in (there, local)]
    assert pixels[0] == pixels[1]
    made = {key.rpartition("/")[2] for key in server.keys("image2/out/")}
    assert made == {p.name for p in tmp_path.iterdir() if p.is_file()}
