"""Training rows: read, shaped as TRL wants them, and measured before any worker starts.

A row longer than `max_length` is refused, never cut: a cut answer teaches the model to stop in the middle. Needs a
tokenizer with a chat template; the template itself belongs to the base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm_ray.corpus.leakage import question_hashes, refuse_leakage
from slm_ray.corpus.read import examples
from slm_ray.errors import ConfigError, DataError
from slm_ray.storage import read_lines
from slm_ray.tasks import open_track
from slm_ray.types import Example

SPLIT_AGAIN = "split the rows again with slm-ray prepare"
_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Examples of one file with the line each stands on."""

    path: str
    examples: tuple[Example, ...]
    lines: tuple[int, ...]

    def first(self, limit: int | None) -> Rows:
        """The first `limit` rows; all of them for None."""
        return Rows(path=self.path, examples=self.examples[:limit], lines=self.lines[:limit])

    def chosen(self, places: Sequence[int]) -> Rows:
        """The rows at `places`, counted from 0, in that order."""
        return Rows(
            path=self.path,
            examples=tuple(self.examples[place] for place in places),
            lines=tuple(self.lines[place] for place in places),
        )


def read(path: str, track_name: str) -> Rows:
    """The examples of a JSONL file in order; DataError with file:line for every bad row."""
    text = read_lines(path)
    found = examples(text, name=path, track=open_track(track_name, beside=path))
    return Rows(
        path=path,
        examples=tuple(found),
        lines=tuple(number for number, line in enumerate(text, start=1) if line.removeprefix("\ufeff").strip()),
    )


def refuse_leaks(trained: Rows, track_name: str) -> None:
    """DataError when a `validation.jsonl` or `test.jsonl` beside the training file asks what a training row asks."""
    hashes = question_hashes(trained.examples)
    for name in ("validation.jsonl", "test.jsonl"):
        held = Path(trained.path).with_name(name)
        if not held.is_file() or held == Path(trained.path):
            continue
        try:
            neighbours = read(str(held), track_name).examples
        except DataError:  # a neighbour that is no file of examples of this track holds nothing out
            continue
        refuse_leakage(neighbours, hashes, rows=f"rows of {held}", trained_name=trained.path, fix=SPLIT_AGAIN)


def held_out(validation: str, trained: Rows, track_name: str) -> tuple[Example, ...]:
    """The examples of the file `validation`; DataError when one asks what a training row asks."""
    checked = read(validation, track_name).examples
    hashes = question_hashes(trained.examples)
    refuse_leakage(checked, hashes, rows=f"rows of {validation}", trained_name=trained.path, fix=SPLIT_AGAIN)
    return checked


def conversation(example: Example) -> dict[str, Any]:
    """The row as TRL's conversational prompt/completion: the loss is on the completion only."""
    return {
        "prompt": example.prompt.as_dicts(),
        "completion": [{"role": "assistant", "content": example.target}],
    }


def lengths(rows: Rows, tokenizer: Any, *, max_length: int) -> list[int]:
    """Tokens of each whole row, template included.

    DataError for rows above `max_length`; ConfigError when the base's chat template renders a prompt differently once
    an answer follows it, because the model would then be trained on a prompt that it never meets when it is served.
    """
    counts, problems = [], []
    for line, example in zip(rows.lines, rows.examples, strict=True):
        row = conversation(example)
        prompt = token_ids(tokenizer, row["prompt"], answer_next=True)
        whole = token_ids(tokenizer, row["prompt"] + row["completion"], answer_next=False)
        if whole[: len(prompt)] != prompt:
            raise ConfigError(
                f"{rows.path}:{line}: the base's chat template does not keep the prompt's tokens when the answer follows "
                "them; use a base whose template renders the prompt the same way in both cases"
            )
        counts.append(len(whole))
        if len(whole) > max_length:
            problems.append(f"{rows.path}:{line}: {len(whole)} tokens, more than max_length {max_length}")
    _refuse(problems, max(counts))
    return counts


def token_ids(tokenizer: Any, messages: Sequence[dict[str, str]], *, answer_next: bool) -> list[int]:
    """Token ids of a chat in the base's own template; `answer_next` ends it where the assistant starts to write."""
    encoded = tokenizer.apply_chat_template(list(messages), add_generation_prompt=answer_next, return_dict=True)
    return [int(token) for token in encoded["input_ids"]]


def _refuse(problems: Sequence[str], longest: int) -> None:
    if problems:
        more = f" | and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise DataError(
            f"{' | '.join(problems[:_SHOWN])}{more}; raise max_length to {longest} (it costs memory) or shorten the rows"
        )
