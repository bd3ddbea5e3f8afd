"""The parts of an evaluation that need no Ray: bounded asking, the plan, the live board, the summary."""

from __future__ import annotations

import asyncio
import io
import json
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer, Reply, Request, answer, error
from hypothesis import given
from hypothesis import strategies as st
from plain_records import facts
from rich.console import Console

from slm_ray.config import EvaluateConfig, Generation
from slm_ray.corpus.tracks import track
from slm_ray.errors import ConfigError, DataError, ModelError
from slm_ray.evaluation.generate import Asking, Question
from slm_ray.evaluation.live import Board
from slm_ray.evaluation.plan import plan
from slm_ray.evaluation.standing import Gap, Standing
from slm_ray.evaluation.table import summary
from slm_ray.providers import parse
from slm_ray.records import (
    Commands,
    Digests,
    ExampleSet,
    ModelReport,
    Noise,
    Percentiles,
    Provenance,
    Report,
    TrainingRowCheck,
)
from slm_ray.scoring import score
from slm_ray.types import Completion, Failure, Message, Prompt, Usage
from slm_ray.verdict.binary import bounds
from slm_ray.verdict.stats import paired_interval

ROWS = [
    Question(key=f"k{n}", example_id=str(n), prompt=Prompt(messages=(Message(role="user", content=f"q{n}"),)))
    for n in range(40)
]


async def collected(url: str, rows: list[Question], concurrency: int, **settings: Any) -> list[str]:
    generation = Generation(max_attempts=2, timeout_s=10, **settings)
    asking = Asking(parse("served:m").provider.open(endpoint=url, generation=generation, environment={}))
    found: list[str] = []
    asking.ask(rows[:concurrency])
    waiting = iter(rows[concurrency:])
    try:
        while len(found) < len(rows):
            answers = (await asking.heard()).answers
            assert all(answer.key == f"k{answer.example_id}" for answer in answers)
            found += [answer.example_id for answer in answers]
            asking.ask(row for _, row in zip(answers, waiting, strict=False))
    except ModelError as stopped:
        found.append(str(stopped))
    await asking.close()
    return found


def test_all_that_is_handed_over_is_asked_at_once_and_nothing_else() -> None:
    with ChatServer(lambda _: Reply(body=answer("{}").body, after_s=0.1)) as server:
        found = asyncio.run(collected(server.url, ROWS, 7))
        assert server.most_in_flight == 7
    assert sorted(found) == sorted(row.example_id for row in ROWS)


def test_answers_come_before_the_error_that_ends_the_asking() -> None:
    def script(request: Request) -> Reply:
        return error(401) if request.text == "q9" else answer("{}")

    with ChatServer(script) as server:
        *found, stopped = asyncio.run(collected(server.url, ROWS, 1))
        assert found == [str(n) for n in range(9)]
        assert "refuses the key" in stopped
        assert len(server.requests) == 10


def test_after_a_fatal_answer_nobody_asks_on() -> None:
    def script(request: Request) -> Reply:
        return error(401) if request.nth == 8 else Reply(body=answer("{}").body, after_s=0.05)

    with ChatServer(script) as server:
        *found, stopped = asyncio.run(collected(server.url, ROWS, 4))
        assert "refuses the key" in stopped
        assert len(server.requests) <= 9 + 4
        assert len(found) >= 8 - 4


@pytest.mark.parametrize(
    "fatal",
    [error(401), error(403), error(404, "model_not_found"), error(402), error(429, "insufficient_quota")],
    ids=["401", "403", "404", "402", "quota"],
)
def test_after_a_fatal_answer_no_waiting_row_is_tried_again(fatal: Reply) -> None:
    """A key that dies in mid-run: of 16 rows 3 are answered, 8 wait out a limit, 4 are on their way, then one is refused."""
    refused_at: list[int] = []

    def script(request: Request) -> Reply:
        number = int(request.text[1:])
        if refused_at:
            return fatal
        if number < 3:
            return answer("{}")
        if number < 11:
            return error(429, "rate_limit_exceeded", Retry_After="0.4")
        if number < 15:
            return Reply(body=answer("{}").body, after_s=0.6)
        time.sleep(0.2)
        refused_at.append(len(server.requests))
        return fatal

    async def run() -> str:
        asking = Asking(parse("served:m").provider.open(endpoint=server.url, generation=Generation(), environment={}))
        asking.ask(ROWS[:16])
        try:
            while True:
                await asking.heard()
        except ModelError as stopped:
            asking.ask(ROWS[16:20])
            await asyncio.sleep(1.0)  # waits are over, and slow answers in
            await asking.close()
            return str(stopped)

    with ChatServer(script, models_after_s=0.8) as server:
        assert asyncio.run(run())
        assert refused_at == [16]
        assert len(server.requests) == 16


def test_whoever_hands_over_nothing_more_ends_the_asking() -> None:
    async def listen_once(url: str) -> None:
        asking = Asking(parse("served:m").provider.open(endpoint=url, generation=Generation(), environment={}))
        asking.ask(ROWS[:4])
        await asking.heard()
        await asyncio.sleep(0.5)
        await asking.close()

    with ChatServer(lambda _: answer("{}")) as server:
        asyncio.run(listen_once(server.url))
        assert len(server.requests) == 4


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


def board(console: Console, *, plain: bool = False) -> Board:
    clock = iter(range(1000))
    shown = Board(
        track("structured"),
        ["azure:", "served:m:a"],
        4,
        concurrency=8,
        plain=plain,
        console=console,
        clock_s=lambda: next(clock),
    )

    def add(spec: str, row: str, text: str | None, fresh: bool) -> None:
        failure = Failure(kind="error", reason="gone") if text is None else None
        answered = Completion(text=text, failure=failure, attempts=2 if text is None else 1)
        shown.add(spec, score(track("structured"), row, text, '{"a": 1}'), answered, fresh=fresh)

    for n, (llm, slm) in enumerate([('{"a": 1}', '{"a": 1}'), ("{}", '{"a": 1}')]):
        add("azure:", str(n), llm, False)
        add("served:m:a", str(n), slm, True)
    add("served:m:a", "2", None, True)
    shown.in_flight("served:m:a", 1)
    shown.speed("served:m:a", 3, 12.5, 7)
    shown.spent("azure:", 0.25)
    return shown


def test_off_a_terminal_the_board_is_plain_lines_now_and_then() -> None:
    out = io.StringIO()
    with board(Console(file=out, width=60)) as shown:
        for _ in range(20):
            shown.show()
    lines = out.getvalue().splitlines()
    assert 4 <= len(lines) <= 2 * 12
    assert lines[0] == (
        "azure:: rows 2/4, so far 0.500, gap -, failed 0, retried 0, 429 -, in flight 0, rate -, cost 0.2500 USD, left ?"
    )
    low, high = bounds(1, 0, 2)
    assert f"served:m:a: rows 3/4, so far 0.667, gap +0.500 [{low:+.3f}, {high:+.3f}], failed 1" in lines[1]
    assert "retried 1, 429 7, in flight 1/3, rate" in lines[1]
    assert "/s (limit 12.5/s), cost -" in lines[1]
    assert "\x1b" not in out.getvalue()


def test_on_a_terminal_the_board_is_a_table_that_is_rewritten() -> None:
    out = io.StringIO()
    with board(Console(file=out, force_terminal=True, width=200)) as shown:
        shown.show()
    assert "structured: exact_match" in out.getvalue()
    assert "+0.500 [" in out.getvalue()
    assert "served:m:" in out.getvalue()
    assert out.getvalue().rstrip().endswith("\x1b[?25h")  # the cursor is given back


def test_a_terminal_may_have_plain_lines_too() -> None:
    out = io.StringIO()
    with board(Console(file=out, force_terminal=True, width=200), plain=True):
        pass
    assert out.getvalue().startswith("azure:: rows 2/4")
    assert "\x1b[?25" not in out.getvalue()


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 1.0, None]), st.sampled_from([0.0, 1.0, None])), max_size=30), st.randoms()
)
def test_the_gap_is_that_of_the_rows_both_have_in_whatever_order_they_come(
    rows: list[tuple[float | None, float | None]], order: random.Random
) -> None:
    llm, slm = Standing(total=30), Standing(total=30)
    gap = Gap(slm, llm)
    events = [(side, str(n), row[at]) for n, row in enumerate(rows) for at, side in enumerate((llm, slm))]
    order.shuffle(events)
    for side, row, value in events:
        if side.note(row, value):
            gap.note(side, row)
    differences = [b - a for a, b in rows if a is not None and b is not None]
    if not differences:
        assert gap.interval() is None
        return
    wanted = paired_interval(differences, resamples=99, seed=1)
    found = gap.interval()
    assert found is not None
    assert found[0] == pytest.approx(wanted.estimate)
    if wanted.method == "score":
        assert found[1:] == pytest.approx((wanted.lower, wanted.upper))


def reported(*models: ModelReport, provenance: Provenance | None = None) -> Report:
    return Report(
        track="structured",
        track_definition={},
        examples=ExampleSet(n=4, digest="d"),
        models=dict(zip(("azure:", "served:m"), models, strict=True)),
        provenance=provenance,
    )


ASKED = ModelReport(
    facts=facts("azure:", stand_in=True),
    n=4, metrics={"exact_match": 0.5}, latency_s=Percentiles(p50=0.25), usage=Usage(prompt_tokens=10, completion_tokens=2),
    failures={"error": 1}, served_by=(), trained_on=0,
)  # fmt: skip
ORIGIN = Provenance(
    rows_in=4, rows_scored=4, requests=8, retries=3, possibly_billed=89, in_doubt=1, refused=2, concurrency=8,
    training_rows=TrainingRowCheck(checked=(), left_out_of_demonstrations=0),
    digests=Digests(data="", prompts="", config="", answers=""), versions={}, commands=Commands(reproduce="", resume=""),
)  # fmt: skip


def test_the_summary_marks_stand_ins_and_gaps() -> None:
    lines = summary(reported(ASKED, replace(ASKED, facts=facts("served:m"), failures={}))).splitlines()
    assert lines[0].split() == ["structured,", "4", "rows", "azure:", "[STAND-IN]", "served:m"]
    assert lines[1].split() == ["exact_match", "0.500", "0.500"]
    assert lines[-1].split() == ["failures", "1", "error", "0"]
    noise = Noise(repeats=2, agreement=0.9, same_text=0.9, primary=(0.5, 0.5))
    noisy = replace(ASKED, noise=noise, first_token_s=Percentiles(p50=0.05, p95=0.1))
    said = summary(reported(noisy, ASKED, provenance=ORIGIN)).splitlines()
    assert said[-1].startswith("4 of 4 rows scored, 3 retries, 2 refused; calls that may have been paid for")
    assert ["agrees", "with", "itself", "0.900", "-"] in [line.split() for line in said]
    assert ["first", "token", "p50,", "s", "0.050", "-"] in [line.split() for line in said]


def test_the_summary_counts_both_kinds_of_calls_that_may_have_been_paid_for() -> None:
    """89 calls that were sent and never answered are not nothing, though no run was cut off."""
    said = summary(reported(ASKED, ASKED, provenance=replace(ORIGIN, in_doubt=0))).splitlines()[-1]
    assert said.endswith("without an answer: 89 (89 sent and never answered, 0 under way when a run was cut off)")
    assert "without an answer: 90 (89 sent" in summary(reported(ASKED, ASKED, provenance=ORIGIN))
