"""Planes of reference stars and science exposures ready for alignment and subtraction: bad pixels filled, moved by a shift."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamimg3.geometry import Box
from streamimg3.kernels.align import Shift, shift_plane
from streamimg3.kernels.bad_fill import NON_SCIENCE, Filling, fill_bad
from streamimg3.store import Exposure
from streamimg3.store.coron_documents import AlignedReferences, AlignRefsDocument
from streamimg3.store.flags import bad_bits
from streamimg3.store.seen_cube import SeenCube

F4 = NDArray[np.float32]
PLANE = 32  # bytes per pixel of an image while it is read and filled: itself, its flags and what they are made from


@dataclass(frozen=True)
class Recipe:
    """How planes are made ready.

    Parameters
    ----------
    box : int
        Side of the square that a bad pixel is filled from.
    bad : int
        Flags of bad pixels.
    compat : bool
        As jwst 3.0.0 at the low edges.
    filled : bool
        Bad pixels are filled at all.
    """

    box: int = 3
    bad: int = 1
    compat: bool = False
    filled: bool = True

    def filling(self, exposure: Exposure) -> Filling:
        """Return what is bad in an exposure: pixels outside the field become 0 for MIRI."""
        blank = NON_SCIENCE if (exposure.record.instrument or "").upper() == "MIRI" else 0
        return Filling(self.box, self.bad, blank, self.compat)

    @property
    def reach(self) -> int:
        """Rows around a band that its filled pixels depend on."""
        return self.box // 2 if self.filled else 0


def recipe_of(document: AlignRefsDocument | None) -> Recipe:
    """Return how the planes of an observation were made ready for alignment, if they were."""
    if document is None or document.status != "COMPLETE":
        return Recipe(filled=False)
    p = document.parameters
    return Recipe(int(p["median_box_length"]), flags_of(str(p["bad_bits"] or "")), bool(p["compat"]))


def flags_of(text: str) -> int:
    """Return the flags that a text names.

    Examples
    --------
    >>> flags_of("DO_NOT_USE, SATURATED"), flags_of("")
    (3, 0)
    """
    return bad_bits(f"~{text.replace(',', '+')}") if text.strip() else 0


def ready(seen: SeenCube, first: int, last: int, box: Box, recipe: Recipe) -> F4:
    """Return some integrations of an exposure with their bad pixels filled.

    Parameters
    ----------
    seen : SeenCube
        The exposure.
    first, last : int
        Integrations, half-open.
    box : Box
        Whole rows.
    recipe : Recipe
        What is filled.

    Returns
    -------
    ndarray of float32, shape (last - first, rows, columns)
        Finite everywhere, or NaN where nothing is filled.
    """
    ny, nx = seen.exposure.record.shape
    whole = Box(0, 0, ny, nx)
    grown = whole if recipe.compat and recipe.filled else box.grow(recipe.reach).intersect(whole) or box
    grown = Box(grown.y0, 0, grown.y1, nx)
    planes = seen.floats("sci", first, last, grown)
    if recipe.filled:
        if not recipe.compat:
            planes[np.isinf(planes)] = np.nan
        fill_bad(planes, seen.flags(first, last, grown), recipe.filling(seen.exposure))
    found: F4 = planes[:, box.y0 - grown.y0 : box.y1 - grown.y0]
    return found


def moved(plane: F4, shift: Shift) -> F4:
    """Return a reference moved onto the science exposure that it lies to as `shift` says: float32, shape of `plane`."""
    return shift_plane(plane, (-shift[0], -shift[1])).astype(np.float32)


def shifts_to(found: AlignedReferences, target: int, count: int) -> list[Shift]:
    """Return the shifts of the `count` references to one target."""
    span = slice(target * count, (target + 1) * count)
    return list(zip(found.y[span], found.x[span], strict=True))
