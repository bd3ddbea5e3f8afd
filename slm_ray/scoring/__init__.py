"""Text against text: what an answer is worth. Pure functions; no disk, clock, network or models."""

from slm_ray.scoring.run import METRICS, SCORERS, scorer, summarise

__all__ = ["METRICS", "SCORERS", "scorer", "summarise"]
