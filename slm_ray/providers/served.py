"""`served:BASE` or `served:BASE:ADAPTER`: a model of our own endpoint, whose address is a setting of the run.

The endpoint's key (`slm_ray.api_key`) is sent when it is set. Its machine is paid for, not its tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from slm_ray.api_key import KEY_FILE_NAME, KEY_NAME, api_key
from slm_ray.costs.data_residency import host_of
from slm_ray.errors import ConfigError, ModelError
from slm_ray.providers.provider import ChatAddress, ChatProvider, check_url
from slm_ray.types import ModelFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Served(ChatProvider):
    """A base, or an adapter on it."""

    kind = "served"
    example = "MODEL"
    environment_names = (KEY_NAME, KEY_FILE_NAME)
    key_variable = KEY_NAME

    name: str

    @classmethod
    def parse(cls, rest: str) -> Self:
        """`BASE` or `BASE:ADAPTER`."""
        base, colon, adapter = rest.partition(":")
        if not base.strip() or (colon and not adapter.strip()):
            raise ConfigError(f"model spec 'served:{rest}' lacks a name; write served:BASE or served:BASE:ADAPTER")
        return cls(spec=f"served:{rest}", name=rest, adapter=adapter or None)

    def url(self, *, endpoint: str, environment: Mapping[str, str]) -> str:
        """The endpoint's API, with or without /v1 in the setting; it is written down, so that it may hold no password."""
        check_url(self.spec, "endpoint", endpoint)
        return f"{endpoint.rstrip('/').removesuffix('/v1')}/v1"

    def model(self, environment: Mapping[str, str]) -> str:
        """BASE or BASE:ADAPTER."""
        return self.name

    def address(self, *, endpoint: str, environment: Mapping[str, str]) -> ChatAddress:
        """As OpenAI's API has it; the key may be in a file."""
        return ChatAddress(url=self.url(endpoint=endpoint, environment=environment), secret=api_key(environment))

    def facts(self, *, endpoint: str, environment: Mapping[str, str]) -> ModelFacts:
        """A machine of one's own, wherever it stands; no price list knows it."""
        return ModelFacts(
            spec=self.spec, kind=self.kind, model=None, host=host_of(endpoint), billing="machine", adapter=self.adapter
        )

    def key_refused(self, url: str, status: int, message: str) -> ModelError:
        """Our endpoint has one key."""
        return ModelError(
            f"{self.spec}: {url} refuses the key (HTTP {status}: {message}); "
            "set SLM_RAY_API_KEY to the key that the endpoint was started with"
        )
