"""The reference images as one stack (spec others §3.3): a view, so that there is nothing to be done but to look at it."""

from __future__ import annotations

from dataclasses import dataclass

from streamimg3.engine import Task
from streamimg3.stages.psf_stack import Stack, cast_of
from streamimg3.store import Observation

NAME = "stack_refs"


@dataclass(frozen=True)
class Params:
    """The step has no parameters."""


def plan(obs: Observation, params: Params) -> list[Task]:
    """Return no task: no pixel is touched."""
    return []


def run(obs: Observation, params: Params) -> Stack:
    """Return the integrations of all reference stars as one stack.

    Raises
    ------
    InputError
        If there are none, or their images differ in shape from each other's or the science's.
    """
    return cast_of(obs).psf
