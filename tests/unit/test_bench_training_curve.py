"""The benchmark of trained learning curves hides the largest size from the fit and says what came of every curve."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from slm_ray.config import load
from tools import bench_training_curve
from tools.bench_training_curve import Curve, curve, table
from tools.config import TrainingCurveBenchConfig

SIZES = (100, 200, 400, 800, 3200)


def trained(*scores: float | None) -> Curve:
    return curve("mine", 1, list(zip(SIZES, scores, strict=True)), 300)


def words(one: Curve) -> list[str]:
    return [str(cell) for column in table([one]).columns for cell in column.cells]


def test_a_curve_that_goes_on_is_held_and_one_that_jumps_is_not() -> None:
    steady, jumps = trained(0.30, 0.45, 0.57, 0.66, 0.79), trained(0.20, 0.35, 0.42, 0.45, 0.99)
    assert steady.metric_held is True and steady.rows_held is None, "no number is promised that far out"
    early = trained(0.30, 0.50, 0.70, 0.80, 0.60)
    assert early.rows_held is False, "a metric that 400 rows have takes no 3,200"
    assert jumps.metric_held is False
    assert "1 of 1" in words(steady) and "0 of 1" in words(jumps)


def test_the_hidden_size_moves_no_forecast() -> None:
    one, other = trained(0.30, 0.45, 0.57, 0.66, 0.70), trained(0.30, 0.45, 0.57, 0.66, 0.95)
    assert one.forecast == other.forecast and one.forecast is not None and one.forecast.rows == 3200


def test_a_failed_training_and_a_refused_fit_are_said_and_count_for_nothing() -> None:
    failed, flat = trained(0.3, 0.4, 0.5, None, 0.8), trained(0.02, 0.02, 0.01, 0.02, 0.6)
    assert failed.answer is None and flat.answer is not None and flat.answer.outcome == "refused"
    assert failed.metric_held is None and flat.metric_held is None and flat.rows_held is None
    said = [str(cell) for column in table([failed, flat]).columns for cell in column.cells]
    assert "a training failed" in said and any(cell.startswith("refused: the metric does not move") for cell in said)
    assert "0 of 2 fitted" in said and said.count("0 of 0") == 2


@pytest.mark.parametrize("changed", [{"hidden": 3000}, {"sizes": (1, 2, 3)}, {"seeds": ()}, {"sources": ()}])
def test_settings_that_show_nothing_are_refused(changed: dict[str, Any]) -> None:
    path = Path(bench_training_curve.__file__).with_suffix(".yaml")
    config = load(TrainingCurveBenchConfig, str(path))
    assert config.hidden == 4 * config.sizes[-1] and [one.name for one in config.sources] == ["structured", "toolcall"]
    with pytest.raises(ValidationError):
        TrainingCurveBenchConfig(**config.model_dump() | changed)
