"""Cards of reference files: what their headers say, which fits an exposure best, and one line for what is none."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from astropy.io import fits

from streamimg3.errors import InputError
from streamimg3.formats.reference_card import ExposureFacts, misfit, rank, read_card
from tests.formats import reference_files as make
from tests.formats.reference_files import ALL, FGS, MIRI, NIRCAM, NIRISS, Optics


@pytest.mark.parametrize("optics", ALL, ids=lambda o: o.instrument)
def test_the_header_tells_what_a_file_is_for(tmp_path: Path, optics: Optics) -> None:
    cards = {kind: read_card(path, {}) for kind, path in make.kit(tmp_path, optics).items()}
    assert {kind: card.reftype for kind, card in cards.items()} == {kind: kind for kind in cards}
    for card in cards.values():
        assert (card.instrument, card.detector, card.useafter) == (
            optics.instrument,
            (optics.detector,),
            "2022-06-01T00:00:00.000",
        )
        assert (card.pedigree, card.author, card.sha256) == ("DUMMY", "test", "")
        assert misfit(card, optics.facts()) == ""
    assert cards["flat"].filter == ((optics.filter,) if optics.filter else ())
    assert cards["distortion"].exp_type == cards["photom"].exp_type == (optics.exp_type,)


def test_the_exposure_header_gives_the_same_facts() -> None:
    assert ExposureFacts.of_header(NIRCAM.header(), "jw_rate.fits") == NIRCAM.facts()
    bare = ExposureFacts.of_header(NIRCAM.header(CHANNEL=None, MODULE=None, DETECTOR="NRCBLONG"), "x.fits")
    assert (bare.channel, bare.module, bare.detector) == ("LONG", "B", "NRCBLONG")
    with pytest.raises(InputError, match=r"x\.fits: has no INSTRUME or DETECTOR"):
        ExposureFacts.of_header(fits.Header(), "x.fits")


# keyword, value of the file, value of the exposure, what it counts as
VALUES = [
    ("F200W", None, "exact"),
    ("f200w ", None, "exact"),
    ("ANY", None, "any"),
    ("N/A", None, "any"),
    ("GENERIC", None, "any"),
    (None, None, "any"),
    ("F444W", None, "misfit"),
    ("F444W", "F200W|", "exact"),
    ("F444W", "F115W|F200W|", "pattern"),
    ("F444W", "F115W | F200W |", "pattern"),
    ("F200W", "F115W|F444W|", "misfit"),
    ("F444W", "ANY|", "any"),
    ("F115W|F200W|", None, "pattern"),
]


@pytest.mark.parametrize(("value", "pattern", "expected"), VALUES)
def test_exact_pattern_any_and_misfit(tmp_path: Path, value: str | None, pattern: str | None, expected: str) -> None:
    path = make.flat(tmp_path / "flat.fits", NIRCAM, FILTER=value, P_FILTER=pattern, PUPIL="ANY", SUBARRAY="GENERIC")
    card = read_card(path, {})
    if expected == "misfit":
        assert misfit(card, NIRCAM.facts()).startswith("has FILTER F")
    else:
        assert misfit(card, NIRCAM.facts()) == ""
        found = rank(card, NIRCAM.facts())  # the detector is exact
        assert (found.exact - 1, found.pattern) == {"exact": (1, 0), "pattern": (0, 1), "any": (0, 0)}[expected]


@pytest.mark.parametrize(
    ("cards", "changes", "reason"),
    [
        ({"SUBARRAY": "FULL"}, {"subarray": "SUB64P"}, ""),
        ({"SUBARRAY": "SUB64P"}, {"subarray": "FULL"}, "has SUBARRAY SUB64P"),
        ({"SUBARRAY": "FULL", "P_SUBARR": "FULL|SUB160|"}, {"subarray": "SUB64P"}, "has SUBARRAY FULL|SUB160"),
        ({"DETECTOR": "NRCB1"}, {}, "has DETECTOR NRCB1"),
        ({"INSTRUME": "NIRISS", "DETECTOR": "NIS"}, {}, "has INSTRUME NIRISS"),
        ({"EXP_TYPE": "NRC_LED", "READPATT": "RAPID"}, {"readpatt": "DEEP8"}, ""),
        ({"USEAFTER": "2023-05-06T12:00:01"}, {}, "has USEAFTER 2023-05-06T12:00:01"),
        ({"USEAFTER": "2023-05-06T12:00:00"}, {}, ""),
        ({"USEAFTER": None}, {}, ""),
    ],
)
def test_what_decides_about_a_flat(tmp_path: Path, cards: dict[str, Any], changes: dict[str, str], reason: str) -> None:
    card = read_card(make.flat(tmp_path / "flat.fits", NIRCAM, **cards), {})
    assert misfit(card, NIRCAM.facts(**changes)) == reason


def test_a_mode_decides_about_photom_and_distortion(tmp_path: Path) -> None:
    photom = read_card(make.photom(tmp_path / "p.fits", NIRISS, EXP_TYPE="NIS_WFSS", FILTER="F444W"), {})
    assert misfit(photom, NIRISS.facts()) == "has EXP_TYPE NIS_WFSS"
    modes = {"type": "MIR_MRS", "p_exptype": "MIR_IMAGE|MIR_LYOT|"}
    model = read_card(make.distortion(tmp_path / "d.asdf", MIRI, exposure=modes), {})
    assert model.exp_type == ("MIR_IMAGE", "MIR_LYOT") and misfit(model, MIRI.facts()) == ""


@pytest.mark.parametrize(
    "text",
    ["2022-05-01", "2022-05-01T00:00:00", "2022-05-01 00:00:00", "2022-05-01T00:00:00.0000", "May 01 2022 00:00:00"],
)
def test_dates_in_their_usual_spellings(tmp_path: Path, text: str) -> None:
    assert read_card(make.flat(tmp_path / "f.fits", FGS, USEAFTER=text), {}).useafter == "2022-05-01T00:00:00.000"


def test_only_the_header_is_read(tmp_path: Path) -> None:
    """What follows the header may be missing or be rubbish."""
    paths = make.kit(tmp_path, NIRCAM)
    cut = tmp_path / "cut.fits"
    cut.write_bytes(Path(paths["flat"]).read_bytes()[:2880])
    tree = tmp_path / "cut.asdf"
    tree.write_bytes(Path(paths["distortion"]).read_bytes().split(b"\n...\n")[0] + b"\n...\n\xd3BLK rubbish")
    assert read_card(str(cut), {}).filter == ("F200W",)
    assert read_card(str(tree), {}).channel == ("SHORT",)


def test_packed_json_and_old_trees(tmp_path: Path) -> None:
    packed = tmp_path / "flat.fits.gz"
    packed.write_bytes(gzip.compress(Path(make.flat(tmp_path / "f.fits", MIRI)).read_bytes()))
    assert read_card(str(packed), {}).instrument == "MIRI"
    table = tmp_path / "extract1d.json"
    table.write_text(json.dumps({"reftype": "EXTRACT1D", "instrument": "MIRI", "exp_type": "MIR_LRS-SLITLESS"}))
    assert read_card(str(table), {}).exp_type == ("MIR_LRS-SLITLESS",)
    old = tmp_path / "old.asdf"
    old.write_text(
        "#ASDF 1.0.0\n#ASDF_STANDARD 1.0.0\n%YAML 1.1\n%TAG ! tag:stsci.edu:asdf/\n--- !core/asdf-1.0.0\n"
        "reftype: distortion\ninstrument: MIRI\ndetector: MIRIMAGE\nmodel: !transform/shift-1.0.0 {offset: 1.0}\n...\n"
    )
    assert (read_card(str(old), {}).reftype, read_card(str(old), {}).detector) == ("distortion", ("MIRIMAGE",))


BAD = [
    ({"REFTYPE": None, "DATAMODL": "ImageModel"}, r"is not a reference file \(no REFTYPE, DATAMODL ImageModel\)"),
    ({"TELESCOP": "HST"}, "is a reference file of HST, not of JWST"),
    ({"INSTRUME": None}, "has no INSTRUME"),
    ({"DETECTOR": None}, "has no DETECTOR"),
    ({"DETECTOR": "FOO"}, "is for detector FOO, which NIRCAM does not have"),
    ({"P_DETECT": "NRCA1|NRCA9|"}, "is for detector NRCA9, which NIRCAM does not have"),
    ({"P_DETEC": "NRCA1|NRCA2|"}, "keyword P_DETEC, which selects nothing; it should be P_DETECT"),
    ({"USEAFTER": "soon"}, "USEAFTER 'soon' is not a date"),
]


@pytest.mark.parametrize(("cards", "line"), BAD)
def test_a_bad_header_is_refused_in_one_line(tmp_path: Path, cards: dict[str, Any], line: str) -> None:
    make.flat(tmp_path / "bad.fits", NIRCAM, **cards)
    with pytest.raises(InputError, match=f"bad.fits: .*{line}") as caught:
        read_card(str(tmp_path / "bad.fits"), {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("notes.txt", b"some words", "is not a reference file"),
        ("empty.fits", b"", "is empty"),
        ("short.fits", b"SIMPLE  =                    T".ljust(80), "truncated inside its primary header"),
        ("tree.asdf", b"#ASDF 1.0.0\n--- {meta: [unclosed\n...\n", "its ASDF tree cannot be read"),
        ("none.asdf", b"#ASDF 1.0.0\n--- {meta: {title: nothing}}\n...\n", r"no meta\.reftype"),
        ("asn.json", b'{"products": []}', "is not a reference file"),
        ("bad.json", b'{"products": ', "is not valid JSON"),
    ],
)
def test_what_is_no_reference_file(tmp_path: Path, name: str, content: bytes, line: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=line):
        read_card(str(tmp_path / name), {})
    with pytest.raises(InputError, match="does not exist"):
        read_card(str(tmp_path / "other.fits"), {})
