"""One cluster for the tests of a file: a head and two workers, and hosts outside."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ray_hosts import RayHosts, ray_hosts


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayHosts]:
    """A head, `worker-1` and `worker-2`, started by cluster.yaml; `worker-3` and `worker-4` are off."""
    with ray_hosts(2) as started:
        yield started
