"""Cubes into the store: a few shards of a stack at a time, whichever files their integrations lie in (spec others §0)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.formats.association import Member
from streamimg3.formats.ingest_planes import image_memory, nan_mask, store_images
from streamimg3.formats.sources import CubePlane, Opener, Source, open_sources
from streamimg3.store import ExposureRecord, Observation
from streamimg3.store.cubes import CubeStack, Part, cube_stacks
from streamimg3.store.layout import COLUMNS, FLAT_PLANES, NAN_PLANES, PLANES, TIMES, cube_chunking

PIECE = 2**19  # most pixels of small integrations that are read together
_PIXEL = 28  # bytes of one pixel beside the planes: flags on their way through float64, a chunk encoded, masks
_OPEN = 4  # files at a time; chunks of large images are of no more integrations


def block_memory(stack: CubeStack) -> int:
    """Return the bytes that ingesting a batch of shards takes, however many integrations there are.

    Whole chunks of all planes, and what makes them.
    """
    deep = len({p for r in stack.records for p in r.planes if p not in FLAT_PLANES})
    flat = len({p for r in stack.records for p in r.planes if p in FLAT_PLANES})
    return max(piece_pixels(stack) * (4 * deep + _PIXEL), image_memory(stack.shape, flat))


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
    """The members of a stack, of which the last few are open: a chunk may have integrations of several."""

    members: Mapping[int, Member]
    options: Mapping[str, str]
    opener: Opener = open_sources
    _open: dict[int, tuple[Source, ExitStack]] = field(default_factory=dict)

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *exc: object) -> None:
        while self._open:
            self._close_oldest()

    def _close_oldest(self) -> None:
        _, held = self._open.pop(next(iter(self._open)))
        held.close()

    def source(self, record: ExposureRecord) -> Source:
        """Return an exposure with its file open."""
        if record.index not in self._open:
            if len(self._open) == _OPEN:
                self._close_oldest()
            held = ExitStack()
            (source,) = held.enter_context(self.opener(self.members[record.index], self.options))
            self._open[record.index] = source, held
        return self._open[record.index][0]

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
    cached: bool = True,
) -> None:
    """Write all planes of a batch of shards and leave the digests of its integrations as a blob.

    Parameters
    ----------
    obs : Observation
        A store with the empty stack.
    order : sequence of (Member, sequence of ExposureRecord)
        All members and their exposures.
    where : tuple of int
        Rows and columns of the stack's images, number of the batch.
    options : mapping
        Storage options of the files' URLs.
    opener : callable
        Opens a file.
    cached : bool
        See `Observation.shards`.

    Raises
    ------
    InputError
        If a file cannot be read.
    """
    shape, number = where[:2], where[2]
    (stack,) = (s for s in cube_stacks([r for _, records in order for r in records]) if s.shape == shape)
    members = {r.index: member for member, records in order for r in records}
    first, last = stack.batches()[number]
    parts = stack.parts(first, last)
    with _Files(members, options, opener) as files:
        digests = _store_deep(obs, stack, (first, last), files, cached)
        flat = {p.record.index: _store_flat(obs, stack, p.record, files) for p in parts if p.first == 0}
    found = {"integrations": digests, "flat": flat}
    obs.backend.put(_blob(stack, number), json.dumps(found).encode())


def _store_deep(
    obs: Observation, stack: CubeStack, span: tuple[int, int], files: _Files, cached: bool
) -> dict[int, dict[str, list[str]]]:
    """Stream the planes that every integration has, all of them side by side; returns SHA-256 by exposure, plane, integration."""
    parts = stack.parts(*span)
    planes = [p for p in PLANES if p not in FLAT_PLANES and any(p in part.record.planes for part in parts)]
    hashes = {p: [hashlib.sha256() for _ in range(*span)] for p in planes}
    depth, high, _ = cube_chunking(stack.shape, stack.count)[1]
    for number, y0 in enumerate(range(0, stack.shape[0], high)):
        rows = y0, min(y0 + high, stack.shape[0])
        with ExitStack() as held:
            shards = {
                n: held.enter_context(obs.shards(stack.path, (*planes, "nan"), (n, number, 0), cached))
                for n in range(span[0] // depth, -(-span[1] // depth))
            }
            for piece in _chunk_pieces(stack, span, rows):
                parts_here = stack.parts(*piece.span)
                blocks = _read_piece(planes, parts_here, piece, files)
                for name, block in blocks.items():
                    for values, digest in zip(block, hashes[name][piece.span[0] - span[0] :], strict=False):
                        digest.update(values.data)
                blocks["nan"] = _nan_mask(blocks, parts_here)
                at, within = divmod(piece.span[0], depth)
                for name, block in blocks.items():
                    shards[at][name].put((within, piece.y0 - y0, 0), block)
    return {
        p.record.index: {
            name: [h.hexdigest() for h in hashes[name][p.start : p.start + p.last - p.first]]
            for name in planes
            if name in p.record.planes
        }
        for p in parts
    }


@dataclass(frozen=True)
class _Piece:
    """Whole chunks that are read together: integrations of the stack, and rows."""

    span: tuple[int, int]
    y0: int
    y1: int
    columns: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.span[1] - self.span[0], self.y1 - self.y0, self.columns


def piece_pixels(stack: CubeStack) -> int:
    """Return the most pixels of a plane that are read together: a few chunks of all columns, or small integrations whole."""
    (deep, cy, _), (_, high, width) = cube_chunking(stack.shape, stack.count)
    row = deep * cy * width  # of chunks
    return deep * high * width if deep * high * width <= PIECE else row * max(1, PIECE // row)


def _chunk_pieces(stack: CubeStack, span: tuple[int, int], rows: tuple[int, int]) -> Iterator[_Piece]:
    (deep, _, _), (_, _, width) = cube_chunking(stack.shape, stack.count)
    high = piece_pixels(stack) // (deep * width)
    for y0 in range(*rows, high):  # the same rows of all integrations: what belongs to them is read once
        for first in range(*span, deep):
            yield _Piece((first, min(first + deep, span[1])), y0, min(y0 + high, rows[1]), stack.shape[1])


def _read_piece(
    planes: Sequence[str], parts: Sequence[Part], piece: _Piece, files: _Files
) -> dict[str, NDArray[np.generic]]:
    """Read the same chunks of all planes; exposures without one of them leave it empty, and a plane of none is left out."""
    blocks: dict[str, NDArray[np.generic]] = {}
    for part in parts:
        here = slice(part.start, part.start + part.last - part.first)
        for name in planes:
            if name not in part.record.planes:
                continue
            plane = files.plane(part.record, name)
            found = _read(part, plane, (part.first, part.last), (piece.y0, piece.y1))
            if found.shape == piece.shape:
                blocks[name] = found
                continue
            if name not in blocks:
                blocks[name] = np.full(piece.shape, PLANES[name].fill, PLANES[name].dtype)
            blocks[name][here] = found
    return blocks


def _nan_mask(blocks: Mapping[str, NDArray[np.generic]], parts: Sequence[Part]) -> NDArray[np.uint8]:
    """Return 1 where a plane is NaN, of the exposures that have it."""
    mask = np.zeros(blocks["sci"].shape, np.uint8)
    for p in parts:
        here = slice(p.start, p.start + p.last - p.first)
        mask[here] = nan_mask([blocks[n][here] for n in NAN_PLANES if n in p.record.planes])
    return mask


def _read(part: Part, plane: CubePlane, span: tuple[int, int], rows: tuple[int, int]) -> NDArray[np.generic]:
    try:
        return plane.read(*span, *rows)
    except (OSError, EOFError, ValueError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        where = f"{plane.name} integrations {span[0]}-{span[1]} rows {rows[0]}-{rows[1]}"
        raise InputError(f"{part.record.url}: cannot read {where} ({line}): fetch the file again") from error


def _store_flat(obs: Observation, stack: CubeStack, record: ExposureRecord, files: _Files) -> dict[str, str]:
    """Stream the planes that all integrations of an exposure share; returns the SHA-256 of each."""
    source = files.source(record)
    shared = [(name, source.plane(name)) for name in record.planes if name in FLAT_PLANES]
    planes = [plane for _, plane in shared if plane is not None]
    if len(planes) < len(shared):
        raise InputError(f"{record.url}: has changed since its headers were read: run again")
    return store_images(obs, stack.path, record, planes) if planes else {}


def completed(obs: Observation, records: Sequence[ExposureRecord]) -> list[ExposureRecord]:
    """Return the records with the checksums of the cubes among them, from the blobs that the batches have left.

    The checksum of a plane is the SHA-256 of its integrations' SHA-256 digests, so that it depends neither on shards nor
    on who wrote them.
    """
    sums: dict[int, dict[str, str]] = {}
    for stack in cube_stacks(records):
        joined = {(r.index, p): hashlib.sha256() for r in stack.records for p in r.planes if p not in FLAT_PLANES}
        for number in range(len(stack.batches())):
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
    """Return the keys of what the batches leave behind until the ingest is finished."""
    return [_blob(stack, number) for stack in cube_stacks(records) for number in range(len(stack.batches()))]


def _blob(stack: CubeStack, number: int) -> str:
    return f"ingest/{stack.shape[0]}x{stack.shape[1]}-{number:06d}.json"
