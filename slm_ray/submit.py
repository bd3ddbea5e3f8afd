"""One job, given to `ray job submit`: on the cluster in RAY_ADDRESS, or on a Ray head that lives as long as the job.

    RUN=folder/of/ray.log SLOTS=4 python -m slm_ray.submit JOB.py [CONFIG.yaml] [--set a.b=c ...]

Shows what the job says and ends with the job's own exit status. Ctrl-C or SIGTERM stops the job, which then cleans up;
whatever was started here ends with it. A head of ours is started as every Ray of ours (`ray_environment`) and with a
token of its own: its dashboard is on loopback, but Ray binds other ports to every address.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from slm_ray.api_key import KEY_FILE_NAME, hidden_from_ray
from slm_ray.command import BAD_INPUT, INTERRUPTED, PROGRESS_EVERY, PROGRESS_MARK
from slm_ray.errors import ResourceError, SlmRayError
from slm_ray.ray_environment import LOCAL_SETTINGS, LOCAL_SLOTS, haproxy_settings, local_resources
from slm_ray.signals import SignalGuard

_STARTS_WITHIN_S, _ACCEPTS_WITHIN_S = 90.0, 60.0
_STOPS_WITHIN_S, _ENDS_WITHIN_S = 45.0, 30.0
_RAYS_OWN = re.compile(r"\s(INFO|SUCC|WARN|WARNING|ERR) +(cli|job_manager|sdk)\.py:|^Running entrypoint for job")
_LAST_WORD = re.compile(r" cli\.py:\d+ -- .*Job '[^']*' (failed|succeeded|was stopped)")
_NOT_READY = "No available agent"  # a new head takes jobs a moment after it answers
_ON_A_TERMINAL_S = "2"


def submit(arguments: Sequence[str], *, log: Path, slots: int) -> int:
    """Run `python ARGUMENTS` as a Ray job from the current folder, show what it says; its exit status, 130 if stopped."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_environment(LOCAL_SETTINGS | haproxy_settings(os.environ)))
        if not os.environ.get("RAY_ADDRESS"):
            stack.enter_context(_local_head(log, slots))
        return _Job(arguments, log).run()


class _Job:
    """One submission. Its output is shown until Ray's own last word on it."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        self._id = f"slm-ray-{os.getpid()}-{secrets.token_hex(3)}"
        self._arguments = arguments
        self._log = log
        self._console = Console()
        self._is_accepted = False

    def run(self) -> int:
        deadline = time.monotonic() + _ACCEPTS_WITHIN_S
        while True:
            self._submit()
            if self._is_accepted:
                return self._status()
            if not self._is_worth_another_try() or time.monotonic() > deadline:
                raise ResourceError(f"Ray did not accept the job; see {self._log}")
            time.sleep(1.0)

    def _submit(self) -> None:
        """Submit and show, to the job's end. At a signal the job is stopped, shown to its end, and KeyboardInterrupt raised."""
        command = [_ray(), "job", "submit", "--submission-id", self._id, "--log-style", "record", "--working-dir", "."]
        told = {PROGRESS_EVERY: _ON_A_TERMINAL_S} if self._console.is_terminal else {}
        if (
            KEY_FILE_NAME in os.environ
        ):  # the name of the file there; the key itself would be shown to whoever lists jobs
            told[KEY_FILE_NAME] = os.environ[KEY_FILE_NAME]
        if told:
            command += ["--runtime-env-json", json.dumps({"env_vars": told})]
        # A session of its own: what is typed at this terminal is for this process to pass on.
        process = subprocess.Popen(
            [*command, "--", "python", *self._arguments], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True, errors="replace",
        )  # fmt: skip
        assert process.stdout is not None
        try:
            self._show(process.stdout)
        except KeyboardInterrupt:
            self._stop()
            patience = threading.Timer(_ENDS_WITHIN_S, process.kill)
            patience.start()
            self._show(process.stdout)
            patience.cancel()
            raise
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_ENDS_WITHIN_S)
            process.kill()
            process.wait()

    def _show(self, output: IO[str]) -> None:
        """Print the job's lines, and Ray's own into the log."""
        is_over = False
        with self._log.open("a", encoding="utf-8") as log, contextlib.ExitStack() as stack:
            live: Live | None = None
            for line in output:
                self._is_accepted = self._is_accepted or f"'{self._id}' submitted" in line
                is_over = is_over or bool(_LAST_WORD.search(line))
                if is_over or not self._is_accepted or _RAYS_OWN.search(line):
                    log.write(line)
                    continue
                if not self._console.is_terminal:
                    print(line, end="", flush=True)
                    continue
                live = live or stack.enter_context(Live(console=self._console, transient=True, auto_refresh=False))
                text = Text.from_ansi(line.rstrip("\n"))
                if line.startswith(PROGRESS_MARK):
                    live.update(text, refresh=True)
                else:
                    live.console.print(text, soft_wrap=True)

    def _is_worth_another_try(self) -> bool:
        return _NOT_READY in "".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-30:])

    def _stop(self) -> None:
        """Ask Ray to stop the job and wait until it has cleaned up."""
        with contextlib.suppress(subprocess.TimeoutExpired), self._log.open("ab") as log:
            subprocess.run(
                [_ray(), "job", "stop", self._id], stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                start_new_session=True, timeout=_STOPS_WITHIN_S, check=False,
            )  # fmt: skip

    def _status(self) -> int:
        from ray.job_submission import JobStatus, JobSubmissionClient

        job = JobSubmissionClient().get_job_info(self._id)
        if job.status == JobStatus.SUCCEEDED:
            return 0
        if job.status == JobStatus.STOPPED:
            return INTERRUPTED
        return job.driver_exit_code or 1


@contextlib.contextmanager
def _local_head(log: Path, slots: int) -> Iterator[None]:
    """A head of our own with `slots` training slots; `RAY_ADDRESS` and the token are in the environment meanwhile."""
    gcs, dashboard, agent, client = (_free_port() for _ in range(4))
    found = local_resources(slots)
    print(f"starting Ray on this machine ({slots} training slots; log: {log})", flush=True)
    address = {"RAY_ADDRESS": f"http://127.0.0.1:{dashboard}", "RAY_AUTH_MODE": "token"}
    with (
        _environment({**address, "RAY_AUTH_TOKEN": secrets.token_hex(32)}, replace=True),
        hidden_from_ray(os.environ),
        log.open("ab") as sink,
    ):
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        head = subprocess.Popen(
            [
                _ray(), "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}",
                "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}",
                f"--ray-client-server-port={client}", f"--num-cpus={found['num_cpus']}",
                f"--resources={json.dumps(found['resources'])}", f"--object-store-memory={found['object_store_memory']}",
            ],
            env=environment, stdout=sink, stderr=sink, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            _await_head(head, log)
            yield
        finally:
            _end(head, gcs)


def _await_head(head: subprocess.Popen[Any], log: Path) -> None:
    request = urllib.request.Request(
        f"{os.environ['RAY_ADDRESS']}/api/version", headers={"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + _STARTS_WITHIN_S
    while True:
        with contextlib.suppress(OSError), opener.open(request, timeout=5):
            return
        if head.poll() is not None or time.monotonic() > deadline:
            raise ResourceError(f"Ray did not start; see {log}")
        time.sleep(0.2)


def _end(head: subprocess.Popen[Any], gcs: int) -> None:
    head.terminate()
    try:
        head.wait(timeout=_ENDS_WITHIN_S)
    except subprocess.TimeoutExpired:
        os.killpg(head.pid, 9)
        head.wait()
    # A head that is told to end leaves its address behind, and another program on this machine would look for it there.
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    note = Path(folder) / "ray" / "ray_current_cluster"
    with contextlib.suppress(OSError):
        if note.read_text(encoding="utf-8").strip().endswith(f":{gcs}"):
            note.unlink()


@contextlib.contextmanager
def _environment(settings: dict[str, str], *, replace: bool = False) -> Iterator[None]:
    """`settings` in this process's environment while the block runs; what is set already stays unless `replace`."""
    before = dict(os.environ)
    os.environ.update({name: value for name, value in settings.items() if replace or name not in before})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _ray() -> str:
    return str(Path(sys.executable).with_name("ray"))


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def main(arguments: Sequence[str]) -> int:
    """Submit the job that the arguments name; the exit status."""
    folder = Path(os.environ.get("RUN") or "runs/local").absolute()
    slots = os.environ.get("SLOTS") or str(LOCAL_SLOTS)
    try:
        if not arguments or not Path(arguments[0]).is_file():
            raise ResourceError(
                f"{' '.join(arguments[:1]) or 'nothing'} is no job; give the path of one, as jobs/loop.py"
            )
        if not slots.isdecimal() or int(slots) < 1:
            raise ResourceError(f"SLOTS is {slots!r}; give how many training workers may run at once, 1 or more")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "ray.log").open("ab").close()
        except OSError as error:
            raise ResourceError(f"cannot write {folder}/ray.log: {error.strerror}; set RUN to another folder") from None
        return submit(arguments, log=folder / "ray.log", slots=int(slots))
    except SlmRayError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return BAD_INPUT


if __name__ == "__main__":
    with SignalGuard(ends_process=True):
        try:
            exit_status = main(sys.argv[1:])
        except KeyboardInterrupt:
            exit_status = INTERRUPTED
    sys.exit(exit_status)
