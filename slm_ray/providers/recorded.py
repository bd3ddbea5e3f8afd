"""`recorded:PATH`: answers that were recorded earlier, as a model; a JSONL file of `prediction` with `id` or `prompt`.

A row is found by its id first, else by its prompt: the whole conversation, or the last user turn, white space aside. A
prompt without a record is a failed call, so a partial file is counted as such. No latency is invented: it is None unless
the row has a `latency_s`. Which model answered is known where rows say so (`served_by`); who billed it is not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from slm_ray.config import Generation
from slm_ray.errors import ConfigError, DataError
from slm_ray.providers.limiter import RateLimiter
from slm_ray.providers.provider import Provider, TrainingRows, identity_of
from slm_ray.storage import file_digest, numbered_jsonl
from slm_ray.types import Completion, Example, Failure, Model, ModelFacts, Prompt, Usage

_MISSING = Failure(kind="error", reason="no recorded answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded(Provider):
    """A file of answers."""

    kind = "recorded"
    example = "answers.jsonl"
    reads_prompts = False

    path: str

    @classmethod
    def parse(cls, rest: str) -> Self:
        """A path."""
        if not rest.strip():
            raise ConfigError(f"model spec 'recorded:{rest}' names nothing; write recorded:{cls.example}")
        return cls(spec=f"recorded:{rest}", path=rest)

    def check(self, environment: Mapping[str, str]) -> None:
        """The file."""
        if not Path(self.path).is_file():
            raise DataError(f"{self.spec}: no such file; give the path of a JSONL file with a `prediction` per row")

    def bind(self, examples: Sequence[Example], training_rows: TrainingRows | None) -> Provider:
        """By absolute path; DataError when the file answers none of the examples."""
        RecordedModel(spec=self.spec, path=self.path).check_covers(examples)
        return replace(self, path=str(Path(self.path).absolute()))

    def open(
        self, *, endpoint: str, generation: Generation, environment: Mapping[str, str],
        limiter: RateLimiter | None = None,
    ) -> Model:  # fmt: skip
        """The model; nothing limits it."""
        self.check(environment)
        return RecordedModel(spec=self.spec, path=self.path)

    def identity(self, *, endpoint: str, environment: Mapping[str, str]) -> str:
        """What the file holds: a changed recording is another model."""
        return identity_of(kind=self.kind, content=file_digest(self.path))

    def facts(self, *, endpoint: str, environment: Mapping[str, str]) -> ModelFacts:
        """Nobody is asked and nobody bills; what the recorded model cost is not known."""
        return ModelFacts(spec=self.spec, kind=self.kind, model=None, host=None, billing="none")


class RecordedModel:
    """A file of predictions; a null prediction is a recorded failure."""

    def __init__(self, *, spec: str, path: str) -> None:
        """Read it all; DataError with file:line for a row without a prediction or one that contradicts an earlier row."""
        self.spec = spec
        self.path = path
        self._answers: dict[str, Completion] = {}
        self._lines: dict[str, int] = {}
        for number, row in numbered_jsonl(path):
            self._add(number, row)

    def __repr__(self) -> str:
        return f"RecordedModel({self.spec!r}, {len(self._answers)} keys)"

    async def complete(self, example_id: str, prompt: Prompt) -> Completion:
        """The recorded answer, or a failure that says there is none."""
        return self._find(example_id, prompt) or Completion(failure=_MISSING)

    async def close(self) -> None:
        """Nothing to release."""

    def check_covers(self, examples: Iterable[Example]) -> None:
        """DataError when not one of the examples has a record: the wrong file."""
        rows = list(examples)
        if rows and not any(self._find(row.id, row.prompt) for row in rows):
            raise DataError(
                f"{self.path} holds no answer to any of the {len(rows)} examples (looked by id, then by prompt); "
                "give the predictions that were made on these examples"
            )

    def _find(self, example_id: str, prompt: Prompt) -> Completion | None:
        keys = (f"id:{example_id}", _conversation_key(prompt.as_dicts()), _text_key(prompt.messages[-1].content))
        return next((self._answers[key] for key in keys if key in self._answers), None)

    def _add(self, number: int, row: Mapping[str, Any]) -> None:
        where = f"{self.path}:{number}"
        answer = _answer(row, where)
        keys = _keys(row, where)
        for key in keys:
            if self._answers.setdefault(key, answer) != answer:
                raise DataError(
                    f"{where}: another prediction for the {key.partition(':')[0]} of line {self._lines[key]}; "
                    "keep one row per example, or tell them apart by `id`"
                )
            self._lines.setdefault(key, number)


def _keys(row: Mapping[str, Any], where: str) -> list[str]:
    if isinstance(row.get("id"), str | int):
        return [f"id:{row['id']}"]  # two examples may share a prompt; then only the id tells them apart
    prompt = row.get("prompt")
    if isinstance(prompt, str) and prompt.strip():
        return [_text_key(prompt)]
    if isinstance(prompt, list) and prompt and all(_is_turn(turn) for turn in prompt):
        return [_conversation_key(prompt)]
    raise DataError(f"{where}: neither `id` nor `prompt` (text or a list of role/content turns); add one of them")


def _answer(row: Mapping[str, Any], where: str) -> Completion:
    if "prediction" not in row:
        raise DataError(
            f"{where}: no `prediction`; it holds {', '.join(sorted(row)) or 'nothing'}; add the answer's text"
        )
    text, latency_s, served_by = row["prediction"], row.get("latency_s"), row.get("served_by")
    if not isinstance(text, str | None):
        raise DataError(f"{where}: `prediction` is a {type(text).__name__}; write the answer's text, or null")
    if (
        not isinstance(latency_s, int | float | None)
        or isinstance(latency_s, bool)
        or not isinstance(served_by, str | None)
    ):
        raise DataError(f"{where}: `latency_s` is a number of seconds and `served_by` a text, or absent")
    failure = Failure(kind="invalid", reason="recorded without an answer") if text is None else None
    return Completion(
        text=text, failure=failure, latency_s=latency_s, served_by=served_by, usage=_usage(row.get("usage"), where)
    )


def _usage(usage: Any, where: str) -> Usage | None:
    if usage is None:
        return None
    try:
        return Usage(prompt_tokens=int(usage["prompt_tokens"]), completion_tokens=int(usage["completion_tokens"]))
    except (TypeError, KeyError, ValueError):
        raise DataError(f"{where}: `usage` holds prompt_tokens and completion_tokens, or is absent") from None


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)


def _text_key(text: str) -> str:
    return f"prompt:{' '.join(text.split())}"


def _conversation_key(turns: Iterable[Mapping[str, str]]) -> str:
    """Of the turns other than the system's: the same question under another system prompt is the same row."""
    dialogue = [[turn["role"], " ".join(turn["content"].split())] for turn in turns if turn["role"] != "system"]
    return f"prompt:{json.dumps(dialogue)}"
