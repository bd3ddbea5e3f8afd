"""Answers to a report: run metrics, latency, usage, failures and issues per model, and the rows behind them.

Same examples and answers, same report. Calls no model and writes no file. Every model is scored on every example: a failed
call scores like an invalid answer and is counted by kind besides. What many rows have in common is held once and a row is
made when it is asked for, so that a hundred thousand answers are read again from where they are kept rather than held.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

from slm_ray.corpus.render import digest, prompt_hash
from slm_ray.corpus.tracks import Track, definition
from slm_ray.corpus.unicode_text import question, words
from slm_ray.costs.call_stats import CallStats
from slm_ray.records import AnswerResult, ExampleSet, ModelReport, Noise, Report, RowResult
from slm_ray.scoring import Answered, score, score_rows, summarise
from slm_ray.scoring.breakdown import breakdown
from slm_ray.scoring.scorer import means
from slm_ray.scoring.similarity import METRICS as SIMILARITIES
from slm_ray.types import Completion, Example, ModelFacts, RowScore

Answers = Mapping[str, Mapping[str, Completion]]
ScoreAll = Callable[[Track, Iterable[Answered]], Iterable[RowScore]]
Similar = Callable[[Sequence[RowScore], Sequence[str | None], Sequence[str]], list[RowScore]]


_NO_FACTS: Mapping[str, str | float] = {}


class SharedParts:
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


class ScoredRows(Sequence[RowResult]):
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
    def __getitem__(self, at: int) -> RowResult: ...
    @overload
    def __getitem__(self, at: slice) -> list[RowResult]: ...
    def __getitem__(self, at: int | slice) -> RowResult | list[RowResult]:
        if isinstance(at, slice):
            return [self[place] for place in range(*at.indices(len(self)))]
        example = self._examples[at]
        return RowResult(
            id=example.id,
            prompt_hash=prompt_hash(example.prompt),
            prompt=example.prompt.messages,
            target=example.target,
            tags=dict(sorted(example.tags.items())),
            models={
                spec: _result(self._answers[spec][example.id], rows[at])
                for spec, rows in self._scored.items()
                if at < len(rows)
            },
            group=example.group,
        )


def _result(answer: Completion, score: RowScore) -> AnswerResult:
    return AnswerResult(
        text=answer.text,
        failure=answer.failure,
        scores={metric.name: metric.value for metric in score.scores},
        counts=score.counts,
        issues=score.issues,
        facts=score.facts,
        latency_s=answer.latency_s,
        first_token_s=answer.first_token_s,
        logprob=answer.logprob,
        usage=answer.usage,
        attempts=answer.attempts,
    )


def build(
    track: Track,
    examples: Sequence[Example],
    answers: Answers,
    *,
    facts: Mapping[str, ModelFacts],
    trained_on: Mapping[str, int] | None = None,
    similar: Similar | None = None,
    score_all: ScoreAll = score_rows,
    again: Mapping[str, Sequence[Mapping[str, Completion]]] | None = None,
    asked: Mapping[str, int] | None = None,
) -> tuple[Report, ScoredRows]:
    """(report, score rows) of all models over all examples.

    `answers[spec][example_id]` holds every model's completion; answers to other ids are ignored. `facts[spec]` are what its provider knows of it, `trained_on[spec]` is
    how many of the examples the model's adapter was trained on (0 when not named). `similar` adds BERTScore and embedding
    cosine; `score_all` may share the work among processes. `again[spec]` holds the answers of further repeats: they give
    `noise` and change no other figure. `asked[spec]` is how many of the examples, from the first on, a model is taken by: all
    where it is not named. Latencies are seconds over answered rows, None when there are none. ValueError
    when an example has no answer: an unfinished run has no report. Answers are taken one by one, in the order of the
    examples, and again for the rows, which are made as they are asked for; only `similar` needs all texts at once.
    """
    if not examples:
        raise ValueError("a report needs at least one example")
    models: dict[str, ModelReport] = {}
    rows: dict[str, list[RowScore]] = {}
    tags = {example.id: example.tags for example in examples}
    lengths = {example.id: len(words(question(example))) for example in examples}
    for spec, given in answers.items():
        own = examples[: (asked or {}).get(spec)]
        stats = CallStats()
        shared = SharedParts()
        scored = [shared.lean(row) for row in score_all(track, _answered(spec, own, given, stats))]
        metrics = summarise(track, scored)
        if similar is not None:
            texts = [given[example.id].text for example in own]
            scored = similar(scored, texts, [example.target for example in own])
            metrics |= means(*SIMILARITIES)(scored, track)
        rows[spec] = scored
        repeats = (again or {}).get(spec)
        models[spec] = stats.report(
            facts[spec],
            metrics=metrics,
            issues=_counted(issue for judged in scored for issue in judged.issues),
            analysis=breakdown(track, scored, tags, lengths),
            trained_on=(trained_on or {}).get(spec, 0),
            noise=noise(track, own, [given, *repeats]) if repeats else None,
        )
    report = Report(
        track=track.name,
        track_definition=definition(track),
        examples=ExampleSet(n=len(examples), digest=digest(examples)),
        models=models,
    )
    return report, ScoredRows(examples, answers, rows)


def noise(track: Track, examples: Sequence[Example], repeats: Sequence[Mapping[str, Completion]]) -> Noise:
    """How far one model agrees with itself: the same rows asked several times."""
    scored: list[list[RowScore]] = [[] for _ in repeats]
    same = same_text = 0
    shared = SharedParts()
    for row in examples:
        texts = [given[row.id].text for given in repeats]
        judged = [shared.lean(score(track, row.id, text, row.target)) for text in texts]
        same += len({one.value(track.primary) for one in judged}) == 1
        same_text += len(set(texts)) == 1
        for found, one in zip(scored, judged, strict=True):
            found.append(one)
    return Noise(
        repeats=len(repeats),
        agreement=same / len(examples),
        same_text=same_text / len(examples),
        primary=tuple(summarise(track, rows)[track.primary] for rows in scored),
    )


def _answered(
    spec: str, examples: Sequence[Example], given: Mapping[str, Completion], stats: CallStats
) -> Iterator[Answered]:
    """The answers as scorers take them, each counted as it goes by; ValueError at the end when some are missing."""
    missing = []
    for row in examples:
        answer = given.get(row.id)
        if answer is None:
            missing.append(row.id)
            continue
        stats.add(answer)
        yield row.id, answer.text, row.target
    if missing:
        raise ValueError(f"{spec}: {len(missing)} of {len(examples)} examples have no answer, first {missing[0]!r}")


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))
