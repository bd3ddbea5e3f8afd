"""Duplicates: what counts as said before, and that hashing finds the pairs that comparing all of them finds."""

import csv
import math
import random
import time
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_ray.corpus.duplicates import buckets, exact, groups, near
from slm_ray.errors import ConfigError
from slm_ray.types import Example, Message, Prompt

BANKING = Path(__file__).parents[3] / "shared/data/banking77/train.csv"
WORDS = [f"w{number}" for number in range(400)]


def example(name: Any, question: Any, answer: Any = "yes", system: Any = "s") -> Any:
    turns = (Message(role="system", content=system), Message(role="user", content=question))
    return Example(id=str(name), prompt=Prompt(messages=turns), target=answer)


def asked(*questions: Any) -> Any:
    return [example(number, question) for number, question in enumerate(questions)]


def sentence(rng: Any, length: Any) -> Any:
    return rng.choices(WORDS, k=length)


def edited(rng: Any, words: Any, edits: Any) -> Any:
    words = list(words)
    for _ in range(edits):
        words[rng.randrange(len(words))] = rng.choice(WORDS)
    return words


def corpus(seed: Any, count: Any = 60) -> Any:
    """Sentences, some of them edited copies of earlier ones."""
    rng = random.Random(seed)
    found: list[list[str]] = []
    for _ in range(count):
        if found and rng.random() < 0.5:
            found.append(edited(rng, rng.choice(found), rng.randint(0, 3)))
        else:
            found.append(sentence(rng, rng.randint(20, 50)))
    return asked(*(" ".join(words) for words in found))


def by_hand(rows: Any, threshold: Any) -> Any:
    """The groups by comparing every pair: weighted Jaccard of word triples, written a second time."""
    triples = []
    for row in rows:
        words = row.prompt.messages[-1].content.split()
        triples.append({tuple(words[start : start + 3]) for start in range(len(words) - 2)})
    rows_with = Counter(triple for found in triples for triple in found)
    weight = {
        triple: 0.0 if count > max(len(rows) / 2, 4) else 1 - math.log(count) / math.log(1 + max(len(rows), 1000))
        for triple, count in rows_with.items()
    }
    near_to = {row: {row} for row in range(len(rows))}
    for left, right in combinations(range(len(rows)), 2):
        shared = sum(weight[triple] for triple in triples[left] & triples[right])
        if shared / sum(weight[triple] for triple in triples[left] | triples[right]) >= threshold - 1e-9:
            joined = near_to[left] | near_to[right]
            for row in joined:
                near_to[row] = joined
    return [min(near_to[row]) for row in range(len(rows))]


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9])
def test_hashing_finds_the_groups_that_comparing_every_pair_finds(threshold: Any) -> None:
    for seed in range(4):
        rows = corpus(seed)
        found = groups(rows, threshold=threshold)
        assert found == by_hand(rows, threshold)
        assert len(set(found)) < len(rows)


def test_groups_do_not_depend_on_the_order_of_the_rows() -> None:
    rows = corpus(7)
    places = list(range(len(rows)))
    random.Random(1).shuffle(places)
    found, shuffled = groups(rows), groups([rows[place] for place in places])
    together = {(a, b) for a, b in combinations(range(len(rows)), 2) if found[a] == found[b]}
    after = {
        tuple(sorted((places[a], places[b])))
        for a, b in combinations(range(len(rows)), 2)
        if shuffled[a] == shuffled[b]
    }
    assert together == after
    assert together


def test_the_pairs_that_hashing_proposes_do_not_depend_on_the_order_of_the_rows() -> None:
    hashes = [np.arange(start, start + 30) * 7919 % 65521 for start in range(0, 60, 5)]

    def proposed(rows: Any) -> Any:
        return {frozenset(pair) for bucket in buckets(rows, len(rows), 0.8, 42) for pair in combinations(bucket, 2)}

    found, last = proposed(hashes), len(hashes) - 1
    turned = proposed([row[::-1] for row in hashes[::-1]])
    assert {frozenset(last - row for row in pair) for pair in turned} == found
    assert 0 < len(found) < len(hashes) * (len(hashes) - 1) / 2


def test_many_equal_rows_are_one_group_soon() -> None:
    started = time.process_time()
    assert set(groups(asked(*["the same five words again"] * 8000))) == {0}
    assert time.process_time() - started < 10


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(alphabet="ab .?\n王ก", max_size=12), max_size=8))
def test_any_text_is_a_near_duplicate_of_itself(texts: Any) -> None:
    found = groups(asked(*texts, *texts))
    assert [found[place] == found[place + len(texts)] for place in range(len(texts))] == [True] * len(texts)
    assert all(first <= place and found[first] == first for place, first in enumerate(found))


def test_case_spacing_and_punctuation_do_not_tell_rows_apart_but_words_and_signs_do() -> None:
    same = asked("How much is the train to Bergen?", "how much, is the TRAIN to\nBergen")
    assert groups(same) == [0, 0]
    assert groups(asked("What is 31 + 4?", "What is 31 - 4?")) == [0, 1]
    assert groups(asked("乗り換えはどこですか", "乗り換えはどこですか。", "料金はいくらですか")) == [0, 0, 2]


def test_a_template_does_not_make_rows_alike() -> None:
    template = "Classify the message into one of " + " ".join(WORDS) + " message "
    rows = asked(*(template + " ".join(sentence(random.Random(seed), 12)) for seed in range(40)))
    assert groups(rows) == list(range(40))
    again = [*rows, example("again", rows[3].prompt.messages[-1].content + " please")]
    assert groups(again)[-1] == 3


def test_rows_of_template_alone_are_alike_only_when_they_are_equal() -> None:
    assert groups(asked(*["the very same words in each row"] * 30)) == [0] * 30


def test_a_description_that_many_rows_share_counts_less_than_the_request() -> None:
    rng = random.Random(3)
    tools = [" ".join(sentence(rng, 70)) for _ in range(10)]
    rows = asked(*(f"{tools[number % 10]} {' '.join(sentence(rng, 12))}" for number in range(400)))
    assert groups(rows) == list(range(400))


def test_the_whole_row_is_compared_when_rows_are_removed() -> None:
    question = "please tell me how much the day ticket to the old town costs"
    rows = [example(1, question, "four"), example(2, question, "no idea at all whatever you ask of me today, sorry")]
    assert groups(rows) == [0, 0]
    assert near(rows)[1].dropped == 0
    kept, step = near([*rows, example(3, question.upper(), "four.")])
    assert [row.id for row in kept] == ["1", "2"]
    assert (step.kept, step.dropped) == (2, 1)
    assert step.note == "1 groups, the largest of 2 rows, threshold 0.8"


def test_exact_duplicates_are_equal_in_every_turn_and_in_the_answer() -> None:
    rows = [
        example(1, "Ask  this"),
        example(2, "Ask this "),
        example(3, "ask this"),
        example(4, "Ask this", "no"),
        example(5, "Ask this", system="other"),
    ]
    kept, step = exact(rows)
    assert [row.id for row in kept] == ["1", "3", "4", "5"]
    assert str(step) == "exact duplicates: 1 of 5 rows dropped (said before: 1)"


def test_the_seed_changes_the_hashes_not_the_groups() -> None:
    rows = corpus(5)
    assert groups(rows, seed=1) == groups(rows, seed=2) == groups(rows)


def test_no_rows_have_no_groups() -> None:
    assert groups([]) == []
    assert near([])[0] == []


@pytest.mark.parametrize("threshold", [0, -0.1, 1.01])
def test_a_threshold_is_a_share(threshold: Any) -> None:
    with pytest.raises(ConfigError, match="give a share above 0 and up to 1"):
        groups(asked("a"), threshold=threshold)


def test_equal_only_is_a_threshold_of_one() -> None:
    assert groups(asked("one two three four five", "one two three four five", "one two three four"), threshold=1) == [
        0, 0, 2
    ]  # fmt: skip


def test_banking77_has_few_near_duplicates_with_or_without_its_labels_in_the_prompt() -> None:
    if not BANKING.exists():
        pytest.skip("the banking77 rows are not here")
    with BANKING.open(encoding="utf-8", newline="") as source:
        pairs = [(row["text"], row["category"]) for row in csv.DictReader(source)]
    labels = ", ".join(sorted({label for _, label in pairs}))
    plain = asked(*(text for text, _ in pairs))
    listed = asked(*(f"Classify into one of {labels}.\nMessage: {text}" for text, _ in pairs))
    assert 9_900 < len(set(groups(plain))) < 9_950
    assert 9_900 < len(set(groups(listed))) < 9_960
