"""An evaluation in a process of its own, on the session's Ray: something that can be killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import ray

from slm_ray.config import EvaluateConfig

PROGRAM = """
import sys
import ray
from slm_ray.command import run
from slm_ray.config import EvaluateConfig
from slm_ray.evaluation import evaluate

def main(config):
    ray.init(address=ADDRESS, log_to_driver=False, logging_level="ERROR")
    print("exact_match", evaluate(config, environment={}).models["served:m"].metrics["exact_match"])

run(main, EvaluateConfig, "test", sys.argv[1:])
"""


def start(settings: EvaluateConfig, folder: Path, program: str = PROGRAM) -> subprocess.Popen[str]:
    """The running evaluation; it prints `exact_match` and its value when it gets to its end."""
    path = folder / "config.yaml"
    path.write_text(json.dumps(settings.model_dump(mode="json")))
    address = ray.get_runtime_context().gcs_address
    return subprocess.Popen(
        [sys.executable, "-c", program.replace("ADDRESS", repr(address)), str(path)], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
