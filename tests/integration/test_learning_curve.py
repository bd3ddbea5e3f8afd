"""A learning curve under real Ray Tune: nested sizes side by side, finished ones never trained again, leaks refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slm_ray.config import LearningCurveConfig, TrainConfig
from slm_ray.errors import DataError
from slm_ray.learning_curve import RESULT, LearningCurve, learning_curve
from slm_ray.reports.encoding import decode

pytestmark = pytest.mark.heavy
BASE = Path(__file__).parents[2] / "data" / "tiny_base"


def rows(path: Path, count: int, word: str = "Number") -> str:
    lines = [{"prompt": f"{word} {n}", "completion": '{"n": 1}'} for n in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def config(folder: Path, *, sizes: tuple[int, ...], validation: str) -> LearningCurveConfig:
    training = TrainConfig(
        track="structured", train=rows(folder / "train.jsonl", 24), base=str(BASE), run_dir=str(folder / "run"),
        adapters_dir=str(folder / "adapters"), per_device_batch=4, gradient_accumulation=1, warmup_steps=1, epochs=1,
        optimizer="adamw_torch", max_length=256, lora={"rank": 4, "alpha": 8, "dropout": 0.0},
        workers={"count": 1, "per_worker": {"slot": 2, "CPU": 0.5}}, learning_rate=5e-3,
    )  # fmt: skip
    return LearningCurveConfig(training=training, validation=validation, sizes=sizes, target=0.5, usd_per_label=0.1)


def test_sizes_are_trained_once_and_a_further_size_trains_only_itself(tmp_path: Path) -> None:
    validation = rows(tmp_path / "validation.jsonl", 6, "Figure")
    first = learning_curve(config(tmp_path, sizes=(3, 6, 12, 24), validation=validation))
    assert [size.rows for size in first.sizes] == [3, 6, 12, 24]
    assert all(size.failed is None and size.score is not None for size in first.sizes), first.sizes
    assert first.answer.because
    path = tmp_path / "run" / RESULT
    assert decode(json.loads(path.read_text()), LearningCurve, where=str(path), fix="") == first
    assert not (tmp_path / "adapters").exists(), "a size of a curve is no adapter to serve"

    trained = checkpoints(tmp_path)
    assert len(trained) == 4
    assert learning_curve(config(tmp_path, sizes=(3, 6, 12, 24), validation=validation)) == first
    others = rows(tmp_path / "others.jsonl", 5, "Count")
    more = learning_curve(config(tmp_path, sizes=(3, 6, 12, 18, 24), validation=others))
    assert [size.rows for size in more.sizes] == [3, 6, 12, 18, 24] and more.validation_rows == 5
    after = checkpoints(tmp_path)
    assert len(after) == 5 and trained.items() < after.items(), "a finished size was trained again"
    again = {size.rows: size.error for size in more.sizes}
    assert [again[size.rows] for size in first.sizes] != [size.error for size in first.sizes], "scores of other rows"


def checkpoints(folder: Path) -> dict[Path, int]:
    """The trained weights of each size, and when they were written."""
    return {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("adapter_model.safetensors")}


def test_validation_rows_that_are_training_rows_are_refused_before_any_training(tmp_path: Path) -> None:
    leaking = rows(tmp_path / "held.jsonl", 4)
    with pytest.raises(DataError, match=r"4 of 4 rows of .*held\.jsonl are training rows of .*train\.jsonl"):
        learning_curve(config(tmp_path, sizes=(3, 6, 12, 24), validation=leaking))
    assert not list((tmp_path / "run").rglob("trial.json"))
