"""What the loop hands on to its steps, without running any."""

import json
from pathlib import Path

import pytest

from slm_ray.config import Comparison, LoopConfig, load
from slm_ray.errors import ConfigError
from slm_ray.loop.run import Loop

ROOT = Path(__file__).parents[2]


def test_validation_rows_have_a_rule_of_their_own_and_all_else_is_shared() -> None:
    config = load(LoopConfig, ROOT / "jobs/loop.yaml", ["comparison.guardrails=[json_valid]", "comparison.delta=0.1"])
    loop = Loop(config, {})
    validation, test = loop.comparison("validation"), loop.comparison("test")
    assert (validation.rule, test.rule) == ("point", "sequential")
    assert validation.model_copy(update={"rule": "sequential"}) == test == config.comparison


def test_validation_rows_are_all_asked_though_test_rows_may_stop() -> None:
    stops = ["comparison.rule=sequential", "comparison.stop=when_decided"]
    loop = Loop(load(LoopConfig, ROOT / "jobs/loop.yaml", stops), {})
    assert [loop.comparison(stage).stop for stage in ("validation", "test")] == ["never", "when_decided"]
    Comparison.model_validate(loop.comparison("validation").model_dump())  # no rule that is told to stop and may not


def test_the_stand_in_answers_for_azure_without_keys_and_for_nobody_else() -> None:
    def loop(llm: str, **environment: str) -> Loop:
        return Loop(load(LoopConfig, ROOT / "jobs/loop.yaml", [f"llm={json.dumps(llm)}"]), environment)

    assert loop("azure:").uses_stand_in and loop("azure:gpt-4o+3shot").uses_stand_in
    assert not loop("azure:", AZURE_API_KEY="k").uses_stand_in
    assert not loop("openai:m").uses_stand_in and not loop("recorded:azure:").uses_stand_in


def test_an_adapter_that_could_not_be_served_is_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match=r"variant dora.*vLLM serves no DoRA; set lora or rslora"):
        load(LoopConfig, ROOT / "jobs/loop.yaml", ["training.lora.variant=dora"])
