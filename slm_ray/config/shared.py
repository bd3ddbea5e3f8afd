"""The settings that several jobs share: one frozen model each, used wherever the same thing is configured.

Strangers write these files, so unknown keys are refused, and so is what cannot be meant: an infinite number, a NUL byte
in a text, a resource that is nothing. Secrets are never settings: keys are read from the environment at the edge.
`tests/unit/knobs.txt` holds the whole surface.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from slm_ray.config.words import BaseAndAdapters, Config, Margin, Seeded, Shortened, Stratified, Tracked

WIDEST_DELTA = 0.2
Rule = Literal["paired", "sequential", "point"]
Precision = Literal["4bit", "8bit", "16bit"]
Format = Literal[
    "auto", "prompt", "messages", "sharegpt", "hermes", "template", "alpaca", "xlam", "gsm8k", "labelled", "openai_log", "langfuse"
]  # fmt: skip


def _reservable(resources: dict[str, float]) -> dict[str, float]:
    for name, amount in resources.items():
        if not name or amount <= 0:
            raise ValueError(
                f"{name or '(no name)'}: {amount:g} is no amount to reserve; leave it out or set it above 0"
            )
        if amount > 1 and amount != int(amount):
            raise ValueError(f"{name}: {amount:g} is above 1 and no whole number; Ray shares out parts of one only")
    return resources


Resources = Annotated[dict[str, float], AfterValidator(_reservable)]


class Priced(Config):
    """A job that needs to know what tokens cost."""

    prices: str | None = Field(
        None, description="your own dated prices, USD per million tokens by model name; the shipped ones when not set"
    )


class Generation(Seeded):
    """How every arm is asked. Greedy by default: temperature 0 and a seed sent to the endpoint."""

    max_tokens: int = Field(256, ge=1)
    temperature: float = Field(0.0, ge=0)
    timeout_s: float = Field(120.0, gt=0)
    max_attempts: int = Field(8, ge=1, description="calls per row that may fail; a rate limit (429) is not counted")
    retry_deadline_s: float = Field(3600.0, gt=0, description="how long one row is tried again, waits included")
    concurrency: int = Field(16, ge=1, description="calls in flight per model, answers not yet on disk included")
    stream: bool = Field(False, description="stream the answers: measures the time to the first token")
    logprobs: bool = Field(False, description="ask for token log-probabilities: the SLM's confidence per row")


class Calls(Config):
    """How models are called, and the most that this may cost."""

    generation: Generation = Generation()
    max_cost_usd: float | None = Field(None, gt=0, description="no call that might bring the run above it")
    max_calls: int | None = Field(None, ge=1, description="calls of the run that are or may be billed")
    max_tokens_total: int | None = Field(None, ge=1, description="tokens of the whole run, prompts included")


class Requests(Calls):
    """How a run asks its models, on Ray."""

    shards: int = Field(1, ge=1, description="Ray actors per model that share its calls in flight")
    shard_resources: Resources = Field({"CPU": 0.1}, description="what each of them reserves")


class Retrieval(Config):
    """How demonstrations are found, wherever they are shown."""

    retriever: str = Field(
        "words",
        description="what finds similar training rows: words, bm25, or a sentence encoder by folder or hub name",
    )


class Demonstrated(Retrieval):
    """A job that may show a model some."""

    demonstrations: str | None = Field(
        None,
        description="JSONL that `+Kshot` and `baseline:` models take rows of; an evaluation's `train` when not set",
    )


class Evaluation(Requests, Retrieval):
    """How models are evaluated, whatever the rows."""

    repeats: int = Field(
        1, ge=1, description="how often every row is asked; figures are of the first time, noise of all"
    )
    encoder: str | None = Field(None, description="folder of a local encoder: adds BERTScore and embedding cosine")


class Declaration(Stratified, Margin):
    """Every setting that can turn a verdict, as it can be declared before a run's first call."""

    rule: Rule = Field(
        "paired",
        description="one look at a bound, a bound that may be looked at any time (sequential), or none (point)",
    )
    stop: Literal["never", "when_decided"] = Field(
        "never", description="sequential: ask every row, or end the asking of a model once it is decided"
    )
    candidates: int | None = Field(
        None,
        ge=1,
        description="SLMs that will be tried on these rows and share the error; a decreasing part each if not set",
    )
    force_delta: bool = Field(False, description="allow a delta above 0.2, which few people would call as good")
    guardrails: tuple[str, ...] = Field((), description="further row metrics that must not be worse by delta either")
    min_paired_share: float = Field(0.95, gt=0, le=1, description="of the rows, how many both models must have")
    quality_floor: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="primary metric that the SLM must be shown to exceed, besides every `baseline:` asked",
    )

    @model_validator(mode="after")
    def _sensible(self) -> Declaration:
        if self.delta > WIDEST_DELTA and not self.force_delta:
            raise ValueError(
                f"delta {self.delta:g} lets an SLM pass that is that much worse; the widest is {WIDEST_DELTA:g}, or set"
                " force_delta: true"
            )
        if self.stop == "when_decided" and self.rule != "sequential":
            raise ValueError(
                f"stop: when_decided looks at the rows as they come, which the rule {self.rule} does not allow; set rule:"
                " sequential, or stop: never"
            )
        if self.stratify is not None and self.rule != "sequential":
            raise ValueError(
                f"stratify: {self.stratify} orders the rows of the rule sequential, and the rule {self.rule} asks them as"
                " they stand; set rule: sequential, or leave stratify out"
            )
        return self


class ServingMachine(Config):
    """The machine that serves the SLM, and what it costs."""

    machine: str = Field(
        "RTX 3090 (24 GB), on demand",
        description="what `hourly_usd` rents; only named, not looked up. Say CPU if it has no GPU",
    )
    hourly_usd: float = Field(
        0.39,
        gt=0,
        description="USD per hour of the machine that serves the SLM; source of the default: slm_ray/costs/prices.yaml",
    )


class Cost(ServingMachine):
    """What models cost per token and what the machine costs that serves the SLM."""

    llm_price_as: str | None = Field(
        None, description="a model of `prices` that the LLM is priced as; hypothetical where the LLM is a stand-in"
    )
    load: str | None = Field(
        None, description="load.json of `slm-ray load`: its measured requests/s take the place of the estimate"
    )
    utilisation: float = Field(
        0.5,
        gt=0,
        le=1,
        description="share of its time that a machine is planned to be busy at most; the rest is for peaks",
    )
    requests_per_day: float | None = Field(
        None, gt=0, description="your volume: what a machine costs per request, and when training is paid back"
    )


class Comparison(Declaration):
    """How two models are compared: what can be declared, and what they cost."""

    cost: Cost = Cost()


class Curation(Config):
    """Which rows are left out, in this order, each step counted. Nothing but equal rows is, unless asked."""

    duplicates: Literal["refuse", "exact", "near"] = Field(
        "refuse", description="equal rows are a fault, or are dropped; `near` drops rows that say almost the same too"
    )
    prompt_words: tuple[int, int | None] = Field((0, None), description="fewest and most words")
    target_words: tuple[int, int | None] = Field((0, None), description="fewest and most words")
    drop: tuple[Literal["cut", "refusals"], ...] = Field(
        (), description="answers to leave out: those that stop in the middle, those that decline, in English"
    )
    scripts: tuple[str, ...] = Field((), description="the writing systems to keep, such as latin; all when empty")
    cap: int | None = Field(
        None, ge=1, description="most rows of a class, which is a value of the tag `stratify`, or an answer without one"
    )
    balance: float | None = Field(None, ge=1, description="most rows of a class, in times of the smallest class")
    max_tokens: int | None = Field(None, ge=16, description="tokens of prompt and answer; a longer row is a bad row")
    order: Literal["none", "shortest_first", "by_source"] = Field("none", description="of the training rows")


class Live(Config):
    """Which requests of a traffic log become rows, where a source is one. The LLM's answer is learned, or what a user put
    right; the SLM's own only where a user said that it was right. All but `route` choose among training rows alone."""

    route: str | None = Field(None, description="the route whose requests are taken; needed where the log has several")
    self_agreement: float | None = Field(
        None, gt=0, le=1, description="of the LLM's answers to one repeated question, how many must say the same"
    )
    disagreement: Literal["keep", "first", "drop"] = Field(
        "keep",
        description="requests on which LLM and SLM disagree: like others, before others under `most`, or left out",
    )
    most: int | None = Field(None, ge=1, description="requests to train on, the latest; all when not set")


class Source(Retrieval, Stratified, Shortened, Tracked):
    """One track's rows: where they are, what is done with bad ones, and how they are split."""

    source: str | dict[str, float] = Field(
        description="file, folder, URI or hf:NAME; or several of them, each with its weight"
    )
    validation_source: str | None = Field(None, description="where validation rows are, when not drawn from `source`")
    test_source: str | None = Field(None, description="where test rows are, when not drawn from `source`")
    format: Format = Field("auto", description="told from each row's keys, or named")
    validation_rows: int | None = Field(60, ge=1, description="how many; all of `validation_source` when null")
    test_rows: int | None = Field(100, ge=1, description="how many; all of `test_source` when null")
    keep_split: bool = Field(False, description="use the rows' own `split` field instead of drawing one")
    separate_near: bool = Field(False, description="near-duplicates stand in one split, not only equal prompts")
    few_shot: int = Field(
        0,
        ge=0,
        description="similar training rows in front of each training prompt, for an adapter that is asked so too",
    )
    max_bad_share: float = Field(
        0.0, ge=0, le=1, description="share of bad rows that may be left out; a source with more of them is refused"
    )
    curation: Curation = Curation()
    live: Live = Live()


class Lora(Config):
    """LoRA as in PEFT; on all linear layers of the base but its head by default."""

    rank: int = Field(32, ge=1)
    alpha: int = Field(64, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    target_modules: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear", description="the linear layers that are adapted, by the last part of their names"
    )
    variant: Literal["lora", "rslora", "dora"] = Field(
        "lora", description="rslora scales by alpha / sqrt(rank); dora also learns lengths and is merged to be served"
    )

    @model_validator(mode="after")
    def _adapts_something(self) -> Lora:
        if not self.target_modules:
            raise ValueError("target_modules is empty, so nothing would be trained; name layers or set all-linear")
        return self


class Workers(Config):
    """One training group: its size and what each worker holds. On GPUs: `per_worker: {GPU: 1}`."""

    count: int = Field(2, ge=1)
    per_worker: Resources = Field({"CPU": 1})


class Recipe(Seeded):
    """How an adapter is trained on a frozen base, loss on the assistant's words only."""

    lora: Lora = Lora()
    workers: Workers = Workers()
    precision: Precision = Field(
        "4bit", description="of the frozen base: NF4 with double quantisation, LLM.int8, or bf16"
    )
    epochs: float = Field(3.0, gt=0)
    per_device_batch: int = Field(2, ge=1)
    gradient_accumulation: int = Field(4, ge=1)
    learning_rate: float = Field(2e-4, gt=0)
    schedule: Literal["linear", "cosine", "cosine_with_restarts", "constant"] = Field(
        "linear", description="after the warm-up; with restarts, the cosine begins again at every epoch"
    )
    warmup_steps: int = Field(10, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float = Field(1.0, ge=0, description="longer gradients are shortened to this; 0 leaves them alone")
    optimizer: str = Field("adamw_8bit", description="a transformers optimizer name")
    learn: Literal["answer", "every_turn"] = Field(
        "answer", description="loss on the last turn of a chat, or on all of the assistant's; never on demonstrations"
    )
    max_length: int = Field(2048, ge=16, description="tokens; a longer row is refused")
    checkpoint_steps: int = Field(50, ge=1)
    early_stopping: int | None = Field(
        None, ge=1, description="stop after so many checkpoints without a better task metric on validation rows"
    )

    @model_validator(mode="after")
    def _restarts_at_all(self) -> Recipe:
        if self.schedule == "cosine_with_restarts" and self.epochs < 2:
            raise ValueError(
                f"schedule cosine_with_restarts begins again at every epoch, and {self.epochs:g} epochs hold none; set"
                " schedule: cosine, or 2 epochs and more"
            )
        return self


class Range(Config):
    """Every number from `low` to `high`, looked for on a logarithmic scale."""

    low: float = Field(gt=0)
    high: float = Field(gt=0)

    @model_validator(mode="after")
    def _rises(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}; give a range, or a list of values")
        return self


class Search(Shortened):
    """Which learning rates and LoRA ranks are tried, and how long: a list, or a range in which Optuna picks.

    Each trial is trained on the same rows and judged on the same validation rows.
    """

    learning_rates: tuple[float, ...] | Range = Field((1e-4, 5e-4), description="a list, or `{low: …, high: …}`")
    ranks: tuple[int, ...] | Range = Field((16, 32), description="a list, or `{low: …, high: …}`")
    trials: int = Field(4, ge=0, description="how many; in a loop 0, its default, trains without a search")
    reduction_factor: int = Field(
        3,
        ge=1,
        description="after 1/9 and 1/3 of its steps one trial in so many goes on, by validation loss (ASHA, by powers of this number); 1: all do",
    )
    validation_rows: int = Field(30, ge=1)
    epochs: float = Field(1.0, gt=0)


class Serving(BaseAndAdapters):
    """The endpoint: an ordinary Ray Serve file, adapters from a folder or a bucket, loopback unless told otherwise."""

    config: str = "serve_configs/cpu_tiny.yaml"
    name: str = Field("tiny-base", description="the model name that clients send")
    tracks: list[str] = Field(
        default=[], description="tracks, by name or YAML file, whose answer_schema a request may ask for by name"
    )
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    keys_file: str = Field("", description="further keys, with scopes and budgets: see `slm-ray keys`")
    keep_alive: bool = Field(False, description="leave the endpoint up when the job ends")
