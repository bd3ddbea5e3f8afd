"""The process of an engine's core: how it begins on a CPU, and that it ends with the replica it belongs to.

vLLM starts it afresh from within Ray, where it imports torch and vLLM again: ten seconds, half a GB. On a CPU, where no driver
forbids it, it is forked from the replica instead, which has them. The sockets that it gets with that are closed at once: they
are Ray's, and whoever waits for a replica that was killed would not hear of it as long as they are open.

A core whose replica was killed would live on, and keep the card's memory from the one that takes its place.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Iterator
from multiprocessing import connection
from multiprocessing.context import ForkContext, ForkProcess
from typing import Any

_WATCHES = "ends with its parent"


class _Core(ForkProcess):
    def run(self) -> None:
        from ray._raylet import setproctitle  # type: ignore[attr-defined]

        setproctitle("VLLM::EngineCore")  # what vLLM sets does not show: Ray has taken the place where a title stands
        _close_sockets()
        end_with_parent()
        super().run()


class _Context(ForkContext):
    Process = _Core  # type: ignore[assignment]


@contextlib.contextmanager
def forked() -> Iterator[None]:
    """Engines that are started meanwhile fork their core."""
    from vllm.v1.engine import utils

    stock: Any = utils.get_mp_context
    utils.get_mp_context = _Context
    try:
        yield
    finally:
        utils.get_mp_context = stock


def end_with_parent() -> None:
    """In a process of `multiprocessing`: end when the process that started it has ended, however it did."""
    parent = multiprocessing.parent_process()
    if parent is None or any(thread.name == _WATCHES for thread in threading.enumerate()):
        return

    def wait() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, name=_WATCHES, daemon=True).start()


def _close_sockets() -> None:
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the folder's own
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                os.close(int(name))
