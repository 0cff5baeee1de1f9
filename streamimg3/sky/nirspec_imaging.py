"""The gWCS of a NIRSpec exposure through the mirror: pixels, focal plane, grating wheel, MSA, telescope (others §1.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamimg3.errors import InputError
from streamimg3.sky.detector_frame import Number, Pointing, Step, pixel_frame, sky_steps
from streamimg3.sky.distortion_file import Tree, model_in
from streamimg3.sky.imaging_wcs import Subarray, box_of

if TYPE_CHECKING:
    import gwcs
    from astropy.modeling import Model
    from gwcs.coordinate_frames import Frame2D

TYPES = ("camera", "collimator", "disperser", "fore", "fpa", "ote", "wavelengthrange")
_LAMPS = ("NRS_LAMP", "NRS_AUTOWAVE", "NRS_AUTOFLAT")
_LAST_PIXEL = 2047.0  # of a detector, 0-based
_EVERYTHING = (0.6e-6, 5.3e-6)  # m: what the instrument can see


@dataclass(frozen=True)
class Setting:
    """How the instrument was set.

    Parameters
    ----------
    detector : str
        NRS1 or NRS2.
    filter, grating, lamp, exp_type : str
        FILTER, GRATING, LAMP, EXP_TYPE.
    tilts : tuple of 2 floats or None
        Readings of the grating wheel's sensors, GWA_XTIL and GWA_YTIL; None = not corrected for.
    """

    detector: str
    filter: str
    grating: str
    lamp: str
    exp_type: str
    tilts: tuple[Number, Number] = (None, None)

    @property
    def stops_at_msa(self) -> bool:
        """Whether the filter wheel is closed, so that no light from the sky comes in."""
        return self.filter.upper() == "OPAQUE"


@dataclass(frozen=True)
class Passband:
    """Spectral order and wavelength limits (m) of a setting; keywords SPORDER, WAVSTART, WAVEND.

    ``note`` tells if they are not those of the setting itself.
    """

    order: int
    limits: tuple[float, float]
    note: str | None = None

    @property
    def middle(self) -> float:
        """Wavelength (m) at which images are described."""
        low, high = self.limits
        return low + (high - low) * 0.5


@dataclass(frozen=True, eq=False)
class Optics:
    """What the reference files of one detector say.

    Attributes
    ----------
    fpa : Model
        Pixels of the detector (x, y), 0-based, full frame, to metres in the focal plane.
    camera : Model
        To tangents of angles at the grating wheel.
    collimator : Model
        Tangents of angles at the grating wheel to metres in the MSA plane.
    fore : Model or None
        These and a wavelength (m) to degrees in the telescope's image plane; None if the filter wheel is closed.
    ote : Model or None
        These to V2, V3 in arcsec.
    angles : tuple of 4 floats
        theta_x, theta_y, theta_z, tilt_y of the grating wheel, degrees, with the sensors' corrections.
    passband : Passband
        Of the setting.
    """

    fpa: Model
    camera: Model
    collimator: Model
    fore: Model | None
    ote: Model | None
    angles: tuple[float, float, float, float]
    passband: Passband

    @classmethod
    def of(cls, trees: Mapping[str, Tree], names: Mapping[str, str], setting: Setting) -> Optics:
        """Return what reference files say.

        Parameters
        ----------
        trees : mapping of str to mapping
            ASDF trees by type; `TYPES` are needed, without fore and ote if the filter wheel is closed.
        names : mapping of str to str
            The files, for messages.
        setting : Setting
            How the instrument was set.

        Raises
        ------
        InputError
            If a file is missing or says nothing usable; the line names it.
        """
        closed = setting.stops_at_msa
        needed = [t for t in TYPES if not (closed and t in ("fore", "ote"))]
        missing = [t for t in needed if t not in trees]
        if missing:
            raise InputError(f"the WCS of a NIRSpec image needs reference files of type {', '.join(missing)}")
        if setting.detector.upper() not in ("NRS1", "NRS2"):
            raise InputError(f"DETECTOR = {setting.detector}: it must be NRS1 or NRS2")

        def model(kind: str, key: str = "model", axes: tuple[int, int] = (2, 2)) -> Model:
            return model_in(trees[kind], key, names.get(kind, kind), axes)

        return cls(
            model("fpa", f"{setting.detector.lower()}_model"),
            model("camera"),
            model("collimator"),
            None if closed else model("fore", axes=(3, 2)),
            None if closed else model("ote"),
            wheel_angles(trees["disperser"], names.get("disperser", "disperser"), setting.tilts),
            passband(trees["wavelengthrange"], names.get("wavelengthrange", "wavelengthrange"), setting),
        )


def wheel_angles(tree: Tree, name: str, tilts: tuple[Number, Number]) -> tuple[float, float, float, float]:
    """Return theta_x, theta_y, theta_z, tilt_y (degrees) of the grating wheel at sensor readings.

    The x sensor corrects theta_y and the y sensor theta_x, by half the change of the tilt (arcsec) since the reading at
    which the file's angles hold.

    Parameters
    ----------
    tree : mapping
        ASDF tree of a disperser file.
    name : str
        The file, for messages.
    tilts : tuple of 2 floats or None
        GWA_XTIL and GWA_YTIL.

    Raises
    ------
    InputError
        If the file lacks an angle or the relation of a sensor.
    """
    x, y, z, tilt_y = (_number(tree, key, name) for key in ("theta_x", "theta_y", "theta_z", "tilt_y"))
    x_reading, y_reading = tilts
    if x_reading is not None:
        y += _tilt(tree, "gwa_tiltx", name, x_reading)
    if y_reading is not None:
        x += _tilt(tree, "gwa_tilty", name, y_reading)
    return x, y, z, tilt_y


def _tilt(tree: Tree, key: str, name: str, reading: float) -> float:
    """Degrees by which a sensor's reading turns the wheel."""
    from astropy.modeling import Model

    sensor = tree.get(key)
    relation = sensor.get("tilt_model") if isinstance(sensor, Mapping) else None
    zero = sensor.get("zeroreadings") if isinstance(sensor, Mapping) else None
    if not isinstance(relation, Model) or zero is None or len(zero) == 0:
        raise InputError(f"{name}: {key} has no tilt_model with zeroreadings: give a complete disperser file")
    return 0.5 * (float(relation(reading)) - float(relation(float(zero[0])))) / 3600.0


def _number(tree: Tree, key: str, name: str) -> float:
    value = tree.get(key)
    if not isinstance(value, int | float):
        raise InputError(f"{name}: no number '{key}': give a disperser reference file")
    return float(value)


def passband(tree: Tree, name: str, setting: Setting) -> Passband:
    """Return order and wavelengths of a setting.

    The row is that of filter and grating (lamp and grating if the light comes from a lamp), else the first one of the
    grating, else everything that the instrument can see, with order -1.

    Parameters
    ----------
    tree : mapping
        ASDF tree of a wavelengthrange file.
    name : str
        The file, for messages.
    setting : Setting
        How the instrument was set.

    Raises
    ------
    InputError
        If the file has no such table.
    """
    table = [tree.get(key) for key in ("waverange_selector", "wavelengthrange", "order")]
    columns = [list(column) for column in table if isinstance(column, list | tuple)]
    if len(columns) < 3 or len({len(c) for c in columns}) > 1:
        raise InputError(f"{name}: no table of waverange_selector, wavelengthrange and order of equal lengths")
    selector, limits, orders = columns
    lit = setting.stops_at_msa or setting.exp_type.upper() in _LAMPS
    key = f"{setting.lamp if lit else setting.filter}_{setting.grating}"
    if key in selector:
        row, note = selector.index(key), None
    else:
        row = next((i for i, text in enumerate(selector) if str(text).partition("_")[2] == setting.grating), -1)
        note = f"{name} has no row {key}: {'everything' if row < 0 else selector[row]} is taken"
    if row < 0:
        return Passband(-1, _EVERYTHING, note)
    return Passband(int(orders[row]), (float(limits[row][0]), float(limits[row][1])), note)


def nirspec_imaging_wcs(
    optics: Optics, setting: Setting, subarray: Subarray, pointing: Pointing, shape: tuple[int, int]
) -> gwcs.WCS:
    """Return the gWCS of a NIRSpec exposure through the mirror.

    Its frames are detector and sca (pixels), gwa (direction cosines), msa (m, and the wavelength), oteip (degrees), v2v3
    and v2v3vacorr (arcsec), world (ICRS, degrees); it ends with msa if the filter wheel is closed.

    Parameters
    ----------
    optics : Optics
        What the reference files say; its models stay as they are.
    setting : Setting
        How the instrument was set.
    subarray : Subarray
        Where the array lies in the full frame.
    pointing : Pointing
        Where the telescope looks.
    shape : tuple of int
        Rows and columns of the array.

    Returns
    -------
    gwcs.WCS
        Its bounding box is the array.
    """
    from gwcs import WCS

    pixels, detector = pixel_frame("detector"), pixel_frame("sca")
    steps: list[Step] = [
        (pixels, _to_detector(setting.detector, subarray)),
        (detector, optics.fpa.deepcopy() | optics.camera.deepcopy() | _to_cosines() | _turn(optics.angles)),
        (_plane("gwa", "rad", ("alpha_in", "beta_in")), _to_msa(optics, setting)),
    ]
    msa = _plane("msa", "m", ("x_msa", "y_msa"))
    if optics.fore is None or optics.ote is None:
        steps.append((msa, None))
    else:
        steps.append((msa, _to_telescope(optics.fore, optics.passband.middle)))
        steps.append((_plane("oteip", "deg", ("x_oteip", "y_oteip")), optics.ote.deepcopy()))
        steps += sky_steps(pointing)
    wcs = WCS(steps)
    wcs.bounding_box = box_of(shape)[::-1]
    return wcs


def _plane(name: str, unit: str, axes: tuple[str, str]) -> Frame2D:
    from astropy.units import Unit
    from gwcs.coordinate_frames import Frame2D

    return Frame2D(name=name, axes_order=(0, 1), unit=(Unit(unit), Unit(unit)), axes_names=axes)


def _to_detector(detector: str, subarray: Subarray) -> Model:
    """Pixels of the array to those of the detector as it is mounted: NRS2 is stored upside down."""
    from astropy.modeling.models import Scale, Shift

    y, x = (float(c) for c in subarray.corner)
    model = Shift(x) & Shift(y)
    if detector.upper() == "NRS2":
        model = model | Shift(-_LAST_PIXEL) & Shift(-_LAST_PIXEL) | Scale(-1.0) & Scale(-1.0)
    model.name = "dms2sca"
    return model


def _to_cosines() -> Model:
    """Tangents of angles (x, y) to direction cosines (x, y, z)."""
    from astropy.modeling.models import Const1D, Identity, Mapping
    from gwcs.geometry import ToDirectionCosines

    third = Mapping((0, 1, 1)) | Identity(2) & Const1D(1.0)
    model = third | ToDirectionCosines() | Mapping((0, 1, 2), n_inputs=4)
    model.inverse = _to_tangents()
    return model


def _to_tangents() -> Model:
    """Direction cosines (x, y, z) to x/z, y/z."""
    from astropy.modeling.models import Mapping

    return Mapping((0, 1), n_inputs=3) / Mapping((2, 2), n_inputs=3)


def _turn(angles: tuple[float, float, float, float]) -> Model:
    """Direction cosines in front of the wheel to those in its own frame."""
    from astropy.modeling.models import RotationSequence3D

    return RotationSequence3D(list(angles), axes_order="xyzy", name="rotation")


def _to_msa(optics: Optics, setting: Setting) -> Model:
    """Direction cosines in the wheel's frame, reflected, to metres in the MSA plane, with the wavelength.

    The wavelength is in m for the fore optics, and in micron where the way ends here.
    """
    from astropy.modeling.models import Const1D, Identity, Mapping, Scale

    reflected = Scale(-1.0) & Scale(-1.0) & Identity(1)
    turn, collimator = _turn(optics.angles), optics.collimator.deepcopy()
    wavelength = optics.passband.middle * (1.0e6 if setting.stops_at_msa else 1.0)
    tagged = Mapping((0, 1, 1)) | Identity(2) & Const1D(wavelength)
    model = reflected | turn.inverse | _to_tangents() | collimator | tagged
    model.inverse = Mapping((0, 1), n_inputs=3) | collimator.inverse | _to_cosines() | turn | reflected
    model.name = "gwa2msa"
    return model


def _to_telescope(fore: Model, wavelength: float) -> Model:
    """Metres in the MSA plane, with the wavelength, to degrees in the telescope's image plane.

    The way back is that of the wavelength at which the image is described.
    """
    from astropy.modeling.models import Const1D, Identity, Mapping

    model = fore.deepcopy()
    back = Mapping((0, 1, 1)) | Identity(2) & Const1D(wavelength)
    model.inverse = back | model.inverse | Mapping((0, 1, 1)) | Identity(2) & Const1D(wavelength)
    model.name = "msa2oteip"
    return model
