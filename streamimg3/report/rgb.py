"""Three mosaics on one grid as a picture in colours (Lupton et al. 2004): an asinh stretch of the mean that keeps the hues."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.report.picture import jpeg, png, reduced
from streamimg3.store import Observation
from streamimg3.store.documents import ResampleDocument

F4 = NDArray[np.float32]


def lupton(red: F4, green: F4, blue: F4, softening: float = 8.0, stretch: float | None = None) -> NDArray[np.uint8]:
    """Return a picture of three images, ``(y, x, 3)``, first row at the top.

    Parameters
    ----------
    red, green, blue : ndarray of float32, shape (ny, nx)
        Each is taken in units of its own noise above its own sky; where any has no value the picture is black.
    softening : float
        Lupton's Q: how soon bright parts are compressed.
    stretch : float, optional
        Signal, in units of the noise, that is still shown linearly; default from the images.

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> sky = rng.normal(0, 1, (3, 20, 20)).astype(np.float32)
    >>> sky[0, 10, 10] += 100
    >>> picture = lupton(*sky)
    >>> picture.shape, bool(picture[9, 10, 0] > 150 and picture[9, 10, 2] < 60)
    ((20, 20, 3), True)
    """
    layers = np.stack([_in_noise(v) for v in (red, green, blue)])
    good = np.isfinite(layers).all(axis=0)
    layers = np.where(good, np.maximum(layers + 1.0, 0.0), 0.0)
    mean = layers.mean(axis=0)
    linear = stretch if stretch is not None else max(float(np.percentile(mean[good], 97)) if good.any() else 1.0, 3.0)
    scale = np.arcsinh(softening * mean / linear) / softening
    top = (
        np.arcsinh(softening * max(float(np.percentile(mean[good], 99.9)) if good.any() else 1.0, linear) / linear)
        / softening
    )
    shown = np.divide(scale / top, mean, out=np.zeros_like(mean), where=mean > 0) * layers
    brightest = np.maximum(shown.max(axis=0), 1.0)
    return np.asarray(np.flipud(np.moveaxis(255 * shown / brightest, 0, -1)), np.float32).astype(np.uint8)


def _in_noise(values: F4) -> F4:
    """Signal above the sky in units of its noise."""
    seen = values[np.isfinite(values)]
    if not len(seen):
        return values
    low, sky = np.percentile(seen, [16.0, 50.0])
    return np.asarray((values - sky) / max(float(sky - low), 1e-30), np.float32)


def rgb(stores: Sequence[Observation], size: int = 2000, kind: str = "png") -> bytes:
    """Return a picture of three stores' mosaics: red, green and blue.

    Parameters
    ----------
    stores : sequence of three Observation
        Their mosaics lie on one grid.
    size : int
        Pixels along the longest side.
    kind : str
        ``png`` or ``jpg``.

    Raises
    ------
    InputError
        If there are not three, or their grids differ.
    """
    if len(stores) != 3:
        raise InputError(f"a picture in colours needs three stores (red, green, blue), not {len(stores)}")
    documents = same_grid(stores)
    layers = [reduced(o, d, "sci", size).values for o, d in zip(stores, documents, strict=True)]
    picture = lupton(layers[0], layers[1], layers[2])
    return png(picture) if kind == "png" else jpeg(picture, 92)


def same_grid(stores: Sequence[Observation]) -> list[ResampleDocument]:
    """Return the mosaics of stores that lie on one grid.

    Raises
    ------
    InputError
        If a store has no mosaic, or grids differ.
    """
    documents = []
    for obs in stores:
        document = obs.document(ResampleDocument)
        if document is None:
            raise InputError(f"{obs.url} holds no finished mosaic: run image3 first")
        documents.append(document)
    first, cards = documents[0], stores[0].attributes(documents[0].path).get("wcs")
    for obs, document in zip(stores, documents, strict=True):
        same = document.wcs_asdf == first.wcs_asdf or (cards and obs.attributes(document.path).get("wcs") == cards)
        if document.shape != first.shape or not same:
            raise InputError(
                f"{obs.url} is on another grid than {stores[0].url}: run it again with --grid-from {stores[0].url}"
            )
    return documents
