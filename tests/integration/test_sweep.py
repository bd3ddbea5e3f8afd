"""A sweep under real Ray Tune: one group for all trials, scored on validation rows, resources given back, never run twice."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util import placement_group_table

from slm_ray.config import Search, TrainConfig
from slm_ray.errors import DataError, ResourceError
from slm_ray.sweep import sweep

pytestmark = pytest.mark.heavy
BASE = Path(__file__).parents[2] / "data" / "tiny_base"
SETTINGS = Search(learning_rates=(5e-3, 1e-6), ranks=(4,), trials=2, epochs=3, train_rows=24, validation_rows=4)


def rows(path: Path, count: int, word: str = "Number") -> str:
    lines = [{"prompt": f"{word} {n}", "completion": '{"n": 1}'} for n in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def config(folder: Path, **changed: Any) -> TrainConfig:
    return TrainConfig(
        **{
            "track": "structured", "train": rows(folder / "train.jsonl", 30), "base": str(BASE),
            "run_dir": str(folder / "run"), "adapters_dir": str(folder / "adapters"), "per_device_batch": 4,
            "gradient_accumulation": 1, "warmup_steps": 1, "optimizer": "adamw_torch", "max_length": 256,
            "lora": {"rank": 4, "alpha": 8, "dropout": 0.0}, "workers": {"count": 2, "per_worker": {"slot": 2, "CPU": 0.5}},
            **changed,
        }
    )  # fmt: skip


def test_the_better_trial_is_scored_the_worse_ends_early_and_everything_is_given_back(tmp_path: Path) -> None:
    training = config(tmp_path)
    validation = rows(tmp_path / "validation.jsonl", 6, "Figure")
    result = sweep(training, SETTINGS, validation=validation)

    assert result["metric"] == "exact_match"
    best, worse = result["trials"]
    assert (best["learning_rate"], worse["learning_rate"]) == (5e-3, 1e-6)
    assert result["best"]["score"] == best["score"] is not None
    assert best["metrics"]["workers"] == 2 and best["metrics"]["rows"] == 24 and best["metrics"]["steps"] == 9
    assert worse["stopped_at"] == 3 and worse["loss"] > best["loss"]
    assert result["choice"]["by"] == "only"

    limit = time.monotonic() + 20
    while ray.available_resources().get("slot") != 4 and time.monotonic() < limit:
        time.sleep(0.2)
    assert ray.available_resources()["slot"] == 4
    assert {group["state"] for group in placement_group_table().values()} <= {"REMOVED"}

    records = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("trial.json")}
    assert len(records) == 2
    assert sweep(training, SETTINGS, validation=validation) == result
    assert json.loads((tmp_path / "run" / "sweep.json").read_text()) == result
    (tmp_path / "run" / "sweep.json").unlink()
    assert sweep(training, SETTINGS, validation=validation) == result
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("trial.json")}
    assert after == records, "finished trials of an interrupted sweep were trained again"


def test_a_trial_that_no_cluster_could_hold_is_refused_at_once(tmp_path: Path) -> None:
    training = config(tmp_path, workers={"count": 9, "per_worker": {"slot": 1}})
    with pytest.raises(ResourceError, match="asks for 9 slot"):
        sweep(training, SETTINGS, validation=rows(tmp_path / "validation.jsonl", 4, "Figure"))


def test_validation_rows_that_are_training_rows_are_refused_before_any_trial(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"4 of \d+ rows of .*validation\.jsonl are training rows of .*train\.jsonl"):
        sweep(config(tmp_path), SETTINGS, validation=rows(tmp_path / "validation.jsonl", 4))
