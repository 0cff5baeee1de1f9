"""gWCS of NIRSpec images, against what jwst 3.0.0 makes of the same invented optics (numbers in assign_wcs.json)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from streamimg3.errors import InputError
from streamimg3.sky.imaging_wcs import described
from streamimg3.sky.nirspec_imaging import Optics, Passband, passband, wheel_angles
from streamimg3.sky.sip import SipOptions
from tests.sky.assigned import case_of, recorded, setting_of, stored, trees_of
from tests.sky.wcs_references import optics

OPEN = ["nirspec_nrs1", "nirspec_nrs2"]


@pytest.mark.parametrize("name", OPEN)
def test_positions_are_those_of_the_reference(name: str) -> None:
    wcs, wanted = stored(name), recorded(name)
    assert wcs.bounds == wanted.box
    assert wcs.gwcs().available_frames == list(wanted.frames)
    y, x = case_of(name).pixels(wanted.box)
    np.testing.assert_allclose(wcs.to_sky(y, x, bounded=False), wanted.sky, rtol=0, atol=1e-12)
    assert described(wcs, (None, None), None).s_region == wanted.s_region


@pytest.mark.parametrize("name", OPEN)
def test_there_and_back(name: str) -> None:
    """The reference's own way back takes an angle for the wavelength, and is wrong."""
    y, x = case_of(name).pixels(recorded(name).box)
    np.testing.assert_allclose(stored(name).to_pixel(*stored(name).to_sky(y, x)), (y, x), rtol=0, atol=1e-6)


def test_every_step_can_be_undone() -> None:
    wcs = stored("nirspec_nrs1").gwcs()
    values = (np.array([100.0, 1900.0]), np.array([1500.0, 30.0]))
    for step in wcs.pipeline[:-1]:
        after = step.transform(*values)
        np.testing.assert_allclose(step.transform.inverse(*after), values, rtol=1e-10, atol=1e-12)
        values = after


def test_approximation_is_that_of_the_reference() -> None:
    found = described(stored("nirspec_nrs2"), (None, None), SipOptions())
    for keyword, value in recorded("nirspec_nrs2").sip.items():
        # last bits of the positions differ, which the highest terms enlarge
        assert found.sip[keyword] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-4, abs=1e-9))


def test_closed_filter_wheel_ends_at_the_shutters() -> None:
    wcs, wanted = stored("nirspec_opaque").gwcs(), recorded("nirspec_opaque")
    assert wcs.available_frames == list(wanted.frames) == ["detector", "sca", "gwa", "msa"]
    y, x = case_of("nirspec_opaque").pixels(wanted.box)
    found = wcs(x, y, with_bounding_box=False)
    np.testing.assert_allclose(found, wanted.sky, rtol=0, atol=1e-15)  # metres, and micron last
    np.testing.assert_allclose(wcs.backward_transform(*found), (x, y), rtol=0, atol=1e-6)
    told = described(stored("nirspec_opaque"), (None, None), SipOptions())
    assert told.s_region is None and told.sip == {} and "does not end on the sky" in told.notes[0]


def test_sensors_turn_the_wheel() -> None:
    tree = optics(-8.8)["disperser"]
    assert wheel_angles(tree, "d", (None, None)) == (0.0277, -0.041, 0.1335, -8.8)
    x, y, z, tilt = wheel_angles(tree, "d", (0.3367, 0.1322))

    def relation(reading: float) -> float:
        return 1.5 + 410.0 * reading + 3.1 * reading**2

    assert (z, tilt) == (0.1335, -8.8)
    assert y == pytest.approx(-0.041 + 0.5 * (relation(0.3367) - relation(0.31)) / 3600, abs=1e-15)
    assert x == pytest.approx(0.0277 + 0.5 * (relation(0.1322) - relation(0.12)) / 3600, abs=1e-15)


def test_passband_is_recorded() -> None:
    facts, case = recorded("nirspec_nrs1").facts, case_of("nirspec_nrs1")
    found = passband(trees_of(case)["wavelengthrange"], "w.asdf", setting_of(case))
    assert (found.order, *found.limits) == tuple(
        facts[k] for k in ("spectral_order", "waverange_start", "waverange_end")
    )
    assert found.note is None


def test_passband_of_an_unknown_setting() -> None:
    tree, setting = optics()["wavelengthrange"], setting_of(case_of("nirspec_nrs1"))
    other = passband(tree, "w.asdf", replace(setting, filter="F140X"))
    assert other == Passband(0, (6.0e-7, 5.3e-6), "w.asdf has no row F140X_MIRROR: CLEAR_MIRROR is taken")
    none = passband(tree, "w.asdf", replace(setting, grating="G140H"))
    assert (none.order, none.limits) == (-1, (0.6e-6, 5.3e-6))
    lamp = passband(tree, "w.asdf", replace(setting, filter="F110W", exp_type="NRS_LAMP", lamp="LINE1"))
    assert lamp.note is not None and "LINE1_MIRROR" in lamp.note


def test_missing_and_wrong_files_are_named() -> None:
    setting, trees = setting_of(case_of("nirspec_nrs1")), optics()
    with pytest.raises(InputError, match="reference files of type collimator, ote"):
        Optics.of({k: v for k, v in trees.items() if k not in ("ote", "collimator")}, {}, setting)
    with pytest.raises(InputError, match=r"f\.asdf: its 'model' takes 2 and gives 2 numbers; it must take 3"):
        Optics.of(trees | {"fore": trees["ote"]}, {"fore": "f.asdf"}, setting)
    with pytest.raises(InputError, match=r"d\.asdf: no number 'theta_x'"):
        Optics.of(trees | {"disperser": trees["ote"]}, {"disperser": "d.asdf"}, setting)
    with pytest.raises(InputError, match=r"d\.asdf: gwa_tiltx has no tilt_model"):
        Optics.of(trees | {"disperser": trees["disperser"] | {"gwa_tiltx": {}}}, {"disperser": "d.asdf"}, setting)
    with pytest.raises(InputError, match=r"w\.asdf: no table of waverange_selector"):
        Optics.of(trees | {"wavelengthrange": {}}, {"wavelengthrange": "w.asdf"}, setting)
    with pytest.raises(InputError, match="DETECTOR = NRS3"):
        Optics.of(trees, {}, replace(setting, detector="NRS3"))
