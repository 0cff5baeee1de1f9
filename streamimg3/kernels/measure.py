"""Sums over the pixels of sources and what follows from them: centroids, shapes, fluxes, errors (image3 §9.4).

Every sum runs over the source's own bounding box, row after row from left to right, in double precision: neither the
window that the pixels come in nor its division into bands of rows changes a bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from streamimg3.kernels.compiled import loop

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I4 = NDArray[np.int32]
I8 = NDArray[np.int64]
Bool = NDArray[np.bool_]

_RAW, _CENTRAL = 6, 6
_THIN = 1.0 / 12.0  # variance of a uniform distribution over one pixel


@dataclass(frozen=True)
class Pixels:
    """A window of an image, as sources are measured on it.

    Parameters
    ----------
    origin : tuple of int
        Row and column of the window's first pixel in the image.
    data : ndarray of float32, shape (ny, nx)
        Flux per pixel without background; NaN = not measured.
    smooth : ndarray of float32, shape (ny, nx)
        The image that sources were found in.
    error : ndarray of float32, shape (ny, nx)
        Standard error of ``data``.
    bad : ndarray of bool, shape (ny, nx)
        Pixels to leave out.
    labels : ndarray of int32, shape (ny, nx)
        Which source a pixel belongs to.
    rows : tuple of int, optional
        Rows of the image that this window stands for, upper end excluded; None = all that it holds.
    """

    origin: tuple[int, int]
    data: F4
    smooth: F4
    error: F4
    bad: Bool
    labels: I4
    rows: tuple[int, int] | None = None

    @property
    def counted(self) -> tuple[int, int]:
        """First row that is counted, and the one after the last."""
        return self.rows or (self.origin[0], self.origin[0] + self.labels.shape[0])


@dataclass(frozen=True)
class Shapes:
    """What the pixels of sources say; each an array of float64 with one entry for a source.

    Parameters
    ----------
    x, y : ndarray
        First moments of the smoothed image, pixels.
    x_err, y_err, xy_cov : ndarray
        Standard errors of the centroid (pixels) and their covariance (pixels²), propagated from independent errors of
        the pixels at a fixed segment: Σ σ² [K ⊗ (x - x̄)]² / (Σ smooth)², K being the smoothing kernel and x - x̄ counted
        within the segment.  Without smoothing this is ERRX2_IMAGE of SExtractor (Bertin & Arnouts 1996).
    flux, flux_err : ndarray
        Sum of the pixels and root of the summed squared errors, in the data's unit; NaN without a valid pixel.
    area : ndarray
        Number of valid pixels, NaN if there is none.
    semimajor, semiminor : ndarray
        Standard deviations along the axes, pixels.
    orientation : ndarray
        Angle from +x to the major axis, counter-clockwise, degrees in [0, 360).
    """

    x: F8
    y: F8
    x_err: F8
    y_err: F8
    xy_cov: F8
    flux: F8
    flux_err: F8
    area: F8
    semimajor: F8
    semiminor: F8
    orientation: F8

    @classmethod
    def stack(cls, parts: list[Shapes]) -> Shapes:
        """Return the sources of several sets, one after the other."""
        return cls(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)))


class Sums:
    """Sums over sources that are fed with windows: first :meth:`add`, then :meth:`add_central` with the same ones.

    Parameters
    ----------
    label : ndarray of int32, shape (n,)
        Labels of the sources.
    box : ndarray of int64, shape (n, 4)
        Their bounding boxes in the image, ``(y0, x0, y1, x1)``.
    kernel : ndarray of float64, shape (2h + 1, 2h + 1)
        What the image was smoothed with.
    """

    def __init__(self, label: I4, box: I8, kernel: F8) -> None:
        self.label, self.box = np.ascontiguousarray(label, np.int32), np.ascontiguousarray(box, np.int64)
        self._kernel = np.ascontiguousarray(kernel)
        self._raw, self._central = np.zeros((len(label), _RAW)), np.zeros((len(label), _CENTRAL))

    def add(self, pixels: Pixels) -> None:
        """Add rows of a window; those of several windows must follow one another upwards."""
        p = pixels
        maps = p.data, p.smooth, p.error, p.bad, p.labels
        _add_raw(p.origin, p.counted, *maps, self.label, self.box, self._raw)

    def add_central(self, pixels: Pixels) -> None:
        """Add rows of a window to the moments about the centroid, when all windows have been added.

        The window holds the kernel's half width more than the rows and columns of the sources.
        """
        p = pixels
        _add_central(p.origin, p.counted, p.smooth, p.bad, p.labels, self.label, self.box, self._raw, self._central)
        _add_errors(
            p.origin, p.counted, p.error, p.bad, p.labels, self._kernel, self.label, self.box, self._raw, self._central
        )  # fmt: skip

    @property
    def centroid(self) -> F8:
        """Rows and columns of the centroids in the image, shape (n, 2); NaN where nothing is positive."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self._raw[:, 1:3] / self._raw[:, :1] + self.box[:, :2]

    def shapes(self, background: F8) -> Shapes:
        """Return the results.

        Parameters
        ----------
        background : ndarray of float64, shape (n,)
            Local background per pixel, taken off the flux.
        """
        m00, _, _, flux, square, count = self._raw.T
        yy, xy, xx, eyy, exy, exx = self._central.T
        y, x = self.centroid.T
        with np.errstate(divide="ignore", invalid="ignore"):
            y_err, x_err = np.sqrt(eyy) / m00, np.sqrt(exx) / m00
            xy_cov = exy / m00**2
            covariance = np.stack([xx / m00, xy / m00, yy / m00], 1)
        area = np.where(count > 0, count, np.nan)
        major, minor, angle = _axes(covariance)
        return Shapes(
            x, y, x_err, y_err, xy_cov, np.where(count > 0, flux - count * background, np.nan),
            np.where(count > 0, np.sqrt(square), np.nan), area, major, minor, angle,
        )  # fmt: skip


def _axes(covariance: F8) -> tuple[F8, F8, F8]:
    """Return standard deviations along the axes and the angle of the major one, from (xx, xy, yy).

    A source thinner than a pixel gets the variance of one pixel added until it is not; a negative determinant is NaN.
    """
    xx, xy, yy = covariance.T.copy()
    with np.errstate(invalid="ignore", divide="ignore"):
        gone = xx * yy - xy * xy < 0
        for values in (xx, xy, yy):
            values[gone] = np.nan
        while (thin := xx * yy - xy * xy < _THIN**2).any():
            xx[thin] += _THIN
            yy[thin] += _THIN
        middle, half = 0.5 * (xx + yy), np.hypot(0.5 * (xx - yy), xy)
        low = (xx * yy - xy * xy) / (middle + half)  # = middle - half without the loss of digits
        angle = np.rad2deg(0.5 * np.arctan2(2.0 * xy, xx - yy)) % 360.0
        return np.sqrt(middle + half), np.sqrt(low), angle


@loop
def _add_raw(origin, counted, data, smooth, error, bad, labels, label, box, sums):  # type: ignore[no-untyped-def]
    for k in range(label.size):
        y0, x0 = box[k, 0], box[k, 1]
        for y in range(max(y0, counted[0]), min(box[k, 2], counted[1])):
            j = y - origin[0]
            for x in range(x0, box[k, 3]):
                i = x - origin[1]
                if labels[j, i] != label[k] or bad[j, i]:
                    continue
                s = np.float64(smooth[j, i])
                if math.isfinite(s) and s >= 0.0:
                    sums[k, 0] += s
                    sums[k, 1] += s * (y - y0)
                    sums[k, 2] += s * (x - x0)
                if math.isfinite(data[j, i]):
                    e = np.float64(error[j, i])
                    sums[k, 3] += np.float64(data[j, i])
                    sums[k, 4] += e * e
                    sums[k, 5] += 1.0


@loop
def _add_central(origin, counted, smooth, bad, labels, label, box, raw, sums):  # type: ignore[no-untyped-def]
    for k in range(label.size):
        y0, x0 = box[k, 0], box[k, 1]
        yc, xc = raw[k, 1] / raw[k, 0], raw[k, 2] / raw[k, 0]
        for y in range(max(y0, counted[0]), min(box[k, 2], counted[1])):
            j = y - origin[0]
            for x in range(x0, box[k, 3]):
                i = x - origin[1]
                s = np.float64(smooth[j, i])
                if labels[j, i] == label[k] and not bad[j, i] and math.isfinite(s) and s >= 0.0:
                    dy, dx = (y - y0) - yc, (x - x0) - xc
                    sums[k, 0] += s * dy * dy
                    sums[k, 1] += s * dy * dx
                    sums[k, 2] += s * dx * dx


@loop
def _add_errors(origin, counted, error, bad, labels, kernel, label, box, raw, sums):  # type: ignore[no-untyped-def]
    """Add what each pixel's error does to the first moments, through all smoothed pixels that it is a part of."""
    nx = labels.shape[1]
    half = kernel.shape[0] // 2
    for k in range(label.size):
        yc, xc = raw[k, 1] / raw[k, 0] + box[k, 0], raw[k, 2] / raw[k, 0] + box[k, 1]
        for y in range(max(box[k, 0] - half, counted[0]), min(box[k, 2] + half, counted[1])):
            for x in range(max(box[k, 1] - half, origin[1]), min(box[k, 3] + half, origin[1] + nx)):
                e = np.float64(error[y - origin[0], x - origin[1]])
                if bad[y - origin[0], x - origin[1]] or not math.isfinite(e):
                    continue
                dy, dx = 0.0, 0.0
                for v in range(max(y - half, box[k, 0]), min(y + half + 1, box[k, 2])):
                    for u in range(max(x - half, box[k, 1]), min(x + half + 1, box[k, 3])):
                        if labels[v - origin[0], u - origin[1]] == label[k]:
                            w = kernel[v - y + half, u - x + half]
                            dy += w * (v - yc)
                            dx += w * (u - xc)
                sums[k, 3] += e * e * dy * dy
                sums[k, 4] += e * e * dy * dx
                sums[k, 5] += e * e * dx * dx


def nearest(y: F8, x: F8) -> tuple[I8, F8]:
    """Return for every position the index of the nearest other one and its distance; -1 and NaN where there is none.

    Positions that are not finite have no neighbour, and are nobody's.
    """
    index, distance = np.full(len(y), -1, np.int64), np.full(len(y), np.nan)
    known = np.flatnonzero(np.isfinite(y) & np.isfinite(x))
    if len(known) > 1:
        from scipy.spatial import cKDTree

        points = np.stack([x[known], y[known]], 1)
        found, which = cKDTree(points).query(points, k=2)
        # of two sources at one place the tree may return the source itself second
        other = np.where(which[:, 1] == np.arange(len(known)), which[:, 0], which[:, 1])
        index[known], distance[known] = known[other], found[:, 1]
    return index, distance
