"""One small recipe really trained in three precisions side by side: the table is written, and nothing is trained twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slm_ray.config import PrecisionsConfig, TrainConfig
from slm_ray.precisions import RESULT, Precisions, precisions
from slm_ray.reports.encoding import decode
from tests.integration.test_learning_curve import BASE, rows

pytestmark = pytest.mark.heavy


def test_three_precisions_are_trained_once_and_stand_in_one_table(tmp_path: Path) -> None:
    training = TrainConfig(
        track="structured", train=rows(tmp_path / "train.jsonl", 12), base=str(BASE), run_dir=str(tmp_path / "run"),
        adapters_dir=str(tmp_path / "adapters"), per_device_batch=4, gradient_accumulation=1, warmup_steps=1, epochs=1,
        optimizer="adamw_torch", max_length=256, lora={"rank": 4, "alpha": 8, "dropout": 0.0},
        workers={"count": 1, "per_worker": {"slot": 1, "CPU": 0.5}}, learning_rate=5e-3,
    )  # fmt: skip
    validation = rows(tmp_path / "validation.jsonl", 6, "Figure")
    config = PrecisionsConfig(training=training, validation=validation)
    result = precisions(config)
    assert [one.precision for one in result.measured] == ["16bit", "8bit", "4bit"]
    assert all(one.failed is None for one in result.measured), result
    assert all(one.score is not None and one.peak_bytes and one.tokens_per_s for one in result.measured)
    assert len({one.loss for one in result.measured}) == 3, "two were trained on the same base"
    path = tmp_path / "run" / RESULT
    assert decode(json.loads(path.read_text()), Precisions, where=str(path), fix="") == result
    assert precisions(config) == result
    assert not (tmp_path / "adapters").exists()
