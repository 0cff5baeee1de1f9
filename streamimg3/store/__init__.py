"""Bytes: the Zarr group of one product, its exposures, documents and receipts."""

from streamimg3.store.exposure import Exposure, ExposureRecord
from streamimg3.store.observation import Observation

__all__ = ["Exposure", "ExposureRecord", "Observation"]
