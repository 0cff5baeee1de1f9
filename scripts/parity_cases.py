"""The fields and parameter sets on which this package is laid side by side with the reference."""

import dataclasses
from collections.abc import Mapping

from peer import Field, Steps, Value


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


def _field(name: str, kit: str, ours: str, border: int = 0, members: int = 0, flag: int = 0) -> Field:
    return Field(name, tuple(kit.split()), tuple(ours.split()), border, members, flag)


_PAIR = "--detectors NRCB1 NRCB2 --nx 512 --ny 512 --stars-arcsec2 0.35 --dither-arcsec 1.0"
_SPARSE = "--stars-arcsec2 0.2 --gals-arcsec2 0.1 --extended 0 --dither-arcsec 1.0"
_MIRI = "--detectors MIRIMAGE --filter F770W --n-dither 4 --name jw01234-o001_t001_miri_f770w"

FIELDS = {
    item.name: item
    for item in (
        _field("a", "--preset a", "--preset a"),
        _field("b", "--preset b", "--preset b"),
        _field("c", "--preset c", "--preset c"),
        _field("flagged", "--preset a", "--preset a", flag=512),  # NON_SCIENCE
        _field("one", "--preset a", "--preset a", members=1),
        _field("n34", f"--nx 192 --ny 192 --n-dither 34 {_SPARSE} --name jw01234-o001_t001_nircam_clear-f200w-n34",
               "--size 192 --dithers 34"),
        _field("miri", _MIRI, "--instrument MIRI --size 1024"),
        # The real MIRI imager has a bounding box smaller than the array: columns outside map to NaN.
        _field("miri-cut", f"{_MIRI} --nx 256 --ny 256", "--instrument MIRI --size 256", border=4),
        _field("niriss", "--detectors NIS --nx 512 --ny 512 --n-dither 4 --name jw01234-o001_t001_niriss_clear-f200w",
               "--instrument NIRISS"),
        _field("moving", "--preset a --moving", ""),
        _field("pairs", f"{_PAIR} --n-dither 3 --name jw01234-o001_t001_nircam_clear-f200w-pairs",
               "--detectors 2 --size 512 --dithers 3"),
        _field("pair", f"{_PAIR} --n-dither 1 --name jw01234-o001_t001_nircam_clear-f200w-pair",
               "--detectors 2 --size 512 --dithers 1"),
        *(
            _field(f"grow{3 * x * y}", f"--nx 512 --ny 512 --n-dither 3 --mosaic {x} {y} --stars-arcsec2 0.35 --dither-arcsec 1.0 "
                   f"--name jw01234-o001_t001_nircam_clear-f200w-grow{3 * x * y}",
                   f"--size 512 --dithers 3 --pointings {y} {x}")
            for x, y in ((2, 1), (4, 2), (8, 4))
        ),
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


@dataclasses.dataclass(frozen=True)
class Image3Case:
    """One side-by-side run of the whole pipeline.

    Attributes
    ----------
    name : str
        Name in the table and on the command line.
    field : str
        Key of `FIELDS`.
    steps : mapping
        Parameters by step, the same for both sides.
    """

    name: str
    field: str = "a"
    steps: Steps = dataclasses.field(default_factory=dict)


# What both sides keep so that more can be compared than the final products
_KEPT: Steps = {"tweakreg": {"save_catalogs": True}, "outlier_detection": {"save_intermediate_results": True}}
_BACKG: Steps = {"outlier_detection": {"backg": 0.02}}
# The reference evaluates every pixel's position, this package interpolates unless it is told not to
EXACT: Steps = {"outlier_detection": {"pixmap_stepsize": 1}, "resample": {"pixmap_stepsize": 1}}

IMAGE3 = {
    case.name: case
    for case in (
        Image3Case("a", steps=_KEPT),
        Image3Case("pairs", "pairs", _KEPT),
        Image3Case("one", "one"),
        Image3Case("pair", "pair"),
        Image3Case("moving", "moving"),
        Image3Case("b", "b"),
        Image3Case("sky", steps={"tweakreg": {"skip": True}}),
        Image3Case("skip", steps={"tweakreg": {"skip": True}, "skymatch": {"skip": True}}),
        Image3Case("dao", steps={"tweakreg": {"save_catalogs": True, "starfinder": "dao"}}),
        Image3Case("segmentation", steps={"tweakreg": {"save_catalogs": True, "starfinder": "segmentation"}}),
        Image3Case("separation", steps={"tweakreg": {"separation": 0.5}}),
        Image3Case("minobj", steps={"tweakreg": {"minobj": 1000}}),
        Image3Case("shift", steps={"tweakreg": {"fitgeometry": "shift"}}),
        Image3Case("rscale", steps={"tweakreg": {"fitgeometry": "rscale"}}),
        Image3Case("general", steps={"tweakreg": {"fitgeometry": "general"}}),
        Image3Case("subtract", steps={"skymatch": {"subtract": True}}),
        Image3Case("global", steps={"skymatch": {"skymethod": "global"}}),
        Image3Case("global-match", steps={"skymatch": {"skymethod": "global+match"}}),
        Image3Case("local", steps={"skymatch": {"skymethod": "local"}}),
        Image3Case("no-resample", steps={"outlier_detection": {"resample_data": False}}),
        Image3Case("flagged", "flagged", {"tweakreg": {"skip": True}}),
        Image3Case("backg", steps={"tweakreg": {"skip": True}, "skymatch": {"skip": True}, **_BACKG}),
        Image3Case("ratio", steps={"resample": {"pixel_scale_ratio": 0.5}}),
        Image3Case("no-source", steps={"source_catalog": {"snr_threshold": 1e9}}),
    )
}

IMAGE3_SMALL = ("a",)

# (HDU or "*", keyword) -> why headers of the two sides may differ there.
ALLOWED = {
    ("*", "DATE"): "time of writing",
    ("PRIMARY", "CAL_VER"): "version of the program that wrote the product",
    ("PRIMARY", "CAL_VCS"): "version control state of the program that wrote the product",
    ("PRIMARY", "CRDS_VER"): "reference-file client, not used here",
    ("PRIMARY", "CRDS_CTX"): "reference-file context, not used here",
    ("PRIMARY", "S3VER"): "version of this package, which the reference has no keyword for",
    ("HDRTAB", "CAL_VER"): "the reference stamps its own release into its inputs before it tabulates them",
    ("HDRTAB", "CAL_VCS"): "the reference stamps its own release into its inputs before it tabulates them",
    ("SCI", "RADESYS"): "the segmentation map says its reference system, the reference's leaves it out",
    ("ASDF", "NAXIS1"): "length of the metadata tree",
    ("ASDF", "TFORM1"): "length of the metadata tree",
    **{
        ("SCI", f"{name}_{powers}"): "linear terms of the inverse polynomial: without them it is not the inverse"
        for name in ("AP", "BP")
        for powers in ("0_1", "1_0")
    },
}


@dataclasses.dataclass(frozen=True)
class Deliberate:
    """A difference that is there on purpose, or that no two programs can be without.

    Attributes
    ----------
    line : int
        The statement of the checklist that does not hold to the letter.
    cases : tuple of str
        Where.
    limit : float
        How large the difference may be (in the measurement's own figure of size).
    reason : str
        Why.
    """

    line: int
    cases: tuple[str, ...]
    limit: float
    reason: str


_NOISE = (
    "two fits of the same stars are 1e-10 arcsec apart; overlaps are drawn with vertices rounded from half pixels, so that "
    "noise decides on a row of pixels more or less (case sky, without a fit, is exact)"
)
# Columns of the catalogue that differ on purpose -> why.
COLUMNS = dict.fromkeys(
    ("sky_bbox_ul", "sky_bbox_lr", "sky_bbox_ur"),
    "the reference adds half a pixel to upper limits that are exclusive already: its corners are a pixel too far out",
)

_FOLLOWS = "follows from the sky levels, and from pixel maps that are 1e-8 px apart (cases sky and skip are exact)"
_ALIGNED = ("a", "pairs", "b", "moving", "global-match", "local", "global", "subtract")

DELIBERATE = (
    Deliberate(19, _ALIGNED, 1e-2, _NOISE),
    Deliberate(20, _ALIGNED, 1e-2, _NOISE),
    Deliberate(23, _ALIGNED, 1e-2, _NOISE),
    Deliberate(27, _ALIGNED, 1e-3, _FOLLOWS),
    Deliberate(28, _ALIGNED, 1e-3, _FOLLOWS),
    Deliberate(38, _ALIGNED, 1e-3, _FOLLOWS),
    Deliberate(40, _ALIGNED, 1e-3, _FOLLOWS),
    Deliberate(57, _ALIGNED, 1e-2, _FOLLOWS),
    Deliberate(58, ("ratio",), 1e-2, _FOLLOWS),
)
