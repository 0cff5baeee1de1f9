"""Cubes as coron3 leaves them: ``_crfints``, ``_psfstack``, ``_psfalign`` and ``_psfsub`` (spec others §3.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.formats.asdf_tree import asdf_unit, put
from streamimg3.formats.cal_file import EXTENSIONS, SHARED, Product, times_table
from streamimg3.formats.crf_header import changed_tree, revised
from streamimg3.formats.fits_stream import Image, Unit, primary, table
from streamimg3.formats.i2d_header import own_card
from streamimg3.formats.step_facts import Changes
from streamimg3.geometry import Box
from streamimg3.store import Exposure
from streamimg3.store.layout import TIMES, cube_chunking
from streamimg3.store.seen_cube import SeenCube

Block = Callable[[int, int], NDArray[np.generic]]  # integrations first..last, whole planes
STACK = ("sci", "err", "dq")


@dataclass
class HeldBlock:
    """Planes that are asked for one after the other, read several at a time.

    Parameters
    ----------
    read : callable
        ``read(first, last)`` gives whole planes, ``(last - first, ny, nx)``.
    count : int
        Number of planes.
    size : int
        Planes read at a time.
    """

    read: Block
    count: int
    size: int
    _held: tuple[int, NDArray[np.generic]] | None = None

    def rows(self, plane: int, y0: int, y1: int) -> NDArray[np.generic]:
        """Return rows ``y0..y1`` of one plane."""
        number = plane // self.size
        if self._held is None or self._held[0] != number:
            self._held = None
            first = number * self.size
            self._held = number, self.read(first, min(first + self.size, self.count))
        return np.array(self._held[1][plane - number * self.size, y0:y1])


def depth_of(exposure: Exposure) -> int:
    """Return the integrations that lie in one chunk of the store."""
    (depth, _, _), _ = cube_chunking(exposure.record.shape, exposure.record.first + exposure.depth)
    return depth


def seen_product(seen: SeenCube, changes: tuple[Changes, Changes]) -> Product:
    """Return a cube as outlier_detection left it, as the product that it is written as.

    Parameters
    ----------
    seen : SeenCube
        The exposure.
    changes : pair of mappings
        Keywords of PRIMARY and SCI to values; None removes one.
    """
    exposure = seen.exposure
    planes = tuple(p for p in EXTENSIONS if exposure.has(p) or p == "dq")
    times = [np.asarray(exposure.column(name), np.float64) for name in TIMES]
    numbers = np.asarray(exposure.column("integration_number"), np.int32)
    made = Product(
        *_cards(exposure, changes), exposure.record.shape, exposure.depth, planes, _SeenRows(seen).read,
        times_table(numbers, np.stack(times, axis=1)),
    )  # fmt: skip
    return with_metadata(made, exposure, changes)


def stack_product(
    exposure: Exposure, changes: tuple[Changes, Changes], count: int, blocks: dict[str, HeldBlock]
) -> Product:
    """Return a stack of SCI, ERR and DQ under the headers of an exposure.

    Parameters
    ----------
    exposure : Exposure
        Whose headers.
    changes : pair of mappings
        Keywords of PRIMARY and SCI to values; None removes one.
    count : int
        Number of images.
    blocks : dict
        ``sci``, ``err`` and ``dq``.
    """

    def read(plane: str, k: int, y0: int, y1: int) -> NDArray[np.generic]:
        return blocks[plane].rows(k, y0, y1)

    made = Product(*_cards(exposure, changes), exposure.record.shape, count, tuple(blocks), read)
    return with_metadata(made, exposure, changes, placed=False)  # several exposures, each with a WCS of its own


def replaced_planes(product: Product, blocks: dict[str, HeldBlock]) -> Product:
    """Return a product some of whose planes are others."""
    own = product.read

    def read(plane: str, k: int, y0: int, y1: int) -> NDArray[np.generic]:
        return blocks[plane].rows(k, y0, y1) if plane in blocks else own(plane, k, y0, y1)

    planes = tuple(p for p in EXTENSIONS if p in product.planes or p in blocks)
    return replace(product, read=read, planes=planes)


def with_metadata(
    product: Product, exposure: Exposure, changes: tuple[Changes, Changes], placed: bool = True
) -> Product:
    """Return a product with the exposure's metadata tree, where it has one; ``placed`` = with its WCS."""
    if exposure.record.wcs_kind != "gwcs":
        return product
    tree = changed_tree(exposure.wcs.text, changes, exposure.record.name)
    try:
        if placed:
            put(tree, "meta.wcs", exposure.wcs.gwcs())
    except InputError:  # a WCS of spectra with transforms that this installation does not know: kept word for word
        return replace(product, asdf=exposure.wcs.text)
    return replace(product, asdf=asdf_unit(tree, product.units(1)).data)


def image_units(product: Product, plane: str, read: Block) -> list[Unit]:
    """Return the units of a product that has a single image, read whole."""
    sci = revised(product.sci_cards, "SCI", {})

    def rows(lead: tuple[int, ...], y0: int, y1: int) -> NDArray[np.generic]:
        return np.array(read(0, 1)[0, y0:y1])

    units: list[Unit] = [primary([*revised(product.primary_cards, "PRIMARY", {}), own_card()])]
    units.append(Image(EXTENSIONS[plane], product.shape, "float32", rows, product.shape[0], tuple(sci)))
    if product.asdf is not None:
        units.append(table("ASDF", [("ASDF_METADATA", f"{len(product.asdf)}B")], product.asdf, 1))
    return units


def four_dimensional(product: Product, counts: tuple[int, int], blocks: dict[str, HeldBlock]) -> list[Unit]:
    """Return the units of a stack for each integration: images of shape ``(integrations, references, ny, nx)``."""

    def shaped(unit: Unit) -> Unit:
        if not isinstance(unit, Image):
            return unit
        name = next(p for p, extension in EXTENSIONS.items() if extension == unit.name)

        def read(lead: tuple[int, ...], y0: int, y1: int) -> NDArray[np.generic]:
            return blocks[name].rows(lead[0] * counts[1] + lead[1], y0, y1)

        return replace(unit, shape=(*counts, *product.shape), read=read)

    return [shaped(unit) for unit in product.units(product.shape[0])]


def _cards(exposure: Exposure, changes: tuple[Changes, Changes]) -> tuple[str, str]:
    """Cards of PRIMARY and SCI with the changes, joined."""
    texts = exposure.cards("primary"), exposure.cards("sci")
    made = [revised(text, hdu, mine) for text, hdu, mine in zip(texts, ("PRIMARY", "SCI"), changes, strict=True)]
    return _joined(made[0]), _joined(made[1])


def _joined(cards: Sequence[fits.Card]) -> str:
    return str(fits.Header(cards).tostring(sep="", endcard=False, padding=False))


class _SeenRows:
    """Rows of the planes of a cube as it is seen, read a chunk at a time."""

    def __init__(self, seen: SeenCube) -> None:
        self._seen = seen
        self._held: tuple[str, HeldBlock] | None = None

    def read(self, plane: str, integration: int, y0: int, y1: int) -> NDArray[np.generic]:
        """Return rows ``y0..y1`` of one integration."""
        exposure = self._seen.exposure
        if plane in SHARED:
            return exposure.read(plane, Box(y0, 0, y1, exposure.record.shape[1]))
        if self._held is None or self._held[0] != plane:
            self._held = plane, HeldBlock(self._reader(plane), exposure.depth, depth_of(exposure))
        return self._held[1].rows(integration, y0, y1)

    def _reader(self, plane: str) -> Block:
        whole = Box(0, 0, *self._seen.exposure.record.shape)

        def block(first: int, last: int) -> NDArray[np.generic]:
            if plane == "dq":
                return self._seen.flags(first, last, whole)
            return self._seen.floats(plane, first, last, whole)

        return block
