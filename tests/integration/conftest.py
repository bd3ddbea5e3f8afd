"""Session-wide fixtures: one Ray for all integration tests, one endpoint for those that need one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray
from serving_fixtures import served

from slm_ray import cluster

__all__ = ["ray_cluster", "served"]


@pytest.fixture(scope="session", autouse=True)
def ray_cluster() -> Iterator[None]:
    """A Ray of this test session with four logical slots."""
    cluster.start_local(log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()
