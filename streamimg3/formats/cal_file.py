"""Calibrated exposures as JWST writes them (``_cal``, ``_calints`` and what steps leave on the way; spec others §1.1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from streamimg3.formats.asdf_tree import asdf_unit, put
from streamimg3.formats.blend import card_values, jwst_keywords
from streamimg3.formats.crf_header import changed_tree, revised
from streamimg3.formats.fits_file import parse_cards
from streamimg3.formats.fits_stream import Image, Unit, Whole, primary, table, write_units
from streamimg3.formats.i2d_header import own_card
from streamimg3.formats.jwst_fits import facts_of
from streamimg3.formats.names import file_name, root_name
from streamimg3.formats.publish import open_product
from streamimg3.formats.sources import Cube, CubePlane, Plane, Source
from streamimg3.formats.step_facts import Changes
from streamimg3.geometry import Box
from streamimg3.sky.wcs import Wcs
from streamimg3.store import Exposure
from streamimg3.store.layout import PLANES, TIMES, cube_chunking

# Planes in the order of JWST's files; the table of times of a cube comes in between
_BEFORE = {"sci": "SCI", "err": "ERR", "dq": "DQ", "wavelength": "WAVELENGTH", "area": "AREA"}
_AFTER = {"var_poisson": "VAR_POISSON", "var_rnoise": "VAR_RNOISE", "var_flat": "VAR_FLAT"}
EXTENSIONS = {**_BEFORE, **_AFTER}
SHARED = ("area", "wavelength")  # one image for all integrations
_TITLES = {name: name.replace("mjd_utc", "MJD_UTC").replace("bjd_tdb", "BJD_TDB") for name in TIMES}

ReadPlane = Callable[[str, int, int, int], NDArray[np.generic]]


@dataclass(frozen=True)
class Product:
    """An exposure as it is written.

    Parameters
    ----------
    primary_cards, sci_cards : str
        Joined cards; those that say how an extension is stored do not count.
    shape : tuple of int
        ``(ny, nx)``.
    integrations : int
        0 = an image.
    planes : tuple of str
        Names of the planes there are.
    read : callable
        ``read(plane, integration, y0, y1)``: rows of a plane, as `Image.read` wants them.
    times : Whole or None
        INT_TIMES.
    asdf : bytes or None
        The metadata tree as it is; None = there is none.
    """

    primary_cards: str
    sci_cards: str
    shape: tuple[int, int]
    integrations: int
    planes: tuple[str, ...]
    read: ReadPlane = field(repr=False)
    times: Whole | None = None
    asdf: bytes | None = None

    def units(self, rows: int) -> list[Unit]:
        """Return the header-data units in order, with bands of so many rows."""
        found: list[Unit] = [primary([*revised(self.primary_cards, "PRIMARY", {}), own_card()])]
        sci = revised(self.sci_cards, "SCI", {})
        cards = {"sci": sci, "err": [c for c in sci if c.keyword == "BUNIT"]}
        found += [self._image(p, rows, cards.get(p, [])) for p in _BEFORE if p in self.planes]
        found += [self.times] if self.times is not None else []
        found += [self._image(p, rows, []) for p in _AFTER if p in self.planes]
        if self.asdf is not None:
            found.append(table("ASDF", [("ASDF_METADATA", f"{len(self.asdf)}B")], self.asdf, 1))
        return found

    def _image(self, plane: str, rows: int, cards: Sequence[fits.Card]) -> Image:
        deep = (self.integrations,) if self.integrations and plane not in SHARED else ()
        read = partial(_read, self.read, plane)
        return Image(EXTENSIONS[plane], (*deep, *self.shape), PLANES[plane].dtype, read, rows, tuple(cards))


def _read(read: ReadPlane, plane: str, lead: tuple[int, ...], y0: int, y1: int) -> NDArray[np.generic]:
    return read(plane, lead[0] if lead else 0, y0, y1)


def write_product(product: Product, url: str, options: Mapping[str, str], rows: int) -> str:
    """Write a product; returns its URL.

    Raises
    ------
    StoreError
        If pixels cannot be read or the product cannot be written; nothing is left under its name.
    """
    with open_product(url, options) as sink:
        write_units(sink, product.units(rows))
    return url


# ---------------------------------------------------------------- from files
def calibrated_source(
    source: Source, url: str, changes: tuple[Changes, Changes], planes: tuple[str, ...], wcs: object | None
) -> Source:
    """Return an exposure with the headers, metadata and list of planes that it has when it is calibrated.

    Parameters
    ----------
    source : Source
        As it is in its file.
    url : str
        Name of the product that it becomes.
    changes : pair of mappings
        Keywords of PRIMARY and SCI to values; None removes one.
    planes : tuple of str
        Names of the planes that it comes to have; they are not readable yet.
    wcs : gwcs.WCS or None
        Its WCS; None = it keeps what it has.
    """
    made = _with_cards(source, url, changes, planes)
    if wcs is None and source.wcs_cards is not None:  # a FITS WCS stays in the cards
        return made
    if wcs is None and source.asdf is not None and b"gwcs/wcs-" in source.asdf:
        wcs = Wcs("gwcs", source.asdf, source.shape).gwcs()
    # a file without a metadata tree says everything in its headers
    tree = _tree_of(made) if source.asdf is None else changed_tree(source.asdf, changes, made.name)
    if wcs is not None:
        put(tree, "meta.wcs", wcs)
    return replace(made, asdf=asdf_unit(tree, product_of(made).units(1)).data)


def _with_cards(source: Source, url: str, changes: tuple[Changes, Changes], planes: tuple[str, ...]) -> Source:
    name = file_name(url)
    texts = [revised(text, hdu, mine) for text, hdu, mine in _headers(source, changes)]
    made = replace(
        source, name=root_name(name), filename=name, cube=named_cube(source, planes), planes=named_planes(source, planes),
        asdf=None,
    )  # fmt: skip
    made = replace(made, primary_cards=_joined(fits.Header(texts[0])), sci_cards=_joined(fits.Header(texts[1])))
    head, sci = product_of(made).units(1)[:2]
    made = replace(made, primary_cards=_joined(head.header), sci_cards=_joined(sci.header))
    record = facts_of(parse_cards(made.primary_cards), parse_cards(made.sci_cards), source.url)
    kept = {k: record[k] if record[k] is not None else source.record.get(k) for k in ("s_region",)}
    return replace(made, record=record | kept, notes=_notes(source, record["s_region"] is None, planes))


def _headers(source: Source, changes: tuple[Changes, Changes]) -> list[tuple[str, str, Changes]]:
    return [(source.primary_cards, "PRIMARY", changes[0]), (source.sci_cards, "SCI", changes[1])]


def _joined(header: fits.Header) -> str:
    return str(header.tostring(sep="", endcard=False, padding=False))


def _notes(source: Source, no_region: bool, planes: tuple[str, ...]) -> tuple[str, ...]:
    """What an exposure lacks, in the words in which its product would be described."""
    region = ["no S_REGION"] if no_region else []
    absent = [f"no {extension}" for plane, extension in EXTENSIONS.items() if plane not in (*planes, "wavelength")]
    order = ["SCI", "ERR", "DQ", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT", "AREA"]
    absent.sort(key=lambda text: order.index(text.removeprefix("no ")))
    times = [note for note in source.notes if "INT_TIMES" in note]
    return (*region, *absent, *times)


def _unread(*where: int) -> NDArray[np.float32]:
    raise ValueError("only the headers of this exposure are known")


def named_planes(source: Source, planes: tuple[str, ...]) -> tuple[Plane, ...]:
    """Return the planes of an exposure that are images, by name only: they cannot be read."""
    names = [p for p in PLANES if p in planes and (source.cube is None or p in SHARED)]
    return tuple(Plane(n, "uint32" if n == "dq" else "float32", _unread) for n in names)


def named_cube(source: Source, planes: tuple[str, ...]) -> Cube | None:
    """Return the cube of an exposure with planes by name only; None where it is an image."""
    if source.cube is None:
        return None
    names = [p for p in PLANES if p in planes and p not in SHARED]
    deep = tuple(CubePlane(n, "uint32" if n == "dq" else "float32", _unread) for n in names)
    return replace(source.cube, planes=deep)


def _tree_of(source: Source) -> dict[str, object]:
    """Return what the headers of an exposure say as a metadata tree."""
    tree: dict[str, object] = {}
    for hdu, cards in (("PRIMARY", source.primary_cards), ("SCI", source.sci_cards)):
        values = card_values(cards)
        for keyword in jwst_keywords():
            if keyword.hdu == hdu and keyword.name in values:
                put(tree, keyword.path, values[keyword.name])
    return tree


def product_of(source: Source) -> Product:
    """Return an exposure that is open as the product that it would be written as."""
    cube = source.cube

    def read(plane: str, integration: int, y0: int, y1: int) -> NDArray[np.generic]:
        """Rows of a plane, straight from the file."""
        if cube is None or plane in SHARED:
            return next(p for p in source.planes if p.name == plane).read(y0, y1)
        deep = next(p for p in cube.planes if p.name == plane)
        block: NDArray[np.generic] = deep.read(integration, integration + 1, y0, y1)
        return np.asarray(block[0])

    times = None if cube is None else times_table(cube.numbers, cube.times)
    count = 0 if cube is None else cube.count
    return Product(source.primary_cards, source.sci_cards, source.shape, count, source.names, read, times, source.asdf)


# ---------------------------------------------------------------- from the store
def stored_product(exposure: Exposure) -> Product:
    """Return a calibrated exposure of a store as the product that it is written as."""
    record = exposure.record
    times = None
    if record.integrations:
        columns = [np.asarray(exposure.column(name), np.float64) for name in TIMES]
        times = times_table(np.asarray(exposure.column("integration_number"), np.int32), np.stack(columns, axis=1))
    asdf = exposure.wcs.text if record.wcs_kind == "gwcs" else None
    planes = tuple(p for p in EXTENSIONS if exposure.has(p))
    read = Blocks(exposure).read if record.integrations else partial(_stored_rows, exposure)
    texts = exposure.cards("primary"), exposure.cards("sci")
    return Product(*texts, record.shape, record.integrations, planes, read, times, asdf)


def _stored_rows(exposure: Exposure, plane: str, integration: int, y0: int, y1: int) -> NDArray[np.generic]:
    return exposure.read(plane, Box(y0, 0, y1, exposure.record.shape[1]))


@dataclass
class Blocks:
    """Integrations of a cube, read a chunk at a time, as files have them one after the other."""

    exposure: Exposure
    _held: tuple[tuple[str, int], NDArray[np.generic]] | None = None

    def read(self, plane: str, integration: int, y0: int, y1: int) -> NDArray[np.generic]:
        """Return rows ``y0..y1`` of one integration."""
        record = self.exposure.record
        ny, nx = record.shape
        if plane in SHARED:
            return self.exposure.read(plane, Box(y0, 0, y1, nx))
        depth = cube_chunking(record.shape, record.first + record.integrations)[0][0]
        if depth == 1:
            return np.asarray(self.exposure.read_block(plane, integration, integration + 1, Box(y0, 0, y1, nx))[0])
        number = (record.first + integration) // depth  # of a chunk of the stack
        if self._held is None or self._held[0] != (plane, number):
            self._held = None
            first = max(0, number * depth - record.first)
            last = min(record.integrations, (number + 1) * depth - record.first)
            self._held = (plane, number), self.exposure.read_block(plane, first, last, Box(0, 0, ny, nx))
        start = max(0, number * depth - record.first)
        return np.array(self._held[1][integration - start, y0:y1])


def times_table(numbers: NDArray[np.int32], times: NDArray[np.float64]) -> Whole | None:
    """Return INT_TIMES of these integrations; None where nothing is known of their times."""
    if not len(numbers) or np.isnan(times).all():
        return None
    columns = [("integration_number", "J"), *((title, "D") for title in _TITLES.values())]
    rows = np.empty(len(numbers), [("n", ">i4"), ("t", ">f8", (len(TIMES),))])
    rows["n"], rows["t"] = numbers, times
    unit = table("INT_TIMES", columns, rows.tobytes(), len(numbers))
    return Whole(fits.Header([*unit.header.cards, fits.Card("EXTVER", 1, "extension value")]), unit.data)
