"""Splitting: exact sizes, no prompt on two sides, the same sides for both tracks, the same draw every time."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_ray.corpus.read import examples
from slm_ray.corpus.render import normalised
from slm_ray.corpus.split import keep, split
from slm_ray.corpus.tracks import track
from slm_ray.corpus.xlam import rows_to_pairs
from slm_ray.errors import DataError


def rows(count):
    return [{"prompt": f"question {number}", "completion": "x"} for number in range(count)]


def draw(given_rows, validation=3, test=4, train=None, seed=42):
    return split(given_rows, validation=validation, test=test, train=train, seed=seed)


def test_sizes_are_exact_and_nothing_is_lost():
    sides = draw(rows(20))
    assert {side: len(found) for side, found in sides.items()} == {"train": 13, "validation": 3, "test": 4}
    assert sorted(row["prompt"] for found in sides.values() for row in found) == sorted(r["prompt"] for r in rows(20))
    assert len(draw(rows(20), train=5)["train"]) == 5


def test_the_draw_depends_on_the_seed_and_the_content_only():
    assert draw(rows(20)) == draw(rows(20)[::-1])
    assert draw(rows(20)) != draw(rows(20), seed=43)


@given(st.lists(st.sampled_from(["a", "A ", "b", " b\n", "c", "d", "e", "f"]), min_size=1, max_size=30))
def test_no_prompt_stands_on_two_sides(prompts):
    try:
        sides = draw([{"prompt": prompt} for prompt in prompts], validation=2, test=2)
    except DataError:
        return
    keys = [{normalised(row["prompt"]) for row in found} for found in sides.values()]
    assert sum(map(len, keys)) == len(set.union(*keys))
    assert (len(sides["validation"]), len(sides["test"])) == (2, 2)


def test_a_group_too_large_is_cut_and_the_rest_of_it_dropped():
    pairs = [{"prompt": f"p{number // 2}"} for number in range(20)]
    sides = draw(pairs, validation=3, test=3, train=5)
    assert [len(found) for found in sides.values()] == [5, 3, 3]
    assert len({row["prompt"] for found in sides.values() for row in found}) == 2 + 2 + 3
    assert sum(len(found) for found in draw(pairs, validation=3, test=3).values()) == 18


def test_rows_are_tied_through_group_and_prompt():
    tied = [
        {"prompt": "p1", "group": "g1"},
        {"prompt": "p2", "group": "g1"},
        {"prompt": "p2", "group": "g2"},
        {"prompt": "p3", "group": "g2"},
    ]
    for seed in range(10):
        sides = draw(rows(20) + tied, seed=seed)
        assert sum(any(row in found for row in tied) for found in sides.values()) == 1


def test_both_tracks_of_one_source_split_alike():
    tools = [{"name": name, "parameters": {}} for name in "ab"]
    source = json.dumps(
        [
            {"id": n, "query": f"query {n % 17}", "tools": tools, "answers": [{"name": "ab"[n % 2], "arguments": {}}]}
            for n in range(40)
        ]
    )
    drawn = {name: draw(rows_to_pairs(source, name="x", track=name)) for name in ("structured", "toolcall")}
    ids = {name: {side: [row["id"] for row in found] for side, found in sides.items()} for name, sides in drawn.items()}
    assert ids["structured"] == ids["toolcall"]


def test_examples_split_too():
    lines = [json.dumps(row) for row in rows(20)]
    sides = draw(examples(lines, name="x", track=track("structured")))
    assert len(sides["train"]) == 13


def test_one_prompt_in_every_shape_is_one_prompt():
    user, system = {"role": "user", "content": "Ask"}, {"role": "system", "content": "s"}
    answer = {"role": "assistant", "content": "a"}
    same = [
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
    ]
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
def test_too_few_rows_are_refused_with_the_fix(sizes, message):
    with pytest.raises(DataError, match=message) as caught:
        draw(rows(20), **sizes)
    assert "lower `test`, `validation` or `train`, or add rows" in str(caught.value)


def test_keep_uses_the_rows_own_split():
    given_rows = [{"prompt": f"p{side}", "split": side} for side in ("test", "val", "train", "validation")]
    given_rows[3]["prompt"] = "another"
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
def test_keep_refuses_unknown_empty_and_leaking_splits(given_rows, message):
    with pytest.raises(DataError, match=message):
        keep(given_rows, name="x")
