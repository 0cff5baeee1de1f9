"""Tables of time series as ECSV, and binary tables whose rows are read when they are due."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.table import QTable

from streamimg3 import Observation
from streamimg3.formats.fits_stream import Rows, primary, write_units
from streamimg3.formats.series_tables import write_series_table
from streamimg3.store.documents import CatalogColumn
from streamimg3.store.rows import read_rows, write_table


@pytest.fixture
def obs(tmp_path: Path) -> Observation:
    made = Observation.at(str(tmp_path / "x.zarr"))
    made.write_root({})
    return made


def test_table_is_what_astropy_writes(obs: Observation, tmp_path: Path) -> None:
    """Units, meta, NaN, all digits; more rows than a block."""
    rng = np.random.default_rng(1)
    values = {"MJD": np.arange(5000.0) / 7, "flux": rng.normal(0, 1e-7, 5000)}
    values["flux"][3] = np.nan
    columns = [CatalogColumn("MJD", "float64"), CatalogColumn("flux", "float64", "Jy")]
    write_table(obs, "photometry", [(c, values[c.name]) for c in columns], ["MJD"])
    meta = {"pupil": None, "number_of_integrations": 5000}
    path = str(tmp_path / "t.ecsv")
    assert write_series_table(obs, "photometry", columns, meta, (path, {}), (0, 5000)) == path
    expected = io.StringIO()
    QTable({"MJD": values["MJD"], "flux": values["flux"] * u.Jy}, meta=meta).write(expected, format="ascii.ecsv")
    assert Path(path).read_text() == expected.getvalue()
    part = str(tmp_path / "part.ecsv")
    write_series_table(obs, "photometry", columns, meta, (part, {}), (4090, 4100))
    np.testing.assert_array_equal(QTable.read(part)["flux"].value, read_rows(obs, "photometry/flux", 4090, 4100))


def test_rows_are_read_in_bands(tmp_path: Path) -> None:
    """What the rows hold arrives, in bands, whatever the number of rows."""
    kind = np.dtype([("n", ">i4"), ("v", ">f8", (3,))])
    rows = np.zeros(7, kind)
    rows["n"], rows["v"] = np.arange(7), np.arange(21.0).reshape(7, 3)
    cards = [
        ("XTENSION", "BINTABLE"), ("BITPIX", 8), ("NAXIS", 2), ("NAXIS1", kind.itemsize), ("NAXIS2", 7), ("PCOUNT", 0),
        ("GCOUNT", 1), ("TFIELDS", 2), ("TTYPE1", "n"), ("TFORM1", "J"), ("TTYPE2", "v"), ("TFORM2", "3D"), ("EXTNAME", "T"),
    ]  # fmt: skip
    asked = []

    def read(first: int, last: int) -> np.ndarray:
        asked.append((first, last))
        return rows[first:last].copy()

    unit = Rows(fits.Header([fits.Card(*c) for c in cards]), 7, kind.itemsize, read, 3)
    with open(tmp_path / "x.fits", "wb") as sink:
        size = write_units(sink, [primary([]), unit])
    assert size == (tmp_path / "x.fits").stat().st_size
    assert asked == [(0, 3), (3, 6), (6, 7)]
    found = fits.getdata(tmp_path / "x.fits", "T")
    np.testing.assert_array_equal(found["v"], rows["v"])
    wrong = Rows(unit.header, 7, 5, read, 3)
    with pytest.raises(ValueError, match="rows of 28 bytes"):
        write_units(io.BytesIO(), [primary([]), wrong])
