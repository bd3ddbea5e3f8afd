"""What a page shows: the result of a loop or of six arms, track by track. It is also the run's `report.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from slm_ray.cost_records import CostReport
from slm_ray.records import SCHEMA_VERSION, PartialReplacement, Report
from slm_ray.types import CandidateFigures, Comparison, Decision, DeclaredRule, Interval
from slm_ray.verdict.candidates import figures_of
from slm_ray.verdict.pairwise import Pair

Stage = Literal["validation", "test"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageDecision:
    """What was decided on the rows of one stage, and from what; `declared` is what was fixed before, None: nothing."""

    stage: Stage
    comparison: Comparison
    decision: Decision
    declared: DeclaredRule | None = None

    @property
    def figures(self) -> CandidateFigures:
        """What it found."""
        return figures_of(self.comparison, rule=self.decision.rule)

    @property
    def interval(self) -> Interval:
        """The bounds that decided."""
        return self.figures.interval


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackResult:
    """One track; `decisions` in the order they were made, `adapter` the manifest of a trained one as plain JSON."""

    track: str
    decisions: tuple[StageDecision, ...] = ()
    reports: Mapping[Stage, Report] = field(default_factory=dict)
    adapter: Mapping[str, Any] | None = None
    timings_s: Mapping[str, float] = field(default_factory=dict)
    cost: CostReport | None = None
    partial_replacement: PartialReplacement | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopReport:
    """All tracks of a loop and how to do it again; `stand_in_note` when a stand-in answered as the LLM."""

    title: str
    generated: str
    run_dir: str
    tracks: tuple[TrackResult, ...]
    stand_in_note: str | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    reproduce: tuple[str, ...] = ()
    serve_command: str = ""
    canary: str = ""
    client_snippet: str = ""
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A model as the page names it: its role there (llm, base, adapter, other) and the label of that role."""

    spec: str
    role: str
    label: str
    stand_in: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmResult:
    """One of the six arms: its name, the spec under which the report has it, and the verdict against the LLM.

    `trained_on` says which rows its adapter learned from, empty without one; `demonstrations` counts what it is shown.
    """

    name: str
    spec: str
    trained_on: str = ""
    demonstrations: int = 0
    decision: Decision | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmsTrack:
    """All arms of one track on its test rows; `pairs` hold at once, each bound wrong with probability `level` at most.

    `left_out` says in words which arm is missing, and why.
    """

    track: str
    arms: tuple[ArmResult, ...]
    report: Report
    pairs: tuple[Pair, ...]
    level: float
    delta: float
    retriever: str
    train_rows: int
    left_out: tuple[str, ...] = ()
    adapters: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmsReport:
    """Six arms of every track and how to do it again; `stand_in_note` when a stand-in answered as the LLM."""

    title: str
    run_dir: str
    tracks: tuple[ArmsTrack, ...]
    stand_in_note: str | None = None
    timings_s: Mapping[str, float] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    reproduce: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION
