"""The mosaic as a HiPS, for Aladin and its kin (by the package reproject)."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings

import numpy as np

from streamimg3.errors import InputError
from streamimg3.formats.names import absolute, is_remote
from streamimg3.formats.regions import need_mosaic
from streamimg3.geometry import Box
from streamimg3.store import Observation

_BAND = 1024


def export_hips(obs: Observation, destination: str, level: int | None = None) -> str:
    """Write a HiPS of the mosaic's SCI.

    The pixels are laid out in a file on disk once, and mapped: memory follows the HiPS tiles, not the mosaic.

    Parameters
    ----------
    obs : Observation
        A store with a finished mosaic whose WCS FITS keywords can say.
    destination : str
        Local folder, which must not exist yet.
    level : int, optional
        Deepest HiPS order; default that of the mosaic's pixels.

    Returns
    -------
    str
        The folder.

    Raises
    ------
    InputError
        If reproject is not installed, the folder exists, or is not local.
    """
    try:
        from reproject import reproject_interp
        from reproject.hips import reproject_to_hips
    except ImportError as error:
        raise InputError(
            f"a HiPS needs the package reproject ({error}): pip install '.[report]' in the clone"
        ) from error
    folder = absolute(destination)
    if is_remote(folder) or os.path.exists(folder):
        raise InputError(f"{folder}: give a local folder for the HiPS that does not exist yet")
    document = need_mosaic(obs)
    cards = obs.attributes(document.path).get("wcs")
    if not cards:
        raise InputError("the mosaic's WCS has no form in FITS keywords, which a HiPS is made from")
    from astropy.io import fits
    from astropy.wcs import WCS

    os.makedirs(os.path.dirname(folder) or ".", exist_ok=True)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(folder) or ".") as scratch:
        name = os.path.join(scratch, "sci.dat")
        pixels = np.memmap(name, np.float32, "w+", shape=document.shape)
        for y0 in range(0, document.shape[0], _BAND):
            box = Box(y0, 0, min(y0 + _BAND, document.shape[0]), document.shape[1])
            pixels[box.slices] = obs.window(f"{document.path}/sci", (), box)
        wcs = WCS(fits.Header(cards))
        wcs.array_shape = document.shape
        made = os.path.join(scratch, "hips")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks of reproject's about tiles beyond the image
            reproject_to_hips(
                (pixels, wcs), coord_system_out="equatorial", reproject_function=reproject_interp, output_directory=made,
                level=level, properties={"obs_title": os.path.basename(folder), "creator_did": "ivo://streamimg3/local"},
            )  # fmt: skip
        del pixels
        shutil.move(made, folder)
    return folder
