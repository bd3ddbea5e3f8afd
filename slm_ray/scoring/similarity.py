"""Meaning against meaning: BERTScore and the cosine of mean vectors, from the token vectors of any encoder.

Pure arithmetic on arrays of (tokens, dim); who encodes is the caller's choice. BERTScore is that of Zhang et al. 2020:
every token is matched with the most similar one of the other text by cosine, precision over the answer's tokens, recall
over the reference's. It is not rescaled by a baseline, so unrelated texts do not score 0. It is the paper's formula, not
the figure of the `bert-score` package to the last digit: that one also lets a token match the other text's special tokens
([CLS], [SEP]), which are no words and are left out here, so its values are a little higher.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from slm_ray.scoring.scorer import as_scores
from slm_ray.types import RowScore

METRICS = ("bert_precision", "bert_recall", "bert_f1", "mean_cosine")

Vectors = NDArray[np.floating]
Encode = Callable[[Sequence[str]], list[Vectors]]
TokenIds = Callable[[Sequence[str]], list[list[int]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Similarity:
    """BERTScore and the cosine of the mean vectors, each in [-1, 1]."""

    precision: float
    recall: float
    f1: float
    cosine: float


def similarity(
    given: Vectors, wanted: Vectors, given_weights: Vectors | None = None, wanted_weights: Vectors | None = None
) -> Similarity | None:
    """Compare an answer's token vectors with the reference's, both (tokens, dim); weights are one number per token.

    None when the reference has no tokens; all 0 when only the answer has none. A vector of zeros is similar to nothing.
    Weights (of `idf`) count in BERTScore only, and are those of equal tokens where they sum to 0.
    """
    if not len(wanted):
        return None
    if not len(given):
        return Similarity(precision=0.0, recall=0.0, f1=0.0, cosine=0.0)
    cosines = _unit(given) @ _unit(wanted).T
    precision, recall = _weighted(cosines.max(axis=1), given_weights), _weighted(cosines.max(axis=0), wanted_weights)
    f1 = 2 * precision * recall / (precision + recall) if precision > 0 and recall > 0 else 0.0
    means = _unit(np.stack([given.mean(axis=0), wanted.mean(axis=0)]))
    return Similarity(precision=precision, recall=recall, f1=f1, cosine=_clipped(float(means[0] @ means[1])))


def idf(references: Sequence[Sequence[Hashable]]) -> Mapping[Hashable, float]:
    """Weights of tokens by how few references have them: log((M + 1) / (n + 1)), as in the paper with plus-one smoothing.

    A token that is in no reference weighs log(M + 1), which is what `weights` gives it.
    """
    having = Counter(token for tokens in references for token in set(tokens))
    return {token: math.log((len(references) + 1) / (count + 1)) for token, count in having.items()}


def weights(tokens: Sequence[Hashable], idf_weights: Mapping[Hashable, float], references: int) -> Vectors:
    """The idf weight of each token, for a corpus of that many `references`."""
    return np.array([idf_weights.get(token, math.log(references + 1)) for token in tokens], dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Idf:
    """The weights of a run's tokens, told from all its references, and how texts become those tokens."""

    token_ids: TokenIds
    table: Mapping[Hashable, float]
    references: int

    def of(self, texts: Sequence[str]) -> list[Vectors]:
        """One weight per token of each text."""
        return [weights(tokens, self.table, self.references) for tokens in self.token_ids(texts)]


def idf_of(references: Sequence[str], token_ids: TokenIds) -> Idf:
    """The weights that the references of a whole run give; `token_ids` gives the tokens that the encoder's vectors are of."""
    return Idf(token_ids=token_ids, table=idf(token_ids(references)), references=len(references))


def with_similarity(
    rows: Sequence[RowScore],
    predictions: Sequence[str | None],
    references: Sequence[str],
    encode: Encode,
    idf_weights: Idf | None = None,
) -> list[RowScore]:
    """The rows with `METRICS` added, in order; a prediction of None is a failed call and scores 0.

    `encode` gives each text's token vectors, and is called twice: for the answers there are, and for the references,
    each distinct text once. Values below 0 are 0, since a score is in [0, 1]. Run metrics are means of them.
    """
    wanted, given = _each(references, encode), _each([text for text in predictions if text is not None], encode)
    heavy = _each([*wanted, *given], idf_weights.of) if idf_weights is not None else {}
    found = []
    for row, text, reference in zip(rows, predictions, references, strict=True):
        right = wanted[reference]
        left = right[:0] if text is None else given[text]
        alike = similarity(left, right, heavy.get(text or ""), heavy.get(reference))
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


def _weighted(values: Vectors, weights: Vectors | None) -> float:
    heavy = weights is not None and float(weights.sum()) > 0
    return _clipped(float(np.average(values, weights=weights if heavy else None)))


def _clipped(value: float) -> float:
    # The cosine of a vector with itself may be a hair above 1.
    return max(-1.0, min(1.0, value))
