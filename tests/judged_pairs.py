"""Rows with two models' answers, and the settings of a judge over them."""

from pathlib import Path
from typing import Any

from slm_ray.config import JudgeConfig
from slm_ray.records import AnswerResult, RowResult
from slm_ray.types import Failure

LLM, SLM = "openai:big", "served:small"
OUTAGE = Failure(kind="error", reason="HTTP 500", status=500)
REFUSED = Failure(kind="refused", reason="no")


def answered(text: str | Failure) -> AnswerResult:
    failure = text if isinstance(text, Failure) else None
    return AnswerResult(text=None if failure else str(text), failure=failure, scores={})


def row(
    number: int, llm: str | Failure = "by the large", slm: str | Failure = "by the small", **more: Any
) -> RowResult:
    name = f"q{number:03}"
    texts = [f"{text} {name}" if isinstance(text, str) else text for text in (llm, slm)]
    return RowResult(
        id=name, prompt_hash=name, prompt=(), target="t", tags={},
        models={LLM: answered(texts[0]), SLM: answered(texts[1])}, **more,
    )  # fmt: skip


def config(folder: Path, **settings: Any) -> JudgeConfig:
    values: dict[str, Any] = {
        "judge": "fake:x", "report": "runs/evaluate", "run_dir": str(folder), "llm": LLM, "slm": SLM, "looks": (40, 80), **settings
    }  # fmt: skip
    return JudgeConfig(**values)
