"""Several hosts on one Linux machine: nothing is shared between them but a network and files that nobody can change.

A host is a network, mount, process and name space of its own: its address on one bridge, its `/tmp`, `/dev/shm`, `/run` and
home folder (`/tmp/home`), its own processes, its name in everybody's `/etc/hosts`. The rest of the disk is read-only. The
bridge lies in a space of its own too, so this machine's network is not touched.

Every space ends with the process that made it, kill -9 included: the kernel takes processes, links and mounts down. Only
folders stay behind; those of a dead run are removed when the next one begins. Needs root, iproute2 and util-linux.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
from poor_line import relayed

from slm_ray.errors import ResourceError
from slm_ray.storage import lock

Made = TypeVar("Made")
ROOT = Path(__file__).parents[2]
FOLDERS = Path("/tmp/slm-ray-hosts")
NET = "10.77.0"
_NEW_NET = 0x40000000  # CLONE_NEWNET
_INIT = r"""
set -e
hostname "$1"
ip link set lo up
mount --bind "$2/hosts" /etc/hosts
mount --bind "$2/passwd" /etc/passwd
mount -t tmpfs -o size=512m tmpfs /dev/shm
mount -t tmpfs -o size=16m tmpfs /run
mkdir -m 755 /run/sshd
if [ -n "$3" ]; then mount --bind "$3" "$2/tmp/${3#/tmp/}" && mount -o remount,bind,ro "$2/tmp/${3#/tmp/}"; fi
if [ -n "$4" ]; then mount --bind "$4" /mnt; fi
mount --rbind "$2/tmp" /tmp
mount -o remount,bind,ro /
echo up
while :; do sleep 3600 & wait $!; done
"""


def missing() -> str | None:
    """Why there can be no hosts here; None where there can."""
    if os.geteuid() != 0:
        return "hosts are network namespaces, which only root makes"
    for program in ("ip", "ss", "unshare", "nsenter", "setpriv", "redis-server"):
        if shutil.which(program) is None:
            return f"hosts need {program} (Debian: apt-get install iproute2 util-linux redis-server)"
    spaces = ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "--mount-proc"]
    tried = subprocess.run(
        [*spaces, "mount", "-t", "tmpfs", "tmpfs", "/run"], capture_output=True, text=True, check=False
    )
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else None


WHY_NONE = missing()
needs_hosts = pytest.mark.skipif(WHY_NONE is not None, reason=str(WHY_NONE))


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One host; `pid` is its first process as this machine numbers it, and `tmp` its `/tmp` as this machine sees it."""

    name: str
    address: str
    pid: int
    tmp: Path
    _spaces: subprocess.Popen[str]

    def command(self, script: str) -> list[str]:
        """What runs a shell script there, with nothing of this process's environment but the path."""
        inside = ["nsenter", "-t", str(self.pid), "-n", "-m", "-p", "-u", "--wdns=/tmp/home"]
        return [
            *inside,
            "env",
            "-i",
            "HOME=/tmp/home",
            f"PATH={ROOT}/.venv/bin:{os.environ['PATH']}",
            "LANG=C.UTF-8",
            "bash",
            "-c",
            script,
        ]

    def run(self, script: str, *, within_s: float = 90, check: bool = True) -> subprocess.CompletedProcess[str]:
        """The script's end; AssertionError with all that it said where it fails, unless that may be."""
        # Into files: a daemon that the script leaves behind would hold a pipe open for ever.
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            ended = subprocess.run(
                self.command(script), stdout=out, stderr=err, stdin=subprocess.DEVNULL, timeout=within_s, check=False
            )
            out.seek(0)
            err.seek(0)
            done = subprocess.CompletedProcess(script, ended.returncode, out.read(), err.read())
        assert not check or done.returncode == 0, f"{self.name}: {script}\n{done.stdout}{done.stderr}"
        return done

    def start(self, script: str) -> subprocess.Popen[str]:
        """The script while it runs; what it says, errors too, comes by `stdout`."""
        return subprocess.Popen(
            self.command(script), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def within(self, make: Callable[[], Made]) -> Made:
        """What `make` returns in this host's network: a socket belongs to the network that it was made in."""

        def there() -> Made:
            handle = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(handle, _NEW_NET):
                    raise OSError(ctypes.get_errno(), f"cannot enter the network of {self.name}")
            finally:
                os.close(handle)
            return make()

        with ThreadPoolExecutor(1) as thread_of_its_own:  # which ends, so that no other work is done in that network
            return thread_of_its_own.submit(there).result()

    def listen(self, address: str, port: int = 0) -> socket.socket:
        """A listening socket of this host, held by this process."""
        return self.within(lambda: socket.create_server((address, port), backlog=128))

    def connect(self, address: str, port: int, within_s: float = 3.0) -> socket.socket:
        """A connection from this host to `address`; OSError where there is none."""
        return self.within(lambda: socket.create_connection((address, port), timeout=within_s))

    @property
    def is_on(self) -> bool:
        """Whether the host runs."""
        return self._spaces.poll() is None

    def off(self) -> None:
        """Cut the power: every process of the host is gone, and so are its network and its memory.

        The card goes first, so that nobody is told; and a socket that this process holds in there keeps no network alive.
        """
        card = ["nsenter", "-t", str(self.pid), "-n", "--", "ip", "link", "del", "eth0"]
        subprocess.run(card, check=False, capture_output=True)
        self._spaces.kill()
        self._spaces.wait()
        if self._spaces.stdout is not None:
            self._spaces.stdout.close()
        while Path(f"/proc/{self.pid}").exists():  # the kernel ends the others of the space first
            time.sleep(0.02)


@dataclass(slots=True, kw_only=True)
class Hosts:
    """The hosts of a run by name, and the bridge between them."""

    folder: Path
    names: Sequence[str]
    sharing: Sequence[str] = ()
    on: dict[str, Host] = field(default_factory=dict)
    _switch: Host | None = None

    def __getitem__(self, name: str) -> Host:
        return self.on[name]

    def power_on(self, name: str, *, disk_kept: bool = False) -> Host:
        """A host of that name and its address: a new one with empty folders, or the one that was off, with what its disk held."""
        number = list(self.names).index(name) + 1
        host = self._spaced(name, f"{NET}.{number}", disk_kept=disk_kept)
        switch = self._the_switch()
        _in(switch, f"ip link add port{number} type veth peer name eth0 netns {host.pid}")
        _in(host, f"ip link set eth0 address 02:00:00:00:00:{number:02x}")  # the same card each time
        _in(switch, f"ip link set port{number} master bridge up")
        _in(host, f"ip addr add {host.address}/24 dev eth0")
        _in(host, "ip link set eth0 up")
        _in(host, f"ip route add default via {NET}.254")
        self.on[name] = host
        return host

    def cable(self, name: str, *, plugged: bool) -> None:
        """Pull a host's cable, or plug it in again; neither side is told."""
        number = list(self.names).index(name) + 1
        _in(self._the_switch(), f"ip link set port{number} {'up' if plugged else 'down'}")

    @contextlib.contextmanager
    def poor_line(self, name: str, *, delay_s: float, lost_share: float) -> Iterator[None]:
        """Meanwhile every packet from and to a host is late by `delay_s`, and that share of them is lost.

        A relay in this process between the host's port and the bridge: `tc netem` needs a module that many kernels lack.
        """
        number, switch = list(self.names).index(name) + 1, self._the_switch()
        _in(switch, f"ip link add far{number} type veth peer name near{number}")
        _in(switch, f"ip link set far{number} master bridge up")
        _in(switch, f"ip link set near{number} promisc on up")
        _in(switch, f"ip link set port{number} nomaster promisc on")
        try:
            with relayed(switch.within, f"port{number}", f"near{number}", delay_s=delay_s, lost_share=lost_share):
                yield
        finally:
            _in(switch, f"ip link del near{number}")
            _in(switch, f"ip link set port{number} promisc off master bridge")

    def close(self) -> None:
        """All of them off."""
        every = [*self.on.values(), *([self._switch] if self._switch else [])]
        with ThreadPoolExecutor(max(1, len(every))) as at_once:  # the kernel takes a second or two for each
            list(at_once.map(Host.off, every))

    def _the_switch(self) -> Host:
        if self._switch is None:
            self._switch = self._spaced("switch", f"{NET}.254")
            _in(self._switch, "ip link add bridge type bridge")
            _in(self._switch, f"ip addr add {NET}.254/24 dev bridge")
            _in(self._switch, "ip link set bridge up")
        return self._switch

    def _spaced(self, name: str, address: str, *, disk_kept: bool = False) -> Host:
        home = self.folder / name
        if not disk_kept:
            shutil.rmtree(home, ignore_errors=True)
        (home / "tmp" / "home").mkdir(parents=True, exist_ok=True)
        (home / "tmp").chmod(0o1777)
        here = str(ROOT) if ROOT.is_relative_to("/tmp") else ""  # else it is on the part of the disk that all see
        if here:
            (home / "tmp" / ROOT.relative_to("/tmp")).mkdir(parents=True, exist_ok=True)
        shared = str(self.folder / "mnt") if name in self.sharing else ""
        Path(shared or home).mkdir(exist_ok=True)
        known = [f"{NET}.{number} {each}" for number, each in enumerate(self.names, start=1)]
        (home / "hosts").write_text("\n".join(["127.0.0.1 localhost", *known, ""]))
        (home / "passwd").write_text(Path("/etc/passwd").read_text().replace(":/root:", ":/tmp/home:"))
        spaces = ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc"]
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *spaces, "bash", "-c", _INIT, "init", name, str(home), here, shared],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, cwd="/",
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n", f"{name} did not start"
        first = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]
        return Host(name=name, address=address, pid=int(first), tmp=home / "tmp", _spaces=process)


@contextlib.contextmanager
def hosts(*names: str, on: Sequence[str] | None = None, sharing: Sequence[str] = ()) -> Iterator[Hosts]:
    """Hosts, all on or those named in `on`; those in `sharing` have one folder at `/mnt`, as by NFS.

    Nothing is left of them when the block ends. To be entered on the main thread.
    """
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(_folder())
        made = Hosts(folder=folder, names=names, sharing=sharing)
        stack.callback(made.close)
        for name in names if on is None else on:
            made.power_on(name)
        yield made


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A folder of this run's, removed behind it; those that dead runs have left are removed first."""
    FOLDERS.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        with (FOLDERS / "beginning").open("w") as one_at_a_time:
            fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
            for left in FOLDERS.glob("run-*"):
                with contextlib.suppress(ResourceError), lock(left):
                    shutil.rmtree(left, ignore_errors=True)
            folder = Path(tempfile.mkdtemp(prefix="run-", dir=FOLDERS))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            stack.enter_context(lock(folder))
        yield folder


def _in(host: Host, command: str) -> None:
    subprocess.run(["nsenter", "-t", str(host.pid), "-n", "--", *command.split()], check=True, capture_output=True)


@contextlib.contextmanager
def forwarded(near: Host, port: int, far: Callable[[], Host]) -> Iterator[None]:
    """`127.0.0.1:port` of `near` leads to the same of the host that `far` is by then, as `ssh -L` does it."""
    with near.listen("127.0.0.1", port) as door:

        def take() -> None:
            with contextlib.suppress(OSError):
                while True:
                    caller, _ = door.accept()
                    try:
                        called = far().connect("127.0.0.1", port)
                    except OSError:
                        caller.close()
                        continue
                    called.settimeout(None)
                    for source, sink in ((caller, called), (called, caller)):
                        threading.Thread(target=_pump, args=(source, sink), daemon=True).start()

        threading.Thread(target=take, daemon=True).start()
        try:
            yield
        finally:
            door.shutdown(socket.SHUT_RDWR)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while block := source.recv(1 << 16):
            sink.sendall(block)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def await_(
    what: Callable[[], bool], within_s: float = 120, *, every_s: float = 0.05, why: Callable[[], str] = str,
    ended: Callable[[], object] = lambda: None,
) -> float:  # fmt: skip
    """Seconds until it is so; AssertionError with `why` where it is not in time, or once `ended` says that it cannot be."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < within_s, f"it never was so: {why()}"
        assert ended() is None, f"it has ended before it was so: {why()}"
        time.sleep(every_s)
    return time.monotonic() - began


def environment(settings: Mapping[str, str]) -> str:
    """Settings as the beginning of a shell command."""
    return "".join(f"export {name}='{value}'; " for name, value in settings.items())
