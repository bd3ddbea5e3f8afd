"""The classify track: one label of a closed set, per row, and the confusion of a run.

A text is a label when both are equal after normalisation: case folded, white space collapsed, then a final full stop
and one pair of surrounding quotes taken off. Nothing is searched for inside a sentence. Any other answer, and a failed
call, is `outside_labels`: wrong, and in a column of its own. The set is the track's; a track without labels takes those
that the references of the run have. scikit-learn does the arithmetic; what it cannot divide is 0.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slm_ray.corpus.tracks import Track
from slm_ray.errors import ConfigError
from slm_ray.scoring.scorer import Metrics, as_scores, mean
from slm_ray.types import RowScore

METRICS = (
    "accuracy", "in_labels", "macro_precision", "macro_recall", "macro_f1", "micro_precision", "micro_recall",
    "micro_f1", "weighted_precision", "weighted_recall", "weighted_f1",
)  # fmt: skip
OUTSIDE = "outside_labels"
MAX_LABEL = 200  # characters; a longer answer to a track without labels is no label
_QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "«": "»"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassFigures:
    """How one label fared: `support` rows expect it."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassTable:
    """Figures per label, and the confusion matrix: a row per expected label, a column per given one.

    The last column of `confusion` counts the answers outside the labels.
    """

    classes: tuple[ClassFigures, ...]
    confusion: tuple[tuple[int, ...], ...]


def normalise(text: str) -> str:
    """The text as labels are compared: `" "Yes." "` and `yes` are the same."""
    found = " ".join(text.split()).casefold().removesuffix(".").rstrip()
    if len(found) > 1 and _QUOTES.get(found[0]) == found[-1]:
        found = found[1:-1].strip().removesuffix(".").rstrip()
    return found


def check(track: Track) -> None:
    """ConfigError when two of the track's labels are the same after normalisation."""
    _known(track.name, track.labels)


def score(example_id: str, prediction: str | None, target: str, track: Track) -> RowScore:
    """Score one answer; `prediction` None is a failed call and no label.

    Both metrics are None where the target is no label of the track. Without a set, `in_labels` is None and only a
    run can tell it. The labels found are facts, spelled as in the track, or normalised where it has none.
    """
    known = _known(track.name, track.labels)
    given, wanted = _label(prediction, known), _label(target, known)
    correct = None if wanted is None else float(given == wanted)
    within = None if wanted is None or not known else float(given is not None)
    issues = ("reference_outside_labels",) * (wanted is None)
    if given is None:
        issues += (OUTSIDE,)
    elif correct == 0:
        issues += ("wrong_label",)
    found = {"predicted_label": given, "expected_label": wanted}
    return RowScore(
        example_id=example_id,
        scores=as_scores({"accuracy": correct, "in_labels": within}),
        issues=issues,
        facts={name: label for name, label in found.items() if label is not None},
    )


def summarise(rows: Sequence[RowScore], track: Track) -> Metrics:
    """Run metrics over the rows whose target is a label.

    Averages are over all labels of the set, with 0 for those that neither side has. An answer outside the set is no
    prediction of any label: it lowers recall (the micro one is the accuracy) and leaves precision alone.
    """
    labels, expected, given = _indices(rows, track.labels)
    if not expected:
        return dict.fromkeys(METRICS)
    found: Metrics = {
        "accuracy": mean([row.value("accuracy") for row in rows]),
        "in_labels": sum(label < len(labels) for label in given) / len(given),
    }
    for average in ("macro", "micro", "weighted"):
        *figures, _ = _figures(expected, given, len(labels), average)
        found |= {f"{average}_{name}": float(x) for name, x in zip(("precision", "recall", "f1"), figures, strict=True)}
    return found


def class_table(rows: Sequence[RowScore], labels: Sequence[str]) -> ClassTable:
    """Figures per label and the confusion matrix of rows that `score` made; no `labels` means those of the references."""
    from sklearn.metrics import confusion_matrix  # takes a second to import

    names, expected, given = _indices(rows, labels)
    if not expected:
        empty = (0,) * (len(names) + 1)
        classes = tuple(ClassFigures(label=name, precision=0.0, recall=0.0, f1=0.0, support=0) for name in names)
        return ClassTable(classes=classes, confusion=(empty,) * len(names))
    precision, recall, f1, support = _figures(expected, given, len(names), None)
    counts = confusion_matrix(expected, given, labels=range(len(names) + 1))[: len(names)]
    classes = tuple(
        ClassFigures(label=name, precision=float(p), recall=float(r), f1=float(f), support=int(n))
        for name, p, r, f, n in zip(names, precision, recall, f1, support, strict=True)
    )
    return ClassTable(classes=classes, confusion=tuple(tuple(int(count) for count in row) for row in counts))


@functools.lru_cache(maxsize=64)
def _known(track: str, labels: tuple[str, ...]) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for label in labels:
        same = found.setdefault(normalise(label), label)
        if same is not label:
            raise ConfigError(
                f"track {track}: labels {same!r} and {label!r} are the same to a scorer; drop one of them"
            )
    return found


def _label(text: str | None, known: Mapping[str, str]) -> str | None:
    if text is None:
        return None
    label = normalise(text)
    return known.get(label) if known else label if 0 < len(label) <= MAX_LABEL else None


def _indices(rows: Sequence[RowScore], labels: Sequence[str]) -> tuple[list[str], list[int], list[int]]:
    """(labels, expected, given) as places in `labels`, one past its end for an answer outside; scored rows only."""
    scored = [row.facts for row in rows if "expected_label" in row.facts]
    names = list(labels) or sorted({str(facts["expected_label"]) for facts in scored})
    place = {name: index for index, name in enumerate(names)}
    expected = [place[str(facts["expected_label"])] for facts in scored]
    return names, expected, [place.get(str(facts.get("predicted_label", OUTSIDE)), len(names)) for facts in scored]


def _figures(expected: Sequence[int], given: Sequence[int], count: int, average: str | None) -> Any:
    """scikit-learn's (precision, recall, F1, support) over the labels 0 to `count` - 1."""
    from sklearn.metrics import precision_recall_fscore_support  # takes a second to import

    return precision_recall_fscore_support(expected, given, labels=range(count), average=average, zero_division=0.0)
