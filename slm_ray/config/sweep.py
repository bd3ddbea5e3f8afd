"""Settings of the job that looks for a learning rate and a LoRA rank."""

from __future__ import annotations

from pydantic import model_validator

from slm_ray.config.shared import Search
from slm_ray.config.train import Variations


class SweepConfig(Variations):
    """The training run to vary, where to look, and the rows that score a trial."""

    search: Search = Search()

    @model_validator(mode="after")
    def _tries_something(self) -> SweepConfig:
        if not self.search.trials:
            raise ValueError("search.trials: 0 tries nothing; set 1 or more")
        return self
