"""Sources of one exposure as connected pixels: the same steps as for a mosaic, on an image in memory (image3 §4.3, §9.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.kernels.aperture import frame_level, frame_values
from streamimg3.kernels.background import background_mesh
from streamimg3.kernels.deblend import MODES, Levels, deblend
from streamimg3.kernels.measure import Pixels, Sums
from streamimg3.kernels.segments import Outlines, label, outlines, relabel
from streamimg3.kernels.smooth import gaussian, smooth
from streamimg3.kernels.stars import StarList

F4 = NDArray[np.float32]
I4 = NDArray[np.int32]
I8 = NDArray[np.int64]
Bool = NDArray[np.bool_]


@dataclass(frozen=True)
class SegmentOptions:
    """How sources are found; names and defaults are those of the reference's alignment step (spec §4.1).

    Parameters
    ----------
    snr_threshold : float
        Threshold in units of the background's noise.
    kernel_fwhm : float
        Width of the smoothing Gaussian in pixels; 0 = the image is not smoothed.
    bkg_boxsize : int
        Side of a background box in pixels.
    npixels : int
        Fewest pixels of a source.
    connectivity : int
        4 or 8.
    nlevels, contrast, multithresh_mode
        How blends are divided; see :class:`streamimg3.kernels.deblend.Levels`.
    localbkg_width : int
        Width of the frame that a local background comes from; 0 = none.
    deblend : bool
        Divide blends.

    Raises
    ------
    InputError
        If a value is out of range.
    """

    snr_threshold: float = 10.0
    kernel_fwhm: float = 2.5
    bkg_boxsize: int = 400
    npixels: int = 10
    connectivity: int = 8
    nlevels: int = 32
    contrast: float = 0.001
    multithresh_mode: str = "exponential"
    localbkg_width: int = 0
    deblend: bool = True

    def __post_init__(self) -> None:
        checks = [
            (self.snr_threshold >= 0, "snr_threshold", "0 or more"),
            (0 <= self.kernel_fwhm <= 100, "kernel_fwhm", "0 to 100"),
            (self.bkg_boxsize >= 1, "bkg_boxsize", "at least 1"),
            (self.npixels >= 1, "npixels", "at least 1"),
            (self.connectivity in (4, 8), "connectivity", "4 or 8"),
            (self.nlevels >= 1, "nlevels", "at least 1"),
            (0 <= self.contrast <= 1, "contrast", "a number from 0 to 1"),
            (self.multithresh_mode in MODES, "multithresh_mode", "one of " + ", ".join(MODES)),
            (self.localbkg_width >= 0, "localbkg_width", "0 or more"),
        ]
        for good, name, wanted in checks:
            if not good:
                raise InputError(f"{name} = {getattr(self, name)!r}: it must be {wanted}")

    @property
    def levels(self) -> Levels | None:
        """How blends are divided, None = not."""
        if not self.deblend:
            return None
        return Levels(self.npixels, self.nlevels, self.contrast, self.multithresh_mode, self.connectivity == 8)


def find_segments(sci: F4, bad: Bool, options: SegmentOptions) -> StarList:
    """Find the sources of one exposure.

    Parameters
    ----------
    sci : ndarray of float32, shape (ny, nx)
        Pixels.
    bad : ndarray of bool, shape (ny, nx)
        Pixels to leave out.
    options : SegmentOptions
        Parameters.

    Returns
    -------
    StarList
        Labels as ``id``, centroids, and the flux of each segment above the background; empty without a source.
    """
    mesh = background_mesh(sci, bad, options.bkg_boxsize)
    if mesh is None:
        return StarList.empty()
    window = (0, 0, *sci.shape)
    with np.errstate(invalid="ignore", over="ignore"):
        data = sci - mesh.background(*window)
    kernel = gaussian(options.kernel_fwhm)
    half = kernel.shape[0] // 2
    smoothed = smooth(np.pad(data, half), np.pad(bad, half), kernel) if half else data
    threshold = mesh.noise(*window)
    threshold *= np.float32(options.snr_threshold)
    above = smoothed > threshold
    above &= ~bad
    del threshold
    labels, found = _large(*label(above, options.connectivity == 8), options.npixels)
    if not len(found.area):
        return StarList.empty()
    box = divide(smoothed, labels, found, options.levels)
    return _listed(data, smoothed, bad, labels, box, options)


def _large(labels: I4, count: int, npixels: int) -> tuple[I4, Outlines]:
    """Keep the labels with enough pixels, numbered anew in their order."""
    found = outlines(labels, count)
    keep = found.area >= npixels
    table = np.zeros(count + 1, np.int32)
    table[1:][keep] = np.arange(1, np.count_nonzero(keep) + 1)
    relabel(labels, table)
    return labels, found.take(keep)


def divide(smoothed: F4, labels: I4, found: Outlines, levels: Levels | None) -> I8:
    """Divide the blends among labels 1..n, in place: what stays whole comes first, then the parts in order.

    Returns
    -------
    ndarray of int64, shape (m, 4)
        Bounding boxes of the sources in the order of their new labels.
    """
    count = len(found.area)
    parts: dict[int, tuple[I4, int]] = {}
    for k, (y0, x0, y1, x1) in enumerate(found.box.tolist()):
        cut = np.s_[y0:y1, x0:x1]
        divided = None if levels is None else deblend(smoothed[cut], labels[cut] == k + 1, levels)
        if divided is not None:
            parts[k] = divided
    whole = np.array([k for k in range(count) if k not in parts], np.int64)
    table = np.zeros(count + 1, np.int32)
    table[whole + 1] = np.arange(1, len(whole) + 1)
    relabel(labels, table)
    boxes, highest = [found.box[whole]], len(whole)
    for k, (cut_labels, n) in parts.items():
        y0, x0, y1, x1 = found.box[k].tolist()
        inside = cut_labels > 0
        labels[y0:y1, x0:x1][inside] = cut_labels[inside] + highest
        boxes.append(outlines(cut_labels, n).shift(y0, x0).box)
        highest += n
    return np.concatenate(boxes)


def _listed(data: F4, smoothed: F4, bad: Bool, labels: I4, box: I8, options: SegmentOptions) -> StarList:
    number = np.arange(1, len(box) + 1)
    pixels = Pixels((0, 0), data, smoothed, np.broadcast_to(np.float32(0), data.shape), bad, labels)
    sums = Sums(number.astype(np.int32), box, gaussian(options.kernel_fwhm))
    sums.add(pixels)
    sums.add_central(pixels)
    width = options.localbkg_width
    level = np.array([frame_level(frame_values(pixels, b, width)) if width else 0.0 for b in box])
    shapes = sums.shapes(level)
    columns = {n: getattr(shapes, n) for n in ("area", "semimajor", "semiminor", "orientation")}
    return StarList(number, shapes.x, shapes.y, shapes.flux, columns)
