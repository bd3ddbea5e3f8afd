"""A report is made from the ledger as it is read: in any order the same answers, at any size little memory."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from slm_ray.config import EvaluateConfig
from slm_ray.errors import DataError
from slm_ray.evaluation.plan import Plan, plan
from slm_ray.evaluation.provenance import provenance
from slm_ray.evaluation.reading import ReadAhead
from slm_ray.evaluation.score import write_report
from slm_ray.ledger import Entry, Ledger
from slm_ray.storage import read_jsonl
from slm_ray.tracing import Tracer
from slm_ray.types import Completion, Failure, Usage

MODELS = ("fake:a", "fake:b")


def planned(folder: Path, rows: int, **changes: Any) -> tuple[EvaluateConfig, Plan]:
    path = folder / "rows.jsonl"
    made = [{"id": f"r{n}", "prompt": f"question {n}", "completion": reference(n), "tags": {"tool": f"t{n % 3}"}}
            for n in range(rows)]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    config = EvaluateConfig.model_validate(
        {"track": "structured", "examples": str(path), "run_dir": str(folder / "run"), "models": MODELS, **changes}
    )
    return config, plan(config, {})


def reference(n: int) -> str:
    return json.dumps({"arguments": {"n": n}, "query": f"what about number {n}? " * 5, "tool_name": f"t{n % 3}"})


def said(spec: str, n: int, repeat: int) -> Completion:
    if n % 7 == 3 and spec == "fake:b":
        return Completion(failure=Failure(kind="refused", reason="filter", status=400), attempts=2)
    text = reference(n + (n + repeat) % 2) if spec == "fake:b" else reference(n)
    usage = Usage(prompt_tokens=9, completion_tokens=n % 50)
    return Completion(text=text, latency_s=0.1 + n / 1e5, usage=usage, served_by="m")


def answered(ledger: Ledger, made: Plan) -> None:
    ledger.plan(made.id, made.rows())
    entries = [
        Entry(key=row.key, spec=row.spec, example_id=row.example_id, repeat=row.repeat,
              answered_ns=10**18 + at * 10**6, completion=said(row.spec, int(row.example_id[1:]), row.repeat))
        for at, row in enumerate(made.rows())
    ]  # fmt: skip
    ledger.put_all(reversed(entries))  # answers arrive in no order


def test_a_mapping_over_the_ledger_gives_every_answer_in_any_order(tmp_path: Path) -> None:
    _, made = planned(tmp_path, 1203)
    arm = made.arms[1]
    with Ledger(tmp_path / "l.sqlite") as ledger:
        answered(ledger, made)
        reads: list[str] = []
        ledger.db.set_trace_callback(reads.append)
        found = ReadAhead(ledger, arm.spec, arm.keys, lambda entry: entry.completion)
        assert [found[row.id] for row in made.examples] == [said("fake:b", n, 0) for n in range(1203)]
        assert list(found.values()) == [said("fake:b", n, 0) for n in range(1203)]
        assert len(reads) == 6, "a query for each few hundred"
        assert [found[f"r{n}"] for n in (1202, 3, 700, 0)] == [said("fake:b", n, 0) for n in (1202, 3, 700, 0)]
        assert (len(found), "r7" in found, "r1203" in found, found.get("x")) == (1203, True, False, None)


def test_a_missing_answer_is_named(tmp_path: Path) -> None:
    config, made = planned(tmp_path, 3)
    with Ledger(tmp_path / "l.sqlite") as ledger:
        answered(ledger, made)
        lacking = ReadAhead(ledger, "fake:a", {**made.arms[0].keys, "r9": "no such key"}, lambda entry: entry)
        with pytest.raises(DataError, match="fake:a has no answer to example 'r9' in the ledger"):
            lacking["r0"]
    with Ledger(tmp_path / "empty.sqlite") as ledger, pytest.raises(DataError, match="has no answer to example 'r0'"):
        write_report(made, ledger, config, {}, Tracer(config.run_dir, {}))


def test_rows_report_and_traces_are_of_the_same_answers_and_made_again_they_are_the_same_bytes(tmp_path: Path) -> None:
    config, made = planned(tmp_path, 40, repeats=2)
    run = tmp_path / "run"
    run.mkdir()
    digests = []
    with Ledger(run / "ledger.sqlite") as ledger:
        answered(ledger, made)
        for _ in range(2):
            report = write_report(made, ledger, config, {}, Tracer(config.run_dir, {}))
            names = ("report.json", "scores.jsonl", "answers.parquet", "traces.jsonl")
            digests.append([hashlib.sha256((run / name).read_bytes()).hexdigest() for name in names])
    assert digests[0] == digests[1]
    rows = read_jsonl(run / "scores.jsonl")
    assert [row["id"] for row in rows] == [f"r{n}" for n in range(40)]
    for n, row in enumerate(rows):
        for spec in MODELS:
            assert row["models"][spec]["text"] == said(spec, n, 0).text
    right = [row["models"]["fake:b"]["scores"]["exact_match"] for row in rows]
    assert report.models["fake:b"].metrics["exact_match"] == sum(right) / 40
    assert report.models["fake:b"].failures == {"refused": 6}
    noise = report.models["fake:b"].noise
    assert noise is not None and noise.agreement == pytest.approx(6 / 40)  # the refused ones alone
    assert report.provenance is not None
    assert report.provenance.refused == 2 * 6
    assert report.provenance.retries == 2 * 6
    spans = [
        span for line in read_jsonl(run / "traces.jsonl") for span in line["resourceSpans"][0]["scopeSpans"][0]["spans"]
    ]
    assert len(spans) == 1 + 2 + 2 * 40


def test_the_digest_is_that_of_the_sorted_lines_of_all_answers(tmp_path: Path) -> None:
    config, made = planned(tmp_path, 12, repeats=11, models=("fake:a", "fake:a'", "fake:ab", 'fake:"'))
    odd = ["r1", "r10", "r1'", 'r1"', "r1\\", "ü", "\n", "r1, 0", "R1", "a b", "zz", "r"]
    renamed = {f"r{n}": name for n, name in enumerate(odd)}
    arms = tuple(
        dataclasses.replace(arm, keys=keys[0], again=keys[1:])
        for arm in made.arms
        for keys in [tuple({renamed[one]: key for one, key in given.items()} for given in arm.repeats)]
    )
    examples = tuple(dataclasses.replace(row, id=renamed[row.id]) for row in made.examples)
    made = dataclasses.replace(made, arms=arms, examples=examples)
    lines = []
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.plan(made.id, made.rows())
        for at, row in enumerate(made.rows()):
            text = f"answer {at % 5}"
            lost = Completion(failure=Failure(kind="error", reason="gone"))
            for completion in ([lost] if at % 3 == 0 else []) + [Completion(text=text)]:
                entry = Entry(key=row.key, spec=row.spec, example_id=row.example_id, repeat=row.repeat,
                              answered_ns=at, completion=completion)  # fmt: skip
                ledger.put_all([entry])
            lines.append(repr((row.spec, row.example_id, row.repeat, "ok", text)))
        found = provenance(made, ledger, config)
    assert found.digests.answers == hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
    assert (found.rows_scored, found.requests, found.retries) == (12, 4 * 12 * 11, 4 * 12 * 11 // 3)


def test_a_report_of_many_rows_holds_little_of_them(tmp_path: Path) -> None:
    """2,500 answers of 200 bytes; as rows and spans in memory they would take more than 40 MB."""
    tracemalloc.start()
    try:
        reported(tmp_path / "small", 10)  # what is loaded once
        peak = reported(tmp_path / "large", 2500)
    finally:
        tracemalloc.stop()
    assert peak < 10e6, f"{peak / 1e6:.1f} MB"


def reported(folder: Path, rows: int) -> int:
    """Bytes that were held at most while the report of so many rows was made."""
    folder.mkdir()
    config, made = planned(folder, rows, models=MODELS[:1])
    with Ledger(folder / "run" / "ledger.sqlite") as ledger:
        answered(ledger, made)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        write_report(made, ledger, config, {}, Tracer(config.run_dir, {}))
        return tracemalloc.get_traced_memory()[1] - before
