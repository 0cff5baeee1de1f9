"""Tables of time series out of the store: photometry and light curves as ECSV, a block of rows at a time (spec others §2)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamimg3.formats.publish import open_product
from streamimg3.store import Observation
from streamimg3.store.documents import CatalogColumn
from streamimg3.store.rows import read_rows

_BLOCK = 4096  # rows that are read and written at a time


def write_series_table(
    obs: Observation,
    path: str,
    columns: Sequence[CatalogColumn],
    meta: Mapping[str, Any],
    target: tuple[str, Mapping[str, str]],
    rows: tuple[int, int],
) -> str:
    """Write rows of a table of the store as an ECSV file, as astropy writes a table with units.

    Parameters
    ----------
    obs : Observation
        The store.
    path : str
        Group of the table.
    columns : sequence of CatalogColumn
        In order.
    meta : mapping
        What the header says of the table.
    target : (str, mapping)
        URL and storage options of the product.
    rows : tuple of int
        First row, and the one behind the last.

    Returns
    -------
    str
        The URL.

    Raises
    ------
    StoreError
        If columns cannot be read or the product cannot be written; nothing is left under its name.
    """
    with open_product(*target) as product:
        product.write(_header(columns, meta).encode())
        for first in range(*rows, _BLOCK):
            last = min(first + _BLOCK, rows[1])
            block = np.column_stack([read_rows(obs, f"{path}/{c.name}", first, last) for c in columns])
            product.write(_text(block).encode())
    return target[0]


def _header(columns: Sequence[CatalogColumn], meta: Mapping[str, Any]) -> str:
    import warnings

    from astropy import units as u
    from astropy.table import QTable
    from astropy.units import UnitsWarning

    table = QTable(meta=dict(meta))
    for column in columns:
        none = np.zeros(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnitsWarning)  # a unit of the user's own
            unit = u.Unit(column.unit, parse_strict="warn") if column.unit and column.unit != "1" else None
        table[column.name] = none if unit is None else none * unit
    text = io.StringIO()
    table.write(text, format="ascii.ecsv")
    return text.getvalue().rstrip("\n") + "\n"


def _text(block: NDArray[np.float64]) -> str:
    return "".join(" ".join(map(repr, row)) + "\n" for row in block.tolist())
