"""Which reference file an exposure gets: overrides, folders, URLs, lock files, the crds package; and every refusal."""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest

from streamimg3.errors import InputError
from streamimg3.formats.reference_card import checksum
from streamimg3.formats.reference_source import References
from tests.formats import reference_files as make
from tests.formats.reference_files import ALL, FGS, MIRI, NIRCAM, NIRISS, Optics


def never() -> Any:
    raise AssertionError("the crds package must not be touched")


@pytest.mark.parametrize("optics", ALL, ids=lambda o: o.instrument)
def test_each_instrument_gets_its_own_from_one_folder(tmp_path: Path, optics: Optics) -> None:
    paths = {o.instrument: make.kit(tmp_path / o.instrument, o) for o in ALL}[optics.instrument]
    references = References({}, str(tmp_path), crds=never)
    for kind, path in paths.items():
        card = references.choose(kind, optics.facts())
        assert card is not None and card.url == path and card.sha256 == checksum(path, {})
    keywords = {"distortion": "R_DISTOR", "flat": "R_FLAT", "photom": "R_PHOTOM", "area": "R_AREA"}
    keywords |= {"filteroffset": "R_FILOFF"}
    assert references.keywords(optics.facts()) == {keywords[kind]: path for kind, path in paths.items()}
    assert references.notes == ()


# name: cards of a flat. The exposure: NRCA2 F200W CLEAR, SUB64P, 2023-05-06.
FLATS: dict[str, dict[str, Any]] = {
    "a_any": {"FILTER": "ANY", "PUPIL": "ANY", "USEAFTER": "2023-05-01"},
    "b_pattern": {"P_FILTER": "F200W|F115W|", "PUPIL": "ANY", "USEAFTER": "2023-05-01"},
    "c_exact": {"PUPIL": "ANY", "USEAFTER": "2022-01-01"},
    "d_exact_later": {"PUPIL": "ANY", "USEAFTER": "2022-02-01"},
    "e_exact_too_late": {"PUPIL": "ANY", "USEAFTER": "2023-05-07"},
    "f_exact_same_day": {"PUPIL": "ANY", "USEAFTER": "2022-02-01"},
    "g_own_subarray": {"PUPIL": "ANY", "SUBARRAY": "SUB64P", "USEAFTER": "2020-01-01"},
    "h_other_filter": {"FILTER": "F115W"},
    "i_exact_undated": {"USEAFTER": None},
}


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ("i", "i_exact_undated"),
        ("ahi", "a_any"),
        ("ab", "b_pattern"),
        ("abc", "c_exact"),
        ("abcde", "d_exact_later"),
        ("abcdef", "f_exact_same_day"),
        ("abcdefghi", "g_own_subarray"),
    ],
)
def test_the_best_file_wins_whatever_their_order(tmp_path: Path, there: str, expected: str) -> None:
    wanted = [name for name in FLATS if name[0] in there]
    random.Random(3).shuffle(wanted)
    for i, name in enumerate(wanted):
        (tmp_path / str(i)).mkdir()
        make.flat(tmp_path / str(i) / f"{name}.fits", NIRCAM, (4, 5), **FLATS[name])
    card = References({}, str(tmp_path)).choose("flat", NIRCAM.facts(subarray="SUB64P"))
    assert card is not None and Path(card.url).stem == expected


def test_the_date_decides_for_each_exposure(tmp_path: Path) -> None:
    for year in (2022, 2023, 2024):
        make.photom(tmp_path / f"{year}.fits", MIRI, USEAFTER=f"{year}-01-01T00:00:00")
    references = References({}, str(tmp_path))
    chosen = [references.choose("photom", MIRI.facts(date=f"{year}-07-01T00:00:00.000")) for year in (2022, 2023, 2025)]
    assert [Path(card.url).stem for card in chosen if card] == ["2022", "2023", "2024"]
    assert Path(references.choose("photom", MIRI.facts(date="")).url).stem == "2024"  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"has 3 photom files, none fits: .* has USEAFTER 20"):
        references.choose("photom", MIRI.facts(date="2021-07-01T00:00:00.000"))


def test_a_missing_file_is_named_with_its_type_and_how_to_supply_it(tmp_path: Path) -> None:
    make.flat(tmp_path / "flat.fits", NIRCAM, FILTER="F444W")
    line = r"jw_rate\.fits: needs a flat reference for NIRCAM NRCA2 F200W CLEAR: "
    line += r"give --set flat_field\.override_flat=FILE or --references DIR \(.*"
    with pytest.raises(InputError, match=line + r"1 flat file, none fits: flat\.fits has FILTER F444W\)"):
        References({}, str(tmp_path)).choose("flat", NIRCAM.facts())
    with pytest.raises(InputError, match=line + "no --references are given"):
        References({}).choose("flat", NIRCAM.facts())
    with pytest.raises(InputError, match=r"needs an area reference .*photom\.override_area=FILE.* has no area file"):
        References({}, str(tmp_path)).choose("area", NIRCAM.facts())
    references = References({}, str(tmp_path))
    assert references.choose("area", NIRCAM.facts(), needed=False) is None
    assert references.keywords(NIRCAM.facts()) == {"R_AREA": "N/A"}
    with pytest.raises(InputError, match="needs an area"):  # asked again by somebody who needs it
        references.choose("area", NIRCAM.facts())


def test_overrides_win_and_na_means_none(tmp_path: Path) -> None:
    paths = make.kit(tmp_path / "kit", NIRCAM)
    mine = make.flat(tmp_path / "mine.fits", NIRCAM)
    references = References({"flat": mine, "area": "n/a"}, str(tmp_path / "kit"))
    assert references.choose("flat", NIRCAM.facts()).url == mine  # type: ignore[union-attr]
    assert references.choose("area", NIRCAM.facts()) is None
    assert references.choose("photom", NIRCAM.facts()).url == paths["photom"]  # type: ignore[union-attr]
    assert references.keywords(NIRCAM.facts()) == {"R_FLAT": mine, "R_AREA": "N/A", "R_PHOTOM": paths["photom"]}
    assert [line["why"] for line in references.lock()][:2] == ["override_flat", "override_area = N/A"]


def test_an_override_that_cannot_be_right_is_refused(tmp_path: Path) -> None:
    flat = make.flat(tmp_path / "f.fits", NIRCAM)
    with pytest.raises(InputError, match=r"override_flat = .*f\.fits: has DETECTOR NRCA2; jw_rate\.fits needs .*NRCB1"):
        References({"flat": flat}).choose("flat", NIRCAM.facts(detector="NRCB1"))
    with pytest.raises(InputError, match=r"has INSTRUME NIRCAM; .* needs a flat file for MIRI MIRIMAGE"):
        References({"flat": flat}).choose("flat", MIRI.facts())
    with pytest.raises(InputError, match=r"override_photom = .*: is a flat reference file"):
        References({"photom": flat}).choose("photom", NIRCAM.facts())
    with pytest.raises(InputError, match=r"none\.fits: does not exist"):
        References({"flat": str(tmp_path / "none.fits")}).choose("flat", NIRCAM.facts())
    references = References({"flat": flat})
    card = references.choose("flat", NIRCAM.facts(filter="F115W"))
    assert card is not None and card.url == flat
    references.choose("flat", NIRCAM.facts(filter="F115W", name="another.fits"))
    assert len(references.notes) == 1  # said once for all exposures of these optics
    assert "has FILTER F200W" in references.notes[0] and "used all the same" in references.notes[0]
    assert "although it has FILTER F200W" in str(references.lock()[0]["why"])


def test_files_that_are_none_are_passed_over_with_a_note(tmp_path: Path) -> None:
    paths = make.kit(tmp_path, FGS)
    (tmp_path / "README.md").write_text("no reference file, and no file that could be one")
    (tmp_path / "broken.fits").write_bytes(b"rubbish")
    make.flat(tmp_path / "cal.fits", FGS, REFTYPE=None, DATAMODL="ImageModel")
    references = References({}, str(tmp_path))
    assert references.choose("flat", FGS.facts()).url == paths["flat"]  # type: ignore[union-attr]
    assert len(references.notes) == 2
    assert all(note.startswith("left out: ") for note in references.notes)
    for i in range(9):
        (tmp_path / f"{i}.json").write_text("{}")
    many = References({}, str(tmp_path))
    many.choose("flat", FGS.facts())
    assert len(many.notes) == 6 and many.notes[-1] == "left out: 6 more files"


def test_places_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    file = make.flat(tmp_path / "flat.fits", FGS)
    for place, line in {
        str(tmp_path / "nowhere"): "nowhere: does not exist; give a folder or URL",
        str(tmp_path / "empty"): "empty: holds no FITS, ASDF or JSON files",
        file: "flat.fits: is a file; give a folder",
        str(tmp_path / "lock.json"): r"lock\.json: does not exist; give the lock file",
    }.items():
        with pytest.raises(InputError, match=line):
            References({}, place)


def test_a_lock_file_brings_the_same_files_again(tmp_path: Path) -> None:
    paths = make.kit(tmp_path / "kit", NIRISS)
    first = References({"area": "N/A"}, str(tmp_path / "kit"))
    exposures = [NIRISS.facts(name=f"{i}.fits", date=f"2023-01-0{i + 1}T00:00:00.000") for i in range(3)]
    for exposure in exposures:
        for kind in paths:
            first.choose(kind, exposure)
    assert len(first.lock()) == len(paths)  # one line for exposures that need the same
    lock = tmp_path / "references.json"
    lock.write_text(json.dumps({"references": first.lock()}))
    make.flat(tmp_path / "kit" / "better.fits", NIRISS, USEAFTER="2022-12-31")  # would win, were it looked at

    again = References({}, str(lock), crds=never)
    for kind, path in paths.items():
        card = again.choose(kind, exposures[2])
        assert (card.url if card else None) == (None if kind == "area" else path)
    assert again.lock() == first.lock()
    with pytest.raises(InputError, match=r"references\.json has none for such an exposure"):
        again.choose("flat", NIRISS.facts(filter="F090W"))

    make.flat(paths["flat"], NIRISS, USEAFTER="2022-06-02T00:00:00")
    with pytest.raises(InputError, match=r"flat_0001\.fits: has changed since references\.json was written \(sha256"):
        References({}, str(lock)).choose("flat", exposures[0])


def test_a_lock_file_knows_dates_and_wishes_against_them(tmp_path: Path) -> None:
    for year in (2022, 2023):
        make.photom(tmp_path / f"{year}.fits", MIRI, USEAFTER=f"{year}-01-01T00:00:00")
    late = make.flat(tmp_path / "late.fits", MIRI, USEAFTER="2030-01-01T00:00:00")
    exposures = [MIRI.facts(date=f"{year}-07-01T00:00:00.000") for year in (2022, 2023)]
    first = References({"flat": late}, str(tmp_path))
    wanted = [[first.choose(kind, exposure) for exposure in exposures] for kind in ("photom", "flat")]
    (tmp_path / "lock.json").write_text(json.dumps(first.lock()))
    again = References({}, str(tmp_path / "lock.json"))
    assert [[again.choose(kind, exposure) for exposure in exposures] for kind in ("photom", "flat")] == wanted
    assert wanted[0][0] != wanted[0][1]


@pytest.mark.parametrize("content", ["{}", "[1]", "not json", '{"references": [{"type": "flat"}]}', "3"])
def test_what_is_no_lock_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "lock.json").write_text(content)
    with pytest.raises(InputError, match=r"lock\.json: is not a lock file"):
        References({}, str(tmp_path / "lock.json"))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A CRDS cache in its usual layout, with a mapping."""
    for optics in ALL:
        make.kit(tmp_path / "crds" / "references" / "jwst" / optics.instrument.lower(), optics)
    (tmp_path / "crds" / "mappings" / "jwst").mkdir(parents=True)
    for number in ("0999", "1210"):
        (tmp_path / "crds" / "mappings" / "jwst" / f"jwst_{number}.pmap").write_text("header = {}")
    return tmp_path / "crds"


def test_a_crds_cache_without_the_package(cache: Path) -> None:
    (cache / "references" / "jwst" / "miri" / "broken.fits").write_bytes(b"rubbish")

    def absent() -> Any:
        raise ImportError("No module named 'crds'")

    for crds, offline in ((None, False), (never, True), (absent, False)):
        references = References({}, str(cache), crds=crds, offline=offline)
        card = references.choose("flat", NIRCAM.facts())
        assert card is not None and card.url == str(cache / "references/jwst/nircam/jwst_nircam_flat_0001.fits")
        assert len(references.notes) == 1  # the broken file of another instrument has not been looked at
        assert "its mappings are not used" in references.notes[0]
        assert ("--offline" in references.notes[0]) == offline
    with pytest.raises(InputError, match=r"crds package is not installed .*pip install crds, or give --references DIR"):
        References({}, "crds", crds=absent).choose("flat", NIRCAM.facts())
    with pytest.raises(InputError, match="--offline forbids"):
        References({}, "crds", crds=never, offline=True)
    with pytest.raises(InputError, match="not available"):
        References({}, "crds")


class FakeCrds:
    """Answers as the package does, and notes what it was asked."""

    def __init__(self, answers: Mapping[str, str]) -> None:
        self.answers = answers
        self.asked: list[tuple[dict[str, str], str | None, str | None]] = []

    def getreferences(
        self,
        parameters: Mapping[str, str],
        reftypes: Sequence[str] | None = None,
        context: str | None = None,
        ignore_cache: bool = False,
        observatory: str = "jwst",
    ) -> Mapping[str, str]:
        assert observatory == "jwst" and not ignore_cache and reftypes is not None
        self.asked.append((dict(parameters), context, os.environ.get("CRDS_PATH")))
        if reftypes[0] not in self.answers:
            raise LookupError(f"Unknown reference type '{reftypes[0]}'")
        if self.answers[reftypes[0]] == "fail":
            raise OSError("no connection")
        return {reftypes[0]: self.answers[reftypes[0]]}


def test_the_crds_package_is_asked(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRDS_PATH", "/elsewhere")
    monkeypatch.delenv("CRDS_CONTEXT", raising=False)
    flat = str(cache / "references/jwst/nircam/jwst_nircam_flat_0001.fits")
    package = FakeCrds({"flat": flat, "area": "NOT FOUND n/a", "photom": "fail"})
    references = References({}, str(cache), crds=lambda: package)
    assert references.choose("flat", NIRCAM.facts()).url == flat  # type: ignore[union-attr]
    assert references.choose("area", NIRCAM.facts()) is None
    assert references.keywords(NIRCAM.facts()) == {"R_FLAT": "crds://jwst_nircam_flat_0001.fits", "R_AREA": "N/A"}
    asked, context, path = package.asked[0]
    assert (context, path, os.environ["CRDS_PATH"]) == ("jwst_1210.pmap", str(cache), "/elsewhere")
    assert asked == {
        "META.INSTRUMENT.NAME": "NIRCAM",
        "META.INSTRUMENT.DETECTOR": "NRCA2",
        "META.INSTRUMENT.CHANNEL": "SHORT",
        "META.INSTRUMENT.MODULE": "A",
        "META.INSTRUMENT.FILTER": "F200W",
        "META.INSTRUMENT.PUPIL": "CLEAR",
        "META.EXPOSURE.TYPE": "NRC_IMAGE",
        "META.SUBARRAY.NAME": "FULL",
        "META.OBSERVATION.DATE": "2023-05-06",
        "META.OBSERVATION.TIME": "12:00:00.000",
    }
    with pytest.raises(InputError, match=r"needs a gain reference .*Unknown reference type 'gain'"):
        references.choose("gain", NIRCAM.facts())
    with pytest.raises(InputError, match=r"crds cannot tell the photom reference .*no connection"):
        references.choose("photom", NIRCAM.facts())
    with pytest.raises(InputError, match="has no DATE-OBS"):
        references.choose("flat", NIRCAM.facts(date=""))
    own = References({"flat": flat}, str(cache), crds=lambda: package)
    own.choose("flat", NIRCAM.facts())
    assert own.keywords(NIRCAM.facts()) == {"R_FLAT": flat}


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    paths = make.kit(tmp_path / "real", FGS)
    (tmp_path / "seen").mkdir()
    (tmp_path / "seen" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "circle").symlink_to(tmp_path / "real")
    card = References({}, str(tmp_path / "seen")).choose("photom", FGS.facts())
    assert card is not None and Path(card.url).samefile(paths["photom"])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A plain web server over the test's folder."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_a_folder_of_a_web_server(tmp_path: Path, server: str) -> None:
    local = make.kit(tmp_path / "refs" / "deep", MIRI)
    references = References({}, f"{server}/refs")
    card = references.choose("flat", MIRI.facts())
    assert card is not None and card.url == f"{server}/refs/deep/jwst_miri_flat_0001.fits"
    assert card.sha256 == checksum(local["flat"], {})
    assert references.choose("distortion", MIRI.facts()).url.endswith("distortion_0001.asdf")  # type: ignore[union-attr]
    with pytest.raises(InputError, match="nothing"):
        References({}, f"{server}/nothing")


def test_a_folder_in_memory_and_an_override_there(tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    for path in make.kit(tmp_path, FGS).values():
        fs.put(path, f"/refs/a/{Path(path).name}")
    url = "memory:///refs/a/jwst_fgs_flat_0001.fits"
    try:
        assert References({}, "memory://refs").choose("flat", FGS.facts()).url == url  # type: ignore[union-attr]
        assert References({"flat": url}).choose("flat", FGS.facts()).url == url  # type: ignore[union-attr]
    finally:
        fs.rm("/refs", recursive=True)
