"""The command line as a user meets it: one clear line for every mistake, exit codes, and nothing left under a product's name."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from streamimg3 import Observation, cli
from streamimg3.store.documents import ResampleDocument
from tests.conftest import SKIP, command_line, python

PRODUCT = "jw01234-o001_t001_nircam_clear-f200w"
SKIPS = [f"--steps.{step}.skip=true" for step in SKIP]
OK, FAILED, BAD, TOO_SMALL = 0, 1, 2, 3


@dataclass(frozen=True)
class Said:
    """What a command did: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """Lines on standard error."""
        return self.err.splitlines()


class CommandLine:
    """Calls the entry point in this process, with the arguments a shell would give it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> Said:
        """Return what the command did."""
        self._monkeypatch.setattr(sys, "argv", ["streamimg3", *map(str, arguments)])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code
        out, err = self._capsys.readouterr()
        return Said(code if isinstance(code, int) else int(bool(code)), out, err)

    def image3(self, inputs: Path | str, *more: object) -> Said:
        """Run image3 in this process without the steps that this version lacks."""
        return self("run", "image3", inputs, "--workers", 1, *SKIPS, *more)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """The command line, in this process."""
    return CommandLine(monkeypatch, capsys)


def _in_a_process(*arguments: object) -> Said:
    """Run the command as its own process."""
    done = command_line(*arguments)
    return Said(done.returncode, done.stdout, done.stderr)


def _is_one_clear_line(said: Said, code: int, *words: str, last: bool = False) -> None:
    """Check a refusal: its code, one line with these words and nothing else (nothing after it, with ``last``)."""
    told = [line for line in said.lines if line.startswith("streamimg3: ")]
    assert said.code == code, said.err
    assert len(told) == 1 and said.lines[-1] == told[0], said.err
    assert last or len(said.lines) == 1, said.err
    assert "Traceback" not in said.err and "Error:" not in said.err, said.err
    assert len(told[0]) < 600
    for word in words:
        assert word in told[0], f"{word!r} is not in {told[0]!r}"


def _products(folder: Path) -> list[str]:
    """Names of finished or half-finished products anywhere below a folder."""
    return [str(p) for p in folder.rglob("*") if "_i2d" in p.name] if folder.is_dir() else []


# ---------------------------------------------------------------- inputs that cannot be used
@pytest.fixture(scope="module")
def pair(field: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two good exposures; not to be changed."""
    folder = tmp_path_factory.mktemp("pair")
    for path in sorted(field.parent.glob("*_cal.fits"))[:2]:
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def files(pair: Path, tmp_path: Path) -> list[Path]:
    """Two good exposures in a folder of their own; the second is to be spoilt."""
    return sorted(Path(shutil.copytree(pair, tmp_path / "in")).glob("*.fits"))


def _association(files: list[Path], **changed: object) -> Path:
    members = [{"expname": f.name, "exptype": "science"} for f in files]
    table = {
        "asn_rule": "Asn_Lv3Image",
        "asn_type": "image3",
        "products": [{"name": "p", "members": members}],
        **changed,
    }
    path = files[0].parent / "p_asn.json"
    path.write_text(json.dumps(table))
    return path


def _generic(path: Path, **cards: object) -> Path:
    header = fits.Header()
    header.update(CTYPE1="RA---TAN", CTYPE2="DEC--TAN", CRVAL1=80.0, CRVAL2=-35.0, CRPIX1=20.0, CRPIX2=20.0)
    header.update(CDELT1=-1e-4, CDELT2=1e-4, CUNIT1="deg", CUNIT2="deg", BUNIT="adu", EXPTIME=10.0)
    header.update(cards)
    fits.PrimaryHDU(np.ones((40, 40), np.float32), header).writeto(path)
    return path


def _missing_member(files: list[Path]) -> tuple[Path, tuple[str, ...]]:
    files[1].unlink()
    return _association(files), (files[1].name, "does not exist", "p_asn.json")


def _no_members(files: list[Path]) -> tuple[Path, tuple[str, ...]]:
    return _association(files, products=[{"name": "p", "members": []}]), ("p_asn.json", "empty")


def _not_json(files: list[Path]) -> tuple[Path, tuple[str, ...]]:
    table = _association(files)
    table.write_text(table.read_text()[:-20])
    return table, ("p_asn.json", "not valid JSON")


def _not_an_association(files: list[Path]) -> tuple[Path, tuple[str, ...]]:
    table = _association(files)
    table.write_text("[1, 2]")
    return table, ("p_asn.json", "not an association")


def _no_such_file(files: list[Path]) -> tuple[Path, tuple[str, ...]]:
    return files[0].parent / "nothing_asn.json", ("nothing_asn.json", "does not exist")


def _truncated(files: list[Path]) -> tuple[Path, tuple[str, ...]]:
    with open(files[1], "r+b") as file:
        file.truncate(files[1].stat().st_size // 2)
    return _association(files), (files[1].name, "truncated", "fetch it again")


def _not_fits(files: list[Path]) -> tuple[Path, tuple[str, ...]]:
    files[1].write_text("<html>404 Not Found</html>\n" * 200)
    return _association(files), (files[1].name, "not a FITS file")


def _empty_file(files: list[Path]) -> tuple[Path, tuple[str, ...]]:
    files[1].write_bytes(b"")
    return _association(files), (files[1].name, "empty")


def _no_wcs(files: list[Path]) -> tuple[Path, tuple[str, ...]]:
    fits.PrimaryHDU(np.ones((40, 40), np.float32)).writeto(files[1], overwrite=True)
    return _association(files), (files[1].name, "WCS")


def _nan_wcs(files: list[Path]) -> tuple[Path, tuple[str, ...]]:
    bad = _generic(files[0].parent / "nan.fits", CRVAL1=12345.0)
    bad.write_bytes(bad.read_bytes().replace(b"12345.0", b"    NaN"))
    return _association([bad]), ("nan.fits", "CRVAL1")


def _nan_outline(files: list[Path]) -> tuple[Path, tuple[str, ...]]:
    with fits.open(files[1], mode="update") as hdus:
        hdus["SCI"].header["S_REGION"] = "POLYGON ICRS  " + " ".join(["nan"] * 8)
    return _association(files), (files[1].name, "not finite", "assign_wcs")


def _nan_gwcs(files: list[Path]) -> tuple[Path, tuple[str, ...]]:
    with fits.open(files[1], mode="update") as hdus:
        text = hdus["ASDF"].data["ASDF_METADATA"].tobytes()
        spoilt = re.sub(rb"(factor: )[-0-9.e]+", lambda m: (m[1] + b".nan").ljust(len(m[0])), text)
        assert spoilt != text
        hdus["ASDF"].data["ASDF_METADATA"] = np.frombuffer(spoilt, np.uint8)
    return _association(files), (files[1].name, "WCS")


def _mixed_units(files: list[Path]) -> tuple[Path, tuple[str, ...]]:
    one = _generic(files[0].parent / "one.fits")
    two = _generic(files[0].parent / "two.fits", BUNIT="Jy", CRVAL1=80.0005)
    return _association([one, two]), ("adu", "Jy", "one.fits", "two.fits", "BUNIT")


def _flags_of_another_shape(files: list[Path]) -> tuple[Path, tuple[str, ...]]:
    with fits.open(files[1], mode="update") as hdus:
        hdus["DQ"].data = hdus["DQ"].data[:-1]
    return _association(files), (files[1].name, "DQ", "(191, 192)", "(192, 192)")


def _cube(files: list[Path]) -> tuple[Path, tuple[str, ...]]:
    with fits.open(files[1], mode="update") as hdus:
        for name in ("SCI", "ERR", "DQ", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT"):
            hdus[name].data = np.stack([hdus[name].data] * 2)
    return _association(files), (files[1].name, "cube of 2 integrations", "coron3 or tso3")


def _listed_twice(files: list[Path]) -> tuple[Path, tuple[str, ...]]:
    return _association([*files, files[1]]), (files[1].name, "more than once")


SPOILT = [
    _missing_member, _no_members, _not_json, _not_an_association, _no_such_file, _truncated, _not_fits, _empty_file,
    _no_wcs, _nan_wcs, _nan_outline, _nan_gwcs, _mixed_units, _flags_of_another_shape, _cube, _listed_twice,
]  # fmt: skip


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda f: f.__name__.strip("_"))
def test_bad_input_is_one_line(command: CommandLine, files: list[Path], tmp_path: Path, spoil: object) -> None:
    """Input that cannot be used ends before any work, with the file's name, and leaves no product."""
    inputs, words = spoil(files)  # type: ignore[operator]
    said = command.image3(inputs, "--output-dir", tmp_path / "out")
    _is_one_clear_line(said, BAD, *words)
    assert not _products(tmp_path / "out")


def test_damage_is_mended_by_a_good_file(command: CommandLine, files: list[Path], tmp_path: Path) -> None:
    """After a truncated member has been fetched again the same command works."""
    good = files[1].read_bytes()
    inputs, _ = _truncated(files)
    assert command.image3(inputs, "--output-dir", tmp_path / "out").code == BAD
    files[1].write_bytes(good)
    said = command.image3(inputs, "--output-dir", tmp_path / "out")
    assert said.code == OK, said.err
    assert len(_products(tmp_path / "out")) == 1


def test_no_exposure_time_is_no_weight(command: CommandLine, files: list[Path], tmp_path: Path) -> None:
    """Weights by exposure time need one; the same files work with other weights."""
    with fits.open(files[1], mode="update") as hdus:
        hdus[0].header["TMEASURE"] = hdus[0].header["EFFEXPTM"] = 0.0
    inputs = _association(files)
    said = command.image3(inputs, "--output-dir", tmp_path / "out", "--set", "resample.weight_type=exptime")
    _is_one_clear_line(said, BAD, files[1].name, "exposure time", "exptime", last=True)
    assert not _products(tmp_path / "out")
    assert command.image3(inputs, "--output-dir", tmp_path / "out").code == OK


# ---------------------------------------------------------------- parameters
@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("resample.pixfrc=0.5", ("pixfrc", "did you mean pixfrac?")),
        ("resampel.pixfrac=0.5", ("resampel", "did you mean resample?")),
        ("resample.pixfrac=1.5", ("pixfrac", "1.5", "0 to 1")),
        ("resample.kernel=round", ("kernel", "round", "square")),
        ("resample.pixfrac=much", ("pixfrac", "much", "a number")),
        ("resample.single=7", ("single", "7", "true or false")),
        ("resample.output_shape=[100]", ("output_shape", "2 numbers")),
        ("resample.fillval=blue", ("fillval", "blue", "INDEF")),
        ("resample.tile=3", ("tile", "3", "16")),
        ("pixfrac=0.5", ("pixfrac=0.5", "step.parameter=value")),
        ("resample.good_bits=NO_SUCH_FLAG", ("NO_SUCH_FLAG",)),
        ("skymatch.colour=0", ("skymatch.colour", "unknown parameter")),
        ("tweakreg.starfinder=psf", ("tweakreg.starfinder", "psf", "iraf")),
        ("outlier_detection.snr=5", ("outlier_detection.snr", "2 numbers")),
        ("source_catalog.connectivity=5", ("source_catalog.connectivity", "4 or 8")),
    ],
)
def test_bad_parameter_is_one_line(
    command: CommandLine, ingested: Observation, tmp_path: Path, assignment: str, words: tuple[str, ...]
) -> None:
    """A parameter that is unknown, misspelt or out of range is named with what would be right."""
    skips = [s for s in SKIPS if s.split(".")[1] != assignment.split(".")[0]]
    said = command("run", "image3", ingested.url, "--output-dir", tmp_path, *skips, "--set", assignment)
    _is_one_clear_line(said, BAD, *words)
    assert not _products(tmp_path)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--memory", "much"], ("much", "memory", "512MiB")),
        (["--workers", 0], ("--workers 0",)),
        (["--storage-option", "key"], ("--storage-option key", "KEY=VALUE")),
        (["--config", "none.toml"], ("none.toml",)),
        (["--until", "resampel"], ("--until resampel", "resample")),
        (["--cluster", "none.json"], ("--cluster none.json", "no such scheduler file")),
    ],
)
def test_bad_option_is_one_line(
    command: CommandLine, ingested: Observation, tmp_path: Path, more: list[object], words: tuple[str, ...]
) -> None:
    """So is an option's value."""
    said = command("run", "image3", ingested.url, "--output-dir", tmp_path, *SKIPS, *more)
    _is_one_clear_line(said, BAD, *words)
    assert not _products(tmp_path)


def test_usage(command: CommandLine) -> None:
    """Unknown commands, options and pipelines are wrong usage."""
    assert command("resample").code == BAD
    assert command("run", "image3", "x.fits", "--memry", "1GiB").code == BAD
    assert command("run", "image3").code == BAD
    _is_one_clear_line(command("run", "image4", "x.fits"), BAD, "image4", "image3")


def test_spellings_of_a_parameter(command: CommandLine, ingested: Observation, tmp_path: Path) -> None:
    """--steps.resample.x=y, --set resample.x=y, and a file say the same, with either name of the pipeline."""
    store = Path(shutil.copytree(ingested.url, tmp_path / "x.zarr"))
    (tmp_path / "p.toml").write_text("[resample]\npixfrac = 0.5\n")
    calls = (
        ("calwebb_image3", "--steps.resample.pixfrac=0.5"),
        ("image3", "--set", "resample.pixfrac=0.5"),
        ("image3", "--config", tmp_path / "p.toml"),
        ("image3", "--config", tmp_path / "p.toml", "--set", "resample.pixfrac=0.6"),
    )
    kept = []
    for pipeline, *more in calls:
        said = command("run", pipeline, store, "--workers", 1, "--output-dir", tmp_path / "out", *SKIPS, *more)
        assert said.code == OK, said.err
        kept.append("resample: unchanged, kept" in said.lines)
        document = Observation.at(str(store)).document(ResampleDocument)
        assert document is not None
        assert document.parameters["pixfrac"] == (0.6 if len(more) == 4 else 0.5)
    assert kept == [False, True, True, False]


# ---------------------------------------------------------------- stores and places
def _damaged_store(ingested: Observation, folder: Path, **attributes: object) -> Path:
    store = Path(shutil.copytree(ingested.url, folder / "x.zarr"))
    root = json.loads((store / "zarr.json").read_text())
    root["attributes"] |= attributes
    (store / "zarr.json").write_text(json.dumps(root))
    return store


def test_newer_store(command: CommandLine, ingested: Observation, tmp_path: Path, field: Path) -> None:
    """A store that newer software wrote is refused by every command, and not changed."""
    store = _damaged_store(ingested, tmp_path, version=99)
    before = (store / "zarr.json").read_bytes()
    for said in (
        command("info", store),
        command.image3(store, "--output-dir", tmp_path),
        command.image3(field, "--store", store, "--output-dir", tmp_path),
        command("export", store, "--output-dir", tmp_path),
    ):
        _is_one_clear_line(said, said.code, "x.zarr", "99", "upgrade")
        assert said.code in (FAILED, BAD)
    assert (store / "zarr.json").read_bytes() == before
    assert not _products(tmp_path)


def test_newer_document(command: CommandLine, ingested: Observation, tmp_path: Path) -> None:
    """So is a store with one document that newer software wrote."""
    store = _damaged_store(ingested, tmp_path)
    path = store / "documents" / "association.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))
    said = command.image3(store, "--output-dir", tmp_path)
    _is_one_clear_line(said, said.code, "association.json", "99", "upgrade", last=True)
    assert said.code in (FAILED, BAD)


def test_store_in_somebody_elses_folder(command: CommandLine, field: Path, tmp_path: Path) -> None:
    """A folder with other things in it is not taken for a store, and nothing in it changes."""
    folder = tmp_path / "home"
    (folder / "mail").mkdir(parents=True)
    (folder / "letter.txt").write_text("dear")
    said = command.image3(field, "--store", folder, "--output-dir", tmp_path / "out")
    _is_one_clear_line(said, BAD, str(folder), "--store")
    assert sorted(p.name for p in folder.iterdir()) == ["letter.txt", "mail"]
    assert not _products(tmp_path)


def test_store_of_another_kind(command: CommandLine, field: Path, ingested: Observation, tmp_path: Path) -> None:
    """Nor is another software's Zarr group."""
    store = _damaged_store(ingested, tmp_path, schema="other/thing")
    said = command.image3(field, "--store", store, "--output-dir", tmp_path)
    _is_one_clear_line(said, BAD, "x.zarr", "other/thing", "not one of streamimg3")


def test_store_of_other_exposures(command: CommandLine, pair: Path, ingested: Observation, tmp_path: Path) -> None:
    """Other exposures do not replace those in a store unless asked to."""
    store = Path(shutil.copytree(ingested.url, tmp_path / "x.zarr"))
    before = (store / "exposures" / "index.json").read_bytes()
    said = command.image3(pair, "--store", store, "--output-dir", tmp_path / "out")
    _is_one_clear_line(said, BAD, "x.zarr", "--force")
    assert (store / "exposures" / "index.json").read_bytes() == before
    said = command.image3(pair, "--store", store, "--output-dir", tmp_path / "out", "--force-ingest")
    assert said.code == OK, said.err
    assert len(json.loads((store / "exposures" / "index.json").read_text())) == 2


def test_no_store(command: CommandLine, tmp_path: Path) -> None:
    """Commands that need a store say that there is none."""
    for name in ("info", "export"):
        _is_one_clear_line(command(name, tmp_path / "none.zarr"), BAD, "none.zarr", "no finished store")


def test_a_file_is_no_store(command: CommandLine, files: list[Path], tmp_path: Path) -> None:
    """The messages say what is wrong, whichever command was given it; so they do for a word that is nothing."""
    table = tmp_path / "all.toml"
    table.write_text("[resample]\n")
    for arguments in (("info", files[0]), ("report", files[0]), ("run", "image3", table)):
        _is_one_clear_line(command(*arguments), BAD, "is a file, not a store")
    _is_one_clear_line(
        command("run", "image3", tmp_path / "nosuchword"), BAD, "does not exist", "an association or a store"
    )


def test_what_differs_is_told(command: CommandLine, tmp_path: Path) -> None:
    """Exposures of two filters and of two exposure times are combined as they are, and the log says so."""
    (tmp_path / "in").mkdir()
    for number, (name, seconds) in enumerate((("r", 10.0), ("z", 90.0), ("z", 90.0))):
        _generic(tmp_path / "in" / f"f{number}.fits", FILTER=name, EXPTIME=seconds)
    said = command("plan", "image3", tmp_path / "in", *SKIPS, "--output-dir", tmp_path / "out")
    assert said.code == OK
    assert "exposures through different filters are combined as they are: 1 r; 2 z\n" in said.err
    assert "exposure times differ (10 to 90 s): pixels are not scaled by them\n" in said.err


def test_nothing_to_export(command: CommandLine, ingested: Observation, tmp_path: Path) -> None:
    """A store without a mosaic has no product."""
    said = command("export", ingested.url, "--output-dir", tmp_path)
    _is_one_clear_line(said, BAD, ingested.url, "run image3")
    assert not _products(tmp_path)


def test_places_that_cannot_be_written(
    command: CommandLine, field: Path, ingested: Observation, tmp_path: Path
) -> None:
    """A store, product or log below a regular file cannot be made, whoever asks."""
    (tmp_path / "file").write_text("")
    inside = tmp_path / "file" / "out"
    said = command.image3(field, "--output-dir", inside)
    _is_one_clear_line(said, said.code, str(inside), last=True)
    assert said.code in (FAILED, BAD)
    store = shutil.copytree(ingested.url, tmp_path / "x.zarr")
    said = command.image3(store, "--output-dir", inside)
    _is_one_clear_line(said, FAILED, str(inside), last=True)
    said = command.image3(store, "--output-dir", tmp_path / "out", "--log-json", inside / "log.jsonl")
    _is_one_clear_line(said, said.code, str(inside), last=True)
    assert said.code in (FAILED, BAD)
    assert not _products(tmp_path)


@contextmanager
def _mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small file system of its own, where the system allows it."""
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("needs root and mount to make a small file system")
    done = subprocess.run([mount, "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk_for_the_store(command: CommandLine, field: Path, tmp_path: Path) -> None:
    """A disk that fills up while exposures come in is one line; with room the same command goes on and finishes."""
    with _mounted(tmp_path / "small", "size=2m") as small:
        said = command.image3(field, "--store", small / "x.zarr", "--output-dir", tmp_path / "out")
        _is_one_clear_line(said, FAILED, str(small / "x.zarr"), "No space left on device", last=True)
        assert not _products(tmp_path)
        subprocess.run(["mount", "-o", "remount,size=60m", str(small)], check=True)
        said = command.image3(field, "--store", small / "x.zarr", "--output-dir", tmp_path / "out")
        assert said.code == OK, said.err
        assert len(_products(tmp_path / "out")) == 1


def test_full_disk_for_the_mosaic(command: CommandLine, ingested: Observation, tmp_path: Path) -> None:
    """So is one that fills up while the mosaic is made; the exposures stay usable."""
    size = sum(f.stat().st_size for f in Path(ingested.url).rglob("*") if f.is_file())
    with _mounted(tmp_path / "small", f"size={size // 1024 + 1000}k") as small:
        store = str(shutil.copytree(ingested.url, small / "x.zarr"))
        more = (
            "--output-dir",
            tmp_path / "out",
            "--set",
            "resample.pixel_scale_ratio=0.5",
            "--set",
            "resample.tile=64",
        )
        said = command.image3(store, *more)
        _is_one_clear_line(said, FAILED, store, "No space left on device", last=True)
        assert not _products(tmp_path)
        subprocess.run(["mount", "-o", "remount,size=60m", str(small)], check=True)
        said = command.image3(store, *more)
        assert said.code == OK, said.err
        assert re.search(r"resample: \d+ of \d+ tasks were done before", said.err)


def test_full_disk_for_the_product(command: CommandLine, ingested: Observation, tmp_path: Path) -> None:
    """So is one that fills up while the product is written, of which nothing stays."""
    store = shutil.copytree(ingested.url, tmp_path / "x.zarr")
    with _mounted(tmp_path / "small", "size=500k") as small:
        said = command.image3(store, "--output-dir", small)
        _is_one_clear_line(said, FAILED, f"{PRODUCT}_i2d.fits", "No space left on device", last=True)
        assert not list(small.iterdir())
    said = command.image3(store, "--output-dir", tmp_path / "out")
    assert said.code == OK and "resample: unchanged, kept" in said.lines


def test_read_only_disk(command: CommandLine, ingested: Observation, tmp_path: Path) -> None:
    """A read-only place is refused for the product and for the store."""
    store = shutil.copytree(ingested.url, tmp_path / "x.zarr")
    with _mounted(tmp_path / "small", "size=10m") as small:
        inside = shutil.copytree(ingested.url, small / "x.zarr")
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
        said = command.image3(store, "--output-dir", small)
        _is_one_clear_line(said, FAILED, str(small), "ead-only", last=True)
        said = command.image3(inside, "--output-dir", tmp_path / "out")
        _is_one_clear_line(said, FAILED, str(inside), "ead-only", last=True)
        assert command("info", inside).code == OK
    assert not _products(tmp_path)


# ---------------------------------------------------------------- memory
def test_impossible_budget_names_one_that_works(ingested: Observation, tmp_path: Path) -> None:
    """--memory 64MiB is refused before any pixel is read; the budget named in the refusal works to the byte's bits."""
    store = Path(shutil.copytree(ingested.url, tmp_path / "x.zarr"))
    line = (
        "run",
        "image3",
        store,
        "--output-dir",
        tmp_path / "out",
        *SKIPS,
        "--set",
        "resample.tile=128",
        "--workers",
        2,
    )
    refused = _in_a_process(*line, "--memory", "64MiB")
    _is_one_clear_line(refused, TOO_SMALL, "64 MiB", "smallest budget that works is --memory", last=True)
    assert not _products(tmp_path) and not (store / "mosaic").exists()
    found = re.search(r"--memory (\w+)", refused.err)
    assert found
    accepted = _in_a_process(*line, "--memory", found[1])
    assert accepted.code == OK, accepted.err
    assert len(_products(tmp_path / "out")) == 1


def test_impossible_budget_for_ingest(field: Path, tmp_path: Path) -> None:
    """So it is when exposures are to be brought in."""
    line = ("ingest", field, "--output-dir", tmp_path, "--workers", 1)
    refused = _in_a_process(*line, "--memory", "64MiB")
    _is_one_clear_line(refused, TOO_SMALL, "64 MiB", "smallest budget that works is --memory")
    assert not list(tmp_path.rglob("exposures"))
    found = re.search(r"--memory (\w+)", refused.err)
    assert found
    accepted = _in_a_process(*line, "--memory", found[1])
    assert accepted.code == OK, accepted.err


# ---------------------------------------------------------------- what it prints
def test_dry_run_and_plan(command: CommandLine, field: Path, tmp_path: Path) -> None:
    """Both print the plan in numbers that agree, and make no mosaic."""
    more = ("--output-dir", tmp_path, "--set", "resample.tile=64")
    said = command.image3(field, *more, "--dry-run")
    assert said.code == OK, said.err
    tasks = re.search(r"resample: (\d+) tasks, 1 workers", said.out)
    assert tasks and int(tasks[1]) > 4
    size = r"[\d.]+ [MG]iB"  # this process counts, however large it has grown
    assert re.search(rf"{size} projected, {size} for each task, smallest budget {size}$", said.out, re.MULTILINE)
    assert re.search(r"\d+\.\d Mpix read, \d+\.\d Mpix written", said.out)
    machine = command("plan", "image3", field, "--workers", 1, *SKIPS, *more, "--json")
    assert machine.code == OK, machine.err
    (row,) = [row for row in json.loads(machine.out) if row["step"] != "ingest"]
    assert row["step"] == "resample" and row["tasks"] == int(tasks[1]) and row["workers"] == 1
    assert 0 < row["smallest"] <= row["projected"] < 2 * 2**30
    assert row["pixels_read"] > 4 * 192 * 192 and row["pixels_written"] > 192 * 192
    assert machine.err == ""
    assert not list(tmp_path.iterdir())


def test_info(command: CommandLine, ingested: Observation, tmp_path: Path) -> None:
    """Info tells exposures, planes with units, and what was made."""
    store = shutil.copytree(ingested.url, tmp_path / "x.zarr")
    assert "exposures: 4" in command("info", store).out
    assert command.image3(store, "--output-dir", tmp_path).code == OK
    said = command("info", store)
    assert said.code == OK and said.err == ""
    assert all(record.name in said.out for record in ingested.records())
    for text in (PRODUCT, "192 x 192", "sci", "MJy/sr", "arcsec/pixel", "largest measured error"):
        assert text in said.out


def test_log_for_machines(command: CommandLine, field: Path, tmp_path: Path) -> None:
    """Every line of --log-json is an event with its time; tasks, memory and projection are there."""
    log = tmp_path / "log.jsonl"
    said = command.image3(field, "--output-dir", tmp_path, "--log-json", log, "--set", "resample.tile=64")
    assert said.code == OK
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert all({"time", "event"} <= event.keys() for event in events)
    assert [e["time"] for e in events] == sorted(e["time"] for e in events)
    for stage in ("ingest", "resample"):
        mine = [e for e in events if e.get("stage") == stage]
        assert [mine[0]["event"], mine[-1]["event"]] == ["start", "stage"]
        assert {e["event"] for e in mine[1:-1]} == {"task"}
        assert mine[0]["tasks"] == mine[-1]["done"] == len(mine) - 2 and mine[-1]["kept"] == 0
        assert mine[-1]["projected"] > 0 and mine[-1]["peak_rss"] > 0
    assert any(e["event"] == "note" and "_i2d.fits" in e["text"] for e in events)


def test_as_a_process(field: Path, tmp_path: Path) -> None:
    """The installed entry point does the same with workers of its own; another process keeps all that one has made."""
    line = ("run", "image3", field, "--output-dir", tmp_path, *SKIPS)
    said = _in_a_process(*line, "--workers", 2)
    assert said.code == OK, said.err
    assert len(_products(tmp_path)) == 1
    said = _in_a_process(*line, "--workers", 1)
    assert said.code == OK, said.err
    assert "ingest: 4 files unchanged, kept" in said.lines and "resample: unchanged, kept" in said.lines
    _is_one_clear_line(_in_a_process("info", tmp_path / "none.zarr"), BAD, "none.zarr")


# ---------------------------------------------------------------- how the process ends
# The entry point around a command that ends as told, with what is left to be done when Python tears itself down: a last
# word, and a thread that holds the process up for longer than anybody waits.
_ENTRY = """
import atexit, sys, threading, time, types
from streamimg3 import cli

end, store = {end}, {store}
atexit.register(print, "torn down")
if store:
    sys.modules["obstore"] = types.ModuleType("obstore")
    threading.Thread(target=time.sleep, args=(60,)).start()

def main():
    print("all is said", end="")
    print("all is told", end="", file=sys.stderr)
    if end != "returns":
        sys.exit(end)

cli.main = main
cli.entry()
"""


@pytest.mark.parametrize("store", [False, True])
@pytest.mark.parametrize(("end", "code"), [("returns", 0), (None, 0), (0, 0), (1, 1), (3, 3), (130, 130)])
def test_exit_codes_are_passed_on(end: object, code: int, store: bool) -> None:
    """With the code that the command ends with; after an object store was used at once, and nothing said is lost."""
    started = time.monotonic()
    done = python("-c", _ENTRY.format(end=repr(end), store=store))
    assert done.returncode == code and time.monotonic() - started < 60
    assert done.stderr == "all is told"
    assert done.stdout == "all is said" + ("" if store else "torn down\n")


def test_a_message_instead_of_a_code() -> None:
    """Is printed as Python does, whatever was used."""
    done = python("-c", _ENTRY.format(end="'no code'", store=True).replace("args=(60,)", "args=(0,)"))
    assert done.returncode == 1
    assert done.stderr == "all is toldno code\n"
