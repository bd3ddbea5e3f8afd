"""Partial replacement, simulated: how often it accepts a share that is truly worse than the margin allows.

Rows are drawn from a population in which the SLM's confidence says as much about its answers as asked for, from nothing
to a lot, so the true difference of every mixture is known. Each run takes its thresholds from validation rows and tests
them on test rows with the code that does so for a real run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from slm_ray.verdict.partial_replacement import partial_replacement
from slm_ray.verdict.routing import Routed, mixture


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """The LLM is right on a share of rows; the SLM's chance rises from `worst` to `best` with its confidence."""

    llm: float
    worst: float
    best: float

    def draw(self, chance: np.random.Generator, n: int) -> list[Routed]:
        """`n` rows; confidence is uniform in [0, 1]."""
        confidence = chance.random(n)
        small = chance.random(n) < self.worst + (self.best - self.worst) * confidence
        large = chance.random(n) < self.llm
        return [
            Routed(confidence=float(s), llm=float(a), slm=float(b))
            for s, a, b in zip(confidence, large, small, strict=True)
        ]

    def difference(self, threshold: float) -> float:
        """The true mean difference to the LLM of the mixture in which the SLM takes all rows from `threshold` on."""
        gap, slope = self.worst - self.llm, self.best - self.worst
        return gap * (1 - threshold) + slope * (1 - threshold**2) / 2

    def possible(self, delta: float) -> float:
        """The largest share whose true difference is above -`delta`, to a thousandth."""
        return max(share / 1000 for share in range(1001) if self.difference(1 - share / 1000) > -delta)


CASES = {
    "nothing": Population(llm=0.85, worst=0.6, best=0.6),
    "something": Population(llm=0.85, worst=0.5, best=1.0),
    "a lot": Population(llm=0.85, worst=0.0, best=1.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Partial:
    """Shares of runs: accepted at all, accepted though truly worse than the margin.

    `at_the_edge` is the share of test draws that would accept a mixture that is worse by exactly the margin, the hardest
    one to refuse. `mean_share` is what runs accepted on average, `possible` the most that would be right.
    """

    accepted: float
    wrongly_accepted: float
    at_the_edge: float
    mean_share: float
    possible: float


def partials(population: Population, rows: tuple[int, int], delta: float, *, runs: int, seed: int) -> Partial:
    """`rows` are validation and test rows of each run; `delta` is at most what the SLM trails by on all rows."""
    chance = np.random.default_rng((seed, *rows, round(1e6 * (population.worst + 2 * population.best))))
    shares: list[float] = []
    wrong: list[bool] = []
    edge, passed = 1 - population.possible(delta), 0
    for at in range(runs):
        found = partial_replacement(
            (population.draw(chance, rows[0]), "confidence"), (population.draw(chance, rows[1]), "confidence"),
            primary="right", delta=delta, resamples=99, seed=at,
        )  # fmt: skip
        shares.append(found.share)
        on_edge = mixture(population.draw(chance, rows[1]), edge, resamples=99, seed=at)
        passed += on_edge.passes(delta)
        wrong.append(found.threshold is not None and population.difference(found.threshold) <= -delta)
    false = sum(bad and share > 0 for bad, share in zip(wrong, shares, strict=True))
    return Partial(
        accepted=sum(share > 0 for share in shares) / runs,
        wrongly_accepted=false / runs,
        at_the_edge=passed / runs,
        mean_share=sum(shares) / runs,
        possible=population.possible(delta),
    )
