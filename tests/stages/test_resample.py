"""The resample step: its parameters, its plan, and its tiles against one big canvas."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamimg3 import Observation
from streamimg3.engine import Runner
from streamimg3.errors import InputError
from streamimg3.geometry import Box, TileGrid
from streamimg3.kernels import pixels
from streamimg3.kernels.drizzle import Canvas, Kernel, Patch, drizzle
from streamimg3.sky.mosaic_frame import MosaicFrame
from streamimg3.sky.pixmap import PixelMap, Sampling, pixel_map
from streamimg3.stages import resample
from streamimg3.stages.layers import Layer, Setup
from streamimg3.stages.pixel_maps import make_map
from streamimg3.stages.resample import Params
from streamimg3.stages.tile_drizzle import bands, canvas_memory, task_memory, window_map, window_memory
from streamimg3.store.documents import ResampleDocument, SkyDocument
from streamimg3.store.layout import VARIANCES

SHAPE = (192, 192)  # of the shared field's exposures


# ---------------------------------------------------------------- parameters
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pixfrac", -0.1), ("pixfrac", 1.1), ("pixfrac", float("nan")), ("kernel", "cubic"), ("weight_type", "ivm-sky"),
        ("pixmap_order", 2), ("pixmap_stepsize", 0.5), ("pixmap_stepsize", float("nan")), ("pixel_scale_ratio", 0.0),
        ("pixel_scale_ratio", float("inf")), ("pixel_scale", -1.0), ("pixel_scale", float("nan")), ("output_shape", (0, 5)),
        ("tile", 8), ("fillval", "blue"), ("fillval", "inf"), ("rotation", float("nan")), ("crval", (float("nan"), 2.0)),
        ("crval", (150.0, 95.0)), ("crpix", (float("inf"), 2.0)),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^resample\.{name} = "):
        Params(**{name: value})


@pytest.mark.parametrize(
    ("text", "value"), [("NAN", np.nan), (" indef ", np.nan), ("", np.nan), ("0", 0.0), ("-1.5e3", -1500.0)]
)
def test_fill_values(text: str, value: float) -> None:
    found = Params(fillval=text).fill
    assert found is not None
    np.testing.assert_equal(found, value)


def test_defaults_are_the_references() -> None:
    """Those of jwst 3.0.0 (spec §7.1), but for the pixel map, which is ours."""
    p = Params()
    assert (p.pixfrac, p.kernel, p.fillval, p.weight_type) == (1.0, "square", "NAN", "ivm")
    assert (p.output_shape, p.crpix, p.crval, p.rotation, p.pixel_scale) == (None,) * 5
    assert (p.pixel_scale_ratio, p.output_wcs, p.single, p.blendheaders) == (1.0, "", False, True)
    assert (p.enable_ctx, p.enable_err, p.report_var, p.propagate_dq, p.pixmap_order) == (True, True, True, False, 1)
    assert p.sampling == Sampling(None, 1)


# ---------------------------------------------------------------- set-up and plan
@pytest.fixture(scope="module")
def obs(ingested: Observation, tmp_path_factory: pytest.TempPathFactory) -> Observation:
    """A copy of the shared store that may be changed."""
    import shutil

    url = tmp_path_factory.mktemp("copy") / "field.zarr"
    shutil.copytree(ingested.url, url)
    return Observation.at(str(url))


def prepared(obs: Observation, params: Params) -> tuple[Setup, MosaicFrame]:
    """Set-up and frame of the one mosaic that is made."""
    (target,) = resample.targets(obs, params)
    return resample.prepare(obs, params, target), target.frame


def test_the_digest_is_the_same_in_every_process(obs: Observation) -> None:
    """Otherwise a run that is taken up again finds nothing of what it did before.

    Python orders sets of text anew in every process; what goes into a digest must not depend on it.
    """
    code = (
        "from streamimg3 import Observation; from streamimg3.stages.resample import Params, prepare, targets;"
        f"obs = Observation.at({obs.url!r}); print(prepare(obs, Params(), targets(obs, Params())[0]).digest)"
    )
    root = str(Path(__file__).resolve().parents[2])
    found = set()
    for seed in ("1", "2"):
        env = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": root}
        found.add(
            subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
        )
    assert len(found) == 1


def test_the_digest_follows_what_changes_the_numbers(obs: Observation) -> None:
    base = prepared(obs, Params())[0].digest
    assert prepared(obs, Params())[0].digest == base
    changes: list[dict[str, Any]] = [
        {"pixfrac": 0.9}, {"kernel": "turbo"}, {"fillval": "0"}, {"weight_type": "exptime"}, {"rotation": 0.0},
        {"pixel_scale_ratio": 0.9}, {"tile": 512}, {"enable_ctx": False}, {"pixmap_stepsize": 1.0}, {"good_bits": "0"},
    ]  # fmt: skip
    others = [prepared(obs, Params(**change))[0].digest for change in changes]
    assert len({base, *others}) == 1 + len(changes)
    assert prepared(obs, Params(blendheaders=False))[0].digest == base, "headers are no numbers"


def test_a_plan_names_what_is_read_and_written(obs: Observation) -> None:
    tasks = resample.plan(obs, Params(tile=64))
    setup, frame = prepared(obs, Params(tile=64))
    assert len({t.key for t in tasks}) == len(tasks)
    grid = {tile.key: tile.box for tile in TileGrid(frame.shape, 64)}
    for task in tasks:
        assert {box for _, box in task.writes} == {grid[task.key].as_tuple()}
        assert [name for name, _ in task.writes] == [f"mosaic/{plane}" for plane in setup.planes]
        assert 0 < task.least <= task.nbytes
        for name, box in task.reads:
            assert name.startswith("exposures/192x192[")
            assert Box(*box).intersect(Box.of_shape(SHAPE)) == Box(*box)
    written = [(name, box) for task in tasks for name, box in task.writes]
    assert len(set(written)) == len(written), "no two tasks write one box"


def test_a_window_nothing_falls_on_is_refused(obs: Observation) -> None:
    with pytest.raises(InputError, match="no exposure touches the output image"):
        resample.run(obs, Params(crval=(10.0, 10.0), output_shape=(50, 50), crpix=(25.0, 25.0)), Runner())


# ---------------------------------------------------------------- tiles against one canvas
@dataclass(frozen=True)
class Whole:
    """A mosaic made without tiles, bands or windows."""

    sci: NDArray[np.float32]
    wht: NDArray[np.float32]
    con: NDArray[np.int32]
    variances: NDArray[np.float32]
    err: NDArray[np.float32]


def layer_patch(obs: Observation, setup: Setup, layer: Layer, found: PixelMap) -> Patch:
    """All pixels of an exposure with their weights (spec §7.4)."""
    exposure, box = obs.exposures()[layer.exposure], Box.of_shape(layer.shape)
    y, x = window_map(obs, setup, layer, found, box)
    planes = np.stack([exposure.read(v, box) for v in VARIANCES]).astype(np.float32)
    dq = np.asarray(exposure.read("dq", box), np.uint32)
    bad = (dq & np.uint32(layer.bad | 1)) != 0
    for plane in ("sci", "err", *VARIANCES):
        bad |= np.isnan(exposure.read(plane, box))
    with np.errstate(divide="ignore"):
        raw = np.float32(layer.constant) if layer.weight == "constant" else np.float32(1) / planes[0]
    weight = np.where(bad, np.float32(0), raw).astype(np.float32)
    sci = np.asarray(exposure.read("sci", box), np.float32) - np.float32(layer.level)
    return Patch((0, 0), layer.shape, y, x, sci[None], planes, weight, found.limits, np.zeros((0, 0), np.uint32))


def whole_mosaic(obs: Observation, params: Params) -> Whole:
    """Drizzle every exposure whole onto a canvas of the whole mosaic."""
    setup, frame = prepared(obs, params)
    canvas = Canvas.blank((0, 0), frame.shape, (1, 3))
    sums, weights = np.full((3, *frame.shape), np.nan, np.float32), np.zeros((3, *frame.shape), np.float32)
    for layer in setup.layers:
        found = make_map(obs, setup.maps, obs.exposures()[layer.exposure], frame, params.sampling)
        drizzle(
            canvas,
            layer_patch(obs, setup, layer, found),
            Kernel(params.kernel, params.pixfrac, frame.ratio),
            layer.bit,
        )
        pixels.add_variances(canvas.noise, sums, weights, -1 if layer.weight == "constant" else 0, layer.constant)
    ratio = np.float64(setup.ratio) if setup.measured else setup.ratio  # a measured one is carried in double precision
    variances = np.stack([pixels.final_variances(s, w, ratio) for s, w in zip(sums, weights, strict=True)])
    sci = np.where(canvas.weight == 0, np.float32(np.nan), canvas.data[0])
    return Whole(sci, canvas.weight, canvas.context, variances, pixels.total_error(variances))


CUT = Params(tile=100, pixmap_stepsize=1, pixfrac=0.6, rotation=0.0, output_shape=(150, 130), crpix=(40.0, 30.0))


@pytest.mark.parametrize(
    ("params", "levels"),
    [
        (Params(tile=64), None),
        (Params(tile=100, pixmap_stepsize=10, pixmap_order=3, kernel="lanczos3", pixel_scale_ratio=0.7), None),
        (replace(CUT, pixel_scale=0.04), None),
        (Params(tile=128, weight_type="exptime", good_bits="0"), (0.3, None, -0.1, 0.25)),
    ],
    ids=["measured map", "lanczos", "exact map, cut", "exposure times, no good bits, sky"],
)
def test_tiles_equal_one_canvas(obs: Observation, params: Params, levels: tuple[float | None, ...] | None) -> None:
    """Every plane, bit by bit."""
    obs.retract("sky") if levels is None else obs.commit(SkyDocument(method="match", levels=levels))
    layers = prepared(obs, params)[0].layers
    assert [la.level for la in layers] == [level or 0.0 for level in levels or (0.0,) * 4]
    (document,) = resample.run(obs, params, Runner())
    whole = whole_mosaic(obs, params)
    box = Box.of_shape(document.shape)
    assert np.isfinite(whole.sci).sum() > 10000
    assert document.exposures == (0, 1, 2, 3)
    wanted = {None: lambda e: 0 < e <= 1e-5, 1: lambda e: e == 0.0, 10: lambda e: e is None}[params.pixmap_stepsize]
    assert all(wanted(error) for error in document.map_errors)
    np.testing.assert_array_equal(obs.window("mosaic/sci", (), box), whole.sci)
    np.testing.assert_array_equal(obs.window("mosaic/wht", (), box), whole.wht)
    np.testing.assert_array_equal(obs.window("mosaic/con", (0,), box), whole.con)
    np.testing.assert_array_equal(obs.window("mosaic/ncontrib", (), box), np.bitwise_count(whole.con.view(np.uint32)))
    np.testing.assert_array_equal(obs.window("mosaic/err", (), box), whole.err)
    for name, plane in zip(VARIANCES, whole.variances, strict=True):
        np.testing.assert_array_equal(obs.window(f"mosaic/{name}", (), box), plane)


def test_bands_do_not_show(obs: Observation) -> None:
    """Work in the thinnest bands gives the same bits as work in one piece."""
    params = Params(tile=128)
    resample.run(obs, params, Runner())
    setup, _ = prepared(obs, params)
    setup.write(obs)  # set-up and maps were removed when the run was done
    tasks = resample.plan(obs, params)
    planes = [p for p in setup.planes if p != "con"]

    def made(limits: list[int]) -> list[bytes]:
        for task, limit in zip(tasks, limits, strict=True):
            resample.work(replace(task, limit=limit), obs=obs, mark=setup.digest)
        box = Box.of_shape(setup.shape)
        return [obs.window(f"mosaic/{plane}", (), box).tobytes() for plane in planes]

    assert any(t.least < t.nbytes for t in tasks)
    whole = made([t.nbytes for t in tasks])
    assert made([t.least for t in tasks]) == whole
    assert made([(t.least + t.nbytes) // 2 for t in tasks]) == whole


def test_a_finished_mosaic_is_kept(obs: Observation) -> None:
    first = resample.run(obs, Params(tile=200), Runner())
    again = resample.run(obs, Params(tile=200), Runner())
    assert again == first == (obs.document(ResampleDocument),)
    assert resample.run(obs, Params(tile=100), Runner())[0].digest != first[0].digest


# ---------------------------------------------------------------- windows and bands
def test_windows_of_a_map_are_cut_out_of_the_whole_and_nan_outside_its_valid_box(obs: Observation) -> None:
    setup, frame = prepared(obs, Params())
    exposure = obs.exposures()[1]
    whole = Box.of_shape(SHAPE)
    for sampling in (Sampling(), Sampling(10, 1), Sampling(1)):
        found = replace(pixel_map(exposure.wcs, frame.wcs, sampling), valid=Box(5, 9, 180, 170))
        if found.exact:
            found = replace(found, valid=whole)  # an exact map is NaN where the WCS itself is
        full = window_map(obs, setup, setup.layers[1], found, whole)
        valid = np.zeros(SHAPE, bool)
        valid[found.valid.slices] = True
        for plane in full:
            np.testing.assert_array_equal(np.isfinite(plane), valid)
        # A single pixel takes another path through the matrix product of a gWCS; windows always have more.
        for box in (Box(0, 0, 20, 20), Box(100, 150, 192, 192), Box(7, 10, 8, 12), Box(185, 3, 190, 30)):
            for part, plane in zip(window_map(obs, setup, setup.layers[1], found, box), full, strict=True):
                np.testing.assert_array_equal(part, plane[box.slices])


def small_setup(noise: int = 3, tile: int = 64) -> Setup:
    return Setup(
        "d", "mosaic", (100, 100), tile, ("sci", "wht"), VARIANCES[:noise], "square", 1.0, 1.0, False, None, False,
        "m", "", (),
    )  # fmt: skip


@st.composite
def cell_rows(draw: st.DrawFn) -> list[Box]:
    """Rows of grid cells as a pixel map gives them: one below the other, gaps allowed."""
    y, found = draw(st.integers(0, 300)), []
    for _ in range(draw(st.integers(1, 12))):
        height, x0 = draw(st.integers(1, 130)), draw(st.integers(0, 500))
        found.append(Box(y, x0, y + height, x0 + draw(st.integers(1, 600))))
        y += height + draw(st.sampled_from([0, 0, 0, 32]))
    return found


@settings(max_examples=60, deadline=None)
@given(cells=cell_rows(), rows=st.integers(0, 1500))
def test_bands_hold_every_cell_once_and_keep_to_the_memory(cells: list[Box], rows: int) -> None:
    setup = small_setup()
    free = rows * window_memory(setup, Box(0, min(c.x0 for c in cells), 1, max(c.x1 for c in cells)))
    found = bands(cells, setup, free)
    covered = np.zeros((2400, 1200), np.uint8)
    for band in found:
        covered[band.slices] += 1
    assert covered.max() == 1
    for cell in cells:
        assert covered[cell.slices].all()
    assert all(a.y1 <= b.y0 for a, b in pairwise(found)), "rows must come in ascending order"
    for band in found:
        assert band.shape[0] <= 32 or window_memory(setup, band) <= free


def test_no_cells_no_bands() -> None:
    assert bands([], small_setup(), 10**6) == []


@settings(max_examples=40, deadline=None)
@given(cells=cell_rows(), noise=st.integers(0, 3), share=st.floats(0.0, 1.0))
def test_a_task_keeps_to_what_it_was_granted(cells: list[Box], noise: int, share: float) -> None:
    """A task reads the union of its cells; between its least and its most it works in bands that fit."""
    setup = small_setup(noise)
    union = cells[0]
    for cell in cells:
        union = union.union(cell)
    most, least = task_memory(setup, [union])
    assert canvas_memory(setup) < least <= most
    limit = int(least + share * (most - least))
    for band in bands(cells, setup, limit - canvas_memory(setup)):
        assert canvas_memory(setup) + window_memory(setup, band) <= limit
