"""Star lists in a store: small JSON tables, readable with nothing of ours installed.

``stars/lists`` holds the stars of exposures, under names that change with everything they were made from, so that a
list is its own receipt; ``stars/custom`` the lists that the user has brought, ``stars/reference`` reference catalogues.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import StoreError
from streamimg3.store.documents import check_schema
from streamimg3.store.observation import Observation

LISTS = "stars/lists"
_CUSTOM = "stars/custom"
_REFERENCE = "stars/reference"
_CURRENT = "stars/current.json"
SCHEMA = ("streamimg3/stars", 1)

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class StarTable:
    """Columns of equal length and a few facts.

    Parameters
    ----------
    columns : dict of str to ndarray, shape (n,)
        Numbers; positions in pixels (0-based) or degrees.
    meta : dict
        JSON values.

    Examples
    --------
    >>> table = StarTable({"x": np.array([1.5, np.nan])}, {"name": "a"})
    >>> StarTable.from_json(table.to_json(), "a.json").columns["x"]
    array([1.5, nan])
    """

    columns: dict[str, Array]
    meta: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def take(self, index: Array) -> StarTable:
        """Return some of the rows."""
        return StarTable({name: column[index] for name, column in self.columns.items()}, self.meta)

    def to_json(self) -> bytes:
        """Return the table as JSON; what is no number is null."""
        columns = {
            name: {"dtype": str(column.dtype), "values": [v if v == v else None for v in column.tolist()]}
            for name, column in self.columns.items()
        }
        tree = {"schema": SCHEMA[0], "version": SCHEMA[1], "meta": self.meta, "columns": columns}
        return json.dumps(tree, allow_nan=False).encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> StarTable:
        """Read a table.

        Raises
        ------
        StoreError
            If it is damaged or newer than this software.
        """
        try:
            tree = json.loads(data)
            kind, version = tree["schema"], tree["version"]
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{where} is damaged ({error}): remove it and run the stage again") from error
        check_schema(kind, version, SCHEMA, where)
        try:
            columns = {
                name: np.array([np.nan if v is None else v for v in column["values"]], dtype=column["dtype"])
                for name, column in tree["columns"].items()
            }
            return cls(columns, tree["meta"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"{where} is damaged ({error}): remove it and run the stage again") from error

    @property
    def digest(self) -> str:
        """Changes with every value."""
        return hashlib.sha256(self.to_json()).hexdigest()[:32]


def write_list(obs: Observation, key: str, table: StarTable) -> None:
    """Keep the stars of an exposure under a key."""
    obs.backend.put(f"{LISTS}/{key}.json", table.to_json())


def read_list(obs: Observation, key: str) -> StarTable:
    """Return the stars of an exposure.

    Raises
    ------
    StoreError
        If there is no such list, or it is damaged.
    """
    return _read(obs, f"{LISTS}/{key}.json")


def write_custom(obs: Observation, tables: Mapping[int, StarTable]) -> None:
    """Keep the user's own lists, by the index of their exposures; earlier ones are forgotten."""
    for index, table in tables.items():
        obs.backend.put(f"{_CUSTOM}/{index:05d}.json", table.to_json())
    digests = {str(index): table.digest for index, table in tables.items()}
    obs.backend.put(f"{_CUSTOM}.json", json.dumps(digests).encode())


def custom_digests(obs: Observation) -> dict[int, str] | None:
    """Return the digests of the user's lists by the index of their exposures; None = nobody has looked for any."""
    data = obs.backend.get(f"{_CUSTOM}.json")
    return None if data is None else {int(index): str(digest) for index, digest in json.loads(data).items()}


def read_custom(obs: Observation, index: int) -> StarTable:
    """Return the user's list of an exposure."""
    return _read(obs, f"{_CUSTOM}/{index:05d}.json")


def write_reference(obs: Observation, name: str, table: StarTable) -> None:
    """Keep a reference catalogue (columns ``ra``, ``dec``, optionally ``weight``) under the name the user gives it."""
    obs.backend.put(_reference_key(name), table.to_json())


def read_reference(obs: Observation, name: str) -> StarTable | None:
    """Return a reference catalogue, or None if it was not brought in."""
    data = obs.backend.get(_reference_key(name))
    return None if data is None else StarTable.from_json(data, f"{obs.url}/{_reference_key(name)}")


def _reference_key(name: str) -> str:
    return f"{_REFERENCE}/{hashlib.sha256(name.encode()).hexdigest()[:32]}.json"


def write_current(obs: Observation, keys: tuple[str | None, ...]) -> None:
    """Note which lists the last alignment used, one per exposure; None = the user's own."""
    obs.backend.put(_CURRENT, json.dumps(keys).encode())


def current_lists(obs: Observation) -> tuple[str | None, ...]:
    """Return which lists of detected stars the last alignment used."""
    data = obs.backend.get(_CURRENT)
    return () if data is None else tuple(json.loads(data))


def _read(obs: Observation, key: str) -> StarTable:
    data = obs.backend.get(key)
    if data is None:
        raise StoreError(f"{obs.url}/{key} is missing: remove {obs.url}/{LISTS} and run tweakreg again")
    return StarTable.from_json(data, f"{obs.url}/{key}")
