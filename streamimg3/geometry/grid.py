"""A shape cut into square tiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from streamimg3.geometry.box import Box


@dataclass(frozen=True, order=True, slots=True)
class Tile:
    """One tile of a grid: its row and column in the grid and the pixels it owns."""

    row: int
    col: int
    box: Box

    @property
    def key(self) -> str:
        """A name that is unique in the grid and sorts by row, then column."""
        return f"r{self.row:04d}c{self.col:04d}"


@dataclass(frozen=True)
class TileGrid:
    """A ``(ny, nx)`` shape cut into tiles of ``size`` pixels; the last row and column may be smaller.

    Examples
    --------
    >>> [t.key for t in TileGrid((100, 150), 100)]
    ['r0000c0000', 'r0000c0001']
    """

    shape: tuple[int, int]
    size: int

    def __post_init__(self) -> None:
        if min(*self.shape, self.size) < 1:
            raise ValueError(f"a grid needs a positive shape and tile size, not {self.shape} and {self.size}")

    @property
    def counts(self) -> tuple[int, int]:
        """Number of tile rows and tile columns."""
        return -(-self.shape[0] // self.size), -(-self.shape[1] // self.size)

    def __len__(self) -> int:
        return self.counts[0] * self.counts[1]

    def __iter__(self) -> Iterator[Tile]:
        rows, cols = self.counts
        return (self.tile(r, c) for r in range(rows) for c in range(cols))

    def tile(self, row: int, col: int) -> Tile:
        """Return the tile at a grid position."""
        y0, x0 = row * self.size, col * self.size
        return Tile(row, col, Box(y0, x0, min(y0 + self.size, self.shape[0]), min(x0 + self.size, self.shape[1])))

    def touching(self, box: Box) -> Iterator[Tile]:
        """Yield the tiles that share at least one pixel with ``box``, in row-major order."""
        inside = box.intersect(Box.of_shape(self.shape))
        if inside is None:
            return
        for r in range(inside.y0 // self.size, (inside.y1 - 1) // self.size + 1):
            for c in range(inside.x0 // self.size, (inside.x1 - 1) // self.size + 1):
                yield self.tile(r, c)
