"""The records of what models cost: each arm, both sides by volume, the break-even, the training and a cascade.

They hold values only (`slm_ray.costs` works them out) and are part of a comparison; a figure that is not known is None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from slm_ray.types import Percentiles

Way = Literal["llm", "slm", "cascade"]  # of answering requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What serves the small model: its name, its price while it stands there, and the share of its time that is planned
    to be busy at most."""

    name: str
    hourly_usd: float
    utilisation: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DataResidency:
    """Where the rows of an arm go; `on_premise` is None where that cannot be told from the host."""

    host: str | None
    on_premise: bool | None
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmCost:
    """What one model costs in USD, and of what that was worked out (`basis`) or why it was not (`reason`).

    `hypothetical`: the price is that of a model that did not give these answers, or of a GPU that did not serve them.
    `correct` is None where the primary metric grades; `scored` counts the answers that it is defined for. On a machine a
    request has a price at a volume only: `priced_at_requests_per_day` is the one of `per_request_usd`.
    """

    goes_to: DataResidency
    latency_s: Percentiles
    requests: int
    correct: int | None
    scored: int
    kind: Literal["tokens", "machine", "none"] = "none"
    basis: str = ""
    reason: str | None = None
    hypothetical: bool = False
    priced_as: str | None = None
    per_request_usd: float | None = None
    per_correct_usd: float | None = None
    per_correct_reason: str | None = None
    seconds_per_request: float | None = None
    capacity_requests_per_day: float | None = None
    priced_at_requests_per_day: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakEven:
    """From how many requests a day a machine costs less than the LLM by the token; None where it never does.

    A second machine may turn that once more: `for_good_from` is the volume above which no further one does.
    """

    requests_per_day: float | None = None
    machines: int | None = None
    for_good_from: float | None = None
    hypothetical: bool = False
    because: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumePrice:
    """What one way of answering costs at a volume."""

    month_usd: float
    per_thousand_usd: float


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeCost:
    """One line of the table by volume: `machines` serve the SLM; None stands for what has no price.

    `payback_days` is how long the SLM's saving takes to pay its training; None where it saves nothing or that is unknown.
    """

    requests_per_day: float
    is_mine: bool
    machines: int | None
    llm: VolumePrice | None
    slm: VolumePrice | None
    cascade: VolumePrice | None
    cheapest: Way | None
    payback_days: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingCost:
    """What the SLM's training cost, in words too; `usd` is None where it is not known."""

    usd: float | None = None
    gpu_hours: float | None = None
    hypothetical: bool = False
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CascadeCost:
    """The SLM on every request and the LLM on those it does not take: `share` is taken. Latencies are of `rows` rows."""

    share: float
    rows: int
    latency_s: Percentiles
    mean_latency_s: float | None
    break_even: BreakEven


@dataclass(frozen=True, slots=True, kw_only=True)
class CostReport:
    """What each arm costs, by spec; by volume where the LLM or the SLM has a price; `requests_per_day` is the reader's."""

    unit: str
    prices_as_of: str
    machine: Machine
    llm: str
    slm: str
    arms: Mapping[str, ArmCost]
    break_even: BreakEven
    requests_per_day: float | None = None
    at_my_volume: str | None = None
    by_volume: tuple[VolumeCost, ...] = ()
    training: TrainingCost = TrainingCost(words="training: not known")
    cascade: CascadeCost | None = None
