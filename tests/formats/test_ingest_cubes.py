"""Cubes of integrations in the store: every pixel, checksum and time, whatever the shards, and what is refused."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from numpy.typing import NDArray

import streamimg3
from streamimg3 import Observation, Session, ingest, run
from streamimg3.engine.runner import Progress
from streamimg3.errors import InputError
from streamimg3.formats.simulate import Field, simulate
from streamimg3.geometry import Box
from streamimg3.report.info import describe
from streamimg3.store import Exposure, layout
from streamimg3.store.cubes import cube_stacks
from tests.formats.cubes import FLOATS, SHAPE, Recipe, int_times, write_cube

WHOLE = Box.of_shape(SHAPE)
FIRST, SECOND = Recipe(30, seed=1), Recipe(17, seed=2, planes=("sci", "err", "dq", "var_rnoise"))
SHARD = (
    20 * 66 * SHAPE[1] * 4
)  # 47 integrations are then 0..20, 20..40 with the border at 30, 40..47 (in chunks of 22 rows)
AUMIC = Path(os.environ.get("STREAMIMG3_DATA", "")) / "jwst_coron_aumic"


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of 20 integrations."""
    monkeypatch.setattr(layout, "SHARD_BYTES", SHARD)


@pytest.fixture
def pair(tmp_path: Path) -> list[str]:
    """Two files, the second one with fewer planes."""
    folder = tmp_path / "in"
    folder.mkdir()
    return [
        write_cube(folder / "jw1_nrca3_calints.fits", FIRST, FIRST.times()),
        write_cube(folder / "jw2_nrca3_calints.fits", SECOND, SECOND.times(31)),
    ]


def bring(files: list[str], store: Path, **how: Any) -> Observation:
    return ingest(files, Session(store=str(store), **({"workers": 1} | how)))


def checksum(values: NDArray[np.generic]) -> str:
    """As the records define it, from the pixels alone."""
    digests = [hashlib.sha256(np.ascontiguousarray(v).tobytes()).digest() for v in values]
    return hashlib.sha256(b"".join(digests)).hexdigest()


def holds(exposure: Exposure, recipe: Recipe) -> None:
    """Check every pixel and checksum of an exposure against the recipe that its file was made of."""
    pixels, box = recipe.pixels(), Box.of_shape(recipe.shape)
    assert exposure.depth == exposure.record.integrations == recipe.count
    assert set(exposure.record.planes) == set(pixels)
    for name, values in pixels.items():
        if values.ndim == 3:
            found = exposure.read_block(name, 0, recipe.count, box)
            np.testing.assert_array_equal(found, values)
            assert found.dtype == values.dtype
            assert exposure.record.checksums[name] == checksum(values)
        else:
            np.testing.assert_array_equal(exposure.read(name, box), values)
            assert exposure.record.checksums[name] == hashlib.sha256(values.tobytes()).hexdigest()
    wanted = np.any([np.isnan(v) for name, v in pixels.items() if name in FLOATS], axis=0)
    np.testing.assert_array_equal(exposure.read_block("nan", 0, recipe.count, box), wanted)


def contents(store: Path) -> dict[str, str]:
    """SHA-256 of every file of a store."""
    files = [p for p in store.rglob("*") if p.is_file()]
    return {str(p.relative_to(store)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


# ---------------------------------------------------------------- what goes in comes out
@pytest.mark.usefixtures("small_shards")
def test_a_shard_may_hold_the_end_of_one_file_and_the_beginning_of_the_next(pair: list[str], tmp_path: Path) -> None:
    obs = bring(pair, tmp_path / "x.zarr")
    one, two = obs.exposures()
    assert (one.record.first, one.record.row, two.record.first, two.record.row) == (0, 0, 30, 1)
    assert one.group == two.group == "integrations/64x256"
    array = obs.array("integrations/64x256/sci")
    assert array.shape == (47, *SHAPE) and array.shards[0] == 20
    written = sorted(p.name for p in (tmp_path / "x.zarr/integrations/64x256/sci/c").iterdir())
    assert written == ["0", "1", "2"]
    holds(one, FIRST)
    holds(two, SECOND)
    # What the second file lacks is empty there, not what the first one has.
    assert np.isnan(obs.window("integrations/64x256/var_flat", (slice(30, 47),), WHOLE)).all()
    assert not two.has("var_flat") and one.has("var_flat")


def test_checksums_depend_on_the_file_alone(pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither on shards, nor on the place in the stack."""
    sums = [r.checksums for r in bring(pair, tmp_path / "x.zarr").records()]
    monkeypatch.setattr(layout, "SHARD_BYTES", SHARD)
    assert [r.checksums for r in bring(pair[::-1], tmp_path / "y.zarr").records()] == sums[::-1]


def test_any_place_holds_the_same(pair: list[str], tmp_path: Path) -> None:
    there = ingest(pair, Session(store="memory://cubes", workers=1))
    here = bring(pair, tmp_path / "x.zarr")
    assert there.records() == here.records()
    holds(there.exposures()[1], SECOND)


@pytest.mark.usefixtures("small_shards")
def test_windows_of_some_integrations(pair: list[str], tmp_path: Path) -> None:
    one, two = bring(pair, tmp_path / "x.zarr").exposures()
    box = Box(5, 100, 23, 131)
    for exposure, recipe in ((one, FIRST), (two, SECOND)):
        for first, last in ((0, 1), (7, 12), (recipe.count - 3, recipe.count)):
            wanted = recipe.pixels()["err"][first:last, 5:23, 100:131]
            np.testing.assert_array_equal(exposure.read_block("err", first, last, box), wanted)
    area = two.read_block("area", 2, 6, box)
    assert area.shape == (4, 18, 31) and not area.flags.writeable
    np.testing.assert_array_equal(area[3], SECOND.pixels()["area"][box.slices])
    for first, last in ((0, 18), (-1, 2), (3, 3)):
        with pytest.raises(ValueError, match="has integrations"):
            two.read_block("sci", first, last, box)
    with pytest.raises(ValueError, match="read_block"):
        two.read("sci", box)


def test_integrations_have_numbers_and_times(pair: list[str], tmp_path: Path) -> None:
    obs = bring(pair, tmp_path / "x.zarr")
    one, two = obs.exposures()
    assert one.column("integration_number").tolist() == list(range(1, 31))
    assert two.column("integration_number").tolist() == list(range(31, 48))
    assert two.column("int_mid_mjd_utc").tolist() == pytest.approx([60000.1 + n for n in range(31, 48)], rel=1e-15)
    assert two.column("int_end_bjd_tdb")[0] == 60000 + 31 + 0.5
    index = obs.column("integrations/64x256/exposure_index", 0, 47)
    assert index.tolist() == [0] * 30 + [1] * 17 and index.dtype == np.int32


def test_headers_and_wcs_are_kept(pair: list[str], tmp_path: Path) -> None:
    one, two = bring(pair, tmp_path / "x.zarr").exposures()
    assert "EXPOSURE= '00001   '" in one.cards("primary") and "EXPOSURE= '00002   '" in two.cards("primary")
    assert "NAXIS3  =                   17" in two.cards("sci")
    ra, dec = two.wcs.to_sky(np.array([31.0]), np.array([127.0]))
    assert (ra[0], dec[0]) == pytest.approx((150.0, 2.0), abs=1e-12)
    assert two.record.s_region.startswith("POLYGON ICRS") and two.wcs.shape == SHAPE


def test_one_flag_image_for_all_integrations(tmp_path: Path) -> None:
    """It stays one image; whoever asks for the flags of some integrations gets it for each."""
    recipe, usual = Recipe(5, planes=("sci", "err", "pixeldq")), Recipe(3, seed=9, planes=("sci", "err", "dq"))
    obs = bring([write_cube(tmp_path / "a.fits", recipe), write_cube(tmp_path / "b.fits", usual)], tmp_path / "x.zarr")
    one, two = obs.exposures()
    holds(one, recipe)
    holds(two, usual)
    assert one.has("dq") and two.has("dq") and one.has("pixeldq") and not two.has("pixeldq")
    flags = one.read_block("dq", 1, 4, WHOLE)
    assert flags.shape == (3, *SHAPE) and flags.dtype == np.uint32
    np.testing.assert_array_equal(flags, np.stack([recipe.pixels()["pixeldq"]] * 3))
    assert obs.array("integrations/64x256/pixeldq").attrs["flag_masks"][31] == 2**31


def test_other_types_and_orders_of_bytes(tmp_path: Path) -> None:
    """ERR in double precision, integers with BSCALE, and tile compression: what astropy reads, as float32."""
    path = Path(write_cube(tmp_path / "a.fits", Recipe(4, planes=("sci", "err"))))
    with fits.open(path) as hdus:
        hdus["ERR"].data = hdus["ERR"].data.astype(np.float64) * np.pi
        counts = fits.ImageHDU(np.arange(4 * 64 * 256, dtype=np.int16).reshape(4, *SHAPE), name="VAR_RNOISE")
        counts.scale("int16", bscale=0.5, bzero=3.0)
        hdus.append(counts)
        hdus.writeto(tmp_path / "b.fits")
        wanted = hdus["ERR"].data.astype(np.float32)
    (exposure,) = bring([str(tmp_path / "b.fits")], tmp_path / "x.zarr").exposures()
    np.testing.assert_array_equal(exposure.read_block("err", 0, 4, WHOLE), wanted)
    with fits.open(tmp_path / "b.fits") as hdus:
        np.testing.assert_array_equal(exposure.read_block("var_rnoise", 0, 4, WHOLE), hdus["VAR_RNOISE"].data)


def test_compressed_cubes(tmp_path: Path) -> None:
    recipe = Recipe(4)
    (exposure,) = bring([write_cube(tmp_path / "a.fits.fz", recipe, compress=True)], tmp_path / "x.zarr").exposures()
    holds(exposure, recipe)


def test_large_images_are_cut_in_bands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where not even one integration fits into a shard, and pieces are smaller than a shard."""
    monkeypatch.setattr(layout, "SHARD_BYTES", 32 * 256 * 4)
    monkeypatch.setattr(layout, "CUBE_CHUNK", 16 * 256)
    monkeypatch.setattr("streamimg3.formats.ingest_cubes.PIECE", 5 * 256)
    recipe = Recipe(3)
    obs = bring([write_cube(tmp_path / "a.fits", recipe)], tmp_path / "x.zarr")
    assert obs.array("integrations/64x256/sci").shards == (1, 32, 256)
    holds(*obs.exposures(), recipe)


def test_images_and_cubes_side_by_side(pair: list[str], tmp_path: Path) -> None:
    """Each finds its own stack; the order of the members is that of the records; two workers write the same bytes."""
    association = simulate(tmp_path / "sim", Field(shape=(64, 256), dithers=2))
    images = sorted(str(p) for p in (tmp_path / "sim").glob("*_cal.fits"))
    other = Recipe(3, seed=5, shape=(32, 40))
    files = [images[0], pair[0], images[1], write_cube(tmp_path / "in/jw3_calints.fits", other), pair[1]]
    obs = bring(files, tmp_path / "x.zarr")
    assert association.exists()
    found = obs.exposures()
    assert [e.record.integrations for e in found] == [0, 30, 0, 3, 17]
    assert [(e.group, e.record.row, e.record.first) for e in found] == [
        ("exposures/64x256", 0, 0), ("integrations/64x256", 0, 0), ("exposures/64x256", 1, 0),
        ("integrations/32x40", 0, 0), ("integrations/64x256", 1, 30),
    ]  # fmt: skip
    for exposure, recipe in zip((found[1], found[3], found[4]), (FIRST, other, SECOND), strict=True):
        holds(exposure, recipe)
    with fits.open(images[1]) as hdus:
        np.testing.assert_array_equal(found[2].read("sci", WHOLE), hdus["SCI"].data)
        np.testing.assert_array_equal(found[2].read_block("sci", 0, 1, WHOLE)[0], hdus["SCI"].data)
    assert [[r.index for r in s.records] for s in cube_stacks(obs.records())] == [[1, 4], [3]]
    bring(files, tmp_path / "y.zarr", workers=2)
    assert contents(tmp_path / "x.zarr") == contents(tmp_path / "y.zarr")


def test_kept_when_nothing_has_changed(pair: list[str], tmp_path: Path) -> None:
    bring(pair, tmp_path / "x.zarr")
    before = contents(tmp_path / "x.zarr")
    notes = Notes()
    bring(pair, tmp_path / "x.zarr", progress=notes)
    assert notes.texts == ["ingest: 2 files unchanged, kept"]
    assert contents(tmp_path / "x.zarr") == before
    shutil.copy(pair[1], pair[0])
    assert bring(pair, tmp_path / "x.zarr").records()[0].integrations == 17


# ---------------------------------------------------------------- killed
@dataclass
class Notes(Progress):
    """Remembers what is told."""

    texts: list[str] = field(default_factory=list)
    kept: int = -1

    def start(self, stage: str, total: int, kept: int) -> None:
        self.kept = kept

    def note(self, text: str) -> None:
        self.texts.append(text)


KILLED = """
import os, sys
from streamimg3 import Session, ingest
from streamimg3.store import layout
from streamimg3.store.shard_writer import LocalShard
layout.SHARD_BYTES = int(sys.argv[1])
left, commit = int(sys.argv[2]), LocalShard.commit
def counted(*given):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), 9)
    commit(*given)
LocalShard.commit = counted
ingest(sys.argv[4:], Session(store=sys.argv[3], workers=1))
"""


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize(("writes", "finished"), [(3, 0), (8, 1), (18, 2)])
def test_a_killed_ingest_goes_on(pair: list[str], tmp_path: Path, writes: int, finished: int) -> None:
    """Seven planes and the area of the first shard are 8 files, of the second one likewise: finished shards are kept."""
    path = os.pathsep.join([str(Path(streamimg3.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", KILLED, str(SHARD), str(writes), str(tmp_path / "x.zarr"), *pair]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    with pytest.raises(InputError, match="no finished store"):
        Observation.at(str(tmp_path / "x.zarr")).require()
    notes = Notes()
    bring(pair, tmp_path / "x.zarr", progress=notes)
    assert notes.kept == finished
    bring(pair, tmp_path / "y.zarr")
    assert contents(tmp_path / "x.zarr") == contents(tmp_path / "y.zarr")


# ---------------------------------------------------------------- times
@pytest.mark.parametrize(
    ("numbers", "start", "expected", "known", "note"),
    [
        (None, None, [1, 2, 3], "nnn", "no INT_TIMES"),
        (None, 41, [41, 42, 43], "nnn", "no INT_TIMES"),
        ([], 41, [41, 42, 43], "nnn", "no INT_TIMES"),
        ([7, 8, 9], None, [7, 8, 9], "yyy", ""),
        ([1, 2, 3, 4, 5, 6, 7, 8], 4, [4, 5, 6], "yyy", ""),
        ([8, 7, 6, 5, 4, 3, 2, 1], 4, [4, 5, 6], "yyy", ""),
        ([1, 2, 3, 4, 5], 4, [4, 5, 6], "yyn", "INT_TIMES lacks 1 of the 3 integrations"),
        ([1, 2, 3, 4, 5], None, [1, 2, 3], "nnn", "INT_TIMES has 5 rows, the cube 3, and nothing says"),
    ],
)
def test_which_times_are_its_own(
    tmp_path: Path, numbers: list[int] | None, start: int | None, expected: list[int], known: str, note: str
) -> None:
    table = None if numbers is None else int_times(np.array(numbers, np.int64))
    cards = {} if start is None else {"INTSTART": start}
    path = write_cube(tmp_path / "a.fits", Recipe(3, shape=(8, 9), planes=("sci",), cards=cards), table)
    (exposure,) = bring([path], tmp_path / "x.zarr").exposures()
    assert exposure.column("integration_number").tolist() == expected
    wanted = [60000 + n + 0.2 if k == "y" else np.nan for n, k in zip(expected, known, strict=True)]
    np.testing.assert_array_equal(exposure.column("int_end_mjd_utc"), wanted)
    assert (
        any(note in text for text in exposure.record.notes)
        if note
        else not any("INT" in t for t in exposure.record.notes)
    )


# ---------------------------------------------------------------- who sees them
def test_info_shows_cubes(pair: list[str], tmp_path: Path) -> None:
    said = describe(bring(pair, tmp_path / "x.zarr"))
    assert "jw1_nrca3  30 x 64 x 256 (integration, y, x)  100 s  MJy/sr" in said
    assert "integrations/64x256: 47 x 64 x 256 (integration, y, x) of 2 exposures" in said
    lines = [line.split() for line in said.splitlines()]
    assert ["var_flat", "(integration,", "y,", "x)", "float32", "(MJy/sr)^2"] in [line[:6] for line in lines]
    assert ["int_mid_mjd_utc", "(integration)", "float64", "d"] in [line[:4] for line in lines]
    assert "1=DO_NOT_USE" in said and "2147483648=REFERENCE_PIXEL" in said


def test_image3_takes_no_cubes(pair: list[str], tmp_path: Path) -> None:
    """It says so before a pixel is read, from files and from a store."""
    session = Session(store=str(tmp_path / "x.zarr"), output_dir=str(tmp_path), workers=1)
    with pytest.raises(
        InputError, match=r"jw1_nrca3_calints\.fits: is a cube of 30 integrations.*coron3 or tso3"
    ) as no:
        run("image3", pair, session=session)
    assert "\n" not in str(no.value)
    assert not (tmp_path / "x.zarr/integrations/64x256/sci/c").exists()
    bring(pair, tmp_path / "x.zarr")
    with pytest.raises(InputError, match="is a cube of 30 integrations"):
        run("image3", str(tmp_path / "x.zarr"), session=session)


# ---------------------------------------------------------------- refused
def refused(files: list[str], store: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        bring(files, store)
    assert "\n" not in str(caught.value) and Path(files[-1]).name in str(caught.value)


def test_a_truncated_cube(pair: list[str], tmp_path: Path) -> None:
    data = Path(pair[1]).read_bytes()
    Path(pair[1]).write_bytes(data[: len(data) // 2])
    refused(pair, tmp_path / "x.zarr", r"jw2_nrca3_calints\.fits: is truncated .*fetch it again")
    assert not (tmp_path / "x.zarr/integrations").exists()


def test_a_cube_that_shrinks_while_it_is_read(pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its headers were good; the store is left as after a kill."""
    from streamimg3.formats import ingest as door

    write_order = door.write_order

    def cut(*given: Any) -> None:
        write_order(*given)
        write_cube(Path(pair[1]), Recipe(5, planes=SECOND.planes))

    monkeypatch.setattr(door, "write_order", cut)
    refused(pair, tmp_path / "x.zarr", "has changed since its headers were read")


def test_planes_of_another_shape(tmp_path: Path) -> None:
    path = tmp_path / "bad.fits"
    write_cube(path, Recipe(4))
    for name, shape in (("ERR", (3, *SHAPE)), ("ERR", SHAPE), ("AREA", (4, *SHAPE)), ("DQ", (64, 255))):
        with fits.open(write_cube(path, Recipe(4)), mode="update") as hdus:
            hdus[name].data = np.zeros(shape, np.uint32 if name == "DQ" else np.float32)
        refused([str(path)], tmp_path / "x.zarr", rf"{name} has shape .*, SCI \(4, 64, 256\)")


def test_what_is_no_cube_of_integrations(tmp_path: Path) -> None:
    path = write_cube(tmp_path / "a_s3d.fits", Recipe(4, cards={"DATAMODL": "IFUCubeModel"}))
    refused([path], tmp_path / "x.zarr", "spectral cube .* not a cube of integrations")
    plain = Path(write_cube(tmp_path / "b.fits", Recipe(4)))
    (tmp_path / "b.fits.gz").write_bytes(gzip.compress(plain.read_bytes(), 1))
    refused([str(tmp_path / "b.fits.gz")], tmp_path / "x.zarr", "cannot be read in pieces .* unpack")
    member = {"expname": str(plain), "exptype": "science", "dq": str(plain)}
    asn = tmp_path / "b_asn.json"
    asn.write_text(json.dumps({"products": [{"name": "p", "members": [member]}]}))
    with pytest.raises(InputError, match=r"b\.fits: is a cube of integrations, which takes no weight or DQ map"):
        bring([str(asn)], tmp_path / "x.zarr")


def test_a_third_axis_of_the_wcs_is_left_out(tmp_path: Path) -> None:
    """As `_rateints` of time-series spectra have it: wavelength; the sky is that of one image."""
    cards = {"WCSAXES": 3, "CTYPE3": "WAVE", "CRVAL3": 1.0, "CRPIX3": 1.0, "CDELT3": 1.0, "PC3_1": 1.0, "CUNIT3": "um"}
    recipe = Recipe(2, cards=cards)
    (exposure,) = bring([write_cube(tmp_path / "a.fits", recipe)], tmp_path / "x.zarr").exposures()
    ra, dec = exposure.wcs.to_sky(np.array([31.0]), np.array([127.0]))
    assert (ra[0], dec[0]) == pytest.approx((150.0, 2.0), abs=1e-12)
    assert "CTYPE3" in exposure.cards("sci")


def test_a_gwcs_with_wavelengths_is_kept_as_it_is(tmp_path: Path) -> None:
    """Time-series spectra: the gWCS gives more than a position, which nothing here asks it for."""
    text = b"#ASDF 1.0.0\n--- !core/asdf-1.1.0\nmeta: {wcs: [gwcs/wcs-1.3.0, gwcs/spectral_frame-1.1.0]}\n...\n"
    path = Path(write_cube(tmp_path / "a.fits", Recipe(2)))
    with fits.open(path, mode="append") as hdus:
        column = fits.Column("ASDF_METADATA", f"{len(text)}B", array=np.frombuffer(text, np.uint8)[None])
        hdus.append(fits.BinTableHDU.from_columns([column], name="ASDF"))
    (exposure,) = bring([str(path)], tmp_path / "x.zarr").exposures()
    assert exposure.wcs.text == text and exposure.record.wcs_kind == "gwcs" and exposure.record.s_region == ""


# ---------------------------------------------------------------- real files
@pytest.mark.skipif(not AUMIC.is_dir(), reason="STREAMIMG3_DATA names no folder with jwst_coron_aumic")
def test_au_mic(tmp_path: Path) -> None:
    """Cubes of one integration, ERR in double precision, empty variances, and times of more integrations than there are."""
    files = sorted(str(p) for p in AUMIC.glob("*_calints.fits"))
    obs = bring(files, tmp_path / "x.zarr")
    assert obs.array("integrations/320x320/sci").shape == (8, 320, 320)
    box = Box(0, 0, 320, 320)
    for exposure, path in zip(obs.exposures(), files, strict=True):
        assert exposure.record.planes == ("sci", "err", "dq", "area")
        assert {f"no {v} (the extension is empty)" for v in ("VAR_POISSON", "VAR_RNOISE", "VAR_FLAT")} <= set(
            exposure.record.notes
        )
        assert any("nothing says which are its own" in note for note in exposure.record.notes)
        assert exposure.wcs.kind == "gwcs"
        with fits.open(path) as hdus:
            for name in ("sci", "err", "dq"):
                wanted = hdus[name.upper()].data.astype(np.uint32 if name == "dq" else np.float32)
                np.testing.assert_array_equal(exposure.read_block(name, 0, 1, box), wanted)
                assert exposure.record.checksums[name] == checksum(wanted)
            np.testing.assert_array_equal(exposure.read("area", box), hdus["AREA"].data)
