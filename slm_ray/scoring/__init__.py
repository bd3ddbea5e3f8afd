"""Text against text: what an answer is worth. Pure functions; no disk, clock, network or models."""

from slm_ray.scoring.run import SCORERS, check, metrics, score, scorers, summarise
from slm_ray.scoring.scorer import Scorer

__all__ = ["SCORERS", "Scorer", "check", "metrics", "score", "scorers", "summarise"]
