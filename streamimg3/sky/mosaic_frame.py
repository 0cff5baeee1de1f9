"""The output frame: where the mosaic lies on the sky (spec image3 §7.2; sums in the reference's order, to the last bit)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.sky import footprint
from streamimg3.sky.asdf_text import asdf_bytes
from streamimg3.sky.wcs import Wcs

if TYPE_CHECKING:
    import gwcs

F8 = NDArray[np.float64]


@dataclass(frozen=True)
class Reference:
    """The exposure that lends the mosaic its scale and orientation.

    Parameters
    ----------
    wcs : Wcs
        Its WCS.
    ra_ref, dec_ref, roll_ref : float
        Reference position and roll (degrees).
    v3yangle : float
        Angle from V3 to the ideal Y axis (degrees).
    vparity : int
        1 or -1.
    """

    wcs: Wcs
    ra_ref: float
    dec_ref: float
    roll_ref: float
    v3yangle: float
    vparity: int

    @classmethod
    def measured(cls, wcs: Wcs) -> Reference:
        """Return the reference of an exposure without JWST pointing keywords, from its WCS at the image centre."""
        ny, nx = wcs.shape
        y, x = (ny - 1) / 2, (nx - 1) / 2
        ra, dec = wcs.to_sky(np.array([y, y, y + 1]), np.array([x, x + 1, x]), bounded=False)
        east = (np.mod(ra[1:] - ra[0] + 180.0, 360.0) - 180.0) * math.cos(math.radians(dec[0]))
        north = dec[1:] - dec[0]
        parity = 1 if east[0] * north[1] - east[1] * north[0] > 0 else -1
        roll = math.degrees(math.atan2(east[1], north[1]))
        return cls(wcs, float(ra[0]), float(dec[0]), roll, 0.0, parity)


@dataclass(frozen=True)
class FrameOptions:
    """What the user asks of the output frame; names and meaning of the reference's resample step (spec §7.1).

    ``output_shape``, ``crpix`` (0-based) and ``crval`` are in x, y order as there; ``rotation`` in degrees east of
    north, ``pixel_scale`` in arcsec.
    """

    output_shape: tuple[int, int] | None = None
    crpix: tuple[float, float] | None = None
    crval: tuple[float, float] | None = None
    rotation: float | None = None
    pixel_scale: float | None = None
    pixel_scale_ratio: float = 1.0


@dataclass(frozen=True)
class MosaicFrame:
    """The frame of a mosaic.

    Parameters
    ----------
    wcs : Wcs
        Pixel to sky, with the mosaic's shape.
    pixel_scale : float
        Nominal, arcsec.
    ratio : float
        Output over input pixel scale.
    measured : bool
        The ratio follows from a measured scale, not from the user (it is then carried in double precision).
    """

    wcs: Wcs
    pixel_scale: float
    ratio: float
    measured: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.wcs.shape


def mosaic_frame(regions: list[str], reference: Reference, options: FrameOptions) -> MosaicFrame:
    """Work out the output frame.

    Parameters
    ----------
    regions : list of str
        S_REGION of every exposure, in order.
    reference : Reference
        Exposure 0.
    options : FrameOptions
        What the user asks.

    Raises
    ------
    InputError
        If the mosaic would be smaller than 2 pixels along an axis.
    """
    return _framed(tuple(regions), reference, options)


@lru_cache(maxsize=4)
def _framed(regions: tuple[str, ...], reference: Reference, options: FrameOptions) -> MosaicFrame:
    """Work out a frame; several steps ask for the same one."""
    outlines = [polygon for region in regions for polygon in footprint.parse(region)]
    crval = options.crval or _middle(outlines)
    if options.pixel_scale is None:
        scale = scale_at_reference(reference) * options.pixel_scale_ratio
        ratio: float = options.pixel_scale_ratio
    else:
        scale = options.pixel_scale / 3600.0
        ratio = float(scale / np.rad2deg(math.sqrt(mean_pixel_area(reference.wcs))))
    pc = _orientation(reference, options.rotation)
    plane = _plane(pc, scale, crval)
    crpix, shape, bounds = _extent(outlines, plane, crval, options)
    if min(shape) < 2:
        raise InputError(
            f"the output image would be {shape[0]} x {shape[1]} pixels: give a larger output_shape or a smaller pixel_scale"
        )
    new = _fits_gwcs(reference.wcs, (crpix, crval, (scale, scale), pc))
    new.bounding_box = bounds
    new.pixel_shape = shape[::-1]
    wcs = Wcs("gwcs", as_asdf(new), shape)
    return MosaicFrame(wcs, 3600.0 * scale, ratio, options.pixel_scale is not None)


def _middle(outlines: list[F8]) -> tuple[float, float]:
    """Midpoint of the box around all vertices as unit vectors (degrees)."""
    lon, lat = np.deg2rad(np.vstack(outlines).T)
    x, y, z = np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)
    a, b, c = ((np.max(v) + np.min(v)) / 2.0 for v in (x, y, z))
    return np.rad2deg(np.arctan2(b, a)) % 360.0, np.rad2deg(np.arctan2(c, np.sqrt(a**2 + b**2)))


def scale_at_reference(reference: Reference) -> float:
    """Return the pixel scale (degrees) at the reference position: the geometric mean of the two axes."""
    from astropy.coordinates import SkyCoord

    y, x = reference.wcs.to_pixel(np.asarray(reference.ra_ref), np.asarray(reference.dec_ref))
    at = np.array([x, y])
    xs, ys = np.vstack((at, at + [1, 0], at + [0, 1])).T
    ra, dec = reference.wcs.to_sky(ys, xs, bounded=False)
    sky = SkyCoord(ra=ra, dec=dec, unit="deg")
    return float(np.sqrt(np.abs(sky[0].separation(sky[1]).value) * np.abs(sky[0].separation(sky[2]).value)))


def _orientation(reference: Reference, rotation: float | None) -> F8:
    """PC matrix: the detector's own orientation, or +Y at a position angle."""
    parity, yangle = reference.vparity, np.deg2rad(reference.v3yangle)
    roll = np.deg2rad(reference.roll_ref) if rotation is None else np.deg2rad(rotation) + parity * yangle
    angle = roll - parity * yangle
    return np.array([[parity * np.cos(angle), np.sin(angle)], [parity * -np.sin(angle), np.cos(angle)]])


def _plane(pc: F8, scale: float, crval: tuple[float, float]):  # type: ignore[no-untyped-def]
    """Pixels relative to the reference pixel -> sky, as an astropy model with an inverse."""
    from astropy.modeling import models as m

    return (
        m.AffineTransformation2D(matrix=pc)
        | m.Scale(scale) & m.Scale(scale)
        | m.Pix2Sky_TAN()
        | m.RotateNative2Celestial(crval[0], crval[1], 180)
    )


def _extent(outlines: list[F8], plane, crval, options: FrameOptions):  # type: ignore[no-untyped-def]
    """Reference pixel (x, y), shape (ny, nx) and bounding box (x then y) of the mosaic."""
    spots = np.hstack([plane.inverse(*outline.T) for outline in outlines])
    if not np.isfinite(spots).all():
        raise InputError("no exposure touches the output image: crval is on the other side of the sky")
    low, high = np.min(spots, axis=1), np.max(spots, axis=1)
    native = plane.inverse(*crval)
    if options.crpix is None:
        crpix = tuple(n - lo for n, lo in zip(native, low, strict=True))
    else:
        crpix = tuple(c - n for n, c in zip(native, options.crpix, strict=True))
    low, high = low + crpix, high + crpix
    if options.output_shape is None:
        shape = tuple(int(v + 0.5) for v in high[::-1])
        return crpix, shape, tuple((-0.5, n - 0.5) for n in shape[::-1])
    size = options.output_shape
    bounds = tuple(
        (max(0, int(lo + 0.5)) - 0.5, min(int(hi + 0.5), n) - 0.5) for lo, hi, n in zip(low, high, size, strict=True)
    )
    return crpix, (size[1], size[0]), bounds


def _fits_gwcs(reference: Wcs, numbers) -> gwcs.WCS:  # type: ignore[no-untyped-def]
    """Build the gWCS of a tangent-plane image; frames are the reference exposure's, or plain ones."""
    import gwcs
    from astropy.modeling.models import Pix2Sky_TAN
    from gwcs.fitswcs import FITSImagingWCSTransform

    crpix, crval, cdelt, pc = numbers
    transform = FITSImagingWCSTransform(Pix2Sky_TAN(), crpix=crpix, crval=crval, cdelt=cdelt, pc=pc)
    if reference.kind == "gwcs":
        other = reference.gwcs()
        first, last = other.input_frame, other.output_frame
    else:
        first, last = plain_frames()
    return gwcs.WCS([gwcs.Step(first, transform), gwcs.Step(last, None)])


def plain_frames() -> tuple[Any, Any]:
    """Return a detector and a celestial gWCS frame for images without any."""
    from astropy import coordinates, units
    from gwcs import coordinate_frames as frames

    detector = frames.Frame2D(name="detector", axes_order=(0, 1), unit=(units.pix, units.pix))
    return detector, frames.CelestialFrame(reference_frame=coordinates.ICRS(), name="world")


def as_asdf(wcs: gwcs.WCS) -> bytes:
    """Return ASDF bytes that hold a gWCS under ``wcs``."""
    return asdf_bytes({"wcs": wcs})


def mean_pixel_area(wcs: Wcs) -> float:
    """Return the mean area of a pixel in steradian: the sky inside the image's outline over its pixels (spec §7.2a).

    Raises
    ------
    InputError
        If the WCS gives no finite outline.
    """
    from spherical_geometry.polygon import SphericalPolygon

    ny, nx = wcs.shape
    (y0, y1), (x0, x1) = wcs.bounds or ((-0.5, ny - 0.5), (-0.5, nx - 0.5))
    limits = [max(0, int(y0 + 0.5)), min(nx - 1, int(x1 - 0.5)), min(ny - 1, int(y1 - 0.5)), max(0, int(x0 + 0.5))]
    inwards, side = (1, -1, -1, 1), 0
    while limits[3] < limits[1] and limits[0] < limits[2]:
        y, x, edges = _rim(*limits)
        ra, dec = wcs.to_sky(y, x)
        finite = np.isfinite(ra) & np.isfinite(dec)
        bad = [k for k in ((side + n) % 4 for n in range(4)) if not finite[edges[k]].all()]
        if not bad:
            bottom, right, top, left = limits
            middle = wcs.to_sky(np.asarray(0.5 * (bottom + top)), np.asarray(0.5 * (left + right)))
            area = float(SphericalPolygon.from_radec(ra, dec, center=middle).area())
            area = 4 * np.pi - area if area > 2 * np.pi else area
            return area / ((right - left) * (top - bottom))
        limits[bad[0]] += inwards[bad[0]]
        side = (bad[0] + 1) % 4
    raise InputError("the WCS gives no finite outline of the image, so its pixel area is unknown: check the WCS")


def _rim(bottom: int, right: int, top: int, left: int) -> tuple[F8, F8, list[slice]]:
    """Points along a rectangle, counter-clockwise from the lower left, at most 15 pixels apart."""
    dx, dy = min((right - left) // 4, 15), min((top - bottom) // 4, 15)
    nx, ny = right - left + 1, top - bottom + 1
    sx = max(1, math.ceil(nx / (dx or nx)))
    sy = max(1, math.ceil(ny / (dy or ny)))
    x = [
        np.linspace(left, right, sx, False),
        np.full(sy, float(right)),
        np.linspace(right, left, sx, False),
        np.full(sy, float(left)),
    ]
    y = [
        np.full(sx, float(bottom)),
        np.linspace(bottom, top, sy, False),
        np.full(sx, float(top)),
        np.linspace(top, bottom, sy, False),
    ]
    cuts = np.cumsum([0, sx, sy, sx, sy])
    return np.concatenate(y), np.concatenate(x), [slice(a, b) for a, b in pairwise(cuts)]


def given_frame(wcs: Wcs, pixel_scale: float | None, input_area: float | None, reference: Wcs) -> MosaicFrame:
    """Return the frame of a WCS that the user gives.

    Parameters
    ----------
    wcs : Wcs
        The output WCS with its shape.
    pixel_scale : float or None
        Its nominal scale in arcsec; None = from its mean pixel area.
    input_area : float or None
        Pixel area of exposure 0 (steradian) from its header; None = measured from ``reference``.
    reference : Wcs
        WCS of exposure 0.
    """
    scale = pixel_scale or 3600.0 * float(np.rad2deg(math.sqrt(mean_pixel_area(wcs))))
    area = input_area or mean_pixel_area(reference)
    return MosaicFrame(wcs, scale, float(scale / (3600.0 * np.rad2deg(math.sqrt(area)))), True)


_ZENITHAL = ("TAN", "SIN", "ARC", "STG", "ZEA")


def from_fits_cards(cards: str) -> tuple[gwcs.WCS, tuple[int, int]]:
    """Return the gWCS and shape of a FITS header that describes an undistorted celestial image.

    A header in another celestial frame (FK5, galactic) is turned into ICRS, which for these projections is exact.

    Raises
    ------
    InputError
        If the header has no celestial WCS, a distortion, another projection, or no NAXIS1 and NAXIS2.
    """
    import gwcs
    from astropy.io import fits
    from astropy.modeling import models
    from gwcs.fitswcs import FITSImagingWCSTransform

    header = fits.Header.fromstring(cards)
    shape = header.get("NAXIS2"), header.get("NAXIS1")
    if not all(isinstance(n, int) and n > 0 for n in shape):
        raise InputError("the output WCS header must hold NAXIS1 and NAXIS2 (the mosaic's columns and rows)")
    given = Wcs("fits", cards.encode("ascii"), shape)
    crpix, crval, cdelt, pc, code = _icrs_terms(given)
    transform = FITSImagingWCSTransform(
        getattr(models, f"Pix2Sky_{code}")(), crpix=crpix, crval=crval, cdelt=cdelt, pc=pc
    )
    first, last = plain_frames()
    made = gwcs.WCS([gwcs.Step(first, transform), gwcs.Step(last, None)])
    _require_same(given, Wcs("gwcs", as_asdf(made), shape))
    return made, shape


def _icrs_terms(given: Wcs):  # type: ignore[no-untyped-def]
    """Reference pixel (0-based), position in ICRS, scales, matrix and projection code of a linear FITS WCS."""
    from astropy import units as u
    from astropy.coordinates import SkyCoord
    from astropy.wcs.utils import wcs_to_celestial_frame

    found = given.projection.wcs  # type: ignore[attr-defined]
    if found.has_distortion:
        raise InputError("the output WCS header must hold a celestial WCS without distortion")
    lon, lat = found.wcs.lng, found.wcs.lat
    code = found.wcs.ctype[lon][-3:]
    if code not in _ZENITHAL:
        raise InputError(f"the output WCS header has projection {code}: use one of {', '.join(_ZENITHAL)}")
    crval = float(found.wcs.crval[lon]), float(found.wcs.crval[lat])
    cdelt, pc = found.wcs.get_cdelt()[[lon, lat]], found.wcs.get_pc()[[lon, lat]]
    if any(value != 0.0 for _, _, value in found.wcs.get_pv()):
        raise InputError(
            "the output WCS header has projection parameters (PV), which are not supported: use a plain TAN header"
        )
    frame = wcs_to_celestial_frame(found)
    if frame.name != "icrs":
        here = SkyCoord(*crval, unit="deg", frame=frame)
        north = here.directional_offset_by(0 * u.deg, 1 * u.arcmin)
        turn = here.icrs.position_angle(north.icrs).rad
        matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) @ (cdelt[:, None] * pc)
        scale = math.sqrt(abs(np.linalg.det(matrix)))
        crval, cdelt, pc = (float(here.icrs.ra.deg), float(here.icrs.dec.deg)), np.array([scale, scale]), matrix / scale
    return tuple(found.wcs.crpix - 1), crval, tuple(cdelt), pc, code


def _require_same(given: Wcs, made: Wcs) -> None:
    """Refuse a header whose meaning the gWCS does not carry (unusual poles, projection parameters)."""
    ny, nx = given.shape
    y, x = np.meshgrid(np.linspace(0, ny - 1, 3), np.linspace(0, nx - 1, 3), indexing="ij")
    there_y, there_x = made.to_pixel(*given.to_sky(y, x, bounded=False))
    if not (np.allclose(there_y, y, atol=1e-6, rtol=0) and np.allclose(there_x, x, atol=1e-6, rtol=0)):
        raise InputError(
            "the output WCS header has a pole or projection parameters that are not supported: use a plain TAN header"
        )


def linear_terms(wcs: Wcs) -> dict[str, float | str] | None:
    """Return the FITS keywords of a tangent-plane gWCS (1-based CRPIX), or None if it is of another kind."""
    transform = wcs.model.forward_transform
    if not hasattr(transform, "cdelt") or not hasattr(transform, "projection"):
        return None
    crpix, crval, cdelt, pc = (np.asarray(getattr(transform, n)) for n in ("crpix", "crval", "cdelt", "pc"))
    code = transform.projection.prjprm.code
    cards: dict[str, float | str] = {
        "CTYPE1": f"RA---{code}",
        "CTYPE2": f"DEC--{code}",
        "CUNIT1": "deg",
        "CUNIT2": "deg",
    }
    for n in (1, 2):
        cards |= {
            f"CRPIX{n}": float(crpix[n - 1]) + 1,
            f"CRVAL{n}": float(crval[n - 1]),
            f"CDELT{n}": float(cdelt[n - 1]),
        }
        cards |= {f"PC{n}_{k}": float(pc[n - 1][k - 1]) for k in (1, 2)}
    return cards
