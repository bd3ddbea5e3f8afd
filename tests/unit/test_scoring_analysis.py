"""Errors grouped by issue and tag and shown by their most typical rows, on rows made by hand."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from slm_ray.corpus.tracks import TRACKS
from slm_ray.scoring import score
from slm_ray.scoring.analysis import NO_ISSUE, ErrorGroup, typical_errors
from slm_ray.scoring.strip import STRIPPED_FENCES
from slm_ray.types import RowScore, Score

TRACK = TRACKS["toolcall"]
RIGHT = '<tool_call name="f">{"a":1}</tool_call>'
ANSWERS = {
    "1": RIGHT,
    "2": '<tool_call name="g">{"a":1}</tool_call>',
    "3": '<tool_call name="g">{"a":2}</tool_call>',
    "4": "no call",
    "5": None,
    "6": '<tool_call name="f">{"a":2}</tool_call>',
}
ROWS = [score(TRACK, example_id, text, RIGHT) for example_id, text in ANSWERS.items()]
TAGS = {
    "1": {"tool": "f", "domain": "x"}, "2": {"tool": "f"}, "3": {"tool": "h"}, "4": {"tool": "f"}, "5": {"tool": "f"},
}  # fmt: skip


def row(example_id: str, value: float | None, *issues: str) -> RowScore:
    return RowScore(example_id=example_id, scores=(Score(name="rouge_l", value=value),), issues=issues)


def test_typical_errors_are_grouped_by_issue_and_tag() -> None:
    found = typical_errors(ROWS, TAGS, primary="args_exact", tag="tool")
    # Row 2 has the right arguments, so by this metric it is no error, whatever else it has.
    assert [(group.issue, group.value, group.n, group.typical) for group in found] == [
        ("invalid_tool_call_format", "f", 2, ("4", "5")),
        ("arguments_mismatch", "", 1, ("6",)),
        ("arguments_mismatch", "h", 1, ("3",)),
        ("tool_name_mismatch", "h", 1, ("3",)),
    ]
    assert found[:1] == typical_errors(ROWS, TAGS, primary="args_exact", tag="tool", groups=1)
    untagged = typical_errors(ROWS, TAGS, primary="args_exact")
    assert [(group.issue, group.n) for group in untagged] == [
        ("arguments_mismatch", 2), ("invalid_tool_call_format", 2), ("tool_name_mismatch", 1),
    ]  # fmt: skip


def test_the_most_typical_row_is_nearest_to_the_middle_of_its_group() -> None:
    rows = [row("a", 0.0, "long"), row("b", 0.45, "long"), row("c", 0.5, "long"), row("d", 0.9, "long")]
    expected = ErrorGroup(issue="long", tag="", value="", n=4, typical=("b", "c"))
    assert typical_errors(rows, {}, primary="rouge_l", per_group=2) == (expected,)


def test_rows_that_are_right_unscored_or_only_stripped_are_no_error_of_that_kind() -> None:
    rows = [row("a", 1.0, "long"), row("b", None, "long"), row("c", 0.5, STRIPPED_FENCES), row("d", 0.5)]
    assert typical_errors(rows, {}, primary="rouge_l") == (
        ErrorGroup(issue=NO_ISSUE, tag="", value="", n=2, typical=("c", "d")),
    )


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.sets(st.sampled_from("xyz")), st.sampled_from("pq")), max_size=12),
    st.integers(),
)
def test_order_changes_nothing_and_every_error_is_counted(found: list[tuple[float, set[str], str]], seed: int) -> None:
    rows = [row(str(i), value, *sorted(issues)) for i, (value, issues, _) in enumerate(found)]
    tags = {str(i): {"part": part} for i, (_, _, part) in enumerate(found)}
    shuffled = random.Random(seed).sample(rows, len(rows))
    groups = typical_errors(rows, tags, primary="rouge_l", tag="part", groups=99)
    assert typical_errors(shuffled, tags, primary="rouge_l", tag="part", groups=99) == groups
    assert sum(group.n for group in groups) == sum(max(1, len(issues)) for value, issues, _ in found if value < 1)
