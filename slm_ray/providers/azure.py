"""A deployment of Azure OpenAI (`azure:DEPLOYMENT`), or of anything that speaks its routes, such as our own endpoint.

Reads AZURE_ENDPOINT, AZURE_DEPLOYMENT, AZURE_API_KEY and AZURE_API_VERSION from the environment it is given and nothing
else; the client's own AZURE_OPENAI_* variables are never consulted.
"""

from __future__ import annotations

from collections.abc import Mapping

from slm_ray.config import Generation
from slm_ray.errors import ModelError
from slm_ray.providers.chat import ChatModel
from slm_ray.providers.http_client import AzureClient, http_client
from slm_ray.providers.pace import Gate

DEFAULT_API_VERSION = "2024-05-01-preview"
REQUIRED = ("AZURE_ENDPOINT", "AZURE_API_KEY")


class AzureModel(ChatModel):
    """One deployment; its errors name the variable to correct."""

    key_variable = "AZURE_API_KEY"

    def denied(self, status: int, message: str) -> ModelError:
        """401: the key; 403: the key's rights or the network rules of the resource."""
        if status == 401:
            return ModelError(
                f"{self.spec}: {self.url} refuses AZURE_API_KEY (HTTP 401: {message}); set AZURE_API_KEY to a key of "
                "this resource (Azure portal: Keys and Endpoint)"
            )
        return ModelError(
            f"{self.spec}: {self.url} forbids the call (HTTP {status}: {message}); "
            "allow this network and AZURE_API_KEY in the resource's settings"
        )

    async def missing(self, code: str | None, message: str) -> ModelError:
        """404: usually a deployment name that the resource does not have."""
        if code == "DeploymentNotFound":
            return ModelError(
                f"{self.spec}: DeploymentNotFound: AZURE_DEPLOYMENT {self.name!r} names no deployment of AZURE_ENDPOINT "
                f"{self.url}; it is the name given when the model was deployed, not the model's name: see Deployments "
                "in Azure AI Foundry, or `az cognitiveservices account deployment list` (a new one takes five minutes)"
            )
        return ModelError(
            f"{self.spec}: {self.url} has no such address (HTTP 404: {message}); AZURE_ENDPOINT is the resource's "
            f"address without a path, AZURE_API_VERSION one that it knows (default {DEFAULT_API_VERSION})"
        )

    def no_connection_fix(self) -> str:
        """No connection at all."""
        return "correct AZURE_ENDPOINT or the network"


def azure(spec: str, name: str, generation: Generation, environment: Mapping[str, str], gate: Gate) -> AzureModel:
    """The deployment `name` of AZURE_ENDPOINT; `check_spec` has seen to it that the variables are there."""
    url, secret = environment["AZURE_ENDPOINT"].strip().rstrip("/"), environment["AZURE_API_KEY"].strip()
    client = AzureClient(
        azure_endpoint=url, api_key=secret, api_version=api_version(environment), max_retries=0,
        http_client=http_client(url, generation.timeout_s),
    )  # fmt: skip
    return AzureModel(spec=spec, name=name, client=client, generation=generation, secret=secret, url=url, gate=gate)


def api_version(environment: Mapping[str, str]) -> str:
    """AZURE_API_VERSION or its default."""
    return environment.get("AZURE_API_VERSION", "").strip() or DEFAULT_API_VERSION
