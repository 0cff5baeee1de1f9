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

if TYPE_CHECKING:
    from streamimg3.store.observation import Observation


@dataclass(frozen=True)
class ExposureRecord:
    """Facts about one exposure, taken from its file when it was ingested.

    Times in seconds and MJD, angles in degrees, ``shape`` (ny, nx), ``planes`` the names of its stored arrays and
    ``checksums`` their SHA-256 (native little-endian bytes, row by row) and that of the WCS text.
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


@dataclass(frozen=True)
class Exposure:
    """An exposure of an observation; pixels are read in windows, headers and WCS when asked for.

    ``aligned`` is what the alignment found out about it, None = nothing or not asked for.
    """

    observation: Observation
    record: ExposureRecord
    aligned: AlignedExposure | None = None

    @property
    def group(self) -> str:
        """Path of the stack that holds the exposure's planes."""
        return stack_path(self.record.shape)

    def read(self, plane: str, box: Box) -> NDArray[np.generic]:
        """Return a window of a stored plane, ``(rows, columns)`` in the plane's own dtype.

        Raises
        ------
        StoreError
            If a chunk is damaged or missing.
        """
        return self.observation.window(f"{self.group}/{plane}", (self.record.row,), box)

    def has(self, plane: str) -> bool:
        """Whether the exposure came with this plane."""
        return plane in self.record.planes

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


def stack_path(shape: tuple[int, int]) -> str:
    """Return the path of the stack for exposures of a shape.

    Examples
    --------
    >>> stack_path((2048, 1024))
    'exposures/2048x1024'
    """
    return f"exposures/{shape[0]}x{shape[1]}"
