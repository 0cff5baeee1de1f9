"""Subtraction of a star's image with the principal components of reference stars: KLIP (spec others §3.5, §3.8).

Exact in two passes over bands of rows: `accumulate` adds up products of planes, `solve` turns their sum into
coefficients, `project` subtracts.  All of it is done row by row in double precision, and the sums of rows are always
joined in the same pairs (0 and 1, 2 and 3; then 0–1 and 2–3; …): no bit depends on the bands or on their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
Bool = NDArray[np.bool_]

DEGENERATE = 1e-12  # of the largest eigenvalue: below, a component is rounding


# ---------------------------------------------------------------- first pass
class Moments(NamedTuple):
    """Means of planes over some pixels, and products of deviations from them.

    Attributes
    ----------
    pixels : int
        How many.
    mean : ndarray of float64, shape (nref,)
        Means of the references.
    gram : ndarray of float64, shape (nref, nref)
        Products between references.
    seen : ndarray of float64, shape (nint,)
        Those of the pixels that each integration has.
    science : ndarray of float64, shape (nint,)
        Means of the integrations over these.
    shared : ndarray of float64, shape (nref, nint), or (nref, 1) where every integration has all pixels
        Means of the references over these.
    cross : ndarray of float64, shape (nref, nint)
        Products between references and integrations over these.
    """

    pixels: int
    mean: F8
    gram: F8
    seen: F8
    science: F8
    shared: F8
    cross: F8

    def joined(self, other: Moments) -> Moments:
        """Return the moments over the pixels of both; nothing is lost to cancellation."""
        pixels = self.pixels + other.pixels
        step = other.mean - self.mean
        spread = step * np.sqrt(self.pixels * other.pixels / max(pixels, 1))
        gram = np.multiply.outer(spread, spread)
        gram += self.gram
        gram += other.gram
        seen = self.seen + other.seen
        share = other.seen / np.maximum(seen, 1.0)
        apart, jump = other.shared - self.shared, other.science - self.science
        cross = apart * (jump * self.seen * share)
        cross += self.cross
        cross += other.cross
        whole = self.shared.shape[1] == 1 and other.shared.shape[1] == 1
        mean = self.mean + step * (other.pixels / max(pixels, 1))
        shared = mean[:, None] if whole else self.shared + apart * share
        return Moments(pixels, mean, gram, seen, self.science + jump * share, shared, cross)


@dataclass(frozen=True)
class Sums:
    """Moments of rows; ``Sums()`` is those of none, and + adds those of other rows.

    Parameters
    ----------
    nodes : dict of (int, int) to Moments
        The key (level, k) means the rows from k · 2^level to (k + 1) · 2^level; at most two of a level if the rows are
        one band.
    """

    nodes: dict[tuple[int, int], Moments] = field(default_factory=dict)

    def __add__(self, other: Sums) -> Sums:
        """Return the sums over the rows of both.

        Raises
        ------
        ValueError
            If they have a row in common.
        """
        nodes = dict(self.nodes)
        for key in sorted(other.nodes):
            _insert(nodes, key, other.nodes[key])
        return Sums(nodes)

    def total(self) -> Moments:
        """Return the moments over all rows.

        Raises
        ------
        ValueError
            If there are none.
        """
        if not self.nodes:
            raise ValueError("no rows have been added up")
        first, *rest = (self.nodes[key] for key in sorted(self.nodes, key=lambda key: key[1] << key[0]))
        for moments in rest:
            first = first.joined(moments)
        return first


def _insert(nodes: dict[tuple[int, int], Moments], key: tuple[int, int], moments: Moments) -> None:
    """Add a node, joined with its neighbour as long as that is there."""
    while (neighbour := nodes.pop((key[0], key[1] ^ 1), None)) is not None:
        moments = neighbour.joined(moments) if key[1] & 1 else moments.joined(neighbour)
        key = (key[0] + 1, key[1] >> 1)
    start, stop = key[1] << key[0], (key[1] + 1) << key[0]
    if any(at << depth < stop and start < (at + 1) << depth for depth, at in nodes):
        raise ValueError(f"rows {start} to {stop - 1} have been added up before")
    nodes[key] = moments


def accumulate(refs: F4, science: F4, mask: Bool | None = None, first_row: int = 0) -> Sums:
    """Add up products over a band of rows.

    Parameters
    ----------
    refs : ndarray of float32, shape (nref, rows, nx)
        References, aligned.  A pixel that is not finite in one of them takes no part.
    science : ndarray of float32, shape (nint, rows, nx)
        Integrations.  A pixel that is not finite counts in this integration as if it had the mean of its plane.
    mask : ndarray of bool, shape (rows, nx), or None
        Pixels that the components are made of and fitted to; None = all.
    first_row : int
        Row of the planes that the band starts with.
    """
    nodes: dict[tuple[int, int], Moments] = {}
    for j in range(refs.shape[1]):
        use = np.ones(refs.shape[2], np.bool_) if mask is None else mask[j]
        _insert(nodes, (0, first_row + j), _row_moments(refs[:, j], science[:, j], use))
    return Sums(nodes)


def _row_moments(refs: F4, science: F4, use: Bool) -> Moments:
    """Return the moments of one row of all planes: (nref, nx), (nint, nx), (nx,)."""
    valid = use & np.isfinite(refs).all(axis=0)
    seen = valid & np.isfinite(science)
    count, counts = int(np.count_nonzero(valid)), np.count_nonzero(seen, axis=1).astype(np.float64)
    mean, x = _centred(refs, valid, np.array(float(count)))
    level, t = _centred(science, seen, counts)
    shared = mean[:, None]
    if (counts < count).any():
        shared = shared + (x @ seen.T.astype(np.float64)) / np.maximum(counts, 1.0)
    return Moments(count, mean, x @ x.T, counts, level, shared, x @ t.T)


def _centred(planes: F4, there: Bool, counts: F8) -> tuple[F8, F8]:
    """Return the means of planes over the pixels that are there, and the deviations, 0 elsewhere."""
    whole = bool(there.all())
    x = planes.astype(np.float64) if whole else np.where(there, planes, np.float32(0.0)).astype(np.float64)
    mean: F8 = x.sum(axis=1) / np.maximum(counts, 1.0)
    x -= mean[:, None]
    if not whole:
        np.copyto(x, 0.0, where=~there)
    return mean, x


# ---------------------------------------------------------------- between the passes
@dataclass(frozen=True)
class Coefficients:
    """What `project` needs.

    Parameters
    ----------
    truncate : tuple of int
        Numbers of components that were asked for.
    kept : tuple of int
        Numbers that there are: no more than references, and none that is rounding.
    vectors : ndarray of float64, shape (max(kept), nref)
        Components as orthonormal combinations of the references, the strongest first.
    amplitudes : ndarray of float64, shape (max(kept), nint)
        What each integration has of them.
    mean : ndarray of float64, shape (nref,)
        Means of the references.
    science : ndarray of float64, shape (nint,)
        Means of the integrations.
    pixels : int
        Pixels that the components are made of; 0 = none was finite in every reference.
    strengths : ndarray of float64, shape (nref,)
        Eigenvalues, the largest first; those of rounding too.
    """

    truncate: tuple[int, ...]
    kept: tuple[int, ...]
    vectors: F8
    amplitudes: F8
    mean: F8
    science: F8
    pixels: int
    strengths: F8


def solve(sums: Sums, truncate: Iterable[int]) -> Coefficients:
    """Find the components of the references and what the integrations have of them.

    Parameters
    ----------
    sums : Sums
        Over all rows.
    truncate : iterable of int
        Numbers of components to keep, each 0 (only means are subtracted) or more; those beyond what there is keep all.

    Raises
    ------
    ValueError
        If no rows have been added up or a number is negative.
    """
    wanted = tuple(truncate)
    if any(number < 0 for number in wanted):
        raise ValueError(f"numbers of components {wanted}: they must be 0 or more")
    moments = sums.total()
    values, vectors = np.linalg.eigh(moments.gram)
    values, vectors = values[::-1], vectors[:, ::-1].T
    there = int(np.count_nonzero(values > DEGENERATE * max(values[0], 0.0)))
    kept = tuple(min(number, there) for number in wanted)
    most = max(kept, default=0)
    amplitudes = (vectors[:most] @ moments.cross) / values[:most, None]
    return Coefficients(
        wanted,
        kept,
        np.ascontiguousarray(vectors[:most]),
        amplitudes,
        moments.mean,
        moments.science,
        moments.pixels,
        values,
    )


# ---------------------------------------------------------------- second pass
class Projection(NamedTuple):
    """A band of rows after the subtraction, for each number of components that was asked for.

    Attributes
    ----------
    subtracted : ndarray of float32, shape (ntruncate, nint, rows, nx)
        Integrations without their means and their models; NaN where the integration or a reference is not finite.
    err : ndarray of float32, shape (ntruncate, rows, nx)
        Standard deviation over the references of what their own components leave of them, for all integrations.
    model : ndarray of float32, shape of `subtracted`, or None
        The star, of mean 0 over the pixels that were used.
    """

    subtracted: F4
    err: F4
    model: F4 | None


def project(refs: F4, science: F4, coefficients: Coefficients, with_model: bool = False) -> Projection:
    """Subtract the star from a band of rows.

    Parameters
    ----------
    refs, science : ndarray of float32, shapes (nref, rows, nx) and (nint, rows, nx)
        As in `accumulate`; all pixels are treated, those outside its mask too.
    coefficients : Coefficients
        From the sums over all rows.
    with_model : bool
        Return the model of the star too.
    """
    shape = (len(coefficients.truncate), *science.shape)
    subtracted, err = np.empty(shape, np.float32), np.empty((shape[0], *shape[2:]), np.float32)
    model = np.empty(shape, np.float32) if with_model else None
    for j in range(refs.shape[1]):
        levels = _row_levels(refs[:, j], coefficients)
        t = science[:, j].astype(np.float64) - coefficients.science[:, None]
        t[~np.isfinite(t)] = np.nan
        for k, (star, noise) in enumerate(levels):
            subtracted[k, :, j] = t - star
            err[k, j] = noise
            if model is not None:
                model[k, :, j] = star
    return Projection(subtracted, err, model)


def _row_levels(refs: F4, coefficients: Coefficients) -> Sequence[tuple[F8, F8]]:
    """Return model (nint, nx) and error (nx,) of one row for each number of components."""
    x = refs.astype(np.float64) - coefficients.mean[:, None]
    missing = ~np.isfinite(x).all(axis=0)
    x[:, missing] = np.nan
    scores = coefficients.vectors @ x
    star = np.where(missing, np.nan, np.zeros((len(coefficients.science), 1)))
    found: dict[int, tuple[F8, F8]] = {}
    done = 0
    for kept in sorted(set(coefficients.kept)):
        x -= coefficients.vectors[done:kept].T @ scores[done:kept]
        star = star + coefficients.amplitudes[done:kept].T @ scores[done:kept]
        found[kept], done = (star, x.std(axis=0)), kept
    return [found[kept] for kept in coefficients.kept]
