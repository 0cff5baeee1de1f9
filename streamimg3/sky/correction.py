"""What a later step adds to a WCS: a few numbers that travel beside the WCS's own text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Correction:
    """A correction of a WCS, as data (spec image3 §3, §4.4).

    Parameters
    ----------
    kind : str
        ``tangent``: linear in the exposure's own tangent plane (arcsec), as tweakreg finds it;
        ``moving``: ``shift`` is added to longitude and latitude in degrees (moving targets).
    matrix : tuple of 4 floats
        Rows of the 2 x 2 matrix that acts on (x, y) of the tangent plane; unity for ``moving``.
    shift : tuple of 2 floats
        Added after the matrix: (x, y) in arcsec, or (longitude, latitude) in degrees for ``moving``.
    origin : tuple of 3 floats, optional
        V2_REF, V3_REF (arcsec) and ROLL_REF (degrees): the tangent plane of a gWCS with a v2v3 frame.
    name : str
        Name that the corrected WCS gets (``FIT-LVL3-GAIADR3``), empty = as it was.
    """

    kind: str
    matrix: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 1.0)
    shift: tuple[float, float] = (0.0, 0.0)
    origin: tuple[float, float, float] | None = None
    name: str = ""
