"""Associations, lists of files, and the names that come from them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from streamimg3.errors import InputError
from streamimg3.formats.association import Member, check_members, read_inputs, read_table
from streamimg3.formats.names import common_root, file_name, relative_to, root_name


def _asn(folder: Path, products: object, name: str = "field_asn.json", **more: object) -> Path:
    content = {"asn_id": "o001", "asn_pool": "pool", "program": "01234", "target": "t001", "asn_type": "image3"}
    path = folder / name
    path.write_text(json.dumps({**content, "products": products, **more}))
    return path


def _touch(folder: Path, *names: str) -> list[Path]:
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return paths


def _members(*names: str, **more: str) -> list[dict[str, str]]:
    return [{"expname": name, "exptype": "science", **more} for name in names]


@pytest.fixture
def bucket() -> Iterator[str]:
    fs = fsspec.filesystem("memory")
    yield "memory://bucket"
    fs.rm("/bucket", recursive=True)


def test_level3_keeps_member_order_and_facts(tmp_path: Path) -> None:
    _touch(tmp_path, "sub/b_cal.fits", "sub/a_cal.fits", "other_cal.fits")
    first = {"name": "field_f200w", "members": _members("sub/b_cal.fits", "./sub/a_cal.fits")}
    second = {"name": "other", "members": _members("other_cal.fits")}
    asn = read_inputs([str(_asn(tmp_path, [first, second]))], {})
    assert [member.url for member in asn.members] == [f"{tmp_path}/sub/b_cal.fits", f"{tmp_path}/sub/a_cal.fits"]
    assert (asn.product, asn.asn_id, asn.pool, asn.table) == ("field_f200w", "o001", "pool", "field_asn.json")
    assert (asn.program, asn.target, asn.asn_type) == ("01234", "t001", "image3")


def test_member_keys(tmp_path: Path) -> None:
    _touch(tmp_path, "a.fits", "a_cat.ecsv", "w.fits", "dq.fits")
    keys = {"group_id": "g1", "tweakreg_catalog": "a_cat.ecsv", "weight": "w.fits", "dq": "dq.fits"}
    asn = read_inputs([str(_asn(tmp_path, [{"name": "p", "members": _members("a.fits", **keys)}]))], {})
    here = str(tmp_path)
    assert asn.members == (
        Member(f"{here}/a.fits", "science", "g1", f"{here}/a_cat.ecsv", f"{here}/w.fits", f"{here}/dq.fits"),
    )


def test_other_roles_are_kept_and_not_combined(tmp_path: Path) -> None:
    _touch(tmp_path, "s.fits", "up.fits")
    members = [
        {"expname": "s.fits", "exptype": "science"},
        {"expname": "up.fits", "exptype": "SCIENCE"},
        {"expname": "gone.fits", "exptype": "background"},
        {"expname": "odd.fits", "exptype": "zodiac"},
    ]
    asn = read_inputs([str(_asn(tmp_path, [{"name": "p", "members": members}]))], {})
    assert [member.exptype for member in asn.members] == ["science", "SCIENCE", "background", "zodiac"]
    assert [file_name(member.url) for member in asn.science] == ["s.fits", "up.fits"]
    with pytest.raises(InputError, match=r"gone\.fits: does not exist but is listed in field_asn\.json"):
        check_members(asn, {}, "background")


def test_a_table_is_read_without_its_members(tmp_path: Path) -> None:
    """As a survey made it: an unknown rule, folders in the names, nothing of it here."""
    names = [f"calibrated/jw01_0000{n}_nrcalong_tweakreg.fits" for n in (1, 2)]
    facts = {"asn_type": "None", "asn_rule": "DMS_Level3_Base", "version_id": None, "constraints": "No constraints"}
    path = _asn(tmp_path, [{"name": "survey_f277w", "members": _members(*names)}], **facts)
    asn = read_table(str(path), {})
    assert [member.url for member in asn.science] == [f"{tmp_path}/{name}" for name in names]
    assert (asn.product, asn.asn_type, asn.notes) == ("survey_f277w", "None", ())
    with pytest.raises(InputError, match=r"0001_nrcalong_tweakreg\.fits: does not exist \(and 1 more\)"):
        read_inputs([str(path)], {})


def test_what_is_not_used_and_trouble_are_told(tmp_path: Path) -> None:
    members = [
        *_members("a.fits", exposerr="null"),
        {"expname": "b.fits", "exptype": "science", "exposerr": "lost guide star"},
        {"expname": "c.fits", "exptype": "background"},
        {"expname": "d.fits", "exptype": "psf", "exposerr": None},
    ]
    products = [{"name": "p", "members": members}, {"name": "q", "members": _members("e.fits")}]
    told = read_table(str(_asn(tmp_path, products, degraded_status="One or more members have an error")), {}).notes
    assert told == (
        "field_asn.json: holds 2 products; only the first is made, the others need associations of their own",
        "field_asn.json: members of exptype background (1) are not used",
        "field_asn.json: b.fits is marked with an error (lost guide star) and used nevertheless",
        "field_asn.json: its exposures are marked as degraded (One or more members have an error)",
    )
    fine = {"degraded_status": "No known degraded exposures in association."}
    assert read_table(str(_asn(tmp_path, [{"name": "p", "members": _members("a.fits")}], **fine)), {}).notes == ()


def test_all_of_a_level2_association_is_used(tmp_path: Path) -> None:
    background = {"expname": "bg_rate.fits", "exptype": "background"}
    products = [{"name": f"x_{i}", "members": [*_members(f"x_{i}_rate.fits"), background]} for i in (1, 2)]
    assert read_table(str(_asn(tmp_path, products, asn_type="image2")), {}).notes == ()


def test_level2_products_become_one_list(tmp_path: Path) -> None:
    _touch(tmp_path, "x_1_rate.fits", "x_2_rate.fits", "bg_rate.fits")
    background = {"expname": "bg_rate.fits", "exptype": "background"}
    products = [
        {"name": f"x_{i}", "members": [*_members(f"x_{i}_rate.fits"), background]} for i in (1, 2)
    ]  # one background for both
    asn = read_inputs([str(_asn(tmp_path, products, asn_type="image2", asn_rule="Asn_Lv2Image"))], {})
    assert [file_name(member.url) for member in asn.members] == ["x_1_rate.fits", "bg_rate.fits", "x_2_rate.fits"]
    assert len(asn.science) == 2
    single = read_inputs([str(_asn(tmp_path, products[:1], asn_type="image2"))], {})
    assert single.product == "x_1"


def test_yaml_says_the_same_as_json(tmp_path: Path) -> None:
    _touch(tmp_path, "a.fits")
    products = [{"name": "p", "members": _members("a.fits")}]
    table = _asn(tmp_path, products)
    text = "asn_id: o001\nproducts:\n- name: p\n  members:\n  - {expname: a.fits, exptype: science}\n"
    (tmp_path / "field_asn.yaml").write_text(text)
    from_yaml = read_inputs([str(tmp_path / "field_asn.yaml")], {})
    assert from_yaml.members == read_inputs([str(table)], {}).members
    assert (from_yaml.product, from_yaml.asn_id) == ("p", "o001")


def test_missing_product_name_comes_from_the_members(tmp_path: Path) -> None:
    _touch(tmp_path, "night_001_cal.fits", "night_002_cal.fits")
    asn = read_inputs([str(_asn(tmp_path, [{"members": _members("night_001_cal.fits", "night_002_cal.fits")}]))], {})
    assert asn.product == "night"


def test_remote_association(bucket: str) -> None:
    fs = fsspec.filesystem("memory")
    for name in ("asn/a_cal.fits", "data/b_cal.fits"):
        fs.pipe(f"/bucket/{name}", b"x")
    members = _members("a_cal.fits", "../data/b_cal.fits", "memory://bucket/data/b_cal.fits")
    content = {"products": [{"name": "p", "members": members[:2]}]}
    fs.pipe("/bucket/asn/x.json", json.dumps(content).encode())
    asn = read_inputs([f"{bucket}/asn/x.json"], {})
    assert [m.url for m in asn.members] == ["memory://bucket/asn/a_cal.fits", "memory://bucket/data/b_cal.fits"]
    fs.pipe("/bucket/asn/x.json", json.dumps({"products": [{"name": "p", "members": members[2:]}]}).encode())
    assert read_inputs([f"{bucket}/asn/x.json"], {}).members[0].url == "memory://bucket/data/b_cal.fits"


def test_remote_folder_and_pattern(bucket: str) -> None:
    fs = fsspec.filesystem("memory")
    for name in ("b.fits", "a.fits.gz", "readme.txt"):
        fs.pipe(f"/bucket/d/{name}", b"x")
    folder = read_inputs([f"{bucket}/d"], {})
    assert [file_name(member.url) for member in folder.members] == ["a.fits.gz", "b.fits"]
    assert all(member.url.startswith("memory://") for member in folder.members)
    assert [file_name(member.url) for member in read_inputs([f"{bucket}/d/*.fits"], {}).members] == ["b.fits"]
    with pytest.raises(InputError, match=r"c\.fits: does not exist"):
        read_inputs([f"{bucket}/d/c.fits"], {})


def test_files_folders_and_patterns_mix(tmp_path: Path) -> None:
    _touch(
        tmp_path, "one.fits", "dir/c.FITS", "dir/b.fits.gz", "dir/a.fit", "dir/notes.txt", "pat/x1.fits", "pat/y1.fits"
    )
    inputs = [str(tmp_path / name) for name in ("one.fits", "dir", "pat/x*.fits")]
    asn = read_inputs(inputs, {})
    assert [file_name(member.url) for member in asn.members] == ["one.fits", "a.fit", "b.fits.gz", "c.FITS", "x1.fits"]
    assert asn.science == asn.members
    assert (asn.asn_id, asn.table, asn.product) == (None, None, "mosaic")


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _touch(tmp_path, "a.fits")
    monkeypatch.chdir(tmp_path)
    assert read_inputs(["a.fits"], {}).members[0].url == str(tmp_path / "a.fits")


def test_a_bracket_in_a_file_name_is_not_a_pattern(tmp_path: Path) -> None:
    _touch(tmp_path, "m[51].fits")
    assert len(read_inputs([str(tmp_path / "m[51].fits")], {}).members) == 1


def test_weight_and_dq_maps_are_not_exposures(tmp_path: Path) -> None:
    decam = [f"c4d_1_{kind}_r_v1.fits.fz" for kind in ("ooi", "oow", "ood")]
    _touch(tmp_path, *decam, "m_sci.fits", "m_wht.fits", "n.fits", "n.weight.fits", "lone_wht.fits")
    found = [file_name(member.url) for member in read_inputs([str(tmp_path)], {}).members]
    assert found == ["c4d_1_ooi_r_v1.fits.fz", "lone_wht.fits", "m_sci.fits", "n.fits"]


BAD_TABLES = {
    "{": r"not valid JSON \(line 1, column 2",
    "[1, 2]": "not an association",
    '{"products": []}': "not an association",
    '{"products": [{"name": "p"}]}': "no list of members",
    '{"products": [{"name": "p", "members": []}]}': "empty association",
    '{"products": [{"name": "p", "members": [{"exptype": "science"}]}]}': "a member without expname",
    '{"products": [{"name": "p", "members": [{"expname": "a.fits"}]}]}': "has no exptype",
    '{"products": [{"name": "p", "members": [{"expname": "a.fits", "exptype": "psf"}]}]}': "no member of exptype sci",
    '{"products": [{"name": "../p", "members": [{"expname": "a.fits", "exptype": "science"}]}]}': "not a file name",
    '{"products": [{"name": "p", "members": [{"expname": "no.fits", "exptype": "science"}]}]}': (
        r"no\.fits: does not exist but is listed in bad_asn\.json"
    ),
    '{"products": [{"name": "p", "members": [{"expname": "a.fits", "exptype": "science"},'
    ' {"expname": "./a.fits", "exptype": "science"}]}]}': "listed more than once in bad_asn",
}


@pytest.mark.parametrize("text", BAD_TABLES)
def test_bad_associations(tmp_path: Path, text: str) -> None:
    _touch(tmp_path, "a.fits")
    (tmp_path / "bad_asn.json").write_text(text)
    with pytest.raises(InputError, match=BAD_TABLES[text]) as caught:
        read_inputs([str(tmp_path / "bad_asn.json")], {})
    assert "\n" not in str(caught.value)
    assert "bad_asn.json" in str(caught.value)


def test_bad_yaml_and_bad_text(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text("products: [\n")
    with pytest.raises(InputError, match="not valid YAML"):
        read_inputs([str(tmp_path / "a.yml")], {})
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a text file"):
        read_inputs([str(tmp_path / "b.json")], {})
    with pytest.raises(InputError, match=r"none\.json: does not exist"):
        read_inputs([str(tmp_path / "none.json")], {})


def test_bad_lists_of_files(tmp_path: Path) -> None:
    (one,) = _touch(tmp_path, "a.fits")
    (tmp_path / "empty").mkdir()
    asn = _asn(tmp_path, [{"name": "p", "members": _members("a.fits")}])
    cases = {
        (): "no input given",
        (str(asn), str(one)): "must be the only input",
        (str(tmp_path / "empty"),): "folder holds no FITS file",
        (str(tmp_path / "*.fit"),): "no FITS file matches",
        (str(one), str(one)): "more than once in the given files",
        (str(tmp_path / "b.fits"),): r"b\.fits: does not exist",
        (str(tmp_path / "nothing"),): "nothing: does not exist",
        ("gopher://x/a.fits",): "cannot be opened",
    }
    for inputs, message in cases.items():
        with pytest.raises(InputError, match=message):
            read_inputs(inputs, {})


def test_many_missing_members_are_counted(tmp_path: Path) -> None:
    asn = _asn(tmp_path, [{"name": "p", "members": _members("a.fits", "b.fits", "c.fits")}])
    with pytest.raises(InputError, match=r"a\.fits: does not exist \(and 2 more\)"):
        read_inputs([str(asn)], {})


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("/d/jw01_nrcb1_cal.fits", "jw01_nrcb1"),
        ("jw01_nrcb1_calints.fits.gz", "jw01_nrcb1"),
        ("jw01_nrcb1_o001_crf.fits", "jw01_nrcb1_o001"),
        ("x_outlier_detection.fits", "x"),
        ("x-rate.fits", "x"),
        ("j94f05bgq_flt.fits", "j94f05bgq_flt"),
        ("c4d_ooi_v1.fits.fz", "c4d_ooi_v1"),
        ("frame.FIT", "frame"),
        ("s4.v1.fits", "s4.v1"),
        ("_cal.fits", "_cal"),
        ("https://a.org/get/file?uri=mast:JWST/product/jw02_cal.fits", "jw02"),
        ("https://a.org/p/jw%2003_cal.fits?token=1", "jw 03"),
    ],
)
def test_root_name(url: str, root: str) -> None:
    assert root_name(url) == root


@pytest.mark.parametrize(
    ("names", "product"),
    [
        (["jw01_00001_nrcb1_cal.fits", "jw01_00002_nrcb1_cal.fits"], "jw01"),
        (["jw01_cal.fits"], "jw01"),
        (["m17_1.fits", "m17_2.fits.gz"], "m17"),
        (["a1.fits", "a2.fits"], "mosaic"),
        (["ab_1.fits", "cd_1.fits"], "mosaic"),
        (["field.fits", "field_2.fits"], "field"),
    ],
)
def test_common_root(names: list[str], product: str) -> None:
    assert common_root(names) == product


def test_relative_to() -> None:
    assert relative_to("s3://b/asn/x.json?v=1", "../d/a.fits") == "s3://b/d/a.fits"
    assert relative_to("s3://b/asn/x.json", "https://c/a.fits") == "https://c/a.fits"
    assert relative_to("/d/x.json", "/e/a.fits") == "/e/a.fits"
    assert relative_to("file:///d/x.json", "a.fits") == "/d/a.fits"


def test_import_is_light() -> None:
    # The package's own __init__ is left out: it is these two modules that workers and plans import.
    code = (
        "import importlib.util as u, sys, types; p = types.ModuleType('streamimg3');"
        "p.__path__ = u.find_spec('streamimg3').submodule_search_locations; sys.modules['streamimg3'] = p;"
        "import streamimg3.formats.association, streamimg3.formats.sources; print(*sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"astropy", "asdf", "gwcs", "fsspec", "scipy", "dask"} & set(done.stdout.split())
    assert heavy == set()
