"""What a judge's text is worth, and its agreement with people against hand-made figures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_ray.scoring.judge import (
    UNREADABLE,
    agreement,
    both_orders,
    grade,
    grade_prompt,
    pair_prompt,
    preference,
    score_grade,
    score_preference,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is right.\nScore: 7", 7), ("**Score:** 3/7", 3), ("score = 5.", 5), ("4", 4), (" 6/7 ", 6),
        ("Score: 8", None), ("Score: 0", None), ("Score: 3\nScore: 5", None), ("Score: 3\nScore: 3", 3),
        ("I give 5 points", None), ("", None), (None, None), ("Score: N", None), ("Score: 55", None),
    ],
)  # fmt: skip
def test_a_grade_is_read_or_it_is_not(text: str | None, expected: int | None) -> None:
    assert grade(text) == expected
    row = score_grade("1", text, "-")
    assert row.value("grade") == (None if expected is None else (expected - 1) / 6)
    assert row.issues == (() if expected is not None else (UNREADABLE,))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A is longer.\nVerdict: A", 1.0), ("Verdict: **B**", 0.0), ("verdict: TIE", 0.5), ("b", 0.0),
        ("Verdict: A\nVerdict: B", None), ("A or B", None), ("A is better than B", None), (None, None),
    ],
)  # fmt: skip
def test_a_verdict_is_read_or_it_is_not(text: str | None, expected: float | None) -> None:
    assert preference(text) == expected
    assert score_preference("1", text, "-").value("first_wins") == expected


def test_a_judge_that_only_looks_at_the_place_gives_a_tie() -> None:
    assert both_orders(preference("A"), preference("A")) == 0.5
    assert both_orders(preference("A"), preference("B")) == 1.0
    assert both_orders(preference("tie"), preference("A")) == 0.25
    assert both_orders(None, preference("A")) is None


def test_prompts_hold_everything_the_judge_needs() -> None:
    text = grade_prompt("QUESTION", "ANSWER", "REFERENCE", "RUBRIC").messages[-1].content
    assert [part for part in ("QUESTION", "REFERENCE", "ANSWER", "RUBRIC", "Score: N") if part not in text] == []
    assert "Reference" not in grade_prompt("Q", "A", None, "R").messages[-1].content
    swapped = pair_prompt("Q", "TWO", "ONE", None, "R").messages[-1].content
    assert swapped.index("TWO") < swapped.index("ONE")


def test_agreement_by_hand() -> None:
    pairs = [
        ("Score: 1", "1"),
        ("Score: 2", "3"),
        ("Score: 6", "5"),
        ("Score: 7", "7"),
        ("no idea", "4"),
        ("Score: 5", "-"),
    ]
    found = agreement([score_grade(str(i), judged, human) for i, (judged, human) in enumerate(pairs)])
    assert (found.n, found.unread, found.spearman) == (4, 1, 1.0)
    # Quadratic weights: 1 - sum of squared differences over what the margins alone would give.
    observed = (0 + 1 + 1 + 0) / 4
    chance = sum((a - b) ** 2 for a in (1, 2, 6, 7) for b in (1, 3, 5, 7)) / 16
    assert found.kappa == pytest.approx(1 - observed / chance)
    assert agreement([score_grade("1", "Score: 3", "3")] * 3).kappa is None


@given(st.text())
def test_no_text_raises(text: str) -> None:
    assert grade(text) in (None, 1, 2, 3, 4, 5, 6, 7)
    assert preference(text) in (None, 0.0, 0.5, 1.0)
