"""`azure:DEPLOYMENT` or `azure:`: a deployment of Azure OpenAI, or of anything that speaks its routes, as our endpoint does.

Reads AZURE_ENDPOINT, AZURE_DEPLOYMENT (where the spec names none), AZURE_API_KEY and AZURE_API_VERSION and nothing else;
the client's own AZURE_OPENAI_* variables are never consulted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from slm_ray.costs.data_residency import host_of
from slm_ray.errors import ModelError
from slm_ray.providers.provider import ChatAddress, ChatProvider, check_url, require
from slm_ray.types import ModelFacts

DEFAULT_API_VERSION = "2024-05-01-preview"


@dataclass(frozen=True, slots=True, kw_only=True)
class Azure(ChatProvider):
    """One deployment; its errors name the variable to correct."""

    kind = "azure"
    example = "DEPLOYMENT"
    environment_names = ("AZURE_ENDPOINT", "AZURE_DEPLOYMENT", "AZURE_API_KEY", "AZURE_API_VERSION")
    key_variable = "AZURE_API_KEY"

    deployment: str | None = None

    @classmethod
    def parse(cls, rest: str) -> Self:
        """A deployment; empty takes AZURE_DEPLOYMENT."""
        return cls(spec=f"azure:{rest}", deployment=rest.strip() or None)

    def check(self, environment: Mapping[str, str]) -> None:
        """The variables."""
        names = ["AZURE_ENDPOINT", "AZURE_API_KEY"] + ([] if self.deployment else ["AZURE_DEPLOYMENT"])
        require(self.spec, names, environment)
        check_url(self.spec, "AZURE_ENDPOINT", environment["AZURE_ENDPOINT"].strip())

    def url(self, *, endpoint: str, environment: Mapping[str, str]) -> str:
        """The resource."""
        return environment["AZURE_ENDPOINT"].strip().rstrip("/")

    def model(self, environment: Mapping[str, str]) -> str:
        """The deployment."""
        return self.deployment or environment["AZURE_DEPLOYMENT"].strip()

    def rate_limit_key(self, *, endpoint: str, environment: Mapping[str, str]) -> str | None:
        """Each deployment has a quota of its own."""
        return f"{self.url(endpoint=endpoint, environment=environment)}/{self.model(environment)}"

    def address(self, *, endpoint: str, environment: Mapping[str, str]) -> ChatAddress:
        """The resource, the deployment and the version of the API."""
        return ChatAddress(
            url=self.url(endpoint=endpoint, environment=environment),
            secret=environment[self.key_variable].strip(),
            deployment=self.model(environment),
            api_version=environment.get("AZURE_API_VERSION", "").strip() or DEFAULT_API_VERSION,
        )

    def facts(self, *, endpoint: str, environment: Mapping[str, str]) -> ModelFacts:
        """Tokens are billed; a deployment is often, and need not be, named as its model."""
        return ModelFacts(
            spec=self.spec, kind=self.kind, model=self.model(environment), billing="tokens",
            host=host_of(self.url(endpoint=endpoint, environment=environment)),
        )  # fmt: skip

    def key_refused(self, url: str, status: int, message: str) -> ModelError:
        """401: the key; 403: the key's rights or the network rules of the resource."""
        if status == 401:
            return ModelError(
                f"{self.spec}: {url} refuses AZURE_API_KEY (HTTP 401: {message}); set AZURE_API_KEY to a key of "
                "this resource (Azure portal: Keys and Endpoint)"
            )
        return ModelError(
            f"{self.spec}: {url} forbids the call (HTTP {status}: {message}); "
            "allow this network and AZURE_API_KEY in the resource's settings"
        )

    def not_found(self, url: str, model: str, code: str | None, message: str, known: str) -> ModelError:
        """404: usually a deployment name that the resource does not have."""
        if code == "DeploymentNotFound":
            return ModelError(
                f"{self.spec}: DeploymentNotFound: AZURE_DEPLOYMENT {model!r} names no deployment of AZURE_ENDPOINT "
                f"{url}; it is the name given when the model was deployed, not the model's name: see Deployments "
                "in Azure AI Foundry, or `az cognitiveservices account deployment list` (a new one takes five minutes)"
            )
        return ModelError(
            f"{self.spec}: {url} has no such address (HTTP 404: {message}); AZURE_ENDPOINT is the resource's "
            f"address without a path, AZURE_API_VERSION one that it knows (default {DEFAULT_API_VERSION})"
        )

    def unreachable_fix(self) -> str:
        """No connection at all."""
        return "correct AZURE_ENDPOINT or the network"
