"""Parameters of assign_wcs, which reference files it wants, and the keywords that it makes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from streamimg3.errors import InputError
from streamimg3.formats.reference_asdf import read_tree
from streamimg3.stages import assign_wcs
from streamimg3.stages.assign_wcs import Facts, Params
from tests.formats.reference_files import NIRCAM, kit
from tests.pipelines.rates import POINTING

FACTS = Facts("jw_rate.fits", "NIRCAM", "NRCA2", "NRC_IMAGE", "F200W", "CLEAR")
NUMBERS: dict[str, float | None] = dict.fromkeys(assign_wcs.KEYWORDS) | {k: float(v) for k, v in POINTING.items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, Any]]:
    """Distortion and filter offsets."""
    made = kit(tmp_path_factory.mktemp("references"), NIRCAM, (96, 80))
    return {kind: (made[kind], read_tree(made[kind], {}, kind)) for kind in ("distortion", "filteroffset")}


@pytest.mark.parametrize(
    ("name", "value"), [("sip_degree", 7), ("sip_inv_degree", 0), ("sip_max_pix_error", 0.0), ("sip_npoints", 1)]
)
def test_values_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"assign_wcs\.{name} = {value}"):
        Params(**{name: value})  # type: ignore[arg-type]


def test_which_files_an_instrument_wants() -> None:
    assert assign_wcs.needed(FACTS) == (("distortion", True), ("filteroffset", False))
    assert assign_wcs.needed(Facts("x", "FGS", "GUIDER1", "FGS_IMAGE")) == (("distortion", True),)
    assert "fore" in dict(assign_wcs.needed(Facts("x", "NIRSPEC", "NRS1", "NRS_IMAGE", "CLEAR", grating="MIRROR")))
    assert assign_wcs.needed(Facts("x", "NIRCAM", "NRCA2", "NRC_WFSS")) == ()


def test_keywords_follow_from_the_wcs(files: dict[str, tuple[str, Any]]) -> None:
    """The reference pixel stays, and its position is what the gWCS says of it."""
    made = assign_wcs.assign(FACTS, NUMBERS, (96, 80), files, Params())
    assert str(made.keywords["CTYPE1"]).startswith("RA---TAN") and made.keywords["CRPIX1"] == 40.5
    assert str(made.keywords["S_REGION"]).startswith("POLYGON ICRS  ")
    sky = made.wcs(39.5, 47.5)
    np.testing.assert_allclose(sky, (made.keywords["CRVAL1"], made.keywords["CRVAL2"]), atol=1e-9)


def test_without_approximation_there_is_the_outline_only(files: dict[str, tuple[str, Any]]) -> None:
    made = assign_wcs.assign(FACTS, NUMBERS, (96, 80), files, Params(sip_approx=False))
    assert list(made.keywords) == ["S_REGION"]


def test_a_missing_pointing_is_named(files: dict[str, tuple[str, Any]]) -> None:
    with pytest.raises(InputError, match=r"jw_rate\.fits: ROLL_REF missing"):
        assign_wcs.assign(FACTS, {**NUMBERS, "ROLL_REF": None}, (96, 80), files, Params())
