"""Balance: caps hold, no row is repeated or lost unsaid, and the draw depends on seed and ids alone."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_ray.corpus.balance import apportion, balance, by_source, cap, mix, shortest_first
from slm_ray.errors import ConfigError, DataError
from slm_ray.types import Example, Message, Prompt


def example(name: Any, answer: Any = "a", question: Any = "ask", **tags: Any) -> Any:
    return Example(
        id=str(name), prompt=Prompt(messages=(Message(role="user", content=question),)), target=answer, tags=tags
    )


def labelled(labels: Any) -> Any:
    return [example(place, label) for place, label in enumerate(labels)]


def ids(rows: Any) -> Any:
    return [row.id for row in rows]


@given(st.lists(st.sampled_from("abc"), max_size=40), st.integers(1, 9))
def test_a_cap_keeps_that_many_of_each_class_in_their_order(labels: Any, most: Any) -> None:
    rows = labelled(labels)
    kept, step = cap(rows, most=most)
    assert Counter(row.target for row in kept) == {label: min(count, most) for label, count in Counter(labels).items()}
    assert kept == [row for row in rows if row in kept]
    assert (step.kept, step.dropped) == (len(kept), len(rows) - len(kept))


@given(st.lists(st.sampled_from("aab"), max_size=30))
def test_which_rows_go_depends_on_seed_and_ids_alone(labels: Any) -> None:
    rows = labelled(labels)
    assert set(ids(cap(rows, most=3)[0])) == set(ids(cap(rows[::-1], most=3)[0]))
    assert set(ids(cap(rows, most=3)[0])) <= set(ids(cap(rows, most=4)[0]))


def test_another_seed_draws_others() -> None:
    rows = labelled("a" * 50)
    assert cap(rows, most=10, seed=1)[0] != cap(rows, most=10, seed=2)[0]


def test_a_class_can_be_a_tag_and_rows_without_it_are_one_class() -> None:
    rows = [example(1, tool="x"), example(2, tool="x"), example(3), example(4), example(5, tool="y")]
    kept, step = cap(rows, most=1, tag="tool")
    assert Counter(row.tags.get("tool") for row in kept) == {"x": 1, "y": 1, None: 1}
    assert step.note == "2 of 3 classes had over 1 rows, the largest 2"
    with pytest.raises(DataError, match="no row has the tag 'tol'; did you mean 'tool'"):
        cap(rows, most=1, tag="tol")
    with pytest.raises(DataError, match="no row has any tag"):
        cap([example(1)], most=1, tag="tool")
    with pytest.raises(ConfigError, match="at most 0 rows"):
        cap(rows, most=0)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=40), st.floats(1, 4))
def test_balance_holds_the_ratio_to_the_smallest_class(labels: Any, ratio: Any) -> None:
    kept, step = balance(labelled(labels), ratio=ratio)
    counts, smallest = Counter(row.target for row in kept), min(Counter(labels).values())
    assert min(counts.values()) == smallest
    assert max(counts.values()) <= ratio * smallest
    assert set(counts) == set(labels)
    assert step.name == "balance"
    assert step.kept + step.dropped == len(labels)


def test_balance_names_the_smallest_class() -> None:
    assert balance(labelled("aaabb"))[1].note == "2 classes, the smallest is 'b' with 2 rows"
    assert balance([])[0] == []
    with pytest.raises(ConfigError, match="below 1"):
        balance(labelled("ab"), ratio=0.5)


weights = st.dictionaries(st.sampled_from("abcdef"), st.floats(0.01, 100), min_size=1)


@given(st.integers(0, 500), weights)
def test_apportioned_parts_are_whole_add_up_and_are_within_one_of_fair(total: Any, given_weights: Any) -> None:
    parts = apportion(total, given_weights)
    assert sum(parts.values()) == total
    for name, weight in given_weights.items():
        assert abs(parts[name] - total * weight / sum(given_weights.values())) < 1 + 1e-9


def test_apportion_breaks_ties_by_name() -> None:
    assert apportion(4, {"b": 1, "a": 1, "c": 1}) == {"b": 1, "a": 2, "c": 1}


def sources(*sizes: Any) -> Any:
    return {name: [example(place) for place in range(size)] for name, size in zip("abc", sizes, strict=False)}


def test_a_mix_has_its_weights_and_ids_of_its_own() -> None:
    mixed, step = mix(sources(100, 100), {"a": 3, "b": 1}, rows=40)
    assert Counter(row.tags["source"] for row in mixed) == {"a": 30, "b": 10}
    assert len({row.id for row in mixed}) == 40
    assert all(row.id.startswith(row.tags["source"] + "/") for row in mixed)
    assert (step.kept, step.dropped, step.note) == (40, 160, "a: 30 of 100, b: 10 of 100")
    firsts = Counter(row.tags["source"] for row in mixed[:20])
    assert firsts["a"] < 20
    assert firsts["b"] < 10


@given(st.integers(1, 60), st.integers(1, 60), st.floats(0.05, 20))
def test_a_mix_without_a_size_takes_what_the_sources_allow(left: Any, right: Any, weight: Any) -> None:
    mixed, _ = mix(sources(left, right), {"a": weight, "b": 1})
    counts = Counter(row.tags["source"] for row in mixed)
    share = weight / (weight + 1)
    assert abs(counts["a"] - share * len(mixed)) < 1 + 1e-9
    # One of the two has run dry, but for the rounding of its part.
    assert min(left - counts["a"] - max(1, share / (1 - share)), right - counts["b"] - max(1, (1 - share) / share)) <= 0


def test_equal_weights_use_equal_sources_up() -> None:
    assert len(mix(sources(10, 10, 10), {"a": 0.1, "b": 0.1, "c": 0.1})[0]) == 30


def test_a_mix_does_not_depend_on_the_order_of_the_rows() -> None:
    there = sources(30, 30)
    turned = {name: rows[::-1] for name, rows in reversed(there.items())}
    assert mix(there, {"a": 1, "b": 2}, rows=20)[0] == mix(turned, {"a": 1, "b": 2}, rows=20)[0]
    assert mix(there, {"a": 1, "b": 2}, rows=20)[0] != mix(there, {"a": 1, "b": 2}, rows=20, seed=1)[0]


@pytest.mark.parametrize(
    ("given_weights", "message"),
    [
        ({"a": 1, "B": 1}, "unknown source 'B'"),
        ({"a": 1}, "source 'b' has the weight None"),
        ({"a": 1, "b": 0}, "source 'b' has the weight 0"),
        ({"a": 1, "b": float("nan")}, "source 'b' has the weight nan"),
        ({"a": float("inf"), "b": 1}, "source 'a' has the weight inf"),
    ],
)
def test_every_source_needs_a_weight(given_weights: Any, message: Any) -> None:
    with pytest.raises(ConfigError, match=message):
        mix(sources(3, 3), given_weights)


def test_a_source_with_too_few_rows_is_refused_with_the_size_that_works() -> None:
    with pytest.raises(DataError, match="source 'a' has 3 rows and its weight asks for 10 of 20; ask for at most 6"):
        mix(sources(3, 30), {"a": 1, "b": 1}, rows=20)
    assert len(mix(sources(3, 30), {"a": 1, "b": 1}, rows=6)[0]) == 6
    with pytest.raises(DataError, match="source 'b' has no rows; leave it out"):
        mix(sources(3, 0), {"a": 1, "b": 1})


def test_the_shortest_come_first() -> None:
    rows = [example("b", "x y z"), example("c", "x"), example("a", "x", question="one two"), example("d", "x y")]
    assert ids(shortest_first(rows)[0]) == ["c", "a", "d", "b"]
    assert shortest_first(rows)[1] == shortest_first(rows[::-1])[1]


def test_sources_come_in_the_order_asked_for() -> None:
    rows, _ = mix(sources(3, 3), {"a": 1, "b": 1})
    ordered, step = by_source(rows, ["b", "a"])
    assert [row.tags["source"] for row in ordered] == ["b"] * 3 + ["a"] * 3
    assert [row for row in ordered if row.tags["source"] == "a"] == [row for row in rows if row.tags["source"] == "a"]
    assert step.note == "b, then a"
    for order in (["a"], ["a", "b", "c"], ["a", "b", "a"]):
        with pytest.raises(ConfigError, match="name each of these once: a, b"):
            by_source(rows, order)
