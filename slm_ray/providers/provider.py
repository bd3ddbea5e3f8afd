"""What every kind of model answers about itself, so that nobody else reads a spec or asks which kind it is.

A provider is a frozen record made of its part of a spec: it can be compared, pickled and sent to any process. It holds no
key, opens nothing until `open`, and never reads the process's environment: the environment is always handed in. A new kind
of model is a subclass in a module of its own, and one line of `PROVIDERS`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Self
from urllib.parse import urlsplit

from slm_ray.config import Generation
from slm_ray.errors import ConfigError, ModelError
from slm_ray.providers.limiter import RateLimiter
from slm_ray.types import Example, Model, ModelFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRows:
    """A file of training rows and the track that reads them, both as any process of any folder finds them."""

    path: str
    track: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider(ABC):
    """One model of one kind. `spec` is its name everywhere: `KIND:REST`, without demonstrations.

    `adapter` is the id of the adapter that answers, None where none of ours does.
    """

    kind: ClassVar[str]
    example: ClassVar[str]  # of a REST, for errors
    environment_names: ClassVar[tuple[str, ...]] = ()  # the variables it reads: nothing else travels to its workers
    reads_prompts: ClassVar[bool] = True  # False: demonstrations in a prompt would change nothing
    reads_training_rows: ClassVar[bool] = False

    spec: str
    adapter: str | None = None

    @classmethod
    @abstractmethod
    def parse(cls, rest: str) -> Self:
        """The provider of `KIND:REST`; ConfigError when the rest is not of this kind's form."""

    def check(self, environment: Mapping[str, str]) -> None:
        """One line for all that is missing, raised before anything starts; no call is made and no key is tried."""
        return

    def bind(self, examples: Sequence[Example], training_rows: TrainingRows | None) -> Provider:
        """The same model as any process can open it, its files by absolute path.

        DataError when it can answer none of the examples, ConfigError when it lacks training rows.
        """
        return self

    @abstractmethod
    def open(
        self, *, endpoint: str, generation: Generation, environment: Mapping[str, str],
        limiter: RateLimiter | None = None,
    ) -> Model:  # fmt: skip
        """The model, ready to be asked. `endpoint` is where served models answer; `limiter` stands before every attempt."""

    @abstractmethod
    def identity(self, *, endpoint: str, environment: Mapping[str, str]) -> str:
        """Which model this is here and now, without secrets: the part of a log key that two runs may share."""

    def rate_limit_key(self, *, endpoint: str, environment: Mapping[str, str]) -> str | None:
        """What limits of rate are about: models with the same key share one limit; None for a model without any."""
        return None

    @abstractmethod
    def facts(self, *, endpoint: str, environment: Mapping[str, str]) -> ModelFacts:
        """Who bills for it, which host reads the prompts and what it is called in a price list."""

    def select(self, environment: Mapping[str, str]) -> dict[str, str]:
        """The part of the environment that it reads."""
        return {name: environment[name] for name in self.environment_names if name in environment}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatAddress:
    """Where a chat model is asked, and with which key. `deployment` and `api_version` are Azure's, None elsewhere."""

    url: str
    secret: str = field(repr=False)
    deployment: str | None = None
    api_version: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatProvider(Provider):
    """A kind of model behind a chat-completions endpoint: where it is, and what to say of the ways in which it fails."""

    key_variable: ClassVar[str]

    @abstractmethod
    def url(self, *, endpoint: str, environment: Mapping[str, str]) -> str:
        """The endpoint, as errors name it, without a slash at its end."""

    @abstractmethod
    def model(self, environment: Mapping[str, str]) -> str:
        """The model's name as the endpoint knows it."""

    def address(self, *, endpoint: str, environment: Mapping[str, str]) -> ChatAddress:
        """Where calls go and with which key: as OpenAI's API has it."""
        return ChatAddress(
            url=self.url(endpoint=endpoint, environment=environment),
            secret=environment.get(self.key_variable, "").strip(),
        )

    def open(
        self, *, endpoint: str, generation: Generation, environment: Mapping[str, str],
        limiter: RateLimiter | None = None,
    ) -> Model:  # fmt: skip
        """A chat model; importing its client takes a while, so that only opening does."""
        from slm_ray.providers.chat import ChatModel

        self.check(environment)
        address = self.address(endpoint=endpoint, environment=environment)
        return ChatModel(
            provider=self, model=self.model(environment), address=address, generation=generation, limiter=limiter
        )

    def rate_limit_key(self, *, endpoint: str, environment: Mapping[str, str]) -> str | None:
        """All models of one endpoint share its limit."""
        return self.url(endpoint=endpoint, environment=environment)

    def identity(self, *, endpoint: str, environment: Mapping[str, str]) -> str:
        """The model's name and where it answers."""
        return identity_of(
            kind=self.kind, model=self.model(environment), url=self.url(endpoint=endpoint, environment=environment)
        )

    def key_refused(self, url: str, status: int, message: str) -> ModelError:
        """The error for HTTP 401 or 403."""
        return ModelError(f"{self.spec}: {url} refuses the key (HTTP {status}: {message}); correct {self.key_variable}")

    def quota_used_up(self, url: str, status: int, message: str) -> ModelError:
        """The error for an account without quota or credit: waiting does not bring it back."""
        return ModelError(
            f"{self.spec}: {url} says that the quota is used up (HTTP {status}: {message}); raise it, or set "
            f"{self.key_variable} to the key of another account"
        )

    def not_found(self, url: str, model: str, code: str | None, message: str, known: str) -> ModelError:
        """The error for HTTP 404; `known` says which models the endpoint has, where it lists them."""
        return ModelError(f"{url} serves no model {model!r} (HTTP 404: {message}); {known}")

    def unreachable(self, url: str, reason: str) -> ModelError:
        """The error for an endpoint to which no connection was ever made."""
        return ModelError(f"nothing answers at {url} for {self.spec} ({reason}); {self.unreachable_fix()}")

    def unreachable_fix(self) -> str:
        """What to do then."""
        return "start the endpoint or correct its address"


def identity_of(**parts: str) -> str:
    """The parts of an identity as one text, the same for the same parts."""
    return json.dumps(parts, sort_keys=True)


def require(spec: str, names: Sequence[str], environment: Mapping[str, str]) -> None:
    """ModelError that names every one of the variables that is not set."""
    missing = [name for name in names if not environment.get(name, "").strip()]
    if missing:
        raise ModelError(
            f"{spec} needs {' and '.join(missing)} in the environment; set {'it' if len(missing) == 1 else 'them'}"
        )


def check_url(spec: str, what: str, url: str) -> None:
    """ConfigError unless `url` is http(s) with a host and without a user: keys belong in the environment."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(f"{spec}: {what} is {url!r}; write http(s)://HOST")
    if parts.username or parts.password:
        raise ConfigError(f"{spec}: {what} holds a user name or password; put the key in the environment instead")
