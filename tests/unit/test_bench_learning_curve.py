"""The benchmark of the learning curve counts every curve that it made, simulated and real, and its learners learn."""

import csv
import random
from pathlib import Path

import numpy as np
import pytest

from tools.bench_learning_curve import KINDS, LEARNERS, Tally, drawn_curve, features, real, simulated
from tools.config import LearningCurveBenchConfig


def texts(path: Path, count: int, seed: int) -> str:
    """Three labels, each with words of its own among words of all."""
    chance = random.Random(seed)
    with path.open("w", encoding="utf-8", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["text", "label"])
        for number in range(count):
            label = f"label{number % 3}"
            words = [f"word{chance.randrange(40)}" for _ in range(5)] + [f"{label}of{chance.randrange(30)}"]
            rows.writerow([" ".join(words), label])
    return str(path)


@pytest.mark.parametrize("kind", KINDS)
def test_simulated_curves_rise_within_what_a_metric_can_be(kind: str) -> None:
    for seed in range(20):
        metric = drawn_curve(kind, np.random.default_rng(seed))(np.geomspace(50, 3200, 50))
        assert (np.diff(metric) >= -1e-9).all()
        assert metric.min() > -0.5 and metric.max() <= 1


def test_every_simulated_curve_is_counted() -> None:
    tallies = simulated(LearningCurveBenchConfig(curves=3))
    assert {tally.curves for tally in tallies.values()} == {3} and set(tallies) == set(KINDS)
    assert sum(tally.rows_held for tally in tallies.values()) > 12
    assert Tally().row("none")[1] == "0"


@pytest.mark.parametrize("name", LEARNERS)
def test_a_stand_in_learner_does_better_than_chance(name: str, tmp_path: Path) -> None:
    with open(texts(tmp_path / "train.csv", 300, 1), encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    x, y = features([text for text, _ in rows]), np.array([int(label[-1]) for _, label in rows])
    right = LEARNERS[name](x[:200], y[:200], x[200:], 3) == y[200:]
    assert right.mean() > 0.7


def test_real_curves_are_measured_for_every_learner_and_seed(tmp_path: Path) -> None:
    config = LearningCurveBenchConfig(sizes=(10, 20, 40, 80), validation_rows=60, seeds=2, targets=2)
    tallies = real(config, texts(tmp_path / "train.csv", 400, 1), texts(tmp_path / "test.csv", 200, 2))
    assert set(tallies) == set(LEARNERS)
    assert {tally.curves for tally in tallies.values()} == {4}
