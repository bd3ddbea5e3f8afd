"""The kinds of models: one class each, made by `parse` of a spec, that answers for everything its kind decides."""

from slm_ray.providers.limiter import RateLimiter, Unlimited
from slm_ray.providers.provider import Provider, TrainingRows
from slm_ray.providers.spec import PROVIDERS, ModelSpec, parse

__all__ = ["PROVIDERS", "ModelSpec", "Provider", "RateLimiter", "TrainingRows", "Unlimited", "parse"]
