"""One question to one model, outside any run: what it is shown, what it says and what that scores.

Any track and any arm, demonstrations and baselines included. Nothing is kept: no log, no report.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from slm_ray.config import InferConfig
from slm_ray.corpus.render import prompt_of
from slm_ray.corpus.tracks import Track
from slm_ray.errors import ConfigError
from slm_ray.evaluation.few_shot import open_demonstrations
from slm_ray.providers import Provider, parse
from slm_ray.scoring import score
from slm_ray.tasks import open_dataset, open_track
from slm_ray.types import Completion, Example, Prompt, RowScore

_NO_REFERENCE = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inference:
    """A question, ready to be asked. `reference` is None where there is nothing to score against."""

    track: Track
    example_id: str
    prompt: Prompt
    reference: str | None
    provider: Provider

    def ask(self, config: InferConfig, environment: Mapping[str, str]) -> Completion:
        """The model's answer; failures of the call are data, a broken configuration raises."""
        return asyncio.run(self._ask(config, environment))

    def score(self, answer: Completion) -> RowScore | None:
        """The row's scores, where there is a reference."""
        return None if self.reference is None else score(self.track, self.example_id, answer.text, self.reference)

    async def _ask(self, config: InferConfig, environment: Mapping[str, str]) -> Completion:
        model = self.provider.open(endpoint=config.endpoint, generation=config.generation, environment=environment)
        try:
            return await model.complete(self.example_id, self.prompt)
        finally:
            await model.close()


def prepare(config: InferConfig, environment: Mapping[str, str]) -> Inference:
    """Read what there is to read and check the model; raises the one line that says what is missing."""
    model = parse(config.model)
    model.provider.check(environment)
    track = open_track(config.track, beside=config.examples or None)
    row = _row(config, track)
    shown = open_demonstrations(config.demonstrations, [model], config.track, [row], retriever=config.retriever)
    return Inference(
        track=track, example_id=row.id,
        prompt=(shown.prompts([row], model.demonstrations) if shown else {}).get(row.id, row.prompt),
        reference=row.target if config.examples and config.target is None else config.target,
        provider=model.provider.bind([row], shown.files if shown else None),
    )  # fmt: skip


def _row(config: InferConfig, track: Track) -> Example:
    if not config.examples:
        if config.text is None:
            raise ConfigError("text is not set; give the user's turn, or examples and the id of an example in it")
        return Example(id="infer", prompt=prompt_of(track, config.text), target=_NO_REFERENCE)
    dataset = open_dataset(config.examples, config.track)
    return dataset.examples[0] if config.example is None else dataset.example(config.example)
