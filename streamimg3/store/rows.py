"""Arrays with one row for each integration: results of blocks of a time series, and tables of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import StoreError, StreamImgError
from streamimg3.store.backend import reason
from streamimg3.store.documents import CatalogColumn
from streamimg3.store.observation import Observation

Column = tuple[CatalogColumn, NDArray[np.generic]]
INTEGRATION = "integration"
_LONG = 2**17  # rows of a chunk of a finished column


def create_rows(
    obs: Observation, path: str, shape: tuple[int, ...], block: int, attrs: Mapping[str, Any], dims: Sequence[str] = ()
) -> None:
    """Create an empty array of float64 whose chunks are blocks of so many rows; whoever writes takes whole blocks."""
    names = tuple(dims) or (INTEGRATION, *(f"axis{i}" for i in range(1, len(shape))))
    obs.create_array(path, shape, "float64", (block, *shape[1:]), names, attrs)


def write_rows(obs: Observation, path: str, first: int, values: NDArray[np.generic]) -> None:
    """Write the rows from ``first`` on."""
    try:
        obs.array(path)[first : first + len(values)] = values
    except StreamImgError:
        raise
    except Exception as error:  # codecs and backends have errors of their own
        raise StoreError(f"cannot write {obs.url}/{path}: {reason(error)}") from error


def read_rows(obs: Observation, path: str, first: int = 0, last: int | None = None) -> NDArray[np.float64]:
    """Return some rows, all by default."""
    try:
        return np.asarray(obs.array(path)[first:last], np.float64)
    except StreamImgError:
        raise
    except Exception as error:  # codecs and backends have errors of their own
        raise StoreError(f"cannot read {obs.url}/{path}: {reason(error)}") from error


def write_table(
    obs: Observation,
    path: str,
    columns: Sequence[Column],
    coordinates: Sequence[str],
    dim: str = INTEGRATION,
) -> None:
    """Replace the table under a path: one array for each column, of which some are coordinates to xarray.

    Parameters
    ----------
    obs : Observation
        The store.
    path : str
        Group of the table.
    columns : sequence of (CatalogColumn, ndarray)
        What each column is, and its values, all of one length.
    coordinates : sequence of str
        Names of the columns that say when.
    dim : str
        Name of the dimension.
    """
    obs.backend.remove_tree(path)
    obs.write_group(path, {"columns": [column.name for column, _ in columns]})
    for column, values in columns:
        attrs: dict[str, Any] = {"units": column.unit or "1", "long_name": column.description}
        if column.name not in coordinates:
            attrs["coordinates"] = " ".join(coordinates)
        place = f"{path}/{column.name}"
        obs.create_array(place, values.shape, str(values.dtype), (min(max(1, len(values)), _LONG),), (dim,), attrs)
        if len(values):
            write_rows(obs, place, 0, values)
