"""Load: requests that arrive whether or not earlier ones are answered, and what that does to latency, model by model."""

from slm_ray.load.run import measure
from slm_ray.load.table import summary

__all__ = ["measure", "summary"]
