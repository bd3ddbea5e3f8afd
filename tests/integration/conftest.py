"""Session-wide fixtures: one Ray for all integration tests, one endpoint for those that need one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import ray
from serving_fixtures import served

__all__ = ["ray_cluster", "served"]


@pytest.fixture(scope="session", autouse=True)
def ray_cluster() -> Iterator[None]:
    """A Ray of this test session with four logical slots."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        address="local",
        num_cpus=4,
        resources={"slot": 4},
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()
