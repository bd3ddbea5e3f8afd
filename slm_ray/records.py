"""The records that a run leaves behind: a report with its models and rows, and a comparison of two models.

JSON is their encoding and nothing else (`slm_ray.reports.encoding`); a field that is not known is None. They hold values
only: who makes one says what its figures mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from slm_ray.cost_records import CostReport
from slm_ray.types import (
    Action,
    Comparison,
    Decision,
    DeclaredRule,
    Failure,
    Message,
    ModelFacts,
    Percentiles,
    Rounds,
    Usage,
)

SCHEMA_VERSION = 1
_ROUNDING = 1e-9

Metrics = Mapping[str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempts:
    """Calls made for the rows of a report, those beyond the first of a row, and those sent and never answered."""

    calls: int
    retried: int
    possibly_billed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """How far a model agrees with itself when the same rows are asked several times (shares of rows, in [0, 1]).

    `agreement` is of the deciding score, `same_text` of the answer; `primary` is the deciding metric of every repeat.
    """

    repeats: int
    agreement: float
    same_text: float
    primary: tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceMetrics:
    """The metrics of the `n` rows whose tag has this value."""

    value: str
    n: int
    metrics: Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class TagSlices:
    """The lowest values of a tag by the primary metric; `values` is how many it has in all."""

    tag: str
    values: int
    worst: tuple[SliceMetrics, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorGroup:
    """The `n` wrong rows with one issue, or with one issue and one value of a tag, and the most typical ids."""

    issue: str
    tag: str
    value: str
    n: int
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstRow:
    """One of the rows with the lowest primary score."""

    id: str
    score: float
    issues: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelFigures:
    """How one label fared: `support` rows expect it."""

    label: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelTable:
    """Figures of the most frequent labels of `count`, and the confusion matrix without its zeros, expected label first.

    `outside` counts the answers that are no label.
    """

    count: int
    outside: int
    classes: tuple[LabelFigures, ...]
    confusion: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """What is wrong with one model's answers, bounded in size; `labels` only where the track classifies."""

    slices: tuple[TagSlices, ...] = ()
    errors: tuple[ErrorGroup, ...] = ()
    worst: tuple[WorstRow, ...] = ()
    stripped: Mapping[str, int] = field(default_factory=dict)
    labels: LabelTable | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingEffort:
    """What the training of an adapter took: hours of the whole run, on so many workers with so many GPUs in all."""

    hours: float
    workers: int
    gpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReport:
    """One model on the rows of a report.

    `facts` are its provider's, with `stand_in` as its answers told it. Latencies are of answered rows, usage includes
    failed calls that were billed. `trained_on` counts the rows that its adapter was trained on. `busy_s` are the seconds
    in which it had calls in flight; `error_reasons` the commonest ones. `training` is what its adapter's record states.
    """

    facts: ModelFacts
    n: int
    metrics: Metrics
    latency_s: Percentiles
    usage: Usage
    failures: Mapping[str, int]
    served_by: tuple[str, ...]
    trained_on: int
    issues: Mapping[str, int] = field(default_factory=dict)
    first_token_s: Percentiles | None = None
    attempts: Attempts | None = None
    error_reasons: Mapping[str, int] = field(default_factory=dict)
    analysis: Breakdown | None = None
    noise: Noise | None = None
    busy_s: float | None = None
    training: TrainingEffort | None = None

    @property
    def stand_in(self) -> bool:
        """Whether something else answered in its name."""
        return self.facts.stand_in


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleSet:
    """How many rows a report is of, and their digest."""

    n: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRowCheck:
    """Where training rows were looked for, and how many of them were kept out of few-shot demonstrations."""

    checked: tuple[str, ...]
    left_out_of_demonstrations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Digests:
    """SHA-256 of the rows, of the prompts as they were sent, of the settings and of every answer."""

    data: str
    prompts: str
    config: str
    answers: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Commands:
    """How to make the same run again elsewhere, and how to go on with this one."""

    reproduce: str
    resume: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What a reader needs to believe a report.

    `requests`, `retries` and `refused` count over all repeats. Two kinds of calls may have been billed for nothing:
    `possibly_billed` were sent and never answered though their row was finished later, `in_doubt` were under way when a
    run was cut off. `concurrency` is how many calls were in flight at most. `unscored` answers arrived when the asking of
    their model had ended with a decision: they are paid for, kept in the log and in no figure.
    """

    rows_in: int
    rows_scored: int
    requests: int
    retries: int
    possibly_billed: int
    in_doubt: int
    refused: int
    concurrency: int
    training_rows: TrainingRowCheck
    digests: Digests
    versions: Mapping[str, str]
    commands: Commands
    unscored: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateLook:
    """What the sequential rule made of one candidate while the rows were asked: `rows` seen at `level`.

    `action` and `decided_at` (rows) are None where these rows did not decide.
    """

    level: float
    rows: int
    action: Action | None
    decided_at: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """What was asked beyond the row at which it was decided: calls that are billed, tokens, USD where there is a price."""

    calls: int
    tokens: int
    usd: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SequentialRun:
    """A run whose rows were looked at as they came. `rows` are in the set, `largest_group` of them in one group at most.

    `rounds` is what was looked after, where that is not every group: rows were asked in a stratified order. `rest` is by
    model, for those that need not have been asked any more; `stop` says whether they were (`never`).
    """

    delta: float
    stop: str
    rows: int
    largest_group: int
    candidates: Mapping[str, CandidateLook]
    rest: Mapping[str, Rest]
    rounds: Rounds = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One evaluation: every model over the same rows of one track. `track_definition` is the track as plain JSON.

    `order_seed` is the seed that the order of the rows was drawn from before the first call, `order_digest` names the rows
    that it was drawn for (those that are added later follow them); both are None where rows were asked as they stand in the
    file. `sequential` is what the sequential rule saw by then.
    """

    track: str
    track_definition: Mapping[str, Any]
    examples: ExampleSet
    models: Mapping[str, ModelReport]
    order_seed: int | None = None
    order_digest: str | None = None
    sequential: SequentialRun | None = None
    provenance: Provenance | None = None
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerResult:
    """What one model made of one row: its answer or failure, scores in [0, 1], and (TP, FP, FN) item counts.

    ValueError for a score that is no share; what rounding put a hair outside is put back.
    """

    text: str | None
    failure: Failure | None
    scores: Metrics
    counts: tuple[int, int, int] = (0, 0, 0)
    issues: tuple[str, ...] = ()
    facts: Mapping[str, str | float] = field(default_factory=dict)
    latency_s: float | None = None
    first_token_s: float | None = None
    logprob: float | None = None
    usage: Usage | None = None
    attempts: int = 1

    def __post_init__(self) -> None:
        for name, value in self.scores.items():
            if value is not None and not -_ROUNDING <= value <= 1 + _ROUNDING:
                raise ValueError(f"score {name} is {value!r}, outside [0, 1]")
        if any(value is not None and not 0 <= value <= 1 for value in self.scores.values()):
            inside = {name: None if value is None else min(max(value, 0.0), 1.0) for name, value in self.scores.items()}
            object.__setattr__(self, "scores", inside)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowResult:
    """One row of a report: what was asked, what was expected, and every model's answer by spec.

    Rows of one `group` are not independent (see `Example`); a row without one is a group of its own.
    """

    id: str
    prompt_hash: str
    prompt: tuple[Message, ...]
    target: str
    tags: Mapping[str, str]
    models: Mapping[str, AnswerResult]
    group: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MixturePoint:
    """Rows at or above a confidence of `threshold` answered by the SLM, the others by the LLM.

    `difference` and `lower` are of the primary metric to the LLM alone; `passes`: the rule of a swap holds.
    """

    share: float
    threshold: float
    quality: float
    difference: float
    lower: float
    passes: bool
    guardrails_lower: Metrics
    per_request_usd: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialReplacement:
    """How much of the traffic the SLM may take: `share`, 0 where none was shown to hold; `line` says it in words.

    Thresholds and their order are those of validation rows (`curve`); `test` is the last that passed on test rows, or the first.
    `ranked_by` says what orders the rows.
    """

    delta: float
    primary: str
    ranked_by: str
    validation_rows: int
    test_rows: int
    line: str
    because: tuple[str, ...]
    share: float = 0.0
    validation_share: float | None = None
    test_share: float | None = None
    threshold: float | None = None
    test: MixturePoint | None = None
    curve: tuple[MixturePoint, ...] = ()
    cost_hypothetical: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonReport:
    """All that is known of two models on the same rows; `partial_replacement` is None without validation rows."""

    comparison: Comparison
    decision: Decision
    declared: DeclaredRule | None
    cost: CostReport
    partial_replacement: PartialReplacement | None
    schema_version: int = SCHEMA_VERSION
