"""The processes of an engine: its core, with something that sleeps in the engine's place, and what its replica keeps."""

from __future__ import annotations

import logging
import logging.config
import os
import signal
import subprocess
import sys
import time
from logging.handlers import MemoryHandler
from pathlib import Path

import psutil
import pytest

from slm_ray.serving.replica import log_kept

CORE = """
import os, socket, sys, time
from slm_ray.serving import engine_process

def work():
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink("/proc/self/fd/" + name))
        except OSError:
            pass
    print(os.getpid(), sum(link.startswith("socket:") for link in links), flush=True)
    time.sleep(60)

listener = socket.create_server(("127.0.0.1", 0))
engine_process._Context().Process(target=work).start()
time.sleep(60)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_core_has_no_socket_of_its_replica_and_ends_with_it_however_that_ends(how: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", CORE], stdout=subprocess.PIPE, text=True) as replica:
        assert replica.stdout is not None
        core, sockets = map(int, replica.stdout.readline().split())
        assert sockets == 0 and psutil.pid_exists(core)
        os.kill(replica.pid, how)
        ends = time.monotonic() + 20
        while psutil.pid_exists(core) and psutil.Process(core).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < ends, "it would keep the card's memory"
            time.sleep(0.05)


def test_a_replica_still_knows_its_log_file_after_an_import_that_configures_logging(tmp_path: Path) -> None:
    """Serve stops a replica that does not, once its controller was started again."""
    file = logging.FileHandler(tmp_path / "replica.log")
    handler = MemoryHandler(1, target=file)
    logger = logging.getLogger("ray.serve")
    logger.addHandler(handler)
    try:
        with log_kept():
            logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})
            closed = handler.target
        assert closed is None and handler.target == file
        logger.error("a line")
        assert "a line" in (tmp_path / "replica.log").read_text()
    finally:
        logger.removeHandler(handler)
        file.close()
