"""What a verdict is told: the rule and its margin, what counts as comparable, and what machines and models cost."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from slm_ray.config.frozen import Knobs


class DeclareConfig(Knobs):
    """The rule and the margin of a verdict, as declared before a run's first call."""

    rule: Literal["paired", "point"] = "paired"
    delta: float = Field(0.02, ge=0, le=1)


class CostConfig(Knobs):
    """What models cost per token and what the machine costs that serves the SLM."""

    prices: str = Field("data/prices.yaml", description="dated prices, USD per million tokens by model name")
    llm_price_as: str | None = Field(
        None, description="a model of `prices` that the LLM is priced as; hypothetical where the LLM is a stand-in"
    )
    machine: str = Field(
        "RTX 3090 (24 GB), on demand", description="what `hourly_usd` rents; only named, not looked up"
    )
    hourly_usd: float = Field(
        0.39,
        gt=0,
        description="USD per hour of the machine that serves the SLM; source of the default: data/prices.yaml",
    )
    utilisation: float = Field(
        0.5, gt=0, le=1, description="share of the rented time in which it has requests to serve"
    )


class CompareConfig(Knobs):
    """One report with both models, or two reports over the same rows."""

    report: str
    other_report: str | None = None
    validation_report: str | None = Field(
        None, description="both models on other rows: chooses the share that the SLM may take, checked on `report`"
    )
    llm: str
    slm: str
    rule: Literal["paired", "point"] = "paired"
    delta: float = Field(0.02, ge=0, le=1)
    train: str | None = Field(None, description="training rows: an evaluation that touches them is refused")
    min_paired: float = Field(0.95, gt=0, le=1)
    gates: tuple[str, ...] = Field((), description="further row metrics that must not be worse by delta either")
    slice_rows: int = Field(20, ge=2, description="a tag value on fewer rows is no slice")
    resamples: int = Field(9999, ge=99)
    seed: int = 42
    cost: CostConfig = CostConfig()
    out: str | None = Field(None, description="where the comparison goes as JSON; beside `report` when not set")
