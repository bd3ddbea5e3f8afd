"""Settings of the job that serves the front of a roll-out."""

from __future__ import annotations

from pydantic import Field

from slm_ray.config.shared import Priced, Serving
from slm_ray.config.traffic import Traffic
from slm_ray.config.words import Pair, RoutesDir, Tracked


class RolloutRoute(Tracked, Pair):
    """One name that clients send as `model`, and the two models behind it. What is not set stays as it is."""

    verdict: str | None = Field(None, description="run directory or comparison.json of slm-ray compare")
    audit_share: float | None = Field(
        None, ge=0, le=1, description="of the requests, how many both sides are asked; 0.1"
    )
    timeout_s: float | None = Field(None, gt=0, description="how long the SLM may take before the LLM is asked; 10")


class RolloutConfig(Priced, RoutesDir):
    """The front, and the endpoint beside it where a route asks a served model, until Ctrl-C."""

    serving: Serving = Serving()
    routes: dict[str, RolloutRoute] = Field({}, description="by name; further ones by `slm-ray routes`")
    traffic: Traffic = Traffic()
