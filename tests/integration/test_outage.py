"""An endpoint that is down, as a person meets it: evaluate ends with 3, compare with 20, and both say how to go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from chat_server import ChatServer, Reply, Request, answer, error

from slm_ray.cli import commands
from slm_ray.config import CompareConfig, load

pytestmark = pytest.mark.heavy
ROOT = Path(__file__).parents[2]
ROWS = 60


def reference(n: int) -> str:
    return json.dumps({"arguments": {"n": n}, "query": f"q{n}", "tool_name": "t"})


def job(name: str, url: str, *settings: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("AZURE_", "LANGFUSE_"))}
    keys = {"AZURE_ENDPOINT": url, "AZURE_API_KEY": "local", "AZURE_DEPLOYMENT": "gpt", "LANGFUSE_DISABLED": "1"}
    overrides = [part for setting in settings for part in ("--set", setting)]
    return subprocess.run(
        [sys.executable, f"jobs/{name}.py", f"jobs/{name}.yaml", *overrides], text=True, capture_output=True, cwd=ROOT,
        env=kept | keys | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}, timeout=120, check=False,
    )  # fmt: skip


def test_a_dead_llm_is_no_swap_and_the_same_commands_go_on_when_it_is_back(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The SLM is wrong on every row and the LLM's endpoint answers 500; mended, only the failed rows are asked again."""
    rows = [{"id": f"r{n}", "prompt": f"question {n}", "completion": reference(n)} for n in range(ROWS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    down = True

    def reply(request: Request) -> Reply:
        if "/deployments/" not in request.path and request.body.get("model") == "m":
            return answer("{}")
        return error(500, message="broken") if down else answer(reference(int(request.text.split()[-1])))

    with ChatServer(reply, models=("m",)) as server:
        evaluate = [
            f"examples={tmp_path}/rows.jsonl", "train=", f"run_dir={tmp_path}/run", f"endpoint={server.url}",
            "models=[served:m, azure:gpt]", "generation.max_attempts=2",
        ]  # fmt: skip
        compare = load(
            CompareConfig, ROOT / "jobs/compare.yaml", [f"report={tmp_path}/run", "slm=served:m", "llm=azure:gpt", "train="]
        )  # fmt: skip
        first = job("evaluate", server.url, *evaluate)
        assert first.returncode == 3, first.stderr
        (line,) = [line for line in first.stderr.splitlines() if line.startswith("outage: ")]
        assert line.startswith("outage: azure:gpt: calls failed on 60 of 60 rows (100.0%, more than 2%; 60 times ")
        assert "500" in line and "run the same command again, which asks only the failed rows" in line
        assert (tmp_path / "run/report.json").exists()
        assert commands.compare(compare) == 20
        said = capsys.readouterr().out
        assert "verdict: inconclusive" in said and "LLM (azure:gpt) failed on 60 of 60" in said

        down, before = False, len(server.requests)
        again = job("evaluate", server.url, *evaluate)
        assert (again.returncode, len(server.requests) - before) == (0, ROWS), again.stderr
        assert commands.compare(compare) == 10
