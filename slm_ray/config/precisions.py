"""Settings of the job that trains one recipe in 4, 8 and 16 bits and compares them."""

from __future__ import annotations

from pydantic import Field

from slm_ray.config.shared import Config
from slm_ray.config.train import TrainConfig


class PrecisionsConfig(Config):
    """The training run to repeat in each precision, and the rows that score it."""

    training: TrainConfig
    validation: str = Field(description="validation JSONL: all of its rows score every precision")
