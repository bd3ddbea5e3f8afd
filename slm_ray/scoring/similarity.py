"""Meaning against meaning: BERTScore and the cosine of mean vectors, from the token vectors of any encoder.

Pure arithmetic on arrays of (tokens, dim); who encodes is the caller's choice. BERTScore is that of Zhang et al. 2020:
every token is matched with the most similar one of the other text by cosine, precision over the answer's tokens, recall
over the reference's, every token counting alike. It is not rescaled by a baseline, so unrelated texts do not score 0. It is the paper's formula, not
the figure of the `bert-score` package to the last digit: that one also lets a token match the other text's special tokens
([CLS], [SEP]), which are no words and are left out here, so its values are a little higher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from slm_ray.scoring.scorer import as_scores
from slm_ray.types import RowScore

METRICS = ("bert_precision", "bert_recall", "bert_f1", "mean_cosine")

Vectors = NDArray[np.floating]
Encode = Callable[[Sequence[str]], list[Vectors]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Similarity:
    """BERTScore and the cosine of the mean vectors, each in [-1, 1]."""

    precision: float
    recall: float
    f1: float
    cosine: float


def similarity(given: Vectors, wanted: Vectors) -> Similarity | None:
    """Compare an answer's token vectors with the reference's, both (tokens, dim).

    None when the reference has no tokens; all 0 when only the answer has none. A vector of zeros is similar to nothing.
    """
    if not len(wanted):
        return None
    if not len(given):
        return Similarity(precision=0.0, recall=0.0, f1=0.0, cosine=0.0)
    cosines = _unit(given) @ _unit(wanted).T
    precision, recall = (_clipped(float(cosines.max(axis=axis).mean())) for axis in (1, 0))
    f1 = 2 * precision * recall / (precision + recall) if precision > 0 and recall > 0 else 0.0
    means = _unit(np.stack([given.mean(axis=0), wanted.mean(axis=0)]))
    return Similarity(precision=precision, recall=recall, f1=f1, cosine=_clipped(float(means[0] @ means[1])))


def with_similarity(
    rows: Sequence[RowScore],
    predictions: Sequence[str | None],
    references: Sequence[str],
    encode: Encode,
) -> list[RowScore]:
    """The rows with `METRICS` added, in order; a prediction of None is a failed call and scores 0.

    `encode` gives each text's token vectors, and is called twice: for the answers there are, and for the references,
    each distinct text once. Values below 0 are 0, since a score is in [0, 1]. Run metrics are means of them.
    """
    wanted, given = _each(references, encode), _each([text for text in predictions if text is not None], encode)
    found = []
    for row, text, reference in zip(rows, predictions, references, strict=True):
        right = wanted[reference]
        left = right[:0] if text is None else given[text]
        alike = similarity(left, right)
        found.append(replace(row, scores=(*row.scores, *as_scores(_values(alike)))))
    return found


def _values(found: Similarity | None) -> dict[str, float | None]:
    if found is None:
        return dict.fromkeys(METRICS)
    values = found.precision, found.recall, found.f1, found.cosine
    return {name: max(0.0, value) for name, value in zip(METRICS, values, strict=True)}


def _each(texts: Sequence[str], made: Callable[[Sequence[str]], list[Vectors]]) -> dict[str, Vectors]:
    distinct = list(dict.fromkeys(texts))
    return dict(zip(distinct, made(distinct), strict=True)) if distinct else {}


def _unit(vectors: Vectors) -> Vectors:
    vectors = np.asarray(vectors, dtype=np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units: Vectors = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return units


def _clipped(value: float) -> float:
    # The cosine of a vector with itself may be a hair above 1.
    return max(-1.0, min(1.0, value))
