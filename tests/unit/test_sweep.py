"""What a sweep chooses and how sure it says it is; the training itself is in tests/integration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slm_ray.config import TrainConfig
from slm_ray.sweep import choice, ranked, summary
from slm_ray.training.plan import Plan
from slm_ray.training.trials import Trial


def trial(
    rank: int,
    scores: Sequence[float | None],
    loss: float,
    *,
    error: str | None = None,
    **metrics: Any,
) -> Trial:
    config = TrainConfig(
        track="structured", train="train.jsonl", base="base", run_dir="run", adapters_dir="adapters", learning_rate=1e-4
    )
    plan = Plan(
        config=config.model_copy(update={"lora": config.lora.model_copy(update={"rank": rank, "alpha": 2 * rank})}),
        folder=Path("folder"), examples=(), lengths=(), base_fingerprint="", config_digest="", chat_template="", data_digest="",
    )  # fmt: skip
    scored = [score for score in scores if score is not None]
    score = None if error else sum(scored) / max(len(scored), 1)
    return Trial(plan=plan, score=score, loss=loss, rows=tuple(scores), metrics=metrics, error=error)


def ranks(trials: Sequence[Trial]) -> list[int]:
    return [found.plan.config.lora.rank for found in ranked(trials)]


def told(trials: Sequence[Trial]) -> str:
    table = ranked(trials)
    rows = [
        {
            "learning_rate": found.plan.config.learning_rate, "rank": found.plan.config.lora.rank, "score": found.score,
            "loss": found.loss, "error": found.error,
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
    assert told(table) == "best: lr 0.0001, rank 8; no other trial has a score"
    assert choice(ranked(table)) == {"by": "only", "difference_shown": False}
