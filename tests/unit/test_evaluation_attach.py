"""A second shell sees what the run sees, from the ledger alone, and leaves when the run does."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from slm_ray.config import EvaluateConfig
from slm_ray.corpus.tracks import track
from slm_ray.costs.prices import Price
from slm_ray.errors import DataError
from slm_ray.evaluation.attach import Watch, follow, show_speeds
from slm_ray.evaluation.book import Book
from slm_ray.evaluation.budget import Budget
from slm_ray.evaluation.live import Board
from slm_ray.evaluation.plan import plan
from slm_ray.evaluation.speed import Speed
from slm_ray.ledger import Answer, Entry, Ledger, Part, Planned
from slm_ray.types import Completion, Failure, Usage

SPECS = ["azure:", "served:m"]


def facts(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    rows = [{"id": f"r{n}", "prompt": f"question {n}", "completion": '{"a": 1}'} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "examples": str(tmp_path / "rows.jsonl"), "track": "structured", "models": SPECS, "repeats": 1, "rows": 4,
        "pid": os.getpid(), "host": socket.gethostname(), **changes,
    }  # fmt: skip


def begun(tmp_path: Path, *before: Entry, **changes: Any) -> Ledger:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.put_all(before, starts=[entry.key for entry in before])
    ledger.plan("p", (Planned(key=f"{spec}{n}", spec=spec, example_id=f"r{n}") for spec in SPECS for n in range(4)))
    ledger.begin("p", facts(tmp_path, **changes))
    return ledger


def answer(spec: str, n: int, text: str | None) -> Entry:
    failure = Failure(kind="error", reason="gone") if text is None else None
    completion = Completion(text=text, failure=failure)
    return Entry(key=f"{spec}{n}", spec=spec, example_id=f"r{n}", completion=completion, answered_ns=1)


def test_a_board_fed_by_the_ledger_shows_rows_gaps_and_calls_in_flight(tmp_path: Path) -> None:
    earlier = answer("azure:", 3, None), answer("azure:", 2, "{}")
    with begun(tmp_path, *earlier) as writer, Ledger(tmp_path / "ledger.sqlite", read_only=True) as reader:
        run = reader.last_run()
        assert run is not None
        watch, board = Watch(reader, run), Board(track("structured"), SPECS, 4, console=Console(file=io.StringIO()))
        writer.put_all([answer("azure:", 0, "{}")], starts=["azure:1", "azure:3", "served:m0"])
        watch.read(board)
        assert board.lines()[0].startswith(
            "azure:: rows 2/4, so far 0.000, gap -, failed 0, retried 0, 429 -, in flight 2,"
        )
        assert board.lines()[1].startswith(
            "served:m: rows 0/4, so far -, gap -, failed 0, retried 0, 429 -, in flight 1,"
        )
        writer.put_all([answer("served:m", 0, '{"a": 1}'), answer("azure:", 3, None)], starts=["served:m2"])
        watch.read(board)
        watch.read(board)
        assert "rows 3/4, so far 0.000, gap -, failed 1, retried 0, 429 -, in flight 1," in board.lines()[0]
        assert "rows 1/4, so far 1.000, gap +1.000 [" in board.lines()[1]
        assert "in flight 1," in board.lines()[1]


def test_a_watcher_sees_the_cost_and_pace_that_the_run_itself_shows(tmp_path: Path) -> None:
    """The asking side on a clock of its own, a watcher on the file beside it."""
    now_s = 100.0
    facts(tmp_path)  # writes the rows
    config = EvaluateConfig.model_validate(
        {
            "track": "structured", "examples": str(tmp_path / "rows.jsonl"), "models": ["azure:gpt", "fake:x"],
            "run_dir": str(tmp_path),
        }
    )  # fmt: skip
    planned = plan(config, {"AZURE_ENDPOINT": "https://x", "AZURE_API_KEY": "k"})
    price = Price(name="gpt", input_usd_per_mtok=2.0, cached_input_usd_per_mtok=1.0, output_usd_per_mtok=10.0)
    shown, seen = (
        Board(
            planned.track, config.models, 4, concurrency=16, console=Console(file=io.StringIO()), clock_s=lambda: now_s
        )
        for _ in range(2)
    )
    with Ledger(tmp_path / "ledger.sqlite") as writer, Ledger(tmp_path / "ledger.sqlite", read_only=True) as reader:
        writer.plan(planned.id, planned.rows())
        writer.begin(planned.id, facts(tmp_path, models=list(config.models), concurrency=16))
        book = Book(planned, writer, shown, Budget(config, {"azure:gpt": price}), clock_s=lambda: now_s)
        book.open()
        arm = planned.arms[0]
        questions = arm.pending(planned.examples, writer)
        assert book.grant(arm, questions, begin=True) == 4
        run = reader.last_run()
        assert run is not None
        watch = Watch(reader, run)
        speeds = {
            "azure:gpt": Speed(in_flight_limit=48, rate_limit_per_s=12.5, turned_away=7),
            "fake:x": Speed(in_flight_limit=16, rate_limit_per_s=math.inf, turned_away=0),
        }
        told = []
        for question in questions[:3]:
            usage = Usage(prompt_tokens=100, completion_tokens=10)
            completion = Completion(text='{"a": 1}', usage=usage)
            answer = Answer(key=question.key, example_id=question.example_id, completion=completion, answered_ns=1)
            book.hear(arm, Part(begun=(), answers=[answer], upto=0))
            for _ in range(3):
                with reader.snapshot():  # a look that takes its time holds up nobody
                    book.tick(speeds)
                now_s += 0.3
            run = reader.last_run()
            assert run is not None
            told.append(run.speeds["azure:gpt"]["usd"])
            watch.read(seen)
            show_speeds(run, seen)
        assert told == pytest.approx([3e-4, 6e-4, 9e-4])
        count = "SELECT count(*) FROM runs WHERE event = 'speeds'"
        with contextlib.closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as database:
            assert database.execute(count).fetchone() == (3,), "once a second, not at each of nine ticks"
            for _ in range(9):
                book.tick(speeds)
                now_s += 1
            assert database.execute(count).fetchone() == (3,), "and only what is new"
            book.tick({**speeds, "azure:gpt": replace(speeds["azure:gpt"], turned_away=8)})
            book.close()
            assert database.execute(count).fetchone() == (4,)
        run = reader.last_run()
        assert run is not None
        watch.read(seen)
        show_speeds(run, seen)
    for line in (shown.lines()[0], seen.lines()[0]):
        assert "rows 3/4, so far 1.000, gap -, failed 0, retried 0, 429 8, in flight 1/16, " in line
        assert "(limit 12.5/s), cost 0.0009 USD" in line
    assert [line.partition(", rate")[0] for line in seen.lines()] == [
        line.partition(", rate")[0] for line in shown.lines()
    ]
    assert "429 0, in flight 0/16, rate -, cost -" in seen.lines()[1]


@pytest.mark.parametrize("how", ["done", "stopped"])
def test_it_follows_to_the_end_and_shows_the_last_answer(tmp_path: Path, how: str) -> None:
    out, said = io.StringIO(), list[str]()
    with begun(tmp_path) as writer:
        watching = threading.Thread(target=lambda: said.append(follow(tmp_path, console=Console(file=out, width=200))))
        watching.start()
        for n in range(4):
            writer.put_all([answer(spec, n, '{"a": 1}') for spec in SPECS])
            time.sleep(0.2)
        assert watching.is_alive()
        writer.end("p", how)
        watching.join(timeout=10)
    assert said == [how]
    assert "azure:: rows 4/4, so far 1.000" in out.getvalue().splitlines()[-2]
    assert follow(tmp_path, console=Console(file=io.StringIO())) == how  # and a run that is over is shown once


def test_a_run_whose_process_is_gone_is_over(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    begun(tmp_path, pid=dead.pid).close()
    assert follow(tmp_path, console=Console(file=io.StringIO())) == "gone"


def test_a_folder_without_a_run_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no ledger"):
        follow(tmp_path)
    Ledger(tmp_path / "ledger.sqlite").close()
    with pytest.raises(DataError, match="no run has begun here"):
        follow(tmp_path)


def test_the_job_takes_a_folder_and_tells_how_the_run_ended(tmp_path: Path) -> None:
    with begun(tmp_path) as writer:
        writer.put_all([answer("azure:", 0, "{}")])
        writer.end("p", "stopped")
    job = Path(__file__).parents[2] / "jobs" / "live.py"
    found = subprocess.run([sys.executable, str(job), str(tmp_path)], capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "azure:: rows 1/4" in found.stderr
    assert found.stderr.splitlines()[-1] == "the run is not complete (stopped); its own command continues it"
