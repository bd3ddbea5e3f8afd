"""From an answer to its row's scores, and from rows to a run, by the scorers that a track names.

The same code for every model. The order of rows changes nothing, to the last bit. No metric of an empty run is defined.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from slm_ray.corpus.tracks import Track
from slm_ray.errors import ConfigError, choices
from slm_ray.scoring import structured, toolcall
from slm_ray.scoring.items import ratios
from slm_ray.types import RowScore

Metrics = dict[str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """One way to judge answers.

    `score(example_id, prediction, reference, track)` judges a row; a `prediction` of None is a failed call. `summarise`
    gives the run's metrics, exactly those in `metrics`, in the order of a report.
    """

    metrics: tuple[str, ...]
    score: Callable[[str, str | None, str, Track], RowScore]
    summarise: Callable[[Sequence[RowScore]], Metrics]


def means(*names: str) -> Callable[[Sequence[RowScore]], Metrics]:
    """Run metrics that are means over rows, a row left out where its value is None.

    A value is None only where the *reference* lacks what the metric is about (for `args_partial_match`: a call without
    arguments): the same rows for every model. Invalid and failed answers hold 0s and stay in.
    """
    return lambda rows: {name: _mean(name, rows) for name in names}


def micro(precision: str, recall: str, f1: str) -> Callable[[Sequence[RowScore]], Metrics]:
    """Precision, recall and F1 from the summed (TP, FP, FN); precision is None when nothing was predicted in the run."""

    def summed(rows: Sequence[RowScore]) -> Metrics:
        shared, extra, missed = (sum(row.counts[i] for row in rows) for i in range(3))
        return dict(zip((precision, recall, f1), ratios((shared, extra, missed)), strict=True))

    return summed


def _scorer(
    score: Callable[[str, str | None, str], RowScore], metrics: tuple[str, ...], micro_metrics: tuple[str, str, str]
) -> Scorer:
    """Means over rows, but for three metrics of summed counts."""
    mean, summed = means(*metrics), micro(*micro_metrics)
    return Scorer(
        metrics=metrics,
        score=lambda example_id, prediction, reference, _: score(example_id, prediction, reference),
        summarise=lambda rows: mean(rows) | summed(rows),
    )


SCORERS: dict[str, Scorer] = {
    "structured": _scorer(
        structured.score,
        (
            "json_valid", "exact_match", "field_precision", "field_recall", "field_f1",
            "tool_name_accuracy", "query_preservation", "args_keys_match", "args_partial_match",
        ),
        ("field_precision", "field_recall", "field_f1"),
    ),
    "toolcall": _scorer(
        toolcall.score,
        ("valid_call", "name_match", "args_exact", "args_precision", "args_recall", "args_f1"),
        ("args_precision", "args_recall", "args_f1"),
    ),
}  # fmt: skip


def scorers(track: Track) -> list[Scorer]:
    """The scorers of a track; ConfigError lists the known ones."""
    for name in track.scorers:
        if name not in SCORERS:
            raise ConfigError(f"track {track.name}: unknown scorer {name!r}: {choices(name, SCORERS)}")
    return [SCORERS[name] for name in track.scorers]


def metrics(track: Track) -> tuple[str, ...]:
    """The names of all run metrics of a track, in the order of a report."""
    return tuple(name for scorer in scorers(track) for name in scorer.metrics)


def score(track: Track, example_id: str, prediction: str | None, reference: str) -> RowScore:
    """Judge one answer with every scorer of the track; `prediction` is None for a failed call.

    The scorers' scores, issues and facts are joined. Item counts are those of the one scorer that counts.
    """
    parts = [scorer.score(example_id, prediction, reference, track) for scorer in scorers(track)]
    return RowScore(
        example_id=example_id,
        scores=tuple(found for part in parts for found in part.scores),
        issues=tuple(issue for part in parts for issue in part.issues),
        counts=next((part.counts for part in parts if any(part.counts)), (0, 0, 0)),
        facts={name: value for part in parts for name, value in part.facts.items()},
    )


def summarise(track: Track, rows: Sequence[RowScore]) -> Metrics:
    """Run metrics by name, None where undefined."""
    return {name: value for scorer in scorers(track) for name, value in scorer.summarise(rows).items()}


def _mean(name: str, rows: Sequence[RowScore]) -> float | None:
    values = [value for row in rows if (value := row.value(name)) is not None]
    return math.fsum(values) / len(values) if values else None
