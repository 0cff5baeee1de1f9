"""Star lists and reference catalogues in and out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.table import MaskedColumn, Table

from streamimg3 import Observation
from streamimg3.errors import InputError
from streamimg3.formats import astrometry
from streamimg3.formats.star_catalogs import (
    bring_custom,
    bring_reference,
    export_catalogs,
    export_reference,
    read_catfile,
    read_positions,
    read_stars,
)
from streamimg3.store.stars import (
    StarTable,
    custom_digests,
    read_custom,
    read_reference,
    write_current,
    write_list,
)

X, Y = [1.5, 2.0, 3.25], [9.0, 8.0, 7.5]


@pytest.fixture
def obs(ingested: Observation, tmp_path: Path) -> Observation:
    shutil.copytree(ingested.url, tmp_path / "store.zarr")
    return Observation.at(str(tmp_path / "store.zarr"))


@pytest.mark.parametrize("name", ["a.ecsv", "a.fits", "a.csv", "a.txt", "a.xml"])
@pytest.mark.parametrize("columns", [("x", "y"), ("xcentroid", "ycentroid"), ("x_centroid", "y_centroid")])
def test_lists_of_many_forms(tmp_path: Path, name: str, columns: tuple[str, str]) -> None:
    forms = {"txt": "ascii.basic", "xml": "votable", "csv": "ascii.csv", "ecsv": "ascii.ecsv", "fits": "fits"}
    Table({columns[0]: X, columns[1]: Y, "flux": [3.0, 2.0, 1.0]}).write(tmp_path / name, format=forms[name[2:]])
    found = read_stars(str(tmp_path / name), {})
    assert found.columns["x"].tolist() == X and found.columns["y"].tolist() == Y
    assert found.columns["id"].tolist() == [1, 2, 3] and found.columns["flux"].tolist() == [3.0, 2.0, 1.0]


def test_rows_without_a_place_are_left_out(tmp_path: Path) -> None:
    table = Table({"x": MaskedColumn(X, mask=[0, 1, 0]), "y": Y, "weight": [1.0, 1.0, np.nan]})
    table.write(tmp_path / "a.ecsv")
    found = read_stars(str(tmp_path / "a.ecsv"), {})
    assert found.columns["x"].tolist() == [1.5] and found.columns["weight"].tolist() == [1.0]
    assert found.columns["id"].tolist() == [1] and np.isnan(found.columns["flux"]).all()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a,b\n1,2\n", "needs a column x or xcentroid or x_centroid; it has a, b"),
        ("x,y\nhere,there\n", "column x holds no numbers"),
        ("", "is empty"),
    ],
)
def test_what_is_no_star_list(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(InputError, match=said):
        read_stars(str(tmp_path / "a.csv"), {})


def test_what_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "a.fits").write_bytes(b"SIMPLE  = " + b"\0" * 3000)
    with pytest.raises(InputError, match="is no table that can be read"):
        read_stars(str(tmp_path / "a.fits"), {})
    with pytest.raises(InputError, match="does not exist"):
        read_stars(str(tmp_path / "b.fits"), {})


def test_reference_catalogues(tmp_path: Path) -> None:
    """RA and DEC in any case, with units, or the positions of a source catalogue of this pipeline."""
    path = str(tmp_path / "a.ecsv")
    Table({"Ra": [150.0, np.nan], "dec": [2.0, 3.0]}).write(path)
    assert read_positions(path, {}).columns["ra"].tolist() == [150.0]
    Table({"RA": [10.0], "DEC": [2.0]}, units={"RA": "hourangle", "DEC": "deg"}).write(path, overwrite=True)
    assert read_positions(path, {}).columns["ra"][0] == pytest.approx(150.0, abs=1e-12)
    Table({"label": [1], "sky_centroid": SkyCoord([150.0], [2.0], unit="deg")}).write(path, overwrite=True)
    found = read_positions(path, {}).columns
    assert (found["ra"][0], found["dec"][0]) == (pytest.approx(150.0, abs=1e-12), pytest.approx(2.0, abs=1e-12))


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"RA": [1.0], "ra": [1.0], "dec": [2.0]}, "several columns RA or DEC"),
        ({"lon": [1.0], "lat": [2.0]}, "needs columns RA and DEC, or sky_centroid; it has lon, lat"),
    ],
)
def test_what_is_no_reference_catalogue(tmp_path: Path, columns: dict[str, list[float]], said: str) -> None:
    Table(columns).write(tmp_path / "a.ecsv")
    with pytest.raises(InputError, match=said):
        read_positions(str(tmp_path / "a.ecsv"), {})


def test_lengths_are_no_angles(tmp_path: Path) -> None:
    Table({"RA": [1.0], "DEC": [2.0]}, units={"RA": "m"}).write(tmp_path / "a.ecsv")
    with pytest.raises(InputError, match="column RA is in m, which is no angle"):
        read_positions(str(tmp_path / "a.ecsv"), {})


def test_catfile(tmp_path: Path) -> None:
    path = tmp_path / "lists.txt"
    path.write_text("# a comment\n\na_cal.fits a.ecsv\nb_cal.fits\n")
    assert read_catfile(str(path), {}) == {"a_cal.fits": str(tmp_path / "a.ecsv"), "b_cal.fits": None}
    path.write_text("a_cal.fits a.ecsv more\n")
    with pytest.raises(InputError, match="line 1 has 3 columns"):
        read_catfile(str(path), {})


def test_lists_of_exposures(obs: Observation, tmp_path: Path) -> None:
    """A catfile names some; one without a catalogue turns its own off; what it does not name is looked up elsewhere."""
    records = obs.records()
    Table({"x": X, "y": Y}).write(tmp_path / "a.ecsv")
    (tmp_path / "lists.txt").write_text(f"{records[2].filename} a.ecsv\n{records[0].filename}\n")
    assert bring_custom(obs, str(tmp_path / "lists.txt"), {}) == 1
    assert set(custom_digests(obs) or {}) == {2} and read_custom(obs, 2).columns["x"].tolist() == X
    (tmp_path / "lists.txt").write_text(f"{records[0].filename}\n")
    assert bring_custom(obs, str(tmp_path / "lists.txt"), {}) == 0 and custom_digests(obs) == {}


def test_lists_named_in_the_association(obs: Observation, tmp_path: Path) -> None:
    Table({"x": X, "y": Y}).write(tmp_path / "a.ecsv")
    tree = json.loads(obs.backend.get("documents/association.json") or b"")
    tree["members"][1]["catalog"] = str(tmp_path / "a.ecsv")
    obs.backend.put("documents/association.json", json.dumps(tree).encode())
    assert bring_custom(obs, "", {}) == 1 and set(custom_digests(obs) or {}) == {1}


ANSWER = """# comment
objID,ra,dec,mag,epoch,pmra,pmdec
1,150.1,2.1,18.0,2016.0,1.0,2.0
2,150.2,2.2,19.0,2016.0,,
3,150.3,2.3,15.0,2016.0,0.1,0.2
"""


def test_the_answer_of_a_service() -> None:
    asked: dict[str, str | float | None] = {"catalog": "GAIADR3", "epoch": 2022.5}
    found = astrometry.read_answer(ANSWER, asked)
    assert found.columns["objID"].tolist() == [1, 3]  # faint to bright, without the one that has no proper motion
    assert astrometry.read_answer(ANSWER, asked | {"epoch": None}).columns["mag"].tolist() == [19.0, 18.0, 15.0]
    assert len(astrometry.read_answer("No data records returned", asked)) == 0
    with pytest.raises(InputError, match="has no column ra"):
        astrometry.read_answer("a,b\n1,2\n", asked)


class Answer:
    """What a server sends."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def read(self) -> bytes:
        return ANSWER.encode()


def test_a_service_is_asked_once(obs: Observation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(request, timeout):  # type: ignore[no-untyped-def]
        asked.append(request.full_url)
        return Answer(request.full_url)

    monkeypatch.setattr(astrometry, "urlopen", answer)
    with pytest.raises(
        InputError, match=r"GAIADR3: this catalogue needs the network \(--offline is set\): give a local"
    ):
        bring_reference(obs, "GAIADR3", {}, offline=True)
    assert bring_reference(obs, "GAIADR3", {}) == 2
    assert "CAT=GAIADR3" in asked[0] and "FORMAT=CSV" in asked[0] and "EPOCH=2" in asked[0]
    assert bring_reference(obs, "GAIADR3", {}, offline=True) == 2 and len(asked) == 1
    written = export_reference(obs, "GAIADR3", str(tmp_path), {})
    assert written == f"{tmp_path}/fit_gaiadr3_ref.ecsv"
    assert Table.read(written)["RA"].tolist() == [150.1, 150.3]


def test_a_service_that_does_not_answer(obs: Observation, monkeypatch: pytest.MonkeyPatch) -> None:
    def silence(request, timeout):  # type: ignore[no-untyped-def]
        raise URLError("no route to host")

    monkeypatch.setattr(astrometry, "urlopen", silence)
    with pytest.raises(InputError, match=r"does not answer .*no route to host.*: give a local table"):
        bring_reference(obs, "gaiadr2", {})
    with pytest.raises(InputError, match="cannot be read here"):
        bring_reference(obs, "GAIADR3_S3", {})
    with pytest.raises(InputError, match="does not exist"):
        bring_reference(obs, "nowhere.ecsv", {})


def test_the_field_of_all_exposures(obs: Observation) -> None:
    field = astrometry._field(obs)
    assert field["ra"] == pytest.approx(150.1163, abs=0.002) and field["dec"] == pytest.approx(2.2010, abs=0.002)
    assert field["radius"] is not None and 6 / 3600 < field["radius"] < 60 / 3600 and field["epoch"] is not None


def test_a_local_catalogue_comes_in_and_is_no_product(obs: Observation, tmp_path: Path) -> None:
    path = str(tmp_path / "a.ecsv")
    Table({"RA": [150.0], "DEC": [2.0]}).write(path)
    assert bring_reference(obs, f" {path} ", {}) == 1
    found = read_reference(obs, path)
    assert found is not None and found.columns["ra"].tolist() == [150.0] and found.meta["source"] == path
    assert export_reference(obs, path, str(tmp_path), {}) is None


@pytest.mark.parametrize("kind", ["ecsv", "fits"])
def test_detected_stars_become_products(obs: Observation, tmp_path: Path, kind: str) -> None:
    columns = {
        "id": np.array([1, 2]),
        "x": np.array([1.0, 2.0]),
        "y": np.array([3.0, 4.0]),
        "flux": np.array([9.0, 8.0]),
    }
    write_list(obs, "00001-a", StarTable(columns | {"ra": np.zeros(2), "dec": np.zeros(2)}))
    write_current(obs, (None, "00001-a", None, None))
    (written,) = export_catalogs(obs, str(tmp_path / "out"), kind, {})
    record = obs.records()[1]
    assert written == f"{tmp_path}/out/{record.filename.replace('.fits', '')}_cat.{kind}"
    table = Table.read(written)
    assert table.colnames == ["id", "x", "y", "flux"] and table["x"].tolist() == [1.0, 2.0]
    assert table.meta.get("name", table.meta.get("NAME")) == record.filename.replace(".fits", "")
    with pytest.raises(InputError, match="catalog_format"):
        export_catalogs(obs, str(tmp_path), "csv", {})
