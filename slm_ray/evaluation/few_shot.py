"""What a model spec asks for beside the model: `+Kshot` demonstrations, and the training rows that they come from.

The `K` training rows most like a question stand in front of it as chat turns, the most similar one next to it. A training
row that asks what a row of the evaluation asks is never shown, whoever's row it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from slm_ray.corpus.leakage import question_hash, question_hashes
from slm_ray.corpus.retrieve import Retriever, with_demonstrations
from slm_ray.errors import ConfigError
from slm_ray.providers import split_spec
from slm_ray.providers.baseline import with_pool
from slm_ray.tasks import open_dataset
from slm_ray.types import Example, Prompt

_SHOTS = re.compile(r"(?P<bare>.+)\+(?P<k>[1-9]\d?)shot", re.DOTALL)
_FIXED = ("recorded", "trivial")


def split_shots(spec: str) -> tuple[str, int]:
    """(the model's own spec, demonstrations): `azure:gpt-4o+3shot` is (`azure:gpt-4o`, 3)."""
    found = _SHOTS.fullmatch(spec)
    if not found:
        return spec, 0
    if split_spec(spec)[0] in _FIXED:
        raise ConfigError(f"{spec}: its answers do not depend on the prompt; leave +{found['k']}shot away")
    return found["bare"], int(found["k"])


def needs_rows(spec: str) -> bool:
    """Whether an arm reads training rows."""
    return split_shots(spec)[1] > 0 or split_spec(spec)[0] == "trivial"


class Shots:
    """The training rows of an evaluation, without those that it asks itself; `left_out` counts these."""

    def __init__(self, path: str, track: str, asked: Sequence[Example]) -> None:
        self.path = path
        self._track = track
        rows = open_dataset(path, track).examples
        taken = question_hashes(asked)
        self.rows = [row for row in rows if question_hash(row) not in taken]
        self.left_out = len(rows) - len(self.rows)
        if not self.rows:
            raise ConfigError(f"{path}: all {len(rows)} rows are rows of the evaluation; give the training rows")
        self._retriever: Retriever | None = None
        self._near: dict[tuple[str, int], list[Example]] = {}

    def prompt(self, prompt: Prompt, k: int) -> Prompt:
        """`prompt` behind its `k` demonstrations."""
        if self._retriever is None:
            self._retriever = Retriever(self.rows)
        question = prompt.messages[-1].content
        near = self._near.get((question, k))
        if near is None:
            near = self._near[question, k] = self._retriever.nearest(question, k)
        return with_demonstrations(prompt, near[::-1])

    def opens(self, spec: str) -> str:
        """How a worker opens a `trivial:` arm: files by absolute path, because its current folder is another one."""
        track = str(Path(self._track).absolute()) if Path(self._track).suffix in (".yaml", ".yml") else self._track
        return with_pool(spec, track, Path(self.path).absolute())


def open_shots(path: str | None, specs: Sequence[str], track: str, asked: Sequence[Example]) -> Shots | None:
    """The training rows where one of the specs needs them; ConfigError when it does and no file is named."""
    needing = [spec for spec in specs if needs_rows(spec)]
    if not needing:
        return None
    if path is None:
        raise ConfigError(f"{needing[0]} takes training rows; set demonstrations to their JSONL")
    return Shots(path, track, asked)
