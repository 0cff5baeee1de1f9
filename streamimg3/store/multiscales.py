"""Overviews as the Zarr convention "multiscales" lists them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from streamimg3.store.documents import OverviewLevel
from streamimg3.store.observation import Observation

CONVENTION = {
    "name": "multiscales",
    "uuid": "d35379db-88df-4056-af3a-620245f8e347",
    "schema_url": "https://raw.githubusercontent.com/zarr-conventions/multiscales/refs/tags/v1/schema.json",
    "spec_url": "https://github.com/zarr-conventions/multiscales/blob/v1/README.md",
}


def attributes(path: str, levels: Sequence[OverviewLevel]) -> dict[str, Any]:
    """Return the attributes of the group that holds the mosaic and its levels.

    Scale and translation take a level's pixel (y, x, centres at integers) to the mosaic's.

    Examples
    --------
    >>> attributes("mosaic", [OverviewLevel("overviews/1", (5, 5), 2)])["multiscales"]["layout"][1]["transform"]
    {'scale': [2.0, 2.0], 'translation': [0.5, 0.5]}
    """
    layout: list[dict[str, Any]] = [{"asset": path, "transform": {"scale": [1.0, 1.0], "translation": [0.0, 0.0]}}]
    for level in levels:
        offset = (level.factor - 1) / 2
        transform = {"scale": [float(level.factor)] * 2, "translation": [offset] * 2}
        layout.append({"asset": level.path, "derived_from": path, "transform": transform})
        path = level.path
    return {"zarr_conventions": [CONVENTION], "multiscales": {"layout": layout, "resampling_method": "average"}}


def declare(obs: Observation, path: str, levels: Sequence[OverviewLevel]) -> None:
    """Write the list of levels to the root, and gather the metadata again."""
    root = {k: v for k, v in obs.attributes("").items() if k not in ("zarr_conventions", "multiscales")}
    obs.write_root(root | attributes(path, levels))
    obs.consolidate()
