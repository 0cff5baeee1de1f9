"""Geometry of a simulated detector: an invented distortion, its pointing, and the WCS that is stored with it.

Pixel offsets (u, v) = (x, y) - origin become corrected offsets (u + A(u, v), v + B(u, v)), a linear map takes those to
the V2V3 plane of the telescope (arcsec) and a rotation takes V2V3 to the sky.  The distortion has the SIP form by
construction, so the FITS keywords and the gWCS describe one and the same map.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.polynomial.polynomial import polygrid2d, polyval2d
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from astropy.modeling import Model
    from gwcs import WCS

Floats = NDArray[np.float64]

INVERSE_ORDER: Final = 6
HALF_WIDTH: Final = 1024.0  # pixels at which the distortion amplitudes below hold
_ITERATIONS: Final = 12  # each brings the error down tenfold or better


@dataclass(frozen=True, eq=False)
class Detector:
    """A detector: its place in the V2V3 plane and its distortion.

    Attributes
    ----------
    name : str
        Value of the DETECTOR keyword.
    v2, v3 : float
        Reference point, arcsec.
    yangle : float
        Angle from V3 to the ideal y axis (V3I_YANG), deg.
    parity : int
        Sense of rotation between ideal and V2V3 axes (VPARITY), 1 or -1.
    linear : ndarray, shape (2, 2), float64
        Corrected pixel offset (x, y) to ideal (x, y), arcsec per pixel.
    a, b : ndarray, shape (4, 4), float64
        Distortion of x and of y, pixels; element [i, j] multiplies u**i v**j.
    ap, bp : ndarray, shape (7, 7), float64
        The polynomial inverse, same convention.
    """

    name: str
    v2: float
    v3: float
    yangle: float
    parity: int
    linear: Floats
    a: Floats
    b: Floats
    ap: Floats
    bp: Floats

    @property
    def to_v2v3(self) -> Floats:
        """Corrected pixel offset (x, y) to offset (V2, V3); shape (2, 2), arcsec per pixel."""
        c, s = math.cos(math.radians(self.yangle)), math.sin(math.radians(self.yangle))
        return np.array([[self.parity * c, s], [-self.parity * s, c]]) @ self.linear


@dataclass(frozen=True)
class Mount:
    """How a detector is mounted: reference point in V2V3 (arcsec), V3I_YANG (deg) and VPARITY."""

    v2: float
    v3: float
    yangle: float
    parity: int


def make_detector(name: str, mount: Mount, variant: int, pixel_scale: float, half_width: float) -> Detector:
    """Invent a detector with JWST-like distortion: up to a few pixels 1024 pixels away from the centre.

    Parameters
    ----------
    name : str
    mount : Mount
    variant : int
        Which of the invented distortions; the same number gives the same one.
    pixel_scale : float
        Mean scale, arcsec per pixel.
    half_width : float
        Half the larger side of the array, pixels; the inverse is fitted on a slightly larger square.
    """
    rng = np.random.default_rng([20240301, variant])
    stretch, shear = rng.uniform(-3e-3, 3e-3, 2)
    linear = pixel_scale * np.array([[1.0 + stretch, shear], [0.0, 1.0 / (1.0 + stretch)]])
    a, b = _distortion(rng), _distortion(rng)
    ap, bp = _inverse(a, b, 1.1 * half_width)
    return Detector(name, mount.v2, mount.v3, mount.yangle, mount.parity, linear, a, b, ap, bp)


def _distortion(rng: np.random.Generator) -> Floats:
    terms = np.zeros((4, 4))
    for degree, amplitude in ((2, 2.5), (3, 0.4)):
        for i in range(degree + 1):
            terms[i, degree - i] = rng.uniform(0.3, 1.0) * rng.choice([-1.0, 1.0]) * amplitude / HALF_WIDTH**degree
    return terms


def _inverse(a: Floats, b: Floats, half_width: float) -> tuple[Floats, Floats]:
    """Fit the polynomials that undo ``a`` and ``b``: degrees 2 to INVERSE_ORDER, as the exact series has no others."""
    nodes = half_width * np.cos(np.linspace(0.0, np.pi, 4 * INVERSE_ORDER))
    v, u = (axis.ravel() for axis in np.meshgrid(nodes, nodes, indexing="ij"))
    us, vs = u + polyval2d(u, v, a), v + polyval2d(u, v, b)
    powers = [(i, j) for i in range(INVERSE_ORDER + 1) for j in range(INVERSE_ORDER + 1) if 2 <= i + j <= INVERSE_ORDER]
    design = np.stack([(us / half_width) ** i * (vs / half_width) ** j for i, j in powers], axis=1)
    solution = np.linalg.lstsq(design, np.stack([u - us, v - vs], axis=1), rcond=None)[0]
    ap, bp = np.zeros((2, INVERSE_ORDER + 1, INVERSE_ORDER + 1))
    for (i, j), (to_u, to_v) in zip(powers, solution, strict=True):
        ap[i, j], bp[i, j] = to_u / half_width ** (i + j), to_v / half_width ** (i + j)
    return ap, bp


def _basis(lon: float, lat: float) -> Floats:
    """Columns: the unit vector at (lon, lat) in degrees, and the directions of growing lon and lat there."""
    cl, sl = math.cos(math.radians(lon)), math.sin(math.radians(lon))
    cb, sb = math.cos(math.radians(lat)), math.sin(math.radians(lat))
    return np.array([[cb * cl, -sl, -sb * cl], [cb * sl, cl, -sb * sl], [sb, 0.0, cb]])


def _unit(lon: ArrayLike, lat: ArrayLike) -> Floats:
    lon, lat = np.radians(lon), np.radians(lat)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])


def _lonlat(unit: Floats) -> tuple[Floats, Floats]:
    lat = np.arctan2(unit[2], np.hypot(unit[0], unit[1]))
    return np.degrees(np.arctan2(unit[1], unit[0])), np.degrees(lat)


@dataclass(frozen=True)
class Aim:
    """Where a point of the focal plane looks: RA, Dec and the position angle of V3 there, all in degrees."""

    ra: float
    dec: float
    roll: float


def attitude(v2: float, v3: float, aim: Aim) -> Floats:
    """Rotation matrix (3, 3) from telescope to sky unit vectors that points (v2, v3), in arcsec, at ``aim``."""
    c, s = math.cos(math.radians(aim.roll)), math.sin(math.radians(aim.roll))
    turn = np.array([[1.0, 0.0, 0.0], [0.0, c, s], [0.0, -s, c]])
    matrix: Floats = _basis(aim.ra, aim.dec) @ turn @ _basis(v2 / 3600.0, v3 / 3600.0).T
    return matrix


def aim_of(matrix: Floats, v2: float, v3: float) -> Aim:
    """Where the point (v2, v3), in arcsec, looks under the attitude ``matrix`` (3, 3)."""
    centre, _, up = (matrix @ _basis(v2 / 3600.0, v3 / 3600.0)).T
    ra, dec = (float(angle) for angle in _lonlat(centre))
    _, east, north = _basis(ra, dec).T
    return Aim(ra % 360.0, dec, math.degrees(math.atan2(up @ east, up @ north)) % 360.0)


def plane_to_sky(eta: ArrayLike, xi: ArrayLike, ra0: float, dec0: float) -> tuple[Floats, Floats]:
    """Tangent-plane offsets north and east (arcsec) about (ra0, dec0) to RA and Dec (deg), element by element."""
    eta, xi = np.radians(np.asarray(eta) / 3600.0), np.radians(np.asarray(xi) / 3600.0)
    ra, dec = _lonlat(np.tensordot(_basis(ra0, dec0), np.stack([np.ones_like(xi), xi, eta]), axes=1))
    return ra % 360.0, dec


def sky_to_plane(ra: ArrayLike, dec: ArrayLike, ra0: float, dec0: float) -> tuple[Floats, Floats]:
    """RA and Dec (deg) to tangent-plane offsets north and east (arcsec) about (ra0, dec0)."""
    depth, xi, eta = np.tensordot(_basis(ra0, dec0).T, _unit(ra, dec), axes=1)
    return np.degrees(eta / depth) * 3600.0, np.degrees(xi / depth) * 3600.0


@dataclass(frozen=True, eq=False)
class Camera:
    """A detector pointed at the sky: the exact map between pixels and sky, in closed form.

    Attributes
    ----------
    detector : Detector
    origin : tuple of float
        Pixel (y, x) of the reference point.
    aim : Aim
        Where the reference point looks (RA_REF, DEC_REF, ROLL_REF).
    va_scale : float
        Velocity aberration scale (VA_SCALE).
    """

    detector: Detector
    origin: tuple[float, float]
    aim: Aim
    va_scale: float

    def to_sky(self, y: ArrayLike, x: ArrayLike) -> tuple[Floats, Floats]:
        """Pixels (y, x), any shape, to RA and Dec (deg) of the same shape."""
        d = self.detector
        u, v = np.asarray(x) - self.origin[1], np.asarray(y) - self.origin[0]
        corrected = np.stack([u + polyval2d(u, v, d.a), v + polyval2d(u, v, d.b)])
        v2, v3 = self.va_scale * np.tensordot(d.to_v2v3, corrected, axes=1)
        ra, dec = _lonlat(np.tensordot(self._attitude(), _unit((v2 + d.v2) / 3600.0, (v3 + d.v3) / 3600.0), axes=1))
        return ra % 360.0, dec

    def to_pixel(self, ra: ArrayLike, dec: ArrayLike) -> tuple[Floats, Floats]:
        """RA and Dec (deg) to pixels (y, x); nan where the point is farther than three times 1024 pixels away."""
        d = self.detector
        v2, v3 = _lonlat(np.tensordot(self._attitude().T, _unit(ra, dec), axes=1))
        offsets = np.stack([v2 * 3600.0 - d.v2, v3 * 3600.0 - d.v3]) / self.va_scale
        us, vs = np.tensordot(np.linalg.inv(d.to_v2v3), offsets, axes=1)
        # Far out the cubic takes over and the iteration would not contract.
        near = np.hypot(us, vs) < 3.0 * HALF_WIDTH
        us, vs = np.where(near, us, np.nan), np.where(near, vs, np.nan)
        u, v = us, vs
        for _ in range(_ITERATIONS):
            u, v = us - polyval2d(u, v, d.a), vs - polyval2d(u, v, d.b)
        return v + self.origin[0], u + self.origin[1]

    def _attitude(self) -> Floats:
        return attitude(self.detector.v2, self.detector.v3, self.aim)

    def jacobian(self, y: float, x: float) -> Floats:
        """d(east, north)/d(x, y) at a pixel; shape (2, 2), arcsec per pixel."""
        ra, dec = self.to_sky(y + np.array([0.0, 0.0, 0.5]), x + np.array([0.0, 0.5, 0.0]))
        eta, xi = sky_to_plane(ra, dec, float(ra[0]), float(dec[0]))
        return 2.0 * np.array([xi[1:] - xi[0], eta[1:] - eta[0]])

    def area(self, shape: tuple[int, int], pixel_scale: float) -> NDArray[np.float32]:
        """Area of each pixel in units of ``pixel_scale`` squared; shape (ny, nx), float32."""
        d = self.detector
        stretch_x, stretch_y = _derivative(d.a, 0), _derivative(d.b, 1)
        stretch_x[0, 0] += 1.0
        stretch_y[0, 0] += 1.0
        ratio = _product(stretch_x, stretch_y) - _product(_derivative(d.a, 1), _derivative(d.b, 0))
        ratio *= abs(np.linalg.det(d.linear)) / pixel_scale**2
        y, x = np.arange(shape[0]) - self.origin[0], np.arange(shape[1]) - self.origin[1]
        area: NDArray[np.float32] = polygrid2d(y, x, ratio.T).astype(np.float32)
        return area

    def sip_cards(self) -> dict[str, str | float | int]:
        """FITS keywords of the same map: tangent plane, CD matrix and SIP polynomials both ways."""
        d = self.detector
        c, s = math.cos(math.radians(self.aim.roll)), math.sin(math.radians(self.aim.roll))
        cd = np.array([[c, s], [-s, c]]) @ d.to_v2v3 * self.va_scale / 3600.0
        cards: dict[str, str | float | int] = {
            "WCSAXES": 2, "CRPIX1": self.origin[1] + 1.0, "CRPIX2": self.origin[0] + 1.0,
            "CRVAL1": self.aim.ra, "CRVAL2": self.aim.dec, "CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP",
            "CUNIT1": "deg", "CUNIT2": "deg",
        }  # fmt: skip
        cards |= {f"CD{i + 1}_{j + 1}": float(cd[i, j]) for i in range(2) for j in range(2)}
        for name, terms in (("A", d.a), ("B", d.b), ("AP", d.ap), ("BP", d.bp)):
            cards[f"{name}_ORDER"] = len(terms) - 1
            cards |= {f"{name}_{i}_{j}": float(terms[i, j]) for i, j in np.argwhere(terms)}
        return cards


def _derivative(terms: Floats, axis: int) -> Floats:
    order = np.expand_dims(np.arange(len(terms), dtype=np.float64), 1 - axis)
    return np.roll(terms * order, -1, axis=axis)


def _product(p: Floats, q: Floats) -> Floats:
    out = np.zeros((len(p) + len(q) - 1,) * 2)
    for i, j in np.argwhere(p):
        out[i : i + len(q), j : j + len(q)] += p[i, j] * q
    return out


def make_gwcs(camera: Camera, bounding_box: tuple[tuple[float, float], tuple[float, float]]) -> WCS:
    """Build the generalized WCS: detector, v2v3, v2v3vacorr, world, as JWST imaging files have it.

    Parameters
    ----------
    camera : Camera
    bounding_box : tuple
        ((x low, x high), (y low, y high)) in pixels, the order gwcs wants.
    """
    from astropy import units
    from astropy.coordinates import ICRS
    from gwcs import WCS
    from gwcs.coordinate_frames import CelestialFrame, Frame2D

    telescope = {"axes_order": (0, 1), "axes_names": ("v2", "v3"), "unit": (units.arcsec, units.arcsec)}
    wcs = WCS(
        [
            (Frame2D(name="detector", axes_order=(0, 1), unit=(units.pix, units.pix)), _distortion_model(camera)),
            (Frame2D(name="v2v3", **telescope), _aberration_model(camera)),
            (Frame2D(name="v2v3vacorr", **telescope), _sky_model(camera)),
            (CelestialFrame(reference_frame=ICRS(), name="world"), None),
        ]
    )
    wcs.bounding_box = bounding_box
    return wcs


def _distortion_model(camera: Camera) -> Model:
    from astropy.modeling.models import AffineTransformation2D, Shift

    d, (y0, x0) = camera.detector, camera.origin
    matrix, offset = d.to_v2v3, np.array([d.v2, d.v3])
    back = np.linalg.inv(matrix)

    forward = Shift(-x0) & Shift(-y0) | _polynomials(d.a, d.b) | AffineTransformation2D(matrix, offset)
    forward.inverse = AffineTransformation2D(back, -back @ offset) | _polynomials(d.ap, d.bp) | Shift(x0) & Shift(y0)
    forward.name = "distortion"
    return forward


def _polynomials(a: Floats, b: Floats) -> Model:
    """(u, v) to (u + a(u, v), v + b(u, v))."""
    from astropy.modeling.models import Mapping, Polynomial2D

    to_u, to_v = (
        Polynomial2D(len(terms) - 1, **{linear: 1.0}, **{f"c{i}_{j}": terms[i, j] for i, j in np.argwhere(terms)})
        for linear, terms in (("c1_0", a), ("c0_1", b))
    )
    return Mapping((0, 1, 0, 1)) | to_u & to_v


def _aberration_model(camera: Camera) -> Model:
    from astropy.modeling.models import Scale, Shift

    d, scale = camera.detector, camera.va_scale
    shifts = Shift((1.0 - scale) * d.v2, name="dva_v2_shift") & Shift((1.0 - scale) * d.v3, name="dva_v3_shift")
    model = Scale(scale, name="dva_scale_v2") & Scale(scale, name="dva_scale_v3") | shifts
    model.name = "DVA_Correction"
    return model


def _sky_model(camera: Camera) -> Model:
    from astropy.modeling.models import RotationSequence3D, Scale
    from gwcs.geometry import CartesianToSpherical, SphericalToCartesian

    d, aim = camera.detector, camera.aim
    turn = RotationSequence3D([d.v2 / 3600.0, -d.v3 / 3600.0, aim.roll, aim.dec, -aim.ra], axes_order="zyxyz")
    to_unit = Scale(1.0 / 3600.0) & Scale(1.0 / 3600.0) | SphericalToCartesian(wrap_lon_at=180)
    model = to_unit | turn | CartesianToSpherical(wrap_lon_at=360)
    model.name = "v23tosky"
    return model
