"""A half-open rectangle of whole pixels."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True, slots=True)
class Box:
    """Rows ``y0..y1`` and columns ``x0..x1`` (upper ends excluded); never empty.

    Parameters
    ----------
    y0, x0, y1, x1 : int
        Half-open limits in pixels; they may be negative.

    Raises
    ------
    ValueError
        If the box would hold no pixel.

    Examples
    --------
    >>> Box(0, 0, 4, 6).intersect(Box(2, 5, 9, 9))
    Box(y0=2, x0=5, y1=4, x1=6)
    """

    y0: int
    x0: int
    y1: int
    x1: int

    def __post_init__(self) -> None:
        if self.y0 >= self.y1 or self.x0 >= self.x1:
            raise ValueError(f"empty box {self.y0, self.x0, self.y1, self.x1}")

    @classmethod
    def of_shape(cls, shape: tuple[int, int]) -> Box:
        """Return the box that covers a whole ``(ny, nx)`` array."""
        return cls(0, 0, shape[0], shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.y1 - self.y0, self.x1 - self.x0

    @property
    def size(self) -> int:
        """Number of pixels."""
        return (self.y1 - self.y0) * (self.x1 - self.x0)

    @property
    def slices(self) -> tuple[slice, slice]:
        """Slices that cut this box out of an array whose pixel (0, 0) is its first element."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    def intersect(self, other: Box) -> Box | None:
        """Return the pixels in both boxes, or None where there are none."""
        y0, x0 = max(self.y0, other.y0), max(self.x0, other.x0)
        y1, x1 = min(self.y1, other.y1), min(self.x1, other.x1)
        return Box(y0, x0, y1, x1) if y0 < y1 and x0 < x1 else None

    def union(self, other: Box) -> Box:
        """Return the smallest box that holds both."""
        return Box(min(self.y0, other.y0), min(self.x0, other.x0), max(self.y1, other.y1), max(self.x1, other.x1))

    def shift(self, dy: int, dx: int) -> Box:
        """Return the box moved by whole pixels."""
        return Box(self.y0 + dy, self.x0 + dx, self.y1 + dy, self.x1 + dx)

    def grow(self, n: int) -> Box:
        """Return the box with ``n`` more pixels on every side."""
        return Box(self.y0 - n, self.x0 - n, self.y1 + n, self.x1 + n)

    def within(self, outer: Box) -> tuple[slice, slice]:
        """Return slices that cut this box out of an array that covers ``outer``."""
        return self.shift(-outer.y0, -outer.x0).slices

    def as_tuple(self) -> tuple[int, int, int, int]:
        """Return ``(y0, x0, y1, x1)``."""
        return self.y0, self.x0, self.y1, self.x1
