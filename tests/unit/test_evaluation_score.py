"""A report is made from the log as it is read: in any order the same answers, at any size little memory."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from log_files import log_of
from plain_records import facts

from slm_ray.adapters import MANIFEST, Manifest
from slm_ray.config import EvaluateConfig
from slm_ray.errors import DataError
from slm_ray.evaluation.answers import Answers
from slm_ray.evaluation.plan import Plan, plan
from slm_ray.evaluation.provenance import provenance
from slm_ray.evaluation.score import training_of, write_report
from slm_ray.records import ModelReport, TrainingEffort
from slm_ray.reports.files import load_report
from slm_ray.runlog import Response, RunLog
from slm_ray.storage import read_jsonl, write_json
from slm_ray.tracing import Tracer
from slm_ray.types import Completion, Failure, ModelFacts, Percentiles, Usage

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


def answered(run_dir: Path, made: Plan) -> RunLog:
    responses = [
        Response(key=row.key, spec=row.spec, example_id=row.example_id, repeat=row.repeat,
                 answered_ns=10**18 + at * 10**6, completion=said(row.spec, int(row.example_id[1:]), row.repeat))
        for at, row in enumerate(made.requests())
    ]  # fmt: skip
    return log_of(run_dir, reversed(responses))  # answers arrive in no order


def test_a_mapping_over_the_log_gives_every_answer_in_any_order(tmp_path: Path) -> None:
    _, made = planned(tmp_path, 1203)
    arm = made.arms[1]
    with answered(tmp_path, made) as log:
        answers = Answers(log, arm.spec, arm.keys, lambda response: response.completion)
        assert [answers[row.id] for row in made.examples] == [said("fake:b", n, 0) for n in range(1203)]
        assert list(answers.values()) == [said("fake:b", n, 0) for n in range(1203)]
        assert [answers[f"r{n}"] for n in (1202, 3, 700, 0)] == [said("fake:b", n, 0) for n in (1202, 3, 700, 0)]
        assert (len(answers), "r7" in answers, "r1203" in answers, answers.get("x")) == (1203, True, False, None)


def test_a_missing_answer_is_named(tmp_path: Path) -> None:
    config, made = planned(tmp_path, 3)
    with answered(tmp_path, made) as log:
        lacking = Answers(log, "fake:a", {**made.arms[0].keys, "r9": "no such key"}, lambda response: response)
        with pytest.raises(DataError, match="fake:a has no answer to example 'r9' in the log"):
            lacking["r9"]
    with log_of(tmp_path / "empty") as log, pytest.raises(DataError, match="has no answer to example 'r0'"):
        write_report(made, log, config, {}, Tracer(config.run_dir, {}))


def test_rows_report_and_traces_are_of_the_same_answers_and_made_again_they_are_the_same_bytes(tmp_path: Path) -> None:
    config, made = planned(tmp_path, 40, repeats=2)
    run = tmp_path / "run"
    run.mkdir()
    digests = []
    with answered(run, made) as log:
        for _ in range(2):
            report = write_report(made, log, config, {}, Tracer(config.run_dir, {}))
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
    assert report.models["fake:b"].facts == ModelFacts(
        spec="fake:b", kind="fake", model=None, host=None, billing="none"
    )  # fmt: skip
    assert load_report(str(run))[0] == report
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
    lines, responses = [], []
    for at, row in enumerate(made.requests()):
        text = f"answer {at % 5}"
        lost = Completion(failure=Failure(kind="error", reason="gone"))
        for completion in ([lost] if at % 3 == 0 else []) + [Completion(text=text)]:
            responses.append(
                Response(key=row.key, spec=row.spec, example_id=row.example_id, repeat=row.repeat,
                         answered_ns=at, completion=completion)
            )  # fmt: skip
        lines.append(repr((row.spec, row.example_id, row.repeat, "ok", text)))
    with log_of(tmp_path, responses) as log:
        found = provenance(made, log, config)
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
    with answered(folder / "run", made) as log:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        write_report(made, log, config, {}, Tracer(config.run_dir, {}))
        return tracemalloc.get_traced_memory()[1] - before


def test_the_report_keeps_what_an_adapter_s_training_took(tmp_path: Path) -> None:
    """Twenty steps in half an hour on one GPU; without the adapter's folder nothing is known of it."""
    model = ModelReport(
        facts=facts("served:m:structured-0123456789ab"), n=0, metrics={}, latency_s=Percentiles(), usage=Usage(),
        failures={}, served_by=(), trained_on=0,
    )  # fmt: skip
    manifest = Manifest(
        id="structured-0123456789ab", name="structured", track="structured", base="m", base_fingerprint="", config_digest="",
        data_digest="", created="", rank=4, alpha=8, hidden_size=None, train_prompts=0, files={},
        metrics={"train_s": 1800.0, "steps": 20, "steps_run": 20, "workers": 1, "gpus": 1.0},
    )  # fmt: skip
    write_json(tmp_path / manifest.id / MANIFEST, dataclasses.asdict(manifest))
    assert training_of(model, str(tmp_path)) == TrainingEffort(hours=0.5, workers=1, gpus=1.0)
    assert training_of(model, str(tmp_path / "elsewhere")) is None and training_of(model, "") is None
