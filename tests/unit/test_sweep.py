"""What a sweep chooses and how sure it says it is; the training itself is in tests/integration."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from slm_ray import adapters
from slm_ray import sweep as sweeping
from slm_ray.config import Range, Search, TrainConfig
from slm_ray.corpus.render import prompt_of
from slm_ray.corpus.tracks import track
from slm_ray.sweep import choice, ranked, summary
from slm_ray.training import rows
from slm_ray.training.plan import Plan
from slm_ray.training.search import Searched, asha, grid, known, optuna_search, replayed, space
from slm_ray.training.trials import Trial
from slm_ray.types import Example


def trial(
    rank: int,
    scores: Sequence[float | None],
    loss: float,
    *,
    error: str | None = None,
    stopped_at: int | None = None,
    **metrics: Any,
) -> Trial:
    config = TrainConfig(
        track="structured", train="train.jsonl", base="base", run_dir="run", adapters_dir="adapters", learning_rate=1e-4
    )
    plan = Plan(
        config=config.model_copy(update={"lora": config.lora.model_copy(update={"rank": rank, "alpha": 2 * rank})}),
        folder=Path("folder"), examples=(), lengths=(), base_fingerprint="", config_digest="", data_digest="",
        chat_template="", content_digest="",
    )  # fmt: skip
    scored = [score for score in scores if score is not None]
    score = None if error or stopped_at else sum(scored) / max(len(scored), 1)
    return Trial(
        plan=plan, score=score, loss=loss, rows=tuple(scores), metrics=metrics, error=error, stopped_at=stopped_at
    )


def ranks(trials: Sequence[Trial]) -> list[int]:
    return [found.plan.config.lora.rank for found in ranked(trials)]


def told(trials: Sequence[Trial]) -> str:
    table = ranked(trials)
    rows = [
        {
            "learning_rate": found.plan.config.learning_rate, "rank": found.plan.config.lora.rank, "score": found.score,
            "loss": found.loss, **({"error": found.error} if found.error else {}),
            **({"stopped_at": found.stopped_at} if found.stopped_at else {}),
        }
        for found in table
    ]  # fmt: skip
    return summary({"metric": "exact_match", "trials": rows, "best": rows[0], "choice": choice(table)})[-1]


def test_equal_scores_are_told_apart_by_loss_and_never_by_the_smaller_rank() -> None:
    zero = [0.0] * 30
    table = [trial(8, zero, 0.687), trial(16, zero, 0.55), trial(32, zero, 0.469), trial(64, zero, float("nan"))]
    assert ranks(table) == [32, 16, 8, 64]
    made = choice(ranked(table))
    assert (made["by"], made["runner_up"]["rank"], made["difference_shown"]) == ("loss", 16, False)
    assert "no difference to lr 0.0001, rank 16 shown: +0.0%" in told(table)
    assert told(table).endswith("on 30 validation rows; chosen by loss")


def test_equal_losses_are_told_apart_by_what_a_trial_cost() -> None:
    rows = [1.0, 0.0]
    table = [
        trial(8, rows, 0.5, trainable_parameters=200, train_s=1.0),
        trial(16, rows, 0.5, trainable_parameters=100, train_s=9.0),
        trial(32, rows, 0.5, trainable_parameters=100, train_s=8.0),
    ]
    assert ranks(table) == [32, 16, 8]
    assert choice(ranked(table))["by"] == "cost"


def test_the_better_score_wins_whatever_the_loss_and_a_failed_trial_comes_last() -> None:
    table = [trial(4, [], 0.0, error="out of memory"), trial(8, [0.0, 0.0], 0.1), trial(16, [1.0, 0.0], 0.9)]
    assert ranks(table) == [16, 8, 4]
    assert choice(ranked(table))["by"] == "score"


def test_a_difference_is_said_to_be_shown_only_where_the_pairs_show_it() -> None:
    right, wrong = [1.0] * 40, [0.0] * 40
    assert "better than lr 0.0001, rank 8: +100.0%" in told([trial(8, wrong, 0.5), trial(16, right, 0.5)])
    nearly = [1.0, *wrong[1:]]
    assert "no difference to" in told([trial(8, wrong, 0.5), trial(16, nearly, 0.5)])


def test_the_error_is_shared_among_all_that_the_winner_won_against() -> None:
    wrong, some = [0.0] * 40, [1.0] * 4 + [0.0] * 36
    pair = choice(ranked([trial(8, wrong, 0.5), trial(16, some, 0.5)]))
    many = choice(ranked([*(trial(8, wrong, 0.5) for _ in range(9)), trial(16, some, 0.5)]))
    assert pair["difference_shown"] and not many["difference_shown"]
    assert many["lower"] < pair["lower"]


def test_rows_without_a_score_are_left_out_of_the_pairs() -> None:
    made = choice(ranked([trial(8, [0.0, None, 0.0], 0.5), trial(16, [1.0, 1.0, None], 0.5)]))
    assert made["rows"] == 1
    none = [trial(8, [None], 0.5), trial(16, [None], 0.4)]
    assert "undefined on all validation rows; chosen by loss" in told(none)


def test_a_winner_without_rival_says_so() -> None:
    table = [trial(8, [0.0], 0.5), trial(16, [], 0.0, error="diverged")]
    assert told(table) == "best: lr 0.0001, rank 8; no other trial was trained to its end"
    assert choice(ranked(table)) == {"by": "only", "difference_shown": False}


def test_trials_that_ended_early_come_after_those_that_did_not_and_before_those_that_failed() -> None:
    table = [
        trial(4, [], 0.0, error="diverged"), trial(8, [], 0.1, stopped_at=3), trial(16, [], 0.3, stopped_at=9),
        trial(32, [], 0.2, stopped_at=9), trial(64, [0.0], 0.9), trial(128, [0.0], 0.8),
    ]  # fmt: skip
    assert ranks(table) == [128, 64, 32, 16, 8, 4]
    made = choice(ranked(table))
    assert (made["by"], made["runner_up"]["rank"]) == ("loss", 64)


def searched(folder: Path, lengths: int = 90, **settings: Any) -> Searched:
    config = TrainConfig(
        track="structured", train="train.jsonl", base="base", run_dir=str(folder), adapters_dir="adapters",
        per_device_batch=4, gradient_accumulation=1, workers={"count": 1},
    )  # fmt: skip
    plan = Plan(
        config=config, folder=folder, examples=(), lengths=(10,) * lengths, base_fingerprint="base", config_digest="",
        data_digest="rows",
        chat_template="", content_digest="rows",
    )  # fmt: skip
    return Searched(planned=plan, settings=Search(**settings), validation=())


def finish(looked: Searched, point: dict[str, Any], **metrics: Any) -> None:
    folder = looked.at(point).folder
    folder.mkdir(parents=True)
    record = {"validation": looked.validation_digest, **point, "rungs": [[2, 1.5], [6, 1.2]], "metrics": metrics}
    (folder / "trial.json").write_text(json.dumps(record), encoding="utf-8")


def test_two_lists_are_a_grid_that_is_cut_to_the_number_of_trials_by_seed(tmp_path: Path) -> None:
    lists: dict[str, Any] = {"learning_rates": (1e-5, 5e-3), "ranks": (4, 8)}
    few = grid(Search(trials=2, **lists), seed=1)
    assert few is not None and len(few) == 2 and few == grid(Search(trials=2, **lists), seed=1)
    whole = grid(Search(trials=9, **lists), seed=1)
    assert whole is not None
    orders = {str(grid(Search(trials=9, **lists), seed=seed)) for seed in range(20)}
    assert len(orders) > 5, "sorted by rate, every trial would look better to ASHA than the one before it"
    assert {(point["learning_rate"], point["rank"]) for point in whole} == {
        (r, k) for r in (1e-5, 5e-3) for k in (4, 8)
    }
    assert grid(Search(learning_rates=Range(low=1e-5, high=1e-3)), seed=1) is None
    with pytest.raises(ValidationError, match="not below high"):
        Range(low=1, high=1)


def test_a_point_is_a_run_of_its_own_whose_alpha_follows_the_rank(tmp_path: Path) -> None:
    looked = searched(tmp_path)
    plans = [looked.at({"learning_rate": 1e-3, "rank": rank}) for rank in (4, 8)]
    assert [(plan.config.lora.rank, plan.config.lora.alpha) for plan in plans] == [(4, 8), (8, 16)]
    assert len({plan.folder for plan in plans}) == 2


def test_rungs_are_where_asha_asks(tmp_path: Path) -> None:
    looked = searched(tmp_path)  # 90 rows in batches of 4
    assert (looked.steps, looked.rungs) == (23, (2, 6))
    scheduler = asha(looked)
    assert scheduler is not None
    (bracket,) = scheduler._brackets
    assert set(looked.rungs) <= {step for step, _ in bracket._rungs}
    assert searched(tmp_path, reduction_factor=1).rungs == () and asha(searched(tmp_path, reduction_factor=1)) is None
    assert searched(tmp_path, lengths=4).rungs == (), "one step has no rung"


def test_finished_trials_are_told_again_and_only_those_within_the_search_count(tmp_path: Path) -> None:
    looked = searched(tmp_path, learning_rates=Range(low=1e-4, high=1e-2), ranks=(4, 8), trials=3)
    whole, ended = {"learning_rate": 1e-3, "rank": 4}, {"learning_rate": 2e-3, "rank": 8}
    finish(looked, whole, steps=23, validation_loss=1.0, validation_score=0.5, validation_rows=[0.5])
    finish(looked, ended, steps=6, validation_loss=1.2, stopped_at=6)
    finish(looked, {"learning_rate": 0.5, "rank": 4}, steps=23, validation_loss=9.0)
    unfinished = looked.at({"learning_rate": 3e-3, "rank": 8})
    unfinished.folder.mkdir()
    unfinished.progress_path.write_text("{}", encoding="utf-8")
    points = known(looked, tmp_path / "sweep")
    assert sorted(points, key=lambda point: point["rank"]) == [whole, ended]
    assert not unfinished.progress_path.exists(), "its progress is not how far this run is"

    reports = [{"step": 2, "loss": 1.5}, {"step": 6, "loss": 1.2}]
    record = looked.finished(looked.at(whole))
    assert record is not None
    assert replayed(record) == [*reports, {"step": 23, "loss": 1.0, "done": True}]
    record = looked.finished(looked.at(ended))
    assert record is not None
    assert replayed(record) == [reports[0], {**reports[1], "done": True}]

    patient = dataclasses.replace(looked, settings=looked.settings.model_copy(update={"reduction_factor": 1}))
    assert patient.finished(patient.at(ended)) is None, "this search would not have ended it"


def test_optuna_takes_the_known_points_first_and_then_picks_within_the_range_the_same_for_a_seed() -> None:
    settings = Search(learning_rates=Range(low=1e-4, high=1e-2), ranks=Range(low=4, high=64))
    first = {"learning_rate": 1e-3, "rank": 8}

    def picks(seed: int) -> list[dict[str, Any]]:
        optuna = optuna_search([first], wanted=6, seed=seed)
        optuna.set_search_properties("loss", "min", space(settings))
        found = []
        for number in range(6):
            point = optuna.suggest(str(number))
            assert point is not None
            found.append(point)
            optuna.on_trial_complete(str(number), {"loss": abs(point["learning_rate"] - 3e-3)})
        return found

    assert picks(1) == picks(1) != picks(2)
    assert picks(1)[0] == first
    assert all(1e-4 <= point["learning_rate"] <= 1e-2 and 4 <= point["rank"] <= 64 for point in picks(1))


def test_every_trial_is_told_of_the_run_without_its_rows_which_workers_have_from_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Example(id="1", prompt=prompt_of(track("structured"), "Number 1"), target="{}")
    planned = dataclasses.replace(
        searched(tmp_path).planned, examples=(asked,), lengths=(3,),
        tokens=rows.joined([{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}]),
    )  # fmt: skip
    told: list[tuple[Searched, Plan]] = []

    def search(light: Searched, rows_of: Plan, folder: Path) -> list[Trial]:
        told.append((light, rows_of))
        return [trial(8, [1.0], 0.5)]

    for name in ("read", "mixed"):
        monkeypatch.setattr(rows, name, lambda *given: rows.Rows(path="", examples=(), places=()))
    monkeypatch.setattr(rows, "held_out", lambda *given, **more: (asked,))
    monkeypatch.setattr(adapters, "check_base", lambda *given, **more: None)
    for name, found in {"open_tokenizer": None, "base_folder": None, "plan": planned}.items():
        monkeypatch.setattr(sweeping, name, lambda *given, found=found, **more: found)
    monkeypatch.setattr(sweeping, "search", search)
    sweeping.sweep(planned.config, Search(), validation="validation.jsonl")
    ((light, rows_of),) = told
    assert rows_of.tokens is planned.tokens
    point = light.at({"learning_rate": 1e-3, "rank": 8})
    assert (point.examples, point.tokens, point.lengths) == ((), None, (3,))
