"""Whether a held-out row asks what a training row asks: one check, one text, whatever job asks it."""

from typing import Any

import pytest

from slm_ray.corpus.leakage import (
    Leak,
    leakage_text,
    leaked,
    leaked_examples,
    leaks,
    question_hash,
    question_hashes,
    refuse_leakage,
)
from slm_ray.corpus.retrieve import DEMONSTRATIONS, with_demonstrations
from slm_ray.errors import DataError
from slm_ray.types import Example, Message, Prompt


def asked(*questions: Any, system: Any = "s", start: Any = 0) -> Any:
    return [
        Example(
            id=f"r{place}",
            prompt=Prompt(messages=(Message(role="system", content=system), Message(role="user", content=question))),
            target="x",
        )
        for place, question in enumerate(questions, start=start)
    ]


LONG = "please tell me how much the day ticket to the old town costs for two adults and a dog"


def test_leaks_are_named_with_the_training_row() -> None:
    train = asked("one", LONG, "ONE ")
    other = asked("three", "One", LONG + " today", system="another", start=10)
    same = Leak(row="r11", train="r0", why="same prompt")
    assert leaks(train, other) == [same]
    assert leaks(train, other, threshold=0.8) == [same, Leak(row="r12", train="r1", why="near-duplicate")]
    assert leaks(train, []) == leaks([], other) == []


def test_the_same_question_is_found_under_another_system_prompt_spacing_and_case() -> None:
    trained = question_hashes(asked("How much?", "Where to"))
    held_out = asked("how  MUCH?", "why", "where TO ", system="other", start=5)
    assert leaked_examples(held_out, trained) == ["r5", "r7"]
    assert leaked_examples(held_out, frozenset()) == []
    assert leaked({"a": "1", "b": "2", "c": "1"}, {"1"}) == ["a", "c"]


def test_demonstrations_in_front_do_not_hide_the_question() -> None:
    (row,), shots = asked("Where to"), asked("how much", "why", start=5)
    shown = Example(
        id=row.id, prompt=with_demonstrations(row.prompt, shots), target="x", tags={DEMONSTRATIONS: str(len(shots))}
    )
    assert question_hash(shown) == question_hash(row)
    untagged = Example(id=row.id, prompt=shown.prompt, target="x")
    assert question_hash(untagged) != question_hash(row)


def test_leaked_rows_are_refused_with_counts_first_ids_and_fix() -> None:
    trained = question_hashes(asked("a", "b", "c", "d"))
    with pytest.raises(DataError) as caught:
        refuse_leakage(asked("d", "c", "b", "a", "e"), trained, rows="rows of test.jsonl", trained_name="train.jsonl")
    assert str(caught.value) == (
        "4 of 5 rows of test.jsonl are training rows of train.jsonl (r0, r1, r2, …); evaluate on held-out rows"
    )
    refuse_leakage(asked("e"), trained, rows="rows", trained_name="train.jsonl")
    assert leakage_text(["a"], 2, rows="rows", fix="split again") == "1 of 2 rows are training rows (a); split again"
