"""The toolcall scorer on hand-computed rows, on malformed calls, and under properties."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_ray.scoring.toolcall import read_call, score

REFERENCE = '<tool_call name="f">{"a":1,"b":"x"}</tool_call>'
METRICS = ("valid_call", "name_match", "args_exact", "args_precision", "args_recall", "args_f1")
PIECES = st.sampled_from(['<tool_call name="', "f", '">', "{}", '{"a":1}', "</tool_call>", " ", "\n", '"', "<", "{"])


@pytest.mark.parametrize(
    ("prediction", "values", "counts", "issues"),
    [
        (REFERENCE, (1, 1, 1, 1, 1, 1), (2, 0, 0), ()),
        ('  <tool_call name="f"> {"b": "x",\n "a": 1} </tool_call>\n', (1, 1, 1, 1, 1, 1), (2, 0, 0), ()),
        ('<tool_call name="g">{"a":1,"b":"x"}</tool_call>', (1, 0, 1, 1, 1, 1), (2, 0, 0), ("tool_name_mismatch",)),
        (
            '<tool_call name="g">{"a":1,"c":"x","d":2}</tool_call>',
            (1, 0, 0, 1 / 3, 1 / 2, 0.4),
            (1, 2, 1),
            ("tool_name_mismatch", "arguments_mismatch"),
        ),
        ('<tool_call name="f">{"a":9,"b":"x","a":1}</tool_call>', (1, 1, 1, 1, 1, 1), (2, 0, 0), ()),
        (
            '<tool_call name="f">{"a":1,"b":"x","a":9}</tool_call>',
            (1, 1, 0, 1 / 2, 1 / 2, 1 / 2),
            (1, 1, 1),
            ("arguments_mismatch",),
        ),
        ('<tool_call name="f">{}</tool_call>', (1, 1, 0, 0, 0, 0), (0, 0, 2), ("arguments_mismatch",)),
        (None, (0, 0, 0, 0, 0, 0), (0, 0, 2), ("invalid_tool_call_format",)),
    ],
)
def test_hand_computed(
    prediction: str | None, values: tuple[float, ...], counts: tuple[int, int, int], issues: tuple[str, ...]
) -> None:
    row = score("r", prediction, REFERENCE)
    assert [row.value(name) for name in METRICS] == pytest.approx(values)
    assert (row.counts, row.issues) == (counts, issues)


@pytest.mark.parametrize(
    "text",
    [
        "", "f", '{"a":1,"b":"x"}', "<tool_call>{}</tool_call>", '<tool_call name="">{}</tool_call>',
        '<tool_call name="f"/>', '<tool_call name="f">[1]</tool_call>', '<tool_call name="f">{"a":NaN}</tool_call>',
        '<tool_call name="f"></tool_call>', '<tool_call name="f">{}</tool_call> done',
        'Sure: <tool_call name="f">{}</tool_call>',
        '<tool_call name="f">{}</tool_call><tool_call name="f">{}</tool_call>', '<tool_call name="f" >{}</tool_call>',
        "<tool_call name='f'>{}</tool_call>", '<tool_call name="f">{}', '<tool_call name="</tool_call>',
        '<tool_call name="f">' + '{"a":' * 50_000 + "</tool_call>", '<tool_call name="' * 200_000 + "</tool_call>",
    ],
)  # fmt: skip
def test_malformed(text: str) -> None:
    assert read_call(text) is None
    assert score("r", text, REFERENCE).issues == ("invalid_tool_call_format",)


def test_a_tag_inside_an_argument_is_text() -> None:
    call = read_call('<tool_call name="f">{"html": "</tool_call>"}</tool_call>')
    assert call is not None and call.arguments.value == {"html": "</tool_call>"}


def test_both_without_arguments_is_exact_though_no_item_is_shared() -> None:
    empty = '<tool_call name="f">{}</tool_call>'
    row = score("r", empty, empty)
    assert (row.value("args_exact"), row.value("args_f1"), row.issues) == (1.0, 0.0, ())


def test_a_reference_that_is_no_call_matches_nothing() -> None:
    row = score("r", REFERENCE, "oops")
    assert (row.value("name_match"), row.value("args_exact"), row.counts) == (0.0, 0.0, (0, 2, 0))


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.characters(codec=None)) | st.lists(PIECES, max_size=12).map("".join))
def test_no_text_raises(text: str) -> None:
    row = score("r", text, REFERENCE)
    assert row == score("r", text, REFERENCE)
    assert bool(row.value("valid_call")) == ("invalid_tool_call_format" not in row.issues)
    assert (row.value("args_exact") or 0) <= (row.value("valid_call") or 0)


@settings(deadline=None)
@given(st.text(min_size=1).filter(lambda name: '"' not in name), st.dictionaries(st.text(), st.integers() | st.text()))
def test_a_written_call_is_read_back(name: str, arguments: dict[str, object]) -> None:
    call = read_call(f'<tool_call name="{name}">{json.dumps(arguments)}</tool_call>')
    assert call is not None and (call.name, call.arguments.value) == (name, arguments)
