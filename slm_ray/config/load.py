"""Settings of the job that measures latency against the rate of arrivals."""

from __future__ import annotations

from pydantic import Field, model_validator

from slm_ray.config.shared import Calls, Priced, ServingMachine
from slm_ray.config.words import AskedRows

FEWEST = 20  # requests of a rate: p95 of fewer is none


class LoadConfig(Priced, Calls, AskedRows):
    """Requests that arrive at given rates, whatever becomes of them. `generation.seed` draws the arrivals too."""

    rates: tuple[float, ...] = Field((1.0, 2.0, 4.0, 8.0), min_length=1, description="requests per second")
    duration_s: float = Field(30.0, gt=0, description="how long requests arrive at each rate")
    p95_s: float = Field(2.0, gt=0, description="the most requests/s are looked for whose p95 is this at most")
    cost: ServingMachine = ServingMachine()

    @model_validator(mode="after")
    def _enough_requests(self) -> LoadConfig:
        for rate in self.rates:
            if not rate * self.duration_s >= FEWEST:
                raise ValueError(
                    f"rates: {rate:g} requests/s for duration_s {self.duration_s:g} are {rate * self.duration_s:g} requests,"
                    f" and p95 needs {FEWEST}; raise duration_s to {FEWEST / rate:g}" if rate > 0 else
                    f"rates: {rate:g} is no rate; give requests per second above 0"
                )  # fmt: skip
        return self
