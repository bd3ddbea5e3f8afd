"""A model that needs no machine: `fake:echo` repeats the last user turn, `fake:TEXT` always says TEXT.

For dry runs, smoke tests and baselines ("what does a constant answer score?"). Deterministic: token counts are words and
the latency is zero.
"""

from __future__ import annotations

from slm_ray.types import Completion, Prompt, Usage


class FakeModel:
    """Answers at once, always the same to the same prompt."""

    def __init__(self, *, spec: str, says: str) -> None:
        self.spec = spec
        self._says = says

    async def complete(self, example_id: str, prompt: Prompt) -> Completion:
        """The fixed text, or the last turn."""
        text = prompt.messages[-1].content if self._says == "echo" else self._says
        words = sum(len(message.content.split()) for message in prompt.messages)
        usage = Usage(prompt_tokens=words, completion_tokens=len(text.split()))
        return Completion(text=text, latency_s=0.0, usage=usage, served_by=self.spec)

    async def close(self) -> None:
        """Nothing to release."""
