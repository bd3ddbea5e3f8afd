"""The table of precisions: who is compared with whom, and what it says; the training itself is in tests/integration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from slm_ray.config import Lora, PrecisionsConfig, TrainConfig
from slm_ray.errors import DataError
from slm_ray.precisions import RESULT, Precisions, compared, precisions, summary
from slm_ray.reports.encoding import decode
from slm_ray.training.plan import Plan
from slm_ray.training.trials import Trial
from slm_ray.types import Example

TINY_BASE = Path(__file__).parents[2] / "data/tiny_base"


def trial(precision: str, scores: Sequence[float | None], *, error: str | None = None, **metrics: Any) -> Trial:
    config = TrainConfig(track="structured", train="train.jsonl", base="base", run_dir="run", adapters_dir="adapters")
    plan = Plan(
        config=config.model_copy(update={"precision": precision}), folder=Path("folder"), examples=(), lengths=(),
        base_fingerprint="", config_digest="", chat_template="", data_digest="", content_digest="",
    )  # fmt: skip
    known = [score for score in scores if score is not None]
    score = None if error else sum(known) / len(known)
    return Trial(plan=plan, score=score, loss=0.5, rows=tuple(scores), metrics=metrics, error=error)


def text(trials: Sequence[Trial], *, gpus: float = 0) -> str:
    result = Precisions(
        track="structured", metric="exact_match", validation_rows=40, workers=2, gpus=gpus, measured=compared(trials)
    )
    return "\n".join(summary(result))


def test_lower_precisions_are_compared_with_the_highest_row_by_row() -> None:
    sixteen = [1.0] * 30 + [0.0] * 10
    table = compared([trial("16bit", sixteen), trial("8bit", sixteen), trial("4bit", [0.0] * 30 + sixteen[30:])])
    assert [one.difference for one in table] == [None, 0.0, -0.75]
    assert table[1].lower is not None and table[1].upper is not None and table[1].lower < 0 < table[1].upper
    assert table[2].upper is not None and table[2].upper < 0


def test_more_comparisons_share_the_error() -> None:
    rows = [1.0, 0.0] * 20
    two, three = (
        compared([trial(one, rows) for one in names]) for names in (["16bit", "8bit"], ["16bit", "8bit", "4bit"])
    )
    assert three[1].lower is not None and two[1].lower is not None and three[1].lower < two[1].lower


def test_a_precision_that_failed_is_a_line_and_the_next_is_the_reference() -> None:
    table = compared([trial("16bit", [], error="it needs 20 GB"), trial("8bit", [1.0] * 9), trial("4bit", [1.0] * 9)])
    assert [(one.precision, one.failed, one.difference) for one in table] == [
        ("16bit", "it needs 20 GB", None), ("8bit", None, None), ("4bit", None, 0.0),
    ]  # fmt: skip
    said = text([trial("16bit", [], error="it needs 20 GB"), trial("8bit", [1.0] * 9)])
    assert "failed:" in said and "it needs 20 GB" in said


def test_rows_that_one_of_them_lacks_are_no_pair() -> None:
    table = compared([trial("16bit", [1.0, None, 0.0]), trial("4bit", [1.0, 1.0, None])])
    assert table[1].difference == 0.0


@pytest.mark.parametrize(("gpus", "device"), [(0, "no GPU, so memory and speed say nothing about one"), (2, "2 GPUs")])
def test_the_table_says_what_it_was_measured_on(gpus: float, device: str) -> None:
    figures: dict[str, Any] = {"peak_bytes": 1_500_000_000, "tokens_per_s": 6279, "train_s": 36.9}
    said = text([trial("16bit", [1.0] * 40, **figures), trial("4bit", [1.0] * 40, **figures)], gpus=gpus)
    assert "4bit" in said and "+0.0% (" in said and "1.50" in said and "6,279" in said and "37 s" in said
    assert device in said and "hold together at 95%" in said


def test_each_precision_is_one_run_of_the_recipe_and_the_table_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lines(name: str, word: str) -> str:
        rows = [json.dumps({"prompt": f"{word} {n}", "completion": '{"n": 1}'}) for n in range(6)]
        (tmp_path / name).write_text("\n".join(rows), encoding="utf-8")
        return str(tmp_path / name)

    asked: list[Plan] = []

    def run_trials(plans: Sequence[Plan], validation: Sequence[Example], folder: Path) -> list[Trial]:
        asked.extend(plans)
        return [trial(one.config.precision, [1.0] * len(validation)) for one in plans]

    monkeypatch.setattr("slm_ray.precisions.run_trials", run_trials)
    training = TrainConfig(
        track="structured", train=lines("train.jsonl", "Number"), base=str(TINY_BASE), run_dir=str(tmp_path / "run"),
        adapters_dir=str(tmp_path / "adapters"), precision="8bit", lora=Lora(rank=8),
    )  # fmt: skip
    result = precisions(PrecisionsConfig(training=training, validation=lines("validation.jsonl", "Figure")))
    assert [planned.config.precision for planned in asked] == ["16bit", "8bit", "4bit"]
    assert len({planned.folder for planned in asked}) == 3
    assert all(planned.folder.parent == tmp_path / "run" / "precisions" for planned in asked)
    assert (
        len(
            {planned.config.model_copy(update={"precision": "4bit", "name": ""}).model_dump_json() for planned in asked}
        )
        == 1
    )
    path = tmp_path / "run" / RESULT
    assert decode(json.loads(path.read_text()), Precisions, where=str(path), fix="") == result
    assert (result.validation_rows, result.workers, result.gpus) == (6, 2, 0)


def test_validation_rows_that_are_training_rows_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "p", "completion": "{}"}\n', encoding="utf-8")
    training = TrainConfig(
        track="structured", train=str(tmp_path / "rows.jsonl"), base=str(TINY_BASE), run_dir=str(tmp_path / "run"),
        adapters_dir=str(tmp_path / "adapters"),
    )  # fmt: skip
    with pytest.raises(DataError, match="split the rows again"):
        precisions(PrecisionsConfig(training=training, validation=str(tmp_path / "rows.jsonl")))
