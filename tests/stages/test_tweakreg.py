"""The alignment step on a small simulated field with known pointing errors."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from streamimg3 import Observation, Session, ingest
from streamimg3.engine import Runner
from streamimg3.engine.runner import Progress
from streamimg3.errors import InputError, StoreError
from streamimg3.formats.simulate import Field, simulate
from streamimg3.formats.star_catalogs import bring_custom, bring_reference
from streamimg3.sky import footprint
from streamimg3.stages import star_lists, tweakreg
from streamimg3.stages.tweakreg import Params
from streamimg3.store.documents import AlignmentDocument
from streamimg3.store.exposure import Exposure
from streamimg3.store.stars import current_lists, read_list
from tests.sky.skies import tangent_cards

MEMORY = 2**31


class Heard(Progress):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three exposures of a rich field whose pointing is wrong by up to some 0.1 arcsec and 20 arcsec of roll."""
    folder = tmp_path_factory.mktemp("aligned")
    simulate(
        folder,
        Field(
            shape=(384, 384), dithers=3, star_density=0.4, galaxy_density=0.02, extended=0, pointing_rms=80.0,
            roll_rms=20.0, cosmic_rays=50.0,
        ),
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def made(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Observation:
    """The field in a store; not to be changed."""
    (asn,) = place.glob("*_asn.json")
    return ingest(str(asn), Session(store=str(tmp_path_factory.mktemp("store") / "aligned.zarr"), workers=1))


@pytest.fixture
def obs(made: Observation, tmp_path: Path) -> Observation:
    """A copy that may be changed."""
    shutil.copytree(made.url, tmp_path / "store.zarr")
    return Observation.at(str(tmp_path / "store.zarr"))


def run(obs: Observation, workers: int = 1, **params: Any) -> tuple[AlignmentDocument, list[str]]:
    heard = Heard()
    with Runner(MEMORY, workers, heard) as runner:
        return tweakreg.run(obs, Params(**params), runner), heard.notes


def bright(place: Path) -> Table:
    """The true positions of the brighter sources."""
    table = Table.read(place / "truth" / "catalog.ecsv")
    table.sort("flux_jy", reverse=True)
    return table[:60]


def test_pointing_errors_are_taken_back(obs: Observation, place: Path) -> None:
    before = obs.exposures()[0].wcs.to_sky(np.array([128.0]), np.array([128.0]))
    document, notes = run(obs)
    assert document.status == "COMPLETE" and document.reason is None
    assert [e.status for e in document.exposures] == ["REFERENCE", "SUCCESS", "SUCCESS"]
    told = Table.read(place / "truth" / "exposures.ecsv")
    for row, found in zip(told[1:], document.exposures[1:], strict=True):
        assert found.offset is not None and found.rms is not None
        # The stored pointing is wrong by these, the correction takes them back; centroids of some twenty stars to 10 mas.
        north = 3600 * (row["dec_true"] - row["dec_ref"])
        assert found.offset[0] == pytest.approx(north, abs=0.01)
        assert found.matched >= 15 and 0 < found.rms < 0.02
    assert any("matched, rms" in note and "mas, moved" in note for note in notes)
    assert notes[-1] == "tweakreg: COMPLETE: 2 exposures aligned, 1 are the reference, 0 failed"
    first = obs.exposures()[0]
    assert first.wcs.correction is None and first.s_region == first.record.s_region
    np.testing.assert_array_equal(first.wcs.to_sky(np.array([128.0]), np.array([128.0])), before)


def test_corrected_exposures_carry_outline_and_keywords(obs: Observation) -> None:
    run(obs)
    aligned = obs.exposures()[1]
    assert "v2v3corr" in aligned.wcs.gwcs().available_frames
    assert aligned.s_region == footprint.outline(aligned.wcs) != aligned.record.s_region
    cards = fits.Header.fromstring(aligned.cards("sci"))
    assert aligned.aligned is not None
    sip = aligned.aligned.sip
    assert (sip["CRPIX1"], sip["CRPIX2"]) == (cards["CRPIX1"], cards["CRPIX2"]) and sip["CTYPE1"] == "RA---TAN-SIP"
    header = fits.Header({"NAXIS": 2, "NAXIS1": 384, "NAXIS2": 384} | sip)
    y, x = np.mgrid[0:383:6j, 0:383:6j]
    found = WCS(header).all_world2pix(*aligned.wcs.to_sky(y, x), 0)
    assert np.hypot(found[0] - x, found[1] - y).max() < 0.01


def test_what_is_done_is_kept(obs: Observation, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = run(obs)
    kept, notes = run(obs)
    assert kept == first and notes == ["tweakreg: unchanged, kept"]

    def unwanted(*args: object) -> None:
        raise AssertionError("a pixel was read")

    monkeypatch.setattr(Exposure, "read", unwanted)
    other, _ = run(obs, fitgeometry="shift", sip_approx=False)  # fitted anew, without looking at a pixel
    assert other.digest != first.digest and other.cost.tasks_kept == 3
    assert other.cost.tasks_done == 2  # outlines of those that moved
    assert other.exposures[1].correction is not None and other.exposures[1].correction.matrix == pytest.approx(
        (1.0, 0.0, 0.0, 1.0), abs=1e-30
    )
    assert other.exposures[1].sip == {}
    with pytest.raises(Exception, match="a pixel was read"):
        run(obs, snr_threshold=12.0)


def test_the_same_with_more_workers(obs: Observation, made: Observation, tmp_path: Path) -> None:
    alone, _ = run(obs)
    shutil.copytree(made.url, tmp_path / "other.zarr")
    other = Observation.at(str(tmp_path / "other.zarr"))
    together, _ = run(other, workers=2)
    assert together.exposures == alone.exposures and together.digest == alone.digest
    for key in current_lists(obs):
        assert key is not None
        assert read_list(other, key).to_json() == read_list(obs, key).to_json()


def test_too_few_matches(obs: Observation) -> None:
    document, notes = run(obs, minobj=1000)
    assert document.status == "COMPLETE"  # as the reference software says it in its products
    assert document.reason == "no group could be aligned: see the exposures' reasons"
    assert [e.status for e in document.exposures] == ["REFERENCE", "FAILED", "FAILED"]
    assert all("1000 are required" in (e.reason or "") for e in document.exposures[1:])
    assert all(e.correction is None for e in document.exposures) and "no group could be aligned" in notes[-1]


def test_a_refused_alignment(obs: Observation) -> None:
    document, _ = run(obs, separation=0.9)
    assert document.status == "FAILED" and "separation = 0.9" in (document.reason or "")
    assert {e.status for e in document.exposures} == {"FAILED"}
    assert {e.reason for e in document.exposures} == {document.reason}


def one_exposure(place: Path, tmp_path: Path) -> Observation:
    path = next(iter(sorted(place.glob("*_cal.fits"))))
    return ingest([str(path)], Session(store=str(tmp_path / "one.zarr"), workers=1))


def test_one_exposure_alone(place: Path, tmp_path: Path) -> None:
    """Without another one there is nothing to align, and no star is looked for unless catalogues are wanted."""
    obs = one_exposure(place, tmp_path)
    document, notes = run(obs)
    assert document.status == "FAILED" and "at least two exposures" in notes[-1]
    assert tweakreg.plan(obs, Params()) == [] and current_lists(obs) == ()
    saved, _ = run(obs, save_catalogs=True)
    assert saved.status == "FAILED" and len(current_lists(obs)) == 1


def local_catalogue(place: Path, folder: Path, east: float = 0.4, north: float = -0.3) -> str:
    table = bright(place)
    table["ra"] += east / 3600
    table["dec"] += north / 3600
    table[["ra", "dec"]].write(folder / "reference.ecsv")
    return str(folder / "reference.ecsv")


def test_a_reference_catalogue(obs: Observation, place: Path, tmp_path: Path) -> None:
    name = local_catalogue(place, tmp_path)
    with pytest.raises(InputError, match="was not read into the store"):
        run(obs, abs_refcat=name)
    assert bring_reference(obs, name, {}) == len(bright(place))
    document, _ = run(obs, abs_refcat=name)
    assert [e.status for e in document.exposures] == ["SUCCESS"] * 3 and len(
        {e.matched for e in document.exposures}
    ) == 1
    assert document.exposures[0].offset == (pytest.approx(-0.3, abs=0.01), pytest.approx(0.4, abs=0.01))
    assert obs.exposures()[0].wcs.gwcs().name == f"FIT-LVL3-{name}"
    few, _ = run(obs, abs_refcat=name, abs_minobj=10_000)
    assert few.status == "FAILED" and "fewer than abs_minobj = 10000" in (few.reason or "")


def test_a_rejected_relative_fit_does_not_leak_into_the_absolute_one(
    obs: Observation, place: Path, tmp_path: Path
) -> None:
    name = local_catalogue(place, tmp_path)
    bring_reference(obs, name, {})
    refused, notes = run(obs, abs_refcat=name, separation=0.9)
    assert any("no relative alignment" in note for note in notes) and "no relative alignment" in refused.notes[0]
    assert [e.status for e in refused.exposures] == ["SUCCESS"] * 3
    corrections = [e.correction for e in refused.exposures]
    assert all(c is not None for c in corrections)
    turns = [np.array(c.matrix) for c in corrections if c]  # one common fit, and nothing else
    assert max(np.abs(t - turns[0]).max() for t in turns) < 1e-6


def test_the_users_own_star_lists(
    obs: Observation, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="no star lists were read into the store"):
        run(obs, use_custom_catalogs=True)
    detected, _ = run(obs)
    lines = []
    for exposure, key in zip(obs.exposures(aligned=False), current_lists(obs), strict=True):
        assert key is not None
        columns = read_list(obs, key).columns
        path = tmp_path / f"{exposure.record.name}.csv"
        Table({"x_centroid": columns["x"], "ycentroid": columns["y"]}).write(path)
        lines.append(f"{exposure.record.filename} {path.name}")
    (tmp_path / "lists.txt").write_text("# exposure, catalogue\n" + "\n".join(lines) + "\n")
    assert bring_custom(obs, str(tmp_path / "lists.txt"), {}) == 3
    monkeypatch.setattr(star_lists, "find_stars", None)  # nothing is detected
    custom, _ = run(obs, use_custom_catalogs=True)
    for one, other in zip(detected.exposures[1:], custom.exposures[1:], strict=True):
        assert one.correction == other.correction and one.matched == other.matched
    assert current_lists(obs) == (None, None, None)


def test_stars_on_the_rim_of_the_bounding_box_do_not_count(obs: Observation, tmp_path: Path) -> None:
    first = obs.exposures(aligned=False)[0]
    bounds = first.wcs.bounds
    assert bounds is not None
    (y0, y1), (x0, x1) = bounds
    table = star_lists.StarTable({"x": np.array([x0, 9.0, 9.0, x1, 9.0]), "y": np.array([9.0, y0, y1, 9.0, 9.0])})
    assert star_lists._placed(first, table).columns["x"].tolist() == [9.0]


def test_a_damaged_list_is_named(obs: Observation) -> None:
    run(obs)
    key = current_lists(obs)[0]
    obs.backend.put(f"stars/lists/{key}.json", b"{")
    with pytest.raises(StoreError, match=r"stars/lists/00000-.* is damaged"):
        run(obs, fitgeometry="shift")
    obs.backend.remove([f"stars/lists/{key}.json"])
    assert run(obs, fitgeometry="shift")[0].cost.tasks_done == 3  # it is made again


def test_segments_and_the_growing_reference(obs: Observation) -> None:
    document, _ = run(obs, starfinder="segmentation", expand_refcat=True, fitgeometry="general", minobj=5)
    assert sorted(e.status for e in document.exposures) == ["REFERENCE", "SUCCESS", "SUCCESS"]


def fits_field(place: Path, folder: Path) -> list[str]:
    """The same exposures as plain FITS images with a TAN-SIP header, no JWST keyword."""
    paths = []
    for path in sorted(place.glob("*_cal.fits")):
        with fits.open(path) as hdus:
            sci = hdus["SCI"]
            keep = ("CTYPE", "CRPIX", "CRVAL", "CD1", "CD2", "CUNIT", "A_", "B_", "RADESYS", "PC", "CDELT", "BUNIT")
            header = fits.Header([c for c in sci.header.cards if c.keyword.startswith(keep)])
            paths.append(str(folder / f"plain{len(paths)}.fits"))
            fits.PrimaryHDU(sci.data, header).writeto(paths[-1])
    return paths


def test_images_without_jwst_keywords_align_too(place: Path, tmp_path: Path, made: Observation) -> None:
    obs = ingest(fits_field(place, tmp_path), Session(store=str(tmp_path / "plain.zarr"), workers=1))
    document, _ = run(obs)
    assert [e.status for e in document.exposures] == ["REFERENCE", "SUCCESS", "SUCCESS"]
    assert all(e.correction is None or e.correction.origin is None for e in document.exposures)
    told = Table.read(place / "truth" / "exposures.ecsv")
    for row, found in zip(told[1:], document.exposures[1:], strict=True):
        assert found.offset is not None
        assert found.offset[0] == pytest.approx(3600 * (row["dec_true"] - row["dec_ref"]), abs=0.01)
        assert found.sip == {} and found.s_region
    aligned = obs.exposures()[1]
    assert b"CRVAL1" in aligned.wcs.cards() and aligned.wcs.cards() != aligned.wcs.uncorrected.cards()


def test_a_plan_names_what_will_be_read(obs: Observation) -> None:
    tasks = tweakreg.plan(obs, Params())
    assert [t.item for t in tasks] == [0, 1, 2] and len({t.key for t in tasks}) == 3
    assert all(t.nbytes == t.least > 384 * 384 * 9 for t in tasks)
    assert {name.split("[")[0] for name, _ in tasks[0].reads} == {"exposures/384x384/sci", "exposures/384x384/dq"}


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("starfinder", "sextractor", "one of iraf, dao, segmentation"),
        ("fitgeometry", "affine", "one of shift, rshift, rscale, general"),
        ("abs_fitgeometry", "", "one of shift"),
        ("catalog_format", "csv", "one of ecsv, fits"),
        ("searchrad", 0.0, "positive"),
        ("tolerance", -1.0, "positive"),
        ("nclip", -1, "0 or more"),
        ("sigma", float("nan"), "finite"),
        ("brightest", 0, "at least 1"),
        ("connectivity", 6, "4 or 8"),
        ("contrast", 2.0, "0 to 1"),
        ("kron_params", (1.0,), "two or three numbers"),
        ("sip_degree", 7, "1 to 6"),
        ("sip_npoints", 2, "at least 3"),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: Any, wanted: str) -> None:
    with pytest.raises(InputError, match=rf"tweakreg\.{name} = .*: it must be {wanted}"):
        Params(**{name: value})


def test_a_number_in_a_card() -> None:
    cards = fits.Header({"V2_REF": -122.5, "V2": 1, "ROLL_REF": 3}).tostring(endcard=False, padding=False)
    assert star_lists.number_card(cards, "V2_REF") == -122.5 and star_lists.number_card(cards, "ROLL_REF") == 3.0
    assert star_lists.number_card(cards, "V3_REF") is None
    assert star_lists.number_card("V3_REF  = 'none'".ljust(80), "V3_REF") is None


def test_the_pixel_scale_of_a_tangent_plane() -> None:
    from streamimg3.sky.tangent import centre_plane
    from tests.sky.skies import from_cards

    wcs = from_cards(tangent_cards((40, 50), 30.0, 0.05), (40, 50))
    assert star_lists.pixel_scale(wcs, centre_plane(wcs)) == pytest.approx(0.05, rel=1e-9)
    far = replace(
        centre_plane(wcs), axes=tuple(-v for v in centre_plane(wcs).axes)
    )  # touches the other side of the sky
    assert star_lists.pixel_scale(wcs, far) == 1.0


def test_a_document_survives_the_store(obs: Observation) -> None:
    document, _ = run(obs)
    assert obs.document(AlignmentDocument) == document
    assert json.loads(obs.backend.get("documents/alignment.json") or b"")["step"] == "tweakreg"
    assert obs.backend.keys("scratch") == []
