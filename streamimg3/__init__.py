"""streamimg3: JWST (and any dithered) imaging, reduced in bounded memory and opened with xarray."""

from streamimg3.api import Session, catalog_multi, describe, export, ingest, open, plan, replay, run
from streamimg3.errors import BudgetError, InputError, StoreError, StreamImgError, TaskError
from streamimg3.looking import cutouts, make_report, open_dataset, rgb
from streamimg3.store import Exposure, Observation

__version__ = "0.1.0"

__all__ = [
    "BudgetError",
    "Exposure",
    "InputError",
    "Observation",
    "Session",
    "StoreError",
    "StreamImgError",
    "TaskError",
    "__version__",
    "catalog_multi",
    "cutouts",
    "describe",
    "export",
    "ingest",
    "make_report",
    "open",
    "open_dataset",
    "plan",
    "replay",
    "rgb",
    "run",
]
