"""What is wrong with a node, rule by rule; what a node says of itself, found on this one."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from slm_ray.doctor.facts import (
    Gpu,
    Listener,
    NodeFacts,
    Question,
    Silent,
    examine,
    folder_problem,
    gpus_of,
    kind_of,
    store_problems,
)
from slm_ray.doctor.rules import Expected, findings, pins_of
from slm_ray.doctor.run import Examination, _marked
from slm_ray.doctor.table import plain, summary
from slm_ray.remote import open_store

ROOT = Path(__file__).parents[2]
PINS = {"ray": "2.60.0", "torch": "2.13.0"}
GPU = Gpu(name="RTX 3090", total_bytes=24 * 10**9, used_bytes=10**9, celsius=60)
HEALTHY = NodeFacts(
    node="gpu-1", python="3.11.9", packages={**PINS, "extra": "1.0"}, free_bytes={"/tmp": 10**11, "/shared": 10**12},
    folders={"/shared": ""}, base="b" * 64, driver="570.1", cuda="12.8", gpus=(GPU,), ray_gpus=1.0,
    listeners=(Listener(port=41000, process="raylet", pid=1, kind="ray"), Listener(port=22, process="sshd", pid=2, kind="other")),
    late_s=0.0,
)  # fmt: skip
EXPECTED = Expected(python="3.11.9", pins=PINS, lock="requirements.cuda.lock")


def listening(kind: Any, port: int, process: str = "python", address: str = "0.0.0.0") -> tuple[Listener, ...]:
    return (Listener(port=port, process=process, pid=7, kind=kind, address=address),)


def test_a_healthy_cluster_has_no_red_line() -> None:
    other = dataclasses.replace(
        HEALTHY, node="gpu-2", late_s=-1.5, listeners=listening("client", 10001, address="10.0.0.9")
    )
    assert findings([HEALTHY, other], EXPECTED) == []
    assert "nothing is wrong" in summary(Examination(nodes=(HEALTHY, other), findings=()))


RED: list[tuple[str, dict[str, Any], str, str]] = [
    ("python", {"python": "3.11.7"}, "3.11.7, and the job has 3.11.9", "make its environment with Python 3.11.9"),
    ("packages", {"packages": {"ray": "2.59.0"}}, "ray 2.59.0 instead of 2.60.0, torch missing instead of 2.13.0", "--require-hashes --no-deps -r requirements.cuda.lock"),
    ("gpu", {"gpus": ()}, "Ray counts 1 GPUs, and no driver shows one", "--num-gpus=0"),
    ("gpu", {"packages": {**PINS, "torch": "2.13.0+cpu"}}, "build without CUDA", "requirements.cuda.lock"),
    ("gpu", {"gpus": (dataclasses.replace(GPU, celsius=91),)}, "card 0 (RTX 3090) has 91 °C", "power limit"),
    ("disk", {"free_bytes": {"/tmp": 10**9}}, "1.0 GB are free at /tmp", "remove old runs"),
    ("folder", {"folders": {"/shared": "it is not there"}}, "/shared: it is not there", "mount the same folder"),
    ("folder", {"folders": {"s3://mine/runs": "no answer within 6 s"}}, "s3://mine/runs: no answer", "credentials set before Ray is started"),
    ("base", {"base": "", "base_problem": "there is no base model folder '/b'"}, "no base model folder", "copy the same base"),
    ("base", {"base": "c" * 64}, "cccccccc instead of bbbbbbbb", "copy the base anew"),
    ("token", {"token_is_open": True}, "other users of the node can read its file", "chmod 600"),
    ("port", {"listeners": listening("dashboard", 8265)}, "every address at port 8265", "--dashboard-host=127.0.0.1"),
    ("port", {"listeners": listening("client", 10001)}, "every address at port 10001", "--node-ip-address"),
    ("port", {"listeners": listening("dashboard", 8265, address="10.0.0.9")}, "listens on 10.0.0.9 at port 8265", "--dashboard-host=127.0.0.1"),
    ("gpu", {"gpus": (), "gpu_problem": "card 0 cannot be read (GPU is lost)"}, "card 0 cannot be read (GPU is lost)", "nvidia-smi"),
    ("port", {"listeners": listening("other", 8888, "jupyter")}, "jupyter (process 7) listens on every address at port 8888", "127.0.0.1"),
    ("clock", {"late_s": 61.0}, "+61.0 s from the job's node", "set-ntp"),
    ("clock", {"late_s": -3.2}, "-3.2 s from the job's node", "set-ntp"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("about", "changes", "problem", "fix"), RED, ids=[f"{one[0]}-{n}" for n, one in enumerate(RED)]
)
def test_each_fault_is_a_red_line_with_its_fix(about: str, changes: dict[str, Any], problem: str, fix: str) -> None:
    sick = dataclasses.replace(HEALTHY, node="gpu-9", **changes)
    others = [HEALTHY, dataclasses.replace(HEALTHY, node="gpu-2")]
    found = findings([*others, sick], EXPECTED)
    line = next(one for one in found if one.about == about)
    assert {one.node for one in found} == {"gpu-9"}
    assert problem in line.problem
    assert fix in line.fix
    text = summary(Examination(nodes=(*others, sick), findings=tuple(found)))
    assert f"red: gpu-9: {about}: " in text
    assert "nothing is wrong" not in text


def test_a_node_that_says_nothing_is_a_red_line_and_has_a_row() -> None:
    silent = Silent(node="gpu-3", reason="no answer within 10 s")
    found = findings([HEALTHY, silent], EXPECTED)
    assert [(one.node, one.about, one.problem) for one in found] == [("gpu-3", "answer", "no answer within 10 s")]
    text = summary(Examination(nodes=(HEALTHY, silent), findings=tuple(found)))
    assert any(line.startswith("gpu-3") for line in text.splitlines())


def test_a_head_that_serves_everybody_is_a_red_line() -> None:
    (line,) = findings([HEALTHY], dataclasses.replace(EXPECTED, without_token="service"))
    assert (line.node, line.about) == ("cluster", "token")
    assert "RAY_AUTH_MODE=token" in line.fix


def test_without_a_lock_nodes_are_held_to_the_first_one() -> None:
    other = dataclasses.replace(HEALTHY, node="gpu-2", packages={**HEALTHY.packages, "extra": "2.0"})
    (line,) = findings([HEALTHY, other], dataclasses.replace(EXPECTED, pins=None))
    assert (line.node, line.problem) == ("gpu-2", "extra 2.0 instead of 1.0")


def test_many_packages_are_counted_and_three_are_named() -> None:
    sick = dataclasses.replace(HEALTHY, packages={f"p{n}": "1" for n in range(9)})
    (line,) = findings([sick], dataclasses.replace(EXPECTED, pins={f"p{n}": "2" for n in range(9)}))
    assert line.problem == "p0 1 instead of 2, p1 1 instead of 2, p2 1 instead of 2 and 6 more"


def test_json_says_the_same_and_names_packages_by_their_digest() -> None:
    sick = dataclasses.replace(HEALTHY, python="3.10.1")
    found = json.loads(
        json.dumps(plain(Examination(nodes=(HEALTHY, sick), findings=tuple(findings([HEALTHY, sick], EXPECTED)))))
    )
    assert found["ok"] is False
    assert [line["about"] for line in found["findings"]] == ["python"]
    first, second = (node["packages"] for node in found["nodes"])
    assert first == second and len(first) == 8


def test_the_pins_of_the_locks_are_read_whole() -> None:
    for name in ("requirements.lock", "requirements.cuda.lock"):
        text = (ROOT / name).read_text(encoding="utf-8")
        pins = pins_of(text)
        assert len(pins) == text.count("==")
        assert {"ray", "torch", "transformers"} <= set(pins)


def test_this_machine_is_held_to_its_lock() -> None:
    """What is installed here is the lock, so that the rule finds nothing; a pin of another version is found."""
    facts = examine("here", 0.0, Question(base=str(ROOT / "data/tiny_base")))
    pins = pins_of((ROOT / "requirements.lock").read_text(encoding="utf-8"))
    wanted = Expected(python=platform.python_version(), pins=pins)
    assert not [one for one in findings([facts], wanted) if one.about in ("python", "packages", "base", "answer")]
    assert facts.base
    wrong = dataclasses.replace(wanted, pins={**pins, "pydantic": "0.1"})
    assert any("instead of 0.1" in one.problem for one in findings([facts], wrong))


def test_a_folder_is_written_read_and_left_as_it_was(tmp_path: Path) -> None:
    assert folder_problem(tmp_path / "none", "") == "it is not there"
    assert folder_problem(tmp_path, "mark").startswith("it is another folder")
    (tmp_path / "mark").touch()
    assert folder_problem(tmp_path, "mark") == ""
    assert [path.name for path in tmp_path.iterdir()] == ["mark"]


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EACCES])
def test_a_folder_that_cannot_be_looked_at_is_named_and_ends_nothing(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stale mount is what this is for; also on the job's own node, where nobody catches what is raised."""

    def fails(path: Path) -> bool:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "is_dir", fails)
        assert folder_problem(tmp_path, "") == f"it cannot be written to ({os.strerror(number)})"
        with _marked([str(tmp_path / "runs")]) as (folders, _):
            assert folders == (str(tmp_path / "runs"),)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_takes_no_mark_is_not_called_another_one() -> None:
    with _marked(["/proc"]) as (folders, mark):
        assert "it cannot be written to" in folder_problem(Path(folders[0]), mark)


def test_a_folder_that_takes_nothing_is_named() -> None:
    assert "it cannot be written to" in folder_problem(Path("/proc"), "")  # also for root


def test_a_store_is_written_read_and_left_as_it_was_and_what_is_wrong_with_it_is_named() -> None:
    program = Path(__file__).parent / "s3_server.py"
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        options = f"scheme=http&region=us-east-1&endpoint_override=127.0.0.1:{int(server.stdout.readline())}"
        mine, other = (f"s3://{name}?{options}" for name in ("anonymous@bucket/runs", "anonymous@none/runs"))
        found = store_problems([mine, other])
        left = open_store(mine, setting="run_dir").listing()
        server.kill()
    assert set(found) == {"s3://bucket/runs", "s3://none/runs"}
    assert found["s3://bucket/runs"] == "" and not left
    assert "s3://none/runs" in found["s3://none/runs"] and "cannot be written" in found["s3://none/runs"]


def test_a_store_that_does_not_answer_is_waited_for_so_long_and_no_longer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"s3://anonymous@bucket/runs?scheme=http&region=x&endpoint_override=127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        assert store_problems([uri], within_s=0.3) == {"s3://bucket/runs": "no answer within 0.3 s"}
        assert time.monotonic() - began < 5


def test_a_port_that_is_open_to_all_is_found_and_one_on_loopback_is_not() -> None:
    with socket.socket() as everywhere, socket.socket() as here:
        everywhere.bind(("0.0.0.0", 0))
        here.bind(("127.0.0.1", 0))
        everywhere.listen()
        here.listen()
        facts = examine("here", 0.0, Question())
        mine = {one.port for one in facts.listeners if one.pid == os.getpid()}
        assert everywhere.getsockname()[1] in mine
        assert here.getsockname()[1] not in mine


def test_a_port_on_an_address_of_the_node_is_found_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def sockets(kind: str) -> list[Any]:
        places = [("10.0.0.9", 8265), ("::ffff:127.0.0.1", 81), ("::1", 82), ("127.0.0.53", 83)]
        return [SimpleNamespace(pid=os.getpid(), status="LISTEN", laddr=SimpleNamespace(ip=ip, port=port)) for ip, port in places]  # fmt: skip

    monkeypatch.setattr("psutil.net_connections", sockets)
    assert [(one.address, one.port) for one in examine("here", 0.0, Question()).listeners] == [("10.0.0.9", 8265)]


@pytest.mark.parametrize(
    ("name", "command", "port", "has_ray", "kind"),
    [
        ("raylet", "/x/raylet --raylet_socket_name=…", 40001, False, "ray"),
        ("gcs_server", "/x/gcs_server --log_dir=…", 6379, False, "ray"),
        ("ray::RayTrainWorker", "ray::RayTrainWorker", 40002, False, "ray"),
        ("python", "python jobs/loop.py", 40003, True, "ray"),
        ("python", "python /x/ray/dashboard/dashboard.py --host=0.0.0.0", 8265, True, "dashboard"),
        ("python", "python /x/ray/dashboard/dashboard.py --host=127.0.0.1", 44227, True, "ray"),
        ("python", "python -m ray.util.client.server --port=10001", 10001, True, "client"),
        ("python", "python -m http.server", 8000, False, "other"),
    ],
)
def test_what_listens_is_told_apart(name: str, command: str, port: int, has_ray: bool, kind: str) -> None:
    assert kind_of(name, command, port, has_ray=has_ray) == kind


class Nvml:
    """NVIDIA's library with two cards, one of them without a sensor; or without a driver, or with a third card that is lost."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    def __init__(self, *, has_driver: bool = True, cards: int = 2) -> None:
        self._has_driver = has_driver
        self._cards = cards

    def nvmlInit(self) -> None:
        if not self._has_driver:
            raise self.NVMLError

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return 12080

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"570.86"

    def nvmlDeviceGetCount(self) -> int:
        return self._cards

    def nvmlDeviceGetHandleByIndex(self, number: int) -> int:
        if number == 2:
            raise self.NVMLError("GPU is lost")
        return number

    def nvmlDeviceGetMemoryInfo(self, card: int) -> Any:
        return SimpleNamespace(total=24 * 10**9, used=card * 10**9)

    def nvmlDeviceGetTemperature(self, card: int, sensor: int) -> int:
        if card == 1:
            raise self.NVMLError
        return 71

    def nvmlDeviceGetName(self, card: int) -> str:
        return "RTX 3090"


def test_cards_are_read_from_the_driver_and_a_host_without_one_has_none() -> None:
    driver, cuda, cards, problem = gpus_of(Nvml())
    assert (driver, cuda, problem) == ("570.86", "12.8", "")
    assert [(card.celsius, card.used_bytes) for card in cards] == [(71, 0), (None, 10**9)]
    assert gpus_of(Nvml(has_driver=False)) == (None, None, (), "")


def test_a_card_that_is_lost_hides_no_other_and_is_named() -> None:
    _, _, cards, problem = gpus_of(Nvml(cards=3))
    assert len(cards) == 2
    assert problem == "card 2 cannot be read (GPU is lost)"
    one = dataclasses.replace(HEALTHY, gpus=cards, gpu_problem=problem, ray_gpus=3.0)
    text = summary(Examination(nodes=(one,), findings=tuple(findings([one], EXPECTED))))
    assert "None °C" not in text and "red: gpu-1: gpu: card 2 cannot be read" in text
