"""Documents of coronagraphy: weights, alignment of reference stars, subtraction, contrast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from streamimg3.store.documents import Document, StageCost, UsedReference


@dataclass(frozen=True)
class PsfmaskDocument(Document):
    """Weights of the pixels for the alignment of reference stars, of each science exposure in the store's order.

    ``paths`` are arrays in the store, "" = none (the reference file is ``N/A``); ``lock`` lists the choices as a later run
    can be given them.
    """

    kind: ClassVar[str] = "psfmasks"
    references: tuple[UsedReference, ...] = ()
    paths: tuple[str, ...] = ()
    lock: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class AlignedReferences:
    """How the reference images lie to one science exposure: reference = beta * science moved by (y, x) pixels.

    ``targets`` is 1, or the number of integrations where references are aligned to each of them; ``y``, ``x``, ``beta`` and
    ``converged`` list the references for the first target, then for the next.  ``path`` holds the aligned references in the
    store, "" = they are made when they are needed.
    """

    exposure: int
    targets: int
    path: str
    y: tuple[float, ...] = ()
    x: tuple[float, ...] = ()
    beta: tuple[float, ...] = ()
    iterations: tuple[int, ...] = ()
    converged: tuple[bool, ...] = ()


@dataclass(frozen=True)
class AlignRefsDocument(Document):
    """The commit of align_refs: shifts and flux factors of the reference images, for each science exposure."""

    kind: ClassVar[str] = "align_refs"
    digest: str = ""
    made: str = ""
    status: str = "COMPLETE"
    reason: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    exposures: tuple[AlignedReferences, ...] = ()
    notes: tuple[str, ...] = ()
    cost: StageCost = field(default_factory=StageCost)


@dataclass(frozen=True)
class SubtractedExposure:
    """What klip did to one science exposure: components kept of those asked for, by region, and the pixels behind them.

    ``kept`` and ``pixels`` list the regions of the first target (see `AlignedReferences`), then of the next; ``strengths``
    are the eigenvalues of the first region, the largest first.
    """

    exposure: int
    path: str
    kept: tuple[tuple[int, ...], ...] = ()
    pixels: tuple[int, ...] = ()
    strengths: tuple[float, ...] = ()


@dataclass(frozen=True)
class KlipDocument(Document):
    """The commit of klip: the numbers of components asked for, and what came of them for each science exposure."""

    kind: ClassVar[str] = "klip"
    digest: str = ""
    made: str = ""
    status: str = "COMPLETE"
    reason: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    truncate: tuple[int, ...] = ()
    references: int = 0
    exposures: tuple[SubtractedExposure, ...] = ()
    notes: tuple[str, ...] = ()
    cost: StageCost = field(default_factory=StageCost)


@dataclass(frozen=True)
class Contrast:
    """Noise in rings around the star of one mosaic: mean radius in pixels, standard deviation in the image's unit."""

    mosaic: str
    radius: tuple[float, ...] = ()
    sigma: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class ContrastDocument(Document):
    """The commit of hlsp: a contrast curve for each mosaic."""

    kind: ClassVar[str] = "contrast"
    digest: str = ""
    made: str = ""
    status: str = "COMPLETE"
    reason: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    curves: tuple[Contrast, ...] = ()
    notes: tuple[str, ...] = ()
    cost: StageCost = field(default_factory=StageCost)
