"""The examples as their READMEs give them: rows on file, answers on file, the verdict that is promised."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from slm_ray.config import EvaluateConfig, load
from slm_ray.evaluation import evaluate
from slm_ray.rollout.store import RouteStore

ROOT = Path(__file__).parents[2]


def job(name: str, example: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, f"jobs/{name}.py", f"examples/{example}/{name}.yaml"],
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("example", "action", "status"),
    [("tickets", "swap", 0), ("tools", "fine_tune", 10), ("leave-an-openai-fine-tune", "inconclusive", 20)],
)
def test_an_example_ends_with_its_verdict(
    example: str, action: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("jobs", "data", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    prepared = job("prepare", example, tmp_path)
    assert prepared.returncode == 0, prepared.stderr
    monkeypatch.chdir(tmp_path)
    evaluate(load(EvaluateConfig, f"examples/{example}/evaluate.yaml"))
    compared = job("compare", example, tmp_path)
    assert compared.returncode == status, compared.stdout + compared.stderr
    assert f"verdict: {action} " in compared.stdout
    assert "declared before the first call" in compared.stdout


def test_a_roll_out_ends_with_the_small_model_taken_back_by_the_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    left = runpy.run_path(str(ROOT / "examples" / "rollout" / "rollout.py"))["main"](Path("runs/rollout"))
    said = capsys.readouterr().out
    assert (left.state, left.action, left.by, left.granted.most) == ("record", "alarm", "watch", "shadow")
    states = [state.state for state in RouteStore("runs/rollout/routes").history("tickets")]
    assert states == ["record", "shadow", "canary", "live", "record"]
    answered = dict(line.split(": ", 1) for line in said.splitlines() if ": {" in line)
    assert (
        answered["shadow"] == "{'llm': 100}"
        and "'slm': 150" in answered["live"]
        and answered["record"] == "{'llm': 40}"
    )
    assert "'slm'" in answered["canary"] and "'llm'" in answered["canary"]
    html = Path("runs/rollout/route.html").read_text(encoding="utf-8")
    assert "Alarm at audited request" in html and "stand-in" in html
