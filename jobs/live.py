"""Watch an evaluation that runs in another shell: `jobs/live.py RUN_DIR`, or a YAML file that names it."""

import sys
from pathlib import Path

from slm_ray.command import run
from slm_ray.config import LiveConfig
from slm_ray.evaluation.progress import watch

SETTINGS = str(Path(__file__).with_suffix(".yaml"))


def main(config: LiveConfig) -> int:
    ended = watch(config.run_dir, no_progress_bar=config.no_progress_bar)
    if ended != "done":
        print(f"the run is not complete ({ended}); its own command continues it", file=sys.stderr)
    return 0 if ended == "done" else 1


def arguments(given: list[str]) -> list[str]:
    """A folder in place of the settings file is the run to watch."""
    if given and Path(given[0]).is_dir():
        return [SETTINGS, "--set", f"run_dir={given[0]}", *given[1:]]
    return given


if __name__ == "__main__":
    run(main, LiveConfig, __doc__, arguments(sys.argv[1:]))
