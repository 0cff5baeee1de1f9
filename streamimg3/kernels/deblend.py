"""Blended sources divided at their saddles: several thresholds give markers, a watershed the basins (image3 §9.3).

Works on the bounding box of one source, in the smoothed image; beside that and the source's mask it holds about 16 bytes
for each of its pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamimg3.kernels.compiled import inlined, loop
from streamimg3.kernels.segments import label_into, relabel

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I4 = NDArray[np.int32]
Bool = NDArray[np.bool_]

MODES = ("exponential", "linear", "sinh")
BYTES = 17  # per pixel of a source's bounding box, beside its image and its mask; measured
_MANY = 200  # more markers than these are looked for again on linear levels


@dataclass(frozen=True)
class Levels:
    """How a source is divided.

    Parameters
    ----------
    npixels : int
        Fewest connected pixels of a part.
    nlevels : int
        Number of thresholds between the source's lowest and highest value.
    contrast : float
        Fraction of the source's flux that a part must have; 1 = nothing is divided.
    mode : {"exponential", "linear", "sinh"}
        Spacing of the thresholds.
    eight : bool
        Corners connect.
    """

    npixels: int
    nlevels: int = 32
    contrast: float = 0.001
    mode: str = "exponential"
    eight: bool = True


def deblend(smooth: F4, source: Bool, levels: Levels) -> tuple[I4, int] | None:
    """Divide a source.

    Parameters
    ----------
    smooth : ndarray of float32, shape (ny, nx)
        The image in which the source was found, in its bounding box.
    source : ndarray of bool, shape (ny, nx)
        The source's pixels.
    levels : Levels
        How.

    Returns
    -------
    parts : ndarray of int32, shape (ny, nx)
        1..count in the order of the first pixels of the markers, 0 outside the source.
    count : int
        Number of parts, at least 2.

    None is returned for a source that stays whole.
    """
    values = smooth[source]
    if levels.contrast == 1 or values.size < 2 * levels.npixels or values.min() == values.max():
        return None
    low, high, total, size = values.min(), values.max(), np.sum(values), values.size
    del values  # as large as the source
    mode = "linear" if levels.mode == "exponential" and low <= 0 else levels.mode
    smooth = np.ascontiguousarray(smooth)
    found = _markers(smooth, source, thresholds(low, high, levels.nlevels, mode), levels)
    if found is not None and mode != "linear" and found[1] > _MANY:
        found = None  # its memory is needed
        found = _markers(smooth, source, thresholds(low, high, levels.nlevels, "linear"), levels)
    if found is None:
        return None
    return _basins(smooth, source, found[0], (total, size), levels)


def thresholds(low: np.float32, high: np.float32, nlevels: int, mode: str) -> F4 | F8:
    """Return the levels between two values, both left out; float32, for sinh float64."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        linear = np.linspace(low, high, nlevels + 2)
        if mode == "linear":
            return linear[1:-1]
        part = (linear - low) / (high - low)
        if mode == "sinh":
            curved = np.sinh(part / 0.25) / np.sinh(1.0 / 0.25) * (high - low) + low
        else:
            curved = low * (high / low) ** part
    inner: F4 | F8 = curved[1:-1]
    return inner


def _markers(smooth: F4, source: Bool, cuts: F4 | F8, levels: Levels) -> tuple[I4, int] | None:
    """Return markers and their number: the largest connected sets that hold one peak each."""
    shape = smooth.shape
    runs = shape[0] * (shape[1] // 2 + 1) + 2  # no row has more runs of pixels, and so no image more labels
    markers, upper, tables = np.zeros(shape, np.int32), np.empty(shape, np.int32), np.empty((3, runs), np.int32)
    above = np.empty(shape, np.bool_)
    count = int(_find_markers(smooth, source, cuts, levels.npixels, levels.eight, markers, upper, above, tables))
    return None if count == 0 else (markers, count)


def _basins(
    smooth: F4, source: Bool, labels: I4, content: tuple[np.float32, int], levels: Levels
) -> tuple[I4, int] | None:
    """Let the markers grow to basins; give the pixels of the faintest one to the others until all are bright enough.

    ``content`` is the source's flux and its number of pixels.
    """
    total, size = content
    value, entry = np.empty(size + 1, np.float32), np.empty((size + 1, 2), np.int32)
    bins = int(labels.max()) + 1
    box = np.array([0, 0, *smooth.shape])
    while True:
        _flood(smooth, source, labels, box, levels.eight, value, entry)
        flux = np.full(bins, np.nan)
        _sum_labels(labels, smooth, flux)
        there = ~np.isnan(flux[1:])
        count = int(np.count_nonzero(there))
        if count < 2:
            return None
        fraction = np.where(there, flux[1:] / total, np.inf)
        faintest = int(np.argmin(fraction))
        if not fraction[faintest] < levels.contrast:
            break
        _clear(labels, faintest + 1, box)
    table = np.zeros(bins, np.int32)
    table[1:][there] = np.arange(1, count + 1)
    relabel(labels, table)
    return labels, count


@loop
def _find_markers(smooth, source, cuts, npixels, eight, markers, upper, above, tables):  # type: ignore[no-untyped-def]
    """Walk up the levels: a marker in which two or more large enough sets lie at the next level is replaced by them."""
    ny, nx = smooth.shape
    parent, area, child = tables[0], tables[1], tables[2]
    highest = 0
    for level in range(cuts.size):
        for y in range(ny):
            for x in range(nx):
                above[y, x] = source[y, x] and smooth[y, x] > cuts[level]
        n = label_into(above, eight, upper, parent)
        if _drop_small(upper, area, n, npixels) < 2:
            continue
        if highest == 0:
            highest = n
            for y in range(ny):
                for x in range(nx):
                    markers[y, x] = upper[y, x]
        elif _split(markers, upper, child, highest):
            for y in range(ny):
                for x in range(nx):
                    above[y, x] = markers[y, x] > 0
            highest = label_into(above, eight, markers, parent)
    return _drop_small(markers, area, highest, 1)


@loop
def _drop_small(labels, area, n, npixels):  # type: ignore[no-untyped-def]
    """Remove those of labels 1..n that have fewer pixels; return how many stay."""
    for k in range(n + 1):
        area[k] = 0
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            area[labels[y, x]] += 1
    kept = 0
    small = False
    for k in range(1, n + 1):
        kept += area[k] >= max(npixels, 1)
        small = small or area[k] < npixels
    if small:
        for y in range(labels.shape[0]):
            for x in range(labels.shape[1]):
                if labels[y, x] > 0 and area[labels[y, x]] < npixels:
                    labels[y, x] = 0
    return kept


@loop
def _split(markers, upper, child, n):  # type: ignore[no-untyped-def]
    """Replace each of markers 1..n that holds two or more of the upper labels by these; return whether there was any.

    ``child`` is 0 where nothing has been seen, the first label seen, or -1 for several.
    """
    for k in range(n + 1):
        child[k] = 0
    some = False
    for y in range(markers.shape[0]):
        for x in range(markers.shape[1]):
            k, u = markers[y, x], upper[y, x]
            if k > 0 and u > 0 and child[k] != u and child[k] != -1:
                child[k] = u if child[k] == 0 else -1
                some = some or child[k] == -1
    if some:
        for y in range(markers.shape[0]):
            for x in range(markers.shape[1]):
                k = markers[y, x]
                if k > 0 and child[k] == -1 and upper[y, x] == 0:
                    markers[y, x] = 0
    return some


@inlined
def _before(value, age, a, b):  # type: ignore[no-untyped-def]
    """Whether entry a leaves the queue before b: brighter, or equally bright and earlier."""
    return value[a] > value[b] or (value[a] == value[b] and age[a, 0] < age[b, 0])


@inlined
def _swap(value, entry, a, b):  # type: ignore[no-untyped-def]
    value[a], value[b] = value[b], value[a]
    entry[a, 0], entry[b, 0] = entry[b, 0], entry[a, 0]
    entry[a, 1], entry[b, 1] = entry[b, 1], entry[a, 1]


@inlined
def _push(value, entry, n, v, age, pixel):  # type: ignore[no-untyped-def]
    value[n] = v
    entry[n, 0] = age
    entry[n, 1] = pixel
    k = n
    while k > 0 and _before(value, entry, k, (k - 1) // 2):
        _swap(value, entry, k, (k - 1) // 2)
        k = (k - 1) // 2
    return n + 1


@inlined
def _drop_first(value, entry, n):  # type: ignore[no-untyped-def]
    n -= 1
    _swap(value, entry, 0, n)
    k = 0
    while 2 * k + 1 < n:
        child = 2 * k + 1
        if child + 1 < n and _before(value, entry, child + 1, child):
            child += 1
        if not _before(value, entry, child, k):
            break
        _swap(value, entry, child, k)
        k = child
    return n


@inlined
def _free(source, labels, y, x):  # type: ignore[no-untyped-def]
    return 0 <= y < labels.shape[0] and 0 <= x < labels.shape[1] and source[y, x] and labels[y, x] == 0


@loop
def _flood(smooth, source, labels, box, eight, value, entry):  # type: ignore[no-untyped-def]
    """Grow the labels into the source's unlabelled pixels, the brightest reached pixel first, the earlier of equals.

    Only labelled pixels within ``box`` can have unlabelled neighbours.
    """
    nx = labels.shape[1]
    n, age = 0, 0
    neighbours = 8 if eight else 4
    dy = (-1, 0, 0, 1, -1, -1, 1, 1)
    dx = (0, -1, 1, 0, -1, 1, -1, 1)
    for y in range(box[0], box[2]):
        for x in range(box[1], box[3]):
            if labels[y, x] > 0:
                for k in range(neighbours):
                    if _free(source, labels, y + dy[k], x + dx[k]):
                        n = _push(value, entry, n, smooth[y, x], 0, y * nx + x)
                        break
    while n > 0:
        y, x = divmod(entry[0, 1], nx)
        n = _drop_first(value, entry, n)
        for k in range(neighbours):
            v, u = y + dy[k], x + dx[k]
            if _free(source, labels, v, u):
                labels[v, u] = labels[y, x]
                age += 1
                n = _push(value, entry, n, smooth[v, u], age, v * nx + u)


@loop
def _sum_labels(labels, smooth, flux):  # type: ignore[no-untyped-def]
    """Sum an image over every label that there is, row by row."""
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            k = labels[y, x]
            if k > 0:
                flux[k] = np.float64(smooth[y, x]) + (0.0 if math.isnan(flux[k]) else flux[k])


@loop
def _clear(labels, which, box):  # type: ignore[no-untyped-def]
    """Remove a label; ``box`` becomes its outline and one pixel around it."""
    y0, x0, y1, x1 = labels.shape[0], labels.shape[1], 0, 0
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            if labels[y, x] == which:
                labels[y, x] = 0
                y0, y1 = min(y0, y), y + 1
                x0, x1 = min(x0, x), max(x1, x + 1)
    box[0], box[1] = max(y0 - 1, 0), max(x0 - 1, 0)
    box[2], box[3] = min(y1 + 1, labels.shape[0]), min(x1 + 1, labels.shape[1])
