"""Parameters with their origin, the record of a run, and doing it again."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import pytest

import streamimg3
from streamimg3 import Observation, Session, api, config
from streamimg3.engine.runner import Progress
from streamimg3.pipelines import image2, image3
from streamimg3.store.documents import ProvenanceDocument
from tests.conftest import command_line

FEW = ("--set", "tweakreg.skip=true", "--set", "resample.pixfrac=0.9", "--workers", "1")


@pytest.fixture(scope="module")
def done(field: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with parameters from a file and from the command line."""
    folder = tmp_path_factory.mktemp("record")
    (folder / "p.toml").write_text("[resample]\npixfrac = 0.7\nrotation = 5.0\n")
    made = command_line("run", "image3", field, "--output-dir", folder, "--config", folder / "p.toml", *FEW)
    assert made.returncode == 0, made.stderr
    assert "report " in made.stderr.splitlines()[-2] or "report " in made.stderr
    return folder


@pytest.mark.parametrize("module", [image2, image3])
def test_every_parameter_is_described(module) -> None:  # type: ignore[no-untyped-def]
    """None without a meaning; those that are lengths or angles have a unit."""
    rows = streamimg3.describe(module.__name__.rpartition(".")[2])
    assert [f"{r.step}.{r.name}" for r in rows if not r.meaning] == []
    assert {r.step for r in rows} == set(module.STAGES) and all(r.origin == "default" for r in rows)
    assert all(r.value == r.default for r in rows if r.name != "skip")
    units = {r.name: r.unit for r in rows}
    assert units["pixel_scale"] == "arcsec" and units["tile"] == "pixel"


def test_describe_and_print_config(done: Path, tmp_path: Path) -> None:
    """Origins are told, and what is printed leads to the same parameters."""
    options = ("--config", done / "p.toml", "--set", "resample.pixfrac=0.9")
    rows = json.loads(command_line("describe", "image3", "resample", *options, "--json").stdout)
    origin = {r["name"]: (r["value"], r["origin"]) for r in rows}
    assert origin["pixfrac"] == (0.9, "command line") and origin["rotation"] == (5.0, "file")
    assert origin["kernel"] == ("square", "default")
    assert (
        "resample.pixfrac = 0.9 input pixel  [float, command line (default 1.0)]"
        in command_line("describe", "image3", *options).stdout
    )
    text = command_line("print-config", "image3", *options).stdout
    (tmp_path / "again.toml").write_text(text)
    assert tomllib.loads(text)["resample"]["pixfrac"] == 0.9
    again = api.parameters("image3", config.read_file(str(tmp_path / "again.toml")), Progress())
    assert again == api.parameters("image3", {"resample": {"pixfrac": 0.9, "rotation": 5.0}}, Progress())


def test_record(done: Path) -> None:
    """The record names inputs with checksums, parameters with origins, host, versions and the checksums of the results."""
    (path,) = done.glob("*_run.json")
    record = ProvenanceDocument.from_json(path.read_bytes(), str(path))
    assert len(record.inputs) == 4 and all(len(i.checksums["sci"]) == 64 for i in record.inputs)
    assert record.origins["resample"] == {"pixfrac": "command line", "rotation": "file"}
    assert record.parameters["resample"]["pixfrac"] == 0.9 and record.parameters["tweakreg"]["skip"] is True
    assert {"machine", "system", "processors"} <= record.host.keys() and "numpy" in record.versions
    planes = {key.partition("@")[0] for key in record.results}
    assert {"mosaic/sci", "mosaic/con", "mosaic/segmentation", "catalog/label", "exposures/192x192/outlier"} <= planes
    (store,) = done.glob("*.zarr")
    assert Observation.at(str(store)).document(ProvenanceDocument) == record


def test_report_and_numbers(done: Path) -> None:
    (page,), (qa,) = done.glob("*_report.html"), done.glob("*_qa.json")
    text, told = page.read_text(), json.loads(qa.read_text())
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text
    assert told["status"] in ("pass", "warn") and told["steps"]["tweakreg"] == "SKIPPED"
    assert all(c["status"] in ("pass", "warn", "fail", "info") for c in told["checks"]) and len(told["checks"]) > 10
    assert "command line" in text and "resample" in text


def test_replay(done: Path, tmp_path: Path) -> None:
    """The same again is the same; a changed input is named, with what it changes."""
    (path,) = done.glob("*_run.json")
    same = command_line("replay", path, "--output-dir", tmp_path / "again", "--workers", 1)
    assert same.returncode == 0 and same.stdout.startswith("the same"), same.stdout + same.stderr
    tree = json.loads(path.read_text())
    tree["inputs"][1]["checksums"]["sci"] = "0" * 64
    tree["results"] = {k: ("1" * 64 if k.startswith("mosaic/wht") else v) for k, v in tree["results"].items()}
    (tmp_path / "other.json").write_text(json.dumps(tree))
    other = command_line("replay", tmp_path / "other.json", "--output-dir", tmp_path / "again", "--workers", 1)
    assert other.returncode == 1
    assert (
        "has changed: sci" in other.stdout
        and "mosaic/wht differs" in other.stdout
        and other.stdout.count("differs") == 1
    )
    refused = command_line("replay", path, "--output-dir", done, "--workers", 1)
    assert refused.returncode == 2 and "the store of the run itself" in refused.stderr


def test_what_is_no_record(field: Path, tmp_path: Path) -> None:
    """Somebody's own file is not called a damaged one."""
    said = command_line("replay", field, "--output-dir", tmp_path)
    assert said.returncode == 2 and said.stderr.strip().endswith("_run.json that one has left"), said.stderr
    assert "is not the record of a run" in said.stderr and "remove" not in said.stderr


def test_no_report(field: Path, tmp_path: Path) -> None:
    session = Session(output_dir=str(tmp_path), workers=1, report=False)
    streamimg3.run("image3", str(field), until="skymatch", session=session)
    assert not list(tmp_path.glob("*_report.html")) and not list(tmp_path.glob("*_run.json"))
    shutil.rmtree(tmp_path)
