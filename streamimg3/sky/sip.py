"""FITS-SIP keywords that approximate a gWCS (spec image3 §4.6)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from streamimg3.errors import InputError
from streamimg3.sky.wcs import Wcs

_HIGHEST = 5  # degrees that are tried when none is asked for


@dataclass(frozen=True)
class SipOptions:
    """How close the approximation must be; errors in pixels, degrees None = the lowest that suffices.

    A degree that is given is used whatever the error.
    """

    max_pix_error: float = 0.01
    degree: int | None = None
    max_inv_pix_error: float | None = 0.01
    inv_degree: int | None = None
    npoints: int = 12


class NoApproximation(Exception):
    """No polynomial is close enough; the text says what the fit found."""


def sip_keywords(
    wcs: Wcs, crpix: tuple[float, float] | None, options: SipOptions
) -> tuple[dict[str, str | int | float], tuple[str, ...]]:
    """Return the keywords of a FITS header with SIP distortion that says nearly the same as a gWCS.

    Parameters
    ----------
    wcs : Wcs
        A gWCS, with its correction.
    crpix : tuple of 2 floats or None
        CRPIX1 and CRPIX2 (1-based, x first) that the header keeps; None = near the middle of the bounding box.
    options : SipOptions
        Accuracy.

    Returns
    -------
    keywords : dict
        In the order of the header; those of an earlier approximation that are not among them do not hold any more.
    warnings : tuple of str
        What the fit had to say.

    Raises
    ------
    NoApproximation
        If no degree reaches the accuracy.
    InputError
        If the WCS is none of gwcs.
    """
    found = wcs.model
    if found.bounding_box is None:
        found = wcs.gwcs()
        ny, nx = wcs.shape
        found.bounding_box = ((-0.5, nx - 0.5), (-0.5, ny - 0.5))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            header = found.to_fits_sip(
                max_pix_error=options.max_pix_error,
                degree=range(1, _HIGHEST + 1) if options.degree is None else options.degree,
                max_inv_pix_error=options.max_inv_pix_error,
                inv_degree=range(1, _HIGHEST + 1) if options.inv_degree is None else options.inv_degree,
                npoints=options.npoints,
                crpix=crpix,
                projection="TAN",
            )
        except InputError:
            raise
        except (ValueError, RuntimeError) as error:
            raise NoApproximation(" ".join(str(error).split())) from error
    keywords = {
        card.keyword: card.value for card in header.cards if card.keyword and not card.keyword.startswith("NAXIS")
    }
    return keywords, tuple(" ".join(str(w.message).split()) for w in told)
