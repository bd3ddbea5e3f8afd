"""Answers to a report: run metrics, latency, usage, failures and issues per model, and the rows behind them.

Same examples and answers, same dictionaries in the same order. Calls no model and writes no file. Every model is scored
on every example: a failed call scores like an invalid answer and is counted by kind besides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from slm_ray.corpus.letters import question, words
from slm_ray.corpus.render import digest, prompt_hash
from slm_ray.corpus.tracks import Track, defined, definition
from slm_ray.corpus.tracks import track as track_named
from slm_ray.scoring import Answered, score, score_rows, summarise
from slm_ray.scoring.breakdown import breakdown
from slm_ray.scoring.scorer import means
from slm_ray.scoring.similarity import METRICS as SIMILARITIES
from slm_ray.types import Completion, Example, RowScore, Usage

STAND_IN = "stand-in:"

Answers = Mapping[str, Mapping[str, Completion]]
ScoreAll = Callable[[Track, Sequence[Answered]], list[RowScore]]
Similar = Callable[[Sequence[RowScore], Sequence[str | None], Sequence[str]], list[RowScore]]


def build(
    track: Track,
    examples: Sequence[Example],
    answers: Answers,
    *,
    trained_on: Mapping[str, int],
    similar: Similar | None = None,
    score_all: ScoreAll = score_rows,
    again: Mapping[str, Sequence[Mapping[str, Completion]]] | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(report, score rows) of all models over all examples.

    `answers[spec][example_id]` holds every model's completion; answers to other ids are ignored. `trained_on[spec]` is
    how many of the examples the model's adapter was trained on (0 when not named). `similar` adds BERTScore and embedding
    cosine; `score_all` may share the work among processes. `again[spec]` holds the answers of further repeats: they give
    `noise` and change no other figure. Latencies are seconds over answered rows, None when there are none. ValueError
    when an example has no answer: an unfinished run has no report.
    """
    if not examples:
        raise ValueError("a report needs at least one example")
    models: dict[str, Any] = {}
    rows = [_row(example) for example in examples]
    tags = {example.id: example.tags for example in examples}
    lengths = {example.id: len(words(question(example))) for example in examples}
    for spec, given in answers.items():
        missing = [example.id for example in examples if example.id not in given]
        if missing:
            raise ValueError(f"{spec}: {len(missing)} of {len(examples)} examples have no answer, first {missing[0]!r}")
        ordered = [given[example.id] for example in examples]
        texts = [answer.text for answer in ordered]
        scored = score_all(
            track, [(row.id, text, row.reference) for row, text in zip(examples, texts, strict=True)]
        )  # fmt: skip
        metrics = summarise(track, scored)
        if similar is not None:
            scored = similar(scored, texts, [example.reference for example in examples])
            metrics |= means(*SIMILARITIES)(scored, track)
        for row, answer, judged in zip(rows, ordered, scored, strict=True):
            row["models"][spec] = _answer(answer, judged)
        models[spec] = {
            "n": len(examples),
            "metrics": metrics,
            **_service(ordered),
            "issues": _counted(issue for judged in scored for issue in judged.issues),
            "analysis": breakdown(track, scored, tags, lengths),
            "trained_on": trained_on.get(spec, 0),
        }
        if repeats := (again or {}).get(spec):
            models[spec]["noise"] = noise(track, examples, [given, *repeats])
    return {
        "track": track.name,
        "track_definition": definition(track),
        "examples": {"n": len(examples), "digest": digest(examples)},
        "models": models,
    }, rows


def noise(track: Track, examples: Sequence[Example], repeats: Sequence[Mapping[str, Completion]]) -> dict[str, Any]:
    """How far one model agrees with itself: the same rows asked several times.

    `agreement` is the share of rows whose deciding score is the same every time, `same_text` that of rows whose answer
    is; `primary` is the deciding metric of every repeat.
    """
    scored = [[score(track, row.id, given[row.id].text, row.reference) for row in examples] for given in repeats]
    same = sum(len({judged.value(track.primary) for judged in row}) == 1 for row in zip(*scored, strict=True))
    same_text = sum(len({given[row.id].text for given in repeats}) == 1 for row in examples)
    return {
        "repeats": len(repeats),
        "agreement": same / len(examples),
        "same_text": same_text / len(examples),
        "primary": [summarise(track, rows)[track.primary] for rows in scored],
    }


def track_in(report: Mapping[str, Any]) -> Track:
    """The track that a report carries; the one of the house with its name for a report from before it did."""
    plain = report.get("track_definition")
    return defined(plain) if plain else track_named(report["track"])


def _row(example: Example) -> dict[str, Any]:
    return {
        "id": example.id,
        "prompt_hash": prompt_hash(example.prompt),
        "prompt": example.prompt.as_dicts(),
        "reference": example.reference,
        "tags": dict(sorted(example.tags.items())),
        "models": {},
    }


def _answer(answer: Completion, score: RowScore) -> dict[str, Any]:
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
        "usage": usage and _tokens([usage]),
        "attempts": answer.attempts,
    }


def _service(answers: Sequence[Completion]) -> dict[str, Any]:
    """What the calls cost and how they went, whatever the answers say. Usage includes failed calls that were billed."""
    answered = [answer for answer in answers if answer.text is not None]
    latencies = [answer.latency_s for answer in answered if answer.latency_s is not None]
    firsts = [answer.first_token_s for answer in answered if answer.first_token_s is not None]
    served_by = sorted({answer.served_by for answer in answers if answer.served_by is not None})
    calls = sum(answer.attempts for answer in answers)
    return {
        "latency_s": _percentiles(latencies, 50, 95, 99),
        **({"first_token_s": _percentiles(firsts, 50, 95)} if firsts else {}),
        "usage": _tokens([answer.usage for answer in answers if answer.usage is not None]),
        "attempts": {
            "calls": calls,
            "retried": calls - len(answers),
            "unheard": sum(answer.unheard for answer in answers),
        },
        "failures": _counted(answer.failure.kind for answer in answers if answer.failure is not None),
        "served_by": served_by,
        "stand_in": any(name.startswith(STAND_IN) for name in served_by),
    }


def _tokens(usages: Sequence[Usage]) -> dict[str, int]:
    total = sum(usages, Usage())
    return {
        "prompt_tokens": total.prompt_tokens,
        "completion_tokens": total.completion_tokens,
        "cached_tokens": total.cached_tokens,
    }


def _percentiles(values: Sequence[float], *shares: int) -> dict[str, float | None]:
    return {f"p{share}": float(np.percentile(values, share)) if values else None for share in shares}


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))
