"""The same rows to every model, at the same time, scored by the same code: `evaluate(config)` gives the report."""

from slm_ray.evaluation.run import evaluate

__all__ = ["evaluate"]
