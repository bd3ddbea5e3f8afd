"""Settings of the job that looks for a learning rate and a LoRA rank."""

from __future__ import annotations

from pydantic import Field

from slm_ray.config.shared import Config, Search
from slm_ray.config.train import TrainConfig


class SweepConfig(Config):
    """The training run to vary, where to look, and the rows that score a trial."""

    training: TrainConfig
    search: Search = Search()
    validation: str = Field(description="validation JSONL")
