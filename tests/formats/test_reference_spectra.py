"""Reference files of extracted spectra (spec others §2.5-2.7)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from streamimg3.errors import InputError
from streamimg3.formats.reference_spectra import read_extract1d, read_soss_photom, read_spectral_apcorr
from streamimg3.store.series_documents import SeriesFacts


def _json(path: Path, apertures: object) -> str:
    path.write_text(json.dumps({"reftype": "EXTRACT1D", "telescope": "JWST", "apertures": apertures}))
    return str(path)


def test_apertures_of_targets(tmp_path: Path) -> None:
    """Dummies and what is no target are left out; ANY order is none."""
    listed = [
        {"id": "dummy"}, {"id": "S", "region_type": "background"},
        {"id": "S", "spectral_order": "ANY", "xstart": 1, "src_coeff": [[1.5, 0.1], [9.0]], "independent_var": "Wavelength"},
        {"id": "ANY", "spectral_order": 2, "bkg_coeff": [[1], [2]], "smoothing_length": 5.0},
    ]  # fmt: skip
    one, two = read_extract1d(_json(tmp_path / "e.json", listed), {})
    assert (one.id, one.spectral_order, one.xstart, one.ystop) == ("S", None, 1.0, None)
    assert one.src_coeff == ((1.5, 0.1), (9.0,)) and one.independent_var == "wavelength"
    assert (two.spectral_order, two.bkg_coeff, two.smoothing_length) == (2, ((1.0,), (2.0,)), 5)


@pytest.mark.parametrize(
    ("aperture", "said"),
    [
        ({"id": "S", "xstart": "a"}, "xstart is 'a'"),
        ({"id": "S", "bkg_coeff": [[1]]}, "in turn"),
        ({"id": "S", "src_coeff": [1, 2]}, "list of lists"),
    ],
)
def test_bad_apertures_are_refused(tmp_path: Path, aperture: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_extract1d(_json(tmp_path / "e.json", [aperture]), {})


def _write(path: Path, name: str, columns: list[fits.Column], **cards: object) -> str:
    head = fits.PrimaryHDU()
    head.header.update({"TELESCOP": "JWST", "REFTYPE": name, "INSTRUME": "NIRISS", "DETECTOR": "NIS"} | cards)
    fits.HDUList([head, fits.BinTableHDU.from_columns(columns, name=name)]).writeto(path)
    return str(path)


def test_aperture_correction_of_nirspec_is_taken_at_half_a_pixel(tmp_path: Path) -> None:
    """Sizes change with wavelength; the correction is interpolated to phase 0.5."""
    phases, factor = np.array([[0.0, 0.4, 0.8]]), np.arange(3 * 2 * 2, dtype=float).reshape(1, 3, 2, 2)
    columns = [
        fits.Column("filter", "8A", array=["F290LP"]), fits.Column("grating", "8A", array=["G395H"]),
        fits.Column("slit", "8A", array=["S1600A1"]), fits.Column("wavelength", "2D", array=[[3.0, 5.0]]),
        fits.Column("nelem_wl", "I", array=[2]), fits.Column("size", "4D", dim="(2,2)", array=[[[1.0, 2.0], [1.5, 2.5]]]),
        fits.Column("nelem_size", "I", array=[2]), fits.Column("pixphase", "3D", array=phases),
        fits.Column("apcorr", "12D", dim="(2,2,3)", array=factor),
    ]  # fmt: skip
    url = _write(tmp_path / "a.fits", "APCORR", columns, SIZEUNIT="PIXELS")
    facts = SeriesFacts(instrument="NIRSPEC", filter="F290LP", grating="G395H", slit="S1600A1")
    found = read_spectral_apcorr(url, facts, {})
    assert found.by_wavelength and found.size == (1.0, 2.0, 1.5, 2.5) and found.unit == "pixels"
    np.testing.assert_allclose(found.factor, 0.75 * factor[0, 1] + 0.25 * factor[0, 2])
    with pytest.raises(InputError, match="0 rows for filter F290LP, grating PRISM"):
        read_spectral_apcorr(
            url, SeriesFacts(instrument="NIRSPEC", filter="F290LP", grating="PRISM", slit="S1600A1"), {}
        )


def test_responses_of_soss(tmp_path: Path) -> None:
    """One for each order of the filter and pupil."""
    columns = [
        fits.Column("filter", "8A", array=["CLEAR", "CLEAR", "F277W"]),
        fits.Column("pupil", "12A", array=["GR700XD"] * 3), fits.Column("order", "I", array=[1, 2, 1]),
        fits.Column("photmj", "E", array=[2.0, 3.0, 4.0]), fits.Column("nelem", "I", array=[2, 3, 3]),
        fits.Column("wavelength", "3E", array=[[1.0, 2.0, 0.0], [0.6, 0.8, 1.0], [2.4, 2.6, 2.8]]),
        fits.Column("relresponse", "3E", array=[[1.0, 0.5, 0.0], [1.0, 1.5, 2.0], [1.0, 1.0, 1.0]]),
    ]  # fmt: skip
    url = _write(tmp_path / "p.fits", "PHOTOM", columns)
    found = [r for r, times in read_soss_photom(url, SeriesFacts(filter="CLEAR", pupil="GR700XD"), {})]
    assert [(r.order, r.photmj, len(r.wavelength)) for r in found] == [(1, 2.0, 2), (2, 3.0, 3)]
