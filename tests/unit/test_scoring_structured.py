"""The structured scorer on hand-computed rows, on hostile texts, and under properties."""

from __future__ import annotations

import json
import sys
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_ray.corpus.tracks import TRACKS
from slm_ray.scoring import items
from slm_ray.scoring.parsed import is_readable, parsed
from slm_ray.scoring.structured import score
from slm_ray.types import RowScore

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4))
TEXTS = st.text(alphabet=st.characters(codec=None)) | VALUES.map(json.dumps)

HOSTILE = {
    "deep lists": "[" * 100_000 + "]" * 100_000,
    "deep objects": '{"a":' * 50_000 + "1" + "}" * 50_000,
    "unclosed": "[" * 1_000_000,
    "huge integer": "9" * 2_000_000,
    "digits just over the limit": "[" + "9" * (items.MAX_DIGITS + 1) + "]",
    "nan": '{"a": NaN}',
    "minus infinity": "-Infinity",
    "long key over many children": '{"' + "k" * 5_000_000 + '": [' + "1," * 2_000_000 + "1]}",
    "ten megabytes of leaves": "[" + "1," * 5_000_000 + "1]",
    "control character": '{"a": "\n"}',
    "empty": "",
    "byte order mark": "\ufeff{}",
    "single quotes": "{'a': 1}",
    "fence": '```json\n{"a": 1}\n```',
    "two objects": '{"a": 1}{"a": 1}',
}
ODD_BUT_VALID = {
    "overflow to infinity": '{"a": 1e400}',
    "lone surrogate escaped": '{"a": "\\ud800"}',
    "lone surrogate raw": '{"a": "\ud800"}',
    "duplicate keys": '{"a": 1, "a": 2}',
    "ten megabytes": json.dumps({"a": "x" * 10_000_000}),
    "integer at the limit": "[" + "9" * items.MAX_DIGITS + "]",
    "null": "null",
    "nul character": '{"\\u0000": "\\u0000"}',
}


def scores(row: RowScore) -> dict[str, float | None]:
    return {metric.name: metric.value for metric in row.scores}


def test_hand_computed_row() -> None:
    reference = '{"arguments": {"x": 1, "y": [true, null]}, "query": "Q", "tool_name": "t"}'
    prediction = '{"tool_name": "t", "query": "Q", "arguments": {"x": 2, "y": [true], "z": 3}}'
    row = score("r", prediction, reference)
    # shared: query, tool_name, y[0]; only predicted: x=2, z=3; only expected: x=1, y[1]
    assert row.counts == (3, 2, 2)
    assert row.issues == ("missing_fields", "extra_fields", "value_mismatch")
    assert scores(row) == {
        "json_valid": 1.0, "exact_match": 0.0, "field_precision": 3 / 5, "field_recall": 3 / 5, "field_f1": 0.6,
        "tool_name_accuracy": 1.0, "query_preservation": 1.0, "args_keys_match": 0.0, "args_partial_match": 0.0,
    }  # fmt: skip


def test_partial_match_is_by_lower_cased_text_of_top_level_arguments() -> None:
    reference = '{"arguments": {"pin": 920001, "city": "Paris", "on": true, "o": {"a": 1, "b": 2}, "n": null}}'
    prediction = '{"arguments": {"pin": "920001", "city": "PARIS", "on": "True", "o": {"b": 2, "a": 1}}}'
    row = score("r", prediction, reference)
    assert row.value("args_partial_match") == 4 / 5  # `n` is absent, which is not the same as null
    assert row.value("args_keys_match") == 0.0
    assert row.value("tool_name_accuracy") is None and row.value("query_preservation") is None


@pytest.mark.parametrize("prediction", [None, "not json", "[]", '"text"', "{}", '{"arguments": 3, "x": "t"}'])
def test_what_is_undefined_depends_on_the_reference_only(prediction: str | None) -> None:
    call = score("r", prediction, '{"arguments": {}, "query": "Q", "tool_name": "t"}')
    assert call.value("args_partial_match") == 0.0  # no argument is expected: as it was recorded
    assert (call.value("tool_name_accuracy"), call.value("query_preservation")) == (0.0, 0.0)
    assert call.value("args_keys_match") == 0.0
    other = score("r", prediction, '{"label": "t"}')
    assert all(
        other.value(name) is None
        for name in ("tool_name_accuracy", "query_preservation", "args_keys_match", "args_partial_match")
    )


@pytest.mark.parametrize("prediction", [None, "", "oops", "{} extra"])
def test_invalid_or_failed_misses_every_expected_item(prediction: str | None) -> None:
    row = score("r", prediction, '{"a": 1, "b": [1, 2]}')
    assert row.counts == (0, 0, 3)
    assert row.issues == ("prediction_not_valid_json",)
    assert all(row.value(name) == 0.0 for name in ("json_valid", "exact_match", "field_precision", "field_f1"))


@pytest.mark.parametrize(
    ("prediction", "exact", "counts", "issues"),
    [
        ("[1]", 0.0, (0, 1, 1), ("missing_fields", "extra_fields")),  # path [0] against a
        ('"x"', 0.0, (0, 1, 1), ("missing_fields", "extra_fields")),  # the root's path is ""
        ("[]", 0.0, (0, 0, 1), ("missing_fields",)),
        ('{"a": 1, "b": {}}', 0.0, (1, 0, 0), ()),  # an empty object has no items
        ('{"a": 1.0}', 1.0, (0, 1, 1), ("missing_fields", "extra_fields", "value_mismatch")),
        ('{"a": true}', 1.0, (0, 1, 1), ("missing_fields", "extra_fields", "value_mismatch")),
        ('{"a": "1"}', 0.0, (0, 1, 1), ("missing_fields", "extra_fields", "value_mismatch")),
        ('{"a": 2, "a": 1}', 1.0, (1, 0, 0), ()),  # of a repeated key the last value counts
    ],
)
def test_edges(prediction: str, exact: float, counts: tuple[int, int, int], issues: tuple[str, ...]) -> None:
    row = score("r", prediction, '{"a": 1}')
    assert (row.value("json_valid"), row.value("exact_match")) == (1.0, exact)
    assert (row.counts, row.issues) == (counts, issues)


def test_scalar_roots_share_the_empty_path() -> None:
    assert score("r", '"yes"', '"yes"').counts == (1, 0, 0)
    assert items.parse("3") == items.Document(value=3, items=frozenset({("", "3")}))


def test_two_spellings_of_one_path_are_one_item() -> None:
    assert score("r", '{"a.b": 1, "a": {"b": 1}}', '{"a": {"b": 1}}').counts == (1, 0, 0)


def test_a_broken_reference_matches_nothing() -> None:
    row = score("r", "oops", "oops")
    assert (row.value("exact_match"), row.counts) == (0.0, (0, 0, 0))
    assert score("r", '{"a": 1}', "oops").issues == ("extra_fields",)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_are_invalid_and_quick(name: str) -> None:
    started = time.monotonic()
    assert score("r", HOSTILE[name], '{"a": 1}').value("json_valid") == 0.0
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("name", ODD_BUT_VALID)
def test_odd_texts_are_valid_and_equal_themselves(name: str) -> None:
    row = score("r", ODD_BUT_VALID[name], ODD_BUT_VALID[name])
    assert (row.value("json_valid"), row.value("exact_match"), row.value("field_f1")) == (1.0, 1.0, 1.0)
    assert score("r", ODD_BUT_VALID[name], '{"zzz": 1}').value("exact_match") == 0.0


def test_depth_limit_does_not_depend_on_the_caller() -> None:
    def called_at(depth: int, text: str) -> float | None:
        return called_at(depth - 1, text) if depth else score("r", text, text).value("json_valid")

    assert sys.getrecursionlimit() >= 1000
    fits, too_deep = ("[" * n + "1" + "]" * n for n in (items.MAX_DEPTH, items.MAX_DEPTH + 1))
    for depth in (0, 300):
        assert (called_at(depth, fits), called_at(depth, too_deep)) == (1.0, 0.0)


def test_a_long_integer_is_refused_whatever_the_interpreter_allows() -> None:
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        assert items.parse("9" * 5_000_000) is None
    finally:
        sys.set_int_max_str_digits(before)


@settings(max_examples=300, deadline=None)
@given(TEXTS, TEXTS)
def test_no_text_raises_and_f1_follows_from_counts(prediction: str, reference: str) -> None:
    row = score("r", prediction, reference)
    shared, extra, missed = row.counts
    assert min(row.counts) >= 0
    f1 = Fraction(2 * shared, 2 * shared + extra + missed) if shared else Fraction(0)
    assert row.value("field_f1") == pytest.approx(float(f1), abs=1e-12)
    assert row == score("r", prediction, reference)
    flipped = score("r", reference, prediction)
    if row.value("json_valid") and flipped.value("json_valid"):
        assert flipped.counts == (shared, missed, extra)
        assert flipped.value("exact_match") == row.value("exact_match")


@settings(deadline=None)
@given(VALUES)
def test_spelling_is_nothing(value: object) -> None:
    spelled = json.dumps(value, indent=3, ensure_ascii=False)
    row = score("r", spelled, json.dumps(value, sort_keys=True))
    assert row.value("exact_match") == 1.0 and row.counts[1:] == (0, 0) and row.issues == ()


@pytest.mark.parametrize("name", ["nan", "huge integer", "digits just over the limit", "deep lists", "two objects"])
def test_what_the_scorer_refuses_is_shown_as_unreadable(name: str) -> None:
    """People are shown what the scorer finds, not what a laxer parser would: NaN is no JSON, and no long number raises."""
    assert score("r", HOSTILE[name], "{}").value("json_valid") == 0
    assert parsed(TRACKS["structured"], HOSTILE[name]) == "unreadable"
    assert not is_readable(TRACKS["structured"], HOSTILE[name])


def test_what_the_scorer_reads_is_shown_in_one_line_by_its_keys() -> None:
    assert parsed(TRACKS["structured"], '{"b": [1.0,\n "é"], "a": null}') == '{"a": null, "b": [1.0, "é"]}'
    assert parsed(TRACKS["structured"], "null") == "null"
