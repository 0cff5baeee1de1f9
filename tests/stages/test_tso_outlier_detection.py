"""Outliers of time series: blocks, scopes, methods, what is kept (spec others §2.2)."""

from __future__ import annotations

import numpy as np
import pytest

from streamimg3 import Observation, Session, ingest
from streamimg3.engine import Runner, Task
from streamimg3.errors import InputError
from streamimg3.stages import tso_outlier_detection as step
from streamimg3.stages.tso_outlier_detection import Params
from streamimg3.store.layout import STRIP_PIXELS, strip_chunking
from tests.pipelines.time_series import Scene, write_series

SCENE = Scene(shape=(20, 24), count=70, dimmed=(20, 40), rays=3)
LENGTHS = (40, 30)


@pytest.fixture(scope="module")
def obs(tmp_path_factory: pytest.TempPathFactory) -> Observation:
    folder = tmp_path_factory.mktemp("series")
    return ingest(write_series(folder, SCENE, LENGTHS), Session(store=str(folder / "x.zarr")))


def _flags(obs: Observation, params: Params, runner: Runner | None = None) -> np.ndarray:
    obs.retract("outliers") if obs.backend.get("documents/outliers.json") else None
    step.run(obs, params, runner or Runner())
    return np.asarray(obs.array("integrations/20x24/outlier")[:]) != 0


def _expected(width: int, spans: list[tuple[int, int]], aware: bool = False, scatter: bool = False) -> np.ndarray:
    """The rule, integration by integration."""
    sci = np.stack([SCENE.image(k) for k in range(1, SCENE.count + 1)])
    flags = np.zeros(sci.shape, bool)
    for first, last in spans:
        part = sci[first:last]
        for k in range(last - first):
            start = int(np.clip(k - width // 2, 0, last - first - width)) if width < last - first else 0
            window = part[start : start + width] if width < last - first else part
            middle = np.nanmedian(window.astype(np.float64), axis=0)
            noise = np.full(middle.shape, np.float32(SCENE.noise))
            if scatter:
                low, high = np.quantile(window, (0.25, 0.75), axis=0)
                noise = np.maximum(noise, (high - low) / 1.3489795)
            flags[first + k] = np.abs(part[k] - middle) > 5 * noise
    return flags


def test_windows_end_with_the_segment_or_go_on(obs: Observation) -> None:
    """The cosmic rays of all integrations are found; the windows are those of the scope."""
    whole, parts = [(0, 70)], [(0, 40), (40, 70)]
    np.testing.assert_array_equal(_flags(obs, Params(rolling_window_width=9)), _expected(9, parts))
    np.testing.assert_array_equal(
        _flags(obs, Params(rolling_window_width=9, window_scope="exposure")), _expected(9, whole)
    )
    found = _flags(obs, Params(rolling_window_width=9))
    hit = np.zeros(found.shape, bool)
    for k in range(70):
        hit[k][SCENE.hits(k + 1)] = True
    assert found[hit].all() and found[~hit].mean() < 0.02  # the star jitters


def test_short_segments_have_one_median(obs: Observation) -> None:
    """A segment of 30 is not longer than the window of 35."""
    np.testing.assert_array_equal(_flags(obs, Params(rolling_window_width=35)), _expected(35, [(0, 40), (40, 70)]))
    document = obs.document(step.OutlierDocument)
    assert document is not None and "1 segments are not longer" in document.notes[0]
    np.testing.assert_array_equal(_flags(obs, Params(rolling_window_width=1)), _expected(99, [(0, 40), (40, 70)]))


def test_scatter_counts_as_error(obs: Observation) -> None:
    """Pixels that vary are measured against their variations."""
    params = Params(rolling_window_width=9, variability=True)
    np.testing.assert_array_equal(_flags(obs, params), _expected(9, [(0, 40), (40, 70)], scatter=True))


def test_sigma_clipping(obs: Observation) -> None:
    """Every pixel's series is clipped: as astropy does it."""
    from astropy.stats import sigma_clip

    found = _flags(obs, Params(method="sigma_clip"))
    sci = np.stack([SCENE.image(k) for k in range(1, 71)]).astype(np.float64)
    for first, last in ((0, 40), (40, 70)):
        clipped = sigma_clip(sci[first:last], sigma=5.0, maxiters=None, axis=0, masked=True)
        np.testing.assert_array_equal(found[first:last], np.ma.getmaskarray(clipped))


def test_memory_does_not_change_flags(obs: Observation) -> None:
    """Thin bands, two workers: the same flags and medians."""
    params = Params(rolling_window_width=9, save_intermediate_results=True)
    first = _flags(obs, params)
    medians = np.asarray(obs.array("integrations/20x24/median")[:])
    tasks = step.plan(obs, params)
    assert all(isinstance(t, Task) and t.least < t.nbytes for t in tasks)

    class Tight(Runner):
        """Grants every task the least it can do with."""

        def check(self, tasks):  # type: ignore[no-untyped-def]
            from dataclasses import replace

            return replace(super().check(tasks), each=max(t.least for t in tasks))

    np.testing.assert_array_equal(_flags(obs, params, Tight()), first)
    np.testing.assert_array_equal(np.asarray(obs.array("integrations/20x24/median")[:]), medians)
    assert medians.dtype == np.float32


def test_unchanged_results_are_kept(obs: Observation) -> None:
    params = Params(rolling_window_width=7)
    document = step.run(obs, params, Runner())
    assert step.run(obs, params, Runner()) == document
    assert sum(document.flagged) == np.count_nonzero(obs.array("integrations/20x24/outlier")[:])


@pytest.mark.parametrize(
    ("given", "said"),
    [({"method": "mean"}, "method"), ({"window_scope": "all"}, "window_scope"), ({"snr": (0.0, 4.0)}, "snr")],
)
def test_bad_values_are_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Params(**given)  # type: ignore[arg-type]


def test_strips_are_whole_chunks() -> None:
    """A shard holds the rows of one chunk, and is neither tiny nor huge."""
    for shape, count in (((64, 256), 20000), ((256, 2048), 500), ((2048, 2048), 60), ((20, 24), 70)):
        (depth, rows, _), (long, high, width) = strip_chunking(shape, count)
        assert long % depth == 0 and high == rows and width >= shape[1]
        assert long * high * width <= 3 * STRIP_PIXELS
