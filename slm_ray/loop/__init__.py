"""The whole question as one resumable run, and the page it leaves behind."""

from slm_ray.loop.run import loop

__all__ = ["loop"]
