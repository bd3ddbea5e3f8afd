"""Splitting: exact sizes, no prompt on two sides, the same sides for both tracks, the same draw every time."""

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from slm_ray.corpus import duplicates
from slm_ray.corpus.formats import parse
from slm_ray.corpus.leakage import leaks
from slm_ray.corpus.read import examples
from slm_ray.corpus.render import normalised
from slm_ray.corpus.split import counted, keep, split
from slm_ray.corpus.tracks import track
from slm_ray.errors import DataError
from slm_ray.types import Example, Message, Prompt

CHAT = track("chat")


def parsed(*rows: Any) -> Any:
    return [
        parse(row if "messages" in row or "conversations" in row else {"completion": "x"} | row, CHAT) for row in rows
    ]


def asks(row: Any) -> Any:
    return row.turns[-1].content


def rows(count: Any) -> Any:
    return parsed(*({"prompt": f"question {number}"} for number in range(count)))


def draw(given_rows: Any, validation: Any = 3, test: Any = 4, train: Any = None, seed: Any = 42) -> Any:
    return split(given_rows, validation=validation, test=test, train=train, seed=seed)


def test_sizes_are_exact_and_nothing_is_lost() -> None:
    sides = draw(rows(20))
    assert {side: len(found) for side, found in sides.items()} == {"train": 13, "validation": 3, "test": 4}
    assert sorted(asks(row) for found in sides.values() for row in found) == sorted(map(asks, rows(20)))
    assert len(draw(rows(20), train=5)["train"]) == 5


def test_the_draw_depends_on_the_seed_and_the_content_only() -> None:
    assert draw(rows(20)) == draw(rows(20)[::-1])
    assert draw(rows(20)) != draw(rows(20), seed=43)


@given(st.lists(st.sampled_from(["a", "A ", "b", " b\n", "c", "d", "e", "f"]), min_size=1, max_size=30))
def test_no_prompt_stands_on_two_sides(prompts: Any) -> None:
    try:
        sides = draw(parsed(*({"prompt": prompt} for prompt in prompts)), validation=2, test=2)
    except DataError:
        return
    keys = [{normalised(asks(row)) for row in found} for found in sides.values()]
    assert sum(map(len, keys)) == len(set.union(*keys))
    assert (len(sides["validation"]), len(sides["test"])) == (2, 2)


def test_a_group_too_large_is_cut_and_the_rest_of_it_dropped() -> None:
    pairs = parsed(*({"prompt": f"p{number // 2}"} for number in range(20)))
    sides = draw(pairs, validation=3, test=3, train=5)
    assert [len(found) for found in sides.values()] == [5, 3, 3]
    assert len({asks(row) for found in sides.values() for row in found}) == 2 + 2 + 3
    assert sum(len(found) for found in draw(pairs, validation=3, test=3).values()) == 18


def test_rows_are_tied_through_group_and_prompt() -> None:
    tied = parsed(
        {"prompt": "p1", "group": "g1"},
        {"prompt": "p2", "group": "g1"},
        {"prompt": "p2", "group": "g2"},
        {"prompt": "p3", "group": "g2"},
    )
    for seed in range(10):
        sides = draw(rows(20) + tied, seed=seed)
        assert sum(any(row in found for row in tied) for found in sides.values()) == 1


def test_both_tracks_of_one_source_split_alike() -> None:
    tools = [{"name": name, "parameters": {}} for name in "ab"]
    source = [
        {"id": n, "query": f"query {n % 17}", "tools": tools, "answers": [{"name": "ab"[n % 2], "arguments": {}}]}
        for n in range(40)
    ]
    drawn = {name: draw([parse(row, track(name)) for row in source]) for name in ("structured", "toolcall")}
    ids = {name: {side: [row.id for row in found] for side, found in sides.items()} for name, sides in drawn.items()}
    assert ids["structured"] == ids["toolcall"]


def test_examples_split_too() -> None:
    lines = [json.dumps({"prompt": f"question {number}", "completion": "x"}) for number in range(20)]
    sides = draw(examples(lines, name="x", track=track("structured")))
    assert len(sides["train"]) == 13


def test_one_prompt_in_every_shape_is_one_prompt() -> None:
    user, system = {"role": "user", "content": "Ask"}, {"role": "system", "content": "s"}
    answer = {"role": "assistant", "content": "a"}
    same = parsed(
        {"prompt": "ask"},
        {"prompt": [system, user]},
        {"messages": [user, answer]},
        {
            "conversations": [
                {"from": "system", "value": "s"},
                {"from": "human", "value": "ask "},
                {"from": "gpt", "value": "b"},
            ]
        },
    )
    for seed in range(5):
        sides = draw(rows(20) + same, seed=seed)
        assert sum(any(row in found for row in same) for found in sides.values()) == 1


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"test": 21}, "asked for 21 test rows, but only 20 of 20"),
        ({"validation": 18}, "asked for 18 validation rows, but only 16 of 20"),
        ({"train": 14}, "asked for 14 train rows, but only 13 of 20"),
        ({"validation": 16}, "asked for train rows, but only 0 of 20"),
    ],
)
def test_too_few_rows_are_refused_with_the_fix(sizes: Any, message: Any) -> None:
    with pytest.raises(DataError, match=message) as caught:
        draw(rows(20), **sizes)
    assert "lower `test`, `validation` or `train`, or add rows" in str(caught.value)


def test_keep_uses_the_rows_own_split() -> None:
    given_rows = parsed(*({"prompt": f"p{side}", "split": side} for side in ("test", "val", "train", "validation")))
    sides = keep(given_rows, name="x")
    assert [len(found) for found in sides.values()] == [1, 2, 1]


@pytest.mark.parametrize(
    ("given_rows", "message"),
    [
        ([{"prompt": "a"}], "x: row 1 has the split None"),
        ([{"prompt": "a", "split": "tset"}], "did you mean 'test'"),
        ([{"prompt": "a", "split": "train"}, {"prompt": "b", "split": "test"}], "asked for validation rows"),
        (
            [{"prompt": "a", "split": "train"}, {"prompt": "b", "split": "val"}, {"prompt": "A ", "split": "test"}],
            "one prompt is in test and train",
        ),
    ],
)
def test_keep_refuses_unknown_empty_and_leaking_splits(given_rows: Any, message: Any) -> None:
    with pytest.raises(DataError, match=message):
        keep(parsed(*given_rows), name="x")


def tagged(tools: Any) -> Any:
    return parsed(*({"prompt": f"question {place}", "tags": {"tool": tool}} for place, tool in enumerate(tools)))


@given(st.lists(st.sampled_from("aaabbc"), min_size=20, max_size=60), st.integers(0, 5))
def test_stratified_sides_have_each_tool_in_proportion(tools: Any, seed: Any) -> None:
    given_rows = tagged(tools)
    sides = split(given_rows, validation=5, test=8, train=None, seed=seed, stratify="tool")
    assert [len(sides[side]) for side in ("train", "validation", "test")] == [len(tools) - 13, 5, 8]
    left = Counter(tools)
    for side, wanted in (("test", 8), ("validation", 5)):
        found = Counter(row.tags["tool"] for row in sides[side])
        for tool in left:
            assert abs(found[tool] - wanted * left[tool] / left.total()) < 1 + 1e-9
        left -= found
    assert sides == split(given_rows, validation=5, test=8, train=None, seed=seed, stratify="tool")
    again = split(given_rows[::-1], validation=5, test=8, train=None, seed=seed, stratify="tool")
    assert again == sides


def test_stratifying_keeps_prompts_together_and_sizes_exact() -> None:
    given_rows = parsed(*({"prompt": f"p{n // 3}", "tags": {"tool": "ab"[n % 2]}} for n in range(60)))
    for seed in range(5):
        sides = split(given_rows, validation=7, test=10, train=20, seed=seed, stratify="tool")
        assert [len(found) for found in sides.values()] == [20, 7, 10]
        prompts = [{asks(row) for row in found} for found in sides.values()]
        assert sum(map(len, prompts)) == len(set.union(*prompts))


def test_a_tag_that_no_row_has_is_refused_and_one_that_some_lack_is_not() -> None:
    with pytest.raises(DataError, match="no row has the tag 'tol'; did you mean 'tool'"):
        split(tagged("aab"), validation=1, test=1, train=None, seed=1, stratify="tol")
    sides = split(tagged("ab" * 5) + rows(10)[5:], validation=3, test=6, train=None, seed=1, stratify="tool")
    assert Counter(row.tags.get("tool") for row in sides["test"]) == {"a": 2, "b": 2, None: 2}


@given(st.lists(st.integers(0, 12), min_size=20, max_size=40), st.integers(0, 3))
def test_rows_of_one_group_stay_together(numbers: Any, seed: Any) -> None:
    assume(len(set(numbers)) > 6)
    sides = split(rows(len(numbers)), validation=3, test=3, train=None, seed=seed, groups=numbers)
    side_of: dict[int, str] = {}
    for side, found in sides.items():
        for row in found:
            assert side_of.setdefault(numbers[int(asks(row).split()[1])], side) == side
    assert len(side_of) == len(set(numbers))


def test_rows_alone_split_as_they_did_without_groups() -> None:
    given_rows = rows(40)
    plain = split(given_rows, validation=5, test=6, train=20, seed=3)
    sides, step = counted(given_rows, validation=5, test=6, train=20, seed=3, groups=list(range(40)))
    assert sides == plain
    assert (step.name, step.kept, step.dropped, step.note) == (
        "split",
        31,
        9,
        "no rows moved to keep equal questions on one side",
    )


def test_moved_rows_are_those_on_another_side_than_alone() -> None:
    given_rows = rows(40)
    sizes: dict[str, Any] = {"validation": 5, "test": 6, "train": None, "seed": 3}
    alone = split(given_rows, **sizes)
    test, train = alone["test"][0], alone["train"][0]
    numbers = list(range(40))
    numbers[given_rows.index(train)] = given_rows.index(test)
    sides, step = counted(given_rows, **sizes, groups=numbers)
    before = {asks(row): side for side, found in alone.items() for row in found}
    after = {asks(row): side for side, found in sides.items() for row in found}
    moved = [prompt for prompt in before if before[prompt] != after[prompt]]
    assert after[asks(test)] == after[asks(train)]
    assert len(moved) >= 2
    assert step.note == f"{len(moved)} rows moved to keep equal questions on one side"


def asked(*questions: Any, system: Any = "s", start: Any = 0) -> Any:
    return [
        Example(
            id=f"r{place}",
            prompt=Prompt(messages=(Message(role="system", content=system), Message(role="user", content=question))),
            target="x",
        )
        for place, question in enumerate(questions, start=start)
    ]


def test_what_was_split_with_groups_does_not_leak() -> None:
    texts = [" ".join(f"w{(place * 7 + word * word) % 90}" for word in range(25)) for place in range(60)]
    pool = asked(*(text + tail for text in texts for tail in ("", " please", "  ")))
    pool = [Example(id=str(n), prompt=row.prompt, target=str(n)) for n, row in enumerate(pool)]
    numbers = duplicates.groups(pool)
    sides, step = counted(pool, validation=30, test=40, train=None, seed=1, groups=numbers)
    ungrouped = split(pool, validation=30, test=40, train=None, seed=1)
    for side in ("validation", "test"):
        assert leaks(sides["train"], sides[side], threshold=0.8) == []
        assert leaks(ungrouped["train"], ungrouped[side]) == []
        assert leaks(ungrouped["train"], ungrouped[side], threshold=0.8) != []
    assert "rows moved" in step.note


@given(
    st.lists(st.tuples(st.sampled_from("abcdefghij"), st.booleans()), min_size=1, max_size=40),
    st.integers(0, 4),
    st.integers(0, 4),
    st.sampled_from([None, 3]),
)
def test_rows_for_training_only_are_never_held_out_nor_beside_a_held_out_row(
    asked: Any, validation: int, test: int, train: int | None
) -> None:
    given_rows = parsed(*({"prompt": prompt, "id": f"{n}"} for n, (prompt, _) in enumerate(asked)))
    only = {f"{n}" for n, (_, trains) in enumerate(asked) if trains}
    try:
        sides = split(
            given_rows, validation=validation, test=test, train=train, seed=1, trains_only=lambda row: row.id in only
        )
    except DataError:
        return
    held_out = [*sides["test"], *sides["validation"]]
    assert (len(sides["test"]), len(sides["validation"])) == (test, validation)
    assert not {row.id for row in held_out} & only
    assert {asks(row) for row in held_out}.isdisjoint(asks(row) for row in sides["train"])
    if train is None:  # nothing else is lost
        taken = {asks(row) for row in held_out}
        assert sorted(row.id for row in given_rows if asks(row) not in taken) == sorted(r.id for r in sides["train"])


@given(st.lists(st.sampled_from("abcdefghij"), min_size=12, max_size=40), st.booleans())
def test_a_rule_that_holds_for_no_row_changes_no_split(prompts: Any, stratified: bool) -> None:
    given_rows = parsed(*({"prompt": p, "tags": {"kind": "xy"[n % 2]}} for n, p in enumerate(prompts)))
    how: Any = {"validation": 2, "test": 2, "train": None, "seed": 1, "stratify": "kind" if stratified else None}
    try:
        plain = split(given_rows, **how)
    except DataError:
        return
    ruled = split(given_rows, **how, trains_only=lambda _: False)
    for side in ("test", "validation"):
        assert plain[side] == ruled[side]
    assert sorted(map(id, plain["train"])) == sorted(map(id, ruled["train"]))
