"""Tables in a store: one array for each column, with unit and meaning as attributes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import StoreError
from streamimg3.store.backend import reason
from streamimg3.store.documents import CatalogColumn
from streamimg3.store.observation import Observation

Column = tuple[CatalogColumn, NDArray[np.generic]]


def write_columns(obs: Observation, path: str, columns: Sequence[Column]) -> None:
    """Replace the table under a path.

    Parameters
    ----------
    obs : Observation
        The store.
    path : str
        Group of the table.
    columns : sequence of (CatalogColumn, ndarray)
        What each column is, and its values, all of one length.

    Raises
    ------
    StoreError
        If the bytes cannot be written.
    """
    import zarr

    obs.backend.remove_tree(path)
    obs.write_group(path, {"columns": [column.name for column, _ in columns]})
    for column, values in columns:
        attributes: dict[str, Any] = {"units": column.unit or "1", "long_name": column.description}
        try:
            array = zarr.create_array(
                obs.backend.zarr, name=f"{path}/{column.name}", shape=values.shape, dtype=values.dtype,
                chunks=(max(1, len(values)),), dimension_names=("source",), attributes=attributes, overwrite=True,
            )  # fmt: skip
            if len(values):
                array[:] = values
        except Exception as error:  # codecs and backends have errors of their own
            raise StoreError(f"cannot write {obs.url}/{path}/{column.name}: {reason(error)}") from error


def read_column(obs: Observation, path: str, name: str) -> NDArray[np.generic]:
    """Return the values of a column.

    Raises
    ------
    StoreError
        If there is no such column, or it cannot be read.
    """
    import zarr

    try:
        array = zarr.open_array(obs.backend.zarr, path=f"{path}/{name}", mode="r")
        return np.asarray(array[:])
    except Exception as error:  # codecs and backends have errors of their own
        raise StoreError(f"cannot read {obs.url}/{path}/{name}: {reason(error)}") from error
