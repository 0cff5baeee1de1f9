"""Divide by the flat field (spec others §1.4): parameters, and the arithmetic of a band."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from streamimg3.kernels.flat import Flat, apply_flat, prepare_flat
from streamimg3.stages.calibrated_band import FlatPixels, Planes, invalid

NAME = "flat_field"
REFTYPES = ("flat", "fflat", "sflat", "dflat")  # all but the first for spectroscopy


@dataclass(frozen=True)
class Params:
    """Parameters of the flat_field step: names, meaning and defaults of jwst 3.0.0.

    Parameters
    ----------
    save_interpolated_flat : bool
        Write the flat field as it was applied.
    user_supplied_flat : str or None
        A file that is used instead of a reference file.
    inverse : bool
        Multiply instead of divide.
    override_flat : str or None
        Reference file, or ``N/A``.
    override_fflat, override_sflat, override_dflat : str or None
        Spectroscopy only; they have no effect on images.
    save_results : bool
        Write the exposures as this step leaves them.
    """

    save_interpolated_flat: bool = False
    user_supplied_flat: str | None = None
    inverse: bool = False
    override_flat: str | None = None
    override_fflat: str | None = None
    override_sflat: str | None = None
    override_dflat: str | None = None
    save_results: bool = False


def ready(flat: FlatPixels) -> Flat:
    """Return a band of a flat field as it is divided by: 1 where it cannot be, with flags that say so."""
    return prepare_flat(flat.sci, flat.err, flat.dq)


def apply(planes: Planes, flat: Flat, inverse: bool) -> None:
    """Divide a band by its flat field in place; VAR_FLAT and ERR are made anew.

    Without any variance, ERR comes from the exposure's own errors: ``sqrt(err² / flat² + var_flat)``.

    Parameters
    ----------
    planes : Planes
        Changed in place.
    flat : Flat
        The same rows, from `ready`.
    inverse : bool
        Multiply.
    """
    before = planes.err if not planes.variances else None
    apply_flat(planes, flat, inverse)
    if before is None or planes.var_flat is None:
        return
    with np.errstate(all="ignore"):
        square = flat.sci * flat.sci
        share = np.square(before) * square if inverse else np.square(before) / square
        planes.err = np.sqrt(share + planes.var_flat)
    invalid(planes)
