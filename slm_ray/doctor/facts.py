"""What one node of a cluster says of itself: packages, GPUs, disks, base, folders, stores, open ports. It judges nothing.

`examine` runs on the node. What cannot be found out there (no driver, processes of others) is left out; nothing raises.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import distributions
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal

import psutil

from slm_ray.adapters import base_fingerprint, check_base
from slm_ray.errors import SlmRayError
from slm_ray.remote import open_store, shown

Kind = Literal["ray", "dashboard", "client", "other"]
_STORE_S = 6.0  # shorter than the asker's patience, so that the rest of the answer is heard
_DASHBOARD_PORTS = range(8265, 8316)  # Ray takes the next one where one is in use


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a node is asked about. `folders` are absolute; `mark` is a file that the asker has put into each of them. `stores`
    are addresses in object storage."""

    folders: tuple[str, ...] = ()
    stores: tuple[str, ...] = ()
    mark: str = ""
    base: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One NVIDIA card; bytes of its memory, degrees Celsius."""

    name: str
    total_bytes: int
    used_bytes: int
    celsius: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """A port that other machines reach, the address that it listens on (`0.0.0.0` and `::` are all), and whose it is."""

    port: int
    process: str
    pid: int
    kind: Kind
    address: str = "0.0.0.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """One node. `folders` (stores among them) and `base_problem` say what is wrong, empty where nothing is; `late_s` is by how much its clock is
    ahead of the asker's, None where that is not known; GPU driver and CUDA are None without a card. `gpu_problem` says which
    cards the driver counts and cannot read."""

    node: str
    python: str
    packages: Mapping[str, str]
    free_bytes: Mapping[str, int]
    folders: Mapping[str, str]
    base: str = ""
    base_problem: str = ""
    driver: str | None = None
    cuda: str | None = None
    gpus: tuple[Gpu, ...] = ()
    gpu_problem: str = ""
    ray_gpus: float = 0.0
    listeners: tuple[Listener, ...] = ()
    token_is_open: bool = False
    late_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Silent:
    """A node that said nothing, and why."""

    node: str
    reason: str


def examine(node: str, ray_gpus: float, question: Question) -> NodeFacts:
    """The facts of the node that this runs on."""
    base, problem = _base(question.base)
    folders = {folder: folder_problem(Path(folder), question.mark) for folder in question.folders}
    driver, cuda, gpus, gpu_problem = _gpus()
    return NodeFacts(
        node=node,
        python=platform.python_version(),
        packages=packages(),
        free_bytes={place: free for place in ("/tmp", *folders) if (free := _free(place)) is not None},
        folders=folders | store_problems(question.stores),
        base=base,
        base_problem=problem,
        driver=driver,
        cuda=cuda,
        gpus=gpus,
        gpu_problem=gpu_problem,
        ray_gpus=ray_gpus,
        listeners=tuple(_listeners()),
        token_is_open=_token_is_open(),
    )


def clock_s() -> float:
    """The node's clock."""
    return time.time()


def packages() -> dict[str, str]:
    """Version by name, the names as locks write them."""
    return {plain_name(name): one.version for one in distributions() if (name := one.metadata["Name"]) and one.version}


def plain_name(name: str) -> str:
    """A package's name as PEP 503 has it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def folder_problem(folder: Path, mark: str) -> str:
    """What is wrong with a folder, or nothing: a file cannot be written, read and removed, or the asker's mark is not there."""
    own = folder / f".doctor-{uuid.uuid4().hex}"
    try:
        if not folder.is_dir():
            return "it is not there"
        own.write_bytes(b"x" * 4096)
        if own.read_bytes() != b"x" * 4096:
            return "what was written does not come back"
        if mark and not (folder / mark).is_file():
            return "it is another folder than on the node of the job"
    except OSError as error:  # a stale mount among them
        return f"it cannot be written to ({error.strerror})"
    finally:
        with contextlib.suppress(OSError):
            own.unlink()
    return ""


def store_problems(uris: Sequence[str], within_s: float = _STORE_S) -> dict[str, str]:
    """By address, what is wrong with a store, or nothing: an object cannot be written, read and removed within so many seconds."""
    looking = ThreadPoolExecutor(max(1, len(uris)))
    deadline = time.monotonic() + within_s
    asked = {uri: looking.submit(_store_problem, uri) for uri in uris}
    found = {}
    for uri, answer in asked.items():
        try:
            found[shown(uri)] = answer.result(timeout=max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            found[shown(uri)] = f"no answer within {within_s:g} s"
    looking.shutdown(wait=False)
    return found


def _store_problem(uri: str) -> str:
    own, content = f".doctor-{uuid.uuid4().hex}", uuid.uuid4().bytes
    try:
        store = open_store(uri, setting="address")
        store.write(own, content)
        read = store.read(own)
        store.delete(own)
    except SlmRayError as error:
        return str(error)
    return "" if read == content else "what was written does not come back"


def _base(base: str | None) -> tuple[str, str]:
    if base is None:
        return "", ""
    try:
        folder = check_base(base, setting="base")
        return (base_fingerprint(folder) if Path(folder).is_dir() else "", "")
    except (SlmRayError, OSError) as error:
        return "", str(error)


def _free(place: str) -> int | None:
    try:
        return shutil.disk_usage(place).free
    except OSError:
        return None


def _gpus() -> tuple[str | None, str | None, tuple[Gpu, ...], str]:
    try:
        import pynvml  # of a package that a host without cards need not have
    except ImportError:
        return None, None, (), ""
    return gpus_of(pynvml)


def gpus_of(nvml: Any) -> tuple[str | None, str | None, tuple[Gpu, ...], str]:
    """The driver, the newest CUDA that it runs, the cards, and which of them cannot be read; nothing without a driver.

    `nvml` is the module pynvml.
    """
    try:
        nvml.nvmlInit()
        version = nvml.nvmlSystemGetCudaDriverVersion_v2()
        driver, count = _text(nvml.nvmlSystemGetDriverVersion()), int(nvml.nvmlDeviceGetCount())
    except nvml.NVMLError:
        return None, None, (), ""
    cards, lost = [], []
    for number in range(count):
        try:
            cards.append(_card(nvml, number))
        except nvml.NVMLError as error:  # it has fallen off the bus
            lost.append(f"card {number} cannot be read ({error})")
    return driver, f"{version // 1000}.{version % 1000 // 10}", tuple(cards), ", ".join(lost)


def _card(nvml: Any, number: int) -> Gpu:
    card = nvml.nvmlDeviceGetHandleByIndex(number)
    memory = nvml.nvmlDeviceGetMemoryInfo(card)
    try:
        celsius = int(nvml.nvmlDeviceGetTemperature(card, nvml.NVML_TEMPERATURE_GPU))
    except nvml.NVMLError:  # some cards, and slices of one, have no sensor
        celsius = None
    return Gpu(
        name=_text(nvml.nvmlDeviceGetName(card)), total_bytes=int(memory.total), used_bytes=int(memory.used), celsius=celsius
    )  # fmt: skip


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _listeners() -> Iterator[Listener]:
    """Ports of this user's processes that other machines reach; those of others belong to others."""
    try:
        found = psutil.net_connections(kind="tcp")
    except (psutil.Error, OSError):
        return
    reached = {
        (one.pid, one.laddr.port, one.laddr.ip)
        for one in found
        if one.status == psutil.CONN_LISTEN and one.pid and one.laddr and not _is_loopback(one.laddr.ip)
    }
    for pid, port, address in sorted(reached):
        with contextlib.suppress(psutil.Error, OSError):
            process = psutil.Process(pid)
            if process.uids().real == os.getuid():
                kind = kind_of(process.name(), " ".join(process.cmdline()), port, has_ray=_has_ray(pid))
                yield Listener(port=port, process=process.name(), pid=pid, kind=kind, address=address)


def _is_loopback(address: str) -> bool:
    return ip_address(address.removeprefix("::ffff:")).is_loopback


def kind_of(name: str, command: str, port: int, *, has_ray: bool) -> Kind:
    """What listens: Ray's dashboard and its client's server, another part of Ray, a program that is no Ray."""
    if "ray/dashboard/dashboard.py" in command:
        return "dashboard" if port in _DASHBOARD_PORTS else "ray"  # its other port has figures
    if "ray.util.client.server" in command:
        return "client"
    is_ray = has_ray or name in ("raylet", "gcs_server") or name.startswith("ray::")
    return "ray" if is_ray else "other"


def _has_ray(pid: int) -> bool:
    """Whether the process has Ray's library in memory, as drivers have whatever they are called."""
    try:
        return "_raylet" in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _token_is_open() -> bool:
    """Whether others on the node can read the token's file."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    try:
        return bool(path.stat().st_mode & 0o077)
    except OSError:
        return False
