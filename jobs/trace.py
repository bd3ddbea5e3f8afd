"""A finished run's traces to Langfuse, each row exactly once: `trace.py RUN_DIR` or `trace.py CONFIG`; repeat at will."""

import os
import sys
from pathlib import Path

from slm_ray.command import run
from slm_ray.config import TraceConfig
from slm_ray.tracing import replay


def main(config: TraceConfig) -> None:
    print(replay(config, os.environ))


def with_config(arguments: list[str]) -> list[str]:
    if not arguments or not Path(arguments[0]).is_dir():
        return arguments
    return [str(Path(__file__).with_suffix(".yaml")), "--set", f"run_dir={arguments[0]}", *arguments[1:]]


if __name__ == "__main__":
    run(main, TraceConfig, __doc__, with_config(sys.argv[1:]))
