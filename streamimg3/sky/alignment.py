"""Exposures aligned to each other and to a reference catalogue, from star positions alone (spec image3 §4.4-4.6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamimg3.sky.fitting import FitOptions, NoFit, fit_linear
from streamimg3.sky.hulls import Footprints
from streamimg3.sky.matching import Search, SourceConfusion, match
from streamimg3.sky.tangent import TangentPlane, sky_angles, unit_vectors

F8 = NDArray[np.float64]
_REACH = 60.0  # arcsec beyond a group's stars and search radius at which reference stars still take part
SUCCESS, REFERENCE, FAILED = "SUCCESS", "REFERENCE", "FAILED"


class Refused(Exception):
    """An alignment that does not happen at all; the text says why."""


@dataclass(frozen=True, eq=False)
class Member:
    """What an alignment knows of an exposure.

    Parameters
    ----------
    group : str
        Exposures of one group move together.
    plane : TangentPlane
        Its own tangent plane.
    scale : float
        Size of a pixel where the plane touches, arcsec.
    ra, dec : ndarray of float64, shape (n,)
        Its stars before the alignment, degrees.
    weight : ndarray of float64, shape (n,), or None
        Weights of its stars in fits.
    corners : ndarray of float64, shape (2, 4)
        Right ascension and declination of the corners of its footprint, degrees.
    """

    group: str
    plane: TangentPlane
    scale: float
    ra: F8
    dec: F8
    weight: F8 | None
    corners: F8


@dataclass(frozen=True)
class Linear:
    """A linear map of a tangent plane: rows of the matrix on (x, y), then the shift in arcsec."""

    matrix: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 1.0)
    shift: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def of(cls, matrix: F8, shift: F8) -> Linear:
        """Return the map of a (2, 2) matrix and a shift (2,)."""
        a, b, c, d = (float(v) for v in matrix.ravel())
        return cls((a, b, c, d), (float(shift[0]), float(shift[1])))

    @property
    def arrays(self) -> tuple[F8, F8]:
        """Matrix (2, 2) and shift (2,)."""
        return np.array(self.matrix).reshape(2, 2), np.array(self.shift)

    def after(self, matrix: F8, shift: F8) -> Linear:
        """Return this map followed by another one."""
        first, moved = self.arrays
        return Linear.of(matrix @ first, matrix @ moved + shift)

    def apply(self, plane: TangentPlane, ra: F8, dec: F8) -> tuple[F8, F8]:
        """Return positions (degrees) after the map in a plane."""
        matrix, shift = self.arrays
        y, x = plane.project(ra, dec)
        x, y = matrix @ np.stack([x, y]) + shift[:, None]
        return plane.deproject(y, x)


@dataclass(frozen=True)
class Place:
    """Where an exposure stands: how its alignment ended, and the map in its own plane that corrects it."""

    status: str = FAILED
    reason: str | None = None
    linear: Linear = Linear()
    matched: int = 0
    rms: float | None = None


@dataclass(frozen=True)
class Order:
    """In which order groups are aligned, and whether the reference grows.

    Parameters
    ----------
    enforce_user_order : bool
        In the order of the input, also when the reference grows.
    expand_refcat : bool
        Stars of aligned groups that the reference does not have join it; groups are then taken by overlap.
    """

    enforce_user_order: bool = False
    expand_refcat: bool = False


@dataclass(frozen=True, eq=False)
class ReferenceStars:
    """Stars that others are aligned to: unit vectors (3, n), and weights or None."""

    vectors: F8
    weight: F8 | None

    @classmethod
    def of(cls, ra: F8, dec: F8, weight: F8 | None = None) -> ReferenceStars:
        """Return reference stars from positions in degrees."""
        return cls(unit_vectors(ra, dec), weight)

    def joined(self, other: ReferenceStars) -> ReferenceStars:
        """Return both together; where only one has weights the other's are 1."""
        if self.weight is None and other.weight is None:
            weight = None
        else:
            weight = np.concatenate(
                [np.ones(s.vectors.shape[1]) if s.weight is None else s.weight for s in (self, other)]
            )
        return ReferenceStars(np.hstack([self.vectors, other.vectors]), weight)

    def near(self, stars: F8, reach: float) -> ReferenceStars:
        """Return those within ``reach`` (arcsec) of the circle around other stars (unit vectors), order kept."""
        centre = stars.sum(axis=1)
        centre /= np.linalg.norm(centre)
        radius = np.arccos(np.clip(centre @ stars, -1.0, 1.0)).max() + np.deg2rad(reach / 3600.0)
        near = centre @ self.vectors >= np.cos(min(radius, 1.5))
        return ReferenceStars(self.vectors[:, near], None if self.weight is None else self.weight[near])


Tell = Callable[[str, "Place"], None]


def align_relative(members: Sequence[Member], search: Search, fit: FitOptions, order: Order, tell: Tell) -> list[Place]:
    """Align groups of exposures to the first one, or to a reference that grows.

    Parameters
    ----------
    members : sequence of Member
        In input order.
    search, fit : Search, FitOptions
        How stars are matched and maps fitted.
    order : Order
        Which group comes next.
    tell : callable
        Told of every group: its name and where its first member stands.

    Returns
    -------
    list of Place
        One per member.

    Raises
    ------
    Refused
        If nothing can be aligned, or a correction is too large to be one (then all are dropped).
    """
    if search.confusing:
        raise Refused(
            f"separation = {search.separation} must be larger than sqrt(2) x tolerance = {np.sqrt(2) * search.tolerance:.4g},"
            " or sources are confused"
        )
    groups: dict[str, list[int]] = {}
    for i, member in enumerate(members):
        groups.setdefault(member.group, []).append(i)
    places = [Place(reason="empty source catalog") for _ in members]
    left = [name for name, indices in groups.items() if sum(len(members[i].ra) for i in indices)]
    if len(left) < 2:
        raise Refused("fewer than two exposures (or groups of them) have sources: there is nothing to align")
    queue = _Queue(members, groups, left, order)
    first = queue.reference
    for i in groups[first]:
        places[i] = Place(REFERENCE)
    tell(first, places[groups[first][0]])
    stars = _stars([members[i] for i in groups[first]], [Linear()] * len(groups[first]))
    while (name := queue.next()) is not None:
        chosen = [members[i] for i in groups[name]]
        found, unmatched = _align_group(chosen, [Linear()] * len(chosen), stars, (search, fit))
        for i, place in zip(groups[name], found, strict=True):
            places[i] = place
        tell(name, found[0])
        if order.expand_refcat and (found[0].status == SUCCESS or queue.apart(name)):
            fresh = _stars(chosen, [p.linear for p in found], unmatched)
            stars = stars.joined(fresh)
            queue.grow(fresh.vectors)
    _require_small(members, places, search)
    return places


def align_absolute(
    members: Sequence[Member], before: Sequence[Linear], reference: ReferenceStars, search: Search, fit: FitOptions
) -> list[Place]:
    """Align all exposures together to a reference catalogue, by one map.

    Parameters
    ----------
    members : sequence of Member
        In input order.
    before : sequence of Linear
        What an alignment to each other has found.
    reference : ReferenceStars
        The catalogue.
    search, fit : Search, FitOptions
        How stars are matched and the map fitted.

    Returns
    -------
    list of Place
        One per member; ``linear`` is the whole correction.

    Raises
    ------
    Refused
        If the catalogue is too small, or there are no sources.
    """
    if search.confusing:
        raise Refused(
            f"abs_separation = {search.separation} must be larger than sqrt(2) x abs_tolerance ="
            f" {np.sqrt(2) * search.tolerance:.4g}, or sources are confused"
        )
    count = reference.vectors.shape[1]
    if count < fit.minobj:
        raise Refused(f"the reference catalogue has {count} sources, fewer than abs_minobj = {fit.minobj}")
    if not sum(len(m.ra) for m in members):
        raise Refused("no exposure has sources to align to the reference catalogue")
    places, _ = _align_group(list(members), list(before), reference, (search, fit))
    return places


def _stars(
    members: Sequence[Member], linears: Sequence[Linear], which: NDArray[np.bool_] | None = None
) -> ReferenceStars:
    """The stars of a group at their corrected places, one exposure after the other."""
    sky = [li.apply(m.plane, m.ra, m.dec) for m, li in zip(members, linears, strict=True)]
    vectors = np.hstack([unit_vectors(*s) for s in sky])
    with_weights = all(m.weight is not None for m in members if len(m.ra))
    weight = np.concatenate([m.weight for m in members if m.weight is not None]) if with_weights else None
    if which is None:
        return ReferenceStars(vectors, weight)
    return ReferenceStars(vectors[:, which], None if weight is None else weight[which])


def _align_group(
    members: list[Member], before: list[Linear], reference: ReferenceStars, how: tuple[Search, FitOptions]
) -> tuple[list[Place], NDArray[np.bool_]]:
    """Where the members of a group stand after alignment, and which of their stars the reference does not have."""
    search, options = how
    plane = members[0].plane
    stars = _stars(members, before)
    unmatched = np.ones(stars.vectors.shape[1], bool)

    def failed(reason: str, matched: int = 0) -> tuple[list[Place], NDArray[np.bool_]]:
        return [Place(FAILED, reason, Linear(), matched) for _ in members], unmatched

    near = reference.near(stars.vectors, _REACH + 2.0 * search.largest_correction + 10.0 * search.separation)
    ours, theirs = (_in_plane(plane, s) for s in (stars, near))
    try:
        wanted, have = match(theirs, ours, members[0].scale, search)
    except SourceConfusion as error:
        raise Refused(
            f"several reference sources match one source ({error}): change tolerance or separation"
        ) from error
    unmatched[have] = False
    if len(have) < options.minobj:
        return failed(f"not enough matches: {len(have)}, {options.minobj} are required", len(have))
    weights = _weights(
        None if near.weight is None else near.weight[wanted], None if stars.weight is None else stars.weight[have]
    )
    try:
        fit = fit_linear(theirs[wanted], ours[have], options, weights)
    except NoFit as error:
        return failed(str(error), len(have))
    places = []
    for member, linear in zip(members, before, strict=True):
        matrix, shift = transferred(fit.matrix, fit.shift, plane.linear_map(member.plane))
        places.append(Place(SUCCESS, None, linear.after(matrix, shift), len(have), fit.rmse))
    return places, unmatched


def _in_plane(plane: TangentPlane, stars: ReferenceStars) -> F8:
    y, x = plane.project(*sky_angles(stars.vectors))
    return np.column_stack([x, y])


def _weights(reference: F8 | None, image: F8 | None) -> F8 | None:
    """Weights of matches: variances, the inverse weights, add."""
    if reference is None or image is None:
        return image if reference is None else reference
    total = np.where((reference > 0) & (image > 0), reference + image, np.inf)
    return reference * image / total


def transferred(matrix: F8, shift: F8, planes: tuple[F8, F8]) -> tuple[F8, F8]:
    """Return the map of one plane as a map of another; ``planes`` is the linear map between them."""
    turn, moved = planes
    there = turn @ matrix @ np.linalg.inv(turn)
    return there, turn @ shift - there @ moved + moved


def _require_small(members: Sequence[Member], places: Sequence[Place], search: Search) -> None:
    for member, place in zip(members, places, strict=True):
        apart = corner_moves(member, place.linear).max()
        if not apart < search.largest_correction:
            raise Refused(
                f"a correction moves a corner by {apart:.3g} arcsec, not less than 2 x (searchrad + tolerance) ="
                f" {search.largest_correction:.3g}: probably a false match, so no relative alignment is applied"
            )


def corner_moves(member: Member, linear: Linear) -> F8:
    """Return how far (arcsec) a map moves the corners of an exposure's footprint."""
    if linear == Linear():
        return np.zeros(4)
    before, after = unit_vectors(*member.corners), unit_vectors(*linear.apply(member.plane, *member.corners))
    half = np.linalg.norm(before - after, axis=0) / 2.0
    moves: F8 = 3600.0 * np.rad2deg(2.0 * np.arcsin(half))
    return moves


def offset_on_sky(member: Member, linear: Linear) -> tuple[float, float]:
    """Return how far a map moves the middle of an exposure on the sky: to the north and to the east, arcsec."""
    middle = unit_vectors(*member.corners).mean(axis=1, keepdims=True)
    ra, dec = sky_angles(middle)
    y, x = TangentPlane.at(float(ra[0]), float(dec[0])).project(*linear.apply(member.plane, ra, dec))
    return float(y[0]), float(x[0])


class _Queue:
    """Which group comes next: in order, or that with the largest overlap with the reference so far."""

    def __init__(self, members: Sequence[Member], groups: dict[str, list[int]], names: list[str], order: Order) -> None:
        self._ordered = order.enforce_user_order or not order.expand_refcat
        self._left = list(names)
        self._areas = (
            Footprints([[unit_vectors(members[i].ra, members[i].dec) for i in groups[n]] for n in names])
            if order.expand_refcat
            else None
        )
        self._number = {n: k for k, n in enumerate(names)}
        if self._ordered or len(names) == 2 or self._areas is None:
            self.reference = self._left.pop(0)
        else:
            self.reference, second = (names[k] for k in self._areas.best_pair())
            self._left.remove(self.reference)
            self._left.remove(second)
            self._left.insert(0, second)
            self._paired = True
        if self._areas is not None:
            self._areas.start(self._number[self.reference])

    _paired = False

    def next(self) -> str | None:
        """Return the name of the next group, or None."""
        if not self._left:
            return None
        if self._ordered or self._paired or self._areas is None:
            self._paired = False
            return self._left.pop(0)
        areas = self._areas.overlaps([self._number[n] for n in self._left])
        return self._left.pop(int(np.argmax(areas)))

    def apart(self, name: str) -> bool:
        """Whether a group does not overlap the reference at all."""
        return self._areas is not None and not self._areas.overlaps([self._number[name]])[0] > 0

    def grow(self, vectors: F8) -> None:
        """The reference now reaches over these stars too."""
        if self._areas is not None:
            self._areas.grow(vectors)
