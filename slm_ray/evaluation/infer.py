"""One question to one model, outside any run: what it is shown, what it says, what a scorer reads and what that scores.

Any track and any arm, demonstrations and baselines included. Nothing is kept: no ledger, no report.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass

from slm_ray.config import InferConfig
from slm_ray.corpus.render import prompt_of
from slm_ray.corpus.tracks import Track
from slm_ray.errors import ConfigError
from slm_ray.evaluation.few_shot import open_shots, split_shots
from slm_ray.providers import check_spec, open_model, split_spec
from slm_ray.scoring import hermes, numeric, score, toolcall
from slm_ray.scoring.strip import strip
from slm_ray.tasks import open_dataset, open_track
from slm_ray.types import Completion, Example, Prompt, RowScore

_NO_REFERENCE = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Once:
    """A question, ready to be asked. `reference` is None where there is nothing to score against."""

    track: Track
    example_id: str
    prompt: Prompt
    reference: str | None
    opens: str

    def ask(self, config: InferConfig, environment: Mapping[str, str]) -> Completion:
        """The model's answer; failures of the call are data, a broken configuration raises."""
        return asyncio.run(self._ask(config, environment))

    def score(self, answer: Completion) -> RowScore | None:
        """The row's scores, where there is a reference."""
        return None if self.reference is None else score(self.track, self.example_id, answer.text, self.reference)

    async def _ask(self, config: InferConfig, environment: Mapping[str, str]) -> Completion:
        model = open_model(self.opens, endpoint=config.endpoint, generation=config.generation, environment=environment)
        try:
            return await model.complete(self.example_id, self.prompt)
        finally:
            await model.close()


def prepare(config: InferConfig, environment: Mapping[str, str]) -> Once:
    """Read what there is to read and check the model; raises the one line that says what is missing."""
    bare, k = split_shots(config.model)
    check_spec(bare, environment)
    track = open_track(config.track, beside=config.examples)
    row = _row(config, track)
    shots = open_shots(config.demonstrations, [config.model], config.track, [row])
    return Once(
        track=track, example_id=row.id, prompt=shots.prompt(row.prompt, k) if shots and k else row.prompt,
        reference=row.target if config.examples and config.target is None else config.target,
        opens=shots.opens(bare) if shots and split_spec(bare)[0] == "trivial" else bare,
    )  # fmt: skip


def parsed(track: Track, text: str | None) -> str:
    """The answer as the track's scorers read it, in one line; `unreadable` where they find nothing in it."""
    stripped, notes = strip(text, track.strip)
    readers = {"toolcall": toolcall.read_call, "hermes": hermes.read_call, "gsm8k": _number, "structured": _json}
    read = next((readers[name] for name in track.scorers if name in readers), None)
    found = read(stripped) if read else stripped
    shown = "unreadable" if found is None else str(found)
    return f"{shown} ({', '.join(notes)})" if notes else shown


def _row(config: InferConfig, track: Track) -> Example:
    if config.examples is None:
        if config.text is None:
            raise ConfigError("text is not set; give the user's turn, or examples and the id of an example in it")
        return Example(id="infer", prompt=prompt_of(track, config.text), target=_NO_REFERENCE)
    dataset = open_dataset(config.examples, config.track)
    return dataset.examples[0] if config.example is None else dataset.example(config.example)


def _number(text: str | None) -> str | None:
    number = numeric.final_number(text)
    return None if number is None else numeric.written(number)


def _json(text: str | None) -> str | None:
    try:
        return json.dumps(json.loads(text or ""), ensure_ascii=False, sort_keys=True)
    except (json.JSONDecodeError, RecursionError):
        return None
