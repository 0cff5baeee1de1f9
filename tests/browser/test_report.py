"""The report in a real browser: no error, every picture there, zoom and overlays work by click, at two widths."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamimg3 import Session, run
from tests.conftest import M17
from tests.pipelines import coronagraphs, time_series

pytestmark = pytest.mark.browser
WIDTHS = (1280, 390)

PICTURES = """
return Array.from(document.querySelectorAll('img')).filter(i => i.getAttribute('src') && !i.naturalWidth).map(i => i.alt);
"""
PLOTS = """
return Array.from(document.querySelectorAll('svg.plot')).map(s => {
  const b = s.getBoundingClientRect();
  return [b.width, b.height, s.querySelectorAll('circle, polyline, g rect, line').length];
});
"""
READY = """
const c = document.getElementById('view');
return document.readyState == 'complete' && (!c || c.dataset.ready == '1');
"""
CANVAS = """
const c = document.getElementById('view'), p = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
let n = 0, sum = 0, square = 0, hash = 0;
for (let i = 0; i < p.length; i += 4) { n++; sum += p[i]; square += p[i] * p[i]; hash = (hash * 31 + p[i] + 7 * p[i + 1]) | 0; }
return {mean: sum / n, spread: Math.sqrt(square / n - (sum / n) ** 2), hash: hash, scale: +c.dataset.scale,
        sources: +c.dataset.sources, segments: c.dataset.segments};
"""


@pytest.fixture(scope="module")
def simulated(field: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report that a run of a simulated JWST field leaves."""
    return _report(str(field), tmp_path_factory.mktemp("simulated"))


@pytest.fixture(scope="module")
def m17(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of eight real frames."""
    align = {"expand_refcat": True, "brightest": 1000, "minobj": 6, "fitgeometry": "shift"}
    return _report(
        str(M17), tmp_path_factory.mktemp("m17"), tweakreg=align, skymatch={"skystat": "median"},
        source_catalog={"bkg_boxsize": 64},
    )  # fmt: skip


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A star taken away from two rolls."""
    folder = tmp_path_factory.mktemp("star")
    files = coronagraphs.make(folder)
    run("coron3", files.association, session=Session(output_dir=str(folder), workers=1), **files.steps())
    (found,) = folder.glob("*_report.html")
    return found


@pytest.fixture(scope="module")
def transit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Spectra of a transit."""
    folder = tmp_path_factory.mktemp("transit")
    association = time_series.write_series(folder, time_series.Scene(spectra=True, count=120), (70, 50))
    chosen = {"override_extract1d": str(folder / "extract1d.json"), "override_apcorr": "N/A"}
    run("tso3", association, session=Session(output_dir=str(folder), workers=1), extract_1d=chosen)
    (found,) = folder.glob("*_report.html")
    return found


def _report(inputs: str, folder: Path, **steps: Any) -> Path:
    run("image3", inputs, session=Session(output_dir=str(folder), workers=1), **steps)
    (found,) = folder.glob("*_report.html")
    return found


def _open(browser: Any, page: Path, width: int) -> None:
    browser.set_window_size(width, 900)
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    browser.get_log("browser")
    browser.get(page.as_uri())
    _wait(lambda: browser.execute_script(READY))


def _wait(done: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "the page is not ready"
        time.sleep(0.05)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("which", "fewest"), [("simulated", 12), ("m17", 12), ("star", 8), ("transit", 5)])
def test_report(browser: Any, which: str, fewest: int, width: int, request: pytest.FixtureRequest) -> None:
    page = request.getfixturevalue(which)
    _open(browser, page, width)
    assert browser.execute_script(PICTURES) == []
    plots = browser.execute_script(PLOTS)
    assert len(plots) >= fewest and all(w > 250 and h > 150 and marks > 0 for w, h, marks in plots)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert (
        browser.execute_script(
            "return performance.getEntriesByType('resource').filter(r => !r.name.startsWith('data:'))"
        )
        == []
    )
    if which in ("simulated", "m17"):
        _use(browser)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    browser.save_screenshot(str(page.with_name(f"{which}-{width}.png")))


def _click(browser: Any, selector: str) -> None:
    """Click on something that lies still in the middle of the window: a page that is still scrolling takes clicks elsewhere."""
    element = browser.find_element("css selector", selector)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
    element.click()


def _use(browser: Any) -> None:
    """Zoom, switch overlays on, point at a source."""
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    first = browser.execute_script(CANVAS)
    assert first["spread"] > 10 and first["sources"] == 0
    for do, change in (("in", 1.6), ("in", 1.6), ("out", 1 / 1.6)):
        before = browser.execute_script(CANVAS)
        _click(browser, f"[data-do={do}]")
        after = browser.execute_script(CANVAS)
        assert after["scale"] == pytest.approx(before["scale"] * change, rel=1e-3) and after["hash"] != before["hash"]
    _click(browser, "[data-do=fit]")
    assert browser.execute_script(CANVAS) == first
    seen = {first["hash"]}
    for name in ("show-segments", "show-sources"):
        _click(browser, f"#{name}")
        seen.add(browser.execute_script(CANVAS)["hash"])
    assert len(seen) == 3 and browser.execute_script(CANVAS)["sources"] > 5
    x, y = browser.execute_script(
        "const f = JSON.parse(document.getElementById('facts').textContent), v = +document.getElementById('view').dataset.scale;"
        "document.getElementById('view').scrollIntoView({block: 'center', behavior: 'instant'});"
        "const at = f.sources.map(s => [s[1] * v - f.width * v / 2, s[2] * v - f.height * v / 2]);"
        "return at.sort((a, b) => Math.hypot(...a) - Math.hypot(...b))[0];"  # the one nearest to the middle
    )
    canvas = browser.find_element(By.ID, "view")
    ActionChains(browser).move_to_element_with_offset(canvas, round(x), round(y)).click().perform()
    told = browser.find_element(By.ID, "source")
    assert told.is_displayed() and told.text.startswith("source ") and "RA" in told.text
