"""Stamps on disk or behind a URL: one array, one FITS file, or a FITS file each."""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.formats.cutout_headers import Heads
from streamimg3.formats.cutouts import BLOCK, Positions, Stamps, batches, read
from streamimg3.formats.names import absolute, is_remote
from streamimg3.store import Observation
from streamimg3.store.layout import PLANES

_SCHEMA = "streamimg3/cutouts"


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
    order = np.lexsort((stamps.corner[:, 1] // BLOCK, stamps.corner[:, 0] // BLOCK))
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
