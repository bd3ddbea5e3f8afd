"""The scored rows of a report in little room: what many rows have in common is held once, the rest is made when asked for.

A hundred thousand answers are read again from where they are kept rather than held. Pure: answers come as mappings, which
may read as they go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

from slm_ray.corpus.render import prompt_hash
from slm_ray.types import Completion, Example, RowScore, Usage

Row = dict[str, Any]
_NO_FACTS: Mapping[str, str | float] = {}


class Parts:
    """Scores, issues and counts that rows have in common."""

    def __init__(self) -> None:
        self._shared: dict[object, Any] = {}

    def lean(self, row: RowScore) -> RowScore:
        """An equal row whose parts are the same objects as those of earlier rows, where they are equal."""
        share = self._shared.setdefault
        return RowScore(
            example_id=row.example_id,
            scores=share(row.scores, row.scores),
            issues=share(row.issues, row.issues),
            counts=share(row.counts, row.counts),
            facts=row.facts or _NO_FACTS,
        )


class ScoredRows(Sequence[Row]):
    """The lines of `scores.jsonl`, in the order of the examples; a line is made anew each time it is asked for."""

    def __init__(
        self,
        examples: Sequence[Example],
        answers: Mapping[str, Mapping[str, Completion]],
        scored: Mapping[str, Sequence[RowScore]],
    ) -> None:
        self._examples = examples
        self._answers = answers
        self._scored = scored

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> list[Row]: ...
    def __getitem__(self, at: int | slice) -> Row | list[Row]:
        if isinstance(at, slice):
            return [self[place] for place in range(*at.indices(len(self)))]
        example = self._examples[at]
        return {
            "id": example.id,
            "prompt_hash": prompt_hash(example.prompt),
            "prompt": example.prompt.as_dicts(),
            "reference": example.target,
            "tags": dict(sorted(example.tags.items())),
            "models": {spec: _answer(self._answers[spec][example.id], rows[at]) for spec, rows in self._scored.items()},
        }


def tokens(usage: Usage) -> dict[str, int]:
    """Tokens as a report names them."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cached_tokens": usage.cached_tokens,
    }


def _answer(answer: Completion, score: RowScore) -> Row:
    failure, usage = answer.failure, answer.usage
    return {
        "text": answer.text,
        "failure": failure and {"kind": failure.kind, "reason": failure.reason, "status": failure.status},
        "scores": {metric.name: metric.value for metric in score.scores},
        "counts": list(score.counts),
        "issues": list(score.issues),
        **({"facts": dict(score.facts)} if score.facts else {}),
        "latency_s": answer.latency_s,
        "first_token_s": answer.first_token_s,
        "logprob": answer.logprob,
        "usage": usage and tokens(usage),
        "attempts": answer.attempts,
    }
