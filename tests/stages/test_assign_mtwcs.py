"""Following a moving target."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamimg3 import Observation, Session, ingest
from streamimg3.engine import Runner
from streamimg3.formats.simulate import Field, simulate
from streamimg3.stages import assign_mtwcs
from streamimg3.stages.assign_mtwcs import Params, mean_position
from streamimg3.store.documents import AlignmentDocument


def moving(folder: Path, ra: float) -> Observation:
    asn = simulate(folder, Field(shape=(64, 64), dithers=3, moving=True, ra=ra, extended=0))
    return ingest(str(asn), Session(store=str(folder / "moving.zarr"), workers=1))


@pytest.mark.parametrize("ra", [150.0, 359.9995])
def test_the_target_stands_still(tmp_path: Path, ra: float) -> None:
    """At the place of the target every exposure has the same position on the sky, also across 0 degrees."""
    obs = moving(tmp_path, ra)
    before = obs.exposures(aligned=False)
    document = assign_mtwcs.run(obs, Params(), Runner())
    assert (document.status, document.step) == ("COMPLETE", "assign_mtwcs") and document.target is not None
    for was, now in zip(before, obs.exposures(), strict=True):
        r = was.record
        assert r.mt_ra is not None and r.mt_dec is not None
        assert now.wcs.gwcs().available_frames[-1] == "moving_target"
        spot = was.wcs.to_pixel(np.array([r.mt_ra]), np.array([r.mt_dec]))
        lon, lat = now.wcs.to_sky(*spot, bounded=False)
        assert (lon[0] - document.target[0] + 180.0) % 360.0 - 180.0 == pytest.approx(0.0, abs=2e-9)
        assert lat[0] == pytest.approx(document.target[1], abs=2e-9)  # the inverse of the detector is good to 1e-6 px
        assert (now.s_region == r.s_region) == (r.index == 1)  # the target is at its mean place in the middle one
        assert abs(float(now.s_region.split()[3]) - document.target[1]) < 0.01
    shifts = [e.correction.shift for e in document.exposures if e.correction]
    assert len(shifts) == 3 and max(abs(lon) for lon, _ in shifts) < 0.1
    assert obs.document(AlignmentDocument) == document == assign_mtwcs.run(obs, Params(), Runner())


def test_one_exposure_without_the_target_stops_all(tmp_path: Path) -> None:
    obs = moving(tmp_path, 150.0)
    records = list(obs.records())
    records[1] = replace(records[1], mt_ra=None)
    obs.backend.put("exposures/index.json", json.dumps([asdict(r) for r in records]).encode())
    document = assign_mtwcs.run(obs, Params(), Runner())
    assert document.status == "FAILED" and records[1].filename in (document.reason or "")
    assert {e.status for e in document.exposures} == {"FAILED"} and document.target is None
    assert all(e.wcs.correction is None for e in obs.exposures())


@given(
    st.floats(0.0, 359.999), st.lists(st.tuples(st.floats(-5.0, 5.0), st.floats(-80.0, 80.0)), min_size=1, max_size=9)
)
def test_the_mean_does_not_mind_where_zero_is(start: float, offsets: list[tuple[float, float]]) -> None:
    places = [((start + d) % 360.0, dec) for d, dec in offsets]
    ra, dec = mean_position(places)
    wanted = (start + sum(d for d, _ in offsets) / len(offsets)) % 360.0
    assert 0.0 <= ra < 360.0
    assert (ra - wanted + 180.0) % 360.0 - 180.0 == pytest.approx(0.0, abs=1e-9)
    assert dec == pytest.approx(sum(dec for _, dec in places) / len(places), abs=1e-12)
