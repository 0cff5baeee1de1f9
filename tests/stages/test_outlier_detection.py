"""The outlier_detection step: parameters, tiles, memory, what it leaves behind and what it does not do twice."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from streamimg3 import Observation
from streamimg3.engine import Runner
from streamimg3.engine.budget import MIB
from streamimg3.engine.runner import Progress
from streamimg3.errors import InputError
from streamimg3.geometry import Box
from streamimg3.stages import outlier_detection as step
from streamimg3.stages import resample
from streamimg3.stages.outlier_detection import Params
from streamimg3.store.documents import OutlierDocument, ResampleDocument, SkyDocument


@pytest.fixture
def obs(ingested: Observation, tmp_path: Path) -> Observation:
    """A copy of the shared store that may be changed."""
    shutil.copytree(ingested.url, tmp_path / "field.zarr")
    return Observation.at(str(tmp_path / "field.zarr"))


def flags(obs: Observation) -> NDArray[Any]:
    """The outliers of all exposures."""
    return np.asarray(obs.array(f"{obs.exposures()[0].group}/outlier")[...])


class Notes(Progress):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight_type", "none"), ("pixfrac", 1.5), ("kernel", "gaussian"), ("maskpt", 1.5), ("maskpt", float("nan")),
        ("snr", (5.0, -1.0)), ("snr", (float("nan"), 4.0)), ("scale", (1.2, -0.1)), ("backg", float("inf")),
        ("pixmap_stepsize", 0.5), ("pixmap_order", 2), ("noise", "mode"), ("gain", 0.0), ("read_noise", -1.0), ("tile", 3),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^outlier_detection\.{name} = "):
        Params(**{name: value})


def test_defaults_are_the_references() -> None:
    """Those of jwst 3.0.0 (spec §6.1), but for the pixel map, which is ours."""
    p = Params()
    assert (p.weight_type, p.pixfrac, p.kernel, p.fillval, p.maskpt) == ("ivm", 1.0, "square", "NAN", 0.7)
    assert (p.snr, p.scale, p.backg, p.resample_data, p.save_intermediate_results) == (
        (5.0, 4.0), (1.2, 0.7), 0.0, True, False,
    )  # fmt: skip
    assert p.noise == "exposure"


def test_one_layer_per_pointing(obs: Observation) -> None:
    """Flags are found, counted and left out of the mosaic; nothing else stays behind."""
    before = resample.run(obs, resample.Params(), Runner())[0].digest
    document = step.run(obs, Params(), Runner())
    found = flags(obs)
    assert document.status == "COMPLETE"
    assert document.flagged == tuple(int(n) for n in found.sum(axis=(1, 2)))
    assert all(20 < n < 2000 for n in document.flagged)
    assert len(document.layers) == len({r.group_id for r in obs.records()})
    assert "outliers" not in obs.backend.keys("")
    after = resample.run(obs, resample.Params(), Runner())[0].digest
    assert after != before


def test_flagged_pixels_do_not_enter_the_mosaic(obs: Observation) -> None:
    """A flag over half an exposure takes it out of the context there."""
    step.run(obs, Params(), Runner())
    exposure = obs.exposures()[0]
    everything = np.ones(exposure.record.shape, np.uint8)
    obs.write(f"{exposure.group}/outlier", (exposure.record.row,), Box.of_shape(exposure.record.shape), everything)
    resample.run(obs, resample.Params(), Runner())
    context = np.asarray(obs.array("mosaic/con")[0])
    assert not (context & 1).any()
    assert (context & 2).any()


@pytest.mark.parametrize("tile", [32, 64, 256])
def test_tiles(ingested: Observation, tmp_path: Path, tile: int) -> None:
    """Any tile gives the same flags."""
    found = []
    for size in (tile, 1024):
        url = tmp_path / f"{size}.zarr"
        shutil.copytree(ingested.url, url)
        other = Observation.at(str(url))
        step.run(other, Params(tile=size), Runner())
        found.append(flags(other))
    assert found[0].any()
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize("resample_data", [True, False])
def test_bands(ingested: Observation, tmp_path: Path, resample_data: bool) -> None:
    """Thin bands give the same flags as whole planes."""
    found = []
    for limited in (True, False):
        url = tmp_path / f"{limited}.zarr"
        shutil.copytree(ingested.url, url)
        other = Observation.at(str(url))
        params = Params(resample_data=resample_data, tile=64)
        runner = Runner()
        if limited:

            def thin(tasks, check=runner.check):  # type: ignore[no-untyped-def]
                return replace(check(tasks), each=max(t.least for t in tasks))

            runner.check = thin  # type: ignore[method-assign]
        step.run(other, params, runner)
        found.append(flags(other))
    assert found[0].any()
    np.testing.assert_array_equal(found[0], found[1])


def test_unchanged_is_kept(obs: Observation) -> None:
    """The same parameters do nothing; other ones, or other sky levels, do it again."""
    runner = Runner(progress=Notes())
    first = step.run(obs, Params(), runner)
    assert step.run(obs, Params(), runner).digest == first.digest
    assert "outlier_detection: unchanged, kept" in runner.progress.said  # type: ignore[attr-defined]
    assert step.run(obs, Params(maskpt=0.5), runner).digest != first.digest
    obs.commit(SkyDocument(levels=(0.1, 0.2, 0.3, 0.4)))
    assert step.run(obs, Params(), runner).digest != first.digest


def test_levels_taken_off_for_good_flag_alike(obs: Observation) -> None:
    """Sky that is subtracted now or later is the same sky (up to the rounding of one subtraction)."""
    levels = (0.5, 0.6, 0.7, 0.8)
    obs.commit(SkyDocument(levels=levels))
    step.run(obs, Params(), Runner())
    later = flags(obs)
    obs.commit(SkyDocument(levels=levels, subtract=True))
    step.run(obs, Params(), Runner())
    now = flags(obs)
    assert np.count_nonzero(later != now) <= 2


def test_intermediate_results_are_kept(obs: Observation) -> None:
    """The groups' mosaics, the median and the blotted medians, in the exposures' own pixels."""
    step.run(obs, Params(save_intermediate_results=True), Runner())
    assert obs.array("outliers/sci").shape[0] == len({r.group_id for r in obs.records()})
    median = np.asarray(obs.array("outliers/median")[...])
    exposure = obs.exposures()[0]
    blotted = np.asarray(obs.array(f"{exposure.group}/blot")[exposure.record.row])
    sci = np.asarray(exposure.read("sci", Box.of_shape(exposure.record.shape)), np.float64)
    assert np.isfinite(median).mean() > 0.5
    good = np.isfinite(blotted) & np.isfinite(sci) & (flags(obs)[exposure.record.row] == 0)
    assert abs(np.median((blotted - sci)[good])) < 0.1  # the scene's own sky differs by less


def test_noise_of_the_median(obs: Observation) -> None:
    """With the median's error a hit cannot hide behind its own noise: more is flagged, never much less."""
    step.run(obs, Params(), Runner())
    own = flags(obs) != 0
    document = step.run(obs, Params(noise="median"), Runner())
    median = flags(obs) != 0
    assert document.digest
    assert median.sum() > own.sum()


def test_without_resampling(obs: Observation) -> None:
    """Each exposure against the median of all in the same pixels (spec §6.5)."""
    document = step.run(obs, Params(resample_data=False, maskpt=0.0), Runner())
    exposures = obs.exposures()
    box = Box.of_shape(exposures[0].record.shape)
    sci = np.stack([np.asarray(e.read("sci", box)) for e in exposures])
    err = np.stack([np.asarray(e.read("err", box)) for e in exposures])
    finite = np.where(np.isnan(sci).all(axis=0), np.float32(0), sci)
    median = np.nanmedian(finite, axis=0).astype(np.float32)
    expected = np.abs(sci - median) > np.float32(5.0) * np.nan_to_num(err)
    np.testing.assert_array_equal(flags(obs) != 0, expected)
    assert document.layers == tuple(e.record.name for e in exposures)


def test_exposures_of_two_shapes_need_resampling(obs: Observation) -> None:
    records = obs.records()
    obs.write_records([records[0], *(replace(r, shape=(192, 190)) for r in records[1:])])
    with pytest.raises(InputError, match="192 x 190 and 192 x 192"):
        step.run(obs, Params(resample_data=False), Runner())


def test_one_exposure_has_nothing_to_be_compared_with(obs: Observation) -> None:
    obs.write_records(obs.records()[:1])
    document = step.run(obs, Params(), Runner())
    assert document.status == "FAILED"
    assert document.reason is not None and "1 exposure" in document.reason
    assert obs.document(OutlierDocument) == document
    assert step.plan(obs, Params()) == []
    assert isinstance(resample.run(obs, resample.Params(), Runner())[0], ResampleDocument)


def test_exposures_without_error(obs: Observation) -> None:
    """Their noise is that of the background, measured; it is said, and hits are still found."""
    with_err = step.run(obs, Params(), Runner()).flagged
    obs.write_records([replace(r, planes=tuple(p for p in r.planes if p != "err")) for r in obs.records()])
    progress = Notes()
    document = step.run(obs, Params(), Runner(progress=progress))
    assert document.notes == ("4 exposures have no ERR: their noise is modelled as background rms",)
    assert any("no ERR" in text for text in progress.said)
    for ours, theirs in zip(document.flagged, with_err, strict=True):
        assert 0.3 * theirs < ours < 3 * theirs
    assert step.run(obs, Params(gain=2.0, read_noise=0.1), Runner()).notes[0].endswith("read noise and Poisson noise")


def test_plan_reads_no_pixel(obs: Observation) -> None:
    """Tasks name what they read and write, and hold no more than a few planes of a tile."""
    tasks = step.plan(obs, Params(tile=64))
    shutil.rmtree(Path(obs.url) / obs.exposures()[0].group / "sci" / "c")
    assert [t.key for t in step.plan(obs, Params(tile=64))] == [t.key for t in tasks]
    assert all(t.least <= t.nbytes < 64 * MIB for t in tasks)
