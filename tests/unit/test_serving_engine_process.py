"""The process of an engine's core, with something that sleeps in the engine's place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

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
