"""SHA-256 of everything that a run makes: the arrays of a store, the pixels of a product."""

from __future__ import annotations

import hashlib
import json
from io import BytesIO

import numpy as np
from astropy.io import fits

from streamimg3 import Observation


def sums_of(obs: Observation, *least: str) -> dict[str, str]:
    """Every array that the store's metadata know, by path, among them some that must be there (image3's by default)."""
    node = json.loads(obs.backend.get("zarr.json") or b"{}")
    known = node["consolidated_metadata"]["metadata"]
    paths = [path for path, meta in known.items() if meta["node_type"] == "array"]
    assert set(least or ("mosaic/sci", "catalog/label")) <= set(paths)
    return {p: hashlib.sha256(np.ascontiguousarray(obs.array(p)[...]).tobytes()).hexdigest() for p in sorted(paths)}


def pixels_of(product: bytes) -> str:
    """The data of all images of a FITS file."""
    digest = hashlib.sha256()
    with fits.open(BytesIO(product)) as hdus:
        for hdu in hdus:
            if hdu.is_image and hdu.data is not None:
                digest.update(hdu.name.encode())
                digest.update(np.ascontiguousarray(hdu.data).tobytes())
    return digest.hexdigest()
