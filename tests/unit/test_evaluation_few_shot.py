"""Arms beside the bare model: demonstrations, baselines, repeats, and training rows that may not be asked."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_files import append, log_of

from slm_ray.config import EvaluateConfig
from slm_ray.corpus.render import prompt_hash, prompt_of
from slm_ray.corpus.tracks import track
from slm_ray.errors import ConfigError, DataError
from slm_ray.evaluation.plan import Arm, Plan, plan
from slm_ray.providers import parse
from slm_ray.runlog import Response, RunLog, request_key
from slm_ray.types import Completion

TASKS = ["book a table for two", "book a table for nine", "play some jazz music", "play some rock music"]


def write(path: Path, rows: list[tuple[str, str]]) -> str:
    path.write_text("".join(json.dumps({"id": q, "prompt": q, "completion": a}) + "\n" for q, a in rows))
    return str(path)


def config(tmp_path: Path, **changes: Any) -> EvaluateConfig:
    train = [*((task, f'"{task}"') for task in TASKS), ("something else", '"play some jazz music"')]
    return EvaluateConfig.model_validate(
        {
            "track": "structured",
            "examples": write(
                tmp_path / "test.jsonl", [("book a table for six", "{}"), ("play some jazz MUSIC", "{}")]
            ),
            "models": ["fake:echo"],
            "run_dir": str(tmp_path / "run"),
            "demonstrations": write(tmp_path / "train.jsonl", train),
            **changes,
        }
    )


def asked(planned: Plan, arm: Arm, tmp_path: Path) -> list[list[str]]:
    pending = arm.pending(planned.examples, RunLog(tmp_path))
    return [[turn.content for turn in request.prompt.messages[1:]] for request in pending]


def test_a_spec_says_how_many_demonstrations_it_wants() -> None:
    def split(spec: str) -> tuple[str, int]:
        model = parse(spec)
        assert model.spec == spec
        return model.provider.spec, model.demonstrations

    assert split("azure:gpt-4o+3shot") == ("azure:gpt-4o", 3)
    assert split("served:base:adapter-0123+12shot") == ("served:base:adapter-0123", 12)
    for plain in ("azure:", "served:m+0shot", "fake:a+shot", "openai:m@https://h/v1"):
        assert split(plain) == (plain, 0)
    with pytest.raises(ConfigError, match=r"leave \+3shot away"):
        parse("baseline:majority+3shot")


def test_demonstrations_are_the_nearest_rows_nearest_last_and_never_the_row_itself(tmp_path: Path) -> None:
    planned = plan(config(tmp_path, models=["fake:echo", "fake:echo+2shot"]), {})
    bare, shown = (asked(planned, arm, tmp_path) for arm in planned.arms)
    assert bare == [["book a table for six"], ["play some jazz MUSIC"]]
    near = {row[-1]: row[:-1] for row in shown}
    assert near["book a table for six"] == [
        "book a table for two",
        '"book a table for two"',
        "book a table for nine",
        '"book a table for nine"',
    ] or (near["book a table for six"][::2] == ["book a table for nine", "book a table for two"])
    # "play some jazz music" asks what the row of the evaluation asks, so it shows nobody its answer
    assert not [turn for turns in shown for turn in turns[:-1] if turn == "play some jazz music"]
    assert near["play some jazz MUSIC"][2] == "play some rock music"
    assert planned.left_out == 1
    assert not set(planned.arms[0].keys.values()) & set(planned.arms[1].keys.values())


def test_a_row_that_is_asked_is_shown_to_no_other_row(tmp_path: Path) -> None:
    planned = plan(config(tmp_path, models=["fake:echo+5shot"], limit=1), {})
    (turns,) = asked(planned, planned.arms[0], tmp_path)
    assert "play some jazz music" not in turns[::2]
    assert len(turns) == 2 * 4 + 1


def test_demonstrations_need_rows(tmp_path: Path) -> None:
    for spec in ("fake:echo+1shot", "baseline:majority"):
        with pytest.raises(ConfigError, match="set demonstrations"):
            plan(config(tmp_path, models=[spec], demonstrations=None), {})
    with pytest.raises(ConfigError, match="majority, nearest"):
        plan(config(tmp_path, models=["baseline:mode"]), {})
    same = str(tmp_path / "test.jsonl")
    with pytest.raises(ConfigError, match="all 2 rows are rows of the evaluation"):
        plan(config(tmp_path, models=["fake:echo+1shot"], demonstrations=same), {})


def answers(planned: Plan, spec: str) -> list[Completion]:
    arm = next(arm for arm in planned.arms if arm.spec == spec)

    async def all_of_them() -> list[Completion]:
        model = arm.provider.open(
            endpoint="", generation=EvaluateConfig.model_fields["generation"].default, environment={}
        )
        return [await model.complete(row.id, row.prompt) for row in planned.examples]

    return asyncio.run(all_of_them())


def test_baselines_answer_from_training_rows_and_are_signed(tmp_path: Path) -> None:
    planned = plan(config(tmp_path, models=["baseline:majority", "baseline:nearest"]), {})
    commonest, nearest = answers(planned, "baseline:majority"), answers(planned, "baseline:nearest")
    assert [answer.text for answer in commonest] == ['"play some jazz music"'] * 2
    assert nearest[0].text in ('"book a table for two"', '"book a table for nine"')
    assert nearest[1].text == '"play some rock music"'  # not its own answer
    assert {answer.served_by for answer in (*commonest, *nearest)} == {"baseline:majority", "baseline:nearest"}
    assert nearest == answers(planned, "baseline:nearest")
    before = planned.arms[0].keys
    write(tmp_path / "other.jsonl", [("x", "y")])
    assert (
        plan(config(tmp_path, models=["baseline:majority"], demonstrations=str(tmp_path / "other.jsonl")), {})
        .arms[0]
        .keys
        != before
    )


def test_repeats_are_questions_of_their_own_and_leave_the_first_as_it_was(tmp_path: Path) -> None:
    once, thrice = plan(config(tmp_path), {}), plan(config(tmp_path, repeats=3), {})
    assert thrice.arms[0].keys == once.arms[0].keys
    keys = [row.key for row in thrice.requests()]
    assert len(keys) == len(set(keys)) == 6
    assert [row.repeat for row in thrice.requests()] == [0, 0, 1, 1, 2, 2]
    assert once.id != thrice.id
    assert once.id == plan(config(tmp_path, run_dir="elsewhere"), {}).id


def test_training_rows_are_refused_with_counts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 of 2 rows of .*test.jsonl are training rows of .*train.jsonl \(play some"):
        plan(config(tmp_path, train=str(tmp_path / "train.jsonl")), {})
    seen = {prompt_hash(prompt_of(track("structured"), "book a table for six"))}
    with pytest.raises(DataError, match=r"1 of 2 rows .* are training rows of served:m:a"):
        plan(config(tmp_path), {}, {"served:m:a": seen})
    write(tmp_path / "apart.jsonl", [("quite another question", "{}")])
    assert plan(config(tmp_path, train=str(tmp_path / "apart.jsonl")), {}).examples


def test_an_adapters_own_record_is_looked_up(tmp_path: Path) -> None:
    adapter = tmp_path / "adapters" / "mine-0123456789ab"
    with pytest.raises(Exception, match="mine-0123456789ab"):
        plan(config(tmp_path, models=["served:m:mine-0123456789ab"], adapters_dir=str(adapter.parent)), {})
    assert plan(config(tmp_path, models=["served:m"], adapters_dir=str(adapter.parent)), {}).arms


BODY = json.dumps(
    {"messages": [{"role": "user", "content": "book a table for six, please"}], "max_tokens": 256, "seed": 42}
)


@settings(max_examples=100, deadline=None)
@given(at=st.integers(0, len(BODY) - 1), letter=st.characters(min_codepoint=33, max_codepoint=126))
def test_one_changed_byte_of_the_request_is_another_call(at: int, letter: str) -> None:
    changed = BODY[:at] + letter + BODY[at + 1 :]
    try:
        body = json.loads(changed)
    except json.JSONDecodeError:
        body = {"messages": changed}  # a byte that breaks the JSON is a changed request all the same
    same = request_key("d", "r", "m", json.loads(BODY))
    assert (request_key("d", "r", "m", body) == same) == (body == json.loads(BODY))
    assert request_key("d", "r", "m", body, 1) != same


def test_a_hundred_one_byte_changes_are_a_hundred_misses(tmp_path: Path) -> None:
    text = "x" * 100
    with log_of(tmp_path) as log:
        for n, said in enumerate([text, *(text[:at] + "y" + text[at + 1 :] for at in range(100))]):
            body = {"messages": [{"role": "user", "content": said}], "max_tokens": 9}
            key = request_key("data", "row", "model", body)
            assert log.response(key) is None, f"change {n} hit the cache"
            response = Response(key=key, spec="s", example_id="row", completion=Completion(text=str(n)), answered_ns=1)
            append(tmp_path, [response])
            log.read()
            assert log.response(key) == response
        assert log.count() == 101
