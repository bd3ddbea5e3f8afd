"""Settings of the loop: what every step of the way from rows to a verdict is told."""

from __future__ import annotations

from pydantic import Field, model_validator

from slm_ray.config.shared import Comparison, Evaluation, FixedRule, Priced, Recipe, Search, Serving, Source


class TrackSource(Source):
    """One track of the loop."""

    track: str = Field(description="a track's name, or the path of its YAML file")


class LoopConfig(Priced):
    """The whole question: prepare, deploy, evaluate, compare, sweep, train, publish, evaluate, compare."""

    run_dir: str
    tracks: tuple[TrackSource, ...] = Field(min_length=1)
    llm: str = Field("azure:", description="model spec of the LLM; `azure:` takes AZURE_DEPLOYMENT")
    stand_in: bool = Field(True, description="without AZURE_* keys, let the local stand-in answer as the LLM")
    serving: Serving = Serving()
    evaluation: Evaluation = Field(
        Evaluation(), description="limits hold for each evaluation: of one track, on validation or on test rows"
    )
    comparison: Comparison = Field(Comparison(), description="its rule is for test rows: may the SLM take over")
    validation_rule: FixedRule = Field("point", description="rule on validation rows: is training worth a try")
    sweep: bool = Field(False, description="look for learning rate and LoRA rank before training, as `search` says")
    search: Search = Search()
    training: Recipe = Recipe()
    parallel: bool = Field(True, description="train all tracks at once, each in its own group (2+2)")
    exit_with_decision: bool = Field(
        False, description="exit 0 swap, 10 fine_tune, 20 inconclusive, the worst of the tracks"
    )
    seed: int = Field(42, description="of the splits")

    @model_validator(mode="after")
    def _can_be_served(self) -> LoopConfig:
        if self.training.lora.variant == "dora":
            raise ValueError(
                "training.lora.variant dora: the loop measures adapters behind its endpoint, and vLLM serves no DoRA; set lora or"
                " rslora, or train it alone and merge it into a base of its own"
            )
        return self
