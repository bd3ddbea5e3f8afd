"""One model's errors as a report carries them: worst slices, typical errors, worst rows, and the table of its labels.

The size is bounded whatever the rows: a tag of thousands of values shows its worst ones, a set of hundreds of labels its
most frequent ones, and both say how many there are. The same rows give the same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from slm_ray.corpus.tracks import Track
from slm_ray.records import Breakdown, ErrorGroup, LabelFigures, LabelTable, SliceMetrics, TagSlices, WorstRow
from slm_ray.scoring.analysis import Tags, typical_errors
from slm_ray.scoring.labels import OUTSIDE, class_table
from slm_ray.scoring.run import summarise
from slm_ray.scoring.scorer import mean
from slm_ray.scoring.strip import NOTES
from slm_ray.types import RowScore

LENGTH = "question words"
SLICE_ROWS = 5
SLICES_PER_TAG = 10
TAGS = 12
WORST_ROWS = 10
LABELS = 100
_PARTS = 4


def breakdown(track: Track, rows: Sequence[RowScore], tags: Tags, words: Mapping[str, int]) -> Breakdown:
    """What is wrong with the answers behind `rows`; `tags` and `words` (of the question) are by example id.

    `slices`: per tag, and for the length of the question, the values on at least SLICE_ROWS rows with the lowest
    primary metric. `errors`: the largest groups of wrong rows with one issue (and one tool or label), with the most
    typical ids. `worst`: the lowest rows. `stripped`: how many answers needed what the track strips. `labels`, where
    the track classifies: figures per label, and the confusion matrix without its zeros, expected label first.
    """
    return Breakdown(
        slices=(*_slices(track, rows, tags), *_by_length(track, rows, words)),
        errors=_errors(track, rows, tags),
        worst=_worst(track, rows),
        stripped=dict(sorted(Counter(note for row in rows for note in row.issues if note in NOTES).items())),
        labels=_labels(track, rows) if "classify" in track.scorers else None,
    )


def _slices(track: Track, rows: Sequence[RowScore], tags: Tags) -> list[TagSlices]:
    groups: dict[str, dict[str, list[RowScore]]] = {}
    for row in rows:
        for tag, value in tags.get(row.example_id, {}).items():
            groups.setdefault(tag, {}).setdefault(value, []).append(row)
    # A tag that few rows share a value of (an id, a date) tells nothing.
    telling = {tag: values for tag, values in sorted(groups.items()) if _large(values) and len(values) > 1}
    return [
        TagSlices(tag=tag, values=len(values), worst=tuple(_ranked(track, _large(values))))
        for tag, values in list(telling.items())[:TAGS]
    ]


def _large(values: Mapping[str, list[RowScore]]) -> dict[str, list[RowScore]]:
    return {value: rows for value, rows in values.items() if len(rows) >= SLICE_ROWS}


def _ranked(track: Track, values: Mapping[str, list[RowScore]]) -> list[SliceMetrics]:
    primary = {value: mean([row.value(track.primary) for row in rows]) for value, rows in values.items()}
    scored = [value for value in values if primary[value] is not None]
    worst = sorted(scored, key=lambda value: (primary[value], -len(values[value]), value))[:SLICES_PER_TAG]
    return [_slice(track, value, values[value]) for value in worst]


def _slice(track: Track, value: str, rows: Sequence[RowScore]) -> SliceMetrics:
    metrics = summarise(track, rows)
    named = dict.fromkeys((track.primary, *track.core))
    return SliceMetrics(value=value, n=len(rows), metrics={name: metrics[name] for name in named if name in metrics})


def _by_length(track: Track, rows: Sequence[RowScore], words: Mapping[str, int]) -> list[TagSlices]:
    """The rows in four parts of about the same size, by the length of their question; equal lengths stay together."""
    lengths = sorted(words[row.example_id] for row in rows)
    edges = sorted({lengths[len(lengths) * part // _PARTS] for part in range(1, _PARTS)}) if lengths else []
    parts: dict[int, list[RowScore]] = {}
    for row in rows:
        parts.setdefault(sum(words[row.example_id] >= edge for edge in edges), []).append(row)
    if len(parts) < 2:
        return []
    found = []
    for _, part in sorted(parts.items()):
        inside = [words[row.example_id] for row in part]
        found.append(_slice(track, f"{min(inside)} to {max(inside)}", part))
    return [TagSlices(tag=LENGTH, values=len(found), worst=tuple(found))]


def _errors(track: Track, rows: Sequence[RowScore], tags: Tags) -> tuple[ErrorGroup, ...]:
    named = next((tag for tag in ("tool", "label") if any(tag in found for found in tags.values())), None)
    found = [
        group
        for tag in ("", *([named] if named else []))
        for group in typical_errors(rows, tags, primary=track.primary, tag=tag)
    ]
    return tuple(
        ErrorGroup(issue=group.issue, tag=group.tag, value=group.value, n=group.n, examples=group.typical)
        for group in found
    )


def _worst(track: Track, rows: Sequence[RowScore]) -> tuple[WorstRow, ...]:
    scored = [(value, row) for row in rows if (value := row.value(track.primary)) is not None and value < 1]
    # Among equals the row with the lowest scores overall is the worse one, then its id decides.
    lowest = sorted(scored, key=lambda item: (item[0], _overall(item[1]), item[1].example_id))[:WORST_ROWS]
    return tuple(WorstRow(id=row.example_id, score=value, issues=row.issues) for value, row in lowest)


def _overall(row: RowScore) -> float:
    return mean([score.value for score in row.scores]) or 0.0


def _labels(track: Track, rows: Sequence[RowScore]) -> LabelTable:
    table = class_table(rows, track.labels)
    names = [figures.label for figures in table.classes]
    shown = _most_frequent(zip(names, (figures.support for figures in table.classes), strict=True))
    confusion = {
        name: {given: n for given, n in zip((*names, OUTSIDE), counts, strict=True) if n}
        for name, counts in zip(names, table.confusion, strict=True)
        if name in shown
    }
    return LabelTable(
        count=len(names),
        outside=sum(OUTSIDE in row.issues for row in rows),
        classes=tuple(LabelFigures(**asdict(figures)) for figures in table.classes if figures.label in shown),
        confusion=confusion,
    )


def _most_frequent(support: Iterable[tuple[str, int]]) -> set[str]:
    ranked = sorted(support, key=lambda item: (-item[1], item[0]))
    return {name for name, _ in ranked[:LABELS]}
