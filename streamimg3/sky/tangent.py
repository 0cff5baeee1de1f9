"""Tangent planes in which corrections are found and applied (spec image3 §4.4).

A tangent plane is a rotation of the celestial sphere and a gnomonic projection, so all of a WCS that an alignment needs
beside the stars' own positions is one 3 x 3 matrix; no gWCS is evaluated while a thousand exposures are aligned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from streamimg3.sky.corrected_gwcs import frame_before_sky, tangent_rotation
from streamimg3.sky.correction import Correction

if TYPE_CHECKING:
    from streamimg3.sky.wcs import Wcs

F8 = NDArray[np.float64]
Origin = tuple[float, float, float]
ARCSEC = 3600.0 * float(np.rad2deg(1.0))  # arcsec in a radian
_ROTATION = 1e-11  # rad by which the map from V2V3 to the sky may differ from a rotation


@dataclass(frozen=True)
class TangentPlane:
    """A plane that touches the celestial sphere.

    Parameters
    ----------
    axes : tuple of 9 floats
        Rows of an orthogonal matrix: the unit vectors (ICRS, Cartesian) of the point of contact, of the plane's x axis
        and of its y axis.

    Examples
    --------
    >>> y, x = TangentPlane.at(0.0, 0.0).project(np.array([0.0]), np.array([1 / 3600]))
    >>> round(float(y[0]), 9), round(float(x[0]), 9)
    (1.0, 0.0)
    """

    axes: tuple[float, ...]

    @classmethod
    def of(cls, matrix: F8) -> TangentPlane:
        """Return the plane with a (3, 3) matrix of axes."""
        return cls(tuple(float(v) for v in matrix.ravel()))

    @classmethod
    def at(cls, ra: float, dec: float) -> TangentPlane:
        """Return the plane that touches the sky at a place (degrees), x to the east, y to the north."""
        centre = unit_vectors(np.array([ra]), np.array([dec]))[:, 0]
        a = np.deg2rad(ra)
        east = np.array([-np.sin(a), np.cos(a), 0.0])
        return cls.of(np.array([centre, east, np.cross(centre, east)]))

    @property
    def matrix(self) -> F8:
        """The axes as an array, shape (3, 3)."""
        return np.array(self.axes).reshape(3, 3)

    def project(self, ra: F8, dec: F8) -> tuple[F8, F8]:
        """Return (y, x) in arcsec of positions in degrees; NaN for what is a right angle or more away."""
        c, x, y = np.tensordot(self.matrix, unit_vectors(ra, dec), 1)
        c = np.where(c > 0, c, np.nan)
        return ARCSEC * (y / c), ARCSEC * (x / c)

    def deproject(self, y: F8, x: F8) -> tuple[F8, F8]:
        """Return right ascension [0, 360) and declination in degrees of points in arcsec."""
        a, b = np.asarray(x, np.float64) / ARCSEC, np.asarray(y, np.float64) / ARCSEC
        return sky_angles(np.tensordot(self.matrix.T, np.stack([np.ones_like(a), a, b]), 1))

    def correct(self, correction: Correction, ra: F8, dec: F8) -> tuple[F8, F8]:
        """Return positions (degrees) after a ``tangent`` correction that is defined in this plane."""
        a, b, c, d = correction.matrix
        y, x = self.project(ra, dec)
        return self.deproject(c * x + d * y + correction.shift[1], a * x + b * y + correction.shift[0])

    def linear_map(self, other: TangentPlane) -> tuple[F8, F8]:
        """Return matrix (2, 2) and shift (2,), arcsec, that take (x, y) here to (x, y) there, exact at the point of contact."""
        turn = other.matrix @ self.matrix.T
        c, at = turn[0, 0], turn[1:, 0]
        return turn[1:, 1:] / c - np.outer(at, turn[0, 1:]) / c**2, ARCSEC * at / c


def unit_vectors(ra: F8, dec: F8) -> F8:
    """Return Cartesian unit vectors, shape (3, ...), of positions in degrees."""
    a, d = np.deg2rad(np.asarray(ra, np.float64)), np.deg2rad(np.asarray(dec, np.float64))
    return np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)])


def sky_angles(vectors: F8) -> tuple[F8, F8]:
    """Return right ascension [0, 360) and declination in degrees of vectors of any length, shape (3, ...)."""
    x, y, z = vectors
    return np.rad2deg(np.arctan2(y, x)) % 360.0, np.rad2deg(np.arctan2(z, np.hypot(x, y)))


def own_plane(wcs: Wcs, origin: Origin | None) -> tuple[TangentPlane, Origin | None]:
    """Return the plane in which corrections of a WCS are defined, and the ``origin`` they must carry.

    Parameters
    ----------
    wcs : Wcs
        Corrected or not: the plane is the same.
    origin : tuple of 3 floats or None
        V2_REF, V3_REF (arcsec), ROLL_REF (degrees) of the exposure, where it has them.

    Returns
    -------
    plane : TangentPlane
    origin : tuple of 3 floats or None
        As given (or as an earlier correction in the gWCS has it) if the gWCS has a v2v3 frame that turns rigidly into the
        sky; else None, and the plane touches the sky at the image's centre.
    """
    if wcs.kind == "gwcs" and origin is not None:
        found = wcs.model
        if frame_before_sky(found) is not None:
            rotation, angles, error = tangent_rotation(found, origin)
            if error < _ROTATION:
                return TangentPlane.of(rotation), angles
    return centre_plane(wcs), None


def centre_plane(wcs: Wcs) -> TangentPlane:
    """Return the plane that touches the sky where the uncorrected WCS puts the centre of the image."""
    ny, nx = wcs.shape
    ra, dec = wcs.uncorrected.to_sky(np.array([(ny - 1) / 2]), np.array([(nx - 1) / 2]), bounded=False)
    return TangentPlane.at(float(ra[0]), float(dec[0]))
