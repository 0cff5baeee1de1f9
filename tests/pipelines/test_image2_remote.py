"""image2 with association, exposures, reference files, store and products elsewhere: the same as on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import fsspec
import pytest
from astropy.io import fits

from streamimg3 import Session, run
from tests.conftest import command_line
from tests.pipelines.rates import Case, Rate, make


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """One product with one background."""
    return make(tmp_path_factory.mktemp("rates"), {"jw01_nrca2": (Rate(1), (Rate(11, stars=False),))})


@pytest.fixture(scope="module")
def there(case: Case, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The calibrated exposure that a run on disk makes."""
    folder = tmp_path_factory.mktemp("disk")
    session = Session(output_dir=str(folder), workers=1, references=str(case.folder / "references"))
    run("image2", case.association, session=session)
    return (folder / "jw01_nrca2_cal.fits").read_bytes()


def same_pixels(ours: bytes, theirs: bytes) -> bool:
    """Whether two products have equal images."""
    with fits.HDUList.fromstring(ours) as a, fits.HDUList.fromstring(theirs) as b:
        assert [h.name for h in a] == [h.name for h in b]
        return all((x.data.tobytes() == y.data.tobytes()) for x, y in zip(a[1:-1], b[1:-1], strict=True))


def test_everything_in_memory(case: Case, there: bytes) -> None:
    """``memory://`` stands for any file system of fsspec's: nothing is on the disk."""
    files = fsspec.filesystem("memory")
    for path in (p for p in case.folder.rglob("*") if p.is_file()):
        files.pipe(f"/image2/{path.relative_to(case.folder)}", path.read_bytes())
    root = "memory://image2"
    session = Session(f"{root}/x.zarr", f"{root}/out", workers=1, references=f"{root}/references")
    obs = run("image2", f"{root}/image2_asn.json", session=session)
    assert obs.records()[0].url.endswith("jw01_nrca2_rate.fits")
    assert same_pixels(files.cat("/image2/out/jw01_nrca2_cal.fits"), there)
    lock = json.loads(files.cat("/image2/out/jw01_nrca2_references.json"))
    assert {entry["url"].rpartition("/")[0] for entry in lock["references"] if entry["url"]} == {
        f"memory:///{root[9:]}/references"
    }


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def site(case: Case) -> Iterator[str]:
    """The case behind a web server that knows nothing of ranges."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(case.folder)))
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_references_from_the_web(case: Case, there: bytes, site: str, tmp_path: Path) -> None:
    """By their addresses, and exposures too; ``--offline`` keeps from services, not from files that are named."""
    files = {kind: f"{site}/references/{Path(path).name}" for kind, path in case.references.items()}
    steps = {
        "distortion": "assign_wcs",
        "filteroffset": "assign_wcs",
        "flat": "flat_field",
        "photom": "photom",
        "area": "photom",
    }
    given = [f"--steps.{steps[kind]}.override_{kind}={url}" for kind, url in files.items()]
    said = command_line("run", "image2", f"{site}/image2_asn.json", "--offline", "--output-dir", tmp_path, *given)
    assert said.returncode == 0, said.stderr
    assert same_pixels((tmp_path / "jw01_nrca2_cal.fits").read_bytes(), there)
