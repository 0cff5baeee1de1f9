"""Corrections as steps of a gWCS, in the form that other JWST software knows and reads (spec image3 §3, §4.4)."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.sky.correction import Correction

if TYPE_CHECKING:
    import gwcs
    from astropy.modeling import Model

F8 = NDArray[np.float64]
Origin = tuple[float, float, float]
CORRECTED = "v2v3corr"
MOVING = "moving_target"
BEFORE = "uncorrected"
_TITLE = "JWST tangent-plane linear correction. v1"  # by this name other software finds and extends the correction
_GENERAL = "tangent-plane linear correction"
_ARCSEC = 3600.0 * float(np.rad2deg(1.0))


def frame_before_sky(wcs: gwcs.WCS) -> str | None:
    """Return the frame after which the telescope's V2V3 plane turns into the sky; None if there is no V2V3 frame."""
    return next((f for f in (CORRECTED, "v2v3vacorr", "v2v3") if f in wcs.available_frames[1:-1]), None)


def tangent_rotation(wcs: gwcs.WCS, origin: Origin) -> tuple[F8, Origin, float]:
    """Return the axes of the tangent plane of a gWCS with a V2V3 frame.

    Parameters
    ----------
    wcs : gwcs.WCS
        With a frame `frame_before_sky`.
    origin : tuple of 3 floats
        V2_REF, V3_REF (arcsec), ROLL_REF (degrees); a correction that is already in the gWCS keeps its own.

    Returns
    -------
    axes : ndarray of float64, shape (3, 3)
        Point of contact, x axis and y axis as rows (ICRS, Cartesian).
    origin : tuple of 3 floats
        That of the plane.
    error : float
        How far (rad) the map from V2V3 to the sky is from a rotation.
    """
    earlier = _earlier(wcs)
    origin = _angles(earlier) if earlier is not None else origin
    plane = np.array([[1.0, 1, 1, 1, 1], [0, 1, -1, 0, 0], [0, 0, 0, 1, -1]])  # 45 degrees out: rounding hardly matters
    plane /= np.linalg.norm(plane, axis=0)
    to_v2v3 = _turn(origin).inverse
    v2, v3 = _spherical(180)(*to_v2v3(*plane))
    sky = wcs.get_transform(frame_before_sky(wcs), wcs.available_frames[-1])
    lon, lat = np.deg2rad(sky(3600.0 * np.asarray(v2), 3600.0 * np.asarray(v3)))
    there = np.array([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])
    u, _, v = np.linalg.svd(plane @ there.T)  # the rotation that fits best
    axes = u @ v
    return axes, origin, float(np.abs(axes @ there - plane).max())


def corrected(wcs: gwcs.WCS, correction: Correction, centre: tuple[float, float]) -> gwcs.WCS:
    """Return a gWCS with a correction as one of its steps.

    Parameters
    ----------
    wcs : gwcs.WCS
        Not used by anybody else: its steps become part of the result.
    correction : Correction
        What is added.
    centre : tuple of 2 floats
        Where a ``tangent`` correction without ``origin`` touches the sky: right ascension and declination, degrees.

    Raises
    ------
    InputError
        If the correction is defined in the V2V3 plane and the gWCS has none.
    """
    import gwcs as package

    if correction.kind == "moving":
        steps, name = _moved(wcs, correction), ""
    elif correction.origin is None:
        steps, name = _turned_on_sky(wcs, correction, centre), wcs.name
    else:
        steps, name = _turned_in_v2v3(wcs, correction), wcs.name
    made = package.WCS(steps, name=correction.name or name)
    made.pixel_shape = wcs.pixel_shape
    return made


def _moved(wcs: gwcs.WCS, correction: Correction):  # type: ignore[no-untyped-def]
    """Steps with a last one that adds to longitude and latitude."""
    from astropy.modeling.models import Shift

    target = deepcopy(wcs.output_frame)
    target.name = MOVING
    lon, lat = correction.shift
    steps = [(s.frame, s.transform) for s in wcs.pipeline[:-1]]
    return [*steps, (wcs.output_frame, Shift(lon) & Shift(lat)), (target, None)]


def _turned_on_sky(wcs: gwcs.WCS, correction: Correction, centre: tuple[float, float]):  # type: ignore[no-untyped-def]
    """Steps with a last one that corrects in the plane that touches the sky at ``centre``."""
    before = deepcopy(wcs.output_frame)
    before.name = next(n for n in map(_numbered, range(1, 99)) if n not in wcs.available_frames)
    turn = _turn((3600.0 * centre[0], 3600.0 * centre[1], 0.0))
    model = _linear_step(turn, (correction.matrix, correction.shift), None)
    steps = [(s.frame, s.transform) for s in wcs.pipeline[:-1]]
    return [*steps, (before, model), (wcs.output_frame, None)]


def _numbered(n: int) -> str:
    """Frame names must differ, and an exposure may have been corrected before."""
    return BEFORE if n == 1 else f"{BEFORE}{n}"


def _turned_in_v2v3(wcs: gwcs.WCS, correction: Correction):  # type: ignore[no-untyped-def]
    """Steps with one that corrects in the tangent plane of V2V3; a correction that is there already is extended."""
    frames = list(wcs.available_frames)
    name = frame_before_sky(wcs)
    if name is None or correction.origin is None:
        raise InputError("this correction belongs to the V2V3 plane of a JWST gWCS, and the exposure's WCS has none")
    steps = [(s.frame, s.transform) for s in wcs.pipeline]
    earlier = _earlier(wcs)
    if earlier is not None:
        whole = Correction("tangent", *_terms(earlier)).then(correction)
        model = _linear_step(_turn(_angles(earlier)), (whole.matrix, whole.shift), 1.0 / 3600.0)
        steps[frames.index(CORRECTED) - 1] = (steps[frames.index(CORRECTED) - 1][0], model)
        return steps
    at = frames.index(name)
    model = _linear_step(_turn(correction.origin), (correction.matrix, correction.shift), 1.0 / 3600.0)
    after = deepcopy(wcs.pipeline[at].frame)
    after.name = CORRECTED
    return [*steps[:at], (steps[at][0], model), (after, steps[at][1]), *steps[at + 1 :]]


def _earlier(wcs: gwcs.WCS) -> Model | None:
    """Return the correction step that a gWCS holds already."""
    frames = list(wcs.available_frames)
    return wcs.pipeline[frames.index(CORRECTED) - 1].transform if CORRECTED in frames[1:-1] else None


def _angles(model: Model) -> Origin:
    v2, minus_v3, roll = (float(a) for a in model["det_to_optic_axis"].angles.value)
    return 3600.0 * v2, -3600.0 * minus_v3, roll


def _terms(model: Model) -> tuple[tuple[float, float, float, float], tuple[float, float]]:
    """Matrix and shift (arcsec) of a correction step."""
    affine = model["tp_affine"]
    a, b, c, d = (float(v) for v in np.ravel(affine.matrix.value))
    x, y = (float(v) * _ARCSEC for v in np.ravel(affine.translation.value))
    return (a, b, c, d), (x, y)


def _turn(origin: Origin) -> Model:
    """The rotation that brings a place (arcsec) to the x axis, with a roll (degrees) about it."""
    from astropy.modeling.models import RotationSequence3D

    v2, v3, roll = origin
    return RotationSequence3D([v2 / 3600.0, -v3 / 3600.0, roll], "zyx", name="det_to_optic_axis")


def _spherical(wrap: int) -> Model:
    from gwcs.geometry import CartesianToSpherical

    return CartesianToSpherical(name="c2s", wrap_lon_at=wrap)


def _linear_step(turn: Model, terms, unit: float | None) -> Model:  # type: ignore[no-untyped-def]
    """Angles -> gnomonic plane -> matrix and shift -> angles, with its inverse.

    ``unit`` is the angles' unit in degrees (arcsec in V2V3); None means degrees of right ascension and declination.
    """
    from astropy.modeling.models import AffineTransformation2D

    matrix = np.array(terms[0], dtype=np.float64).reshape(2, 2)
    shift = np.array(terms[1], dtype=np.float64) / _ARCSEC
    back = np.linalg.inv(matrix)
    forward = _in_plane(turn, AffineTransformation2D(matrix, shift, name="tp_affine"), unit)
    inverse = _in_plane(turn, AffineTransformation2D(back, -back @ shift, name="tp_affine_inv"), unit)
    forward.name = _TITLE if unit else _GENERAL
    inverse.name = f"Inverse {forward.name}"
    forward.inverse = inverse
    return forward


def _in_plane(turn: Model, affine: Model, unit: float | None) -> Model:
    from astropy.modeling.models import Const1D, Identity, Mapping, Scale
    from gwcs.geometry import SphericalToCartesian

    wrap = 180 if unit else 360
    back = turn.inverse
    back.name = "optic_axis_to_det"
    project = (Mapping((0, 1, 2), name="xyz") / Mapping((0, 0, 0), n_inputs=3, name="xxx")) | Mapping(
        (1, 2), name="xtyt"
    )
    project.name = "Cartesian 3D to TAN"
    deproject = Mapping((0, 0, 1), n_inputs=2, name="xtyt2xyz") | (Const1D(1, name="one") & Identity(2, name="I(2D)"))
    deproject.name = "TAN to cartesian 3D"
    sphere = SphericalToCartesian(name="s2c", wrap_lon_at=wrap)
    core = sphere | turn | project | affine | deproject | back | _spherical(wrap)
    if unit is None:
        return core
    to_degrees = Scale(unit, name="arcsec_to_deg_1D")
    from_degrees = Scale(3600.0, name="deg_to_arcsec_1D")
    return (to_degrees & to_degrees) | core | (from_degrees & from_degrees)
