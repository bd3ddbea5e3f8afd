"""`slm-ray keys …`: keys of the endpoint beside the deployer's own, each with the models it may ask and its tokens a minute.

Thin: every verb calls `slm_ray.serving.keys` and prints. A problem that a person can mend is one line and exit status 2.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from slm_ray.command import BAD_INPUT
from slm_ray.errors import SlmRayError
from slm_ray.tables import format_table

app = typer.Typer(name="keys", no_args_is_help=True, help="Keys of the endpoint: add, list, revoke.")

KeysFile = Annotated[Path, typer.Option("--file", help="the endpoint's serving.keys_file")]
KeyName = Annotated[str, typer.Argument(metavar="NAME", help="who or what it is for; metrics name it so")]
DEFAULT = Path("keys.jsonl")


@app.command()
def add(
    name: KeyName,
    file: KeysFile = DEFAULT,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="a model, adapter or alias it may ask, with * and ?; repeat for more"),
    ] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option("--tokens_per_minute", help="prompts and answers together; left out: no limit")
    ] = None,
) -> None:
    """Print a new key, once: only its SHA-256 is kept. It counts within a second, without a restart."""
    from slm_ray.serving.keys import ALL_MODELS, add_key

    with _one_line():
        print(add_key(file, name, models=model or ALL_MODELS, tokens_per_minute=tokens_per_minute))
        print(f"this key is not shown again; {file} holds its digest", file=sys.stderr)


@app.command("list")
def list_all(file: KeysFile = DEFAULT) -> None:
    """Every key that is not revoked."""
    from slm_ray.serving.keys import read_keys

    with _one_line():
        rows = [
            [
                key.name,
                ", ".join(key.models),
                f"{key.tokens_per_minute:,}" if key.tokens_per_minute else "-",
                key.added[:19],
            ]
            for key in read_keys(file)
        ]
        print("\n".join(format_table([["name", "models", "tokens a minute", "added (UTC)"], *rows], left=(0, 1, 3))))


@app.command()
def revoke(name: KeyName, file: KeysFile = DEFAULT) -> None:
    """Make a key worth nothing, within a second; answers that are being written end."""
    from slm_ray.serving.keys import revoke_key

    with _one_line():
        revoke_key(file, name)
        print(f"revoked {name}")


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except SlmRayError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise typer.Exit(BAD_INPUT) from None
