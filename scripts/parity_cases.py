"""The fields and parameter sets on which this package is laid side by side with the reference."""

import dataclasses
from collections.abc import Mapping

from peer import Field, Value


@dataclasses.dataclass(frozen=True)
class Case:
    """One side-by-side run.

    Attributes
    ----------
    name : str
        Name in the table and on the command line.
    field : str
        Key of `FIELDS`.
    resample : mapping
        Parameters of the resample step, the same for both sides.
    relative : float
        0 asks for equal bits; otherwise the tolerance of a plane relative to its typical absolute value.
    wcs_of : str
        Case whose output WCS is handed to both sides as a custom ``output_wcs`` file.
    """

    name: str
    field: str = "a"
    resample: Mapping[str, Value] = dataclasses.field(default_factory=dict)
    relative: float = 0.0
    wcs_of: str = ""


def _field(name: str, kit: str, ours: str, border: int = 0, members: int = 0) -> Field:
    return Field(name, tuple(kit.split()), tuple(ours.split()), border, members)


_SPARSE = "--stars-arcsec2 0.2 --gals-arcsec2 0.1 --extended 0 --dither-arcsec 1.0"
_MIRI = "--detectors MIRIMAGE --filter F770W --n-dither 4 --name jw01234-o001_t001_miri_f770w"

FIELDS = {
    item.name: item
    for item in (
        _field("a", "--preset a", "--preset a"),
        _field("b", "--preset b", "--preset b"),
        _field("c", "--preset c", "--preset c"),
        _field("one", "--preset a", "--preset a", members=1),
        _field("n34", f"--nx 192 --ny 192 --n-dither 34 {_SPARSE} --name jw01234-o001_t001_nircam_clear-f200w-n34",
               "--size 192 --dithers 34"),
        _field("miri", _MIRI, "--instrument MIRI --size 1024"),
        # The real MIRI imager has a bounding box smaller than the array: columns outside map to NaN.
        _field("miri-cut", f"{_MIRI} --nx 256 --ny 256", "--instrument MIRI --size 256", border=4),
        _field("niriss", "--detectors NIS --nx 512 --ny 512 --n-dither 4 --name jw01234-o001_t001_niriss_clear-f200w",
               "--instrument NIRISS"),
        # Cut-outs of four detectors do not touch on the sky: a footprint of several polygons, DETECTOR=MULTIPLE.
        _field("detectors", f"--detectors NRCB1 NRCB2 NRCB3 NRCB4 --nx 192 --ny 192 --n-dither 2 {_SPARSE} "
               "--name jw01234-o001_t001_nircam_clear-f200w-detectors", "--detectors 4 --size 192 --dithers 2"),
    )
}  # fmt: skip

# A window cut out of the field: every rim of it runs through exposures.
_WINDOW: dict[str, Value] = {"output_shape": [300, 280], "crpix": [150.0, 140.0], "crval": [150.1163, 2.2010]}
# The same window moved over the field's far corner, at a fractional offset: part of it sees no exposure.
_CORNER: dict[str, Value] = {"output_shape": [300, 280], "crpix": [-122.25, -111.75], "crval": [150.1163, 2.2010]}

CASES = {
    case.name: case
    for case in (
        Case("default"),
        Case("rotation-0", resample={"rotation": 0.0}),
        Case("ratio-0.5", resample={"pixel_scale_ratio": 0.5}),
        Case("rotation-0-ratio-0.5", resample={"rotation": 0.0, "pixel_scale_ratio": 0.5}),
        Case("ratio-2", resample={"pixel_scale_ratio": 2.0}),
        Case("scale-0.04", resample={"pixel_scale": 0.04}),
        Case("pixfrac-0.6", resample={"pixfrac": 0.6}),
        Case("point", resample={"kernel": "point"}),
        Case("turbo", resample={"kernel": "turbo"}),
        Case("gaussian", resample={"kernel": "gaussian"}, relative=1e-6),
        Case("lanczos3", resample={"kernel": "lanczos3"}, relative=1e-6),
        Case("exptime", resample={"weight_type": "exptime"}),
        Case("window", resample=_WINDOW),
        Case("window-corner", resample=_CORNER),
        Case("output-wcs", wcs_of="rotation-0"),
        Case("no-ctx", resample={"enable_ctx": False}),
        Case("no-err", resample={"enable_err": False}),
        Case("no-var", resample={"report_var": False}),
        Case("propagate-dq", resample={"propagate_dq": True}),
        Case("fill", resample={"fillval": "-1"}),
        Case("one", "one"),
        Case("n34", "n34"),
        Case("detectors", "detectors"),
        Case("miri", "miri"),
        Case("miri-cut", "miri-cut"),
        Case("niriss", "niriss"),
        Case("b", "b"),
        Case("c", "c"),
    )
}

SMALL = ("default", "rotation-0-ratio-0.5", "pixfrac-0.6", "turbo", "window", "miri-cut")
