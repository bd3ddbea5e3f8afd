"""One cluster for all tests that need one: a head and two workers, and hosts outside. A test that takes a worker away brings it back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ray_hosts import RayHosts, ray_hosts


@pytest.fixture(scope="session")
def cluster() -> Iterator[RayHosts]:
    """A head, `worker-1` and `worker-2`, started by cluster.yaml; `worker-3` and `worker-4` are off."""
    with ray_hosts(2) as started:
        yield started


@pytest.fixture(autouse=True)
def mended(request: pytest.FixtureRequest) -> Iterator[None]:
    """Behind a test that failed on the cluster it is mended."""
    failed = request.session.testsfailed
    yield
    if request.session.testsfailed > failed and "cluster" in request.fixturenames:
        request.getfixturevalue("cluster").mend()
