"""The bed itself: what hosts share, what they do not, and that nothing is left of them however their owner ends."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hosts import FOLDERS, Host, forwarded, hosts, needs_hosts

pytestmark = needs_hosts
OWNER = """
import sys
sys.path[:0] = [{folder!r}, {root!r}]
from hosts import hosts
with hosts("a", "b") as made:
    made["a"].start("sleep 1000")
    print(made.folder, *(str(host.pid) for host in made.on.values()), flush=True)
    sys.stdin.read()
"""


def is_there(process: str) -> bool:
    return Path("/proc", process).exists()


def reaches(near: Host, far: Host, port: int) -> bool:
    try:
        near.connect(far.address, port, within_s=1.0).close()
    except OSError:
        return False
    return True


def test_hosts_share_a_network_and_nothing_else() -> None:
    with hosts("a", "b") as made:
        a, b = made["a"], made["b"]
        assert (a.run("hostname").stdout, b.run("hostname").stdout) == ("a\n", "b\n")
        a.run("touch /tmp/mine /dev/shm/mine; sleep 1000 & disown")
        assert b.run("ls /tmp /dev/shm").stdout.count("mine") == 0
        assert "sleep 1000" not in b.run("ps ax").stdout
        assert "Read-only" in a.run(f"touch {Path(__file__).parent}/mine", check=False).stderr
        with b.listen(b.address) as open_to_all, b.listen("127.0.0.1") as loopback:
            assert reaches(a, b, open_to_all.getsockname()[1])
            assert not reaches(a, b, loopback.getsockname()[1])
            port = loopback.getsockname()[1]
            with forwarded(a, port, lambda: b), a.connect("127.0.0.1", port) as near:
                far, _ = loopback.accept()
                near.sendall(b"said")
                assert far.recv(9) == b"said"
            made.cable("b", plugged=False)
            assert not reaches(a, b, open_to_all.getsockname()[1])
            made.cable("b", plugged=True)
            assert any(reaches(a, b, open_to_all.getsockname()[1]) for _ in range(5))


def test_a_host_whose_power_is_cut_is_gone_and_comes_back_empty() -> None:
    with hosts("a", "b", on=["a"]) as made:
        made["a"].run("touch /tmp/mine; sleep 1000 & disown")
        made["a"].off()
        assert not made["a"].is_on
        assert made.power_on("a").run("ls /tmp; ps ax").stdout.count("sleep 1000") == 0
        assert "mine" not in made["a"].run("ls /tmp").stdout
        assert made.power_on("b").run("hostname").stdout == "b\n"


def test_a_host_that_is_switched_on_again_has_its_disk_and_nothing_else() -> None:
    with hosts("a") as made:
        made["a"].run("touch /tmp/mine /dev/shm/mine; sleep 1000 & disown")
        made["a"].off()
        again = made.power_on("a", disk_kept=True)
        assert again.run("ls /tmp").stdout.count("mine") == 1
        assert "mine" not in again.run("ls /dev/shm").stdout and "sleep 1000" not in again.run("ps ax").stdout


def test_a_poor_line_is_late_and_loses_packets_and_is_good_again_afterwards() -> None:
    sent = bytes(range(256)) * 8000  # 2 MB, in segments larger than a packet as the kernel hands them over

    def took_s(near: Host, far: Host) -> float:
        with far.listen(far.address) as door:
            began = time.monotonic()
            with near.connect(far.address, door.getsockname()[1]) as one, door.accept()[0] as other:
                connected = time.monotonic() - began
                threading.Thread(target=one.sendall, args=(sent,)).start()
                received = b""
                other.settimeout(60)
                while len(received) < len(sent):
                    received += other.recv(1 << 20)
                assert received == sent
        return connected

    with hosts("a", "b") as made:
        with made.poor_line("b", delay_s=0.05, lost_share=0.01):
            assert took_s(made["a"], made["b"]) >= 0.1
        with made.poor_line("b", delay_s=0.0, lost_share=1.0), made["b"].listen(made["b"].address) as door:
            assert not reaches(made["a"], made["b"], door.getsockname()[1])
        assert took_s(made["a"], made["b"]) < 0.05


def test_nothing_is_left_of_hosts_whose_owner_is_killed() -> None:
    program = OWNER.format(folder=str(Path(__file__).parent), root=str(Path(__file__).parents[2]))
    owner = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    folder, *processes = owner.stdout.readline().split()
    assert len(processes) == 2 and all(is_there(process) for process in processes) and Path(folder).is_dir()
    with hosts("c"):
        assert Path(folder).is_dir()  # what a living run holds is left alone
    owner.kill()
    owner.communicate()
    deadline = time.monotonic() + 10
    while any(is_there(process) for process in processes) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_there(process) for process in processes)
    with hosts("c") as made:
        assert not Path(folder).exists()
        assert made.folder.parent == FOLDERS
    assert not made.folder.exists()


def test_a_script_that_fails_is_shown() -> None:
    with hosts("a") as made, pytest.raises(AssertionError, match=r"a: echo said; false\nsaid"):
        made["a"].run("echo said; false")
