"""From the log of live requests to rows: which answer is learned, what is left out, each counted, nothing twice."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from traffic_rows import NOW, answer, asked, log_of, said

from slm_ray.config import Live, PrepareConfig
from slm_ray.corpus.tracks import track
from slm_ray.errors import ConfigError, DataError
from slm_ray.prepare import Prepared, prepare
from slm_ray.prepare.live import live_fingerprint, live_rows, without_held_back
from slm_ray.traffic import Feedback, TrafficLog, TrafficRow
from slm_ray.types import Example

STRUCTURED = track("structured")


def run(tmp_path: Path, source: str, **settings: Any) -> Prepared:
    chosen = {"validation_rows": 2, "test_rows": 2} | settings
    return prepare(PrepareConfig(source=source, track="structured", out_dir=str(tmp_path / "out"), **chosen))


def examples(prepared: Prepared) -> dict[str, Example]:
    return {row.id: row for name in prepared.rows for row in prepared.dataset(name).examples}


def test_a_log_becomes_rows_and_every_request_that_does_not_is_counted(tmp_path: Path) -> None:
    entries: list[TrafficRow | Feedback] = [asked(f"good{n}", said(n), said(n)) for n in range(8)]
    entries += [
        asked("corrected", said("wrong")), Feedback(id="corrected", at=NOW, answer=said("right")),
        asked("twice", said("wrong")), Feedback(id="twice", at=NOW, answer=said("right")),
        Feedback(id="twice", at=NOW + 1, answer="as I said"),
        asked("in words", said("wrong")), Feedback(id="in words", at=NOW, answer="no, it is four"),
        asked("slm-right", None, said("s"), served="slm"), Feedback(id="slm-right", at=NOW, score=1.0),
        asked("slm-alone", None, said("s"), served="slm"),
        asked("llm-wrong", said("w")), Feedback(id="llm-wrong", at=NOW, score=0.0),
        asked("prose", "the answer is 4"),
        replace(asked("failed", said(1)), answers=(answer("llm", None, reason="timeout"),)),
        replace(asked("assistant-last", said(1)), request={"messages": [{"role": "assistant", "content": "x"}]}),
        replace(asked("odd", said(1)), request={"prompt": "not a chat"}),
    ]  # fmt: skip
    prepared = run(tmp_path, log_of(tmp_path / "log", *entries))
    found = examples(prepared)
    assert set(found) == {*(f"good{n}" for n in range(8)), "corrected", "twice", "slm-right"}
    assert found["twice"].target == said("right"), "what the track cannot read takes nothing back"
    assert (found["corrected"].target, found["slm-right"].target) == (said("right"), said("s"))
    assert (found["corrected"].tags["target_from"], found["good1"].tags["target_from"]) == ("user", "llm")
    step = next(step for step in prepared.steps if step.name == "live requests")
    assert (step.kept, step.dropped) == (11, 7)
    for reason in (
        "the answer that a user gave is not strict JSON: 1",
        "the LLM was not asked: 1",
        "scored the LLM's answer wrong: 1",
        "the answer is not",
        "did not answer: 1",
    ):
        assert reason in step.note
    assert sum(prepared.rows.values()) == 11


def test_an_answer_that_something_was_taken_out_of_is_not_learned(tmp_path: Path) -> None:
    entries: list[TrafficRow | Feedback] = [
        asked("kept", said(1), question="who is ann@b.co?"), asked("llm", said("ann@b.co")),
        asked("user", said(1)), Feedback(id="user", at=NOW, answer=said("ann@b.co")),
        asked("slm", None, said("ann@b.co"), served="slm"), Feedback(id="slm", at=NOW, score=1.0),
    ]  # fmt: skip
    found = live_rows(log_of(tmp_path / "log", *entries), STRUCTURED, Live(), ask_again=True)
    assert [row.id for row in found.rows] == ["kept"] and found.steps[0].note == "the answer was redacted: 3"
    assert found.rows[0].turns[-1].content == "who is [email]?"


def test_the_same_log_is_prepared_once_whether_its_rows_lie_in_a_journal_or_in_parts(tmp_path: Path) -> None:
    source = str(tmp_path / "log")
    with TrafficLog(source) as log:
        for n in range(8):
            log.append(asked(f"{n}", said(n), later=-n))
        assert log.flush()
        first, mark = run(tmp_path, source), live_fingerprint(source)
        TrafficLog(source).close()  # the first writer is alive: nothing of its own is taken
        assert not list(Path(source).rglob("*.parquet"))
    assert list(Path(source).rglob("*.parquet")) and live_fingerprint(source) == mark
    written = (tmp_path / "out" / "train.jsonl").stat().st_mtime_ns
    assert run(tmp_path, source) == first and (tmp_path / "out" / "train.jsonl").stat().st_mtime_ns == written
    with TrafficLog(source) as log:
        log.append(asked("new", said(1)))
    assert run(tmp_path, source).rows["train"] == 5


def test_rows_that_ask_what_a_test_row_asks_are_left_out(tmp_path: Path) -> None:
    test = tmp_path / "test.jsonl"
    test.write_text(json.dumps({"prompt": "how many of 3 and 3?", "completion": said(3)}) + "\n")
    source = log_of(tmp_path / "log", *(asked(f"{n}", said(n)) for n in range(8)))
    prepared = run(tmp_path, source, test_source=str(test), test_rows=None)
    assert "3" not in {row.id for row in prepared.dataset("train").examples}
    assert next(step.dropped for step in prepared.steps if step.name == "leaks") == 1


def test_a_damaged_part_refuses_the_log_or_is_left_out_and_counted(tmp_path: Path) -> None:
    source = log_of(tmp_path / "log", *(asked(f"{n}", said(n)) for n in range(8)))
    log_of(tmp_path / "log", asked("lost", said(1)))
    part = sorted(Path(source).rglob("*.parquet"), key=lambda path: path.stat().st_mtime_ns)[-1]
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(DataError, match=part.name):
        run(tmp_path, source)
    assert run(tmp_path, source, max_bad_share=0.5).bad == {"damaged": 1}


def test_a_route_is_named_where_there_are_several(tmp_path: Path) -> None:
    source = log_of(tmp_path / "log", *(asked(f"{n}", said(n), route="ab"[n % 2]) for n in range(8)))
    with pytest.raises(ConfigError, match="the routes a, b"):
        live_rows(source, STRUCTURED, Live())
    with pytest.raises(ConfigError, match="no route 'c'"):
        live_rows(source, STRUCTURED, Live(route="c"))
    found = live_rows(source, STRUCTURED, Live(route="b"))
    assert [row.id for row in found.rows] == list("1357") and found.steps[0].dropped == 4


def trained_on(source: str, **settings: Any) -> list[str]:
    found = live_rows(source, STRUCTURED, Live(**settings))
    return [row.id for row in without_held_back(found.rows, found.held_back)[0]]


def test_the_filters_choose_training_rows_and_leave_test_rows_as_traffic_is(tmp_path: Path) -> None:
    rows = [asked(f"{n}", said(n), said(n if n % 2 else "other")) for n in range(60)]
    source = log_of(tmp_path / "log", *rows)
    prepared = run(tmp_path, source, validation_rows=10, test_rows=20, live={"disagreement": "drop"})
    split = {name: [int(row.id) % 2 for row in prepared.dataset(name).examples] for name in prepared.rows}
    assert set(split["train"]) == {1} and set(split["test"]) == {0, 1} == set(split["validation"])
    step = next(step for step in prepared.steps if step.name == "live filters")
    assert step.dropped + len(split["train"]) == 30 and step.dropped > 0


def test_answers_to_one_question_must_agree(tmp_path: Path) -> None:
    entries: list[TrafficRow | Feedback] = [
        asked("a1", '{"n": 1}', question="A?"), asked("a2", '{ "n":1 }', question="a?"),
        asked("a3", said(2), question="A?"), asked("b1", said(1), question="B?"), asked("b2", said(2), question="B?"),
        asked("once", said(1), question="C?"), asked("u", said(7), question="A?"), Feedback(id="u", at=NOW, answer=said(9)),
    ]  # fmt: skip
    source = log_of(tmp_path / "log", *entries)
    found = live_rows(source, STRUCTURED, Live(self_agreement=0.6))
    assert len(found.rows) == 7 and trained_on(source, self_agreement=0.6) == ["a1", "a2", "once", "u"]
    assert found.steps[-1].note == "fewer than 60% say the same: 2, in the minority: 1"


def test_disagreement_is_dropped_or_comes_first(tmp_path: Path) -> None:
    rows = [asked(f"{n}", said(n), said(0 if n in (1, 3) else n), later=n) for n in range(6)]
    source = log_of(tmp_path / "log", *rows, asked("alone", said(1), later=9))

    def ids(**settings: Any) -> list[str]:
        return trained_on(source, **settings)

    assert ids() == ["0", "1", "2", "3", "4", "5", "alone"]
    assert ids(disagreement="drop") == ["0", "2", "4", "5", "alone"]
    assert ids(most=3) == ["4", "5", "alone"]
    assert ids(most=3, disagreement="first") == ["1", "3", "alone"]


def test_a_log_of_which_nothing_is_left_says_why(tmp_path: Path) -> None:
    source = log_of(tmp_path / "log", asked("slm-alone", None, said("s"), served="slm"))
    with pytest.raises(DataError, match="the LLM was not asked: 1"):
        run(tmp_path, source)


def test_tool_calls_are_learned_as_calls(tmp_path: Path) -> None:
    calls = json.dumps([{"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}])
    tools = [
        {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}
    ]
    row = asked("t", calls)
    source = log_of(tmp_path / "log", replace(row, request={**row.request, "tools": tools}))
    (found,) = live_rows(source, track("toolcall"), Live()).rows
    assert "add" in found.target and found.tags == {"tool": "add", "target_from": "llm"}


def test_a_call_that_a_user_gives_as_the_log_writes_it_is_learned(tmp_path: Path) -> None:
    def call(value: int) -> str:
        return json.dumps([{"id": "c", "function": {"name": "add", "arguments": json.dumps({"a": value})}}])

    row = asked("t", call(1))
    named = {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}
    tools = [{"type": "function", "function": named}]
    source = log_of(
        tmp_path / "log", replace(row, request={**row.request, "tools": tools}),
        Feedback(id="t", at=NOW, answer=call(2)), Feedback(id="t", at=NOW + 1, answer="add two, I said"),
    )  # fmt: skip
    (found,) = live_rows(source, track("toolcall"), Live()).rows
    assert '"a":2' in found.target and found.tags == {"tool": "add", "target_from": "user"}


def cascade(requests: int, *, most_hard: int, audit_every: int) -> list[TrafficRow]:
    """Traffic of a cascade, of which every third request is hard: the LLM answers those, and of the others what is audited.

    Hard questions are asked by the same people again and again, easy ones too.
    """
    rows = []
    for number in range(requests):
        hard, audited = number % 3 == 0, number % audit_every == 0
        llm = said(number) if hard or audited else None
        question = f"how many of {'hard' if hard else 'easy'}{number % most_hard} and so on?"
        row = asked(
            f"{number}",
            llm,
            said(number),
            served="llm" if hard else "slm",
            question=question,
            audited=audited,
            later=number,
        )
        rows.append(replace(row, state="cascade"))
    return rows


def hard_share(prepared: Prepared, split: str) -> float:
    rows = prepared.dataset(split).examples
    return sum("hard" in row.prompt.messages[-1].content for row in rows) / len(rows)


@pytest.mark.parametrize("questions", [10_000, 400])
@pytest.mark.parametrize("duplicates", ["refuse", "exact"])
def test_test_rows_are_as_hard_as_the_traffic_where_the_llm_was_asked_what_is_hard(
    tmp_path: Path, questions: int, duplicates: str
) -> None:
    source = log_of(tmp_path / "log", *cascade(1500, most_hard=questions, audit_every=5))
    prepared = run(
        tmp_path, source, validation_rows=90, test_rows=180, curation={"duplicates": duplicates}, stratify=None
    )
    # A third of the traffic is hard, and 400 + 0.2 * 800 of 1,500 requests have an answer of the LLM: 5 of 7 are hard.
    assert hard_share(prepared, "test") == pytest.approx(1 / 3, abs=0.09)
    assert hard_share(prepared, "validation") == pytest.approx(1 / 3, abs=0.12)
    assert hard_share(prepared, "train") > 0.7
    for split in ("test", "validation"):
        assert all(int(row.id) % 5 == 0 for row in prepared.dataset(split).examples), "only what was audited"
    asks = {
        split: {row.prompt.messages[-1].content for row in prepared.dataset(split).examples} for split in prepared.rows
    }
    assert not asks["test"] & asks["train"] and not asks["validation"] & asks["train"]
    assert next(step for step in prepared.steps if step.name == "sample of the traffic").note.startswith("300 of 700")


def test_in_record_and_shadow_every_row_may_be_measured_on(tmp_path: Path) -> None:
    rows = [replace(asked(f"{n}", said(n), audited=False), state=("record", "shadow")[n % 2]) for n in range(8)]
    found = live_rows(log_of(tmp_path / "log", *rows), STRUCTURED, Live())
    assert not found.trains_only and len(found.sampled) == 8
    assert "sample of the traffic" not in [step.name for step in found.steps]


def test_a_log_with_too_few_audited_rows_says_what_to_do(tmp_path: Path) -> None:
    source = log_of(tmp_path / "log", *(asked(f"{n}", said(n), audited=n < 3) for n in range(20)))
    with pytest.raises(
        DataError, match=r"only 3 of 20 rows \(17 are for training only\).*relabel in the flywheel.*test_source"
    ):
        run(tmp_path, source, validation_rows=2, test_rows=5)
    assert run(tmp_path, source, validation_rows=1, test_rows=2).rows == {"train": 17, "validation": 1, "test": 2}


def test_a_log_as_the_test_source_gives_its_sample_alone(tmp_path: Path) -> None:
    source = log_of(tmp_path / "train", *(asked(f"{n}", said(n), audited=n < 3) for n in range(9)))
    tests = log_of(tmp_path / "test", *(asked(f"t{n}", said(n), audited=n % 2 == 0) for n in range(9)))
    prepared = run(tmp_path, source, test_source=tests, test_rows=None)
    assert {row.id for row in prepared.dataset("test").examples} == {"t0", "t2", "t4", "t6", "t8"}
