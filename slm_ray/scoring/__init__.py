"""Text against text: what an answer is worth. Pure functions; no disk, clock, network or models."""

from slm_ray.scoring.run import SCORERS, Scorer, metrics, score, scorers, summarise

__all__ = ["SCORERS", "Scorer", "metrics", "score", "scorers", "summarise"]
