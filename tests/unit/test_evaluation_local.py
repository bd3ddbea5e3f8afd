"""Recorded answers and baselines are evaluated without Ray: the same report, log and promises, in this process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from slm_ray.config import EvaluateConfig
from slm_ray.errors import ResourceError
from slm_ray.evaluation import evaluate
from slm_ray.evaluation.local import is_local
from slm_ray.evaluation.plan import plan
from slm_ray.runlog import RunLog
from slm_ray.storage import read_jsonl

ROWS = 40
WITHOUT_RAY = """
import sys
from slm_ray.config import EvaluateConfig
from slm_ray.evaluation import evaluate
evaluate(EvaluateConfig.model_validate_json(sys.argv[1]), environment={})
print("ray" in sys.modules)
"""


def write(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def config(tmp_path: Path) -> EvaluateConfig:
    """A log that is right on every second row, and the most frequent target of other rows."""
    rows = [{"id": f"r{n}", "prompt": f"question {n}", "completion": json.dumps({"n": n % 4})} for n in range(ROWS)]
    answers = [
        {"prompt": row["prompt"], "prediction": row["completion"] if n % 2 else "no"} for n, row in enumerate(rows)
    ]
    others = [{"prompt": f"another {n}", "completion": json.dumps({"n": min(n, 3)})} for n in range(8)]
    return EvaluateConfig(
        track="structured", examples=write(tmp_path / "rows.jsonl", rows), run_dir=str(tmp_path / "run"),
        models=(f"recorded:{write(tmp_path / 'answers.jsonl', answers)}", "baseline:majority"),
        train=write(tmp_path / "train.jsonl", others),
    )  # fmt: skip


def test_no_ray_is_started_or_even_loaded(config: EvaluateConfig) -> None:
    job = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY, config.model_dump_json()],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (job.returncode, job.stdout) == (0, "False\n"), job.stderr
    rows = read_jsonl(Path(config.run_dir) / "scores.jsonl")
    recorded, majority = config.models
    assert [row["models"][recorded]["scores"]["exact_match"] for row in rows] == [0.0, 1.0] * (ROWS // 2)
    assert sum(row["models"][majority]["scores"]["exact_match"] for row in rows) == ROWS / 4


def test_a_budget_stops_it_and_a_higher_one_goes_on_where_it_was(config: EvaluateConfig) -> None:
    short = config.model_copy(
        update={"max_calls": 30, "generation": config.generation.model_copy(update={"max_attempts": 1})}
    )
    with pytest.raises(ResourceError, match="max_calls 30 does not allow another call: 50 requests are not asked"):
        evaluate(short, environment={})
    report = evaluate(short.model_copy(update={"max_calls": 80}), environment={})
    assert {model.n for model in report.models.values()} == {ROWS}
    with RunLog(config.run_dir) as log:
        assert log.count() == 2 * ROWS, "nothing is asked twice"


def test_one_arm_of_an_endpoint_takes_all_of_them_to_ray(config: EvaluateConfig) -> None:
    mixed = plan(config.model_copy(update={"models": (*config.models, "served:m")}), {})
    requests = [request for arm in mixed.arms for request in arm.pending(mixed.examples, RunLog(config.run_dir))]
    assert not is_local(requests, mixed.arms)
    assert is_local([request for request in requests if request.spec != "served:m"], mixed.arms)
