"""The plan of an evaluation: all is checked before anything starts, and a key is what makes a call."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slm_ray.config import EvaluateConfig
from slm_ray.errors import ConfigError, DataError, ModelError
from slm_ray.evaluation.asking_order import AskingOrder, drawn, keep_order
from slm_ray.evaluation.plan import plan


def config(tmp_path: Path, **changes: Any) -> EvaluateConfig:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"id": f"r{n}", "prompt": f"q{n}", "completion": "{}"}) + "\n" for n in range(5))
    )
    settings = {
        "track": "structured",
        "examples": str(path),
        "models": ["fake:{}"],
        "run_dir": str(tmp_path / "run"),
        **changes,
    }
    return EvaluateConfig.model_validate(settings)


def test_everything_is_checked_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fake:x is listed twice"):
        plan(config(tmp_path, models=["fake:x", "fake:x"]), {})
    with pytest.raises(ConfigError, match="unknown track 'structred'"):
        plan(config(tmp_path, track="structred"), {})
    with pytest.raises(ModelError, match="AZURE_API_KEY"):
        plan(config(tmp_path, models=["fake:x", "azure:"]), {})
    (tmp_path / "other.jsonl").write_text('{"prompt": "another task", "prediction": "x"}\n')
    with pytest.raises(DataError, match="no answer to any"):
        plan(config(tmp_path, models=[f"recorded:{tmp_path / 'other.jsonl'}"]), {})
    assert not (tmp_path / "run").exists()


def keys(tmp_path: Path, **changes: Any) -> dict[str, str]:
    return dict(plan(config(tmp_path, **changes), {}).arms[0].keys)


def test_a_key_changes_with_what_is_asked_and_with_nothing_else(tmp_path: Path) -> None:
    base = keys(tmp_path)
    assert len(set(base.values())) == 5
    assert base == keys(tmp_path, run_dir="elsewhere", shards=3, generation={"concurrency": 2, "timeout_s": 1})
    assert {row: base[row] for row in ("r0", "r1")} == keys(tmp_path, limit=2)
    for changes in ({"generation": {"max_tokens": 9}}, {"generation": {"seed": 1}}, {"models": ["fake:[]"]}):
        assert not set(base.values()) & set(keys(tmp_path, **changes).values())


def test_a_plan_shows_no_key(tmp_path: Path) -> None:
    environment = {"AZURE_ENDPOINT": "https://x", "AZURE_API_KEY": "canary", "AZURE_DEPLOYMENT": "d", "OTHER": "canary"}
    planned = plan(config(tmp_path, models=["azure:"]), environment)
    assert "canary" not in repr(planned)
    assert "OTHER" not in planned.arms[0].environment


def sequential(tmp_path: Path, **changes: Any) -> EvaluateConfig:
    return config(tmp_path, declare={"rule": "sequential"}, **changes)


def more(tmp_path: Path, name: str, *lines: dict[str, Any]) -> str:
    path = tmp_path / name
    path.write_text("".join(json.dumps({"completion": "{}", **line}) + "\n" for line in lines))
    return str(path)


def many(tmp_path: Path, count: int = 60, **changes: Any) -> EvaluateConfig:
    rows = more(
        tmp_path, "many.jsonl", *({"id": f"m{n}", "prompt": f"p{n}", "group": f"g{n % 20}"} for n in range(count))
    )
    return sequential(tmp_path, examples=rows, **changes)


def order_of(settings: EvaluateConfig) -> list[str]:
    return [row.id for row in plan(settings, {}).examples]


def test_an_order_is_drawn_from_the_seed_with_groups_together(tmp_path: Path) -> None:
    order = order_of(many(tmp_path))
    assert order == order_of(many(tmp_path, run_dir="elsewhere", models=["fake:x", "fake:y"]))
    groups = [int(row[1:]) % 20 for row in order]
    assert [groups[at] for at in range(0, 60, 3)] == [groups[at + 2] for at in range(0, 60, 3)]
    assert sorted(groups) != groups
    another = order_of(many(tmp_path, generation={"seed": 7}))
    assert another != order and sorted(another) == sorted(order)
    paired = many(tmp_path).model_copy(update={"declare": None})
    assert order_of(paired) == [f"m{n}" for n in range(60)]


def test_the_order_does_not_depend_on_that_of_the_file_and_a_limit_cuts_no_group(tmp_path: Path) -> None:
    order = order_of(many(tmp_path))
    backwards = [json.loads(line) for line in (tmp_path / "many.jsonl").read_text().splitlines()][::-1]
    again = order_of(sequential(tmp_path, examples=more(tmp_path, "backwards.jsonl", *backwards)))
    assert [int(row[1:]) % 20 for row in again] == [int(row[1:]) % 20 for row in order]
    assert order_of(many(tmp_path, limit=10)) == order[:9]
    assert order_of(many(tmp_path, limit=2)) == order[:3]


LANGUAGES = ["en"] * 57 + ["de"] * 31 + ["pl"] * 17  # 105 rows: ten rounds of ten, and five rows


def languages(tmp_path: Path, name: str = "languages", **changes: Any) -> EvaluateConfig:
    lines = ({"id": f"{name}{n}", "prompt": f"{name} {n}", "tags": {"language": it}} for n, it in enumerate(LANGUAGES))
    rows = more(tmp_path, f"{name}.jsonl", *lines)
    return config(tmp_path, **{"examples": rows, "declare": {"rule": "sequential", "stratify": "language"}, **changes})


def test_in_a_stratified_order_every_value_has_had_its_share_after_every_round(tmp_path: Path) -> None:
    for seed in range(5):
        found = plan(languages(tmp_path, generation={"seed": seed}), {})
        assert found.rounds == ((10, 10), (1, 5)) and found.order is not None and found.order.stratify == "language"
        assert sorted(row.id for row in found.examples) == sorted(f"languages{n}" for n in range(105))
        for end in range(10, 101, 10):
            seen = Counter(row.tags["language"] for row in found.examples[:end])
            for language, count in Counter(LANGUAGES).items():
                assert abs(seen[language] - end * count / 105) < 2.5, (end, seen)
    plain = plan(languages(tmp_path, declare={"rule": "sequential"}), {})
    assert plain.rounds == () and plain.examples != found.examples


def test_each_round_of_a_large_file_has_what_whole_parts_give_and_chance_fills_the_shared_ones(tmp_path: Path) -> None:
    one, *_ = plan(languages(tmp_path), {}).examples
    rows = [replace(one, id=f"r{n}", tags={"language": it}) for n, it in enumerate(LANGUAGES * 15)]
    rounds = drawn(rows, 1, "language")[:157]
    # Of ten parts in the order of the values: 2.95, 5.43 and 1.62, so that the third and the ninth hold two values.
    for language, whole, shared in (("de", 2, 1), ("en", 5, 2), ("pl", 1, 1)):
        seen = {sum(group[0].tags["language"] == language for group in groups) for groups in rounds}
        assert seen == set(range(whole, whole + shared + 1)), (language, seen)


def test_which_row_of_a_part_comes_when_is_drawn(tmp_path: Path) -> None:
    rows = plan(languages(tmp_path), {}).examples
    last_of_english = Counter(
        at
        for seed in range(300)
        for at, one in enumerate(drawn(rows, seed, "language")[:10])
        for group in one
        if group[0].id == "languages56"
    )
    assert len(last_of_english) == 10 and max(last_of_english.values()) < 60  # 29 each where none is preferred


def test_a_stratified_order_keeps_groups_and_whole_rounds_and_takes_further_rows(tmp_path: Path) -> None:
    grouped = more(
        tmp_path, "grouped.jsonl",
        *({"id": f"m{n}", "prompt": f"p{n}", "group": f"g{n % 25}", "tags": {"kind": str(n % 25 % 2)}} for n in range(50)),
    )  # fmt: skip
    declare = {"rule": "sequential", "stratify": "kind"}
    found = plan(config(tmp_path, examples=grouped, declare=declare), {})
    assert found.rounds == ((10, 2), (1, 5))
    places = [int(row.id[1:]) % 25 for row in found.examples]
    assert places[::2] == places[1::2], "rows of a group stand together"
    cut = plan(config(tmp_path, examples=grouped, declare=declare, limit=39), {})
    assert cut.rounds == ((10, 1),) and cut.examples == found.examples[:20]
    longer = plan(languages(tmp_path, extend=languages(tmp_path, "more").examples), {})
    assert longer.rounds == ((10, 10), (1, 5), (10, 10), (1, 5))
    assert longer.examples[:105] == plan(languages(tmp_path), {}).examples
    few = plan(
        config(
            tmp_path,
            examples=more(tmp_path, "few.jsonl", {"id": "a", "prompt": "a", "tags": {"kind": "x"}}),
            declare=declare,
        ),
        {},
    )
    assert few.rounds == ((1, 1),)


def test_a_tag_that_no_row_has_and_a_rule_without_an_order_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no row has the tag 'langage'; .*language"):
        plan(languages(tmp_path, declare={"rule": "sequential", "stratify": "langage"}), {})
    with pytest.raises(ValueError, match="stratify: language orders the rows of the rule sequential"):
        languages(tmp_path, declare={"rule": "paired", "stratify": "language"})


def test_each_place_of_an_order_is_any_rows_place(tmp_path: Path) -> None:
    rows = plan(config(tmp_path), {}).examples
    first = Counter(drawn(rows, seed)[0][0][0].id for seed in range(2000))
    assert set(first) == {row.id for row in rows}
    assert all(320 < count < 480 for count in first.values())  # 400 each, give or take four standard deviations


def test_further_rows_come_behind_the_first_and_keep_their_keys(tmp_path: Path) -> None:
    first, second = (
        more(tmp_path, f"{name}.jsonl", *({"id": f"{name}{n}", "prompt": f"{name} asks {n}"} for n in range(8)))
        for name in ("x", "y")
    )
    short, long, longest = (plan(sequential(tmp_path, extend=extend), {}) for extend in ((), first, (first, second)))
    assert short.examples == long.examples[:5] and long.examples == longest.examples[:13]
    assert {row.id[0] for row in longest.examples[13:]} == {"y"}
    assert [row.id for row in long.examples[5:]] != [f"x{n}" for n in range(8)]
    keys = [dict(one.arms[0].keys) for one in (short, long, longest)]
    assert keys[0].items() < keys[1].items() < keys[2].items()
    assert len({one.digest for one in (short, long, longest)}) == 3
    assert short.digest == plan(config(tmp_path), {}).digest
    assert longest.order is not None and len(longest.order.files) == 3


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": "new", "prompt": " Q3 "}, r"1 of 1 rows ask what earlier rows ask \(new\)"),
        ({"id": "r3", "prompt": "new"}, r"1 of 1 rows have the id of an earlier row \(r3\)"),
    ],
)
def test_further_rows_that_were_there_before_are_refused(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        plan(sequential(tmp_path, extend=more(tmp_path, "more.jsonl", row)), {})


def test_further_rows_share_no_group_and_have_none_larger_than_the_first(tmp_path: Path) -> None:
    shared = more(tmp_path, "shared.jsonl", {"id": "a", "prompt": "a", "group": "g3"})
    with pytest.raises(DataError, match=r"1 of 1 rows are of the group of an earlier row \(a\)"):
        plan(many(tmp_path, extend=shared), {})
    large = more(tmp_path, "large.jsonl", *({"id": f"a{n}", "prompt": f"a{n}", "group": "new"} for n in range(4)))
    with pytest.raises(DataError, match=r"a group of 4 rows, and .* has none of more than 3"):
        plan(many(tmp_path, extend=large), {})


def test_further_rows_may_be_no_training_rows(tmp_path: Path) -> None:
    train = more(tmp_path, "train.jsonl", {"id": "t", "prompt": "seen"}, {"id": "u", "prompt": "also seen"})
    extend = more(tmp_path, "more.jsonl", {"id": "a", "prompt": "seen"})
    with pytest.raises(DataError, match=r"1 of 1 rows of \S*more\.jsonl are training rows of \S*train\.jsonl"):
        plan(sequential(tmp_path, extend=extend, train=train), {})
    with pytest.raises(DataError, match=r"1 of 1 rows of .* are training rows of demonstrations"):
        plan(sequential(tmp_path, extend=extend, demonstrations=train, models=["baseline:majority"]), {})


def test_a_guardrail_that_no_row_has_is_refused_before_any_call(tmp_path: Path) -> None:
    for rule in ("sequential", "paired"):
        with pytest.raises(
            ConfigError, match=r"declare\.guardrails: 'nope' is no metric of a row: known: .*json_valid"
        ):
            plan(config(tmp_path, declare={"rule": rule, "guardrails": ["nope"]}), {})
    assert plan(config(tmp_path, declare={"rule": "sequential", "guardrails": ["json_valid"]}), {}).order
    later = {"rule": "paired", "guardrails": ["bert_score_f1"]}  # an encoder adds it when all rows are answered
    assert plan(config(tmp_path, encoder="folder", declare=later), {}).arms


def test_rows_are_added_under_the_sequential_rule_only(tmp_path: Path) -> None:
    for declared in (None, {"rule": "paired"}, {"rule": "point"}):
        with pytest.raises(ValueError, match="evaluate the new rows alone, in a run_dir of their own"):
            config(tmp_path, extend="more.jsonl", declare=declared)


def test_a_run_that_may_stop_has_a_candidate_and_asks_once(tmp_path: Path) -> None:
    stops = {"rule": "sequential", "stop": "when_decided"}
    with pytest.raises(ConfigError, match=r"only fake:\{\}; stop: when_decided needs two or more, the LLM first"):
        plan(config(tmp_path, declare=stops), {})
    with pytest.raises(ValueError, match="repeats: 1, or stop: never"):
        config(tmp_path, declare=stops, repeats=2)


def test_an_order_is_kept_and_another_one_refused(tmp_path: Path) -> None:
    first = AskingOrder(seed=1, files=("a",), largest_group=2)
    keep_order(tmp_path, first)
    keep_order(tmp_path, replace(first, files=("a", "b")))
    keep_order(tmp_path, first)  # a run on fewer rows forgets nothing
    for other, said in (
        (replace(first, seed=2), "drawn from seed 1, and generation.seed is 2 now"),
        (replace(first, stratify="tool"), "drawn plainly, and declare.stratify makes it stratified by 'tool' now"),
        (replace(first, files=("c",)), "drawn for other rows"),
        (replace(first, files=("a", "c")), "drawn for other rows"),
    ):
        with pytest.raises(ConfigError, match=said):
            keep_order(tmp_path, other)


def test_a_plan_of_the_first_rows_holds_so_many_of_each_arm(tmp_path: Path) -> None:
    whole = plan(sequential(tmp_path, models=["fake:{}", "fake:x"]), {})
    part = whole.upto({"fake:{}": 4, "fake:x": 2})
    assert part.examples == whole.examples[:4]
    assert [list(arm.keys) for arm in part.arms] == [[row.id for row in whole.examples[:n]] for n in (4, 2)]
