"""Settings of what maintainers run: the tiny base, the shipped task data, the simulated verdict, the benchmarks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from slm_ray.config import TrainConfig
from slm_ray.config.shared import Recipe, Search, Serving
from slm_ray.config.words import Config, Margin


class OperatingCharacteristicsConfig(Margin):
    """Simulated evaluations that both rules judge, at one margin."""

    delta: float = Field(0.05, gt=0, le=1)
    rows: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (50, 100, 200, 500, 1000, 2000), min_length=1, description="graded metrics up to 500, they are slow"
    )
    runs: int = Field(
        40_000,
        ge=2000,
        description="per cell; a twentieth of it for the graded and the partial part, a fortieth for the watch",
    )
    parts: tuple[Literal["binary", "graded", "partial", "looks", "strata", "rows", "watching"], ...] = Field(
        ("binary", "graded", "partial", "looks", "strata", "rows", "watching"),
        min_length=1,
        description="right-or-wrong rows, graded ones, partial replacement, looking again, rows of several kinds, rows to a decision, live traffic",
    )


class TasksConfig(Config):
    """The project's own task data, made from the catalogue."""

    catalogue: str = "data/tools/catalogue.yaml"
    out: str = "data/tools/rows.json"
    rows: int = Field(3360, ge=1)
    seed: int = 42


class PretrainConfig(Config):
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


class ReadingBenchConfig(Config):
    """How many generated rows a second are validated, and in how much memory."""

    megabytes: int = Field(200, ge=1, description="size of the file that is made in a temporary folder")
    hold: bool = Field(False, description="all examples in one list instead of row by row")
    profile: int = Field(0, ge=0, description="how many functions to list by their own time, which slows the run down")
    seed: int = 42


class ScoringBenchConfig(Config):
    """How many generated answers a second each scorer judges; every scorer runs once before the next round starts."""

    scorers: tuple[str, ...] = Field((), description="which scorers; all when empty")
    rows: int = Field(300, ge=1, description="per scorer and round")
    rounds: int = Field(7, ge=1)
    words: int = Field(150, ge=1, description="words of a text answer, on average")
    seed: int = 42


class TrainBenchConfig(Config):
    """What a training costs; `training` names its rows, run and adapters go elsewhere."""

    training: TrainConfig
    parts: tuple[Literal["torchrun", "recovery", "chain", "per_hour"], ...] = ("torchrun",)
    laps: int = Field(3, ge=1, description="of the race against torchrun")
    checkpoint_steps: int = Field(20, ge=6, description="of the training that loses a worker")
    adapters: int = Field(6, ge=1, description="that are trained in line")


class DeployBenchConfig(Config):
    """An endpoint that is started and then changed under two clients."""

    serving: Serving
    answer_tokens: int = Field(1500, ge=1, description="length of the answer that is being written meanwhile")


class KillsBenchConfig(Config):
    """An endpoint of two engines and two fronts, of which one part after the other is killed under clients."""

    serving: Serving
    clients: int = Field(64, ge=1)
    tokens: int = Field(16, ge=1)
    retries: int = Field(2, ge=0, description="max_retries of the openai client, whose own default is 2")
    steady_s: float = Field(5.0, gt=0, description="before each kill, and after what was killed is back")


class RaceConfig(Config):
    """The same rows to an endpoint of fixed latency, by this evaluation and by others."""

    rows: int = Field(2000, ge=1)
    latency_s: float = Field(0.05, ge=0)
    concurrency: int = Field(64, ge=1)
    shards: int = Field(2, ge=1, description="Ray actors of this evaluation")
    rounds: int = Field(3, ge=1, description="every program runs once before the next round starts")
    lm_eval: str | None = Field(
        None, description="lm-evaluation-harness's executable (lm_eval), in its own environment"
    )
    inspect: str | None = Field(None, description="inspect-ai's executable (inspect), in its own environment")
    out_dir: str = "runs/bench_evaluate"


class LearningCurveBenchConfig(Config):
    """How often the intervals of a learning curve hold, on simulated curves and on those of stand-in learners."""

    sizes: tuple[int, ...] = Field((50, 100, 200, 400, 800), description="what the fit sees")
    validation_rows: int = Field(200, ge=1)
    curves: int = Field(300, ge=0, description="simulated, of each kind; none when 0")
    train: str | None = Field(None, description="CSV with text and label; with `test`, adds real curves")
    test: str | None = Field(None, description="CSV with text and label")
    seeds: int = Field(30, ge=1, description="real curves of each learner")
    targets: int = Field(5, ge=1, description="targets asked of each real curve")
    seed: int = 42


class CurveSource(Config):
    """The rows of one task. `labelled` is the track of a CSV file with the columns text and category."""

    name: str
    track: str = "labelled"
    source: str


class TrainingCurveBenchConfig(Config):
    """Nested sizes of each task, trained for every seed; the largest is hidden from the fit."""

    out_dir: str
    sources: tuple[CurveSource, ...] = Field(min_length=1)
    base: str = "data/tiny_base"
    recipe: Recipe = Recipe()
    sizes: tuple[int, ...] = Field((100, 200, 400, 800), min_length=4, description="what the fit sees, increasing")
    hidden: int = Field(
        3200, description="twice or four times the largest of them, which is as far as anything is promised"
    )
    validation_rows: int = Field(150, ge=1, description="whose greedy answers score every training")
    seeds: tuple[int, ...] = Field((1, 2), min_length=1, description="of the rows' order and of the training")

    @model_validator(mode="after")
    def _within_reach(self) -> TrainingCurveBenchConfig:
        if self.hidden not in (2 * self.sizes[-1], 4 * self.sizes[-1]):
            raise ValueError(
                f"hidden is {self.hidden:,}; give twice or four times the largest size, {self.sizes[-1]:,}"
            )
        return self


class SweepBenchConfig(Config):
    """The same recipes on the same rows, each as a Ray Train run of its own and by resident workers."""

    training: TrainConfig
    validation: str = Field(description="validation JSONL")
    search: Search = Search()


class ServeBenchConfig(Config):
    """Our endpoint against bare `vllm serve`, both up, asked in turn."""

    serving: Serving = Serving()
    clients: tuple[int, ...] = Field((1, 8, 32), description="connections that each wait for their answer")
    rounds: int = Field(5, ge=1)
    seconds: float = Field(8.0, gt=0, description="of one measurement; a round has two for each of 3 x 3 x 2 cells")
    tokens: int = Field(64, ge=1, description="of every answer")


class OverloadBenchConfig(Config):
    """The endpoint asked more than it carries."""

    serving: Serving = Serving()
    clients: int = Field(64, ge=1, description="that show the rate it carries: as many as its engines batch")
    seconds: float = Field(20.0, gt=0, description="of each of three measurements")
    tokens: int = Field(256, ge=1, description="of every answer")
    times: float = Field(10.0, gt=0, description="how much more than it carries")
    seed: int = 42


class ScaleBenchConfig(Config):
    """Evaluation on more nodes, and a line of many trainings; every node is on this machine."""

    parts: tuple[Literal["evaluation", "trainings"], ...] = ("evaluation", "trainings")
    nodes: tuple[int, ...] = Field((1, 2, 4), description="of the evaluation, the fewest first")
    in_flight: int = Field(8, ge=1, description="calls of a node's shard")
    latency_s: float = Field(1.0, ge=0, description="of the endpoint")
    rows_per_node: int = Field(320, ge=1)
    raylets: int = Field(8, ge=1, description="Ray's node processes that share the slots")
    slots: int = Field(1024, ge=1, description="64 nodes of 16")
    trainings: int = Field(500, ge=1)
    wants: tuple[int, ...] = Field((1, 2, 4, 16), description="slots of a training, drawn by seed")
    hold_s: float = Field(10.0, ge=0, description="how long a training holds its slots, on average")
    out_dir: str = "runs/bench_scale"
    seed: int = 42


class GpuCheckConfig(Config):
    """What one GPU shows of training here, on a base with random weights."""

    shape: Literal["llama31_8b", "llama32_3b", "tiny"] = "llama31_8b"
    device: Literal["cuda", "cpu"] = "cuda"
    memory_gb: float = Field(24.0, gt=0, description="the card is used as if it had no more; GB of 1e9 bytes")
    seconds: float = Field(480.0, gt=0, description="for all parts; a variant ends after its share of it")
    parts: tuple[str, ...] = Field((), description="which parts; all when empty")
    out: str = "runs/gpu_check.json"
    seed: int = 42


class RolloutBenchConfig(Config):
    """What the roll-out's front adds to a call, by an upstream of fixed latency."""

    rate: float = Field(100.0, gt=0, description="calls a second")
    latency_s: float = Field(0.05, ge=0, description="of the upstream")
    state: Literal["record", "shadow", "live"] = "live"
    through: Literal["asgi", "serve", "haproxy"] = Field("serve", description="the front alone, or Ray Serve around it")
    windows: int = Field(5, ge=1, description="of each, in turn")
    window_s: float = Field(4.0, gt=0)
    port: int = Field(18800, ge=1024, le=65534, description="the front's; the upstream's is the next one")


class DriftBenchConfig(Config):
    """An adapter that never saw some tool domains, and traffic that turns to them."""

    out_dir: str = Field("runs/bench_drift", description="checkpoints and answers, from which the same command goes on")
    catalogue: str = "data/tools/catalogue.yaml"
    base: str = "data/tiny_base"
    run: str | None = Field(None, description="a finished evaluation, whose scores are replayed; nothing is trained")
    slm: str | None = Field(None, description="with `run`: the arm that the verdict is about")
    becomes: str | None = Field(None, description="with `run`: the arm that answers after the change")
    held_out: tuple[str, ...] = Field(("finance", "media"), description="domains left out of training")
    rows: int = Field(6000, ge=100, description="generated from the catalogue, of all domains")
    test_rows: int = Field(
        400, ge=40, description="of the known domains (half the verdict's, half live), and of the others"
    )
    steps: int = Field(1200, ge=1)
    batch: int = Field(8, ge=1)
    delta: float = Field(0.02, ge=0, lt=1)
    runs: int = Field(1000, ge=1, description="replays per line")
    splits: int = Field(20, ge=1, description="cuts of the known rows into the verdict's and live ones")
    after: tuple[int, ...] = Field((0, 200, 2000), description="audited requests before the traffic turns")
    shares: tuple[float, ...] = Field((1.0, 0.5, 0.2), description="of the requests that are of the new kind then")
    most: int = Field(2000, ge=1, description="audited requests after it")
    well: int = Field(10_000, ge=1, description="audited requests without a change")
    seed: int = 42


class FilterBenchConfig(Config):
    """A traffic log with injected faults, and adapters trained on what the filters of live rows leave of it."""

    out_dir: str = Field("runs/bench_filters", description="the log, checkpoints and answers; the same command goes on")
    catalogue: str = "data/tools/catalogue.yaml"
    domains: tuple[str, ...] = Field(
        ("home", "media", "weather"), description="of the catalogue, whose tools are asked for"
    )
    base: str = "data/tiny_base"
    questions: int = Field(1600, ge=10, description="different ones that are asked")
    repeated: float = Field(0.3, ge=0, le=1, description="share of them that is asked several times")
    repeats: int = Field(5, ge=1, description="how often those are asked")
    wrong: float = Field(0.2, ge=0, le=1, description="share of the LLM's answers that are wrong in the right form")
    formless: float = Field(0.05, ge=0, le=1, description="share of the LLM's answers that have no form")
    slm_right: float = Field(0.6, ge=0, le=1, description="share of the SLM's answers of that day that are right")
    test_rows: int = Field(400, ge=20)
    steps: int = Field(350, ge=1, description="optimizer steps of every training, whatever the rows")
    batch: int = Field(8, ge=1)
    seed: int = 42
