"""What an evaluation is about to do, checked in full before anything starts: rows, models, ledger keys.

No call is made and nothing is written. A key holds the data, the row, the model and the body to be sent, so that a
changed setting asks again and an unchanged one never does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from slm_ray.config import EvaluateConfig
from slm_ray.corpus.read import examples as read_examples
from slm_ray.corpus.render import digest
from slm_ray.corpus.tracks import Track
from slm_ray.errors import ConfigError
from slm_ray.ledger import Ledger, finished
from slm_ray.ledger import key as ledger_key
from slm_ray.models import check_spec, identity, needed_environment, split_spec
from slm_ray.models.recorded import RecordedModel
from slm_ray.models.request import request_body
from slm_ray.storage import read_lines
from slm_ray.trackfile import open_track
from slm_ray.types import Example


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One model of the evaluation. `spec` is its name in the report, `opens` the spec to open it by on any worker."""

    spec: str
    opens: str
    environment: Mapping[str, str] = field(repr=False)
    keys: Mapping[str, str]

    def pending(self, examples: tuple[Example, ...], ledger: Ledger) -> list[Example]:
        """The examples that have no finished answer yet."""
        return [row for row in examples if not _is_finished(ledger, self.keys[row.id])]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The rows and the arms of one evaluation."""

    track: Track
    examples: tuple[Example, ...]
    arms: tuple[Arm, ...]
    digest: str


def plan(config: EvaluateConfig, environment: Mapping[str, str]) -> Plan:
    """Read the rows and check every model; raises the one line that says what is missing."""
    named = open_track(config.track, beside=config.examples)
    repeated = sorted({spec for spec in config.models if config.models.count(spec) > 1})
    if repeated:
        raise ConfigError(f"models: {', '.join(repeated)} is listed twice; list every model once")
    for spec in config.models:
        check_spec(spec, environment)
    everything = read_examples(read_lines(config.examples), name=config.examples, track=named)
    # The digest is that of the whole file: a smoke test on its first rows is the start of the full run.
    data, rows = digest(everything), tuple(everything[: config.limit])
    arms = tuple(_arm(spec, config, environment, data, rows) for spec in config.models)
    return Plan(track=named, examples=rows, arms=arms, digest=data)


def _arm(
    spec: str, config: EvaluateConfig, environment: Mapping[str, str], data: str, rows: tuple[Example, ...]
) -> Arm:
    kind, rest = split_spec(spec)
    opens = spec
    if kind == "recorded":
        opens = f"recorded:{Path(rest).absolute()}"  # a worker's current folder is another one
        RecordedModel(spec=spec, path=rest).check_covers(rows)
    who = identity(spec, endpoint=config.endpoint, environment=environment)
    keys = {row.id: ledger_key(data, row.id, who, request_body(row.prompt, config.generation)) for row in rows}
    return Arm(spec=spec, opens=opens, environment=needed_environment(spec, environment), keys=keys)


def _is_finished(ledger: Ledger, key: str) -> bool:
    completion = ledger.get(key)
    return completion is not None and finished(completion)
