"""The sizes of a learning curve, what it has to reach, and what a person reads of it; training is in tests/integration."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from plain_records import build
from pydantic import ValidationError

from slm_ray import cluster
from slm_ray.cli import commands
from slm_ray.config import LearningCurveConfig, SweepConfig, TrainConfig
from slm_ray.corpus.render import prompt_of
from slm_ray.corpus.tracks import TRACKS
from slm_ray.errors import ConfigError, DataError
from slm_ray.learning_curve import LearningCurve, TrainedSize, nested_order, plans_of, sizes_of, summary, target_of
from slm_ray.reports.files import write_report
from slm_ray.training import rows
from slm_ray.training.trials import outcomes
from slm_ray.types import Completion, Example
from slm_ray.verdict.learning_curve import (
    Labelling,
    RowsAnswer,
    SizeScore,
    Target,
    rows_to_target,
    standard_error,
)

BASE = Path(__file__).parents[2] / "data" / "tiny_base"
TRACK = TRACKS["structured"]


def examples(count: int, tags: int = 1) -> list[Example]:
    """Rows of which the tag `kind` takes `tags` values, the first half of the rows the first of them."""
    return [
        Example(
            id=f"e{n:04}", prompt=prompt_of(TRACK, f"Number {n}"), target='{"n": 1}',
            tags={"kind": "often" if n < count // 2 else f"rare{n % tags}"},
        )
        for n in range(count)
    ]  # fmt: skip


def config(folder: Path, *, count: int = 40, **changed: Any) -> LearningCurveConfig:
    train = folder / "train.jsonl"
    lines = [json.dumps({"prompt": f"Number {n}", "completion": '{"n": 1}'}) + "\n" for n in range(count)]
    train.write_text("".join(lines), encoding="utf-8")
    training = TrainConfig(
        track="structured", train=str(train), base=str(BASE), run_dir=str(folder / "run"),
        adapters_dir=str(folder / "adapters"), max_length=256,
    )  # fmt: skip
    if "report" not in changed:
        changed.setdefault("target", 0.8)
    return LearningCurveConfig(training=training, validation="validation.jsonl", **changed)


def test_each_size_contains_the_smaller_ones_and_the_seed_draws_the_order(tmp_path: Path) -> None:
    settings = config(tmp_path, sizes=(3, 7, 20, 40))
    train = rows.read(settings.training.train, "structured")
    plans = plans_of(settings, train)
    asked = [[example.id for example in plan.examples] for plan in plans]
    assert [len(ids) for ids in asked] == [3, 7, 20, 40]
    for smaller, larger in itertools.pairwise(asked):
        assert larger[: len(smaller)] == smaller
    assert asked[-1] != [example.id for example in train.examples]
    assert sorted(asked[-1]) == sorted(example.id for example in train.examples)
    assert len({plan.folder for plan in plans}) == 4


def test_a_size_keeps_its_folder_when_others_are_asked_for_too(tmp_path: Path) -> None:
    few, more = config(tmp_path, sizes=(3, 7, 20, 40)), config(tmp_path, sizes=(3, 7, 11, 20, 40))
    train = rows.read(few.training.train, "structured")
    assert {plan.folder for plan in plans_of(few, train)} < {plan.folder for plan in plans_of(more, train)}


def test_a_trial_has_a_score_on_these_rows_or_an_error_and_else_the_run_was_stopped(tmp_path: Path) -> None:
    settings = config(tmp_path, sizes=(3, 7, 20, 40))
    plans = plans_of(settings, rows.read(settings.training.train, "structured"))[:2]
    plans[0].folder.mkdir(parents=True)
    scores = {"validation_score": 0.5, "validation_loss": 0.7, "validation_rows": [1.0, 0.0]}
    done = {"validation": "these", "metrics": {**scores, "train_s": 2.0}}
    (plans[0].folder / "trial.json").write_text(json.dumps(done), encoding="utf-8")
    scored, failed = outcomes(plans, "these", {plans[1].folder.name: "a worker died"})
    assert (scored.score, scored.loss, scored.rows) == (0.5, 0.7, (1.0, 0.0))
    assert (scored.metrics, scored.error) == ({"train_s": 2.0}, None)
    assert (failed.score, failed.error) == (None, "a worker died")
    with pytest.raises(KeyboardInterrupt):  # the second trial was not finished
        outcomes(plans, "these", {})
    with pytest.raises(KeyboardInterrupt):  # the first was scored on other validation rows
        outcomes(plans, "others", {plans[1].folder.name: "a worker died"})


def test_rows_that_will_not_do_are_refused_before_ray_is_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def joined() -> None:
        raise AssertionError("joined Ray before the rows were checked")

    monkeypatch.setattr(cluster, "connect", joined)
    settings = config(tmp_path)
    leaks = tmp_path / "validation.jsonl"
    leaks.write_text('{"prompt": "Number 7", "completion": "{}"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"1 of 1 rows of .*validation\.jsonl"):
        commands.learning_curve(settings.model_copy(update={"validation": str(leaks)}))
    with pytest.raises(DataError, match=r"1 of 1 rows of .*validation\.jsonl"):
        commands.sweep(SweepConfig(training=settings.training, validation=str(leaks)))
    with pytest.raises(DataError, match=r"1 of 1 rows of .*validation\.jsonl"):
        commands.train(settings.training)


def test_the_order_does_not_depend_on_the_file_but_on_the_seed() -> None:
    there = examples(60)
    ids = [there[place].id for place in nested_order(there, seed=1)]
    back = there[::-1]
    assert [back[place].id for place in nested_order(back, seed=1)] == ids
    assert [there[place].id for place in nested_order(there, seed=2)] != ids


def test_every_value_of_a_tag_has_its_share_of_every_size() -> None:
    there = examples(120, tags=6)
    order = nested_order(there, seed=3, stratify="kind")
    assert sorted(order) == list(range(120))
    for size in (12, 24, 60, 120):
        counts = Counter(there[place].tags["kind"] for place in order[:size])
        assert abs(counts["often"] - size / 2) <= 1
        assert all(abs(counts[f"rare{n}"] - size / 12) <= 1 for n in range(6))
    with pytest.raises(DataError, match="no row has the tag 'label'"):
        nested_order(there, seed=3, stratify="label")


def test_sizes_double_up_to_all_rows_when_none_are_named(tmp_path: Path) -> None:
    assert sizes_of(config(tmp_path), 800) == [50, 100, 200, 400, 800]
    assert sizes_of(config(tmp_path), 3201) == [200, 400, 800, 1600, 3201]
    assert sizes_of(config(tmp_path), 40) == [5, 10, 20, 40]
    with pytest.raises(DataError, match=r"31 training rows are too few for 4 sizes; prepare at least 32"):
        sizes_of(config(tmp_path), 31)
    with pytest.raises(ConfigError, match=r"sizes: 80 rows are asked for, and .*train\.jsonl has 40"):
        sizes_of(config(tmp_path, sizes=(10, 20, 40, 80)), 40)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sizes": (50, 100, 100, 200)}, "do not increase"),
        ({"sizes": (0, 50, 100, 200)}, "do not increase"),
        ({"sizes": (50, 100, 200)}, "four sizes or more"),
        ({"target": None}, "give the metric to reach"),
        ({"target": 0.8, "report": "runs/evaluate", "llm": "azure:"}, "not both"),
        ({"target": 0.8, "llm": "azure:"}, "belong together"),
        ({"target": 1.2}, "less than or equal to 1"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        config(tmp_path, **changed)


def evaluated(folder: Path, *, right: int, total: int = 50) -> str:
    there = examples(total)
    answers = {row.id: Completion(text=row.target if n < right else "{}", latency_s=1.0) for n, row in enumerate(there)}
    report, scores = build(TRACK, there, {"azure:big": answers})
    write_report(folder, report, scores)
    return str(folder)


def test_the_target_is_the_llm_s_metric_less_delta_with_what_that_is_uncertain_by(tmp_path: Path) -> None:
    report = evaluated(tmp_path / "evaluate", right=40)
    settings = config(tmp_path, report=report, llm="azure:big", delta=0.05)
    target = target_of(settings, "structured", "exact_match")
    assert target.score == pytest.approx(0.75)
    assert target.error == standard_error(0.8, 50)
    assert target_of(config(tmp_path, target=0.9), "structured", "exact_match") == Target(score=0.9)
    with pytest.raises(ConfigError, match=r"of the track 'structured', and training\.track is 'toolcall'"):
        target_of(settings, "toolcall", "exact_match")
    with pytest.raises(ConfigError, match=r"llm: .* has no 'azure:bigger': did you mean 'azure:big'"):
        target_of(config(tmp_path, report=report, llm="azure:bigger"), "structured", "exact_match")


def test_the_summary_shows_sizes_failures_target_answer_and_cost() -> None:
    scores = {50: 0.42, 100: 0.55, 200: 0.68, 400: 0.75, 800: 0.80}
    points = [SizeScore(rows=n, score=s, error=standard_error(s, 300)) for n, s in scores.items()]
    target = Target(score=0.72, error=0.01)
    result = LearningCurve(
        track="structured", metric="exact_match", validation_rows=300, labelled=500, target=target,
        sizes=(
            *(TrainedSize(rows=point.rows, score=point.score, error=point.error) for point in points),
            TrainedSize(rows=1000, failed="a worker died"),
        ),
        answer=rows_to_target(points, target, seed=1),
        labelling=Labelling(further_rows=(0, 100, 700), usd=(0.0, 50.0, 350.0), payback_requests=(0.0, 5e4, 3.5e5)),
    )  # fmt: skip
    lines = summary(result)
    assert lines[0] == "    rows  exact_match on 300 validation rows, and the curve (90 %)"
    assert lines[1].startswith("      50  42.0% ± 4.7%")
    assert "   1,000  failed: a worker died" in lines
    assert any(line.startswith("   3,200  not trained") for line in lines)
    assert "target: 72.0% ± 1.6%" in lines
    text = "\n".join(lines)
    assert "training rows to reach it: about " in text
    assert "labelling: 100 further rows (0 to 700) beside the 500 that there are, 50 USD (0 to 350)" in text
    assert "paid back by what a swap saves after 0 to 350,000 requests" in text


def test_a_refused_curve_says_why_in_the_summary() -> None:
    answer = RowsAnswer(outcome="refused", because="too few")
    sizes = (TrainedSize(rows=50, score=0.5, error=0.05),)
    result = LearningCurve(
        track="structured", metric="exact_match", validation_rows=60, labelled=500, target=Target(score=0.78),
        sizes=sizes, answer=answer,
    )  # fmt: skip
    assert summary(result)[-2:] == ["target: 78.0%", "training rows to reach it: no answer: too few"]
