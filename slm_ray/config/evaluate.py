"""Settings of the job that asks models the same rows and scores their answers."""

from __future__ import annotations

from pydantic import Field

from slm_ray.config.shared import Declaration, Evaluation


class EvaluateConfig(Evaluation):
    """The same examples to every model, scored by the same code."""

    track: str
    examples: str
    models: tuple[str, ...] = Field(min_length=1)
    run_dir: str
    endpoint: str = Field("http://127.0.0.1:8000", description="where `served:` models answer")
    limit: int | None = Field(None, ge=1, description="first rows only, for a smoke test")
    train: str | None = Field(None, description="training JSONL: an evaluation that holds one of its rows is refused")
    adapters_dir: str | None = Field(
        None, description="published adapters: rows that a served one was trained on are refused"
    )
    demonstrations: str | None = Field(
        None, description="JSONL that `+Kshot` and `baseline:` arms take rows of; `train` when not set"
    )
    declare: Declaration | None = Field(
        None, description="what the verdict will be made by, fixed before the first call: `{rule: paired, delta: 0.02}`"
    )
