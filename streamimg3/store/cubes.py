"""Which integrations of which exposures lie where in a stack of cubes, and the blocks in which it is worked through."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from streamimg3.store.exposure import ExposureRecord, stack_path
from streamimg3.store.layout import cube_chunking

_TOGETHER, _LEAST, _FILES = 5, 4, 2  # most shards of a batch, batches there should be, most exposures in one of several


@dataclass(frozen=True)
class Part:
    """Consecutive integrations ``first..last`` of one exposure, from place ``start`` of a block on."""

    record: ExposureRecord
    first: int
    last: int
    start: int


@dataclass(frozen=True)
class CubeStack:
    """The integrations of all cubes of one image shape, one exposure after the other.

    Parameters
    ----------
    shape : tuple of int
        ``(ny, nx)``.
    records : tuple of ExposureRecord
        The cubes, in the stack's order.
    """

    shape: tuple[int, int]
    records: tuple[ExposureRecord, ...]

    @property
    def path(self) -> str:
        """Group of the stack in the store."""
        return stack_path(self.shape, cubes=True)

    @property
    def count(self) -> int:
        """Number of integrations."""
        return self.records[-1].first + self.records[-1].integrations

    def blocks(self) -> list[tuple[int, int]]:
        """Return the integrations ``(first, last)`` of each shard; a task that writes takes whole ones."""
        _, (depth, _, _) = cube_chunking(self.shape, self.count)
        return [(first, min(first + depth, self.count)) for first in range(0, self.count, depth)]

    def batches(self) -> list[tuple[int, int]]:
        """Return the integrations ``(first, last)`` that are brought in together: a few shards of one or two exposures.

        Whatever belongs to the same rows of all of them is then needed once; there are enough batches to share out.
        """
        blocks = self.blocks()
        most = min(_TOGETHER, -(-len(blocks) // _LEAST))
        found = [blocks[0]]
        for first, last in blocks[1:]:
            begin, shards = found[-1][0], -(-(last - found[-1][0]) // (blocks[0][1] - blocks[0][0]))
            if shards <= most and len(self.parts(begin, last)) <= _FILES:
                found[-1] = begin, last
            else:
                found.append((first, last))
        return found

    def parts(self, first: int, last: int) -> tuple[Part, ...]:
        """Return what some integrations of the stack are made of, in order."""
        at = bisect_right(self.records, first, key=lambda r: r.first) - 1
        found = []
        for record in self.records[at:]:
            if record.first >= last:
                break
            begin, end = max(first, record.first), min(last, record.first + record.integrations)
            found.append(Part(record, begin - record.first, end - record.first, begin - first))
        return tuple(found)


def cube_stacks(records: Sequence[ExposureRecord]) -> tuple[CubeStack, ...]:
    """Return the stacks that the cubes among some exposures make up."""
    cubes = [r for r in records if r.integrations]
    shapes = dict.fromkeys(r.shape for r in cubes)
    return tuple(CubeStack(shape, tuple(r for r in cubes if r.shape == shape)) for shape in shapes)
