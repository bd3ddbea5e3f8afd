"""From a spec to a model: `KIND:REST`, one visible list of kinds, checked in full before any call is made.

served:NAME           our endpoint (SLM_RAY_API_KEY if it wants one); an adapter is BASE:ADAPTER
azure:DEPLOYMENT      Azure OpenAI; empty takes AZURE_DEPLOYMENT
openai:MODEL@BASE_URL any OpenAI-compatible endpoint; without @BASE_URL, OpenAI's own
recorded:PATH         answers recorded earlier
fake:TEXT             always TEXT; fake:echo repeats the question
trivial:WHICH         a baseline that reads training rows: majority (their commonest answer) or nearest

The environment is always handed in: nothing here reads the process's own. Each kind reads only what `needed_environment` names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from slm_ray.config import Generation
from slm_ray.errors import ConfigError, DataError, ModelError, choices
from slm_ray.providers.pace import Gate
from slm_ray.storage import file_digest
from slm_ray.types import Model

KINDS = ("served", "azure", "openai", "recorded", "fake", "trivial")
OPENAI_URL = "https://api.openai.com/v1"
_ENVIRONMENT = {
    "served": ("SLM_RAY_API_KEY",),
    "azure": ("AZURE_ENDPOINT", "AZURE_DEPLOYMENT", "AZURE_API_KEY", "AZURE_API_VERSION"),
    "openai": ("OPENAI_API_KEY",),
}


def split_spec(spec: str) -> tuple[str, str]:
    """(kind, rest); ConfigError with the known kinds otherwise."""
    kind, colon, rest = spec.partition(":")
    if kind not in KINDS:
        raise ConfigError(f"unknown kind of model in {spec!r}: {choices(kind, KINDS)}; write KIND:NAME")
    if not colon:
        raise ConfigError(f"model spec {spec!r} has no colon; write {kind}:NAME")
    return kind, rest


def check_spec(spec: str, environment: Mapping[str, str]) -> None:
    """One line for all that is missing, before anything starts; no call is made and no key is tried."""
    kind, rest = split_spec(spec)
    if kind != "azure" and not rest.strip():
        raise ConfigError(f"model spec {spec!r} names nothing; write {kind}:{_EXAMPLES[kind]}")
    match kind:
        case "azure":
            needed = ["AZURE_ENDPOINT", "AZURE_API_KEY"] + ([] if rest else ["AZURE_DEPLOYMENT"])
            _require(spec, needed, environment)
            _check_url(spec, "AZURE_ENDPOINT", environment["AZURE_ENDPOINT"].strip())
        case "openai":
            _check_url(spec, "its address", _openai_parts(rest)[1])
            _require(spec, ["OPENAI_API_KEY"], environment)
        case "recorded" if not Path(rest).is_file():
            raise DataError(f"{spec}: no such file; give the path of a JSONL file with a `prediction` per row")
        case "trivial":
            from slm_ray.providers.baseline import check

            check(rest)


def open_model(
    spec: str, *, endpoint: str, generation: Generation, environment: Mapping[str, str], gate: Gate | None = None
) -> Model:
    """The model behind a spec, ready to be asked. `endpoint` is where `served:` models answer; `gate` sets their pace."""
    check_spec(spec, environment)
    gate = gate or Gate()
    kind, rest = split_spec(spec)
    match kind:
        case "served":
            from slm_ray.providers.chat import (
                served,  # the client library takes a second to import: only when asked for
            )

            return served(spec, rest, endpoint, generation, environment, gate)
        case "openai":
            from slm_ray.providers.chat import elsewhere

            name, url = _openai_parts(rest)
            return elsewhere(spec, name, url, generation, environment, gate)
        case "azure":
            from slm_ray.providers.azure import azure

            return azure(spec, _deployment(rest, environment), generation, environment, gate)
        case "recorded":
            from slm_ray.providers.recorded import RecordedModel

            return RecordedModel(spec=spec, path=rest)
        case "trivial":
            from slm_ray.providers.baseline import opened

            return opened(rest)
        case _:
            from slm_ray.providers.fake import FakeModel

            return FakeModel(spec=spec, says=rest)


def identity(spec: str, *, endpoint: str, environment: Mapping[str, str]) -> str:
    """Which model a spec means here and now, without secrets: the part of a ledger key that two runs may share."""
    kind, rest = split_spec(spec)
    parts = {"kind": kind, "name": rest}
    match kind:
        case "served":
            parts["endpoint"] = endpoint.rstrip("/").removesuffix("/v1")
        case "azure":
            parts["name"] = _deployment(rest, environment)
            parts["endpoint"] = environment["AZURE_ENDPOINT"].strip().rstrip("/")
        case "openai":
            parts["name"], parts["endpoint"] = _openai_parts(rest)
        case "recorded":
            parts["name"] = file_digest(rest)
    return json.dumps(parts, sort_keys=True)


def address(spec: str, *, endpoint: str, environment: Mapping[str, str]) -> str | None:
    """Where a model's calls go, which is what limits of rate are about; None for a model that is no endpoint.

    All models of one endpoint share it, except Azure's deployments, which have a quota each.
    """
    kind, rest = split_spec(spec)
    match kind:
        case "served":
            return endpoint.rstrip("/").removesuffix("/v1")
        case "azure":
            return f"{environment['AZURE_ENDPOINT'].strip().rstrip('/')}/{_deployment(rest, environment)}"
        case "openai":
            return _openai_parts(rest)[1]
    return None


def needed_environment(spec: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The part of the environment that this model reads, so that nothing else travels to its workers."""
    names = _ENVIRONMENT.get(split_spec(spec)[0], ())
    return {name: environment[name] for name in names if name in environment}


_EXAMPLES = {
    "served": "MODEL",
    "recorded": "answers.jsonl",
    "fake": "echo",
    "trivial": "majority",
    "openai": "MODEL@https://HOST/v1",
}


def _deployment(rest: str, environment: Mapping[str, str]) -> str:
    return rest or environment["AZURE_DEPLOYMENT"].strip()


def _openai_parts(rest: str) -> tuple[str, str]:
    name, at, url = rest.partition("@http")
    return (name, f"http{url}".rstrip("/")) if at else (rest, OPENAI_URL)


def _require(spec: str, names: list[str], environment: Mapping[str, str]) -> None:
    missing = [name for name in names if not environment.get(name, "").strip()]
    if missing:
        raise ModelError(
            f"{spec} needs {' and '.join(missing)} in the environment; set {'it' if len(missing) == 1 else 'them'}"
        )


def _check_url(spec: str, what: str, url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{spec}: {what} is {url!r}; write http(s)://HOST")
    if parts.username or parts.password:
        raise ConfigError(f"{spec}: {what} holds a user name or password; put the key in the environment instead")
