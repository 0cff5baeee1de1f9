"""The statements that a whole run of image3 is judged by: numbers and meaning as in the specification's checklist.

Each names the cases whose products can show it, and the unit tests that hold it where products cannot.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """One statement.

    Attributes
    ----------
    number : int
        Place in the checklist.
    text : str
        What must hold.
    cases : tuple of str
        Cases of `parity_cases.IMAGE3` whose products decide it; none = products do not show it.
    tests : tuple of str
        Test modules that hold it, below ``tests``; needed where there are no cases.
    """

    number: int
    text: str
    cases: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()


def _line(number: int, text: str, cases: str = "", tests: str = "") -> Line:
    return Line(number, text, tuple(cases.split()), tuple(tests.split()))


LINES = (
    _line(1, "bit k of plane k//32 of CON belongs to exposure k of the association", "a pairs", "parity/test_resample_parity.py"),
    _line(2, "members that are not science do not contribute", tests="formats/test_association.py"),
    _line(3, "detectors of one exposure share a group, dithers do not, the member's own group wins", "pairs",
          "formats/test_sources.py"),
    _line(4, "one exposure: tweakreg FAILED, skymatch SKIPPED, outliers FAILED, all products", "one"),
    _line(5, "one group of two detectors: outliers COMPLETE, skymatch SKIPPED, NDRIZ 1", "pair"),
    _line(6, "moving target: S_MTWCS, no S_TWKREG, frame moving_target, shift = mean - own position", "moving"),
    _line(7, "a target position missing in one exposure leaves every WCS alone", tests="stages/test_assign_mtwcs.py"),
    _line(8, "a step that the user skips is SKIPPED and passes exposures through", "skip"),
    _line(9, "the first group is the reference: its WCS, S_REGION and FITS keywords are unchanged", "a pairs"),
    _line(10, "catalogues of the exposures equal", "a dao segmentation", "kernels/test_stars.py"),
    _line(11, "separation below sqrt(2) tolerance: FAILED, exposures unchanged", "separation"),
    _line(12, "too few matches: COMPLETE, WCS unchanged", "minobj"),
    _line(13, "fitted corrections equal to 1e-7 arcsec on the sky", "a pairs shift rscale general"),
    _line(14, "a correction as large as 2 (searchrad + tolerance) is rejected", tests="stages/test_tweakreg.py"),
    _line(15, "corrected groups have frame v2v3corr, SIP to 0.01 px, CRPIX unchanged", "a pairs"),
    _line(16, "absolute reference from a table: one common fit, WCS named FIT-LVL3", tests="stages/test_tweakreg.py"),
    _line(17, "sources on the limit of the bounding box are removed", tests="stages/test_tweakreg.py"),
    _line(18, "streamed mode, median, mean, midpt equal to the bit", tests="kernels/test_sky_level.py"),
    _line(19, "overlap masks of rotated pairs have the same pixels", "pairs sky", "sky/test_overlap.py kernels/test_scanline.py"),
    _line(20, "BKGLEVEL equal to 1e-12, the lowest exactly 0", "sky a pairs"),
    _line(21, "no overlap: SKIPPED, no BKG keywords", "one pair"),
    _line(22, "subtract: SCI changed, BKGSUB true, resample does not subtract again", "subtract"),
    _line(23, "methods global+match, local, global, user", "global-match local global", "stages/test_skymatch.py"),
    _line(24, "running again with another subtract is refused", tests="stages/test_skymatch.py"),
    _line(25, "pieces in which pixels are read do not change levels", tests="stages/test_skymatch.py"),
    _line(26, "weight threshold of each group equal to 1e-7", tests="kernels/test_clip_stream.py stages/test_outlier_detection.py"),
    _line(27, "median equal, NaN included", "a pairs", "stages/test_outlier_detection.py"),
    _line(28, "blotted medians equal to the bit", "a pairs", "kernels/test_blot.py"),
    _line(29, "DQ equal; flagged pixels have 17, SCI ERR VAR are NaN there", "sky skip a pairs b"),
    _line(30, "NaN in ERR counts as 0, NaN in the blot never flags", tests="kernels/test_outliers.py"),
    _line(31, "without resampling: |SCI - median| > snr ERR, no growth", "no-resample"),
    _line(32, "backg counts only where no level does", "backg sky"),
    _line(33, "NON_SCIENCE pixels contribute to the median", "flagged"),
    _line(34, "CRVAL CRPIX CDELT PC and shape equal to 1e-12", "a pairs", "parity/test_resample_parity.py"),
    _line(35, "lowest vertex at pixel 0.0, shape = int(range + 0.5)", tests="sky/test_mosaic_frame.py"),
    _line(36, "the tenth decimal of S_REGION does not count", tests="sky/test_mosaic_frame.py"),
    _line(37, "output_shape is (x, y), less than 2 is refused", tests="sky/test_mosaic_frame.py"),
    _line(38, "SCI, WHT and CON equal", "sky skip one pair moving a pairs b", "parity/test_resample_parity.py"),
    _line(39, "tiles do not change the mosaic", tests="kernels/test_drizzle_tiles.py pipelines/test_geometry_and_tiles.py"),
    _line(40, "VAR and ERR equal, scaled by 1/ratio^2", "sky skip a pairs b", "parity/test_resample_parity.py"),
    _line(41, "pixels with their centre outside contribute nothing", tests="parity/test_resample_parity.py sky/test_scan.py"),
    _line(42, "neighbours of NaN in the map contribute nothing", tests="kernels/test_drizzle_oracle.py"),
    _line(43, "one exposure: first row and column weigh half", tests="parity/test_resample_parity.py"),
    _line(44, "exptime weights, zero time refused", tests="pipelines/test_weights_and_context.py"),
    _line(45, "no weight: fill value, CON 0, ERR NaN", "a pairs"),
    _line(46, "33 exposures: two planes of CON", tests="pipelines/test_weights_and_context.py"),
    _line(47, "propagate_dq: OR of the flags; default no DQ", "a", "parity/test_resample_parity.py"),
    _line(48, "enable_ctx, enable_err, report_var", tests="parity/test_resample_parity.py"),
    _line(49, "pixfrac < 1, gaussian, lanczos to 1e-6", tests="parity/test_resample_parity.py"),
    _line(50, "interpolated maps to 1e-6 px", tests="sky/test_pixmap.py"),
    _line(51, "NDRIZ and times count detectors of a group once", "pairs"),
    _line(52, "DETECTOR MULTIPLE, HDRTAB rows and columns", "sky a pairs", "formats/test_i2d.py"),
    _line(53, "S_REGION of the mosaic equal", "a pairs"),
    _line(54, "BKGLEVEL and BKGSUB absent, BKGMETH present", "a"),
    _line(55, "background mesh and rms equal", tests="kernels/test_background.py"),
    _line(56, "segmentation equal, labels and order", "sky a pairs", "stages/test_source_catalog.py"),
    _line(57, "catalogue: columns, units, numbers to 1e-6, NaN", "sky a pairs"),
    _line(58, "radii scale with 1/PXSCLRT, is_extended by thresholds", "ratio"),
    _line(59, "nearest neighbours", "a", "stages/test_source_catalog.py"),
    _line(60, "no source: no catalogue, the pipeline succeeds", "no-source"),
    _line(61, "names, extensions, types, BUNIT, BZERO", "a pairs one moving"),
    _line(62, "any memory budget gives the same products", tests="pipelines/test_image3.py memory/test_budget.py"),
)  # fmt: skip
