"""One exposure: its record, and its pixels seen through the documents."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from streamimg3.geometry import Box
from streamimg3.sky.correction import Correction
from streamimg3.sky.wcs import Wcs
from streamimg3.store.documents import AlignedExposure
from streamimg3.store.layout import FLAT_PLANES

if TYPE_CHECKING:
    from streamimg3.store.observation import Observation

_SAME = {"dq": "pixeldq"}  # what stands for a plane where one image serves all integrations


@dataclass(frozen=True)
class ExposureRecord:
    """Facts about one exposure, taken from its file when it was ingested.

    Times in seconds and MJD, angles in degrees, ``shape`` (ny, nx), ``planes`` the names of its stored arrays and
    ``checksums`` their SHA-256 (native little-endian bytes, row by row) and that of the WCS text. ``row`` is its place
    among the exposures of its stack.

    ``integrations`` is 0 for an image. A cube has that many, of which the ``first`` one has this place in the stack; the
    checksum of a plane of it is the SHA-256 of the SHA-256 digests (32 bytes each) of its integrations.
    """

    name: str
    filename: str
    url: str
    index: int
    group_id: str
    shape: tuple[int, int]
    row: int
    planes: tuple[str, ...]
    wcs_kind: str
    is_jwst: bool
    s_region: str
    bunit: str | None = None
    exposure_time: float | None = None
    measurement_time: float | None = None
    duration: float | None = None
    start_mjd: float | None = None
    end_mjd: float | None = None
    bkglevel: float | None = None
    bkgsub: bool | None = None
    bkgmeth: str | None = None
    pixar_sr: float | None = None
    ra_ref: float | None = None
    dec_ref: float | None = None
    roll_ref: float | None = None
    v3yangle: float | None = None
    vparity: int | None = None
    targtype: str | None = None
    mt_ra: float | None = None
    mt_dec: float | None = None
    instrument: str | None = None
    detector: str | None = None
    notes: tuple[str, ...] = ()
    checksums: dict[str, str] = field(default_factory=dict)
    integrations: int = 0
    first: int = 0


@dataclass(frozen=True)
class Exposure:
    """An exposure of an observation; pixels are read in windows, headers and WCS when asked for.

    ``aligned`` is what the alignment found out about it, None = nothing or not asked for.

    Examples
    --------
    >>> from streamimg3.geometry import Box
    >>> exposure = streamimg3.open(store).exposures()[0]
    >>> exposure.read("sci", Box(10, 20, 15, 28)).shape
    (5, 8)
    """

    observation: Observation
    record: ExposureRecord
    aligned: AlignedExposure | None = None

    @property
    def group(self) -> str:
        """Path of the stack that holds the exposure's planes."""
        return stack_path(self.record.shape, cubes=self.record.integrations > 0)

    @property
    def depth(self) -> int:
        """Number of integrations; an image counts as one."""
        return max(1, self.record.integrations)

    def read(self, plane: str, box: Box) -> NDArray[np.generic]:
        """Return a window of a stored plane, ``(rows, columns)`` in the plane's own dtype.

        Of a cube, this gives the planes that are the same for all integrations (``area``, ``pixeldq``).

        Raises
        ------
        StoreError
            If a chunk is damaged or missing.
        ValueError
            If the plane is different for every integration.
        """
        if self._deep(plane):
            raise ValueError(f"{self.record.name} is a cube: read {plane} with read_block")
        return self.observation.window(f"{self.group}/{plane}", (self.record.row,), box)

    def read_block(self, plane: str, first: int, last: int, box: Box) -> NDArray[np.generic]:
        """Return a window of some integrations, ``(last - first, rows, columns)`` in the plane's own dtype.

        Works for images too, as cubes of one integration. What is the same for all integrations is repeated, not copied
        (the result can then not be written to); ``dq`` is such where the file had one flag image for all.

        Parameters
        ----------
        plane : str
            Name of the plane.
        first, last : int
            Integrations of this exposure, 0-based, half-open.
        box : Box
            Rows and columns.

        Raises
        ------
        StoreError
            If a chunk is damaged or missing.
        ValueError
            If the exposure has no such integrations.
        """
        if not 0 <= first < last <= self.depth:
            raise ValueError(f"{self.record.name} has integrations 0..{self.depth}, not {first}..{last}")
        if self._deep(plane):
            span = slice(self.record.first + first, self.record.first + last)
            return self.observation.window(f"{self.group}/{plane}", (span,), box)
        shared = self.record.integrations > 0 and plane not in FLAT_PLANES
        image = self.read(_SAME[plane] if shared else plane, box)
        return np.broadcast_to(image, (last - first, *image.shape))

    def _deep(self, plane: str) -> bool:
        """Whether a plane has a value for each integration."""
        if not self.record.integrations or plane in FLAT_PLANES:
            return False
        return plane in self.record.planes or _SAME.get(plane) not in self.record.planes

    def column(self, name: str) -> NDArray[np.generic]:
        """Return what is known of each integration of a cube: one of ``layout.COLUMNS``, shape ``(integrations,)``.

        Raises
        ------
        StoreError
            If the exposure is an image, or a chunk is damaged.
        """
        start = self.record.first
        return self.observation.column(f"{self.group}/{name}", start, start + self.record.integrations)

    def has(self, plane: str) -> bool:
        """Whether the exposure came with this plane (a cube: for each integration, or one for all)."""
        return plane in self.record.planes or _SAME.get(plane) in self.record.planes

    def cards(self, hdu: str) -> str:
        """Return the verbatim FITS cards of ``"primary"`` or ``"sci"``, 80 characters each, without END."""
        rows = self.observation.row_bytes(f"{self.group}/cards_{hdu}", self.record.row)
        return rows.decode("ascii").rstrip()

    @property
    def correction(self) -> Correction | None:
        """What alignment adds to the WCS."""
        return self.aligned.correction if self.aligned else None

    @property
    def s_region(self) -> str:
        """Outline on the sky, as corrected."""
        return (self.aligned.s_region if self.aligned else None) or self.record.s_region

    @property
    def wcs(self) -> Wcs:
        """The WCS with its correction."""
        return stored_wcs(self.observation, self.group, self.record.row, self.record.wcs_kind, self.correction)


def stored_wcs(observation: Observation, group: str, row: int, kind: str, correction: Correction | None = None) -> Wcs:
    """Return the WCS in one row of a stack, for an image of the stack's shape."""
    ny, nx = (int(n) for n in group.rsplit("/", 1)[1].split("x"))
    text = observation.row_bytes(f"{group}/wcs", row)
    return Wcs("gwcs" if kind == "gwcs" else "fits", text, (ny, nx), correction)


def stack_path(shape: tuple[int, int], cubes: bool = False) -> str:
    """Return the path of the stack for exposures of a shape, or for the integrations of cubes.

    Examples
    --------
    >>> stack_path((2048, 1024))
    'exposures/2048x1024'
    >>> stack_path((64, 256), cubes=True)
    'integrations/64x256'
    """
    return f"{'integrations' if cubes else 'exposures'}/{shape[0]}x{shape[1]}"
