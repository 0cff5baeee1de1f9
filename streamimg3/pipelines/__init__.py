"""Order: which steps run in which order, and nothing else."""

from __future__ import annotations

from types import ModuleType

NAMES = ("image2", "image3", "coron3", "tso3")


def module_of(name: str) -> ModuleType:
    """Return the module of a pipeline: it alone is loaded, with the steps that it has.

    Raises
    ------
    KeyError
        If there is no such pipeline.
    """
    if name == "image2":
        from streamimg3.pipelines import image2

        return image2
    if name == "image3":
        from streamimg3.pipelines import image3

        return image3
    if name == "coron3":
        from streamimg3.pipelines import coron3

        return coron3
    if name == "tso3":
        from streamimg3.pipelines import tso3

        return tso3
    raise KeyError(name)
