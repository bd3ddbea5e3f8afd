"""Ctrl-C, SIGTERM and SIGHUP: the first ends the job, those that follow do not break into its clean-up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slm_ray.signals import SignalGuard, handlers_kept

JOB = """
import atexit, signal, sys, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # where the tests run under nohup it is ignored, and that is inherited
from slm_ray.command import run
from slm_ray.config import ServeConfig

def main(config):
    try:
        print("working", flush=True)
        time.sleep(60)
    finally:
        time.sleep(1.2)
        print("cleaned up", flush=True)

def slow_end():
    time.sleep(0.6)
    print("ended", flush=True)

atexit.register(slow_end)
run(main, ServeConfig, "test", sys.argv[1:])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_three_signals_in_a_row_leave_the_clean_up_whole(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "config.yaml").write_text("config: c\nbase: b\n", encoding="utf-8")
    job = subprocess.Popen(
        [sys.executable, "-c", JOB, str(tmp_path / "config.yaml")], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert job.stdout is not None and job.stdout.readline() == "working\n"
    for _ in range(3):
        job.send_signal(number)
        time.sleep(0.2)
    assert job.stdout.readline() == "cleaned up\n"
    job.send_signal(number)  # while the interpreter ends
    out, err = job.communicate(timeout=30)
    assert (out, job.returncode) == ("ended\n", 130)
    assert err.splitlines() == ["stopping...", "stopped; the same command continues where this one ended"]


def test_a_deferred_signal_raises_at_the_end_of_the_outermost_block_once() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), SignalGuard() as guard:
        with guard.deferred():
            with guard.deferred():
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGTERM)
                done.append("inner")
            done.append("outer")
        done.append("never")
    assert done == ["inner", "outer"]


def test_a_guard_within_a_guard_takes_the_handler_back_and_the_outermost_restores_it() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with SignalGuard():
        ours = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as ray.init does
        with pytest.raises(KeyboardInterrupt), SignalGuard():
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # during the clean-up of the outer one
        with handlers_kept():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGTERM) == ours
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(KeyboardInterrupt), SignalGuard():  # the next run in this process can be interrupted too
        os.kill(os.getpid(), signal.SIGINT)


def test_a_job_under_nohup_outlives_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with SignalGuard():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
