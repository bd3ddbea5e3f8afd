"""`openai:MODEL` at OpenAI, or `openai:MODEL@BASE_URL` at any endpoint that speaks its API, with OPENAI_API_KEY.

A base URL begins at `@http`, so that names with an @ in them (`claude-3-5-sonnet@20240620`) stay whole. Tokens are billed,
except where the URL is of this machine or this network: then the machine is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from slm_ray.costs.data_residency import host_of, on_premise
from slm_ray.errors import ConfigError
from slm_ray.providers.provider import ChatProvider, check_url, require
from slm_ray.types import Billing, ModelFacts

OPENAI_URL = "https://api.openai.com/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAI(ChatProvider):
    """A model of an OpenAI-compatible provider."""

    kind = "openai"
    example = "MODEL@https://HOST/v1"
    environment_names = ("OPENAI_API_KEY",)
    key_variable = "OPENAI_API_KEY"

    name: str
    base_url: str = OPENAI_URL

    @classmethod
    def parse(cls, rest: str) -> Self:
        """`MODEL` or `MODEL@BASE_URL`; ConfigError for a URL that lacks http(s), which would go to OpenAI as a name."""
        name, at, tail = rest.partition("@http")
        spec, base_url = f"openai:{rest}", f"http{tail}".rstrip("/") if at else OPENAI_URL
        if not name.strip():
            raise ConfigError(f"model spec {spec!r} names nothing; write openai:{cls.example}")
        if set(name.partition("@")[2]) & set("/:"):
            raise ConfigError(
                f"model spec {spec!r}: what follows the @ looks like an address; write MODEL@https://HOST/v1"
            )
        check_url(spec, "its address", base_url)
        return cls(spec=spec, name=name, base_url=base_url)

    def check(self, environment: Mapping[str, str]) -> None:
        """The key."""
        require(self.spec, ["OPENAI_API_KEY"], environment)

    def url(self, *, endpoint: str, environment: Mapping[str, str]) -> str:
        """The base URL of the spec."""
        return self.base_url

    def model(self, environment: Mapping[str, str]) -> str:
        """The name of the spec."""
        return self.name

    def facts(self, *, endpoint: str, environment: Mapping[str, str]) -> ModelFacts:
        """Tokens are billed, or a machine of one's own is."""
        host = host_of(self.base_url)
        billing: Billing = "machine" if on_premise(host) else "tokens"
        return ModelFacts(spec=self.spec, kind=self.kind, model=self.name, host=host, billing=billing)
