"""N-grams that two sequences share, counted by numbers, against bags of slices."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from slm_ray.scoring.shared import characters, shared, tokens

TEXTS = st.text(alphabet="ab\ud800é\U0001f600", max_size=40)


def bags(given: str, wanted: str, order: int) -> int:
    left, right = (
        Counter(text[place : place + order] for place in range(len(text) - order + 1)) for text in (given, wanted)
    )
    return (left & right).total()


def of_tokens(answer: list[str], wanted: list[str], orders: int) -> list[int]:
    given_tokens, wanted_tokens = tokens(answer, wanted)
    return shared(given_tokens, wanted_tokens, orders)


@given(TEXTS, TEXTS)
def test_they_are_those_of_bags_of_slices(left: str, right: str) -> None:
    for answer, wanted in ((left, right), (left * 5, right * 4)):  # few are counted one by one, many by arrays
        expected = [bags(answer, wanted, order) for order in range(1, 7)]
        assert shared(characters(answer), characters(wanted), 6) == expected
        assert of_tokens(list(answer), list(wanted), 6) == expected


def test_a_gram_counts_as_often_as_both_have_it() -> None:
    assert of_tokens(["a", "b", "a", "b"], ["a", "b", "b"], 3) == [3, 1, 0]
    assert of_tokens([], ["a"], 2) == of_tokens(["a"], [], 2) == [0, 0]
