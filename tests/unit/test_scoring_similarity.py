"""BERTScore by hand and against a slow form of its definition; what vectors may and may not do to it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from slm_ray.scoring.similarity import METRICS, Similarity, Vectors, similarity, with_similarity
from slm_ray.types import RowScore, Score

VECTORS = st.integers(1, 6).flatmap(
    lambda rows: arrays(
        np.float32, (rows, 3), elements=st.floats(-4, 4, width=32).map(lambda x: x if abs(x) > 1e-3 else 0)
    )
)


def cosine(left: Vectors, right: Vectors) -> float:
    lengths = math.sqrt(float(left @ left)) * math.sqrt(float(right @ right))
    return float(left @ right) / lengths if lengths else 0.0


def matched(of: Vectors, among: Vectors) -> float:
    """One sum of the paper's equation: each token's closest one."""
    return sum(max(cosine(token, other) for other in among) for token in of) / len(of)


@settings(deadline=None)
@given(VECTORS, VECTORS)
def test_bertscore_is_its_definition(left: Vectors, right: Vectors) -> None:
    found = similarity(left, right)
    assert found is not None
    wide = left.astype(np.float64), right.astype(np.float64)
    assert found.precision == pytest.approx(matched(wide[0], wide[1]), abs=1e-9)
    assert found.recall == pytest.approx(matched(wide[1], wide[0]), abs=1e-9)
    assert found.cosine == pytest.approx(cosine(wide[0].mean(axis=0), wide[1].mean(axis=0)), abs=1e-4)


@settings(deadline=None)
@given(VECTORS, VECTORS)
def test_sides_mirror_each_other_and_scale_is_nothing(left: Vectors, right: Vectors) -> None:
    one, other, scaled = similarity(left, right), similarity(right, left), similarity(left * 8, right / 4)
    assert one is not None and other is not None and scaled is not None
    assert (one.precision, one.recall) == pytest.approx((other.recall, other.precision), abs=1e-12)
    assert (scaled.precision, scaled.recall, scaled.f1) == pytest.approx((one.precision, one.recall, one.f1), abs=1e-9)
    assert all(-1 <= value <= 1 for value in (one.precision, one.recall, one.f1, one.cosine))


def test_figures_by_hand() -> None:
    given_vectors = np.array([[1, 0], [0, 2], [3, 4]], dtype=np.float32)
    wanted = np.array([[1, 0]], dtype=np.float32)
    found = similarity(given_vectors, wanted)
    precision = (1 + 0 + 0.6) / 3
    mean = np.array([4 / 3, 2.0])
    assert found is not None and found.recall == 1.0
    assert (found.precision, found.f1) == pytest.approx((precision, 2 * precision / (precision + 1)))
    assert found.cosine == pytest.approx(mean[0] / math.hypot(*mean))


def test_opposed_and_empty_texts() -> None:
    one, none = np.array([[1.0, 0.0]]), np.zeros((0, 2))
    assert similarity(one, -one) == Similarity(precision=-1.0, recall=-1.0, f1=0.0, cosine=-1.0)
    assert similarity(none, one) == Similarity(precision=0.0, recall=0.0, f1=0.0, cosine=0.0)
    assert similarity(one, none) is None
    assert similarity(none, none) is None
    assert similarity(one * 0, one) == Similarity(precision=0.0, recall=0.0, f1=0.0, cosine=0.0)


def test_rows_gain_metrics_and_keep_what_they_had() -> None:
    asked: list[Sequence[str]] = []

    def letters(texts: Sequence[str]) -> list[Vectors]:
        """One vector per letter, its own direction for a and b, the opposite one for A and B."""
        asked.append(texts)
        axes = {"a": [1, 0], "b": [0, 1], "A": [-1, 0], "B": [0, -1]}
        return [np.array([axes[letter] for letter in text], dtype=np.float32).reshape(-1, 2) for text in texts]

    rows = [RowScore(example_id=str(i), scores=(Score(name="rouge_l", value=0.5),), issues=("x",)) for i in range(6)]
    found = with_similarity(rows, ["ab", "a", None, "A", "a", "ab"], ["ab", "b", "a", "a", "", "ab"], letters)
    assert [[row.value(name) for name in METRICS] for row in found] == [
        [1.0, 1.0, 1.0, pytest.approx(1.0)], [0.0] * 4, [0.0] * 4, [0.0] * 4, [None] * 4, [1.0, 1.0, 1.0, pytest.approx(1.0)],
    ]  # fmt: skip
    assert [(row.example_id, row.value("rouge_l"), row.issues) for row in found] == [
        (str(i), 0.5, ("x",)) for i in range(6)
    ]
    assert all(len(set(texts)) == len(texts) for texts in asked)  # the encoder sees no text twice in a call
    assert with_similarity([], [], [], letters) == []
