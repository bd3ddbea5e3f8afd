"""Anything that turns a prompt into a completion, opened by a spec of one line (see `open`)."""

from slm_ray.providers.open import KINDS, address, check_spec, identity, needed_environment, open_model, split_spec

__all__ = ["KINDS", "address", "check_spec", "identity", "needed_environment", "open_model", "split_spec"]
