"""Parameters from files and the command line to the frozen values of the steps."""

from __future__ import annotations

import difflib
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from streamimg3.errors import InputError

T = TypeVar("T")
Settings = dict[str, dict[str, Any]]

PIPELINE = "pipeline"  # name under which settings keep what a file says of the pipeline as a whole

# parameters of the reference (some of its older versions only) that have no meaning here, and why
_WITHOUT_MEANING = {
    "in_memory": "memory is bounded by --memory", "allowed_memory": "memory is bounded by --memory",
    "pre_hooks": "there are no hooks", "post_hooks": "there are no hooks",
    "output_use_model": "products are named by the association", "output_use_index": "products are named by the association",
    "output_ext": "products are FITS", "search_output_file": "products are named by the association",
    "input_dir": "members are found beside the association", "output_file": "products are named by the association",
    "output_dir": "use --output-dir", "suffix": "products are named by the association",
    "save_results": "products are always written",
    "kernel_size": "it belongs to other modes", "threshold_percent": "it belongs to other modes",
    "rolling_window_width": "it belongs to time series", "ifu_second_check": "it belongs to other modes",
    "grow": "flags are not grown", "scale_detection": "detection is not rescaled",
    "nlow": "all exposures enter the median", "nhigh": "all exposures enter the median",
}  # fmt: skip
_SPECTRA = "it belongs to spectroscopy"
# parameters of a step that are read but change nothing: the values that ask for nothing, and why others are not followed
_WITHOUT_EFFECT: dict[str, dict[str, tuple[tuple[str, ...], str]]] = {
    "outlier_detection": {"fillval": (("", "NAN", "INDEF"), "pixels without weight never enter the median")},
    "bkg_subtract": {
        name: ((usual, "NONE"), _SPECTRA)
        for name, usual in (
            ("soss_source_percentile", "35.0"),
            ("soss_bkg_percentile", ""),
            ("wfss_mmag_extract", ""),
            ("wfss_mask", ""),
            ("wfss_maxiter", "5"),
            ("wfss_rms_stop", "0.0"),
            ("wfss_outlier_percent", "1.0"),
            ("override_bkg", "N/A"),
        )
    },
    "assign_wcs": {
        name: ((usual, "NONE"), _SPECTRA)
        for name, usual in (
            ("slit_y_low", "-0.55"),
            ("slit_y_high", "0.55"),
            ("nrs_ifu_slice_wcs", "FALSE"),
            ("override_specwcs", "N/A"),
            ("override_regions", "N/A"),
            ("override_chromcorr", "N/A"),
            ("override_msa", "N/A"),
            ("override_ifupost", "N/A"),
            ("override_ifufore", "N/A"),
            ("override_ifuslicer", "N/A"),
        )
    },
    "flat_field": {f"override_{name}": (("N/A", "NONE"), _SPECTRA) for name in ("fflat", "sflat", "dflat")},
    "photom": {"source_type": (("", "NONE"), _SPECTRA)},
}
# parameters that older versions of the reference have under another name
_FORMER = {"tweakreg": {"min_gaia": "abs_minobj", "save_gaia_catalog": "save_abs_catalog"}}
_GAIA = "GAIADR2"  # what align_to_gaia meant where no catalogue was named


def parse_assignment(text: str) -> tuple[str, str, Any]:
    """Split ``step.parameter=value``; the value is read as JSON where it is JSON, else as text.

    Raises
    ------
    InputError
        If the text has another form.

    Examples
    --------
    >>> parse_assignment("resample.pixfrac=0.6")
    ('resample', 'pixfrac', 0.6)
    """
    name, equals, value = text.partition("=")
    step, dot, parameter = name.strip().rpartition(".")
    if not equals or not dot:
        raise InputError(f"--set {text}: write it as step.parameter=value, for example resample.pixfrac=0.6")
    return step, parameter, parse_value(value)


def parse_value(text: str) -> Any:
    """Return a value written as JSON, Python-like ``True``/``None``, or plain text."""
    word = text.strip()
    named = {"true": True, "false": False, "none": None}
    if word.lower() in named:
        return named[word.lower()]
    try:
        return json.loads(word)
    except ValueError:
        return word


def read_file(path: str) -> Settings:
    """Read a TOML, YAML or JSON file of ``{step: {parameter: value}}``, or the reference's ASDF parameter file.

    What the reference's file for a pipeline says beside its steps is kept under ``PIPELINE``, with the pipeline's name.

    Raises
    ------
    InputError
        If the file cannot be read or has another form.
    """
    try:
        tree = _load(path)
    except Exception as error:  # the YAML reader's errors have no public base class here
        line = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: cannot be read as a parameter file: {line}") from error
    if not isinstance(tree, Mapping):
        raise InputError(f"{path}: a parameter file holds steps and their parameters")
    if isinstance(tree.get("steps"), list):
        tree = _of_pipeline(tree, path)
    elif "parameters" in tree and ("name" in tree or _class(tree)):
        tree = _of_step(tree, path)
    tree = tree.get("steps", tree)
    if not isinstance(tree, Mapping):
        raise InputError(f"{path}: a parameter file holds steps and their parameters")
    wrong = [k for k, v in tree.items() if not isinstance(v, Mapping)]
    if wrong:
        raise InputError(
            f"{path}: '{wrong[0]}' is no step with parameters: write [{wrong[0]}] and its parameters below"
        )
    return {str(k): dict(v) for k, v in tree.items()}


def _of_pipeline(tree: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The reference's file for a pipeline: parameters by step, and those of the pipeline itself."""
    steps = {_name(step, path): step.get("parameters") or {} for step in tree["steps"]}
    own = tree.get("parameters") or {}
    if not isinstance(own, Mapping):
        raise InputError(f"{path}: the pipeline's parameters must be names and values, not {own!r}")
    name = tree.get("name")
    told = {**own, **({"name": name} if isinstance(name, str) else {})}
    return {**steps, **({PIPELINE: told} if told else {})}


def _of_step(tree: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The reference's file for one step, which names the step or (in older files) only its class."""
    values = tree["parameters"]
    if isinstance(values, Mapping):
        values = {k: v for k, v in values.items() if k != "class"}
    step = _name(tree, path) if "name" in tree else _step_name(_class(tree).rpartition(".")[2])
    return {step: values}


def _class(tree: Mapping[str, Any]) -> str:
    """``jwst.tweakreg.TweakRegStep`` of a file for one step: beside its parameters or among them; empty = none."""
    inside = tree["parameters"]
    found = tree.get("class") or (inside.get("class") if isinstance(inside, Mapping) else None)
    return found if isinstance(found, str) else ""


def _load(path: str) -> Any:
    if path.endswith(".toml"):
        import tomllib

        with open(path, "rb") as f:
            return tomllib.load(f)
    if path.endswith(".asdf"):
        import asdf

        with asdf.open(path, ignore_unrecognized_tag=True) as tree:
            return json.loads(
                json.dumps(dict(tree.tree), default=lambda v: dict(v) if isinstance(v, Mapping) else str(v))
            )
    with open(path) as f:
        if path.endswith(".json"):
            return json.load(f)
        from astropy.io.misc import yaml

        return yaml.load(f)


def _name(step: Any, path: str) -> str:
    if not isinstance(step, Mapping) or not isinstance(step.get("name"), str):
        raise InputError(f"{path}: a step without a name: write name and parameters of each step")
    return _step_name(step["name"])


def _step_name(name: str) -> str:
    """``ResampleStep`` or ``resample`` -> ``resample``."""
    aliases = {
        "outlierdetection": "outlier_detection",
        "sourcecatalog": "source_catalog",
        "assignmtwcs": "assign_mtwcs",
        "assignwcs": "assign_wcs",
        "background": "bkg_subtract",
        "bkgsubtract": "bkg_subtract",
        "backgroundsubtraction": "bkg_subtract",
        "flatfield": "flat_field",
        "tsophotometry": "tso_photometry",
        "extract1d": "extract_1d",
        "whitelight": "white_light",
        "pixelreplace": "pixel_replace",
        "adaptivetracemodel": "adaptive_trace_model",
        "stackrefs": "stack_refs",
        "alignrefs": "align_refs",
    }
    plain = name.lower().removesuffix("step")
    return aliases.get(plain, plain)


def merge(*layers: Settings) -> Settings:
    """Return settings in which later layers win."""
    merged: Settings = {}
    for layer in layers:
        for step, values in layer.items():
            merged.setdefault(step, {}).update(values)
    return merged


def take_skips(settings: Settings, steps: tuple[str, ...]) -> tuple[Settings, frozenset[str]]:
    """Split off which steps the user skips.

    Raises
    ------
    InputError
        If a step is unknown or ``skip`` is no truth value.
    """
    rest: Settings = {}
    skipped = set()
    for step, values in settings.items():
        if step not in (*steps, PIPELINE):
            whose = f" in the parameters of {name}" if (name := settings.get(PIPELINE, {}).get("name")) else ""
            raise InputError(f"unknown step '{step}'{whose}{_close(step, steps)}: the steps are {', '.join(steps)}")
        skip = values.get("skip", False)
        if not isinstance(skip, bool):
            raise InputError(f"{step}.skip = {skip!r}: it must be true or false")
        if skip and step == PIPELINE:
            raise InputError(f"{PIPELINE}.skip = true: nothing would be done; skip single steps instead")
        if skip:
            skipped.add(step)
        rest[step] = {k: v for k, v in values.items() if k != "skip"}
    return rest, frozenset(skipped)


def with_bsub(settings: Settings) -> Settings:
    """Return settings in which the former parameter ``save_bsub`` of image2 stands where it belongs now."""
    own = dict(settings.get(PIPELINE, {}))
    if "save_bsub" not in own:
        return settings
    step = {"save_results": own.pop("save_bsub"), **settings.get("bkg_subtract", {})}
    return {**settings, PIPELINE: own, "bkg_subtract": step}


def pipeline_notes(settings: Settings) -> list[str]:
    """Return what parameters of the pipeline as a whole mean here: nothing, and why.

    Raises
    ------
    InputError
        If one of them is unknown.
    """
    values = {k: v for k, v in settings.get(PIPELINE, {}).items() if k not in ("name", "skip")}
    unknown = [name for name in values if name not in _WITHOUT_MEANING]
    if unknown:
        raise InputError(f"unknown parameter {PIPELINE}.{unknown[0]}: write the parameters of steps below their step")
    return _unused(values, PIPELINE)


def without_absent(settings: Settings, absent: tuple[str, ...]) -> Settings:
    """Return settings without steps of the reference that are not here, as long as the user skips them.

    Raises
    ------
    InputError
        If the user wants such a step.
    """
    wanted = [s for s in absent if s in settings and settings[s].get("skip", True) is not True]
    if wanted:
        raise InputError(f"{wanted[0]} is not available: leave it out (jwst, too, skips it unless told otherwise)")
    return {step: values for step, values in settings.items() if step not in absent}


def build(
    kind: type[T], values: Mapping[str, Any], step: str, unused_here: Mapping[str, str] | None = None
) -> tuple[T, list[str]]:
    """Make the parameters of a step; ``unused_here`` are those of the reference that have no meaning in it, and why.

    Returns
    -------
    params
        The frozen value.
    notes : list of str
        Parameters of the reference that have no meaning, no effect or another name here.

    Raises
    ------
    InputError
        If a parameter is unknown or of the wrong type.
    """
    hints, reasons = typing.get_type_hints(kind), {**_WITHOUT_MEANING, **(unused_here or {})}
    values, notes = _modern(values, step)
    chosen, unused = {}, {}
    for name, value in values.items():
        if name in hints:
            chosen[name] = _coerce(hints[name], value, f"{step}.{name}")
        elif name in reasons:
            unused[name] = value
        else:
            raise InputError(
                f"unknown parameter {step}.{name}{_close(name, hints)}: see 'streamimg3 run --help' or the README"
            )
    return kind(**chosen), notes + _unused(unused, step, reasons) + _ignored(chosen, step)


def _modern(values: Mapping[str, Any], step: str) -> tuple[dict[str, Any], list[str]]:
    """Parameters under the names that the reference gives them now, and what was renamed; a present name wins."""
    former, renamed, notes = _FORMER.get(step, {}), dict(values), []
    for old, new in former.items():
        if old in renamed:
            value = renamed.pop(old)
            notes.append(
                f"{step}.{old} is taken as {step}.{new}" if new not in renamed else f"{step}.{new} wins over {old}"
            )
            renamed.setdefault(new, value)
    if step == "tweakreg" and {"align_to_gaia", "gaia_catalog"} & values.keys():
        wanted, catalog = renamed.pop("align_to_gaia", False), renamed.pop("gaia_catalog", _GAIA)
        if not isinstance(wanted, bool):
            raise InputError(f"{step}.align_to_gaia = {wanted!r}: it must be true or false")
        if wanted:
            renamed.setdefault("abs_refcat", catalog)
        meant = f"{step}.abs_refcat = {renamed.get('abs_refcat') or 'none'}"
        notes.append(f"{step}.align_to_gaia = {str(wanted).lower()} is taken as {meant}")
    return renamed, notes


def _unused(values: Mapping[str, Any], step: str, why: Mapping[str, str] = _WITHOUT_MEANING) -> list[str]:
    """One line for each reason why parameters are not used; those that ask for nothing need none."""
    reasons: dict[str, list[str]] = {}
    for name, value in values.items():
        if value is not None and value not in ("", [], ()):
            reasons.setdefault(why[name], []).append(name)
    return [
        f"{step}.{', '.join(names)} {'is' if len(names) == 1 else 'are'} not used here: {why}"
        for why, names in reasons.items()
    ]


def _ignored(values: Mapping[str, Any], step: str) -> list[str]:
    """One line for each parameter whose value asks for something that is not done."""
    return [
        f"{step}.{name} = {values[name]} is not used here: {why}"
        for name, (harmless, why) in _WITHOUT_EFFECT.get(step, {}).items()
        if name in values and str(values[name]).strip().upper() not in harmless
    ]


def _close(word: str, known: typing.Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _coerce(kind: Any, value: Any, where: str) -> Any:
    """Turn a parsed value into the annotated type."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None or (isinstance(value, str) and value.strip().lower() == "none"):
            return None
        return _coerce(next(a for a in args if a is not type(None)), value, where)
    if origin is tuple:
        parts = value.replace(",", " ").split() if isinstance(value, str) else value
        if args[-1] is Ellipsis and isinstance(parts, int | float) and not isinstance(parts, bool):
            parts = [parts]
        if isinstance(parts, list | tuple) and args[-1] is Ellipsis:
            return tuple(_coerce(args[0], p, where) for p in parts)
        if not isinstance(parts, list | tuple) or len(parts) != len(args):
            raise InputError(f"{where} = {value!r}: it must be {len(args)} numbers, for example [1, 2]")
        return tuple(_coerce(a, p, where) for a, p in zip(args, parts, strict=True))
    return _scalar(kind, value, where)


def _scalar(kind: type, value: Any, where: str) -> Any:
    if kind is bool and isinstance(value, bool):
        return value
    if kind is str and value is not None and not isinstance(value, dict | list):
        return str(value)
    if kind in (int, float) and not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = None
        if number is not None and (kind is float or number.is_integer()):
            return kind(number)
    wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kind]
    raise InputError(f"{where} = {value!r}: it must be {wanted}")


def as_settings(steps: Mapping[str, Mapping[str, Any]]) -> Settings:
    """Return keyword arguments such as ``resample={"pixfrac": 0.6}`` as settings."""
    wrong = [k for k, v in steps.items() if not isinstance(v, Mapping)]
    if wrong:
        raise InputError(f"{wrong[0]}={steps[wrong[0]]!r}: give a step's parameters as a dictionary")
    return {k: dict(v) for k, v in steps.items()}
