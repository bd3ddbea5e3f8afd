"""Text against text: what an answer is worth. Pure functions; no disk, clock, network or models."""

from slm_ray.scoring.run import (
    SCORERS,
    Answered,
    check,
    form_metrics,
    metrics,
    row_metrics,
    score,
    score_all,
    score_rows,
    scorers,
    summarise,
    unreadable,
)
from slm_ray.scoring.scorer import Scorer

__all__ = [
    "SCORERS", "Answered", "Scorer", "check", "form_metrics", "metrics", "row_metrics", "score", "score_all", "score_rows", "scorers", "summarise", "unreadable",
]  # fmt: skip
