"""What coronagraphy works on: science exposures, and the integrations of all reference stars as one stack that is never copied."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.geometry import Box
from streamimg3.store import Exposure, Observation
from streamimg3.store.documents import AssociationDocument, OutlierDocument
from streamimg3.store.seen_cube import SeenCube

F4 = NDArray[np.float32]


@dataclass(frozen=True)
class Stack:
    """Integrations of several cubes, one exposure after the other, as if they were one cube (spec others §3.3).

    Parameters
    ----------
    exposures : tuple of Exposure
        Cubes of one image shape.
    judged : bool
        Whether outlier_detection has run.
    """

    exposures: tuple[Exposure, ...]
    judged: bool

    @property
    def starts(self) -> list[int]:
        """Place of the first integration of each exposure, and the number of all."""
        places = [0]
        for exposure in self.exposures:
            places.append(places[-1] + exposure.depth)
        return places

    @property
    def count(self) -> int:
        """Number of integrations."""
        return self.starts[-1]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of an image."""
        return self.exposures[0].record.shape

    def parts(self, first: int, last: int) -> Iterator[tuple[SeenCube, int, int]]:
        """Yield the exposures that some integrations belong to, with the first and the last of each (half-open)."""
        starts = self.starts
        for number in range(bisect_right(starts, first) - 1, len(self.exposures)):
            start, stop = max(first, starts[number]), min(last, starts[number + 1])
            if start >= stop:
                break
            seen = SeenCube(self.exposures[number], self.judged)
            yield seen, start - starts[number], stop - starts[number]

    def floats(self, plane: str, first: int, last: int, box: Box) -> F4:
        """Return a window of a plane of some integrations: float32, shape ``(last - first, rows, columns)``."""
        return np.concatenate([seen.floats(plane, a, b, box) for seen, a, b in self.parts(first, last)])

    def flags(self, first: int, last: int, box: Box) -> NDArray[np.uint32]:
        """Return a window of the flags of some integrations: uint32, shape ``(last - first, rows, columns)``."""
        return np.concatenate([seen.flags(a, b, box) for seen, a, b in self.parts(first, last)])


@dataclass(frozen=True)
class Cast:
    """The exposures of a coronagraphic observation by their roles.

    ``science`` are taken one by one, ``psf`` is the stack of the reference stars.
    """

    science: tuple[Exposure, ...]
    psf: Stack

    @property
    def everything(self) -> tuple[Exposure, ...]:
        """All exposures in the store's order."""
        return tuple(sorted((*self.science, *self.psf.exposures), key=lambda e: e.record.index))


def cast_of(obs: Observation) -> Cast:
    """Return the exposures of a store by their roles in the association.

    Raises
    ------
    InputError
        If there is no science exposure or no reference star, one is no cube, or their images differ in shape.
    """
    document = obs.document(AssociationDocument)
    exposures = obs.exposures(aligned=False)
    roles = [m.exptype.strip().lower() for m in document.exposures] if document is not None else []
    if len(roles) != len(exposures):
        raise InputError(
            f"{obs.url}: its association and its exposures do not belong together: give the coron3 association"
        )
    for exposure in exposures:
        if not exposure.record.integrations:
            raise InputError(
                f"{exposure.record.url}: is no cube of integrations: coron3 takes _calints files; leave it out"
            )
    psf, science = ([e for e, r in zip(exposures, roles, strict=True) if r == kind] for kind in ("psf", "science"))
    if not psf or not science:
        raise InputError(
            f"{document.table or obs.url if document else obs.url}: has no member of exptype {'science' if psf else 'psf'}:"
            " coron3 subtracts reference stars (psf) from science exposures, and an association (.json) says which are which"
        )
    shapes = {e.record.shape: e.record.url for e in reversed(exposures)}
    if len(shapes) > 1:
        listed = "; ".join(f"{ny} x {nx} in {url}" for (ny, nx), url in shapes.items())
        raise InputError(f"the exposures have different shapes ({listed}): references must have the science's pixels")
    return Cast(tuple(science), Stack(tuple(psf), judged(obs)))


def judged(obs: Observation) -> bool:
    """Whether the exposures of a store carry flags of outlier_detection."""
    found = obs.document(OutlierDocument)
    return found is not None and found.status == "COMPLETE"
