"""From a spec to a model: `KIND:REST` or `KIND:REST+Kshot`, read here and nowhere else.

served:BASE[:ADAPTER]   our endpoint (SLM_RAY_API_KEY if it wants one)
azure:DEPLOYMENT        Azure OpenAI; empty takes AZURE_DEPLOYMENT
openai:MODEL@BASE_URL   any OpenAI-compatible endpoint; without @BASE_URL, OpenAI's own
recorded:PATH           answers recorded earlier
fake:TEXT               always TEXT; fake:echo repeats the question
baseline:WHICH          reads training rows: majority (their commonest answer) or nearest

`+Kshot` puts the K training rows most like a question in front of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from slm_ray.errors import ConfigError, choices
from slm_ray.providers.azure import Azure
from slm_ray.providers.baseline import Baseline
from slm_ray.providers.fake import Fake
from slm_ray.providers.openai import OpenAI
from slm_ray.providers.provider import Provider
from slm_ray.providers.recorded import Recorded
from slm_ray.providers.served import Served
from slm_ray.types import ModelFacts

PROVIDERS: dict[str, type[Provider]] = {
    "served": Served,
    "azure": Azure,
    "openai": OpenAI,
    "recorded": Recorded,
    "fake": Fake,
    "baseline": Baseline,
}
_DEMONSTRATIONS = re.compile(r"(?P<model>.+)\+(?P<count>[1-9]\d?)shot", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """An arm: `spec` is its name as it was given, `provider` the model, `demonstrations` how many it is shown."""

    spec: str
    provider: Provider
    demonstrations: int = 0

    @property
    def needs_training_rows(self) -> bool:
        """Whether the model, or what it is shown, is made of training rows."""
        return self.demonstrations > 0 or self.provider.reads_training_rows

    def facts(self, *, endpoint: str, environment: Mapping[str, str]) -> ModelFacts:
        """The provider's facts, under the arm's own name."""
        facts = self.provider.facts(endpoint=endpoint, environment=environment)
        return replace(facts, spec=self.spec, demonstrations=self.demonstrations)


def parse(spec: str) -> ModelSpec:
    """What a spec names; ConfigError, with the known kinds or the form of the kind, where it names nothing."""
    shots = _DEMONSTRATIONS.fullmatch(spec)
    kind, colon, rest = (shots["model"] if shots else spec).partition(":")
    if kind not in PROVIDERS:
        raise ConfigError(f"unknown kind of model in {spec!r}: {choices(kind, PROVIDERS)}; write KIND:NAME")
    if not colon:
        raise ConfigError(f"model spec {spec!r} has no colon; write {kind}:{PROVIDERS[kind].example}")
    provider = PROVIDERS[kind].parse(rest)
    if shots and not provider.reads_prompts:
        raise ConfigError(f"{spec}: its answers do not depend on the prompt; leave +{shots['count']}shot away")
    return ModelSpec(spec=spec, provider=provider, demonstrations=int(shots["count"]) if shots else 0)
