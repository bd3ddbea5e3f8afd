"""Waiting for what happens in another thread or process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def wait_for(found: Callable[[], Any], within_s: float = 10.0) -> Any:
    """What `found` returns, once that is something; AssertionError after so long."""
    deadline = time.monotonic() + within_s
    while not (value := found()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
    return value
