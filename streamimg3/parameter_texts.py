"""Meanings and units of parameters, where the docstring of a step speaks of several at once or of none."""

from __future__ import annotations

_SPECTRA = "Spectroscopy only; no effect on images."
_REFERENCE = "Reference file, or N/A."
_FIT = {
    "minobj": "Fewest matched stars that a fit is made of.",
    "fitgeometry": "shift, rshift (shift and rotation), rscale (and scale) or general.",
    "nclip": "Passes in which stars far from the fit are left out.",
    "sigma": "Stars farther from the fit than so many standard deviations are left out.",
    "searchrad": "Largest offset that is looked for.",
    "use2dhist": "Find a first offset by a histogram of all pairs' offsets.",
    "separation": "Stars of a list that are closer to each other do not take part.",
    "tolerance": "Largest distance of a match once the offset is known.",
}
_STARS = {
    "starfinder": "How stars are found.",
    "snr_threshold": "Detection threshold over the background, in units of its noise.",
    "kernel_fwhm": "Width of the Gaussian that the image is smoothed with; that of a star.",
    "bkg_boxsize": "Side of a box of the background's mesh.",
    "minsep_fwhm": "Least distance of two stars, in units of kernel_fwhm (iraf and dao).",
    "sigma_radius": "Radius at which the kernel is cut off, in standard deviations (iraf and dao).",
    "sharplo": "Least sharpness of a star (iraf and dao).",
    "sharphi": "Largest sharpness of a star (iraf and dao).",
    "roundlo": "Least roundness of a star (iraf and dao).",
    "roundhi": "Largest roundness of a star (iraf and dao).",
    "brightest": "Most stars that are kept, the brightest ones (iraf and dao).",
    "peakmax": "Stars with a brighter pixel are left out; none = they are not (iraf and dao).",
    "npixels": "Fewest pixels of a source (segmentation).",
    "connectivity": "8: pixels that touch at corners belong together; 4: at sides only (segmentation).",
    "nlevels": "Levels at which a blend is looked at (segmentation).",
    "contrast": "Least part of a blend's flux that makes a source of its own, 0 to 1 (segmentation).",
    "multithresh_mode": "Spacing of the levels: exponential, linear or sinh (segmentation).",
    "localbkg_width": "Width of the frame for a local background, 0 = none (segmentation).",
    "apermask_method": "What is done about neighbours: correct, mask or none (segmentation).",
    "kron_params": "Kron scale, least radius (and least circular radius); none = the usual ones (segmentation).",
    "deblend": "Divide blends (segmentation).",
}

TEXTS: dict[str, dict[str, str]] = {
    "tweakreg": {
        **_STARS,
        **_FIT,
        **{f"abs_{name}": f"{text[:-1]} (to the reference catalogue)." for name, text in _FIT.items()},
        "save_catalogs": "Write the stars of each exposure.",
        "catalog_format": "Form of what save_catalogs writes: ecsv or fits.",
        "save_abs_catalog": "Write the reference catalogue that was used.",
        "catfile": "File of two columns, exposure and its star list.",
        "use_custom_catalogs": "Star lists of the user's own, from catfile, the association or the exposure's header.",
        "enforce_user_order": "Align in the order of the association, not by overlap.",
        "expand_refcat": "Stars of aligned exposures join the reference.",
        "xoffset": "Offset along x that is looked for around.",
        "yoffset": "Offset along y that is looked for around.",
        "sip_approx": "Write FITS keywords that approximate the corrected gWCS.",
        "sip_max_pix_error": "Largest error of the approximation.",
        "sip_degree": "Its degree, at most 6; none = the lowest that suffices.",
        "sip_max_inv_pix_error": "Largest error of its inverse.",
        "sip_inv_degree": "Degree of the inverse, at most 6; none = the lowest that suffices.",
        "sip_npoints": "Points along each axis for the fit.",
    },
    "skymatch": {
        "lower": "Smaller values are not used; none = no limit.",
        "upper": "Larger values are not used; none = no limit.",
        "lsigma": "Values so far below the mean are clipped.",
        "usigma": "Values so far above the mean are clipped.",
        "binwidth": "Bins of the histogram behind mode and midpt.",
    },
    "outlier_detection": {
        "pixfrac": "Drop size of input pixels, 0 to 1.",
        "kernel": "square, point or turbo.",
        "fillval": "Without effect: pixels without weight never enter the median.",
        "snr": "First and second threshold, times the noise.",
        "scale": "First and second threshold, times the local derivative of the median.",
        "gain": "Exposures without ERR: electrons per unit of the image; none = noise is that of the background.",
        "read_noise": "Exposures without ERR: noise of a pixel without signal; none = that of the background.",
        "pixmap_stepsize": "None: coarse grid with measured error; 1: exact; above 1: that spacing.",
        "pixmap_order": "Degree of the spline for a stepsize above 1: 1 or 3.",
    },
    "resample": {
        "output_shape": "Size of the mosaic, x then y; none = all exposures.",
        "crpix": "Reference pixel (from 0), x then y; none = the middle.",
        "crval": "Right ascension and declination of the reference pixel; none = the middle of the exposures.",
        "pixel_scale": "Side of a pixel; wins over pixel_scale_ratio.",
        "pixel_scale_ratio": "Output over input pixel scale.",
        "enable_ctx": "Make the context, which exposures contribute to a pixel.",
        "enable_err": "Make errors and variances.",
        "report_var": "Keep the variances in the mosaic.",
        "propagate_dq": "Make a plane of flags.",
    },
    "source_catalog": {
        **{
            name: text
            for name, text in _STARS.items()
            if name not in ("apermask_method", "kron_params", "snr_threshold")
        },
        "aperture_ee1": "Encircled energy of the smallest aperture; the APCORR file must have it.",
        "aperture_ee2": "Encircled energy of the middle aperture; the APCORR file must have it.",
        "aperture_ee3": "Encircled energy of the largest aperture; the APCORR file must have it.",
        "ci1_star_threshold": "Concentration index ee2 over ee1 above which a source is extended.",
        "ci2_star_threshold": "Concentration index ee3 over ee2 above which a source is extended.",
        "override_apcorr": "APCORR reference file; without it the columns that need it are left out.",
        "override_abvegaoffset": "ABVEGAOFFSET reference file; without it there are no Vega magnitudes.",
    },
    "bkg_subtract": {"sigma": "Values more than so many deviations from the median are left out of the mean."},
    "assign_wcs": {
        **{
            f"override_{name}": _SPECTRA
            for name in ("specwcs", "regions", "chromcorr", "msa", "ifupost", "ifufore", "ifuslicer")
        },
        **{
            f"override_{name}": f"{_REFERENCE[:-1]} (NIRSpec)."
            for name in ("wavelengthrange", "camera", "collimator", "disperser", "fore", "fpa", "ote")
        },
        "sip_max_pix_error": "Largest error of the approximation.",
        "sip_max_inv_pix_error": "Largest error of its inverse.",
        "override_distortion": _REFERENCE,
        "override_filteroffset": _REFERENCE,
    },
}

_ANY = {
    "bkg_boxsize": "pixel", "kernel_fwhm": "pixel", "npixels": "pixel", "tile": "pixel", "stepsize": "pixel",
    "localbkg_width": "pixel", "largest_blend": "pixel", "searchrad": "arcsec", "separation": "arcsec", "tolerance": "arcsec",
    "xoffset": "arcsec", "yoffset": "arcsec", "abs_searchrad": "arcsec", "abs_separation": "arcsec", "abs_tolerance": "arcsec",
    "sip_max_pix_error": "pixel", "sip_max_inv_pix_error": "pixel", "lower": "image unit", "upper": "image unit",
    "binwidth": "sigma", "lsigma": "sigma", "usigma": "sigma", "sigma": "sigma", "abs_sigma": "sigma", "backg": "image unit",
    "gain": "electron / image unit", "read_noise": "image unit", "output_shape": "pixel", "crpix": "pixel", "crval": "deg",
    "rotation": "deg", "pixel_scale": "arcsec", "pixmap_stepsize": "pixel", "aperture_ee1": "%", "aperture_ee2": "%",
    "aperture_ee3": "%", "snr_threshold": "sigma", "snr": "sigma", "peakmax": "image unit", "sigma_radius": "sigma",
    "soss_source_percentile": "%", "pixfrac": "input pixel", "minsep_fwhm": "kernel_fwhm",
}  # fmt: skip


def unit_of(name: str) -> str:
    """Return the unit of a parameter, empty where it has none.

    Examples
    --------
    >>> unit_of("pixel_scale"), unit_of("kernel")
    ('arcsec', '')
    """
    return _ANY.get(name, "")
