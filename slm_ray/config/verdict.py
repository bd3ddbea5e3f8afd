"""What a verdict is told: the rule and its margin, what counts as comparable, and what machines and models cost."""

from __future__ import annotations

from typing import Literal, Protocol, TypeVar

from pydantic import Field, model_validator

from slm_ray.config.frozen import Knobs

WIDEST_DELTA = 0.2


class Margin(Protocol):
    """Whatever has a margin that may be too wide."""

    @property
    def delta(self) -> float: ...
    @property
    def force_delta(self) -> bool: ...


_Margin = TypeVar("_Margin", bound=Margin)


def sensible_margin(config: _Margin) -> _Margin:
    """The config; ValueError for a margin so wide that a far worse SLM passes, unless that is what was meant."""
    if config.delta > WIDEST_DELTA and not config.force_delta:
        raise ValueError(
            f"delta {config.delta:g} lets an SLM pass that is that much worse; the widest is {WIDEST_DELTA:g}, or set"
            " force_delta: true"
        )
    return config


class DeclareConfig(Knobs):
    """The rule and the margin of a verdict, as declared before a run's first call."""

    rule: Literal["paired", "point"] = "paired"
    delta: float = Field(0.02, ge=0, le=1)
    force_delta: bool = Field(False, description="allow a delta above 0.2, which few people would call as good")

    _margin = model_validator(mode="after")(sensible_margin)


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
    force_delta: bool = Field(False, description="allow a delta above 0.2, which few people would call as good")
    train: str | None = Field(None, description="training rows: an evaluation that touches them is refused")
    min_paired: float = Field(0.95, gt=0, le=1)
    gates: tuple[str, ...] = Field((), description="further row metrics that must not be worse by delta either")
    slice_rows: int = Field(20, ge=2, description="a tag value on fewer rows is no slice")
    resamples: int = Field(9999, ge=99)
    seed: int = 42
    cost: CostConfig = CostConfig()
    out: str | None = Field(None, description="where the comparison goes as JSON; beside `report` when not set")

    _margin = model_validator(mode="after")(sensible_margin)
