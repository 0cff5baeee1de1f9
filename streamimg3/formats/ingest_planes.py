"""The image planes of one exposure into the store: read, hashed and encoded chunk by chunk, all planes side by side."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.formats.sources import Plane
from streamimg3.store import ExposureRecord, Observation
from streamimg3.store.layout import NAN_PLANES, chunking

_PIXEL = 68  # measured bytes of one pixel beside the planes: flags through float64, what was just freed, masks, a chunk


def image_memory(shape: tuple[int, int], planes: int) -> int:
    """Return the bytes that images of a shape take on their way: whole chunks of all planes, and what makes them."""
    (rows, _), (_, width) = chunking(shape)
    return rows * width * (4 * planes + _PIXEL)


def store_images(obs: Observation, group: str, record: ExposureRecord, planes: Sequence[Plane]) -> dict[str, str]:
    """Write image planes of an exposure, and where they are NaN if that is asked of them.

    Parameters
    ----------
    obs : Observation
        A store with the empty stack.
    group : str
        Where the stack is.
    record : ExposureRecord
        The exposure.
    planes : sequence of Plane
        The planes, whose file is open.

    Returns
    -------
    dict of str to str
        SHA-256 of each plane.

    Raises
    ------
    InputError
        If the file cannot be read.
    StoreError
        If the store cannot be written.
    """
    ny, _ = record.shape
    (step, _), (high, _) = chunking(record.shape)
    hashes = {plane.name: hashlib.sha256() for plane in planes}
    masked = [plane.name for plane in planes if plane.name in NAN_PLANES]
    for number, top in enumerate(range(0, ny, high)):
        names = (*hashes, "nan") if masked else tuple(hashes)
        with obs.shards(group, names, (record.row, number, 0)) as shards:
            for y0 in range(top, min(top + high, ny), step):
                bands = {p.name: _read_band(record, p, y0, min(y0 + step, ny)) for p in planes}
                if masked:
                    bands["nan"] = nan_mask([bands[name] for name in masked])
                for name, band in bands.items():
                    shards[name].put((0, y0 - top, 0), band[None])
                    if name in hashes:
                        hashes[name].update(band.data)
    return {name: h.hexdigest() for name, h in hashes.items()}


def nan_mask(bands: Sequence[NDArray[np.generic]]) -> NDArray[np.generic]:
    """Return 1 where any of some planes is NaN: uint8, of their shape."""
    mask = np.zeros(bands[0].shape, np.uint8)
    for band in bands:
        np.bitwise_or(mask, np.isnan(band), out=mask, casting="unsafe")
    return mask


def _read_band(record: ExposureRecord, plane: Plane, y0: int, y1: int) -> NDArray[np.generic]:
    try:
        return np.ascontiguousarray(plane.read(y0, y1))
    except (OSError, EOFError, ValueError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{record.url}: cannot read {plane.name} rows {y0}-{y1} ({line}): fetch the file again"
        ) from error
