"""`fake:echo` repeats the last user turn, `fake:TEXT` always says TEXT: a model that needs no machine.

For dry runs, smoke tests and baselines ("what does a constant answer score?"). Deterministic: token counts are words and
the latency is zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from slm_ray.config import Generation
from slm_ray.errors import ConfigError
from slm_ray.providers.limiter import RateLimiter
from slm_ray.providers.provider import Provider, identity_of
from slm_ray.types import Completion, Model, ModelFacts, Prompt, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Fake(Provider):
    """What it says."""

    kind = "fake"
    example = "echo"

    text: str

    @classmethod
    def parse(cls, rest: str) -> Self:
        """`echo` or any text."""
        if not rest.strip():
            raise ConfigError(f"model spec 'fake:{rest}' names nothing; write fake:{cls.example}")
        return cls(spec=f"fake:{rest}", text=rest)

    def open(
        self, *, endpoint: str, generation: Generation, environment: Mapping[str, str],
        limiter: RateLimiter | None = None,
    ) -> Model:  # fmt: skip
        """The model; nothing limits it."""
        return FakeModel(spec=self.spec, text=self.text)

    def identity(self, *, endpoint: str, environment: Mapping[str, str]) -> str:
        """Its text."""
        return identity_of(kind=self.kind, text=self.text)

    def facts(self, *, endpoint: str, environment: Mapping[str, str]) -> ModelFacts:
        """Nobody is asked and nobody bills."""
        return ModelFacts(spec=self.spec, kind=self.kind, model=None, host=None, billing="none")


class FakeModel:
    """Answers at once, always the same to the same prompt."""

    def __init__(self, *, spec: str, text: str) -> None:
        self.spec = spec
        self._text = text

    async def complete(self, example_id: str, prompt: Prompt) -> Completion:
        """The fixed text, or the last turn."""
        text = prompt.messages[-1].content if self._text == "echo" else self._text
        words = sum(len(message.content.split()) for message in prompt.messages)
        usage = Usage(prompt_tokens=words, completion_tokens=len(text.split()))
        return Completion(text=text, latency_s=0.0, usage=usage, served_by=self.spec)

    async def close(self) -> None:
        """Nothing to release."""
