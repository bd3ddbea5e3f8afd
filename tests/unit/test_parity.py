"""The parity check on plain data: each planted fault has its own message, rounding has none."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest

from slm_ray.answer_distance import Position, Positions, distance
from slm_ray.parity import (
    Note,
    NotedRow,
    Record,
    Reference,
    Served,
    ServedAnswer,
    check,
    check_again,
    chosen_rows,
    figures,
    first_difference,
    in_words,
    refusal,
)

VOCABULARY, LENGTH, STOP = 40, 6, 39
PROMPTS = ((1, 2, 3), (1, 2, 4), (1, 5))
ID = "orders-0123456789ab"


def logits(name: str, row: int, place: int) -> list[float]:
    draw = random.Random(f"{name}/{row}/{place}")
    return [draw.gauss(0, 3) for _ in range(VOCABULARY)]


def said(row: int, *, scale: float, adapter: str = "ours", base: str = "base", noise: float = 0.0) -> Positions:
    """A greedy answer of `base` with an adapter applied `scale` times; every answer stands after the same tokens."""
    found = []
    for place in range(LENGTH):
        draw = random.Random(f"noise/{noise}/{row}/{place}")
        there = zip(logits(base, row, place), logits(adapter, row, place), strict=True)
        values = [one + scale * other + draw.gauss(0, noise) for one, other in there]
        total = math.log(sum(math.exp(value) for value in values))
        best = sorted(range(VOCABULARY), key=lambda token: -values[token])
        # The token that follows is the same for all: a reference follows the served answer.
        found.append(Position(token=place, top=tuple((token, values[token] - total) for token in best)))
    return tuple(found)


def answers(*, scale: float, model: str = f"base:{ID}", **how: Any) -> tuple[ServedAnswer, ...]:
    return tuple(
        ServedAnswer(prompt=prompt, positions=said(row, scale=scale, noise=0.05, **how), model=model)
        for row, prompt in enumerate(PROMPTS)
    )


def positions(*, scale: float, **how: Any) -> tuple[Positions, ...]:
    return tuple(said(row, scale=scale, **how) for row in range(len(PROMPTS)))


NOTE = Note(
    rows=tuple(
        NotedRow(row=row, prompt=prompt, answer=(7, 8, STOP), trained=said(row, scale=1.0, noise=0.1))
        for row, prompt in enumerate(PROMPTS)
    ),
    scaling=2.0,
    precision="4bit",
)
REFERENCE = Reference(
    scaling=2.0, all_b_zero=False, stop_tokens=(STOP,),
    noted=positions(scale=1.0), noted_base=positions(scale=0.0),
    base=positions(scale=0.0), adapter=positions(scale=1.0),
    alternatives={
        "no adapter": positions(scale=0.0), "alpha doubled": positions(scale=2.0),
        "rsLoRA ignored": positions(scale=0.25), "the adapter other-0123456789ab": positions(scale=1.0, adapter="other"),
    },
)  # fmt: skip
SERVED = Served(
    model=f"base:{ID}", base=answers(scale=0.0, model="base"), adapter=answers(scale=1.0), adapter_cached=answers(scale=1.0),
    base_mixed=answers(scale=0.0, model="base"), adapter_mixed=answers(scale=1.0),
)  # fmt: skip


def with_adapter(**how: Any) -> Served:
    wrong = answers(**how)
    return replace(SERVED, adapter=wrong, adapter_cached=wrong, adapter_mixed=wrong)


def found(note: Note | None = NOTE, reference: Reference = REFERENCE, served: Served | None = SERVED) -> dict[str, str]:
    return {finding.fault: finding.message for finding in check(note, reference, served, str)}


def test_rounding_is_no_fault() -> None:
    assert found() == {}
    assert found(served=None) == {}
    assert found(note=None) == {}


SERVED_OTHERWISE = {
    "alpha doubled": with_adapter(scale=2.0),
    "rsLoRA ignored": with_adapter(scale=0.25),
    "no adapter": with_adapter(scale=0.0),
    "the adapter other-0123456789ab": with_adapter(scale=1.0, adapter="other"),
    "other answers": with_adapter(scale=1.0, adapter="nobody's"),
    "wrong base": replace(
        with_adapter(scale=1.0, base="another"), base=answers(scale=0.0, base="another", model="base"),
        base_mixed=answers(scale=0.0, base="another", model="base"),
    ),
    "wrong template": replace(
        SERVED, adapter=tuple(replace(answer, prompt=(9, *answer.prompt)) for answer in SERVED.adapter)
    ),
    "another version": with_adapter(scale=1.0, model="base:orders-ffffffffffff"),
    "stale prefix cache": replace(SERVED, adapter_cached=answers(scale=1.0, adapter="older")),
    "stock CPU kernel": replace(SERVED, base_mixed=answers(scale=1.0, model="base")),
    "base changed in mixed batches": replace(SERVED, base_mixed=answers(scale=1.0, adapter="other", model="base")),
    "adapter changed in mixed batches": replace(SERVED, adapter_mixed=answers(scale=1.0, adapter="other")),
}  # fmt: skip


@pytest.mark.parametrize("fault", SERVED_OTHERWISE)
def test_a_server_s_fault_is_named_and_nothing_else_is(fault: str) -> None:
    assert list(found(served=SERVED_OTHERWISE[fault])) == [fault]


ARMS = ("base", "adapter", "adapter_cached", "base_mixed", "adapter_mixed")
ALL_ADAPTER_S = ("adapter", "adapter_cached", "adapter_mixed")


def of_eight(three: tuple[Any, ...], last: Any = None) -> tuple[Any, ...]:
    return (*three * 2, three[0], last or three[1])


@pytest.mark.parametrize(
    ("sides", "fault", "wrong"),
    [
        (ALL_ADAPTER_S, "alpha halved", answers(scale=0.5)),
        (("adapter_cached",), "stale prefix cache", answers(scale=1.0, adapter="older")),
        (("base_mixed",), "stock CPU kernel", answers(scale=1.0, model="base")),
        (("adapter_mixed",), "adapter changed in mixed batches", answers(scale=0.5)),
    ],
)
def test_a_fault_in_one_row_of_eight_is_named_though_the_mean_over_all_rows_is_small(
    sides: tuple[str, ...], fault: str, wrong: tuple[ServedAnswer, ...]
) -> None:
    # Rows weigh by their positions: seven long right answers hide a short wrong one.
    short = replace(wrong[1], positions=wrong[1].positions[:1])
    eight: dict[str, Any] = {arm: of_eight(getattr(SERVED, arm), short if arm in sides else None) for arm in ARMS}
    reference = replace(
        REFERENCE, base=of_eight(REFERENCE.base), adapter=of_eight(REFERENCE.adapter),
        alternatives={"alpha halved": of_eight(positions(scale=0.5))},
    )  # fmt: skip
    ((name, message),) = found(None, reference, replace(SERVED, **eight)).items()
    assert name == fault
    assert "in row 8 of the 8 compared" in message or fault == "stock CPU kernel"


TRAINED_OTHERWISE: dict[str, tuple[Note, Reference]] = {
    "zero B": (
        replace(NOTE, rows=tuple(replace(row, trained=said(row.row, scale=0.0)) for row in NOTE.rows)),
        replace(REFERENCE, all_b_zero=True, noted=REFERENCE.noted_base, adapter=REFERENCE.base),
    ),
    "alpha of the files": (replace(NOTE, scaling=1.0), REFERENCE),
    "files of another training": (NOTE, replace(REFERENCE, noted=positions(scale=1.0, adapter="other"))),
    "no end of an answer": (
        replace(NOTE, rows=tuple(replace(row, answer=(7, 8)) for row in NOTE.rows)), REFERENCE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", TRAINED_OTHERWISE)
def test_files_that_are_not_what_was_trained_are_named_without_a_server(fault: str) -> None:
    note, reference = TRAINED_OTHERWISE[fault]
    assert list(found(note, reference, None)) == [fault]


def test_every_fault_has_its_own_message() -> None:
    messages = [message for served in SERVED_OTHERWISE.values() for message in found(served=served).values()]
    messages += [message for pair in TRAINED_OTHERWISE.values() for message in found(*pair, None).values()]
    messages += [refusal("LoRA rank 128 is greater than max_lora_rank 64", rank=128).message]
    assert len(set(messages)) == len(messages) == 17
    assert "at least 128" in messages[-1]


def test_a_refusal_says_what_to_do_about_it() -> None:
    elsewhere = refusal("the model 'base:a-1@candidate' does not exist; GET /v1/models lists what there is", rank=8)
    assert elsewhere.fault == "not found" and "over the same adapters_dir" in elsewhere.message
    assert refusal("not finite", rank=8).fault == "refused"


def test_a_template_fault_shows_the_first_token_that_differs() -> None:
    served = SERVED_OTHERWISE["wrong template"]
    assert (
        "training row 1: the prompt's tokens differ from token 0 on: training saw '[1, 2, 3]'"
        in found(served=served)["wrong template"]
    )
    assert first_difference((1, 2), (1, 2), str) is None
    assert "from token 1 on" in str(first_difference((1, 2), (1,), str))


def test_the_distance_stops_where_the_texts_part() -> None:
    one = (
        Position(token=1, top=((1, -0.5),)),
        Position(token=2, top=((2, -1.0),)),
        Position(token=3, top=((3, -1.0),)),
    )
    other = (
        Position(token=1, top=((1, -0.5),)),
        Position(token=4, top=((4, -0.2), (2, -2.0))),
        Position(token=3, top=((3, -9.0),)),
    )
    apart = distance([one], [other])
    assert apart.positions == 2
    assert apart.first_max == 0
    assert apart.mean == pytest.approx((0 + (1.0 + 0.8) / 2) / 2)  # token 4 is -1.0 at most where it is not listed
    assert apart.same_tokens == 0.5
    assert distance([], []).positions == 0


def test_rows_are_noted_from_the_shortest_to_the_longest() -> None:
    lengths = [10 + (7 * n) % 101 for n in range(101)]
    rows = chosen_rows(lengths, 5)
    assert sorted(lengths[row] for row in rows) == [10, 35, 60, 85, 110]
    assert rows == sorted(rows)
    assert chosen_rows([5, 3], 5) == [0, 1]


def test_figures_say_what_the_served_precision_costs_and_what_a_fault_would_have_cost() -> None:
    measured = figures(NOTE, REFERENCE, SERVED)
    precision = measured["from_training_precision"]
    assert precision["precision"] == "4bit"
    assert 0 < precision["first_mean"] <= precision["first_max"] < 1
    assert precision["same_tokens"] > 0.8
    assert measured["adapter"]["mean"] < measured["tolerance"] < measured["alternatives"]["alpha doubled"]
    assert "adapter" not in figures(NOTE, REFERENCE, None)


def test_a_deployment_is_held_against_the_answers_of_the_proof() -> None:
    record = Record(prompts=(({"role": "user", "content": "hi"},),) * 3, note=NOTE, served=SERVED)
    assert check_again(record, SERVED) == ()
    for fault in (
        "no adapter",
        "wrong template",
        "wrong base",
        "another version",
        "stock CPU kernel",
        "stale prefix cache",
    ):
        assert [finding.fault for finding in check_again(record, SERVED_OTHERWISE[fault])] == [fault]
    doubled = check_again(record, SERVED_OTHERWISE["alpha doubled"])
    assert [finding.fault for finding in doubled] == ["other answers"]
    unserved = replace(record, served=None)
    assert [finding.fault for finding in check_again(unserved, SERVED_OTHERWISE["wrong template"])] == [
        "wrong template"
    ]


def test_a_proof_is_told_in_one_line_with_what_it_lacks() -> None:
    proof = {"on": "engine", "checked": ["files"], "not_checked": [], **figures(NOTE, REFERENCE, SERVED)}
    line = in_words(proof)
    assert "proved on engine: files; 0." in line
    assert "served in bf16 instead of 4bit: " in line
    assert "NOT" not in line
    assert in_words({**proof, "not_checked": ["no vLLM"]}).endswith("NOT checked: no vLLM")
    assert in_words({"checked": [], "not_checked": ["prove_on is nothing"]}) == "not proved: prove_on is nothing"
    assert in_words(None).startswith("not proved")
