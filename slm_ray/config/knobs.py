"""Every knob of every job, with its default and its unit.

Strangers write these files, so unknown keys are refused and nothing is coerced silently. Secrets are never knobs: keys
are read from the environment at the edge. The set of knobs is held by a golden file (`tests/unit/knobs.txt`).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from slm_ray.config.data import TrackConfig
from slm_ray.config.frozen import Knobs, Track
from slm_ray.config.verdict import CostConfig, DeclareConfig, sensible_margin


class GenerationConfig(Knobs):
    """How every arm is asked. Greedy by default: temperature 0 and a seed sent to the endpoint."""

    max_tokens: int = Field(256, ge=1)
    temperature: float = Field(0.0, ge=0)
    seed: int = 42
    timeout_s: float = Field(120.0, gt=0)
    max_attempts: int = Field(
        8, ge=1, description="calls per row that may fail; being turned away (429) is not counted"
    )
    patience_s: float = Field(3600.0, gt=0, description="how long one row is asked again and again, waits included")
    concurrency: int = Field(16, ge=1, description="calls in flight per model, answers not yet on disk included")
    stream: bool = Field(False, description="stream the answers: measures the time to the first token")
    logprobs: bool = Field(False, description="ask for token log-probabilities: the SLM's confidence per row")


class EvaluateConfig(Knobs):
    """The same examples to every model, scored by the same code."""

    track: Track
    examples: str
    models: tuple[str, ...] = Field(min_length=1)
    run_dir: str
    endpoint: str = Field("http://127.0.0.1:8000", description="where `served:` models answer")
    generation: GenerationConfig = GenerationConfig()
    actors: int = Field(1, ge=1, description="Ray evaluation actors per model")
    actor_resources: dict[str, float] = Field({"CPU": 0.1})
    limit: int | None = Field(None, ge=1, description="first rows only, for a smoke test")
    encoder: str | None = Field(None, description="folder of a local encoder: adds BERTScore and embedding cosine")
    encoder_idf: bool = Field(False, description="in BERTScore, rare tokens of the references weigh more")
    train: str | None = Field(None, description="training JSONL: an evaluation that holds one of its rows is refused")
    adapters_dir: str | None = Field(
        None, description="published adapters: rows that a served one was trained on are refused"
    )
    demonstrations: str | None = Field(
        None, description="JSONL that `+Kshot` and `baseline:` arms take rows of; `train` when not set"
    )
    repeats: int = Field(
        1, ge=1, description="how often every row is asked; figures are of the first time, noise of all"
    )
    max_cost_usd: float | None = Field(
        None, gt=0, description="no call that might bring the run above it; see `prices`"
    )
    max_calls: int | None = Field(
        None, ge=1, description="calls of the whole run that may be billed: answered, or sent and never heard of"
    )
    max_tokens_total: int | None = Field(None, ge=1, description="tokens of the whole run, prompts included")
    prices: str = Field("data/prices.yaml", description="USD per million tokens, by model name")
    max_failed_share: float = Field(
        0.02, ge=0, le=1, description="of a model's rows, how many may have failed calls; above it the job ends with 3"
    )
    plain: bool = Field(False, description="progress as plain lines on a terminal too")
    declare: DeclareConfig | None = Field(
        None, description="rule and margin, fixed before the first call: `{rule: paired, delta: 0.02}`"
    )


class LoraConfig(Knobs):
    """LoRA as in PEFT; all linear layers of Llama-like models by default."""

    rank: int = Field(32, ge=1)
    alpha: int = Field(64, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class WorkersConfig(Knobs):
    """One training group: its size and what each worker holds. On GPUs: `per_worker: {GPU: 1}`."""

    count: int = Field(2, ge=1)
    per_worker: dict[str, float] = Field({"CPU": 1})
    threads: int = Field(1, ge=1, description="torch threads per worker on CPU")
    max_failures: int = Field(2, ge=0)


class RecipeConfig(Knobs):
    """How a QLoRA adapter is trained: base in NF4 (double quantisation), loss on the answer only."""

    lora: LoraConfig = LoraConfig()
    workers: WorkersConfig = WorkersConfig()
    quantization: Literal["nf4", "none"] = "nf4"
    epochs: float = Field(3.0, gt=0)
    per_device_batch: int = Field(2, ge=1)
    gradient_accumulation: int = Field(4, ge=1)
    learning_rate: float = Field(2e-4, gt=0)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: int = Field(10, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    optimizer: str = Field("adamw_8bit", description="a transformers optimizer name")
    max_length: int = Field(2048, ge=16, description="tokens; a longer row is refused")
    checkpoint_steps: int = Field(50, ge=1)
    seed: int = 42


class TrainingConfig(RecipeConfig):
    """One QLoRA run: a recipe, its rows, its base and where the adapter goes."""

    track: Track
    train: str
    base: str
    run_dir: str
    adapters_dir: str
    name: str = Field("run", description="what the run is called; the adapter id adds a content hash")


class SweepConfig(Knobs):
    """Ray Tune over learning rate and LoRA rank; each trial is a Ray Train run scored on validation rows."""

    enabled: bool = False
    learning_rates: tuple[float, ...] = (1e-4, 5e-4)
    ranks: tuple[int, ...] = (16, 32)
    trials: int = Field(4, ge=1)
    rows: int | None = Field(None, ge=1, description="training rows per trial; all when not set")
    validation_rows: int = Field(30, ge=1)
    epochs: float = Field(1.0, gt=0)
    max_concurrent: int | None = Field(None, ge=1, description="trials at once; slots / slots per trial when not set")


class SweepJobConfig(Knobs):
    """A sweep as a job of its own: the recipe to vary, where to look, and the rows that score a trial."""

    training: TrainingConfig
    sweep: SweepConfig
    validation: str = Field(description="JSONL of validation examples")


class ServingConfig(Knobs):
    """The endpoint: an ordinary Ray Serve LLM file, adapters from a plain folder, loopback unless told otherwise."""

    config: str = "serve_configs/cpu_tiny.yaml"
    base: str = Field("data/tiny_base", description="folder of the base model, or a hub name")
    name: str = Field("tiny-base", description="the model name that clients send")
    adapters_dir: str = "runs/adapters"
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    ready_timeout_s: float = Field(300.0, gt=0)
    keep: bool = Field(False, description="leave the endpoint up when the job ends")


class LoopConfig(Knobs):
    """The whole question: prepare, deploy, evaluate, compare, sweep, train, publish, evaluate, compare."""

    run_dir: str
    tracks: tuple[TrackConfig, ...] = Field(min_length=1)
    llm: str = Field("azure:", description="model spec of the LLM; `azure:` takes AZURE_DEPLOYMENT")
    stand_in: bool = Field(True, description="without AZURE_* keys, let the local stand-in answer as the LLM")
    stand_in_demonstrations: int = Field(3, ge=0)
    serving: ServingConfig = ServingConfig()
    generation: GenerationConfig = GenerationConfig()
    actor_resources: dict[str, float] = Field({"CPU": 0.1})
    gate: Literal["paired", "point"] = Field("point", description="rule on validation rows: is training worth a try")
    rule: Literal["paired", "point"] = Field("paired", description="rule on test rows: may the SLM take over")
    delta: float = Field(0.02, ge=0, le=1)
    force_delta: bool = Field(False, description="allow a delta above 0.2, which few people would call as good")
    resamples: int = Field(9999, ge=99)
    cost: CostConfig = CostConfig()
    sweep: SweepConfig = SweepConfig()
    training: RecipeConfig = RecipeConfig()
    parallel: bool = Field(True, description="train all tracks at once, each in its own group (2+2)")
    exit_with_decision: bool = Field(
        False, description="exit 0 swap, 10 fine_tune, 20 inconclusive, the worst of the tracks"
    )
    seed: int = 42

    _margin = model_validator(mode="after")(sensible_margin)


class InferConfig(Knobs):
    """One request, shown as the model sees it."""

    track: Track
    model: str
    text: str | None = Field(None, description="the user's turn, already in the track's wording")
    reference: str | None = None
    examples: str | None = Field(None, description="JSONL that `example` is looked up in, instead of `text`")
    example: str | None = Field(None, description="the id of the row to ask; the first row when not set")
    endpoint: str = "http://127.0.0.1:8000"
    generation: GenerationConfig = GenerationConfig()
    demonstrations: str | None = Field(None, description="JSONL that `+Kshot` and `baseline:` models take rows of")
    tokens: bool = Field(False, description="show the token ids that the prompt becomes")
    tokenizer: str = Field("data/tiny_base", description="folder of the tokenizer whose ids are shown")


class TasksConfig(Knobs):
    """The project's own task data, made from the catalogue."""

    catalogue: str = "data/tools/catalogue.yaml"
    out: str = "data/tools/rows.json"
    rows: int = Field(3360, ge=1)
    seed: int = 42


class PretrainConfig(Knobs):
    """The tiny base model that the repository ships."""

    out_dir: str = "data/tiny_base"
    lexicon: str = "data/pretrain/lexicon.yaml"
    vocabulary: int = 3072
    hidden: int = 192
    layers: int = 4
    heads: int = 3
    intermediate: int = 512
    tokens: int = Field(16_000_000, description="tokens seen, prompts included")
    batch_tokens: int = 8_192
    learning_rate: float = 3e-3
    seed: int = 42
