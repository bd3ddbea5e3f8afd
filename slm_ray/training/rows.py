"""Training rows: read, shaped as TRL wants them, and measured before any worker starts.

A row longer than `max_length` is refused, never cut: a cut answer teaches the model to stop in the middle. Needs a
tokenizer with a chat template; the template itself belongs to the base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from slm_ray.chat_template import rendered
from slm_ray.corpus.leakage import question_hashes, refuse_leakage
from slm_ray.corpus.read import examples
from slm_ray.errors import ConfigError, DataError
from slm_ray.storage import read_lines
from slm_ray.tasks import open_track
from slm_ray.types import Example

SPLIT_AGAIN = "split the rows again with slm-ray prepare"
NOT_LEARNED = -100  # the label of a token without loss, torch's and TRL's
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
            held_out = read(str(held), track_name).examples
        except DataError:  # a neighbour that is no file of examples of this track holds nothing out
            continue
        refuse_leakage(held_out, hashes, rows=f"rows of {held}", trained_name=trained.path, fix=SPLIT_AGAIN)


def conversation(example: Example) -> dict[str, Any]:
    """The row as TRL's conversational prompt/completion: the loss is on the completion only."""
    return {
        "prompt": example.prompt.as_dicts(),
        "completion": [{"role": "assistant", "content": example.target}],
    }


def tokenised(tokenizer: Any, row: dict[str, Any]) -> dict[str, list[int]]:
    """A row of `conversation` as the trainer takes it: `input_ids`, and `labels` that are -100 where nothing is learned.

    The prompt's tokens are those of `token_ids`, which are the server's, also where the tokenizer would merge the end of the
    prompt with the start of the answer. ConfigError when the base's chat template renders a prompt differently once an
    answer follows it, because the model would then be trained on a prompt that it never meets when it is served; DataError
    when it refuses the chat.
    """
    prompt = rendered(tokenizer, row["prompt"], answer_next=True)
    whole = rendered(tokenizer, row["prompt"] + row["completion"], answer_next=False)
    if not whole.startswith(prompt):
        raise ConfigError(
            "the base's chat template does not keep the prompt when the answer follows it; use a base whose template "
            "renders the prompt the same way in both cases"
        )
    asked, answer = _encoded_in_pieces(tokenizer, whole, [len(prompt)])
    return {"input_ids": asked + answer, "labels": [NOT_LEARNED] * len(asked) + answer}


def lengths(rows: Rows, tokenizer: Any, *, max_length: int) -> list[int]:
    """Tokens of each whole row, template included.

    DataError, with file and line, for rows above `max_length` and for rows that the base's chat template refuses;
    ConfigError when the template does not keep a prompt (`tokenised`).
    """
    counts, long, refused = [], [], []
    for line, example in zip(rows.lines, rows.examples, strict=True):
        where = f"{rows.path}:{line}"
        try:
            counts.append(len(tokenised(tokenizer, conversation(example))["input_ids"]))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        except DataError as error:
            refused.append(f"{where}: {error}")
            continue
        if counts[-1] > max_length:
            long.append(f"{where}: {counts[-1]} tokens, more than max_length {max_length}")
    if refused:
        raise DataError(_listed(refused))
    if long:
        raise DataError(f"{_listed(long)}; raise max_length to {max(counts)} (it costs memory) or shorten the rows")
    return counts


def token_ids(tokenizer: Any, messages: Sequence[dict[str, str]], *, answer_next: bool) -> list[int]:
    """Token ids of a chat in the base's template; `answer_next` ends it where the assistant starts to write.

    The tokenizer is one of `base_model.open_tokenizer`. DataError when the template refuses the chat.
    """
    return _encoded(tokenizer, rendered(tokenizer, messages, answer_next=answer_next))


def _encoded(tokenizer: Any, text: str) -> list[int]:
    """Tokens of a rendered text; what starts and ends a text is in the template already."""
    return [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]


def _encoded_in_pieces(tokenizer: Any, text: str, borders: Sequence[int]) -> list[list[int]]:
    """Tokens of a rendered text, cut at these characters; no token stands across a border."""
    whole, cuts = _encoded(tokenizer, text), [0]
    for border in borders:
        before = _encoded(tokenizer, text[:border])
        if whole[: len(before)] != before:
            spans = pairwise([0, *borders, len(text)])
            return [_encoded(tokenizer, text[start:end]) for start, end in spans]
        cuts.append(len(before))
    return [whole[start:end] for start, end in pairwise([*cuts, len(whole)])]


def _listed(problems: Sequence[str]) -> str:
    more = f" | and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return " | ".join(problems[:_SHOWN]) + more
