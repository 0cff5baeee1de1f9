"""What a later step adds to a WCS: a few numbers that travel beside the WCS's own text."""

from __future__ import annotations

from dataclasses import dataclass, replace

from streamimg3.errors import InputError

KINDS = ("tangent", "moving")


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
        V2_REF, V3_REF (arcsec) and ROLL_REF (degrees): the tangent plane of a gWCS with a v2v3 frame; None = the plane
        that touches the sky at the centre of the image, with x to the east and y to the north.
    name : str
        Name that the corrected WCS gets (``FIT-LVL3-GAIADR3``), empty = as it was.

    Raises
    ------
    InputError
        If the kind is unknown.

    Examples
    --------
    >>> Correction("tangent", shift=(1.0, 0.0)).then(Correction("tangent", (0.0, -1.0, 1.0, 0.0))).shift
    (0.0, 1.0)
    """

    kind: str
    matrix: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 1.0)
    shift: tuple[float, float] = (0.0, 0.0)
    origin: tuple[float, float, float] | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"a WCS correction of kind {self.kind!r}: it must be one of {', '.join(KINDS)}")

    def then(self, later: Correction) -> Correction:
        """Return this correction followed by another one of the same kind and plane; the later one's name wins."""
        a, b, c, d = later.matrix
        e, f, g, h = self.matrix
        x, y = self.shift
        return replace(
            self,
            matrix=(a * e + b * g, a * f + b * h, c * e + d * g, c * f + d * h),
            shift=(a * x + b * y + later.shift[0], c * x + d * y + later.shift[1]),
            name=later.name or self.name,
        )
