"""One adapter for several tracks: how rows are drawn and named, what is refused, and that each keeps its own prompt."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from slm_ray.config import LearningCurveConfig, PrecisionsConfig, Search, TrainConfig, load
from slm_ray.corpus.tracks import TRACKS
from slm_ray.errors import ConfigError, DataError
from slm_ray.learning_curve import learning_curve
from slm_ray.precisions import precisions
from slm_ray.sweep import sweep
from slm_ray.training import rows
from slm_ray.training.plan import plan

BASE = Path(__file__).parents[2] / "data" / "tiny_base"


def write(path: Path, *prompts: str) -> str:
    path.parent.mkdir(exist_ok=True)
    lines = [{"id": number, "prompt": prompt, "completion": "{}"} for number, prompt in enumerate(prompts)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    structured = write(tmp_path / "structured/train.jsonl", *(f"object {n}" for n in range(40)))
    toolcall = write(tmp_path / "toolcall/train.jsonl", *(f"call {n}" for n in range(40)))
    return {
        "track": "structured", "train": structured, "base": str(BASE), "run_dir": str(tmp_path / "run"),
        "adapters_dir": str(tmp_path / "adapters"),
        "mixture": [{"track": "toolcall", "train": toolcall, "weight": 0.5}],
    }  # fmt: skip


def test_rows_are_mixed_by_weight_and_each_keeps_the_system_prompt_of_its_own_track(settings: dict[str, Any]) -> None:
    planned = plan(TrainConfig(**settings))
    drawn = Counter(example.tags["source"] for example in planned.examples)
    assert drawn == {"structured": 40, "toolcall": 20}
    for example in planned.examples:
        assert example.prompt.messages[0].content == TRACKS[example.tags["source"]].system
    first = [example.tags["source"] for example in planned.examples[:20]]
    assert len(set(first)) == 2, "the tracks are interleaved, not one after the other"


def test_the_same_rows_are_drawn_again_and_others_under_another_seed_or_weight(settings: dict[str, Any]) -> None:
    config = TrainConfig(**settings)
    assert plan(config).folder == plan(config).folder
    other = config.model_copy(update={"seed": 7})
    assert {example.id for example in plan(config).examples} != {example.id for example in plan(other).examples}
    lighter = config.model_copy(update={"mixture": (config.mixture[0].model_copy(update={"weight": 0.25}),)})
    assert len(plan(lighter).examples) == 50


def test_where_the_files_lie_does_not_change_the_run(settings: dict[str, Any], tmp_path: Path) -> None:
    moved = write(tmp_path / "elsewhere/train.jsonl", *(f"call {n}" for n in range(40)))
    config = TrainConfig(**settings)
    there = TrainConfig(**{**settings, "mixture": [{"track": "toolcall", "train": moved, "weight": 0.5}]})
    assert plan(config).folder == plan(there).folder


def test_the_adapter_is_named_after_its_tracks(settings: dict[str, Any]) -> None:
    assert rows.track_name(TrainConfig(**settings)) == "structured-toolcall"
    assert rows.track_name(TrainConfig(**{**settings, "mixture": []})) == "structured"


def test_a_long_row_of_the_second_file_is_named_by_its_own_line(settings: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path / "toolcall/train.jsonl", *(f"call {n} " * (200 if n == 3 else 1) for n in range(20)))
    with pytest.raises(DataError, match=rf"{path}:4: \d+ tokens, more than max_length 256"):
        plan(TrainConfig(**{**settings, "max_length": 256}))


def test_a_held_out_row_beside_any_of_the_files_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "toolcall/test.jsonl", *(f"call {n}" for n in range(40)))
    with pytest.raises(DataError, match=r"rows of .*toolcall/test\.jsonl are training rows"):
        plan(TrainConfig(**settings))


def test_trials_are_not_judged_by_a_row_that_any_track_of_the_mixture_trains_on(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    validation = write(tmp_path / "validation.jsonl", *(f"call {n}" for n in range(40)))
    training = TrainConfig(**settings)
    with pytest.raises(DataError, match=r"rows of .*validation\.jsonl are training rows"):
        sweep(training, Search(learning_rates=(1e-3,), ranks=(4,)), validation=validation)
    with pytest.raises(DataError, match=r"rows of .*validation\.jsonl are training rows"):
        precisions(PrecisionsConfig(training=training, validation=validation))
    curve = LearningCurveConfig(training=training, validation=validation, target=0.5, sizes=(8, 12, 16, 20))
    with pytest.raises(DataError, match=r"rows of .*validation\.jsonl are training rows"):
        learning_curve(curve)


def test_one_track_twice_and_a_weight_of_nothing_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    for change, reason in (
        ({"track": "structured"}, "the track structured stands twice"),
        ({"weight": 0}, "greater than 0"),
    ):
        mixture = [{**settings["mixture"][0], **change}]
        file.write_text(json.dumps({**settings, "mixture": mixture}), encoding="utf-8")
        with pytest.raises(ConfigError, match=reason):
            load(TrainConfig, file)
