"""PSFMASK reference files: weights of the pixels in the alignment of reference stars (spec others §3.4)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.formats.reference_image import PlaneReader, cut, open_reference, science_hdu, subarray_of
from streamimg3.formats.reference_image import Subarray as Subarray
from streamimg3.geometry import Box


def read_psfmask(url: str, science: Subarray, options: Mapping[str, str]) -> NDArray[np.float32]:
    """Read the weights of an exposure's pixels.

    Parameters
    ----------
    url : str
        Path or URL; a file without REFTYPE is taken too.
    science : Subarray
        Where the exposure lies; a file of another shape is cut there.
    options : mapping of str to str
        Storage options for remote URLs.

    Returns
    -------
    ndarray of float32, shape of the science image
        1 uses a pixel, 0 ignores it; what is not finite in the file is 0.

    Raises
    ------
    InputError
        If it is no psfmask file, does not reach over the exposure, or ignores every pixel.
    """
    with open_reference(url, options, "psfmask", strict=False) as file:
        hdu, shape = science_hdu(file)
        box = Box.of_shape(shape)
        if shape != science.shape:
            box = cut(subarray_of(file.hdus[0].header, shape, url), science, url)
        weights = PlaneReader(file, hdu, box).floats(0, science.shape[0])
    weights = np.where(np.isfinite(weights), weights, np.float32(0.0)).astype(np.float32)
    if not weights.any():
        raise InputError(f"{url}: its weights are all 0, so that no reference can be aligned; give another psfmask")
    return weights
