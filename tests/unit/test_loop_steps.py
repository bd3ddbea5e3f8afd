"""What a loop tells: one line per step, progress now and then, warnings, and everything in its file."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slm_ray.command import PROGRESS_EVERY, PROGRESS_MARK
from slm_ray.errors import ResourceError
from slm_ray.loop.steps import StepLog


def steps(folder: Path, last_s: float = 0.5) -> StepLog:
    log = StepLog(folder / "run" / "log.txt")
    with log:
        with log.step("prepare"):
            print("read 9 rows")
            log.say("a long table [bold]")
            log.outcome("structured: 4 train")
            log.outcome("toolcall: 5 train")
        with log.step("evaluate structured (test rows)"):
            for row in range(40):
                print(f"m: rows {row}/40", file=sys.stderr)
            print("warning: the endpoint is slow [stand-in]")
            time.sleep(last_s)
    return log


def test_a_step_is_one_line_and_the_rest_is_in_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = steps(tmp_path)
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == ""
    assert lines[0] == f"the whole log: {tmp_path}/run/log.txt"
    assert lines[1].startswith("prepare (0.") and lines[1].endswith(" s): structured: 4 train; toolcall: 5 train")
    assert lines[2] == "warning: the endpoint is slow [stand-in]"
    assert lines[3].startswith("evaluate structured (test rows) (0.") and len(lines) == 4
    assert list(log.timings_s) == ["prepare", "evaluate structured (test rows)"]
    file = (tmp_path / "run/log.txt").read_text(encoding="utf-8")
    for text in (
        "read 9 rows",
        "a long table [bold]",
        "m: rows 0/40",
        "m: rows 39/40",
        "=== prepare",
        lines[1],
        lines[2],
    ):
        assert f"{text}\n" in file
    steps(tmp_path)
    assert (tmp_path / "run/log.txt").read_text(encoding="utf-8").startswith(file), "an earlier start's log stays"


def test_progress_is_the_latest_lines_now_and_then(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PROGRESS_EVERY, "0.3")
    steps(tmp_path)
    progress = [line for line in capsys.readouterr().out.splitlines() if line.startswith(PROGRESS_MARK)]
    assert 1 <= len(progress) <= 3
    assert progress[0].startswith(f"{PROGRESS_MARK}evaluate structured (test rows) (")
    assert "m: rows 39/40" in progress[0] and "m: rows 9/40" not in progress[0]


def test_a_step_that_fails_says_so_and_the_file_has_the_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = StepLog(tmp_path / "log.txt")
    with pytest.raises(RuntimeError, match="no luck"), log, log.step("train"):
        raise RuntimeError("no luck")
    print("printed again")
    out = capsys.readouterr().out
    assert ": stopped\n" in out and "Traceback" not in out and out.endswith("printed again\n")
    assert "RuntimeError: no luck" in (tmp_path / "log.txt").read_text(encoding="utf-8")


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.txt").mkdir()
    with pytest.raises(ResourceError, match=r"cannot write .*log\.txt"), StepLog(tmp_path / "log.txt"):
        pass


def test_on_a_terminal_the_progress_is_rewritten_in_place(tmp_path: Path) -> None:
    shown, terminal = pty.openpty()
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_loop_steps as t; from pathlib import Path; t.steps(Path({str(tmp_path)!r}), 3.0)"
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    ended = subprocess.run(
        [sys.executable, "-c", code], stdout=terminal, stderr=subprocess.PIPE, env=environment, timeout=60, check=False
    )
    os.close(terminal)
    assert (ended.returncode, ended.stderr) == (0, b"")
    os.set_blocking(shown, False)
    out = b""
    try:
        while piece := os.read(shown, 65536):
            out += piece
    except OSError:
        pass
    os.close(shown)
    assert b"m: rows 39/40" in out and b"\x1b[" in out and PROGRESS_MARK.encode() not in out
    assert b"structured: 4 train; toolcall: 5 train" in out
