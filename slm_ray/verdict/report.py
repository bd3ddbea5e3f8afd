"""Answers to a report: run metrics, latency, usage, failures and issues per model, and the rows behind them.

Same examples and answers, same dictionaries in the same order. Calls no model and writes no file. Every model is scored
on every example: a failed call scores like an invalid answer and is counted by kind besides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from slm_ray.corpus.render import digest
from slm_ray.corpus.tracks import Track, defined, definition
from slm_ray.corpus.tracks import track as track_named
from slm_ray.corpus.unicode_text import question, words
from slm_ray.scoring import Answered, score, score_rows, summarise
from slm_ray.scoring.breakdown import breakdown
from slm_ray.scoring.scorer import means
from slm_ray.scoring.similarity import METRICS as SIMILARITIES
from slm_ray.types import Completion, Example, RowScore
from slm_ray.verdict.scored import Parts, ScoredRows
from slm_ray.verdict.service import Service

Answers = Mapping[str, Mapping[str, Completion]]
ScoreAll = Callable[[Track, Iterable[Answered]], Iterable[RowScore]]
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
) -> tuple[dict[str, Any], ScoredRows]:
    """(report, score rows) of all models over all examples.

    `answers[spec][example_id]` holds every model's completion; answers to other ids are ignored. `trained_on[spec]` is
    how many of the examples the model's adapter was trained on (0 when not named). `similar` adds BERTScore and embedding
    cosine; `score_all` may share the work among processes. `again[spec]` holds the answers of further repeats: they give
    `noise` and change no other figure. Latencies are seconds over answered rows, None when there are none. ValueError
    when an example has no answer: an unfinished run has no report. Answers are taken one by one, in the order of the
    examples, and again for the rows, which are made as they are asked for; only `similar` needs all texts at once.
    """
    if not examples:
        raise ValueError("a report needs at least one example")
    models: dict[str, Any] = {}
    rows: dict[str, list[RowScore]] = {}
    tags = {example.id: example.tags for example in examples}
    lengths = {example.id: len(words(question(example))) for example in examples}
    for spec, given in answers.items():
        service = Service()
        parts = Parts()
        scored = [parts.lean(row) for row in score_all(track, _answered(spec, examples, given, service))]
        metrics = summarise(track, scored)
        if similar is not None:
            texts = [given[example.id].text for example in examples]
            scored = similar(scored, texts, [example.target for example in examples])
            metrics |= means(*SIMILARITIES)(scored, track)
        rows[spec] = scored
        models[spec] = {
            "n": len(examples),
            "metrics": metrics,
            **service.figures(),
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
    }, ScoredRows(examples, answers, rows)


def noise(track: Track, examples: Sequence[Example], repeats: Sequence[Mapping[str, Completion]]) -> dict[str, Any]:
    """How far one model agrees with itself: the same rows asked several times.

    `agreement` is the share of rows whose deciding score is the same every time, `same_text` that of rows whose answer
    is; `primary` is the deciding metric of every repeat.
    """
    scored: list[list[RowScore]] = [[] for _ in repeats]
    same = same_text = 0
    parts = Parts()
    for row in examples:
        texts = [given[row.id].text for given in repeats]
        judged = [parts.lean(score(track, row.id, text, row.target)) for text in texts]
        same += len({one.value(track.primary) for one in judged}) == 1
        same_text += len(set(texts)) == 1
        for found, one in zip(scored, judged, strict=True):
            found.append(one)
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


def _answered(
    spec: str, examples: Sequence[Example], given: Mapping[str, Completion], service: Service
) -> Iterator[Answered]:
    """The answers as scorers take them, each counted as it goes by; ValueError at the end when some are missing."""
    missing = []
    for row in examples:
        answer = given.get(row.id)
        if answer is None:
            missing.append(row.id)
            continue
        service.add(answer)
        yield row.id, answer.text, row.target
    if missing:
        raise ValueError(f"{spec}: {len(missing)} of {len(examples)} examples have no answer, first {missing[0]!r}")


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))
