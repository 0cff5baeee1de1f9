"""Pixel maps are made once and kept in the store, for the steps that share a mosaic's frame and for runs to come."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Iterator, Sequence

from streamimg3.engine.receipts import digest
from streamimg3.errors import InputError, StoreError
from streamimg3.sky.mosaic_frame import MosaicFrame, linear_terms
from streamimg3.sky.pixmap import PixelMap, Sampling, outline_maps, pixel_map
from streamimg3.store import Exposure, Observation

_CODE = 3  # raised when the maps that a given input leads to change
_ROOT = "receipts/maps"
_SEAL = 32  # bytes


def map_folder(frame: MosaicFrame, sampling: Sampling) -> str:
    """Return where the maps of exposures into a frame are kept: the steps, and runs, that use the same frame share them."""
    terms = linear_terms(frame.wcs) or frame.wcs.text.decode("latin-1")  # its bounding box changes no map
    return f"{_ROOT}/{digest(_CODE, terms, frame.shape, dataclasses.asdict(sampling))}"


def map_name(exposure: Exposure) -> str:
    """Return what the map of an exposure is called: whatever else changes in it, its WCS alone makes the map another."""
    record, correction = exposure.record, exposure.correction
    return digest(record.checksums["wcs"], record.shape, correction and dataclasses.asdict(correction))


def make_map(obs: Observation, folder: str, exposure: Exposure, frame: MosaicFrame, sampling: Sampling) -> PixelMap:
    """Return the map of an exposure into a mosaic; it is made once and kept in the store."""
    key = f"{folder}/{map_name(exposure)}"
    kept = _kept_map(obs, key)
    if kept is not None:
        return kept
    try:
        made = pixel_map(exposure.wcs, frame.wcs, sampling)
    except InputError as error:
        raise InputError(f"{exposure.record.url}: {error}") from error
    data = made.to_bytes()
    obs.backend.put(key, _seal(data) + data)
    return made


def _seal(data: bytes) -> bytes:
    """What tells a map from a damaged one."""
    return hashlib.sha256(data).digest()


def _kept_map(obs: Observation, key: str) -> PixelMap | None:
    """The map under a key, unless there is none or it is damaged."""
    found = obs.backend.get(key) or b""
    seal, data = found[:_SEAL], found[_SEAL:]
    return PixelMap.from_bytes(data) if seal == _seal(data) else None


def read_map(obs: Observation, folder: str, name: str) -> PixelMap:
    """Return a kept pixel map.

    Raises
    ------
    StoreError
        If there is none.
    """
    key = f"{folder}/{name}"
    found = _kept_map(obs, key)
    if found is None:
        raise StoreError(f"{obs.url}/{key} is missing or damaged: run the stage again")
    return found


def forget_maps(obs: Observation, folder: str = "", names: Collection[str] = ()) -> None:
    """Remove all pixel maps but those with these names in one folder, which spare the next run to make them again."""
    for each in obs.backend.keys(_ROOT):
        if f"{_ROOT}/{each}" != folder:
            obs.backend.remove_tree(f"{_ROOT}/{each}")
    if folder:
        obs.backend.remove([f"{folder}/{name}" for name in obs.backend.keys(folder) if name not in names])


def rough_maps(exposures: Sequence[Exposure], frame: MosaicFrame) -> Iterator[PixelMap]:
    """Yield what exposures' outlines tell of their maps: enough to know the tasks, about, before any map is made."""
    return outline_maps([(e.s_region, e.record.shape) for e in exposures], frame.wcs)
