"""Parameters from the command line and from files: how they are read, coerced and refused."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asdf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamimg3 import config
from streamimg3.errors import InputError
from streamimg3.stages import outlier_detection, tweakreg
from streamimg3.stages.resample import Params


@dataclass(frozen=True)
class Sample:
    """One parameter of each type."""

    whole: int = 1
    number: float = 1.0
    flag: bool = False
    word: str = ""
    pair: tuple[int, int] | None = None
    point: tuple[float, float] = (0.0, 0.0)
    maybe: float | None = None
    said: str | None = None


def built(**values: Any) -> Sample:
    return config.build(Sample, values, "step")[0]


# ---------------------------------------------------------------- text
@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("resample.pixfrac=0.6", ("resample", "pixfrac", 0.6)),
        ("resample.kernel=turbo", ("resample", "kernel", "turbo")),
        ("resample.output_shape=[100, 200]", ("resample", "output_shape", [100, 200])),
        ("resample.output_shape=100,200", ("resample", "output_shape", "100,200")),
        (" resample.pixel_scale = None ", ("resample", "pixel_scale", None)),
        ("tweakreg.skip=True", ("tweakreg", "skip", True)),
        ("tweakreg.skip=false", ("tweakreg", "skip", False)),
        ("resample.output_wcs=/d/a=b.asdf", ("resample", "output_wcs", "/d/a=b.asdf")),
        ("resample.good_bits=~DO_NOT_USE+NON_SCIENCE", ("resample", "good_bits", "~DO_NOT_USE+NON_SCIENCE")),
        ('resample.fillval="0"', ("resample", "fillval", "0")),
        ("resample.fillval=", ("resample", "fillval", "")),
    ],
)
def test_assignments(text: str, wanted: tuple[str, str, Any]) -> None:
    assert config.parse_assignment(text) == wanted


@pytest.mark.parametrize("text", ["", "resample", "resample.pixfrac", "pixfrac=0.6", "=3"])
def test_no_assignments(text: str) -> None:
    with pytest.raises(InputError, match=r"write it as step\.parameter=value"):
        config.parse_assignment(text)


@settings(max_examples=40, deadline=None)
@given(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.lists(st.integers(), max_size=3)
)
def test_json_values_come_back(value: Any) -> None:
    assert config.parse_value(json.dumps(value)) == value
    assert config.parse_value(f"  {value}  ") == value  # as Python writes them


# ---------------------------------------------------------------- coercion
@pytest.mark.parametrize(
    ("given_", "wanted"),
    [
        ({"whole": 3.0}, 3), ({"whole": "3"}, 3), ({"number": 2}, 2.0), ({"number": "1e-3"}, 1e-3), ({"number": "nan"}, None),
        ({"flag": True}, True), ({"word": 7}, "7"), ({"word": 0.5}, "0.5"), ({"pair": [1, 2]}, (1, 2)),
        ({"pair": "1, 2"}, (1, 2)), ({"pair": "1 2"}, (1, 2)), ({"pair": "1,2"}, (1, 2)), ({"pair": None}, None),
        ({"pair": "None"}, None), ({"pair": (3.0, 4)}, (3, 4)), ({"point": [1, "2.5"]}, (1.0, 2.5)),
        ({"maybe": "none"}, None), ({"maybe": 3}, 3.0), ({"said": None}, None), ({"said": "x"}, "x"),
    ],
)  # fmt: skip
def test_values_become_the_annotated_type(given_: dict[str, Any], wanted: Any) -> None:
    (name,) = given_
    found = getattr(built(**given_), name)
    if wanted is None and name == "number":
        assert math.isnan(found)
    else:
        assert found == wanted and type(found) is type(wanted)
        if isinstance(found, tuple):
            assert {type(v) for v in found} == {type(v) for v in wanted}


@pytest.mark.parametrize(
    ("given_", "wanted"),
    [
        ({"whole": 1.5}, "a whole number"), ({"whole": "x"}, "a whole number"), ({"whole": True}, "a whole number"),
        ({"whole": "nan"}, "a whole number"), ({"whole": "inf"}, "a whole number"), ({"whole": None}, "a whole number"),
        ({"number": "x"}, "a number"), ({"number": [1]}, "a number"), ({"number": False}, "a number"),
        ({"flag": 1}, "true or false"), ({"flag": "yes"}, "true or false"), ({"word": None}, "text"), ({"word": ["a"]}, "text"),
        ({"pair": 5}, "2 numbers"), ({"pair": [1]}, "2 numbers"), ({"pair": "1 2 3"}, "2 numbers"),
        ({"pair": [1.5, 2]}, "a whole number"), ({"point": None}, "2 numbers"), ({"maybe": "x"}, "a number"),
    ],
)  # fmt: skip
def test_values_of_another_type_are_refused(given_: dict[str, Any], wanted: str) -> None:
    (name,) = given_
    with pytest.raises(InputError, match=rf"^step\.{name} = .*: it must be {wanted}"):
        built(**given_)


def test_unknown_parameters_are_refused_with_a_suggestion() -> None:
    with pytest.raises(InputError, match=r"unknown parameter resample\.pixfrak \(did you mean pixfrac\?\)"):
        config.build(Params, {"pixfrak": 1.0}, "resample")
    with pytest.raises(InputError, match=r"unknown parameter resample\.qqq:"):
        config.build(Params, {"qqq": 1.0}, "resample")


def test_parameters_without_meaning_give_notes() -> None:
    params, notes = config.build(Params, {"in_memory": True, "pixfrac": 0.5, "save_results": False}, "resample")
    assert params == Params(pixfrac=0.5)
    assert len(notes) == 2 and notes[0].startswith("resample.in_memory is not used here: memory is bounded by")


def test_notes_are_one_line_for_each_reason() -> None:
    """Values that ask for nothing need no line."""
    values = {
        "output_ext": ".fits", "suffix": "i2d", "allowed_memory": 0.5, "post_hooks": [], "output_file": None, "input_dir": "",
        "grow": 1,
    }  # fmt: skip
    params, notes = config.build(Params, values, "resample")
    assert params == Params()
    assert notes == [
        "resample.output_ext is not used here: products are FITS",
        "resample.suffix is not used here: products are named by the association",
        "resample.allowed_memory is not used here: memory is bounded by --memory",
        "resample.grow is not used here: flags are not grown",
    ]
    _, notes = config.build(Params, {"suffix": "i2d", "output_use_model": True}, "resample")
    assert notes == ["resample.suffix, output_use_model are not used here: products are named by the association"]


@pytest.mark.parametrize(
    ("text", "told"), [("NAN", 0), ("nan", 0), ("NaN", 0), ("INDEF", 0), ("0.0", 1), ("-1", 1), ("", 0), ("inf", 1)]
)
def test_a_fill_value_that_changes_nothing_gives_a_note(text: str, told: int) -> None:
    """Pixels without weight are NaN to outlier_detection; who asks for something else is told. In resample it counts."""
    _, name, value = config.parse_assignment(f"outlier_detection.fillval={text}")
    params, notes = config.build(outlier_detection.Params, {name: value, "pixfrac": 0.5}, "outlier_detection")
    assert params.pixfrac == 0.5
    said = (
        f"outlier_detection.fillval = {params.fillval} is not used here: pixels without weight never enter the median"
    )
    assert notes == [said] * told
    assert config.build(outlier_detection.Params, {}, "outlier_detection")[1] == []
    assert config.build(Params, {"fillval": "0.0"}, "resample")[1] == []


@pytest.mark.parametrize(
    ("values", "wanted", "told"),
    [
        (
            {"align_to_gaia": False, "gaia_catalog": "GAIADR2"},
            {},
            "align_to_gaia = false is taken as tweakreg.abs_refcat = none",
        ),
        ({"align_to_gaia": True}, {"abs_refcat": "GAIADR2"}, "is taken as tweakreg.abs_refcat = GAIADR2"),
        (
            {"align_to_gaia": True, "gaia_catalog": "GAIADR1"},
            {"abs_refcat": "GAIADR1"},
            "tweakreg.abs_refcat = GAIADR1",
        ),
        ({"align_to_gaia": True, "abs_refcat": "a.ecsv"}, {"abs_refcat": "a.ecsv"}, "tweakreg.abs_refcat = a.ecsv"),
        ({"min_gaia": 5}, {"abs_minobj": 5}, "tweakreg.min_gaia is taken as tweakreg.abs_minobj"),
        ({"min_gaia": 5, "abs_minobj": 7}, {"abs_minobj": 7}, "tweakreg.abs_minobj wins over min_gaia"),
        ({"save_gaia_catalog": True}, {"save_abs_catalog": True}, "is taken as tweakreg.save_abs_catalog"),
    ],
)
def test_former_names_of_the_reference(values: dict[str, Any], wanted: dict[str, Any], told: str) -> None:
    params, notes = config.build(tweakreg.Params, values, "tweakreg")
    assert params == tweakreg.Params(**wanted)
    assert len(notes) == 1 and told in notes[0]


def test_former_names_belong_to_their_step() -> None:
    with pytest.raises(InputError, match=r"unknown parameter resample\.min_gaia"):
        config.build(Params, {"min_gaia": 5}, "resample")
    with pytest.raises(InputError, match=r"tweakreg\.align_to_gaia = 'yes': it must be true or false"):
        config.build(tweakreg.Params, {"align_to_gaia": "yes"}, "tweakreg")


def test_parameters_are_checked_at_birth() -> None:
    with pytest.raises(InputError, match=r"resample\.pixfrac = 1\.5: it must be a number from 0 to 1"):
        config.build(Params, {"pixfrac": 1.5}, "resample")


@pytest.mark.parametrize("text", ["weight_type=none", "weight_type=None", "good_bits=None", "pixmap_stepsize=none"])
def test_none_can_be_said_on_the_command_line(text: str) -> None:
    _, name, value = config.parse_assignment(f"resample.{text}")
    params, _ = config.build(Params, {name: value}, "resample")
    assert getattr(params, name) in (None, "none")


# ---------------------------------------------------------------- steps
STEPS = ("tweakreg", "skymatch", "resample")


def test_skips_are_taken_out() -> None:
    rest, skipped = config.take_skips({"tweakreg": {"skip": True, "x": 1}, "resample": {"skip": False, "y": 2}}, STEPS)
    assert skipped == {"tweakreg"}
    assert rest == {"tweakreg": {"x": 1}, "resample": {"y": 2}}


def test_unknown_steps_are_refused_with_a_suggestion() -> None:
    with pytest.raises(InputError, match=r"unknown step 'resampel' \(did you mean resample\?\)"):
        config.take_skips({"resampel": {}}, STEPS)


def test_skip_is_a_truth_value() -> None:
    with pytest.raises(InputError, match=r"tweakreg\.skip = 'yes': it must be true or false"):
        config.take_skips({"tweakreg": {"skip": "yes"}}, STEPS)


def test_later_layers_win() -> None:
    first = {"resample": {"pixfrac": 1.0, "kernel": "square"}}
    merged = config.merge(first, {"resample": {"pixfrac": 0.5}, "tweakreg": {"skip": True}}, {})
    assert merged == {"resample": {"pixfrac": 0.5, "kernel": "square"}, "tweakreg": {"skip": True}}
    assert first == {"resample": {"pixfrac": 1.0, "kernel": "square"}}


def test_keywords_are_dictionaries() -> None:
    assert config.as_settings({"resample": {"pixfrac": 1}}) == {"resample": {"pixfrac": 1}}
    with pytest.raises(InputError, match=r"resample=0\.5: give a step's parameters as a dictionary"):
        config.as_settings({"resample": 0.5})  # type: ignore[dict-item]


# ---------------------------------------------------------------- files
SETTINGS = {"resample": {"pixfrac": 0.7, "output_shape": [300, 200], "kernel": "turbo"}, "tweakreg": {"skip": True}}
TOML = """
[resample]
pixfrac = 0.7
output_shape = [300, 200]
kernel = "turbo"
[tweakreg]
skip = true
"""
YAML = """
resample:
  pixfrac: 0.7
  output_shape: [300, 200]
  kernel: turbo
tweakreg:
  skip: true
"""


@pytest.mark.parametrize(
    ("name", "text"), [("p.toml", TOML), ("p.yaml", YAML), ("p.yml", YAML), ("p.json", json.dumps(SETTINGS))]
)
def test_files(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    found = config.read_file(str(tmp_path / name))
    assert found == SETTINGS
    params, _ = config.build(Params, found["resample"], "resample")
    assert params == Params(pixfrac=0.7, output_shape=(300, 200), kernel="turbo")


def test_steps_may_be_one_level_down(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(TOML.replace("[", "[steps.", 1).replace("[tweakreg", "[steps.tweakreg"))
    assert config.read_file(str(tmp_path / "p.toml")) == SETTINGS


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("ResampleStep", "resample"), ("resample", "resample"), ("OutlierDetectionStep", "outlier_detection"),
        ("outlier_detection", "outlier_detection"), ("SourceCatalogStep", "source_catalog"), ("AssignMTWcsStep", "assign_mtwcs"),
        ("SkyMatchStep", "skymatch"), ("TweakRegStep", "tweakreg"),
    ],
)  # fmt: skip
def test_the_references_file_for_one_step(tmp_path: Path, name: str, step: str) -> None:
    path = tmp_path / "jwst_nircam_pars-step_0001.asdf"
    values = {"pixfrac": 0.7, "output_shape": [300, 200], "kernel": "turbo", "skip": False, "rotation": None}
    asdf.AsdfFile({"class": "jwst.resample.ResampleStep", "name": name, "parameters": values}).write_to(path)
    assert config.read_file(str(path)) == {step: values}


def test_the_references_file_for_a_resample_step_gives_its_parameters(tmp_path: Path) -> None:
    path = tmp_path / "pars-resamplestep.asdf"
    values = {"pixfrac": 0.7, "output_shape": [300, 200], "kernel": "turbo", "in_memory": True, "pixel_scale": 0.02}
    asdf.AsdfFile({"name": "ResampleStep", "parameters": values}).write_to(path)
    params, notes = config.build(Params, config.read_file(str(path))["resample"], "resample")
    assert params == Params(pixfrac=0.7, output_shape=(300, 200), kernel="turbo", pixel_scale=0.02)
    assert len(notes) == 1


def test_the_references_file_for_a_pipeline(tmp_path: Path) -> None:
    path = tmp_path / "pars-image3pipeline.asdf"
    steps = [
        {"class": "c", "name": n, "parameters": p} for n, p in (("resample", {"pixfrac": 0.7}), ("tweakreg", None))
    ]
    asdf.AsdfFile({"class": "c", "name": "Image3Pipeline", "parameters": {}, "steps": steps}).write_to(path)
    wanted = {"resample": {"pixfrac": 0.7}, "tweakreg": {}, config.PIPELINE: {"name": "Image3Pipeline"}}
    assert config.read_file(str(path)) == wanted


@pytest.mark.parametrize("outside", [True, False])
def test_the_references_older_file_for_one_step_has_only_its_class(tmp_path: Path, outside: bool) -> None:
    """The class stands beside the parameters or among them; it is no parameter."""
    path = tmp_path / "jwst_generic_pars-tweakreg_0001.asdf"
    named = {"class": "jwst.tweakreg.TweakRegStep"}
    values = {"brightest": 100, "fitgeometry": "general"}
    tree = {**named, "parameters": values} if outside else {"parameters": {**named, **values}}
    asdf.AsdfFile({"meta": {"reftype": "pars-tweakreg"}, **tree}).write_to(path)
    assert config.read_file(str(path)) == {"tweakreg": values}


def test_parameters_of_the_pipeline_itself(tmp_path: Path) -> None:
    """They are kept, told as unused, and refused where nobody knows them."""
    path = tmp_path / "pars-image3pipeline.asdf"
    own = {
        "save_results": True,
        "output_dir": "calibrated",
        "skip": False,
        "suffix": None,
        "pre_hooks": [],
        "input_dir": "",
    }
    steps = [{"class": "c", "name": "resample", "parameters": {"pixfrac": 0.7}}]
    asdf.AsdfFile({"class": "c", "name": "Image3Pipeline", "parameters": own, "steps": steps}).write_to(path)
    found = config.read_file(str(path))
    assert found["resample"] == {"pixfrac": 0.7}
    assert set(config.pipeline_notes(found)) == {  # the file lists them by name
        "pipeline.save_results is not used here: products are always written",
        "pipeline.output_dir is not used here: use --output-dir",
    }
    rest, skipped = config.take_skips(found, STEPS)
    assert skipped == frozenset() and rest["resample"] == {"pixfrac": 0.7}
    assert config.pipeline_notes({"resample": {}}) == []
    with pytest.raises(InputError, match=r"unknown parameter pipeline\.save_bsub: write"):
        config.pipeline_notes({config.PIPELINE: {"save_bsub": False}})
    with pytest.raises(InputError, match=r"pipeline\.skip = true: nothing would be done"):
        config.take_skips({config.PIPELINE: {"skip": True}}, STEPS)


def test_the_file_of_another_pipeline_is_named_in_the_refusal(tmp_path: Path) -> None:
    path = tmp_path / "image2.asdf"
    steps = [{"class": "c", "name": n, "parameters": {"skip": False}} for n in ("bkg_subtract", "resample")]
    asdf.AsdfFile({"class": "c", "name": "Image2Pipeline", "parameters": {}, "steps": steps}).write_to(path)
    with pytest.raises(
        InputError, match=r"unknown step 'bkg_subtract' in the parameters of Image2Pipeline: the steps are"
    ):
        config.take_skips(config.read_file(str(path)), STEPS)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("missing.toml", None),
        ("p.toml", b"[resample\npixfrac = 1"),
        ("p.json", b'{"resample": '),
        ("p.yaml", b"resample: [1, 2\ntweakreg: {"),
        ("p.yaml", b"a: b: c"),
        ("p.yaml", b"\xff\xfe\x00\x01"),
        ("p.yaml", b""),
        ("p.yaml", b"- 1\n- 2"),
        ("p.json", b"3"),
        ("p.json", b'{"resample": 3}'),
        ("p.json", b'{"name": "ResampleStep", "parameters": null}'),
        ("p.json", b'{"name": "ResampleStep", "parameters": 5}'),
        ("p.json", b'{"steps": [{"parameters": {}}]}'),
        ("p.json", b'{"steps": [3]}'),
        ("p.json", b'{"name": "Image3Pipeline", "parameters": [1], "steps": []}'),
        ("p.toml", b"pixfrac = 0.5"),
        ("p.asdf", b"no ASDF at all"),
        ("p.asdf", b""),
        ("p.asdf", b"#ASDF 1.0.0\n%YAML 1.1\n---\na: [1\n...\n"),
    ],
)
def test_files_of_another_form_are_refused(tmp_path: Path, name: str, data: bytes | None) -> None:
    """One line that begins with the file's name."""
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError) as refused:
        config.read_file(str(path))
    text = str(refused.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read as a parameter file"):
        config.read_file(str(tmp_path))
