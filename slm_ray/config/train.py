"""Settings of the job that trains one adapter."""

from __future__ import annotations

from pydantic import Field, model_validator

from slm_ray.config.shared import Recipe


class TrainConfig(Recipe):
    """One QLoRA run: a recipe, its rows, its base and where the adapter goes."""

    track: str
    train: str = Field(description="training JSONL")
    validation: str | None = Field(
        None,
        description="JSONL whose rows are answered at every checkpoint: the best one by the task metric is published",
    )
    base: str
    run_dir: str
    adapters_dir: str
    name: str = Field("run", description="what the run is called; the adapter id adds a content hash")
    report_to: str = Field(
        "none", description="a tracker of Hugging Face's Trainer as well: tensorboard, wandb, mlflow …"
    )

    @model_validator(mode="after")
    def _has_rows_to_stop_by(self) -> TrainConfig:
        if self.early_stopping is not None and self.validation is None:
            raise ValueError(
                "early_stopping needs rows to judge by: set validation to a JSONL file, such as the validation.jsonl that"
                " prepare writes"
            )
        return self
