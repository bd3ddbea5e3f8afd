"""One job through `ray job submit` on a head of its own: what it says, its exit status, and nothing left of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.heavy

JOB = """
import sys, time
import ray
from slm_ray.cluster import connect
from slm_ray.command import run
from slm_ray.config import ServeConfig

@ray.remote(num_cpus=0)
def there():
    return 42

def main(config):
    connect()
    print("it answers", ray.get(there.remote()), flush=True)
    try:
        time.sleep(float(config.name))
    finally:
        time.sleep(1.0)
        print("cleaned up", flush=True)
    return 7

run(main, ServeConfig, "test", sys.argv[1:])
"""


def started(folder: Path, sleep_s: str) -> subprocess.Popen[str]:
    (folder / "job.py").write_text(JOB, encoding="utf-8")
    (folder / "job.yaml").write_text(f"config: c\nbase: b\nname: '{sleep_s}'\n", encoding="utf-8")
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return subprocess.Popen(
        ["bash", str(ROOT / "jobs/on_local_ray.sh"), "job.py", "job.yaml"], cwd=folder, text=True,
        env=kept | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "RUN": str(folder), "SLOTS": "2",
        },
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def living(folder: Path) -> list[str]:
    """Every living process that was started for this folder: they all inherit its RUN."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("RUN") == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def left_behind(folder: Path, within_s: float = 20.0) -> list[str]:
    deadline = time.monotonic() + within_s
    while (found := living(folder)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


def test_a_job_says_what_it_says_and_ends_with_its_own_status(tmp_path: Path) -> None:
    job = started(tmp_path, "0")
    out, _ = job.communicate(timeout=240)
    assert job.returncode == 7, out + (tmp_path / "ray.log").read_text()
    first, *said = out.splitlines()
    assert first.startswith("starting Ray on this machine (2 training slots")
    assert said == ["it answers 42", "cleaned up"]
    assert left_behind(tmp_path) == []


def test_three_interrupts_in_a_row_stop_the_job_and_leave_nothing(tmp_path: Path) -> None:
    job = started(tmp_path, "600")
    assert job.stdout is not None
    said = []
    for line in job.stdout:
        said.append(line)
        if line.startswith("it answers"):
            break
    for _ in range(3):
        os.killpg(job.pid, signal.SIGINT)  # as a terminal does
        time.sleep(0.3)
    out, _ = job.communicate(timeout=120)
    assert job.returncode == 130, "".join(said) + out + (tmp_path / "ray.log").read_text()
    assert "Traceback" not in out and "stopping..." in out
    assert "cleaned up" in out and "stopped; the same command continues" in out
    assert left_behind(tmp_path) == []
