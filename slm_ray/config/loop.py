"""Settings of the runs of many steps: the loop from rows to a verdict, and the six arms of a model."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from slm_ray.config.shared import Comparison, Evaluation, Priced, Recipe, Search, Serving, Source
from slm_ray.config.words import Large, RoutesDir, RunDir, Seeded


class RunConfig(Priced, Seeded, Large, RunDir):
    """What every step of a run is told: rows, the LLM, the endpoint, how models are asked, compared and trained."""

    tracks: tuple[Source, ...] = Field(min_length=1)
    llm: str = Field("azure:", description="model spec of the LLM; `azure:` takes AZURE_DEPLOYMENT")
    stand_in: bool = Field(True, description="without AZURE_* keys, let the local stand-in answer as the LLM")
    serving: Serving = Serving()
    evaluation: Evaluation = Field(
        Evaluation(), description="limits hold for each evaluation: of one track, on validation or on test rows"
    )
    comparison: Comparison = Field(Comparison(), description="its rule is for test rows: may the SLM take over")
    training: Recipe = Recipe()

    @model_validator(mode="after")
    def _can_be_served(self) -> Self:
        if self.training.lora.variant == "dora":
            raise ValueError(
                "training.lora.variant dora: what is trained here is measured behind the endpoint, and vLLM serves no DoRA;"
                " set lora or rslora, or train it alone and merge it into a base of its own"
            )
        return self


class LoopConfig(RunConfig):
    """The whole question: prepare, deploy, evaluate, compare, sweep, train, publish, evaluate, compare."""

    search: Search = Field(Search(trials=0), description="look for learning rate and LoRA rank before training")
    exit_with_decision: bool = Field(
        False, description="exit 0 swap, 10 fine_tune, 20 inconclusive, the worst of the tracks"
    )


class FlywheelConfig(LoopConfig, RoutesDir):
    """The loop on what people asked: a traffic log becomes rows, and the adapter that they train is put at shadow.

    A track's route is its `live.route`.
    """

    relabel: bool = Field(
        False,
        description="ask the LLM all live requests again, also those that only the SLM answered; `evaluation` limits it",
    )

    @model_validator(mode="after")
    def _knows_its_routes(self) -> Self:
        for place, track in enumerate(self.tracks):
            if track.live.route is None:
                raise ValueError(
                    f"tracks.{place}.live.route is not set; name the route whose requests are learned and whose adapter is"
                    " put at shadow"
                )
        return self


class ArmsConfig(RunConfig):
    """Six arms on the same test rows: base and LLM as they are, demonstrations, QLoRA, and both in three ways.

    `few_shot` and `retriever` of a track say how many demonstrations there are and what finds them, in every arm that has
    some and in the training rows of one.
    """

    @model_validator(mode="after")
    def _arms_differ(self) -> Self:
        for place, track in enumerate(self.tracks):
            if track.few_shot < 1:
                raise ValueError(
                    f"tracks.{place}.few_shot is {track.few_shot}, and four of the arms differ by their demonstrations; set it"
                    " to 1 or more"
                )
            if self.evaluation.retriever not in ("words", track.retriever):
                raise ValueError(
                    f"evaluation.retriever {self.evaluation.retriever!r} is not tracks.{place}.retriever"
                    f" {track.retriever!r}, by which the training rows are shown theirs; set only the track's"
                )
        if self.comparison.rule == "sequential":
            raise ValueError(
                "comparison.rule: sequential orders the asking by one pair of models, and here all arms are compared; set"
                " rule: paired"
            )
        return self
