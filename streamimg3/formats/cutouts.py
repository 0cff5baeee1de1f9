"""Stamps of the mosaic around positions: read chunk by chunk, written one FITS file each, as one FITS file, or as one array.

Positions are worked through in blocks of the mosaic, each of which is read once, in batches that fit into the memory; the
result is in the order of the positions. What a stamp has outside the mosaic is NaN (0 in planes of flags and counts).
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import BudgetError, InputError
from streamimg3.formats.names import absolute, is_remote
from streamimg3.geometry import Box
from streamimg3.sky.wcs import Wcs
from streamimg3.store import Observation
from streamimg3.store.documents import ResampleDocument
from streamimg3.store.layout import PLANES

F8 = NDArray[np.float64]
Ints = NDArray[np.int64]
_BLOCK = 2048  # pixels of the mosaic that are read at a time along each side, at least
_SCHEMA = "streamimg3/cutouts"
_KINDS = {"float32": -32, "int32": 32, "uint16": 16, "uint32": 32, "uint8": 8}


@dataclass(frozen=True, eq=False)
class Positions:
    """Positions on the sky (degrees, ICRS) and their names."""

    ra: F8
    dec: F8
    names: tuple[str, ...]

    @classmethod
    def of(cls, ra: Sequence[float] | F8, dec: Sequence[float] | F8, names: Sequence[object] = ()) -> Positions:
        """Return positions named by ``names``, or by their number from 1.

        Examples
        --------
        >>> Positions.of([10.0, 11.0], [0.0, 1.0]).names
        ('1', '2')
        """
        lon, lat = (np.atleast_1d(np.asarray(v, float)) for v in (ra, dec))
        if lon.shape != lat.shape or lon.ndim != 1 or not (np.isfinite(lon) & np.isfinite(lat)).all():
            raise InputError("give as many right ascensions as declinations, all of them finite numbers")
        told = tuple(str(n) for n in names) if len(names) else tuple(str(i + 1) for i in range(len(lon)))
        return cls(lon, lat, told)


@dataclass(frozen=True, eq=False)
class Stamps:
    """What is to be cut out of a mosaic.

    ``corner`` (n, 2) holds the first row and column of each stamp, which may lie outside; ``planes`` names, ``dtypes`` and
    ``units`` belong together; ``cards`` are the mosaic's WCS keywords, None where FITS keywords cannot say it.
    """

    observation: Observation
    path: str
    mosaic: tuple[int, int]
    shape: tuple[int, int]
    positions: Positions
    corner: Ints
    planes: tuple[str, ...]
    units: tuple[str, ...]
    cards: Mapping[str, float | str] | None

    def __len__(self) -> int:
        return len(self.corner)

    @property
    def inside(self) -> NDArray[np.bool_]:
        """Which stamps have a pixel of the mosaic."""
        return _reaching(self.corner, self.shape, self.mosaic)

    @property
    def nbytes(self) -> int:
        """Bytes of one stamp with all its planes."""
        return int(np.prod(self.shape)) * sum(np.dtype(PLANES[p].dtype).itemsize for p in self.planes)


def plan_stamps(
    obs: Observation, positions: Positions, size: str | float | tuple[int, int], planes: Sequence[str] = ("sci",)
) -> Stamps:
    """Work out which pixels stamps are made of; reads metadata only.

    Parameters
    ----------
    obs : Observation
        A store with a finished mosaic.
    positions : Positions
        Their middles: the pixel whose centre is nearest (of even sizes, the corner between the middle pixels).
    size : str, float or pair of int
        Side on the sky (``5arcsec``; a number is arcsec) or in pixels (``64pix``), or rows and columns.
    planes : sequence of str
        Planes of the mosaic.

    Raises
    ------
    InputError
        If there is no mosaic or no such plane, or no position is on it.
    """
    from streamimg3.sky.positions import parse_size

    document = obs.document(ResampleDocument)
    if document is None:
        raise InputError(f"{obs.url} holds no finished mosaic: run image3 first")
    known = (*document.planes, "segmentation") if _has(obs, f"{document.path}/segmentation") else document.planes
    wrong = [p for p in planes if p not in known or p == "con"]
    if wrong or not planes:
        raise InputError(f"no plane {', '.join(wrong) or 'given'}: the mosaic has {', '.join(known)}")
    side = size if isinstance(size, tuple) else (parse_size(size, document.pixel_scale),) * 2
    wcs = Wcs("gwcs", document.wcs_asdf.encode("latin-1"), document.shape)
    y, x = wcs.to_pixel(positions.ra, positions.dec)
    corner = np.floor(np.stack([y - (side[0] - 1) / 2, x - (side[1] - 1) / 2], axis=1) + 0.5)
    far = ~np.isfinite(corner).all(axis=1)
    corner[far] = -10.0 * max(*side, *document.shape)
    units = tuple(str(obs.array(f"{document.path}/{p}").attrs["units"]) for p in planes)
    made = Stamps(
        obs, document.path, document.shape, side, positions, corner.astype(np.int64), tuple(planes), units,
        obs.attributes(document.path).get("wcs"),
    )  # fmt: skip
    if not made.inside.any():
        raise InputError(f"none of the {len(made)} positions is on the mosaic of {obs.url}")
    return made


def _has(obs: Observation, path: str) -> bool:
    return obs.backend.get(f"{path}/zarr.json") is not None


# ---------------------------------------------------------------- reading
def batches(stamps: Stamps, memory: int, multiple: int = 1) -> Iterator[slice]:
    """Yield the positions that are worked on together, so many that their stamps take half of the memory."""
    count = (memory - 3 * _block(stamps) ** 2 * 4) // (2 * stamps.nbytes) // multiple * multiple
    if count < multiple:
        need = 3 * _block(stamps) ** 2 * 4 + 2 * multiple * stamps.nbytes - memory
        raise BudgetError(
            f"the memory cannot hold the cut-outs: give at least {-(-need // 2**20)} MiB more by --memory"
        )
    for start in range(0, len(stamps), count):
        yield slice(start, min(start + count, len(stamps)))


def _block(stamps: Stamps) -> int:
    return max(_BLOCK, 4 * max(stamps.shape))


def read(stamps: Stamps, which: slice) -> dict[str, NDArray[np.generic]]:
    """Return the stamps of some positions, ``(positions, rows, columns)`` by plane, in the planes' own types."""
    corner = stamps.corner[which]
    made: dict[str, NDArray[np.generic]] = {}
    groups = list(_grouped(corner, stamps))
    for plane in stamps.planes:
        kind = PLANES[plane]
        out = np.full((len(corner), *stamps.shape), kind.fill, kind.dtype)
        for members, window in groups:
            pixels = stamps.observation.window(f"{stamps.path}/{plane}", (), window)
            _copy(pixels, window, corner, members, out)
        made[plane] = out
    return made


def _reaching(corner: Ints, shape: tuple[int, int], mosaic: tuple[int, int]) -> NDArray[np.bool_]:
    """Which stamps have a pixel of the mosaic."""
    found: NDArray[np.bool_] = ((corner + np.array(shape) > 0) & (corner < np.array(mosaic))).all(axis=1)
    return found


def _grouped(corner: Ints, stamps: Stamps) -> Iterator[tuple[Ints, Box]]:
    """Stamps that begin in the same block of the mosaic, and the window that holds them; sparse ones by themselves."""
    side = _block(stamps)
    whole = Box.of_shape(stamps.mosaic)
    block = np.clip(corner, 0, None) // side
    reach = _reaching(corner, stamps.shape, stamps.mosaic)
    order = np.lexsort((corner[:, 1], corner[:, 0], block[:, 1], block[:, 0]))
    order = order[reach[order]]
    edges = np.flatnonzero(np.any(np.diff(block[order], axis=0) != 0, axis=1)) + 1
    for members in np.split(order, edges):
        if not len(members):
            continue
        (y0, x0), (y1, x1) = corner[members].min(axis=0), corner[members].max(axis=0) + stamps.shape
        together = Box(int(y0), int(x0), int(y1), int(x1)).intersect(whole)
        alone = sum((n + 512) for n in stamps.shape) ** 2 // 4  # with the chunks that its rim cuts
        if together is not None and together.size <= len(members) * alone:
            yield members, together
            continue
        for i in members:
            box = Box(*map(int, corner[i]), *map(int, corner[i] + stamps.shape)).intersect(whole)
            if box is not None:
                yield np.array([i]), box


def _copy(pixels: NDArray[np.generic], window: Box, corner: Ints, members: Ints, out: NDArray[np.generic]) -> None:
    """Copy the stamps ``members`` out of the pixels of a window."""
    ny, nx = out.shape[1:]
    height, width = window.shape
    for i in members.tolist():
        y, x = int(corner[i, 0]) - window.y0, int(corner[i, 1]) - window.x0
        if y >= 0 and x >= 0 and y + ny <= height and x + nx <= width:
            out[i] = pixels[y : y + ny, x : x + nx]
            continue
        ys, xs = max(y, 0), max(x, 0)
        ye, xe = min(y + ny, height), min(x + nx, width)
        out[i, ys - y : ye - y, xs - x : xe - x] = pixels[ys:ye, xs:xe]


# ---------------------------------------------------------------- writing
def write_stamps(stamps: Stamps, output: str, options: Mapping[str, str], memory: int) -> int:
    """Write stamps to ``.zarr`` (one array ``(source, y, x)`` for each plane), ``.fits`` (one file) or a folder of FITS files.

    Parameters
    ----------
    stamps : Stamps
        From :func:`plan_stamps`.
    output : str
        Path or URL.
    options : mapping of str to str
        Storage options.
    memory : int
        Bytes that stamps and what is read for them may take.

    Returns
    -------
    int
        Stamps written; those without a pixel of the mosaic are left out of FITS, and NaN in the array.

    Raises
    ------
    InputError
        If FITS keywords cannot say the mosaic's WCS.
    BudgetError
        If the memory cannot hold the work.
    StoreError
        If something cannot be read or written.
    """
    if output.rstrip("/").endswith(".zarr"):
        return _write_array(stamps, output, options, memory)
    if stamps.cards is None:
        raise InputError("the mosaic's WCS has no form in FITS keywords: write the cut-outs to .zarr")
    if output.endswith(".fits"):
        return _write_file(stamps, output, options, memory)
    return _write_folder(stamps, output, options, memory)


def _write_array(stamps: Stamps, output: str, options: Mapping[str, str], memory: int) -> int:
    """One Zarr group; it can be opened once its consolidated metadata are written, at the end."""
    import zarr

    target = Observation.at(output, options)
    _make_room(target)
    rows = max(1, min(len(stamps), 2**20 // max(1, stamps.nbytes // len(stamps.planes))))
    head = {"schema": _SCHEMA, "version": 1, "mosaic": stamps.observation.url, "wcs_of_mosaic": stamps.cards}
    named = all(name.isdecimal() for name in stamps.positions.names)
    target.write_group("", head if named else head | {"names": stamps.positions.names})
    columns = _columns(stamps, named)
    arrays = {}
    for plane, unit in zip(stamps.planes, stamps.units, strict=True):
        kind = PLANES[plane]
        arrays[plane] = zarr.create_array(
            target.backend.zarr, name=plane, shape=(len(stamps), *stamps.shape), dtype=kind.dtype, fill_value=kind.fill,
            chunks=(rows, *stamps.shape), compressors=_codec(kind.dtype), dimension_names=("source", "y", "x"),
            attributes={"units": unit, "long_name": kind.long_name, "coordinates": " ".join(columns)},
        )  # fmt: skip
    for name, (values, unit, meaning) in columns.items():
        array = zarr.create_array(
            target.backend.zarr, name=name, shape=values.shape, dtype=values.dtype, dimension_names=("source",),
            chunks=(len(values),), attributes={"units": unit, "long_name": meaning},
        )  # fmt: skip
        array[:] = values
    for which in batches(stamps, memory, rows):
        for plane, values in read(stamps, which).items():
            arrays[plane][which] = values
    target.consolidate()
    return int(stamps.inside.sum())


def _make_room(target: Observation) -> None:
    """Remove cut-outs of an earlier run; refuse anything else."""
    import json

    node = target.backend.get("zarr.json")
    if node is not None and json.loads(node).get("attributes", {}).get("schema") != _SCHEMA:
        raise InputError(f"{target.url} holds something else: give the cut-outs another name")
    if node is not None:
        target.backend.remove_tree("")


def _columns(stamps: Stamps, named: bool) -> dict[str, tuple[NDArray[np.generic], str, str]]:
    """What is known of each stamp: values, unit and meaning."""
    positions = stamps.positions
    names = {"name": (np.array(positions.names, np.int64), "1", "name of the source")} if named else {}
    return {
        **names,
        "ra": (positions.ra, "deg", "right ascension asked for"),
        "dec": (positions.dec, "deg", "declination asked for"),
        "y0": (stamps.corner[:, 0], "1", "first row in the mosaic"),
        "x0": (stamps.corner[:, 1], "1", "first column in the mosaic"),
    }


def _codec(dtype: str):  # type: ignore[no-untyped-def]
    from zarr.codecs import BloscCodec

    return BloscCodec(cname="lz4", clevel=1, shuffle="bitshuffle", typesize=np.dtype(dtype).itemsize)


def _write_file(stamps: Stamps, output: str, options: Mapping[str, str], memory: int) -> int:
    """One FITS file with an extension for each plane of each stamp (EXTVER counts the stamps)."""
    from streamimg3.formats.publish import open_product

    heads, inside, written = Heads(stamps), stamps.inside, 0
    with open_product(output, options) as product:
        product.write(heads.empty_primary())
        for which in batches(stamps, memory):
            pixels = read(stamps, which)
            for i in range(which.start, which.stop):
                if inside[i]:
                    written += 1
                    for plane in stamps.planes:
                        product.write(heads.unit(i, plane, pixels[plane][i - which.start], written))
    return written


def _write_folder(stamps: Stamps, output: str, options: Mapping[str, str], memory: int) -> int:
    """One FITS file for each stamp, in the order of the mosaic's chunks; each appears whole or not at all."""
    folder = absolute(output)
    order = np.lexsort((stamps.corner[:, 1] // _BLOCK, stamps.corner[:, 0] // _BLOCK))
    order = order[stamps.inside[order]]
    names = _file_names(stamps.positions.names)
    names = [names[i] for i in order]
    positions = Positions(
        stamps.positions.ra[order], stamps.positions.dec[order], tuple(stamps.positions.names[i] for i in order)
    )
    sorted_ = replace(stamps, corner=stamps.corner[order], positions=positions)
    heads = Heads(sorted_)
    put = _remote(folder, options) if is_remote(folder) else _local(folder)
    for which in batches(sorted_, memory):
        pixels = read(sorted_, which)
        numbers = range(which.start, which.stop)
        put((names[i], heads.file(i, {p: pixels[p][i - which.start] for p in stamps.planes})) for i in numbers)
    return len(sorted_)


def _file_names(names: Sequence[str]) -> list[str]:
    """A file name for each; equal ones are told apart by a number."""
    seen: dict[str, int] = {}
    made = []
    for name in names:
        stem = re.sub(r"[^\w.+-]+", "_", name).strip("._") or "source"
        seen[stem] = seen.get(stem, 0) + 1
        made.append(f"{stem}.fits" if seen[stem] == 1 else f"{stem}_{seen[stem]}.fits")
    return made


def _local(folder: str):  # type: ignore[no-untyped-def]
    os.makedirs(folder, exist_ok=True)

    def put(files: Iterator[tuple[str, bytes]]) -> None:
        for name, data in files:
            partial = os.path.join(folder, f".{name}.partial")
            with open(partial, "wb", buffering=0) as file:
                file.write(data)
            os.replace(partial, os.path.join(folder, name))

    return put


def _remote(folder: str, options: Mapping[str, str]):  # type: ignore[no-untyped-def]
    from streamimg3.formats.local_copy import filesystem

    fs, path = filesystem(folder, options)
    fs.makedirs(path, exist_ok=True)  # type: ignore[attr-defined]

    def put(files: Iterator[tuple[str, bytes]]) -> None:
        waiting: dict[str, bytes] = {}
        for name, data in files:
            waiting[posixpath.join(path, name)] = data
            if len(waiting) == 256:
                fs.pipe(waiting)  # type: ignore[attr-defined]
                waiting = {}
        if waiting:
            fs.pipe(waiting)  # type: ignore[attr-defined]

    return put


class Heads:
    """FITS headers of stamps: made once, with only the numbers that differ filled in."""

    def __init__(self, stamps: Stamps) -> None:
        self.stamps = stamps
        self.single = len(stamps.planes) == 1
        self._templates = {p: self._template(p, extension=False) for p in stamps.planes[:1]} if self.single else {}
        self._extensions = {p: self._template(p, extension=True) for p in stamps.planes}

    def empty_primary(self) -> bytes:
        """Return a primary unit without data."""
        from astropy.io import fits

        cards = [("SIMPLE", True), ("BITPIX", 8), ("NAXIS", 0), ("EXTEND", True)]
        return bytes(fits.Header(cards).tostring().encode("ascii"))

    def file(self, i: int, pixels: Mapping[str, NDArray[np.generic]]) -> bytes:
        """Return the bytes of a file with one stamp: one plane is the primary image, several are extensions."""
        if self.single:
            plane = self.stamps.planes[0]
            return self._filled(self._templates[plane], i, 1) + _data(pixels[plane])
        return self.empty_primary() + b"".join(self.unit(i, p, pixels[p], 1) for p in self.stamps.planes)

    def unit(self, i: int, plane: str, pixels: NDArray[np.generic], version: int) -> bytes:
        """Return the bytes of an extension with one plane of a stamp."""
        return self._filled(self._extensions[plane], i, version) + _data(pixels)

    def _template(self, plane: str, extension: bool) -> tuple[bytes, dict[str, int]]:
        """A header, and where the cards that differ begin."""
        from astropy.io import fits

        stamps = self.stamps
        dtype = PLANES[plane].dtype
        first = ("XTENSION", "IMAGE") if extension else ("SIMPLE", True)
        cards: list[tuple[str, object]] = [first, ("BITPIX", _KINDS[dtype]), ("NAXIS", 2)]
        cards += [("NAXIS1", stamps.shape[1]), ("NAXIS2", stamps.shape[0])]
        cards += [("PCOUNT", 0), ("GCOUNT", 1)] if extension else []
        if dtype in ("uint16", "uint32"):
            cards += [("BSCALE", 1), ("BZERO", 2**15 if dtype == "uint16" else 2**31)]
        cards += [("EXTNAME", plane.upper())] if extension else []
        cards += [("BUNIT", stamps.units[stamps.planes.index(plane)]), ("WCSAXES", 2)]
        cards += [(k, v) for k, v in (stamps.cards or {}).items() if not k.startswith("CRPIX")]
        cards += [("RADESYS", "ICRS"), ("CRPIX1", 0.0), ("CRPIX2", 0.0), ("OBJECT", "")]
        cards += [("RA_SRC", 0.0), ("DEC_SRC", 0.0), ("LTV1", 0), ("LTV2", 0)]
        cards += [("EXTVER", 1)] if extension else []
        text = fits.Header([fits.Card(k, v) for k, v in cards]).tostring()  # type: ignore[arg-type]
        places = {text[n : n + 8].rstrip(): n for n in range(0, len(text), 80)}
        return text.encode("ascii"), places

    def _filled(self, template: tuple[bytes, dict[str, int]], i: int, version: int) -> bytes:
        text, places = template
        stamps, cards = self.stamps, self.stamps.cards or {}
        y0, x0 = stamps.corner[i].tolist()
        name = stamps.positions.names[i].encode("ascii", "replace").decode().replace("'", "''")[:66]
        values = {
            "CRPIX1": _number(float(cards["CRPIX1"]) - x0), "CRPIX2": _number(float(cards["CRPIX2"]) - y0),
            "OBJECT": f"'{name:8s}'", "RA_SRC": _number(float(stamps.positions.ra[i])),
            "DEC_SRC": _number(float(stamps.positions.dec[i])), "LTV1": f"{-x0:>20d}", "LTV2": f"{-y0:>20d}",
            "EXTVER": f"{version:>20d}",
        }  # fmt: skip
        made = bytearray(text)
        for key, value in values.items():
            at = places.get(key)
            if at is not None:
                made[at : at + 80] = f"{key:8s}= {value:<70s}".encode("ascii")
        return bytes(made)


def _number(value: float) -> str:
    """A number as FITS writes it, without loss."""
    text = repr(value).upper()
    return f"{text if '.' in text or 'E' in text else text + '.0':>20s}"


def _data(pixels: NDArray[np.generic]) -> bytes:
    """Big-endian pixels, filled up to a block."""
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize > 1:
        signed = np.dtype(f">i{pixels.dtype.itemsize}")
        shifted = pixels.astype(np.int64) - 2 ** (8 * pixels.dtype.itemsize - 1)
        data: bytes = shifted.astype(signed).tobytes()
    else:
        data = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
    return data + bytes(-len(data) % 2880)


# ---------------------------------------------------------------- positions from files
def read_catalog(url: str, options: Mapping[str, str]) -> Positions:
    """Read positions from a table: RA and DEC in any case (degrees), or ``sky_centroid``; names from label, id or name.

    Raises
    ------
    InputError
        If it is no table, or has no positions.
    """
    from streamimg3.formats.star_catalogs import read_positions, read_table

    table = read_table(url, options)
    stars = read_positions(url, options)
    named = next((n for n in table.colnames if n.lower() in ("label", "id", "name", "source_id")), None)
    names = [str(v) for v in table[named]] if named and len(table) == len(stars) else []
    return Positions.of(stars.columns["ra"], stars.columns["dec"], names)
