"""The Zarr group of one product: a URL and options, nothing more, so that it travels to any worker."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError, StoreError, StreamImgError
from streamimg3.geometry import Box
from streamimg3.store import layout
from streamimg3.store.backend import Backend, freeze, is_local, normalise, reason
from streamimg3.store.documents import AlignmentDocument, Document, check_schema, revive
from streamimg3.store.exposure import Exposure, ExposureRecord, stack_path
from streamimg3.store.objects import Options
from streamimg3.store.shard_writer import ShardWriter, writing
from streamimg3.store.shards import Sharding, read_window

if TYPE_CHECKING:
    from xarray import DataTree

D = TypeVar("D", bound=Document)
_FLAGS = ("dq", "pixeldq")
_COLUMN_CHUNK = 2**17  # values; a column of 10^5 integrations is one request


@dataclass(frozen=True)
class _Grid:
    """Along what images are stacked, and how the stack is cut."""

    stacked: str
    shape: tuple[int, int, int]
    chunk: tuple[int, int, int]
    shard: tuple[int, int, int]


@dataclass(frozen=True)
class Observation:
    """A store: exposures, documents, mosaic and receipts under one URL.

    Parameters
    ----------
    url : str
        Local path or any fsspec URL.
    options : tuple of (str, str)
        Storage options (credentials, endpoint).

    Examples
    --------
    >>> Observation("memory://example").url
    'memory://example'
    """

    url: str
    options: Options = ()

    @classmethod
    def at(cls, url: str, options: Mapping[str, str] | None = None) -> Observation:
        """Return the observation at a URL; nothing is read."""
        return cls(normalise(url), freeze(dict(options or {})))

    @property
    def backend(self) -> Backend:
        """The bytes."""
        return Backend(self.url, self.options)

    def xarray(self, chunks: Any = None) -> DataTree:
        """Return the store as an `xarray.DataTree` of lazy arrays with units and named flags.

        The mosaic and its overviews can be asked by sky position (coordinates ``ra`` and ``dec``, degrees, which take no
        memory), and have an accessor ``.img3`` with ``wcs``, ``footprint``, ``cutout``, ``cone``, ``plot``.

        Parameters
        ----------
        chunks : int, dict, "auto" or None
            Dask chunks; None = lazy arrays without dask, read when they are used.

        Raises
        ------
        InputError
            If there is no finished store.

        Examples
        --------
        >>> mosaic = streamimg3.open(store).xarray()["mosaic"].to_dataset()
        >>> ra, dec = mosaic.img3.footprint.mean(axis=0)
        >>> mosaic.sci.sel(ra=ra, dec=dec, method="nearest").shape
        ()
        """
        from streamimg3.store.xarray_view import open_tree

        self.require()
        return open_tree(self, chunks)

    # ---------------------------------------------------------------- whole store
    def root(self) -> dict[str, Any] | None:
        """Return the attributes of the root group, or None where there is no store.

        Raises
        ------
        InputError
            If what is there is no store of this software.
        StoreError
            If the store is damaged, or newer than this software.
        """
        if is_local(self.url) and os.path.isfile(self.url):
            raise InputError(f"{self.url} is a file, not a store: check the path")
        found = self.backend.get("zarr.json")
        if found is None:
            return None
        try:
            attrs: dict[str, Any] = dict(json.loads(found).get("attributes", {}))
        except (ValueError, AttributeError, TypeError) as error:
            raise StoreError(f"{self.url}/zarr.json is damaged ({error}): remove the store and ingest again") from error
        if attrs.get("schema") != layout.SCHEMA:
            other = f" (its schema is {attrs['schema']!r})" if "schema" in attrs else ""
            raise InputError(f"{self.url} is a Zarr store, but not one of streamimg3{other}: check the path")
        check_schema(attrs["schema"], attrs.get("version", 0), (layout.SCHEMA, layout.VERSION), f"{self.url}/zarr.json")
        return attrs

    def require(self) -> dict[str, Any]:
        """Return the root attributes of a store whose ingest has finished.

        Raises
        ------
        InputError
            If there is no store at the URL, or its ingest was not finished.
        """
        root = self.root()
        if root is None or not root.get("ingested"):
            raise InputError(f"{self.url} holds no finished store: run 'streamimg3 ingest' or check the path")
        return root

    def write_root(self, attrs: Mapping[str, Any]) -> None:
        """Write the root group with its schema, version and further attributes."""
        self.write_group("", {"schema": layout.SCHEMA, "version": layout.VERSION} | dict(attrs))

    def write_group(self, path: str, attrs: Mapping[str, Any]) -> None:
        """Write a group node."""
        node = {"zarr_format": 3, "node_type": "group", "attributes": dict(attrs)}
        self.backend.put(f"{path}/zarr.json".lstrip("/"), json.dumps(node).encode())

    def attributes(self, path: str) -> dict[str, Any]:
        """Return the attributes of a group, empty where there is none."""
        node = self.backend.get(f"{path}/zarr.json".lstrip("/"))
        found: dict[str, Any] = {} if node is None else json.loads(node).get("attributes", {})
        return found

    def consolidate(self) -> None:
        """Gather all array metadata in the root, so that a reader needs one request."""
        import warnings

        import zarr

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Zarr remarks that consolidated metadata are not in the v3 core
            zarr.consolidate_metadata(self.backend.zarr)
        node = json.loads(self.backend.get("zarr.json") or b"{}")
        known = node["consolidated_metadata"]["metadata"]
        passing = [path for path in known if path.split("/")[0] == "scratch"]
        for path in passing:  # it will be gone when somebody reads this
            del known[path]
        if passing:
            self.backend.put("zarr.json", json.dumps(node).encode())

    def mend(self) -> None:
        """Gather the metadata again if a run was killed between its last array and that."""
        node = json.loads(self.backend.get("zarr.json") or b"{}")
        known = set((node.get("consolidated_metadata") or {}).get("metadata", {}))
        stacks = ("exposures", "integrations", "psfalign", "psfsub")
        groups = {f"{stack}/{name}" for stack in stacks for name in self.backend.keys(stack) if "." not in name}
        if not groups <= known or ("documents" in self.backend.keys("") and self._uncounted(known)):
            self.consolidate()

    def _uncounted(self, known: set[str]) -> bool:
        """Whether a finished mosaic is not in the consolidated metadata."""
        return "resample.json" in self.backend.keys("documents") and "mosaic" not in known

    # ---------------------------------------------------------------- exposures
    def records(self) -> tuple[ExposureRecord, ...]:
        """Return the facts of all exposures in member order (from headers alone while the ingest is going on)."""
        data = self.backend.get("exposures/index.json")
        if data is None:
            raise StoreError(f"{self.url}/exposures/index.json is missing: ingest again")
        try:
            return tuple(revive(ExposureRecord, r) for r in json.loads(data))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StoreError(f"{self.url}/exposures/index.json is damaged ({error}): ingest again") from error

    def exposures(self, aligned: bool = True) -> tuple[Exposure, ...]:
        """Return all exposures in member order, as the alignment left them (or as they came, without ``aligned``).

        Raises
        ------
        StoreError
            If the alignment is one of another number of exposures: which correction belongs to which is not known then.
        """
        records = self.records()
        found = self.document(AlignmentDocument) if aligned else None
        if found is None:
            return tuple(Exposure(self, r) for r in records)
        if len(found.exposures) != len(records):
            raise StoreError(
                f"{self.url}/documents/{found.kind}.json is of {len(found.exposures)} exposures, but the store holds"
                f" {len(records)}: remove it and run {found.step} again"
            )
        return tuple(Exposure(self, r, a) for r, a in zip(records, found.exposures, strict=True))

    def write_records(self, records: Sequence[ExposureRecord]) -> None:
        """Write the facts of all exposures."""
        self.backend.put("exposures/index.json", json.dumps([asdict(r) for r in records], allow_nan=False).encode())

    def create_stack(
        self, shape: tuple[int, int], count: int, planes: Mapping[str, str | None], cubes: bool = False
    ) -> None:
        """Create the empty stacks for ``count`` exposures of a shape; ``planes`` maps plane names to their image unit.

        With ``cubes``, these are the planes that are the same for all integrations of an exposure.
        """
        chunk, shard = layout.chunking(shape)
        grid = _Grid("exposure", (count, *shape), (1, *chunk), (1, *shard))
        self._create_planes(stack_path(shape, cubes), grid, planes)

    def resize_stack(self, shape: tuple[int, int], count: int) -> None:
        """Make every plane of a stack of images hold ``count`` exposures; what lies beyond is dropped, what is new is empty."""
        path = stack_path(shape)
        for name in self.backend.keys(path):
            if name in layout.PLANES and (array := _open(self.url, self.options, f"{path}/{name}")).shape[0] != count:
                array.resize((count, *shape))
        _forget_arrays()

    def create_cubes(
        self, shape: tuple[int, int], count: int, planes: Mapping[str, str | None], cut: layout.Cut | None = None
    ) -> None:
        """Create the empty stacks for ``count`` integrations of a shape; ``planes`` maps plane names to their image unit.

        ``cut`` is how they are cut in chunks and shards, by default as the planes that come from files.
        """
        grid = _Grid("integration", (count, *shape), *(cut or layout.cube_chunking(shape, count)))
        self._create_planes(stack_path(shape, cubes=True), grid, planes)

    def create_series(
        self,
        path: str,
        stacked: str,
        shape: tuple[int, int, int],
        planes: Mapping[str, str | None],
        rows: int = 0,
        deep: bool = True,
    ) -> None:
        """Create empty stacks ``path/<plane>`` of images of one kind, outside those that exposures come in.

        Parameters
        ----------
        path : str
            Group, whose parents are made too.
        stacked : str
            Name of the dimension along which the images are stacked.
        shape : tuple of int
            Images, rows, columns.
        planes : mapping
            Names to the unit of the images.
        rows : int
            Height of a shard, which then holds these rows of all images (or, if not ``deep``, of one); 0 = as stacks of
            integrations are cut.
        deep : bool
            See ``rows``.
        """
        chunk, shard = layout.cube_chunking(shape[1:], shape[0])
        if rows:
            chunk, shard = (1, rows, shape[2]), (shape[0] if deep else 1, rows, shape[2])
        self._create_planes(path, _Grid(stacked, shape, chunk, shard), planes)

    def _create_planes(self, path: str, grid: _Grid, planes: Mapping[str, str | None]) -> None:
        import zarr

        parts = path.split("/")
        for depth in range(1, len(parts)):
            self.write_group("/".join(parts[:depth]), {})
        self.write_group(path, {"shape": list(grid.shape[1:])})
        for plane, bunit in planes.items():
            kind = layout.PLANES[plane]
            attrs: dict[str, Any] = {"units": layout.unit_of(plane, bunit), "long_name": kind.long_name}
            attrs |= layout.flag_attrs() if plane in _FLAGS else {}
            if (
                path.startswith("integrations/") and grid.stacked == "integration"
            ):  # so that the columns are coordinates
                attrs["coordinates"] = " ".join(layout.COLUMNS)
            zarr.create_array(
                self.backend.zarr, name=f"{path}/{plane}", shape=grid.shape, dtype=kind.dtype, fill_value=kind.fill,
                chunks=grid.chunk, shards=grid.shard, compressors=_codec(kind.dtype), overwrite=True,
                dimension_names=(grid.stacked, "y", "x"), attributes=attrs,
            )  # fmt: skip
        _forget_arrays()

    def create_columns(self, shape: tuple[int, int], columns: Mapping[str, NDArray[np.generic]]) -> None:
        """Write the columns of a stack of cubes (``layout.COLUMNS``), each with one value per integration."""
        import zarr

        for name, values in columns.items():
            attrs: dict[str, Any] = {"units": "d"} if name in layout.TIMES else {}
            array = zarr.create_array(
                self.backend.zarr, name=f"{stack_path(shape, cubes=True)}/{name}", shape=values.shape, dtype=values.dtype,
                fill_value=math.nan if name in layout.TIMES else -1, chunks=(min(len(values), _COLUMN_CHUNK),),
                dimension_names=("integration",), overwrite=True, attributes=attrs | {"long_name": layout.COLUMNS[name]},
            )  # fmt: skip
            array[:] = values
        _array.cache_clear()

    def create_array(
        self,
        path: str,
        shape: tuple[int, ...],
        dtype: str,
        chunk: tuple[int, ...],
        dims: tuple[str, ...],
        attrs: Mapping[str, Any],
    ) -> None:
        """Create an empty array of any kind; unknown numbers are NaN, or -1 if they are integers with a sign."""
        import zarr

        kind = np.dtype(dtype).kind
        zarr.create_array(
            self.backend.zarr, name=path, shape=shape, dtype=dtype, chunks=chunk, dimension_names=dims, overwrite=True,
            fill_value=math.nan if kind == "f" else -1 if kind == "i" else 0, compressors=_codec(dtype),
            attributes=dict(attrs),
        )  # fmt: skip
        _forget_arrays()

    def column(self, path: str, first: int, last: int) -> NDArray[np.generic]:
        """Return some values of a one-dimensional array."""
        try:
            return np.asarray(self.array(path)[first:last])
        except StreamImgError:
            raise
        except Exception as error:  # codecs and backends have errors of their own
            raise StoreError(f"cannot read {self.url}/{path} {first}..{last}: {reason(error)}") from error

    def create_table(self, shape: tuple[int, int], name: str, rows: Sequence[bytes], cubes: bool = False) -> None:
        """Write one byte string per exposure as a row of a uint8 array (short rows end in zeros)."""
        import zarr

        width = max(1, *(len(r) for r in rows))
        table = np.zeros((len(rows), width), np.uint8)
        for i, row in enumerate(rows):
            table[i, : len(row)] = np.frombuffer(row, np.uint8)
        array = zarr.create_array(
            self.backend.zarr, name=f"{stack_path(shape, cubes)}/{name}", shape=table.shape, dtype="uint8", fill_value=0,
            chunks=(1, width), shards=(len(rows), width), dimension_names=("exposure", f"{name}_byte"), overwrite=True,
            compressors=_table_codec(),
            attributes={"lengths": [len(r) for r in rows], "encoding": "utf-8"},
        )  # fmt: skip
        array[:] = table
        _forget_arrays()

    def row_bytes(self, path: str, row: int) -> bytes:
        """Return one row of a table as it was written."""
        array = _array(self.url, self.options, path)
        lengths: list[int] = array.attrs["lengths"]  # type: ignore[assignment]
        try:
            return np.asarray(array[row, : lengths[row]]).tobytes()
        except Exception as error:  # codecs and backends have errors of their own
            raise StoreError(f"cannot read {self.url}/{path} row {row}: {reason(error)}") from error

    # ---------------------------------------------------------------- arrays
    def array(self, path: str):  # type: ignore[no-untyped-def]
        """Return a Zarr array of the store, opened once per process."""
        return _array(self.url, self.options, path)

    def window(self, path: str, lead: tuple[int | slice, ...], box: Box) -> NDArray[np.generic]:
        """Read a box of a plane of an array, or with a slice in ``lead``, of several planes."""
        try:
            sharding = _sharding(self.url, self.options, path)
            if sharding is None:
                return np.asarray(self.array(path)[(*lead, *box.slices)])
            window, axes = _spans((*lead, *box.slices), sharding.shape)
            found = read_window(self.backend, path, sharding, window)
            return found.reshape([stop - start for (start, stop), kept in zip(window, axes, strict=True) if kept])
        except StreamImgError:
            raise
        except Exception as error:  # codecs and backends have errors of their own
            raise StoreError(f"cannot read {self.url}/{path} {lead} {box.as_tuple()}: {reason(error)}") from error

    def write(self, path: str, lead: tuple[int | slice, ...], box: Box, values: NDArray[np.generic]) -> None:
        """Write a box of a plane or, with a slice in ``lead``, of several; whole shards only (or up to the array's rim).

        Raises
        ------
        StoreError
            If the bytes cannot be written (full disk, no permission).
        """
        try:
            self.array(path)[(*lead, *box.slices)] = values
        except StreamImgError:
            raise
        except Exception as error:  # codecs and backends have errors of their own
            raise StoreError(f"cannot write {self.url}/{path}: {reason(error)}") from error

    @contextmanager
    def shards(
        self, group: str, names: Sequence[str], number: tuple[int, ...], cached: bool = True
    ) -> Iterator[dict[str, ShardWriter]]:
        """Write the same shard of several arrays of a group, chunk by chunk; they appear when the context ends well.

        Parameters
        ----------
        group : str
            Where the arrays are.
        names : sequence of str
            Their names.
        number : tuple of int
            Place of the shard along each axis.
        cached : bool
            They are read soon: on a local disk they stay in the system's page cache.

        Raises
        ------
        StoreError
            If the bytes cannot be written (full disk, no permission).
        """
        arrays = {name: self.array(f"{group}/{name}") for name in names}
        with writing(self.backend, group, arrays, number, cached) as made:
            yield made

    def create_image(
        self, path: str, shape: tuple[int, ...], tile: int, bunit: str | None, fill: float | None = None
    ) -> None:
        """Create an empty mosaic plane; its shards are the tiles, ``fill`` replaces the plane's usual empty value."""
        import zarr

        name = path.rsplit("/", 1)[1]
        kind = layout.PLANES[name]
        chunk = layout.inner_chunk(tile)
        dims = ("y", "x") if len(shape) == 2 else ("plane", "y", "x")
        lead = (1,) * (len(shape) - 2)
        attrs: dict[str, Any] = {"units": layout.unit_of(name, bunit), "long_name": kind.long_name}
        zarr.create_array(
            self.backend.zarr, name=path, shape=shape, dtype=kind.dtype, overwrite=True,
            fill_value=kind.fill if fill is None else fill, chunks=(*lead, chunk, chunk), shards=(*lead, tile, tile),
            compressors=_codec(kind.dtype),
            dimension_names=dims, attributes=attrs | (layout.flag_attrs() if name == "dq" else {}),
        )  # fmt: skip
        _forget_arrays()

    # ---------------------------------------------------------------- documents
    def document(self, kind: type[D], name: str | None = None) -> D | None:
        """Return a document, or None where the stage has not finished."""
        key = f"documents/{name or kind.kind}.json"
        data = self.backend.get(key)
        return None if data is None else kind.from_json(data, f"{self.url}/{key}")

    def commit(self, document: Document, name: str | None = None) -> None:
        """Write a document; only now does the stage's result exist."""
        self.backend.put(f"documents/{name or document.kind}.json", document.to_json())

    def retract(self, name: str) -> None:
        """Remove a document before its arrays change."""
        self.backend.remove([f"documents/{name}.json"])


def _codec(dtype: str) -> tuple[Any, ...]:
    """How chunks are packed; each carries its checksum."""
    from zarr.codecs import BloscCodec, Crc32cCodec

    packer = BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle", typesize=np.dtype(dtype).itemsize)
    return packer, Crc32cCodec()


def _table_codec() -> tuple[Any, ...]:
    """How rows of tables are packed."""
    from zarr.codecs import Crc32cCodec, ZstdCodec

    return ZstdCodec(), Crc32cCodec()


def _spans(chosen: Sequence[int | slice], shape: Sequence[int]) -> tuple[list[tuple[int, int]], list[bool]]:
    """First and last place along each axis, and whether the axis is kept."""
    spans = []
    for part, length in zip(chosen, shape, strict=True):
        start, stop, _ = part.indices(length) if isinstance(part, slice) else (part, part + 1, 1)
        if not 0 <= start < stop <= length:
            raise IndexError(f"{part} is not within 0..{length}")
        spans.append((start, stop))
    return spans, [isinstance(part, slice) for part in chosen]


def _open(url: str, options: Options, path: str):  # type: ignore[no-untyped-def]
    import zarr
    from zarr.errors import NodeNotFoundError

    try:
        return zarr.open_array(Backend(url, options).zarr, path=path, mode="r+", zarr_format=3)
    except (FileNotFoundError, NodeNotFoundError) as error:
        raise StoreError(f"{url} has no array {path}") from error


_array = lru_cache(maxsize=256)(_open)


@lru_cache(maxsize=256)
def _sharding(url: str, options: Options, path: str) -> Sharding | None:
    """How an array is cut, if it is one of pixels."""
    return Sharding.of(_array(url, options, path))


def _forget_arrays() -> None:
    """Arrays that were made anew are opened anew."""
    _array.cache_clear()
    _sharding.cache_clear()
