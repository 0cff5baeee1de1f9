"""Cubes into the store: one shard of a stack at a time, whichever files its integrations lie in (spec others §0)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.formats.association import Member
from streamimg3.formats.sources import CubePlane, Opener, Source, open_sources
from streamimg3.geometry import Box
from streamimg3.store import ExposureRecord, Observation
from streamimg3.store.cubes import CubeStack, Part, cube_stacks
from streamimg3.store.layout import COLUMNS, FLAT_PLANES, NAN_PLANES, PLANES, TIMES, chunking, cube_chunking

PIECE = 2**20  # pixels read from a file at a time: flags pass through float64
_PIECE_BYTES = 40  # of one such pixel: as in the file, scaled, converted
_BESIDES = 16 * 2**20


def block_memory(stack: CubeStack) -> int:
    """Return the bytes that ingesting one shard of a stack takes, however many integrations there are.

    The block of one plane and the NaN mask, and besides either a piece of the file, or the encoded chunks, the shard made
    of them, its bytes and a mask in the making; and what else was seen to be in use beyond that.
    """
    _, deep = cube_chunking(stack.shape, stack.count)
    _, flat = chunking(stack.shape)
    pixels = max(math.prod(deep), math.prod(flat))
    return pixels * 5 + max(pixels * 13, PIECE * _PIECE_BYTES) + _BESIDES


def create_cubes(
    obs: Observation, stack: CubeStack, columns: Mapping[str, NDArray[np.generic]], bunit: str | None
) -> None:
    """Create the empty planes of a stack and write what is known of each integration.

    Parameters
    ----------
    obs : Observation
        A store.
    stack : CubeStack
        What is to come.
    columns : mapping
        Values of ``layout.COLUMNS``, each of shape ``(stack.count,)``.
    bunit : str or None
        Unit of the images.
    """
    planes = dict.fromkeys(p for r in stack.records for p in r.planes)
    deep = [p for p in planes if p not in FLAT_PLANES]
    flat = [p for p in planes if p in FLAT_PLANES]
    obs.create_cubes(stack.shape, stack.count, dict.fromkeys((*deep, "nan"), bunit))
    if flat:
        obs.create_stack(stack.shape, len(stack.records), dict.fromkeys(flat, bunit), cubes=True)
    obs.create_columns(stack.shape, columns)


def integration_columns(
    stack: CubeStack, numbers: Sequence[NDArray[np.int32]], times: Sequence[NDArray[np.float64]]
) -> dict[str, NDArray[np.generic]]:
    """Return the columns of a stack from those of its exposures (in the stack's order)."""
    index = [np.full(r.integrations, r.index, np.int32) for r in stack.records]
    joined = np.concatenate(times)
    values: list[NDArray[np.generic]] = [
        np.concatenate(index),
        np.concatenate(numbers),
        *(joined[:, i] for i in range(len(TIMES))),
    ]
    return dict(zip(COLUMNS, values, strict=True))


@dataclass
class _Files:
    """The members of a stack, of which one is open at a time."""

    members: Mapping[int, Member]
    options: Mapping[str, str]
    opener: Opener = open_sources
    _held: ExitStack = field(default_factory=ExitStack)
    _open: tuple[int, Source] | None = None

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *exc: object) -> None:
        self._held.close()

    def source(self, record: ExposureRecord) -> Source:
        """Return an exposure with its file open."""
        if self._open is None or self._open[0] != record.index:
            self._held.close()
            (source,) = self._held.enter_context(self.opener(self.members[record.index], self.options))
            self._open = record.index, source
        return self._open[1]

    def plane(self, record: ExposureRecord, name: str) -> CubePlane:
        """Return a plane of a cube."""
        cube = self.source(record).cube
        found = next((p for p in cube.planes if p.name == name), None) if cube else None
        if cube is None or found is None or cube.count != record.integrations:
            raise InputError(f"{record.url}: has changed since its headers were read: run again")
        return found


def store_block(
    obs: Observation,
    order: Sequence[tuple[Member, Sequence[ExposureRecord]]],
    where: tuple[int, int, int],
    options: Mapping[str, str],
    opener: Opener = open_sources,
) -> None:
    """Write all planes of one shard and leave the digests of its integrations as a blob.

    Parameters
    ----------
    obs : Observation
        A store with the empty stack.
    order : sequence of (Member, sequence of ExposureRecord)
        All members and their exposures.
    where : tuple of int
        Rows and columns of the stack's images, number of the shard.
    options : mapping
        Storage options of the files' URLs.
    opener : callable
        Opens a file.

    Raises
    ------
    InputError
        If a file cannot be read.
    """
    shape, number = where[:2], where[2]
    (stack,) = (s for s in cube_stacks([r for _, records in order for r in records]) if s.shape == shape)
    members = {r.index: member for member, records in order for r in records}
    first, last = stack.blocks()[number]
    parts = stack.parts(first, last)
    with _Files(members, options, opener) as files:
        digests = _store_deep(obs, stack, (first, last), files)
        flat = {p.record.index: _store_flat(obs, stack, p.record, files) for p in parts if p.first == 0}
    found = {"integrations": digests, "flat": flat}
    obs.backend.put(_blob(stack, number), json.dumps(found).encode())


def _store_deep(
    obs: Observation, stack: CubeStack, span: tuple[int, int], files: _Files
) -> dict[int, dict[str, list[str]]]:
    """Stream the planes that every integration has; returns SHA-256 by exposure, plane and integration."""
    ny, nx = stack.shape
    parts = stack.parts(*span)
    planes = [p for p in PLANES if p not in FLAT_PLANES and any(p in part.record.planes for part in parts)]
    hashes = {p: [hashlib.sha256() for _ in range(*span)] for p in planes}
    rows = cube_chunking(stack.shape, stack.count)[1][1]
    for y0 in range(0, ny, rows):
        box = Box(y0, 0, min(y0 + rows, ny), nx)
        nan = np.zeros((span[1] - span[0], box.y1 - y0, nx), np.uint8)
        for turn, name in enumerate(planes):
            # There and back again, so that few files are opened twice.
            block = _read_block(name, parts[:: 1 - 2 * (turn % 2)], (nan.shape, y0), files)
            for values, digest in zip(block, hashes[name], strict=True):
                digest.update(values.data)
            if name in NAN_PLANES:
                _mark_nan(nan, block, [p for p in parts if name in p.record.planes])
            obs.write(f"{stack.path}/{name}", (slice(*span),), box, block)
            del block
        obs.write(f"{stack.path}/nan", (slice(*span),), box, nan)
    return {
        p.record.index: {
            name: [h.hexdigest() for h in hashes[name][p.start : p.start + p.last - p.first]]
            for name in planes
            if name in p.record.planes
        }
        for p in parts
    }


def _read_block(
    name: str, parts: Sequence[Part], window: tuple[tuple[int, ...], int], files: _Files
) -> NDArray[np.generic]:
    """Read rows from ``window[1]`` on of a plane of the parts into an array of shape ``window[0]``, piece by piece."""
    shape, y0 = window
    kind = PLANES[name]
    whole = all(name in part.record.planes for part in parts)
    block = np.empty(shape, kind.dtype) if whole else np.full(shape, kind.fill, kind.dtype)
    for part in parts:
        if name in part.record.planes:
            plane = files.plane(part.record, name)
            for (i0, i1), (r0, r1) in _pieces(part.last - part.first, shape[1], shape[2]):
                found = _read(part, plane, (part.first + i0, part.first + i1), (y0 + r0, y0 + r1))
                block[part.start + i0 : part.start + i1, r0:r1] = found
    return block


def _pieces(count: int, rows: int, columns: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Cut a block into pieces that are contiguous in a file: several integrations, or bands of rows of one."""
    deep, high = max(1, PIECE // (rows * columns)), max(1, min(rows, PIECE // columns))
    for i in range(0, count, deep):
        for r in range(0, rows, high):
            yield (i, min(i + deep, count)), (r, min(r + high, rows))


def _read(part: Part, plane: CubePlane, span: tuple[int, int], rows: tuple[int, int]) -> NDArray[np.generic]:
    try:
        return plane.read(*span, *rows)
    except (OSError, EOFError, ValueError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        where = f"{plane.name} integrations {span[0]}-{span[1]} rows {rows[0]}-{rows[1]}"
        raise InputError(f"{part.record.url}: cannot read {where} ({line}): fetch the file again") from error


def _mark_nan(nan: NDArray[np.uint8], block: NDArray[np.generic], parts: Sequence[Part]) -> None:
    """Add the NaN pixels of a plane to the mask, of the exposures that have it."""
    for p in parts:
        span = slice(p.start, p.start + p.last - p.first)
        np.bitwise_or(nan[span], np.isnan(block[span]), out=nan[span], casting="unsafe")


def _store_flat(obs: Observation, stack: CubeStack, record: ExposureRecord, files: _Files) -> dict[str, str]:
    """Stream the planes that all integrations of an exposure share; returns the SHA-256 of each."""
    ny, nx = stack.shape
    rows = chunking(stack.shape)[1][0]
    sums = {}
    for name in (p for p in record.planes if p in FLAT_PLANES):
        plane = files.source(record).plane(name)
        if plane is None:
            raise InputError(f"{record.url}: has changed since its headers were read: run again")
        digest = hashlib.sha256()
        for y0 in range(0, ny, rows):
            box = Box(y0, 0, min(y0 + rows, ny), nx)
            band = np.empty((box.y1 - y0, nx), PLANES[name].dtype)
            for _, (r0, r1) in _pieces(1, *band.shape):
                band[r0:r1] = plane.read(y0 + r0, y0 + r1)
            digest.update(band.data)
            obs.write(f"{stack.path}/{name}", (record.row,), box, band)
        sums[name] = digest.hexdigest()
    return sums


def completed(obs: Observation, records: Sequence[ExposureRecord]) -> list[ExposureRecord]:
    """Return the records with the checksums of the cubes among them, from the blobs that the shards have left.

    The checksum of a plane is the SHA-256 of its integrations' SHA-256 digests, so that it depends neither on shards nor
    on who wrote them.
    """
    sums: dict[int, dict[str, str]] = {}
    for stack in cube_stacks(records):
        joined = {(r.index, p): hashlib.sha256() for r in stack.records for p in r.planes if p not in FLAT_PLANES}
        for number in range(len(stack.blocks())):
            found = json.loads(obs.backend.get(_blob(stack, number)) or b"{}")
            for index, planes in found["integrations"].items():
                for name, digests in planes.items():
                    joined[int(index), name].update(bytes.fromhex("".join(digests)))
            for index, flat in found["flat"].items():
                sums.setdefault(int(index), {}).update(flat)
        for (at, name), digest in joined.items():
            sums.setdefault(at, {})[name] = digest.hexdigest()
    return [replace(r, checksums=r.checksums | sums[r.index]) if r.index in sums else r for r in records]


def blobs(records: Sequence[ExposureRecord]) -> list[str]:
    """Return the keys of what the shards leave behind until the ingest is finished."""
    return [_blob(stack, number) for stack in cube_stacks(records) for number in range(len(stack.blocks()))]


def _blob(stack: CubeStack, number: int) -> str:
    return f"ingest/{stack.shape[0]}x{stack.shape[1]}-{number:06d}.json"
