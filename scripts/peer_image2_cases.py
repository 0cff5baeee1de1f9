"""The exposures and parameters that image2 is compared with the reference on; plain values, read by both interpreters.

Corners count from 1 and are (row, column), as SUBSTRT2 and SUBSTRT1 do; shapes are (rows, columns).
"""

from dataclasses import dataclass, field, replace

Shape = tuple[int, int]
Value = bool | int | float | str


@dataclass(frozen=True)
class Camera:
    """What identifies a camera in headers."""

    instrument: str
    detector: str
    filter: str | None
    pupil: str | None
    exp_type: str
    scale: float = 0.063  # arcsec
    centre: float = 159.5  # pixel of the distortion's origin


NIRCAM = Camera("NIRCAM", "NRCA2", "F200W", "CLEAR", "NRC_IMAGE")
CORON = Camera("NIRCAM", "NRCA2", "F200W", "MASKRND", "NRC_CORON")
MIRI = Camera("MIRI", "MIRIMAGE", "F770W", None, "MIR_IMAGE", 0.11, 400.0)
NIRISS = Camera("NIRISS", "NIS", "CLEAR", "F150W", "NIS_IMAGE", 0.065)
AMI = Camera("NIRISS", "NIS", "F480M", "NRM", "NIS_AMI", 0.065)
FGS = Camera("FGS", "GUIDER1", None, None, "FGS_IMAGE", 0.069)


@dataclass(frozen=True)
class Part:
    """One exposure: where on the detector, how many integrations (0 = an image), sky level in DN/s.

    ``empty`` leaves the first column of every integration NaN.
    """

    shape: Shape = (160, 192)
    corner: Shape = (1, 1)
    nints: int = 0
    level: float = 0.5
    name: str = "SUB160"
    empty: bool = False


@dataclass(frozen=True)
class Flat:
    """A flat-field file; ``own_flags`` gives its flags numbers of their own, explained by DQ_DEF."""

    shape: Shape = (160, 192)
    corner: Shape = (1, 1)
    own_flags: bool = False


@dataclass(frozen=True)
class Photom:
    """A photometry file: rows of (two keys, or none for FGS; MJy/sr for 1 DN/s), and coefficients for each row."""

    rows: tuple[tuple[str | float, ...], ...]
    linear: tuple[tuple[float, ...], ...] = ()
    exponential: tuple[tuple[float, ...], ...] = ()
    powerlaw: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class Case:
    """One run of the reference.

    Attributes
    ----------
    name, why : str
        Name of the folder; what the case is there for.
    lines : tuple of int
        Statements of the checklist that it can show.
    steps : dict
        Parameters by step, over those that point to the reference files.
    without : tuple of str
        Planes that the science exposure does not have.
    fails : str
        Error by which the reference ends, if it does.
    copies : int
        Number of science exposures, each a product with the same backgrounds.
    """

    name: str
    why: str
    lines: tuple[int, ...]
    camera: Camera = NIRCAM
    science: Part = Part()
    backgrounds: tuple[Part, ...] = ()
    flat: Flat | None = Flat()
    photom: Photom | None = None
    area: Shape | None = None
    offsets: tuple[tuple[str, str, float, float], ...] = ()
    steps: dict[str, dict[str, Value]] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    fails: str = ""
    copies: int = 1


_LINEAR = ((59700.0, 0.0), (59700.0, 0.011))
_EXPONENTIAL = ((59700.0, 0.3, 100.0, 0.8), (59650.0, 0.12, 250.0, 0.9))
_POWERLAW = ((59500.0, 0.9, 20.0, -0.1), (59520.0, 0.93, 12.0, -0.045))
_NRC = (("F444W", "CLEAR", 1.0), ("F200W", "CLEAR", 2.5))
_MIR = (("F1000W", "GENERIC", 0.4), ("F770W", "GENERIC", 0.31))
_MIR_OWN = (("F770W", "GENERIC", 0.4), ("F770W", "SUB256", 0.31))
_NIS = (("CLEAR", "F200W", 0.2), ("CLEAR", "F150W", 0.27))
_FGS = ((0.173,),)

_SUB = Part((64, 96), (21, 31), name="SUB64")
_CUBE = Part((48, 56), (21, 31), 3, name="SUB64")
_BIG_FLAT = Flat((128, 150), (5, 11))
_BIG_AREA = (160, 192)
_MIR_SUB = Part((192, 256), (51, 413), name="SUB256")
_MIR_REFERENCES = {"flat": Flat((224, 288), (41, 401)), "area": (320, 700)}
_SAVE: dict[str, dict[str, Value]] = {"flat_field": {"save_results": True}}


def _dithers(part: Part, count: int) -> tuple[Part, ...]:
    return tuple(Part(part.shape, part.corner, part.nints, 0.5 + 0.02 * k, part.name) for k in range(count))


CASES = {
    case.name: case
    for case in (
        Case("nircam", "2-D, two backgrounds, linear change with time", (1, 3, 5, 7, 8, 9, 10, 12, 16, 17),
             backgrounds=_dithers(Part(), 2), photom=Photom(_NRC, linear=_LINEAR), area=(160, 192), steps=_SAVE),
        Case("many-backgrounds", "12 backgrounds: outliers are clipped", (1, 3), science=_SUB, flat=_BIG_FLAT,
             backgrounds=_dithers(_SUB, 12), photom=Photom(_NRC)),
        Case("sigma-2-once", "clipped once, at 2 deviations", (1,), science=_SUB, flat=_BIG_FLAT,
             backgrounds=_dithers(_SUB, 7), photom=Photom(_NRC), steps={"bkg_subtract": {"sigma": 2.0, "maxiters": 1}}),
        Case("cube", "3-D sub-array, backgrounds of other lengths", (2, 3, 5, 6, 7, 9, 10, 11, 12, 16), CORON, _CUBE,
             tuple(Part(_CUBE.shape, _CUBE.corner, n, 0.4 + 0.01 * n, _CUBE.name) for n in (4, 5, 12)), _BIG_FLAT,
             Photom((("F200W", "CLEAR", 9.0), ("F200W", "MASKRND", 2.5))), _BIG_AREA, steps=_SAVE),
        Case("cube-empty", "a background without a value in some pixels in any integration", (2,), CORON, _CUBE,
             (*_dithers(_CUBE, 2), Part(_CUBE.shape, _CUBE.corner, 4, 0.5, _CUBE.name, True)), _BIG_FLAT,
             Photom((("F200W", "MASKRND", 2.5),))),
        Case("cover-more", "backgrounds larger than the science sub-array", (1, 3), science=_SUB, flat=_BIG_FLAT,
             backgrounds=(Part(), Part((100, 140), (11, 21))), photom=Photom(_NRC)),
        Case("cover-start", "backgrounds that cover the start of the science sub-array only, and one elsewhere", (1, 3),
             science=_SUB, flat=_BIG_FLAT, photom=Photom(_NRC),
             backgrounds=(Part((60, 90), (1, 1)), Part((64, 60), (21, 31)), Part((20, 20), (121, 141)))),
        Case("cover-end", "a background that covers the end of the science sub-array only", (1,), science=_SUB,
             backgrounds=(Part(), Part((64, 64), (41, 71))), flat=_BIG_FLAT, photom=Photom(_NRC)),
        Case("cube-part", "3-D backgrounds that cover a part", (2,), CORON, _CUBE,
             (*_dithers(_CUBE, 1), Part((40, 40), (11, 21), 4)), _BIG_FLAT, Photom((("F200W", "MASKRND", 2.5),))),
        Case("sub-array", "2-D sub-array, cut out of flat and area, no backgrounds", (4, 5, 6, 7, 8, 11, 12, 16, 17),
             science=_SUB, flat=_BIG_FLAT, photom=Photom(_NRC), area=_BIG_AREA, steps=_SAVE),
        Case("miri", "row GENERIC, exponential change", (5, 6, 7, 8, 11, 13, 14, 16, 17), MIRI, _MIR_SUB,
             photom=Photom(_MIR, exponential=_EXPONENTIAL), offsets=(("F770W", "", 0.25, -0.6),), **_MIR_REFERENCES),
        Case("miri-row", "row of the sub-array, power law, two backgrounds", (1, 13, 14), MIRI, _MIR_SUB,
             _dithers(_MIR_SUB, 2), photom=Photom(_MIR_OWN, powerlaw=_POWERLAW),
             offsets=(("F770W", "", 0.25, -0.6),), **_MIR_REFERENCES),
        Case("niriss", "two tables multiply", (5, 6, 7, 8, 13, 16, 17), NIRISS, Part((128, 128), (1, 1), name="SUB128"),
             flat=Flat((128, 128)), photom=Photom(_NIS, linear=_LINEAR, exponential=_EXPONENTIAL), area=(128, 128),
             offsets=(("CLEAR", "F150W", 0.31, 0.17), ("CLEAR", "F200W", 1.0, 2.0))),
        Case("niriss-cube", "no photometry of NIRISS cubes", (14,), AMI, Part((48, 48), (17, 9), 3, name="SUB80"),
             flat=Flat((80, 80)), photom=Photom((("F480M", "NRM", 0.5),))),
        Case("fgs", "one row without keys, power law", (5, 7, 8, 13, 16, 17), FGS, Part((128, 128), name="128X128"),
             flat=Flat((128, 128)), photom=Photom(_FGS, powerlaw=_POWERLAW[1:]), area=(128, 128)),
        Case("three-tables", "linear, exponential and power law multiply", (13,), science=_SUB, flat=_BIG_FLAT,
             photom=Photom(_NRC, _LINEAR, _EXPONENTIAL, _POWERLAW)),
        Case("time-off", "change with time is not applied", (12,), science=_SUB, flat=_BIG_FLAT,
             photom=Photom(_NRC, _LINEAR), steps={"photom": {"apply_time_correction": False}}),
        Case("inverse-flat", "multiplied by the flat field", (15,), science=_SUB, flat=_BIG_FLAT, photom=Photom(_NRC),
             steps={"flat_field": {"inverse": True, "save_results": True}}),
        Case("inverse-photom", "divided by the factor, with change", (15,), science=_SUB, flat=_BIG_FLAT,
             photom=Photom(_NRC, _LINEAR), steps={"photom": {"inverse": True}}),
        Case("inverse-both", "and in single precision", (15,), science=_SUB, flat=_BIG_FLAT, photom=Photom(_NRC),
             steps={"flat_field": {"inverse": True}, "photom": {"inverse": True}}),
        Case("flat-small", "a flat field smaller than the exposure: SKIPPED", (10,), science=_SUB, photom=Photom(_NRC),
             flat=Flat((50, 150), (5, 11))),
        Case("flat-flags", "flags of the flat field with numbers of their own", (9,), science=_SUB, photom=Photom(_NRC),
             flat=Flat((128, 150), (5, 11), True), steps=_SAVE),
        Case("flat-outside", "a flat field that does not cover the exposure", (11,), science=_SUB, photom=Photom(_NRC),
             flat=Flat((128, 150), (31, 41)), fails="ValueError"),
        Case("unmatched", "no row of the photometry file fits", (14,), science=_SUB, flat=_BIG_FLAT,
             photom=Photom((("F444W", "CLEAR", 1.0),)), area=_BIG_AREA),
        Case("twice", "two rows of the photometry file fit", (14,), science=_SUB, flat=_BIG_FLAT,
             photom=Photom((*_NRC, _NRC[1])), fails="MatchFitsTableRowError"),
        Case("bare", "no flat field, photometry or area", (10, 14, 16), science=_SUB, flat=None),
        Case("no-variances", "an exposure without variances", (10,), science=_SUB, flat=_BIG_FLAT, photom=Photom(_NRC),
             without=("var_poisson", "var_rnoise"), fails="TypeError"),
        Case("no-variances-no-flat", "without variances, not flat-fielded", (12, 16), science=_SUB, flat=None,
             photom=Photom(_NRC), without=("var_poisson", "var_rnoise")),
    )
}  # fmt: skip

_FULL = (2048, 2048)
_WIDE = replace(NIRCAM, centre=1023.5), replace(CORON, centre=1023.5)
LARGE = {
    case.name: case
    for case in (
        Case("images", "full detector: 8 exposures, 4 backgrounds", (), _WIDE[0], Part(_FULL, name="FULL"), copies=8,
             backgrounds=_dithers(Part(_FULL, name="FULL"), 4), flat=Flat(_FULL), photom=Photom(_NRC, _LINEAR), area=_FULL),
        Case("integrations", "full detector: 20 integrations, 2 backgrounds of 5", (), _WIDE[1],
             Part(_FULL, (1, 1), 20, name="FULL"), _dithers(Part(_FULL, (1, 1), 5, name="FULL"), 2), Flat(_FULL),
             Photom((("F200W", "MASKRND", 2.5),)), _FULL),
    )
}  # fmt: skip
