"""Settings of the job in which a model judges answers."""

from __future__ import annotations

from pydantic import Field

from slm_ray.config.shared import Generation, Priced, Requests


class JudgeConfig(Requests, Priced):
    """A model as judge of a finished evaluation, or of answers that people have graded."""

    report: str = Field("", description="a finished evaluation: its run directory or report.json")
    judge: str = Field(description="a model spec")
    rubric: str = Field("", description="what makes an answer good; that of the track when empty")
    track: str = Field("", description="name or YAML file of the track whose rubric is used; the report's when empty")
    show_target: bool = Field(True, description="show the expected answer to the judge")
    models: tuple[str, ...] = Field((), description="whose answers to grade; all of the report's when empty")
    pair: tuple[str, ...] = Field((), description="two models, LLM first, to be judged against each other")
    calibrate: str | None = Field(None, description="JSONL of prompt, prediction, human (1 to 7) and maybe reference")
    calibration: str | None = Field(None, description="run directory of a calibration; without one a judge is advisory")
    run_dir: str
    endpoint: str = "http://127.0.0.1:8000"
    generation: Generation = Generation(max_tokens=200)
