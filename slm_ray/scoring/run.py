"""From an answer to its row's scores, and from rows to a run, by the scorers that a track names.

The same code for every model. The order of rows changes nothing, to the last bit. No metric of an empty run is defined.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from slm_ray.corpus.tracks import Track
from slm_ray.errors import ConfigError, choices
from slm_ray.parallel import Executor, map_batches
from slm_ray.scoring import hermes, judge, labels, numeric, schema, structured, text, toolcall
from slm_ray.scoring.items import parse
from slm_ray.scoring.scorer import Metrics, Scorer, means, micro
from slm_ray.scoring.strip import strip
from slm_ray.types import RowScore

Answered = tuple[str, str | None, str]

_SLOW_LIKE_BYTES = 7  # read in the time that a slow scorer takes for a character: ten million are 15 s of one core


def _plain(score: Callable[[str, str | None, str], RowScore], *metrics: str) -> Scorer:
    """A scorer that needs nothing of the track, its run metrics means over rows."""
    return Scorer(
        metrics=metrics,
        score=lambda example_id, prediction, target, _: score(example_id, prediction, target),
        summarise=means(*metrics),
    )


def _scorer(
    score: Callable[[str, str | None, str], RowScore],
    metrics: tuple[str, ...],
    micro_metrics: tuple[str, str, str],
    *,
    read: Callable[[str | None], object],
    form: str,
    form_metric: str,
) -> Scorer:
    """Means over rows, but for three metrics of summed counts."""
    mean, summed = means(*metrics), micro(*micro_metrics)
    return Scorer(
        metrics=metrics,
        score=lambda example_id, prediction, target, _: score(example_id, prediction, target),
        summarise=lambda rows, track: mean(rows, track) | summed(rows, track),
        read=read,
        form=form,
        form_metrics=(form_metric,),
    )


SCORERS: dict[str, Scorer] = {
    "structured": _scorer(
        structured.score,
        (
            "json_valid", "exact_match", "field_precision", "field_recall", "field_f1",
            "tool_name_accuracy", "query_preservation", "args_keys_match", "args_partial_match",
        ),
        ("field_precision", "field_recall", "field_f1"),
        read=parse, form="strict JSON", form_metric="json_valid",
    ),
    "toolcall": _scorer(
        toolcall.score,
        ("valid_call", "name_match", "args_exact", "args_precision", "args_recall", "args_f1"),
        ("args_precision", "args_recall", "args_f1"),
        read=toolcall.read_call, form='one <tool_call name="…">{…}</tool_call>', form_metric="valid_call",
    ),
    "hermes": _scorer(
        hermes.score,
        ("valid_call", "name_match", "args_exact", "args_precision", "args_recall", "args_f1"),
        ("args_precision", "args_recall", "args_f1"),
        read=hermes.read_call, form='one <tool_call>{"name": …, "arguments": {…}}</tool_call>',
        form_metric="valid_call",
    ),
    "gsm8k": dataclasses.replace(
        _plain(numeric.score, *numeric.METRICS),
        read=numeric.read, form="an answer with a number",
    ),
    "classify": Scorer(
        metrics=labels.METRICS, score=labels.score, summarise=labels.summarise, check=labels.check,
    ),
    "text": Scorer(
        metrics=text.METRICS,
        score=lambda example_id, prediction, target, _: text.score(example_id, prediction, target),
        summarise=text.summarise,
        slow=True,
    ),
    "schema": Scorer(
        metrics=schema.METRICS,
        score=lambda example_id, prediction, _, track: schema.score(example_id, prediction, track),
        summarise=means(*schema.METRICS),
        check=schema.check,
        raw=True,
        form_metrics=("schema_valid",),
    ),
    "grade": _plain(judge.score_grade, "grade"),
    "preference": _plain(judge.score_preference, "first_wins"),
}  # fmt: skip


def scorers(track: Track) -> list[Scorer]:
    """The scorers of a track; ConfigError lists the known ones, or names a metric that two of them have."""
    for name in track.scorers:
        if name not in SCORERS:
            raise ConfigError(f"track {track.name}: unknown scorer {name!r}: {choices(name, SCORERS)}")
    found = [SCORERS[name] for name in track.scorers]
    names = [name for scorer in found for name in scorer.metrics]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(
            f"track {track.name}: the scorers {', '.join(track.scorers)} share the metric {min(twice)}; drop one of them"
        )
    return found


def check(track: Track) -> None:
    """ConfigError when the track cannot be scored: scorers, labels, answer schema. Scoring itself says the same."""
    for scorer in scorers(track):
        scorer.check(track)


def unreadable(track: Track, target: str) -> str | None:
    """What form a scorer of the track needs of the target, and it is not in; None when all can read it."""
    for scorer in scorers(track):
        if scorer.read is not None and scorer.read(target) is None:
            return scorer.form
    return None


def form_metrics() -> tuple[str, ...]:
    """The metrics of all scorers that judge an answer's form alone, without a target."""
    return tuple(dict.fromkeys(name for scorer in SCORERS.values() for name in scorer.form_metrics))


def metrics(track: Track) -> tuple[str, ...]:
    """The names of all run metrics of a track, in the order of a report."""
    return tuple(name for scorer in scorers(track) for name in scorer.metrics)


def row_metrics(track: Track) -> tuple[str, ...]:
    """Those of them that every row has a score for, which a paired decision can stand on."""
    return tuple(found.name for found in score(track, "", None, "").scores)


def score(track: Track, example_id: str, prediction: str | None, target: str) -> RowScore:
    """Judge one answer with every scorer of the track; `prediction` is None for a failed call.

    What the track names is stripped from the answer first, never from the target. The scorers' scores, issues and
    facts are joined. Item counts are those of the one scorer that counts.
    """
    stripped, notes = strip(prediction, track.strip)
    parts = [
        scorer.score(example_id, prediction if scorer.raw else stripped, target, track) for scorer in scorers(track)
    ]
    return RowScore(
        example_id=example_id,
        scores=tuple(found for part in parts for found in part.scores),
        issues=(*(issue for part in parts for issue in part.issues), *notes),
        counts=next((part.counts for part in parts if any(part.counts)), (0, 0, 0)),
        facts={name: value for part in parts for name, value in part.facts.items()},
    )


def score_rows(track: Track, rows: Iterable[Answered]) -> list[RowScore]:
    """`score` of many answers, each (example id, prediction, target), in order."""
    return [score(track, *row) for row in rows]


def score_all(track: Track, rows: Iterable[Answered], executor: Executor) -> Iterator[RowScore]:
    """The scores of the rows, in order: by `executor` where a slow scorer has much to read, else here, row by row."""
    if not any(scorer.slow for scorer in scorers(track)):
        yield from (score(track, *row) for row in rows)
        return
    answered = list(rows)
    characters = sum(len(text or "") + len(target) for _, text, target in answered)
    work = partial(_scores, track)
    yield from map_batches(executor, work, answered, like_bytes=characters * _SLOW_LIKE_BYTES, title="scoring")


def _scores(track: Track, rows: Sequence[Answered]) -> Iterator[RowScore]:
    yield from (score(track, *row) for row in rows)


def summarise(track: Track, rows: Sequence[RowScore]) -> Metrics:
    """Run metrics by name, None where undefined."""
    return {name: value for scorer in scorers(track) for name, value in scorer.summarise(rows, track).items()}
