"""`slm-ray init` and then the very commands that it prints: from rows to a verdict, outside the repository."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "slm_ray.cli.app", *arguments], cwd=folder, text=True, capture_output=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=300, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def write_rows(path: Path, key: str, wrong: frozenset[int] = frozenset()) -> None:
    with path.open("w", encoding="utf-8") as out:
        for number in range(300):
            answer = json.dumps({"lamp": number if number not in wrong else -1})
            out.write(json.dumps({"prompt": f"Turn on lamp {number}.", key: answer}) + "\n")


@pytest.mark.heavy
def test_the_commands_that_init_prints_lead_to_a_verdict(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", "completion")
    write_rows(tmp_path / "llm.jsonl", "prediction")
    write_rows(tmp_path / "slm.jsonl", "prediction", wrong=frozenset(range(0, 300, 2)))
    begun = run(
        "init", "--rows", "rows.jsonl", "--track", "structured", "--llm", "recorded:llm.jsonl",
        "--slm", "recorded:slm.jsonl", "--out", "my first run", folder=tmp_path,
    )  # fmt: skip
    assert begun.returncode == 0, begun.stderr
    commands = [shlex.split(line) for line in begun.stdout.partition("next:\n")[2].splitlines()]
    assert [command[:2] for command in commands] == [["slm-ray", step] for step in ("prepare", "evaluate", "compare")]
    for _, *arguments in commands[:-1]:
        ended = run(*arguments, folder=tmp_path)
        assert ended.returncode == 0, ended.stderr
    asked = (tmp_path / "my first run/rows/test.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(asked) == 100
    compared = run(*commands[-1][1:], folder=tmp_path)
    assert compared.returncode == 10, compared.stderr  # half of the SLM's answers are wrong
    assert "fine_tune" in compared.stdout
