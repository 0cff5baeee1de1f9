"""The frozen JSON Schemas: they are what the dataclasses say, real documents fit them, and changes need a new version."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
from jsonschema import Draft202012Validator, ValidationError

from streamimg3 import Observation, Session, run
from streamimg3.engine import Runner
from streamimg3.stages import resample
from streamimg3.store.documents import Document, OutputWcsDocument, SkyDocument

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from freeze_schemas import FOLDER, Frozen, FrozenError, every_schema, freeze, kinds, main, of_document  # noqa: E402

SCHEMAS = {frozen.filename: frozen for frozen in every_schema()}


def validator(name: str) -> Draft202012Validator:
    """Of the frozen file, not of what the script would write."""
    return Draft202012Validator(json.loads((FOLDER / name).read_text()))


# ---------------------------------------------------------------- frozen files
@pytest.mark.parametrize("name", SCHEMAS)
def test_the_frozen_file_is_what_the_dataclass_says(name: str) -> None:
    """If this fails: raise the document's version and run scripts/freeze_schemas.py."""
    assert (FOLDER / name).read_text() == SCHEMAS[name].text


def test_every_document_of_the_package_is_frozen() -> None:
    classes = set()
    for path in (ROOT / "streamimg3").rglob("*.py"):
        classes |= set(re.findall(r"^class (\w+)\(Document\)", path.read_text(), re.MULTILINE))
    assert classes == {kind.__name__ for kind in kinds()}
    assert set(SCHEMAS) == {f"{k.kind}-v{k.version}.json" for k in kinds()} | {"exposure-v1.json", "stars-v1.json"}


def test_frozen_files_are_schemas_of_known_kinds() -> None:
    """Files of earlier versions stay, so that old stores can still be judged."""
    newest = {frozen.kind: frozen.version for frozen in SCHEMAS.values()}
    for path in FOLDER.glob("*.json"):
        schema = json.loads(path.read_text())
        Draft202012Validator.check_schema(schema)
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        kind, version = re.fullmatch(r"(\w+)-v(\d+)\.json", path.name).groups()  # type: ignore[union-attr]
        assert schema["title"] == f"streamimg3/{kind}"
        assert 1 <= int(version) <= newest[kind]


# ---------------------------------------------------------------- real documents
@pytest.fixture(scope="module")
def reduced(ingested: Observation, tmp_path_factory: pytest.TempPathFactory) -> Observation:
    """A copy of the shared store with a mosaic, and the documents that a run like this does not make."""
    url = tmp_path_factory.mktemp("schemas") / "field.zarr"
    shutil.copytree(ingested.url, url)
    obs = Observation.at(str(url))
    resample.run(obs, resample.Params(crpix=(3.0, 4.5), output_shape=(120, 100), good_bits="~1"), Runner())
    obs.commit(SkyDocument(method="match", levels=(0.1, None, 0.3, -0.2)))
    obs.commit(OutputWcsDocument("frame.asdf", "#ASDF 1.0.0", (100, 120), 0.03))
    return obs


def test_documents_of_a_store_fit_their_schemas(reduced: Observation) -> None:
    names = reduced.backend.keys("documents")
    assert {"association.json", "resample.json"} <= set(names)
    for name in names:
        tree = json.loads(reduced.backend.get(f"documents/{name}") or b"")
        kind = tree["schema"].removeprefix("streamimg3/")
        validator(f"{kind}-v{tree['version']}.json").validate(tree)


def test_everything_a_run_leaves_fits_its_schema(field: Path, tmp_path: Path) -> None:
    """All documents of a whole run, its star lists, its record and its report in numbers."""
    run("image3", str(field), session=Session(output_dir=str(tmp_path), workers=1))
    (store,) = tmp_path.glob("*.zarr")
    files = [
        *store.glob("documents/*.json"),
        *store.glob("stars/lists/*.json"),
        *tmp_path.glob("*_run.json"),
        *tmp_path.glob("*_qa.json"),
    ]
    kinds_found = set()
    for path in files:
        tree = json.loads(path.read_text())
        kind = tree["schema"].removeprefix("streamimg3/")
        validator(f"{kind}-v{tree['version']}.json").validate(tree)
        kinds_found.add(kind)
    assert {
        "alignment",
        "sky",
        "outliers",
        "resample",
        "overviews",
        "catalog",
        "run",
        "provenance",
        "qa",
        "stars",
    } <= kinds_found


def test_records_of_a_store_fit_their_schema(reduced: Observation) -> None:
    records = json.loads(reduced.backend.get("exposures/index.json") or b"")
    assert len(records) == 4
    for record in records:
        validator("exposure-v1.json").validate(record)


@pytest.mark.parametrize("kind", kinds())
def test_empty_documents_fit_their_schemas(kind: type[Document]) -> None:
    validator(f"{kind.kind}-v{kind.version}.json").validate(json.loads(kind().to_json()))


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2}, {"schema": "streamimg3/other"}, {"levels": "none"}, {"levels": ["x"]}, {"method": None},
        {"colour": "red"}, {"method": ...},
    ],
)  # fmt: skip
def test_what_does_not_fit_is_found(change: dict[str, Any]) -> None:
    tree = json.loads(SkyDocument(method="match", levels=(0.5, None)).to_json()) | change
    tree = {k: v for k, v in tree.items() if v is not ...}  # ... = left out
    with pytest.raises(ValidationError):
        validator("sky-v1.json").validate(tree)


def test_shapes_have_two_numbers() -> None:
    tree = json.loads(OutputWcsDocument(shape=(3, 4)).to_json())
    check = validator("output_wcs-v1.json")
    check.validate(tree)
    for shape in ([3], [3, 4, 5], [3, 4.5], ["3", 4]):
        with pytest.raises(ValidationError):
            check.validate(tree | {"shape": shape})


# ---------------------------------------------------------------- changes
def changed_document(version: int, **fields: type) -> Frozen:
    """The schema of the sky document with further or other fields."""
    members = [(f.name, f.type) for f in dataclasses.fields(SkyDocument) if f.name not in fields] + list(fields.items())
    namespace = {
        "kind": "sky",
        "version": version,
        "__annotations__": {"kind": ClassVar[str], "version": ClassVar[int]},
    }
    made = dataclasses.make_dataclass("SkyDocument", members, namespace=namespace, frozen=True)
    made.__module__ = SkyDocument.__module__  # where its annotations are looked up
    return of_document(made)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the frozen files."""
    return Path(shutil.copytree(FOLDER, tmp_path / "schemas"))


@pytest.mark.parametrize("fields", [{"reference": int}, {"method": int}, {"levels": tuple[float, ...]}])
def test_a_change_without_a_new_version_fails(folder: Path, fields: dict[str, type]) -> None:
    before = (folder / "sky-v1.json").read_text()
    with pytest.raises(FrozenError, match=r"sky-v1\.json would change: raise the version"):
        freeze(folder, [changed_document(1, **fields)])
    assert (folder / "sky-v1.json").read_text() == before


def test_a_change_with_a_new_version_is_added(folder: Path) -> None:
    before = (folder / "sky-v1.json").read_text()
    assert freeze(folder, [changed_document(2, reference=int)]) == [folder / "sky-v2.json"]
    assert (folder / "sky-v1.json").read_text() == before
    assert json.loads((folder / "sky-v2.json").read_text())["properties"]["reference"] == {"type": "integer"}


def test_an_unchanged_document_writes_nothing(folder: Path) -> None:
    assert changed_document(1).text == SCHEMAS["sky-v1.json"].text
    assert freeze(folder, list(SCHEMAS.values())) == []


def test_the_script(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--folder", str(folder)]
    assert main([*where, "--check"]) == 0
    (folder / "sky-v1.json").write_text("{}")
    (folder / "resample-v1.json").unlink()
    assert main([*where, "--check"]) == 1
    assert capsys.readouterr().out.splitlines()[-2:] == ["resample-v1.json missing", "sky-v1.json changed"]
    assert main(where) == 1
    assert "sky-v1.json would change" in capsys.readouterr().err
    assert not (folder / "resample-v1.json").exists(), "nothing is written then"
    assert main([*where, "--replace"]) == 0
    assert main([*where, "--check"]) == 0


def test_a_type_without_a_rule_is_refused() -> None:
    with pytest.raises(TypeError, match="documents hold no"):
        changed_document(2, when=set[str])
