"""Every parameter of a pipeline with its type, default, unit and meaning, its value in a run, and where that came from."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streamimg3 import config
from streamimg3.parameter_texts import TEXTS, unit_of

DEFAULT, FILE, COMMAND_LINE, CALL = "default", "file", "command line", "call"
Origins = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a step: what it is, and what it is set to by whom (``default``, ``file``, ``command line``, ``call``)."""

    step: str
    name: str
    type: str
    default: Any
    unit: str
    meaning: str
    value: Any
    origin: str


def origins_of(layers: Sequence[tuple[str, config.Settings]]) -> dict[str, dict[str, str]]:
    """Return which layer the value of each parameter comes from; later layers win.

    Examples
    --------
    >>> origins_of([("file", {"resample": {"pixfrac": 1}}), ("command line", {"resample": {"pixfrac": 2}})])
    {'resample': {'pixfrac': 'command line'}}
    """
    found: dict[str, dict[str, str]] = {}
    for name, settings in layers:
        for step, values in settings.items():
            found.setdefault(step, {}).update(dict.fromkeys(values, name))
    return found


def table(stages: Mapping[str, Any], params: Any, origins: Origins) -> list[Parameter]:
    """Return the parameters of a pipeline in order, ``skip`` of each step first.

    Parameters
    ----------
    stages : mapping of str to module
        The steps, each with its ``Params``.
    params : object
        The effective values: an attribute for each step, and ``skip``.
    origins : mapping
        By step and name, where a value that was given came from.
    """
    rows = []
    for step, stage in stages.items():
        told, meanings = origins.get(step, {}), _meanings(stage.Params)
        skipped = step in params.skip
        rows.append(
            Parameter(step, "skip", "bool", False, "", "Leave the step out.", skipped, told.get("skip", DEFAULT))
        )
        values = getattr(params, step)
        for field in dataclasses.fields(stage.Params):
            meaning = TEXTS.get(step, {}).get(field.name) or meanings.get(field.name, "")
            rows.append(
                Parameter(
                    step, field.name, str(field.type), field.default, unit_of(field.name), meaning, getattr(values, field.name),
                    told.get(field.name, DEFAULT),
                )
            )  # fmt: skip
    return rows


def _meanings(kind: type) -> dict[str, str]:
    """What the numpydoc section "Parameters" of a class says of each."""
    text = (inspect.getdoc(kind) or "").partition("Parameters\n----------\n")[2].partition("\nRaises\n")[0]
    found: dict[str, str] = {}
    names: list[str] = []
    for line in text.splitlines():
        if line and not line[0].isspace():
            names = [name.strip() for name in line.split(" : ")[0].split(",")]
            found.update(dict.fromkeys(names, ""))
        elif line.strip():
            found.update({name: f"{found[name]} {line.strip()}".strip() for name in names})
    return found


def as_toml(rows: Sequence[Parameter]) -> str:
    """Return the effective parameters as a TOML file that ``--config`` reads; a parameter without a value is a comment.

    Examples
    --------
    >>> print(as_toml([Parameter("resample", "pixfrac", "float", 1.0, "input pixel", "Drop size.", 0.8, "file")]), end="")
    [resample]
    pixfrac = 0.8  # input pixel; file
    """
    lines: list[str] = []
    step = ""
    for row in rows:
        if row.step != step:
            lines += ([""] if step else []) + [f"[{row.step}]"]
            step = row.step
        note = "; ".join(part for part in (row.unit, row.origin if row.origin != DEFAULT else "") if part)
        comment = f"  # {note}" if note else ""
        lines.append(
            f"{row.name} = {_toml(row.value)}{comment}" if row.value is not None else f"# {row.name} has no value"
        )
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    if isinstance(value, float) and value == value and abs(value) != float("inf"):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)
