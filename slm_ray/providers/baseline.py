"""Baselines that read training rows and understand nothing: what an answer that costs nothing would score.

`trivial:majority` always gives the commonest training answer, `trivial:nearest` the answer of the training row whose
question is most like the one asked, by words. Deterministic; every answer is signed with its spec. A model that does not
beat them has learnt nothing of the task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote, unquote

from slm_ray.corpus.retrieve import Retriever
from slm_ray.errors import ConfigError, choices
from slm_ray.tasks import open_dataset
from slm_ray.types import Completion, Example, Prompt, Usage

BASELINES = ("majority", "nearest")


class TrivialModel:
    """A baseline over a pool of training rows."""

    def __init__(self, *, which: str, pool: Sequence[Example]) -> None:
        self.spec = f"trivial:{which}"
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


def check(rest: str) -> None:
    """ConfigError when the spec names no baseline."""
    which = rest.partition("@")[0]
    if which not in BASELINES:
        raise ConfigError(f"model spec 'trivial:{which}': {choices(which, BASELINES)}")


def with_pool(spec: str, track: str, path: str | Path) -> str:
    """The spec by which a worker opens the baseline: it also says where the rows are and what they mean."""
    return f"{spec}@{quote(track, safe='')}@{quote(str(path), safe='')}"


def opened(rest: str) -> TrivialModel:
    """The baseline behind `WHICH@TRACK@PATH` (quoted as in a URL); ConfigError without rows to read."""
    which, *where = rest.split("@")
    if len(where) != 2:
        raise ConfigError(f"trivial:{which} needs training rows; set demonstrations to their JSONL")
    track, path = map(unquote, where)
    return TrivialModel(which=which, pool=open_dataset(path, track).examples)
