"""Connected pixels: labels within a window, their outlines, and labels joined over the seams of tiles (image3 §9.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamimg3.kernels.compiled import inlined, loop

Bool = NDArray[np.bool_]
I4 = NDArray[np.int32]
I8 = NDArray[np.int64]


@dataclass(frozen=True)
class Outlines:
    """What is known of labels 1..n (entry 0 is label 1).

    Parameters
    ----------
    area : ndarray of int64, shape (n,)
        Number of pixels.
    box : ndarray of int64, shape (n, 4)
        Smallest ``(y0, x0, y1, x1)``, upper ends excluded.
    first : ndarray of int64, shape (n, 2)
        Row and column of the first pixel, row by row.
    """

    area: I8
    box: I8
    first: I8

    def shift(self, dy: int, dx: int) -> Outlines:
        """Return the outlines moved by whole pixels."""
        move = np.array([dy, dx, dy, dx])
        return Outlines(self.area, self.box + move, self.first + move[:2])

    def take(self, which: NDArray[np.integer] | Bool) -> Outlines:
        """Return some of them."""
        return Outlines(self.area[which], self.box[which], self.first[which])


def label(above: Bool, eight: bool) -> tuple[I4, int]:
    """Label connected pixels 1, 2, … in the order of their first pixel, row by row.

    Parameters
    ----------
    above : ndarray of bool, shape (ny, nx)
        Pixels that belong to anything.
    eight : bool
        Pixels that share only a corner are connected too.

    Returns
    -------
    labels : ndarray of int32, shape (ny, nx)
        0 = none.
    count : int
        Highest label.
    """
    labels = np.empty(above.shape, np.int32)
    parent = np.empty(_runs(above) + 1, np.int32)
    return labels, int(label_into(above, eight, labels, parent))


def outlines(labels: I4, count: int) -> Outlines:
    """Return the outlines of labels 1..count."""
    found = Outlines(np.zeros(count, np.int64), np.zeros((count, 4), np.int64), np.zeros((count, 2), np.int64))
    _outline(labels, found.area, found.box, found.first)
    return found


def relabel(labels: I4, table: I4) -> None:
    """Replace every label by its entry in a table, in place; entry 0 stays 0."""
    _relabel(labels, table)


def seam_pairs(before: I4 | I8, after: I4 | I8, eight: bool) -> I8:
    """Return which labels touch over a seam.

    Parameters
    ----------
    before, after : ndarray of int32 or int64, shape (n,)
        Labels along the two sides of the seam, 0 = none.
    eight : bool
        Corners connect too.

    Returns
    -------
    ndarray of int64, shape (m, 2)
        Pairs, each once.
    """
    pairs = [(before, after)]
    if eight:
        pairs += [(before[1:], after[:-1]), (before[:-1], after[1:])]
    found = np.concatenate([np.stack([a[both], b[both]], 1) for a, b in pairs for both in [(a > 0) & (b > 0)]])
    return np.unique(found.astype(np.int64), axis=0)


def join(pairs: I8, count: int) -> I8:
    """Return for each of ``count`` items the lowest item that it is connected to by pairs (int64, shape (count,))."""
    parent = np.arange(count)
    _join(np.ascontiguousarray(pairs), parent)
    return parent


@loop
def _runs(above):  # type: ignore[no-untyped-def]
    """Number of runs of pixels in all rows: as many labels may be needed on the way."""
    n = 0
    for y in range(above.shape[0]):
        last = False
        for x in range(above.shape[1]):
            n += above[y, x] and not last
            last = above[y, x]
    return n


@inlined
def _root(parent, a):  # type: ignore[no-untyped-def]
    while parent[a] != a:
        parent[a] = parent[parent[a]]
        a = parent[a]
    return a


@inlined
def _unite(parent, a, b):  # type: ignore[no-untyped-def]
    """Join two labels under the lower one's root; return that."""
    a, b = _root(parent, a), _root(parent, b)
    low = min(a, b)
    parent[max(a, b)] = low
    return low


@loop
def label_into(above, eight, labels, parent):  # type: ignore[no-untyped-def]
    """Label connected pixels as :func:`label` does, in arrays at hand.

    Parameters
    ----------
    above : ndarray of bool, shape (ny, nx)
        Pixels that belong to anything.
    eight : bool
        Pixels that share only a corner are connected too.
    labels : ndarray of int32, shape (ny, nx)
        Takes the labels, 0 = none; what it holds before does not matter.
    parent : ndarray of int32, shape (n,)
        Room to work in: one entry more than there are runs of pixels in all rows, or longer.

    Returns
    -------
    int
        Highest label.
    """
    ny, nx = above.shape
    count = 0
    parent[0] = 0
    for y in range(ny):
        for x in range(nx):
            if not above[y, x]:
                labels[y, x] = 0
                continue
            mine = labels[y, x - 1] if x > 0 else np.int32(0)
            if y > 0:
                start = max(x - 1, 0) if eight else x
                stop = min(x + 2, nx) if eight else x + 1
                for k in range(start, stop):
                    other = labels[y - 1, k]
                    if other > 0:
                        mine = _unite(parent, mine, other) if mine > 0 else other
            if mine == 0:
                count += 1
                parent[count] = count
                mine = count
            labels[y, x] = mine
    final = 0  # a root is lower than all its labels, so that roots are in the order of first pixels
    for k in range(1, count + 1):
        if parent[k] == k:
            final += 1
            parent[k] = final
        else:
            parent[k] = parent[parent[k]]
    for y in range(ny):
        for x in range(nx):
            labels[y, x] = parent[labels[y, x]]
    return final


@loop
def _outline(labels, area, box, first):  # type: ignore[no-untyped-def]
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            k = labels[y, x] - 1
            if k < 0:
                continue
            if area[k] == 0:
                first[k, 0], first[k, 1] = y, x
                box[k, 0], box[k, 1], box[k, 3] = y, x, x + 1
            area[k] += 1
            box[k, 1] = min(box[k, 1], x)
            box[k, 2] = y + 1
            box[k, 3] = max(box[k, 3], x + 1)


@loop
def _relabel(labels, table):  # type: ignore[no-untyped-def]
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            labels[y, x] = table[labels[y, x]]


@loop
def _join(pairs, parent):  # type: ignore[no-untyped-def]
    for k in range(pairs.shape[0]):
        _unite(parent, pairs[k, 0], pairs[k, 1])
    for k in range(parent.size):
        parent[k] = parent[parent[k]]
