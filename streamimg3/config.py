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

# parameters of the reference that have no meaning here, and why
_WITHOUT_MEANING = {
    "in_memory": "memory is bounded by --memory",
    "pre_hooks": "there are no hooks", "post_hooks": "there are no hooks",
    "output_use_model": "products are named by the association", "output_use_index": "products are named by the association",
    "output_ext": "products are FITS", "search_output_file": "products are named by the association",
    "input_dir": "members are found beside the association", "output_file": "products are named by the association",
    "output_dir": "use --output-dir", "suffix": "products are named by the association",
    "save_results": "products are always written",
    "kernel_size": "it belongs to other modes", "threshold_percent": "it belongs to other modes",
    "rolling_window_width": "it belongs to time series", "ifu_second_check": "it belongs to other modes",
}  # fmt: skip


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
    if isinstance(tree.get("steps"), list):  # the reference's pipeline parameter file
        tree = {_name(step, path): step.get("parameters") or {} for step in tree["steps"]}
    elif "parameters" in tree and "name" in tree:  # the reference's file for one step
        tree = {_name(tree, path): tree["parameters"]}
    tree = tree.get("steps", tree)
    if not isinstance(tree, Mapping):
        raise InputError(f"{path}: a parameter file holds steps and their parameters")
    wrong = [k for k, v in tree.items() if not isinstance(v, Mapping)]
    if wrong:
        raise InputError(
            f"{path}: '{wrong[0]}' is no step with parameters: write [{wrong[0]}] and its parameters below"
        )
    return {str(k): dict(v) for k, v in tree.items()}


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
        if step not in steps:
            raise InputError(f"unknown step '{step}'{_close(step, steps)}: the steps are {', '.join(steps)}")
        skip = values.get("skip", False)
        if not isinstance(skip, bool):
            raise InputError(f"{step}.skip = {skip!r}: it must be true or false")
        if skip:
            skipped.add(step)
        rest[step] = {k: v for k, v in values.items() if k != "skip"}
    return rest, frozenset(skipped)


def build(kind: type[T], values: Mapping[str, Any], step: str) -> tuple[T, list[str]]:
    """Make the parameters of a step.

    Returns
    -------
    params
        The frozen value.
    notes : list of str
        Parameters of the reference that have no meaning here.

    Raises
    ------
    InputError
        If a parameter is unknown or of the wrong type.
    """
    hints = typing.get_type_hints(kind)
    notes, chosen = [], {}
    for name, value in values.items():
        if name in hints:
            chosen[name] = _coerce(hints[name], value, f"{step}.{name}")
        elif name in _WITHOUT_MEANING:
            notes.append(f"{step}.{name} is not used here: {_WITHOUT_MEANING[name]}")
        else:
            raise InputError(
                f"unknown parameter {step}.{name}{_close(name, hints)}: see 'streamimg3 run --help' or the README"
            )
    return kind(**chosen), notes


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
