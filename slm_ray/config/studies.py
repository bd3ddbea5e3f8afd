"""Settings of the jobs that study answers, verdicts and speed: the judge, the simulation of the paired rule, the benchmarks."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from slm_ray.config.frozen import Knobs
from slm_ray.config.knobs import GenerationConfig


class JudgeConfig(Knobs):
    """A model as judge of a finished evaluation, or of answers that people have graded."""

    report: str = Field("", description="a finished evaluation: its run directory or report.json")
    judge: str = Field(description="a model spec")
    rubric: str = Field("", description="what makes an answer good; that of the track when empty")
    track: str = Field("", description="name or YAML file of the track whose rubric is used; the report's when empty")
    use_reference: bool = Field(True, description="show the expected answer to the judge")
    models: tuple[str, ...] = Field((), description="whose answers to grade; all of the report's when empty")
    pair: tuple[str, ...] = Field((), description="two models, LLM first, to be judged against each other")
    calibrate: str | None = Field(None, description="JSONL of prompt, prediction, human (1 to 7) and maybe reference")
    calibration: str | None = Field(None, description="run directory of a calibration; without one a judge is advisory")
    run_dir: str
    endpoint: str = "http://127.0.0.1:8000"
    generation: GenerationConfig = GenerationConfig(max_tokens=200)
    actor_resources: dict[str, float] = Field({"CPU": 0.1})
    resamples: int = Field(9999, ge=99)
    seed: int = 42


class ReadingBenchConfig(Knobs):
    """How many generated rows a second are validated, and in how much memory."""

    megabytes: int = Field(200, ge=1, description="size of the file that is made in a temporary folder")
    hold: bool = Field(False, description="all examples in one list instead of row by row")
    profile: int = Field(0, ge=0, description="how many functions to list by their own time, which slows the run down")
    seed: int = 42


class ScoringBenchConfig(Knobs):
    """How many generated answers a second each scorer judges; every scorer runs once before the next round starts."""

    scorers: tuple[str, ...] = Field((), description="which scorers; all when empty")
    rows: int = Field(300, ge=1, description="per scorer and round")
    rounds: int = Field(7, ge=1)
    words: int = Field(150, ge=1, description="words of a text answer, on average")
    seed: int = 42


class SimulateConfig(Knobs):
    """Simulated evaluations that the paired rule judges."""

    delta: float = Field(0.05, gt=0, le=1)
    rows: tuple[int, ...] = (50, 100, 200, 500, 1000, 2000)
    discordance: tuple[float, ...] = Field(
        (0.05, 0.1, 0.2, 0.4), description="shares of rows only one model gets right"
    )
    runs: int = Field(40_000, ge=100)
    parts: tuple[Literal["binary", "graded", "partial"], ...] = Field(
        ("binary", "graded", "partial"), description="right-or-wrong rows, graded ones, partial replacement"
    )
    slow_runs: int = Field(2000, ge=100, description="simulated runs per cell of the graded and the partial part")
    graded_rows: tuple[int, ...] = (50, 100, 200, 500)
    partial_rows: tuple[int, int] = Field((200, 400), description="validation and test rows")
    resamples: int = Field(999, ge=99, description="of the bootstrap behind graded bounds")
    seed: int = 42


class LiveConfig(Knobs):
    """Watch an evaluation that runs in another shell."""

    run_dir: str = "runs/evaluate"
    plain: bool = Field(False, description="plain lines on a terminal too")


class RaceConfig(Knobs):
    """The same rows to an endpoint of fixed latency, by this evaluation and by others."""

    rows: int = Field(2000, ge=1)
    latency_s: float = Field(0.05, ge=0)
    concurrency: int = Field(64, ge=1)
    actors: int = Field(2, ge=1, description="evaluation actors of this evaluation")
    rounds: int = Field(3, ge=1, description="every program runs once before the next round starts")
    lm_eval: str | None = Field(
        None, description="lm-evaluation-harness's executable (lm_eval), in its own environment"
    )
    inspect: str | None = Field(None, description="inspect-ai's executable (inspect), in its own environment")
    out_dir: str = "runs/bench_evaluate"
