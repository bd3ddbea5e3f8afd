"""Settings of the job that says how many training rows the metric needs."""

from __future__ import annotations

from pydantic import Field, model_validator

from slm_ray.config.train import Variations
from slm_ray.config.words import Finished, Large, Margin, Stratified


class LearningCurveConfig(Stratified, Margin, Large, Finished, Variations):
    """The training run to repeat with fewer rows, the rows that score it, and what it has to reach."""

    sizes: tuple[int, ...] = Field(
        (), description="training rows, increasing, four sizes or more; five that double up to all rows when empty"
    )
    target: float | None = Field(None, ge=0, le=1, description="the metric to reach; or `report` and `llm`")
    report: str = Field("", description="an evaluation of the LLM: the target is its metric less delta")
    llm: str = Field("", description="the LLM's name in `report`")
    usd_per_label: float | None = Field(None, ge=0, description="what one more labelled row costs")

    @model_validator(mode="after")
    def _one_target(self) -> LearningCurveConfig:
        if (self.target is None) == (not self.report):
            raise ValueError("give the metric to reach as `target`, or `report` and `llm` to take it from, not both")
        if bool(self.report) != bool(self.llm):
            raise ValueError("`report` and `llm` belong together: the evaluation, and the LLM's name in it")
        return self

    @model_validator(mode="after")
    def _sizes_increase(self) -> LearningCurveConfig:
        if any(later <= size for size, later in zip((0, *self.sizes), self.sizes, strict=False)):
            raise ValueError(f"sizes {list(self.sizes)} do not increase from 1 on")
        if 0 < len(self.sizes) < 4:
            raise ValueError(f"a curve takes four sizes or more, and sizes has {len(self.sizes)}")
        return self
