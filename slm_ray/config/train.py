"""Settings of the job that trains one adapter."""

from __future__ import annotations

from pydantic import Field, model_validator

from slm_ray.config.shared import Recipe
from slm_ray.config.words import BaseAndAdapters, RunDir, Tracked, Train, Validation


class TrainRows(Tracked, Train):
    """Rows of one track that are learned."""


class MixedTrack(TrainRows):
    """One more track that the same adapter learns."""

    weight: float = Field(1.0, gt=0, description="rows of it for each row of the adapter's first track")


class Proved(BaseAndAdapters):
    """An adapter that is shown to be served as it was trained."""

    prove_on: str = Field(
        "engine",
        description="what serves the adapter while it is proved, before it is published: engine (one that is started for it), a"
        " Ray Serve LLM file (an engine with its arguments), the address of an endpoint over adapters_dir, or nothing",
    )


class TrainConfig(Recipe, Proved, RunDir, Validation, TrainRows):
    """One QLoRA run: a recipe, its rows, its base and where the adapter goes."""

    mixture: tuple[MixedTrack, ...] = Field((), description="further tracks that the same adapter learns")
    validation: str = Field(
        "",
        description="JSONL whose rows are answered at every checkpoint: the best one by the task metric is published",
    )
    base: str = Field(description="folder of the base model, or a hub name")
    adapters_dir: str = Field(description="folder of published adapters")
    name: str = Field("run", description="what the run is called; the adapter id adds a content hash")
    report_to: str = Field(
        "none", description="a tracker of Hugging Face's Trainer as well: tensorboard, wandb, mlflow …"
    )

    @model_validator(mode="after")
    def _has_rows_to_stop_by(self) -> TrainConfig:
        if self.early_stopping is not None and not self.validation:
            raise ValueError(
                "early_stopping needs rows to judge by: set validation to a JSONL file, such as the validation.jsonl that"
                " prepare writes"
            )
        return self

    @model_validator(mode="after")
    def _each_track_once(self) -> TrainConfig:
        tracks = [self.track, *(one.track for one in self.mixture)]
        if twice := sorted({track for track in tracks if tracks.count(track) > 1}):
            raise ValueError(f"mixture: the track {twice[0]} stands twice; put its rows into one file")
        return self


class Variations(Validation):
    """A training run to repeat in several ways, and the rows that score each of them."""

    training: TrainConfig
    validation: str = Field(description="validation JSONL: all of its rows score every way")
