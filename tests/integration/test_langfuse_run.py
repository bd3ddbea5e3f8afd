"""Whole evaluations beside a Langfuse that is slow, then well: the result is the same, and a replay completes the traces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from langfuse_server import PUBLIC, SECRET, Fault, LangfuseServer

from slm_ray.config import EvaluateConfig
from slm_ray.evaluation import evaluate

pytestmark = pytest.mark.heavy
ROOT = Path(__file__).parents[2]
ROWS = 60


def run(folder: Path, environment: dict[str, str]) -> dict[str, bytes]:
    """Evaluate two models into `folder`; the files that hold the result, without times."""
    rows = folder.parent / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"q {n}", "completion": '{"n": 1}'}) + "\n" for n in range(ROWS)))
    config = EvaluateConfig(
        track="structured", examples=str(rows), models=("fake:{}", 'fake:{"n": 1}'), run_dir=str(folder)
    )
    report = evaluate(config, environment=environment)
    figures = {spec: (model.metrics, model.failures) for spec, model in report.models.items()}
    return {"figures": json.dumps(figures).encode(), "config": (folder / "config.yaml").read_bytes()}


def test_a_slow_langfuse_changes_no_result_and_a_replay_sends_the_rest(
    ray_cluster: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    alone = run(tmp_path / "run", {})
    (tmp_path / "run").rename(tmp_path / "alone")
    with LangfuseServer(lambda path, nth: Fault(after_s=3)) as server:
        beside = run(tmp_path / "run", server.environment)
        told = capfd.readouterr().err
        assert beside == alone
        assert told.count("warning: ") == 1
        assert f"slm-ray trace {tmp_path}/run" in told
        server.script = lambda path, nth: None
        for _ in range(2):
            job = subprocess.run(
                [sys.executable, "jobs/trace.py", str(tmp_path / "run")],
                cwd=ROOT, env=os.environ | server.environment, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert (job.returncode, job.stderr) == (0, "")
            assert job.stdout.startswith(f"{server.url} has the traces of 1 run; sent now: ")
            told += job.stdout
            assert Counter(server.span_counts().values()) == {1: 1 + 2 + 2 * ROWS}
            assert Counter(server.run_items().values()) == {1: 2 * ROWS}
            assert len(server.items) == ROWS
            assert server.bad == []
    for secret in (PUBLIC, SECRET):
        assert secret not in told
        assert not [path for path in tmp_path.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
