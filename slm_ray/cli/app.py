"""The console script `slm-ray`: every command of `commands.COMMANDS`, and `init`, `open`, `adapters`, `keys` and
`routes`, which only people need.

A command takes what its job takes: a config file that may be left out, `--set a.b=c`, `--NAME VALUE`, `--help` with every
setting. Without a file the settings have their defaults, so the script works in any folder. Nothing heavy is imported
before a command runs. `slm-ray --install-completion` completes commands and settings in the shell.
"""

from __future__ import annotations

import inspect
import os
import sys
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from slm_ray.cli import adapters, keys, routes
from slm_ray.cli.commands import COMMANDS
from slm_ray.cli.init import DEFAULTS, QUESTIONS, Answers, answers_from, next_commands, write
from slm_ray.cli.step import Command
from slm_ray.command import BAD_INPUT, Usage, run
from slm_ray.errors import ConfigError, SlmRayError
from slm_ray.remote import fetched, is_remote

PAGES = ("report.html",)
_RAW = "slm_ray.arguments"

app = typer.Typer(
    name="slm-ray", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich",
    help="Can a small fine-tuned model replace the large one you pay for, and can you act on the answer?",
)  # fmt: skip


class _JobCommand(TyperCommand):
    """Keeps the arguments as they were typed: the parser that the jobs have reads them, and typer only completes them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[_RAW] = list(args)
        return super().parse_args(ctx, args)


def _caller(name: str, command: Command) -> Callable[..., None]:
    """A function whose signature tells typer which options there are to complete, and that runs the command."""

    def call(ctx: typer.Context, **_: Any) -> None:
        usage = Usage(program=f"slm-ray {name}", folder=command.folder)
        run(command.run, command.config, command.doc, ctx.meta[_RAW], usage)

    settings = {
        f"setting_{setting}": Annotated[list[str] | None, typer.Option(f"--{setting}", help=field.description or "")]
        for setting, field in command.config.model_fields.items()
    }
    options = {
        "config": Annotated[Path | None, typer.Argument(metavar="CONFIG")],
        "overrides": Annotated[list[str] | None, typer.Option("--set", help="override one setting: a.b=c")],
        "shows_help": Annotated[bool, typer.Option("--help", "-h", help="every setting and its default")],
        **settings,
    }
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)]
    parameters += [inspect.Parameter(n, kind, annotation=a, default=None) for n, a in options.items()]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {"ctx": typer.Context, **options}
    return call


for _name, _command in COMMANDS.items():
    app.command(
        _name, cls=_JobCommand, add_help_option=False, help=_command.doc.partition("\n")[0],
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )(_caller(_name, _command))  # fmt: skip


app.add_typer(adapters.app)
app.add_typer(keys.app)
app.add_typer(routes.app)


@app.command()
def init(
    rows: Annotated[str | None, typer.Option(help=QUESTIONS["rows"])] = None,
    track: Annotated[str | None, typer.Option(help=QUESTIONS["track"])] = None,
    llm: Annotated[str | None, typer.Option(help=QUESTIONS["llm"])] = None,
    slm: Annotated[str | None, typer.Option(help=QUESTIONS["slm"])] = None,
    out: Annotated[str | None, typer.Option(help=QUESTIONS["out"])] = None,
    answers: Annotated[Path | None, typer.Option(help="YAML file with the answers: rows, track, llm, slm, out")] = None,
) -> None:
    """Ask five questions, write a track file and the configs of the first run, and say which commands come next."""
    try:
        known = answers_from(answers) | _without_none(rows=rows, track=track, llm=llm, slm=slm, out=out)
        for name in QUESTIONS:
            if name not in known:
                known[name] = _ask(name)
        told = Answers(**known)
        for path in write(told):
            print(f"wrote {path}")
        print("next:")
        for line in next_commands(told):
            print(f"  {line}")
    except SlmRayError as error:
        _refuse(error)


@app.command("open")
def open_page(
    run_dir: Annotated[str, typer.Argument(metavar="RUN_DIR", help="the folder of a run, or s3://…, or a page")],
) -> None:
    """Open the page of a run in the browser; where there is none, print its path."""
    try:
        place = fetched(run_dir, setting="RUN_DIR") if is_remote(run_dir) else Path(run_dir)
        page = _page(place).resolve()
    except SlmRayError as error:
        _refuse(error)
    print(page, flush=True)
    if _has_display():
        webbrowser.open(page.as_uri())


def _page(place: Path) -> Path:
    if place.is_file():
        return place
    for name in PAGES:
        if (place / name).is_file():
            return place / name
    raise ConfigError(f"{place}: no {' or '.join(PAGES)} here; give the RUN_DIR of a loop that has ended")


def _has_display() -> bool:
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _ask(name: str) -> str:
    """The answer that is typed, the default where nobody is there to type one."""
    try:
        return str(typer.prompt(QUESTIONS[name], default=DEFAULTS[name]))
    except typer.Abort:
        if sys.stdin.isatty():  # Ctrl-C
            raise
        if (default := DEFAULTS[name]) is not None:
            return default
        raise ConfigError(f"--{name} is not set, and nobody is there to ask: {QUESTIONS[name]}") from None


def _without_none(**answers: str | None) -> dict[str, str]:
    return {name: answer for name, answer in answers.items() if answer is not None}


def _refuse(error: SlmRayError) -> NoReturn:
    print(f"error: {error}", file=sys.stderr, flush=True)
    raise typer.Exit(BAD_INPUT)


def main() -> None:
    """The entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
