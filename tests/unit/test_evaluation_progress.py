"""What a run shows while it asks, and what a second shell sees of it, from the log alone, until the run ends."""

from __future__ import annotations

import io
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from log_files import RUN, append, log_of
from rich.console import Console

from slm_ray.corpus.tracks import track
from slm_ray.errors import DataError
from slm_ray.evaluation.limiter import ThrottleStatus
from slm_ray.evaluation.progress import LogFeed, ProgressDisplay, watch
from slm_ray.runlog import RUN_FILE, PlannedRequest, Response, RunLog, end_note, throttle_note, write_plan
from slm_ray.types import Completion, Failure

SPECS = ["azure:", "served:m"]
TARGETS = {f"r{n}": '{"a": 1}' for n in range(4)}
PLANNED = [PlannedRequest(key=f"{spec}{n}", spec=spec, example_id=f"r{n}") for spec in SPECS for n in range(4)]


def display(console: Console) -> ProgressDisplay:
    clock = iter(range(1000))
    shown = ProgressDisplay(
        track("structured"), ["azure:", "served:m:a"], 4, concurrency=8, console=console, clock_s=lambda: next(clock),
    )  # fmt: skip

    def add(spec: str, row: str, primary: float | None, *, fresh: bool) -> None:
        failure = Failure(kind="error", reason="gone") if primary is None else None
        completion = Completion(text=None if failure else "{}", failure=failure, attempts=2 if failure else 1)
        shown.add(spec, completion, example_id=row, primary=primary or 0.0, fresh=fresh)

    for row, (llm_primary, slm_primary) in enumerate([(1.0, 1.0), (0.0, 1.0)]):
        add("azure:", str(row), llm_primary, fresh=False)
        add("served:m:a", str(row), slm_primary, fresh=True)
    add("served:m:a", "2", None, fresh=True)
    slm = shown.stats["served:m:a"]
    slm.in_flight, slm.limit, slm.limit_per_s, slm.rejections = 1, 3, 12.5, 7
    shown.stats["azure:"].usd = 0.25
    return shown


def test_off_a_terminal_it_is_plain_lines_now_and_then() -> None:
    out = io.StringIO()
    with display(Console(file=out, width=60)) as shown:
        for _ in range(20):
            shown.show()
    lines = out.getvalue().splitlines()
    assert 4 <= len(lines) <= 2 * 12
    assert lines[0] == (
        "azure:: rows 2/4, so far 0.500, difference -, failed 0, retried 0, 429 -, in flight 0, rate -, cost 0.2500 USD, left ?"
    )
    assert "served:m:a: rows 3/4, so far 0.667, difference +0.500 (no bound until the end), failed 1" in lines[1]
    assert "retried 1, 429 7, in flight 1/3, rate" in lines[1]
    assert "/s (limit 12.5/s), cost -" in lines[1]
    assert "\x1b" not in out.getvalue()


def test_on_a_terminal_it_is_a_table_that_is_rewritten() -> None:
    out = io.StringIO()
    with display(Console(file=out, force_terminal=True, width=200)) as shown:
        shown.show()
    assert "structured: exact_match" in out.getvalue()
    assert "+0.500" in out.getvalue()
    assert "served:m:" in out.getvalue()
    assert out.getvalue().rstrip().endswith("\x1b[?25h")  # the cursor is given back


def test_a_terminal_that_can_only_print_has_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    out = io.StringIO()
    with display(Console(file=out, force_terminal=True, width=200)):
        pass
    assert out.getvalue().startswith("azure:: rows 2/4")
    assert "\x1b[?25" not in out.getvalue()


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 1.0, None]), st.sampled_from([0.0, 1.0, None])), max_size=30), st.randoms()
)
def test_the_difference_is_that_of_the_rows_both_have_in_whatever_order_they_come(
    rows: list[tuple[float | None, float | None]], order: random.Random
) -> None:
    shown = ProgressDisplay(track("structured"), ["llm", "slm"], 30, console=Console(file=io.StringIO()))
    events = [(spec, str(n), row[at]) for n, row in enumerate(rows) for at, spec in enumerate(shown.stats)]
    order.shuffle(events)
    for spec, row, value in events:
        shown.add(spec, Completion(text="{}"), example_id=row, primary=value, fresh=True)
    differences = [b - a for a, b in rows if a is not None and b is not None]
    mean = f"{sum(differences) / len(differences):+.3f} (no bound until the end)" if differences else "-"
    llm, slm = shown.lines()
    assert "difference -," in llm and f"difference {mean}," in slm


def facts(run_dir: Path, **changes: Any) -> dict[str, Any]:
    rows = [{"id": row, "prompt": f"question {row}", "completion": target} for row, target in TARGETS.items()]
    (run_dir / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "examples": str(run_dir / "rows.jsonl"), "track": "structured", "models": SPECS, "repeats": 1, "rows": 4,
        "pid": os.getpid(), "host": socket.gethostname(), "concurrency": 16, "extend": [], "sequential": None, "stops": False, **changes,
    }  # fmt: skip


def begun(run_dir: Path, *before: Response, **changes: Any) -> RunLog:
    """A run that has begun; `before` was answered in an earlier one."""
    log = log_of(run_dir, **facts(run_dir, **changes))
    append(run_dir, [*(one.key for one in before), *before], file="shard-earlier-0.jsonl")
    write_plan(run_dir / "log", "p", PLANNED)
    return log


def answer(spec: str, n: int, text: str | None) -> Response:
    failure = Failure(kind="error", reason="gone") if text is None else None
    completion = Completion(text=text, failure=failure)
    return Response(key=f"{spec}{n}", spec=spec, example_id=f"r{n}", completion=completion, answered_ns=1)


def plain(run_dir: Path, log: RunLog) -> tuple[LogFeed, ProgressDisplay]:
    shown = ProgressDisplay(track("structured"), SPECS, 4, concurrency=16, console=Console(file=io.StringIO()))
    return LogFeed(log, shown, PLANNED, TARGETS), shown


@pytest.mark.parametrize("read_before", [True, False])
def test_a_log_shows_rows_differences_and_calls_in_flight(tmp_path: Path, read_before: bool) -> None:
    """As the run itself sees it, which has read the log before it asks, and as a watcher, who has not."""
    begun(tmp_path, answer("azure:", 3, None), answer("azure:", 2, "{}")).close()
    log = RunLog(tmp_path)
    if read_before:
        log.read()
    feed, shown = plain(tmp_path, log)
    append(tmp_path, ["azure:0", "azure:1", "azure:3", "served:m0", answer("azure:", 0, "{}"), "of no plan"])
    feed.read()
    assert shown.lines()[0].startswith(
        "azure:: rows 2/4, so far 0.000, difference -, failed 0, retried 0, 429 -, in flight 2,"
    )
    assert shown.lines()[1].startswith(
        "served:m: rows 0/4, so far -, difference -, failed 0, retried 0, 429 -, in flight 1,"
    )
    append(tmp_path, ["served:m2", answer("served:m", 0, '{"a": 1}'), answer("azure:", 3, None)])
    feed.read()
    feed.read()
    assert "rows 3/4, so far 0.000, difference -, failed 1, retried 0, 429 -, in flight 1," in shown.lines()[0]
    assert "rows 1/4, so far 1.000, difference +1.000 (no bound until the end)" in shown.lines()[1]
    assert "in flight 1," in shown.lines()[1]


def test_a_call_that_a_lost_shard_starts_again_is_in_flight_once(tmp_path: Path) -> None:
    feed, shown = plain(tmp_path, begun(tmp_path))
    append(tmp_path, ["azure:0", "azure:0"])
    feed.read()
    assert "in flight 1," in shown.lines()[0]
    append(tmp_path, [answer("azure:", 0, "{}")])
    feed.read()
    assert "in flight 0," in shown.lines()[0]


def test_limits_and_cost_are_those_that_all_shards_noted_last(tmp_path: Path) -> None:
    feed, shown = plain(tmp_path, begun(tmp_path))
    status = ThrottleStatus(in_flight_limit=3, rate_limit_per_s=10.0, rejections=5, usd=0.5)
    append(tmp_path, [throttle_note(RUN, 0, {"azure:": status})])
    later = ThrottleStatus(in_flight_limit=3, rate_limit_per_s=12.5, rejections=7, usd=0.25)
    append(tmp_path, [throttle_note(RUN, 0, {"azure:": later, "served:m": ThrottleStatus(in_flight_limit=99, rate_limit_per_s=None, rejections=0)})])  # fmt: skip
    feed.read()
    assert "429 7, in flight 0/3, rate - (limit 12.5/s), cost 0.2500 USD" in shown.lines()[0]
    assert "429 0, in flight 0/16, rate -, cost -" in shown.lines()[1]
    append(tmp_path, [throttle_note(RUN, 1, {"azure:": status})], file=f"shard-{RUN}-1.jsonl")
    feed.read()
    assert "429 12, in flight 0/6, rate - (limit 22.5/s), cost 0.7500 USD" in shown.lines()[0]


@pytest.mark.parametrize("how", ["done", "stopped"])
def test_a_watcher_stays_to_the_end_and_shows_the_last_answer(tmp_path: Path, how: str) -> None:
    out, said = io.StringIO(), list[str]()
    begun(tmp_path).close()
    watching = threading.Thread(target=lambda: said.append(watch(tmp_path, console=Console(file=out, width=200))))
    watching.start()
    for n in range(4):
        append(tmp_path, [answer(spec, n, '{"a": 1}') for spec in SPECS])
        time.sleep(0.2)
    assert watching.is_alive()
    append(tmp_path, [end_note(how)], file=RUN_FILE)
    watching.join(timeout=30)
    assert said == [how]
    assert "azure:: rows 4/4, so far 1.000" in out.getvalue().splitlines()[-2]
    assert watch(tmp_path, console=Console(file=io.StringIO())) == how  # and a run that is over is shown once


def test_a_run_whose_process_is_gone_is_over(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    begun(tmp_path, pid=dead.pid).close()
    assert watch(tmp_path, console=Console(file=io.StringIO())) == "gone"


def test_a_folder_without_a_run_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run has begun here"):
        watch(tmp_path)


def test_the_job_takes_a_folder_and_tells_how_the_run_ended(tmp_path: Path) -> None:
    begun(tmp_path).close()
    append(tmp_path, [answer("azure:", 0, "{}")])
    append(tmp_path, [end_note("stopped")], file=RUN_FILE)
    job = Path(__file__).parents[2] / "jobs" / "live.py"
    live = subprocess.run([sys.executable, str(job), str(tmp_path)], capture_output=True, text=True, check=False)
    assert live.returncode == 1
    assert "azure:: rows 1/4" in live.stderr
    assert live.stderr.splitlines()[-1] == "the run is not complete (stopped); its own command continues it"


ORDER = [f"r{n}" for n in (*range(30, 40), *range(30))]  # as it was drawn: not that of the file


def sequential_run(run_dir: Path, answers: list[Response], *, stops: bool = False) -> None:
    """A run of forty rows under the sequential rule, with these answers so far."""
    rows = [{"id": f"r{n}", "prompt": f"question {n}", "completion": '{"a": 1}'} for n in range(30)]
    further = [{"id": f"r{n}", "prompt": f"question {n}", "completion": '{"a": 1}'} for n in range(30, 40)]
    for name, lines in (("first", rows), ("more", further)):
        (run_dir / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    rule = {
        "llm": "azure:",
        "levels": {"served:m": 0.05},
        "companions": [],
        "delta": 0.1,
        "guardrails": [],
        "largest_group": 1,
    }
    log_of(
        run_dir, **facts(run_dir, rows=40, examples=str(run_dir / "first.jsonl"), extend=[str(run_dir / "more.jsonl")], sequential=rule, stops=stops)
    ).close()  # fmt: skip
    planned = [PlannedRequest(key=f"{spec}{row[1:]}", spec=spec, example_id=row) for spec in SPECS for row in ORDER]
    write_plan(run_dir / "log", "p", planned)
    append(run_dir, answers)


def watched(run_dir: Path) -> str:
    """What is shown of a run that is over."""
    out = io.StringIO()
    append(run_dir, [end_note("done")], file=RUN_FILE)
    assert watch(run_dir, console=Console(file=out, width=300)) == "done"
    return out.getvalue().splitlines()[-1]


def test_under_the_sequential_rule_a_watcher_sees_the_confidence_sequence_of_the_rows_looked_at(tmp_path: Path) -> None:
    llm = [answer("azure:", int(row[1:]), '{"a": 1}') for row in ORDER[:20]]
    slm = [answer("served:m", int(row[1:]), '{"a": 1}') for row in (*ORDER[:5], *ORDER[6:20])]
    sequential_run(tmp_path, [*llm, *slm])
    line = watched(tmp_path)
    assert "rows 19/40, so far 1.000, difference +0.000 [" in line
    assert "] over 5 rows, failed 0" in line, "too few for a pace"  # the sixth row of the order is not answered by both


def test_a_watcher_sees_about_when_it_will_be_decided(tmp_path: Path) -> None:
    sequential_run(tmp_path, [answer(spec, int(row[1:]), '{"a": 1}') for spec in SPECS for row in ORDER[:16]])
    found = re.search(r"\] over (\d+) rows, decided at about row ([\d,]+) at this pace", watched(tmp_path))
    assert found and int(found[1]) < int(found[2].replace(",", "")) < 100


def test_a_watcher_sees_at_which_row_it_was_decided(tmp_path: Path) -> None:
    answers = [answer(spec, int(row[1:]), '{"a": 1}' if spec == "azure:" else "{}") for spec in SPECS for row in ORDER]
    sequential_run(tmp_path, answers)
    line = watched(tmp_path)
    found = re.search(
        r"difference decided at row (\d+): fine_tune \(-1.000 \[-1.000, -[\d.]+\] over (\d+) rows\)", line
    )
    assert found, line
    assert found[1] == found[2]
    assert 3 <= int(found[1]) <= 15


@pytest.mark.parametrize(("stops", "left"), [(True, "left done"), (False, "left ?")])
def test_what_a_decision_made_needless_is_not_left_to_do(tmp_path: Path, stops: bool, left: str) -> None:
    asked = ORDER[:20]
    answers = [answer(spec, int(row[1:]), '{"a": 1}' if spec == "azure:" else "{}") for spec in SPECS for row in asked]
    sequential_run(tmp_path, answers, stops=stops)
    assert watched(tmp_path).endswith(left)
