"""The nouns of the house: every record that crosses a room's door.

All records are frozen, slotted and keyword-only. A `Prompt` has no target field, so a model cannot be shown the
answer. A `Completion` carries text or a `Failure`, never both: a failed call is data, a broken job raises.
These records hold values only; reading, scoring and deciding live in the rooms above.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

Role = Literal["system", "user", "assistant"]
FailureKind = Literal["refused", "truncated", "invalid", "error"]
Action = Literal["swap", "fine_tune", "inconclusive"]
Billing = Literal["tokens", "machine", "none"]
State = Literal["record", "shadow", "canary", "live", "cascade"]  # of a route

_TINY = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a chat."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What a model is shown: chat messages, the last of them the user's."""

    messages: tuple[Message, ...]

    def as_dicts(self) -> list[dict[str, str]]:
        """The messages as the `role`/`content` dicts that chat templates and the OpenAI API take."""
        return [{"role": message.role, "content": message.content} for message in self.messages]


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One task row: a stable id, the prompt, the expected answer and free-form tags (tool, domain, …).

    Rows of one `group` (a customer, a document, a conversation) are not independent: they stand in one split.
    """

    id: str
    prompt: Prompt
    target: str
    tags: Mapping[str, str] = field(default_factory=dict)
    group: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens that one or more calls were billed for; `cached_tokens` are those of the prompt that cost less."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a call gave no usable text: its kind, a reason for people and the HTTP status if there was one."""

    kind: FailureKind
    reason: str
    status: int | None = None

    @property
    def in_transport(self) -> bool:
        """Whether the call never came to an end: its answer is missing, where a refused or cut one is there and wrong."""
        return self.kind == "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A model's answer to one prompt: `text` or `failure`, never both and never neither.

    `latency_s` is the client's wall time of the last attempt; `served_by` is the model name that the answer itself
    states (a stand-in says so there); `attempts` counts calls made, retries included, and `possibly_billed` those among
    them that were sent and never answered. `first_token_s` is known for streamed answers only; `logprob` is the mean
    token log-probability where it was asked for.
    """

    text: str | None = None
    failure: Failure | None = None
    latency_s: float | None = None
    usage: Usage | None = None
    served_by: str | None = None
    attempts: int = 1
    first_token_s: float | None = None
    logprob: float | None = None
    possibly_billed: int = 0

    def __post_init__(self) -> None:
        if (self.text is None) == (self.failure is None):
            raise ValueError("a Completion has a text or a failure, exactly one of them")


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """Of times in seconds; all None where there are none, `p99` also where nobody asked for it."""

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What a model's provider knows of it, decided once, so that nobody else reads a spec.

    `model` is the name that a price list knows it by and `adapter` the id of a served adapter, None where there is none.
    `host` is the machine that reads the prompts; None: they leave no process. `billing` is how calls are paid for: by the
    `tokens`, by the time of a `machine` of one's own, or not at all (`none`). `demonstrations` counts the examples put in
    front of each question. `stand_in` is told from answers alone, so a provider leaves it False.
    """

    spec: str
    kind: str
    model: str | None
    host: str | None
    billing: Billing
    adapter: str | None = None
    demonstrations: int = 0
    stand_in: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One metric of one row: `value` in [0, 1], or None where the metric is undefined (never NaN)."""

    name: str
    value: float | None

    def __post_init__(self) -> None:
        if self.value is None:
            return
        if not -_TINY <= self.value <= 1 + _TINY:
            raise ValueError(f"score {self.name} is {self.value!r}, outside [0, 1]")
        if not 0 <= self.value <= 1:  # rounding put it a hair outside
            object.__setattr__(self, "value", min(max(self.value, 0.0), 1.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class RowScore:
    """All scores of one answer: metric values, issue categories and the (TP, FP, FN) item counts behind micro averages.

    `facts` are what a run metric needs of a row and that is no score: a label, a number found, a length in words.
    """

    example_id: str
    scores: tuple[Score, ...]
    issues: tuple[str, ...] = ()
    counts: tuple[int, int, int] = (0, 0, 0)
    facts: Mapping[str, str | float] = field(default_factory=dict)

    def value(self, name: str) -> float | None:
        """The value of one metric; KeyError when this row does not have it."""
        for score in self.scores:
            if score.name == name:
                return score.value
        raise KeyError(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean difference (SLM minus LLM) with its two one-sided bounds (95 % unless a level is set), and their method."""

    estimate: float
    lower: float
    upper: float
    method: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """The paired difference on the `n` rows whose tag `tag` is `value`; bounds hold for all slices of a comparison at once."""

    tag: str
    value: str
    n: int
    interval: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class SequentialPoint:
    """The confidence sequence after `rows` rows in `groups` groups: the mean difference and its bounds then."""

    rows: int
    groups: int
    estimate: float
    lower: float
    upper: float


Rounds = tuple[tuple[int, int], ...]  # (groups of a round, so many such rounds in turn); empty: a round for every group


@dataclass(frozen=True, slots=True, kw_only=True)
class SequentialResult:
    """What the sequential rule saw of rows in their asking order.

    `level` is the error of this candidate; `rows` and `groups` were looked at. `action` is "swap" or "fine_tune" from row
    `decided_at` on, whatever came after it, else both are None. `interval` is the confidence sequence now, each bound of it
    wrong at any time at all with probability `level` at most. `e_not_worse` and `e_worse` are the capitals now of the bets
    against "worse by delta or more" and against its mirror. `path` is for the picture: at most 200 points, the last of
    them now.
    """

    level: float
    rows: int
    groups: int
    action: Action | None
    decided_at: int | None
    interval: Interval
    e_not_worse: float
    e_worse: float
    path: tuple[SequentialPoint, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two models on the same rows, paired by example id. Gaps are SLM minus LLM, per core metric.

    `n` counts the pairs with a primary metric, which the verdict stands on; on `undefined` more it is not defined. They
    make up `groups` groups (0: no row has one), the largest of `largest_group` rows, and say as much as `effective_n`
    independent rows (None without groups). Bounds are wrong with probability `level` at most, each.
    `stand_ins` are the specs of those whose answers came from a stand-in. `guardrails` are further metrics that must not
    be worse either. `floors` are what the SLM's primary metric has to exceed for a swap: the difference to each trivial
    baseline that was asked, and to a declared number. `deviation` is the standard deviation of the row
    differences. `answered` is the interval over the `answered_n` rows that both models answered at all; None when they
    answered every row. `llm_failed` and `slm_failed` count the rows on which a model's call failed in transport: such a
    row is no wrong answer but a missing one. `readings` hold the same comparison over fewer rows, where there are
    failures: `reached` without calls that failed in transport, `answered` without any failure; None where no row is left.
    `sequential` is what the sequential rule saw, where that was asked for.
    """

    track: str
    llm: str
    slm: str
    n: int
    digest: str
    primary: str
    llm_metrics: Mapping[str, float | None]
    slm_metrics: Mapping[str, float | None]
    gaps: Mapping[str, float]
    interval: Interval
    slm_only_right: int
    llm_only_right: int
    stand_ins: tuple[str, ...] = ()
    guardrails: Mapping[str, Interval] = field(default_factory=dict)
    floors: Mapping[str, Interval] = field(default_factory=dict)
    slices: tuple[Slice, ...] = ()
    deviation: float = 0.0
    answered: Interval | None = None
    answered_n: int = 0
    llm_failed: int = 0
    slm_failed: int = 0
    readings: Mapping[str, Comparison | None] = field(default_factory=dict)
    undefined: int = 0
    groups: int = 0
    largest_group: int = 1
    effective_n: float | None = None
    level: float
    sequential: SequentialResult | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredRule:
    """Every setting that can turn a verdict, as it was fixed when so many answers were already there.

    `guardrails` are those of the settings; the track's own stand in its definition, of which `track` is the digest, as
    `examples` is of the whole file of rows. `rows` of it were to be asked at most, `baselines` beside the models.
    """

    rule: str
    stop: str
    candidates: int | None
    delta: float
    primary: str
    guardrails: tuple[str, ...]
    min_paired_share: float
    quality_floor: float | None
    baselines: tuple[str, ...]
    track: str
    examples: str
    rows: int
    answers_before: int
    stratify: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateFigures:
    """What a comparison found: the deciding metric `primary` of both models, and SLM minus LLM over `n` paired rows.

    Of a judged one the difference alone: wins minus losses.
    """

    llm: str
    primary: str
    n: int
    llm_metric: float | None
    slm_metric: float | None
    interval: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class RowChanges:
    """An SLM held against one that was tried before, on the `rows` for which both have a deciding score.

    `lower` and `higher` count the rows on which it is so now; of each the first ids, as many as are short enough to list.
    """

    rows: int
    lower: int
    higher: int
    lower_ids: tuple[str, ...] = ()
    higher_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierCandidate:
    """An SLM that was tried on these rows before: the how many-th, by which rule, at which level, with what outcome.

    `figures` are None where none were kept: it was asked, perhaps beside another one, and not compared.
    `changes` since then are known of the last candidate that has scores by the same metric on some of these rows.
    """

    slm: str
    number: int
    rule: str
    level: float
    action: Action
    date: str
    figures: CandidateFigures | None = None
    changes: RowChanges | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do, under which rule and margin, and why; `because` is never empty.

    `advice` is what would decide where these rows do not, in one sentence; None where nothing is to be said.
    `exploratory` is what the rows say under settings that are not the declared ones; the action is then inconclusive.
    `candidate` counts the SLMs that were tried on these rows, this one included; None where nobody counts. `earlier` are
    those before it, in their order.
    """

    action: Action
    rule: str
    delta: float
    because: tuple[str, ...]
    advice: str | None = None
    exploratory: Action | None = None
    candidate: int | None = None
    earlier: tuple[EarlierCandidate, ...] = ()

    def __post_init__(self) -> None:
        if not self.because:
            raise ValueError("a Decision states why")

    @property
    def sentences(self) -> tuple[str, ...]:
        """The reasons and, last, the advice where there is one."""
        return self.because if self.advice is None else (*self.because, self.advice)


class Model(Protocol):
    """The only seam between the two worlds: anything that turns a prompt into a completion."""

    spec: str

    async def complete(self, example_id: str, prompt: Prompt) -> Completion:
        """Answer one prompt. Failures of the call come back as data; a broken configuration raises."""
        ...

    async def close(self) -> None:
        """Release connections and files."""
        ...
