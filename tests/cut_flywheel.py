"""A flywheel as processes that are cut off: each line `[SETTINGS.json, URL, STEP]` that it is given is answered by a line.

Rows, verdicts and the route are real, and so are the calls: to a plain chat server at URL, which is the LLM and the endpoint.
Training is a file that is written once. A process is killed (SIGKILL) as its STEP begins; where it begins none of that name it
comes to its end. The answer is its exit status. All are forked from one, which has loaded everything.
"""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import adapter_files

import slm_ray.evaluation.run
from slm_ray import storage
from slm_ray.adapters import Manifest, adapter_ids, load_manifest
from slm_ray.config import FlywheelConfig
from slm_ray.loop import flywheel
from slm_ray.loop.flywheel import Flywheel
from slm_ray.loop.steps import StepLog
from slm_ray.loop.track import TrackRun


class Cut(StepLog):
    """Kills the process as a step of that name begins."""

    def __init__(self, path: Path, step: str) -> None:
        super().__init__(path)
        self._cut = step

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        if name == self._cut:
            os.kill(os.getpid(), signal.SIGKILL)
        with super().step(name):
            yield


class Small(Flywheel):
    """The endpoint is at `url` already, and an adapter is a file."""

    def __init__(self, config: FlywheelConfig, url: str, step: str) -> None:
        super().__init__(config, {"OPENAI_API_KEY": "none"})
        self.log, self._url = Cut(self.folder / "log.txt", step), url

    def deploy(self, pools: Any) -> None:
        self.endpoint = SimpleNamespace(url=self._url)  # type: ignore[assignment]

    def train(self, runs: Any, job: Callable[..., None]) -> None:
        with self.log.step("train"):
            for run in runs:
                run.adapter = _trained(run, self.config.serving.adapters_dir)


def _trained(run: TrackRun, root: str) -> Manifest:
    """As a finished training gives its adapter again."""
    if not (there := adapter_ids(root)):
        files = adapter_files.trained(run.folder / "training")
        return adapter_files.publish(files, Path(root), "0" * 64)
    return load_manifest(root, there[0])


def one(settings: str, url: str, step: str) -> None:
    """The child's work."""
    config = FlywheelConfig.model_validate_json(Path(settings).read_text(encoding="utf-8"))
    this = Small(config, url, step)
    with storage.lock(this.folder), this.log:
        this.run()


def main() -> None:
    slm_ray.evaluation.run.is_local = lambda *_: True  # type: ignore[assignment,attr-defined]  # asked from here, without Ray
    flywheel.serve = SimpleNamespace(status=lambda: SimpleNamespace(applications=()))  # type: ignore[assignment,attr-defined]
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            status = 1
            try:
                one(*json.loads(line))
                status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        print(f"ended {os.waitstatus_to_exitcode(status)}", flush=True)


if __name__ == "__main__":
    main()
