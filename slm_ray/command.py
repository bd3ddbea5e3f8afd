"""The command line that every job shares: a config file, `--set a.b=c`, `--help`, one-line errors, exit statuses.

The config file may be left out: it is then the YAML file beside the job. `--NAME VALUE` is `--set NAME=VALUE` for a
setting without a dot. `run(job, kind, argv)` reads the config and calls the job. A problem that the person can fix ends in one line on stderr
and status 2; Ctrl-C and SIGTERM (what `ray job stop` sends) end in status 130 after the job's own clean-up has run.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

from pydantic import BaseModel

from slm_ray.config import load
from slm_ray.errors import ConfigError, SlmRayError, choices

Config = TypeVar("Config", bound=BaseModel)

BAD_INPUT = 2
INTERRUPTED = 130
QUIET = {
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONHASHSEED": "42",
    "RAY_DEDUP_LOGS": "1",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}


def run(
    job: Callable[[Config], int | None], kind: type[Config], description: str, argv: Sequence[str] | None = None
) -> NoReturn:
    """Parse, run and exit. `job` returns an exit status or None for 0."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)  # a shell starts background jobs with SIGINT ignored
    try:
        status = job(read(kind, description, argv)) or 0
    except SlmRayError as error:
        _say(f"error: {error}")
        status = BAD_INPUT
    except KeyboardInterrupt:
        _say("stopped; the same command continues where this one ended")
        status = INTERRUPTED
    sys.stdout.flush()
    sys.exit(status)


def read(kind: type[Config], description: str, argv: Sequence[str] | None = None) -> Config:
    """The config that the arguments name; `--help` lists every knob of `kind` and exits."""
    beside = Path(sys.argv[0]).with_suffix(".yaml")
    parser = argparse.ArgumentParser(
        description=description, epilog=_knobs(kind), formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [-h] [CONFIG] [--set a.b=c] [--NAME VALUE]", allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("config", nargs="?", default=str(beside), help=f"YAML file of settings ({beside.name})")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="a.b=c",
        help="override one setting, the value in YAML; repeatable; --NAME VALUE does the same where the name has no dot",
    )  # fmt: skip
    for name in kind.model_fields:
        parser.add_argument(
            f"--{name}", dest="overrides", action="append", type=f"{name}={{}}".format, help=argparse.SUPPRESS
        )
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        known = [f"--{name}" for name in ("set", *kind.model_fields)]
        raise ConfigError(f"unknown option {unknown[0]}: {choices(unknown[0], known)}")
    return load(kind, arguments.config, arguments.overrides)


def output_folder(path: str) -> Path:
    """`path` as an absolute folder that outlives the job.

    Under `ray job submit --working-dir` the current folder is a copy that Ray throws away, so a relative path is refused.
    """
    folder = Path(path).expanduser()
    if not folder.is_absolute() and "runtime_resources" in str(Path.cwd()):
        raise ConfigError(
            f"{path!r} is relative, and a submitted job runs in a temporary copy of your folder: give an absolute path, "
            f"for example --set run_dir=$PWD/{path}"
        )
    return folder.absolute()


def _knobs(kind: type[BaseModel], prefix: str = "", given: BaseModel | None = None) -> str:
    """One line per setting; `given` holds the defaults where the setting above has some of its own."""
    lines = ["settings:"] if not prefix else []
    for name, field in kind.model_fields.items():
        annotation: Any = field.annotation
        value = (
            getattr(given, name)
            if given
            else None
            if field.is_required()
            else field.get_default(call_default_factory=True)
        )
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            lines += [f"  {prefix}{name}: {field.description}"] if field.description else []
            lines.append(_knobs(annotation, f"{prefix}{name}.", value))
            continue
        default = "required" if field.is_required() and given is None else repr(value)
        said = [
            field.description or "",
            " | ".join(map(str, get_args(annotation))) if get_origin(annotation) is Literal else "",
        ]
        note = "".join(f"  {text}" for text in said if text)
        lines.append(f"  {prefix}{name} = {default}{note}")
    return "\n".join(lines)


def _interrupt(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
