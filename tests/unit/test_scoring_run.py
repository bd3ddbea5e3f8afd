"""Run metrics: micro and mean by hand, undefined rows, and that order is nothing."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_ray.corpus.tracks import TRACKS
from slm_ray.errors import ConfigError
from slm_ray.scoring import metrics, score, summarise

CALL = '{"arguments": {"a": 1, "b": 2, "c": 3}, "query": "Q", "tool_name": "t"}'
BARE = '{"arguments": {}, "query": "Q", "tool_name": "t"}'
PARTIAL = '{"arguments": {"a": 1, "b": "2"}}'
ANSWERS = st.sampled_from([None, "x", "{}", CALL, BARE, PARTIAL, '{"tool_name": "t"}', "[1]"])


def test_micro_and_means_by_hand() -> None:
    rows = [
        score(
            TRACKS["structured"], "1", '{"arguments": {"a": 1, "b": 0}, "query": "Q", "tool_name": "u"}', CALL
        ),  # 2 2 3
        score(TRACKS["structured"], "2", BARE, BARE),  # 2 0 0
        score(TRACKS["structured"], "3", None, CALL),  # 0 0 5
    ]
    precision, recall = 4 / 6, 4 / 12
    assert summarise(TRACKS["structured"], rows) == {
        "json_valid": 2 / 3,
        "exact_match": 1 / 3,
        "field_precision": precision,
        "field_recall": recall,
        "field_f1": 2 * precision * recall / (precision + recall),
        "tool_name_accuracy": 1 / 3,
        "query_preservation": 2 / 3,
        "args_keys_match": 1 / 3,
        "args_partial_match": (1 / 3 + 0 + 0) / 3,  # row 2 expects no argument: 0, and counts, as it was recorded
    }


def test_toolcall_metrics_by_hand() -> None:
    good, other = '<tool_call name="f">{"a":1}</tool_call>', '<tool_call name="g">{"a":1,"b":2}</tool_call>'
    rows = [score(TRACKS["toolcall"], str(i), text, good) for i, text in enumerate([good, other, "no", None])]
    assert summarise(TRACKS["toolcall"], rows) == {
        "valid_call": 0.5, "name_match": 0.25, "args_exact": 0.25,
        "args_precision": 2 / 3, "args_recall": 0.5, "args_f1": pytest.approx(4 / 7),
    }  # fmt: skip


def test_without_one_valid_answer_precision_is_zero_as_it_was_recorded() -> None:
    silent = summarise(TRACKS["structured"], [score(TRACKS["structured"], "1", None, CALL)])
    assert (silent["field_precision"], silent["field_recall"], silent["field_f1"]) == (0.0, 0.0, 0.0)
    calls = [score(TRACKS["toolcall"], "1", "no call", '<tool_call name="f">{"a":1}</tool_call>')]
    found = summarise(TRACKS["toolcall"], calls)
    assert (found["args_precision"], found["args_recall"], found["args_f1"]) == (0.0, 0.0, 0.0)


def test_undefined_is_none_and_not_zero() -> None:
    assert set(summarise(TRACKS["structured"], []).values()) == {None}
    nothing = summarise(
        TRACKS["toolcall"], [score(TRACKS["toolcall"], "1", '<tool_call name="f">{}</tool_call>', "oops")]
    )
    assert (nothing["args_precision"], nothing["args_recall"], nothing["args_f1"]) == (None, None, None)


@given(st.lists(st.tuples(ANSWERS, st.sampled_from([CALL, BARE])), min_size=1, max_size=12), st.integers())
def test_order_changes_nothing(pairs: list[tuple[str | None, str]], seed: int) -> None:
    rows = [score(TRACKS["structured"], str(i), text, reference) for i, (text, reference) in enumerate(pairs)]
    shuffled = random.Random(seed).sample(rows, len(rows))
    assert summarise(TRACKS["structured"], shuffled) == summarise(TRACKS["structured"], rows)
    assert list(summarise(TRACKS["structured"], rows)) == list(metrics(TRACKS["structured"]))


def test_unknown_scorer_lists_the_known() -> None:
    wrong = dataclasses.replace(TRACKS["structured"], scorers=("structured", "structure"))
    for call in (lambda: score(wrong, "1", BARE, BARE), lambda: summarise(wrong, []), lambda: metrics(wrong)):
        with pytest.raises(ConfigError, match=r"track structured.*did you mean 'structured'.*toolcall"):
            call()


def test_a_track_of_two_scorers_joins_their_parts() -> None:
    both = dataclasses.replace(TRACKS["structured"], scorers=("toolcall", "structured"))
    call = '<tool_call name="f">{"a": 1}</tool_call>'
    rows = [score(both, "1", call, call), score(both, "2", CALL, CALL)]
    assert [row.value("valid_call") for row in rows] == [1.0, 0.0]
    assert [row.value("json_valid") for row in rows] == [0.0, 1.0]
    assert rows[0].issues == ("prediction_not_valid_json",)
    found = summarise(both, rows)
    assert list(found) == list(metrics(both))
    assert (found["args_exact"], found["exact_match"]) == (0.5, 0.5)
