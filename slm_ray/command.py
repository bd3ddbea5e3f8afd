"""The command line that every job shares: a config file, `--set a.b=c`, `--help`, one-line errors, exit statuses.

`--NAME VALUE` is `--set NAME=VALUE` for a setting without a dot. The config file may be left out: `Usage` says what is read
then. `run(job, kind, argv)` reads the config and calls the job. A problem that the person can fix ends in one line on stderr
and status 2; Ctrl-C, SIGTERM (what `ray job stop` sends) and SIGHUP (a closed terminal) end in status 130 after the job's own clean-up has run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

from pydantic import BaseModel

from slm_ray.config import load
from slm_ray.errors import ConfigError, SlmRayError, choices
from slm_ray.signals import SignalGuard

Config = TypeVar("Config", bound=BaseModel)

BAD_INPUT = 2
INTERRUPTED = 130
# A line that says how far a job is begins so; on a terminal the next one takes its place. The variable: seconds between them.
PROGRESS_MARK, PROGRESS_EVERY = "… ", "SLM_RAY_PROGRESS_EVERY_S"
_PLAIN = re.compile(r"[A-Za-z/][\w./-]*")
_WORDS_OF_YAML = frozenset(("true", "false", "null", "yes", "no", "on", "off", "y", "n"))
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """How a job is called.

    `settings` is the config file that is read when none is named; None: settings have their defaults. `folder` is the
    setting that a folder in the config file's place stands for. `program` is what the job is called in its `--help`.
    """

    program: str | None = None
    settings: Path | None = None
    folder: str | None = None


def run(
    job: Callable[[Config], int | None],
    kind: type[Config],
    description: str,
    argv: Sequence[str] | None = None,
    usage: Usage | None = None,
) -> NoReturn:
    """Parse, run and exit. `job` returns an exit status or None for 0."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    with SignalGuard(ends_process=True):  # also of SIGINT, which a shell lets background jobs ignore
        try:
            status = _status(job, kind, description, argv, usage)
        except KeyboardInterrupt:
            _say("stopped; the same command continues where this one ended")
            status = INTERRUPTED
        sys.stdout.flush()
    sys.exit(status)


def _status(
    job: Callable[[Config], int | None],
    kind: type[Config],
    description: str,
    argv: Sequence[str] | None,
    usage: Usage | None,
) -> int:
    try:
        return job(read(kind, description, argv, usage)) or 0
    except SlmRayError as error:
        _say(f"error: {error}")
        return BAD_INPUT


def read(kind: type[Config], description: str, argv: Sequence[str] | None = None, usage: Usage | None = None) -> Config:
    """The config that the arguments name; `--help` lists every setting of `kind` and exits.

    Without `usage`, the YAML file beside the script is read when none is named.
    """
    usage = usage or Usage(settings=Path(sys.argv[0]).with_suffix(".yaml"))
    parser = argparse.ArgumentParser(
        prog=usage.program,
        description=description, epilog=_knobs(kind), formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [-h] [CONFIG] [--set a.b=c] [--NAME VALUE]", allow_abbrev=False,
    )  # fmt: skip
    otherwise = usage.settings.name if usage.settings else "without one, every setting has its default"
    place = "YAML file of settings" + (f", or a folder: its {usage.folder}" if usage.folder else "")
    parser.add_argument("config", nargs="?", help=f"{place} ({otherwise})")
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
    if usage.folder and arguments.config and Path(arguments.config).is_dir():
        overrides = [f"{usage.folder}={arguments.config}", *arguments.overrides]
        return load(kind, usage.settings, overrides)
    return load(kind, arguments.config or usage.settings, arguments.overrides)


def command_line(name: str, config: BaseModel, settings: str | None = None, **changed: str) -> str:
    """`slm-ray NAME …` in one line for a shell, which `read` reads as `config`; only what is not the default is in it.

    With `settings`, the file that holds them, only what is `changed` stands beside it.
    """
    overrides = list(changed.items()) if settings else _changed(config.model_dump(mode="json"), type(config))
    words = [settings] if settings else []
    for key, value in overrides:
        plain = isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS_OF_YAML
        words += ["--set", f"{key}={value if plain else json.dumps(value, ensure_ascii=False)}"]
    return shlex.join(["slm-ray", name, *words])


def _changed(
    values: Mapping[str, Any], kind: type[BaseModel], default: BaseModel | None = None
) -> list[tuple[str, Any]]:
    """(key with dots, value) of what differs from the defaults."""
    found: list[tuple[str, Any]] = []
    for name, field in kind.model_fields.items():
        value = values[name]
        annotation: Any = field.annotation
        known = None
        if default is not None:
            known = getattr(default, name)
        elif not field.is_required():
            known = field.get_default(call_default_factory=True)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel) and isinstance(value, Mapping):
            found += [(f"{name}.{key}", inner) for key, inner in _changed(value, annotation, known)]
        elif (field.is_required() and default is None) or value != _as_json(known):
            found.append((name, value))
    return found


def _as_json(value: Any) -> Any:
    return [_as_json(one) for one in value] if isinstance(value, tuple) else value


def output_folder(path: str, *, setting: str = "run_dir", is_written: bool = True) -> Path:
    """`path` as an absolute folder that outlives the job and that can be made or, unless not `is_written`, written to.

    Under `ray job submit --working-dir` the current folder is a copy that Ray throws away, so a relative path is refused.
    ConfigError for what is a file, lies under one or is on a disk that takes nothing; nothing is made here.
    """
    if "://" in path:
        plain = re.sub("//[^/]*@", "//", path.partition("?")[0])  # a secret in it is none of the terminal's
        raise ConfigError(
            f"{setting} {plain!r} is no folder: give the path of one (docs/how-to/object-storage.md says what may lie in a store)"
        )
    folder = Path(path).expanduser()
    if not folder.is_absolute() and "runtime_resources" in str(Path.cwd()):
        raise ConfigError(
            f"{path!r} is relative, and a submitted job runs in a temporary copy of your folder: give an absolute path, "
            f"for example --set {setting}=$PWD/{path}"
        )
    folder = folder.absolute()
    try:
        existing = next(place for place in (folder, *folder.parents) if place.exists())
        if "\0" in path:
            reason = "it holds a NUL character"
        elif not existing.is_dir():
            reason = "it is a file" if existing == folder else f"{existing} is a file"
        elif is_written and not os.access(existing, os.W_OK | os.X_OK):
            reason = f"{existing} is read-only for this user"
        else:
            return folder
    except OSError as error:
        reason = str(error.strerror)
    raise ConfigError(f"{setting} {path!r} can be no folder of results: {reason}; give a folder you may write to")


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


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
