"""NIRSpec images through image2 on the command line: all reference files of the optics are found in a folder."""

from __future__ import annotations

from pathlib import Path

import asdf
import numpy as np
import pytest
from astropy.io import fits

from streamimg3 import Observation
from streamimg3.sky.wcs import Wcs
from tests.conftest import command_line
from tests.formats.reference_files import Optics
from tests.pipelines.rates import Rate
from tests.sky.assigned import case_of, recorded

NAME = "nirspec_nrs2"  # a sub-array, during target confirmation
RATE = "jw01234001001_02101_00001_nrs2_rate.fits"


@pytest.fixture
def exposure(tmp_path: Path) -> Path:
    """A folder with the exposure, and its reference files in ``references``."""
    case = case_of(NAME)
    given = case.keywords
    optics = Optics(given["INSTRUME"], given["DETECTOR"], given["EXP_TYPE"], given["FILTER"])
    apart = ("INSTRUME", "DETECTOR", "EXP_TYPE", "FILTER", "PUPIL", "SUBSTRT1", "SUBSTRT2", "SUBSIZE1", "SUBSIZE2")
    more = {k: v for k, v in given.items() if k not in apart}
    rate = Rate(1, optics, case.shape, (given["SUBSTRT2"], given["SUBSTRT1"]))
    rate.write(tmp_path / RATE, **{k: v for k, v in more.items() if k in ("GRATING", "LAMP", "GWA_XTIL", "GWA_YTIL")})
    with fits.open(tmp_path / RATE, mode="update") as file:
        file["SCI"].header.update(
            {k: v for k, v in more.items() if k not in ("GRATING", "LAMP", "GWA_XTIL", "GWA_YTIL")}
        )
    (tmp_path / "references").mkdir()
    for kind, tree in case.trees.items():
        # the disperser is one of a grating; the others are of the instrument
        asdf.AsdfFile(tree).write_to(tmp_path / "references" / f"jwst_nirspec_{kind}_0001.asdf")
    return tmp_path


def arguments(folder: Path, *more: str) -> list[str]:
    """What a user would type; NIRSpec images have no flat field of the kind that images are divided by."""
    return ["run", "image2", str(folder / RATE), "--references", str(folder / "references"), "--offline",
            "--store", str(folder / "x.zarr"), "--output-dir", str(folder), "--workers", "1",
            "--set", "flat_field.override_flat=N/A", "--set", "photom.override_photom=N/A", *more]  # fmt: skip


def test_image_gets_the_wcs_of_the_reference(exposure: Path) -> None:
    said = command_line(*arguments(exposure))
    assert said.returncode == 0, said.stderr
    (product,) = exposure.glob("*_cal.fits")
    head, sci = fits.getheader(product), fits.getheader(product, "SCI")
    wanted = recorded(NAME)
    assert (head["S_WCS"], head["S_FLAT"], head["S_PHOTOM"]) == ("COMPLETE", "SKIPPED", "SKIPPED")
    assert head["R_FPA"].endswith("jwst_nirspec_fpa_0001.asdf")
    assert (sci["SPORDER"], sci["WAVSTART"], sci["WAVEND"]) == tuple(
        wanted.facts[k] for k in ("spectral_order", "waverange_start", "waverange_end")
    )
    (stored,) = Observation.at(str(exposure / "x.zarr")).exposures()
    y, x = case_of(NAME).pixels(wanted.box)
    for wcs in (stored.wcs, Wcs("gwcs", fits.getdata(product, "ASDF").tobytes(), case_of(NAME).shape)):
        np.testing.assert_allclose(wcs.to_sky(y, x, bounded=False), wanted.sky, rtol=0, atol=1e-12)
    assert not list(exposure.glob("*_i2d.fits"))  # not one of the types that are rectified
    assert "no exposure is a 2-D image of type" in said.stderr


def test_a_missing_part_of_the_optics_is_named(exposure: Path) -> None:
    (exposure / "references" / "jwst_nirspec_collimator_0001.asdf").unlink()
    said = command_line(*arguments(exposure))
    assert said.returncode == 2
    last = said.stderr.splitlines()[-1]
    assert "collimator" in last and "assign_wcs.override_collimator" in last
