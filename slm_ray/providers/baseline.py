"""`baseline:majority` and `baseline:nearest`: models that read training rows and understand nothing.

They show what an answer that costs nothing would score. `majority` always gives the commonest training answer, `nearest`
the answer of the training row whose question is most like the one asked, by words. Deterministic; every answer is signed with its spec. A model that does not
beat them has learnt nothing of the task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from slm_ray.config import Generation
from slm_ray.corpus.retrieve import Retriever
from slm_ray.errors import ConfigError, choices
from slm_ray.providers.limiter import RateLimiter
from slm_ray.providers.provider import Provider, TrainingRows, identity_of
from slm_ray.storage import file_digest
from slm_ray.tasks import open_dataset
from slm_ray.types import Completion, Example, Model, ModelFacts, Prompt, Usage

BASELINES = ("majority", "nearest")


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline(Provider):
    """Which baseline, and, once it is bound, of which training rows."""

    kind = "baseline"
    example = "majority"
    reads_prompts = False
    reads_training_rows = True

    which: str
    rows: TrainingRows | None = None

    @classmethod
    def parse(cls, rest: str) -> Self:
        """`majority` or `nearest`."""
        if rest not in BASELINES:
            raise ConfigError(f"model spec 'baseline:{rest}': {choices(rest, BASELINES)}")
        return cls(spec=f"baseline:{rest}", which=rest)

    def bind(self, examples: Sequence[Example], training_rows: TrainingRows | None) -> Provider:
        """Over these rows."""
        bound = replace(self, rows=training_rows)
        bound._training_rows()
        return bound

    def open(
        self, *, endpoint: str, generation: Generation, environment: Mapping[str, str],
        limiter: RateLimiter | None = None,
    ) -> Model:  # fmt: skip
        """The model, its rows read; nothing limits it."""
        rows = self._training_rows()
        pool = open_dataset(rows.path, rows.track).examples
        return BaselineModel(which=self.which, pool=pool)

    def identity(self, *, endpoint: str, environment: Mapping[str, str]) -> str:
        """Which it is and what its rows hold."""
        return identity_of(kind=self.kind, which=self.which, rows=file_digest(self._training_rows().path))

    def facts(self, *, endpoint: str, environment: Mapping[str, str]) -> ModelFacts:
        """Nobody is asked and nobody bills."""
        return ModelFacts(spec=self.spec, kind=self.kind, model=None, host=None, billing="none")

    def _training_rows(self) -> TrainingRows:
        if self.rows is None:
            raise ConfigError(f"{self.spec} needs training rows; set demonstrations to their JSONL")
        return self.rows


class BaselineModel:
    """A baseline over a pool of training rows."""

    def __init__(self, *, which: str, pool: Sequence[Example]) -> None:
        self.spec = f"baseline:{which}"
        counts = Counter(row.target for row in pool)
        self._commonest = min(counts, key=lambda answer: (-counts[answer], answer))
        self._retriever = Retriever(pool) if which == "nearest" else None

    async def complete(self, example_id: str, prompt: Prompt) -> Completion:
        """The baseline's answer; the commonest one where no other row is left to be near."""
        near = self._retriever.nearest(prompt.messages[-1].content, 1) if self._retriever else []
        text = near[0].target if near else self._commonest
        return Completion(text=text, latency_s=0.0, usage=Usage(), served_by=self.spec)

    async def close(self) -> None:
        """Nothing to release."""
