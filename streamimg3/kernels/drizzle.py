"""Drizzle in global output coordinates: one pass for the image and every error plane.

Variable-pixel linear reconstruction (Fruchter & Hook 2002, PASP 114, 144) with the update rules of drizzle 2.2
(spec image3 §7.5).  The loops run in coordinates of the whole mosaic and write only pixels of the tile at hand, so
a tile's values do not depend on how the mosaic is cut.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamimg3.kernels.compiled import inlined, loop

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I4 = NDArray[np.int32]

KERNELS = {"square": 0, "turbo": 1, "gaussian": 2, "lanczos2": 3, "lanczos3": 3, "point": 4}
_LUT_STEP = 0.003  # table step of the Lanczos kernels, in input pixels (spec §7.5)
_FWHM = 2.3548


@dataclass(frozen=True)
class Kernel:
    """How one input pixel's flux is spread.

    Parameters
    ----------
    name : str
        ``square``, ``turbo``, ``point``, ``gaussian``, ``lanczos2`` or ``lanczos3``.
    pixfrac : float
        Drop size, in input pixels; at most 0.001 means ``point``.
    ratio : float
        Output over input pixel scale (used by turbo, gaussian and lanczos).
    """

    name: str = "square"
    pixfrac: float = 1.0
    ratio: float = 1.0

    @property
    def code(self) -> int:
        """Number that the compiled loops switch on."""
        return KERNELS["point" if self.pixfrac <= 0.001 else self.name]

    @property
    def reach(self) -> float:
        """Half width of the footprint of one input pixel, in output pixels (rounded up generously)."""
        scale = float(np.float32(self.ratio))
        half = {0: 1.0, 1: 1.0, 2: max(2.5 * self.pixfrac / _FWHM, 1.2), 3: 3.0, 4: 0.5}[self.code]
        return half / scale + 1.0

    def constants(self) -> tuple[F8, F8]:
        """Return the kernel's numbers (half width and factors) and the Lanczos table, both float64."""
        scale = float(np.float32(self.ratio))
        area = 1.0 / (self.pixfrac * self.pixfrac) if self.code in (1, 2) else 1.0
        if self.code == 1:
            return np.array([self.pixfrac / scale / 2.0, area * scale * scale, 0.0]), np.zeros(1)
        if self.code == 2:
            half = max(2.5 * self.pixfrac / _FWHM / scale, 1.2 / scale)
            decay = (_FWHM * _FWHM) * (scale * scale) * area / 2.0
            return np.array([half, decay / math.pi, decay]), np.zeros(1)
        if self.code == 3:
            order = 2 if self.name == "lanczos2" else 3
            return np.array([order / scale, scale / _LUT_STEP, 0.0]), _lanczos_table(order)
        return np.array([0.5 * self.pixfrac, 0.0, 0.0]), np.zeros(1)


def _lanczos_table(order: int) -> F8:
    """Windowed sinc at multiples of the table step; libm's sine so that the last bit is the C library's."""
    table = np.zeros(math.ceil(order / _LUT_STEP) + 1)
    table[0] = 1.0
    for i in range(1, table.size):
        x = i * _LUT_STEP
        if x <= order:
            a = math.pi * x
            b = a / order
            table[i] = math.sin(a) * math.sin(b) / (a * b)
    return table


@dataclass(frozen=True)
class Patch:
    """A rectangle of one exposure, ready to be drizzled.

    Parameters
    ----------
    origin : tuple of int
        Row and column of ``data``'s first pixel in the exposure.
    shape : tuple of int
        Rows and columns of the whole exposure (its rim is treated apart).
    y, x : ndarray of float64
        Pixel map: output coordinates (0-based, mosaic pixels) of the input pixel centres of the patch grown by one
        pixel where the exposure has one; NaN = no coordinates.
    data : ndarray of float32, shape (n, rows, columns)
        Planes that share the mosaic's weight: the image, and its error where that is drizzled alike.
    noise : ndarray of float32, shape (m, rows, columns)
        Variances; their square roots are drizzled into planes of their own for this exposure.
    weight : ndarray of float32, shape (rows, columns)
        Weight of each pixel; 0 = left out.
    limits : ndarray of int32, shape (rows, 2)
        First and last column that take part in each row (inclusive, exposure columns).
    dq : ndarray of uint32, shape (rows, columns) or (0, 0)
        Flags to be OR-ed into the output, if wanted.
    """

    origin: tuple[int, int]
    shape: tuple[int, int]
    y: F8
    x: F8
    data: F4
    noise: F4
    weight: F4
    limits: I4
    dq: NDArray[np.uint32]


@dataclass(frozen=True)
class Canvas:
    """The running sums of one tile of the mosaic; all arrays are changed in place by :func:`drizzle`.

    ``data`` (n, ny, nx) weighted means, ``weight`` (ny, nx), ``context`` (ny, nx) the bit plane of the current 32
    exposures, ``noise`` (ny, nx, 1 + m) weight and drizzled errors of the current exposure, ``dq`` (ny, nx) or (0, 0).
    """

    origin: tuple[int, int]
    data: F4
    weight: F4
    context: I4
    noise: F4
    dq: NDArray[np.uint32]

    @classmethod
    def blank(
        cls, origin: tuple[int, int], shape: tuple[int, int], planes: tuple[int, int], dq: bool = False
    ) -> Canvas:
        """Return an empty canvas of ``shape`` with ``planes = (data planes, noise planes)``."""
        n, m = planes
        return cls(
            origin,
            np.zeros((n, *shape), np.float32),
            np.zeros(shape, np.float32),
            np.zeros(shape, np.int32),
            np.zeros((*shape, 1 + m) if m else (0, 0, 1), np.float32),
            np.zeros(shape if dq else (0, 0), np.uint32),
        )


def drizzle(canvas: Canvas, patch: Patch, kernel: Kernel, bit: int) -> None:
    """Add a patch to a canvas.

    Parameters
    ----------
    canvas : Canvas
        Sums of the tile; changed in place.
    patch : Patch
        Input pixels; rows must come in ascending order over successive calls of one exposure.
    kernel : Kernel
        How a pixel is spread.
    bit : int
        Bit 0..31 that stands for this exposure in the context; negative = no context.
    """
    numbers, table = kernel.constants()
    word = np.int32(0) if bit < 0 else np.array([1 << bit], np.uint32).view(np.int32)[0]
    ints = np.array([*canvas.origin, *patch.origin, *patch.shape], np.int64)
    args = (ints, patch.y, patch.x, patch.data, patch.noise, patch.weight, patch.limits, patch.dq)
    out = (canvas.data, canvas.weight, canvas.context, canvas.noise, canvas.dq, word)
    if kernel.code == 0:
        _drizzle_square(*args, *out, numbers[0])
    else:
        _drizzle_centred(*args, *out, kernel.code, numbers, table)


@inlined
def _nearest(v: float) -> int:
    """Round half away from zero."""
    t = int(v)
    f = v - t
    if f >= 0.5:
        return t + 1
    if f <= -0.5:
        return t - 1
    return t


@inlined
def _add(j, i, dow, bit, r, c, data, noise_in, dq_in, out, weight, context, noise, dq):  # type: ignore[no-untyped-def]
    """One contribution: running weighted means with float32 products and a double quotient."""
    if dow > np.float32(0.0):
        context[j, i] |= bit
    vc = weight[j, i]
    total = np.float32(vc + dow)
    if vc == np.float32(0.0):
        for k in range(data.shape[0]):
            out[k, j, i] = data[k, r, c]
    else:
        for k in range(data.shape[0]):
            out[k, j, i] = np.float32(np.float64(out[k, j, i] * vc + dow * data[k, r, c]) / np.float64(total))
    weight[j, i] = total
    if noise_in.shape[0] > 0:
        vc = noise[j, i, 0]
        total = np.float32(vc + dow)
        noise[j, i, 0] = total
        for k in range(noise_in.shape[0]):
            d = np.float32(math.sqrt(noise_in[k, r, c]))
            if vc != np.float32(0.0):
                d = np.float32(np.float64(noise[j, i, k + 1] * vc + dow * d) / np.float64(total))
            noise[j, i, k + 1] = d
    if dq.shape[0] > 0:
        dq[j, i] |= dq_in[r, c]


@inlined
def _under(x1, y1, x2, y2):  # type: ignore[no-untyped-def]
    """Signed area between a segment and the x axis inside the unit square."""
    dx = x2 - x1
    if dx == 0.0:
        return 0.0
    dy = y2 - y1
    if dx < 0.0:
        sign, lo, hi = -1.0, x2, x1
    else:
        sign, lo, hi = 1.0, x1, x2
    if lo >= 1.0 or hi <= 0.0:
        return 0.0
    lo = max(lo, 0.0)
    hi = min(hi, 1.0)
    slope = dy / dx
    ylo = y1 + slope * (lo - x1)
    yhi = y1 + slope * (hi - x1)
    if ylo <= 0.0 and yhi <= 0.0:
        return 0.0
    if ylo >= 1.0 and yhi >= 1.0:
        return sign * (hi - lo)
    det = x1 * y2 - y1 * x2
    if ylo < 0.0:
        ylo = 0.0
        lo = det / dy
    if yhi < 0.0:
        yhi = 0.0
        hi = det / dy
    if ylo <= 1.0:
        if yhi <= 1.0:
            return sign * 0.5 * (hi - lo) * (yhi + ylo)
        top = (dx + det) / dy
        return sign * (0.5 * (top - lo) * (1.0 + ylo) + hi - top)
    top = (dx + det) / dy
    return sign * (0.5 * (hi - top) * (1.0 + yhi) + top - lo)


@loop
def _corner(m, oy, ox, ny, nx, yin, xin):  # type: ignore[no-untyped-def]
    """Bilinear value of a map at a fractional input position; beyond the rim the last cell is extended."""
    i0 = min(max(int(xin), 0), nx - 2)
    j0 = min(max(int(yin), 0), ny - 2)
    x = xin - i0
    y = yin - j0
    x1 = 1.0 - x
    y1 = 1.0 - y
    j = j0 - oy
    i = i0 - ox
    return m[j, i] * x1 * y1 + m[j, i + 1] * x * y1 + m[j + 1, i] * x1 * y + m[j + 1, i + 1] * x * y


@inlined
def _four(m, j, i, c, e, k):  # type: ignore[no-untyped-def]
    """Map values at the four corners of a drop inside a 3 by 3 block, clockwise from the upper left."""
    mid = m[j, i] * c
    lef, rig = m[j, i - 1] * e, m[j, i + 1] * e
    low, upp = m[j - 1, i] * e, m[j + 1, i] * e
    a = lef + mid + m[j + 1, i - 1] * k + upp
    b = mid + rig + upp + m[j + 1, i + 1] * k
    f = low + m[j - 1, i + 1] * k + mid + rig
    g = m[j - 1, i - 1] * k + low + lef + mid
    return a, b, f, g


@loop
def _drizzle_square(  # type: ignore[no-untyped-def]
    ints, my, mx, data, noise_in, wt, limits, dq_in, out, weight, context, noise, dq, bit, h
):
    """Square kernel: exact overlap of the mapped quadrilateral with every output pixel."""
    ty, tx, py, px, ny, nx = ints
    oy, ox = max(py - 1, 0), max(px - 1, 0)
    ey, ex = ty + weight.shape[0] - 1, tx + weight.shape[1] - 1
    c, e, k = (1 - h) * (1 - h), (1 - h) * h, h * h
    for r in range(wt.shape[0]):
        j = py + r
        first, last = max(limits[r, 0], px), min(limits[r, 1], px + wt.shape[1] - 1)
        for i in range(first, last + 1):
            w4 = wt[r, i - px]
            if w4 == np.float32(0.0):
                continue
            if 0 < i < nx - 2 and 0 < j < ny - 2:
                x0, x1, x2, x3 = _four(mx, j - oy, i - ox, c, e, k)
                y0, y1, y2, y3 = _four(my, j - oy, i - ox, c, e, k)
            else:
                x0 = _corner(mx, oy, ox, ny, nx, j + h, i - h)
                y0 = _corner(my, oy, ox, ny, nx, j + h, i - h)
                x1 = _corner(mx, oy, ox, ny, nx, j + h, i + h)
                y1 = _corner(my, oy, ox, ny, nx, j + h, i + h)
                x2 = _corner(mx, oy, ox, ny, nx, j - h, i + h)
                y2 = _corner(my, oy, ox, ny, nx, j - h, i + h)
                x3 = _corner(mx, oy, ox, ny, nx, j - h, i - h)
                y3 = _corner(my, oy, ox, ny, nx, j - h, i - h)
            top, bottom = max(max(y0, y1), max(y2, y3)), min(min(y0, y1), min(y2, y3))
            right, left = max(max(x0, x1), max(x2, x3)), min(min(x0, x1), min(x2, x3))
            if not (top >= ty - 0.5 and bottom <= ey + 0.5 and right >= tx - 0.5 and left <= ex + 0.5):
                continue  # beyond this tile, or NaN
            if math.isnan(x0 + x1 + x2 + x3 + y0 + y1 + y2 + y3):
                continue
            jaco = 0.5 * ((x1 - x3) * (y0 - y2) - (x0 - x2) * (y1 - y3))
            w = np.float64(w4) / jaco
            for jj in range(max(_nearest(bottom), ty), min(_nearest(top), ey) + 1):
                s = jj - 0.5
                b0, b1, b2, b3 = y0 - s, y1 - s, y2 - s, y3 - s
                for ii in range(max(_nearest(left), tx), min(_nearest(right), ex) + 1):
                    s = ii - 0.5
                    a0, a1, a2, a3 = x0 - s, x1 - s, x2 - s, x3 - s
                    area = 0.0 + _under(a0, b0, a1, b1)
                    area += _under(a1, b1, a2, b2)
                    area += _under(a2, b2, a3, b3)
                    area += _under(a3, b3, a0, b0)
                    if area == 0.0:
                        continue
                    dow = np.float32(area * w)
                    if dow != np.float32(0.0):
                        _add(
                            jj - ty,
                            ii - tx,
                            dow,
                            bit,
                            r,
                            i - px,
                            data,
                            noise_in,
                            dq_in,
                            out,
                            weight,
                            context,
                            noise,
                            dq,
                        )


@loop
def _spread(code, numbers, table, y, x, jj, ii, w):  # type: ignore[no-untyped-def]
    """Weight that output pixel (jj, ii) gets from an input pixel mapped to (y, x)."""
    if code == 1:
        p = numbers[0]
        a = min(x + p, ii + 0.5) - max(x - p, ii - 0.5)
        b = min(y + p, jj + 0.5) - max(y - p, jj - 0.5)
        return np.float32((a * b) * numbers[1] * w) if a > 0.0 and b > 0.0 else np.float32(0.0)
    dy, dx = y - jj, x - ii
    if code == 2:
        over = numbers[1] * math.exp(-(dx * dx + dy * dy) * numbers[2])
        return np.float32(np.float64(np.float32(over)) * w)
    if code == 3:
        i, j = _nearest(abs(dx * numbers[1])), _nearest(abs(dy * numbers[1]))
        if i >= table.size or j >= table.size:
            return np.float32(0.0)
        return np.float32(table[i] * table[j] * w)
    return np.float32(w)


@loop
def _reach(code, numbers, v):  # type: ignore[no-untyped-def]
    """First and last output index that a pixel mapped to ``v`` can touch."""
    if code == 4:
        n = _nearest(v)
        return n, n
    if code == 3:
        return math.floor(v - numbers[0]) + 1, math.floor(v + numbers[0])
    return _nearest(v - numbers[0]), _nearest(v + numbers[0])


@loop
def _drizzle_centred(  # type: ignore[no-untyped-def]
    ints, my, mx, data, noise_in, wt, limits, dq_in, out, weight, context, noise, dq, bit, code, numbers, table
):
    """Kernels that depend on the mapped pixel centre alone: turbo, gaussian, lanczos, point."""
    ty, tx, py, px, _, _ = ints
    oy, ox = max(py - 1, 0), max(px - 1, 0)
    ey, ex = ty + weight.shape[0] - 1, tx + weight.shape[1] - 1
    for r in range(wt.shape[0]):
        first, last = max(limits[r, 0], px), min(limits[r, 1], px + wt.shape[1] - 1)
        for i in range(first, last + 1):
            w4 = wt[r, i - px]
            x, y = mx[py + r - oy, i - ox], my[py + r - oy, i - ox]
            if w4 == np.float32(0.0) or math.isnan(x + y):
                continue
            j0, j1 = _reach(code, numbers, y)
            i0, i1 = _reach(code, numbers, x)
            for jj in range(max(j0, ty), min(j1, ey) + 1):
                for ii in range(max(i0, tx), min(i1, ex) + 1):
                    dow = _spread(code, numbers, table, y, x, jj, ii, np.float64(w4))
                    if dow != np.float32(0.0):
                        _add(
                            jj - ty,
                            ii - tx,
                            dow,
                            bit,
                            r,
                            i - px,
                            data,
                            noise_in,
                            dq_in,
                            out,
                            weight,
                            context,
                            noise,
                            dq,
                        )
