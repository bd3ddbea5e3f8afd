"""The plan of an evaluation: all is checked before anything starts, and a key is what makes a call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from slm_ray.config import EvaluateConfig
from slm_ray.errors import ConfigError, DataError, ModelError
from slm_ray.evaluation.plan import plan


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
