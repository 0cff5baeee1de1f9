"""Both sides of one case of a pipeline: the folder the reference has filled, and ours."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Sides:
    """Both sides of one case.

    Attributes
    ----------
    inputs, ours : Path
        Folder of the case (the reference's products lie in ``peer`` there), and of our products.
    error : str
        How our run ended, if not well.
    """

    inputs: Path
    ours: Path
    error: str = ""

    @property
    def theirs(self) -> Path:
        """The reference's products."""
        return self.inputs / "peer"

    @property
    def facts(self) -> dict[str, Any]:
        """What ``case.json`` says."""
        found: dict[str, Any] = json.loads((self.inputs / "case.json").read_text())
        return found
