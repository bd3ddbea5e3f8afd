"""`make test` with programs that only say what they are: what fails is heard, and nothing is left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = """#!/bin/sh
case "$*" in
*tests/unit*) echo "unit tests"; exit ${UNIT:-0};;
*--ignore*) echo "calls"; touch calls; sleep ${LASTS:-0.2}; exit ${CALLS:-0};;
*) echo "models";;
esac
"""


def made(folder: Path, **fails: str) -> subprocess.Popen[str]:
    """`make test` in a copy of the Makefile's folder."""
    programs, temporary = folder / ".venv/bin", folder / "tmp"
    for needed in (programs, temporary):
        needed.mkdir(parents=True)
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    for name, script in {
        "python": PYTHON, "ruff": "#!/bin/sh\necho ruff; exit ${LINT:-0}\n", "mypy": "#!/bin/sh\necho mypy\n",
    }.items():  # fmt: skip
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    (folder / ".venv/.installed").touch()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.Popen(
        ["make", "test"], cwd=folder, env=environment | fails | {"TMPDIR": str(temporary)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


@pytest.mark.parametrize("failing", ["LINT", "UNIT", "CALLS", None])
def test_what_fails_beside_something_else_fails_all_of_it_and_is_shown(tmp_path: Path, failing: str | None) -> None:
    running = made(tmp_path, **({failing: "1"} if failing else {}))
    said, _ = running.communicate(timeout=30)
    assert (running.returncode == 0) == (failing is None), said
    assert ("models" in said.splitlines()) == (failing is None)
    assert "ruff" in said.splitlines() and "calls" in said.splitlines()
    assert ("unit tests" in said.splitlines()) == (failing != "LINT")
    assert not list((tmp_path / "tmp").iterdir())


def test_who_interrupts_it_sees_what_there_is_and_leaves_no_file(tmp_path: Path) -> None:
    running = made(tmp_path, LASTS="20")
    while not (tmp_path / "calls").exists():
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGINT)
    said, _ = running.communicate(timeout=30)
    assert running.returncode != 0 and "models" not in said.splitlines()
    assert not list((tmp_path / "tmp").iterdir())
