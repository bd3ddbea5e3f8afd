"""What a run may spend, and what it has spent: no call starts that could bring it above a limit.

A request in flight counts with the worst it can cost: every attempt it is allowed, its whole prompt (a token is at least a
byte) and `max_tokens` of answer. An answer replaces that by what it was billed for, plus the worst case of every attempt
that was sent and never answered. Attempts that were refused (429, 5xx) cost nothing. So the limits hold whatever the
endpoint does, and a run ends a little below them. Money counts for the arms whose model the price file names; the other limits count for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from slm_ray.config import Calls, EvaluateConfig, LoadConfig
from slm_ray.costs.prices import Price, price_of
from slm_ray.errors import ConfigError
from slm_ray.reports.prices import name_of, open_prices
from slm_ray.runlog import Request
from slm_ray.types import Completion, ModelFacts, Prompt

_TEMPLATE_TOKENS = 64  # what a chat template adds around a conversation, and per turn
_TURN_TOKENS = 8


_LIMITS = {"max_calls": "calls", "max_tokens_total": "tokens", "max_cost_usd": "usd"}
_FREE = Price(name="", input_usd_per_mtok=0.0, cached_input_usd_per_mtok=0.0, output_usd_per_mtok=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """Calls that may have been billed (not those turned away or failed with an answer), tokens and money."""

    calls: int = 0
    tokens: int = 0
    usd: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(calls=self.calls + other.calls, tokens=self.tokens + other.tokens, usd=self.usd + other.usd)

    def times(self, count: int) -> Spent:
        """This much, `count` times; a negative count takes it away."""
        return Spent(calls=self.calls * count, tokens=self.tokens * count, usd=self.usd * count)


class Budget:
    """Keeps the account of one run. `spent` is what is known to be billed or may have been by calls that are over."""

    def __init__(self, config: Calls, prices: Mapping[str, Price]) -> None:
        self._config = config
        self._prices = prices
        self._held: dict[str, Spent] = {}
        self._holding = Spent()
        self._usd = dict.fromkeys(prices, 0.0)
        self.spent = Spent()
        self.blocked_by: str | None = None

    @property
    def is_limited(self) -> bool:
        """Whether there is a limit at all."""
        return any(getattr(self._config, name) is not None for name in _LIMITS)

    @property
    def is_counted(self) -> bool:
        """Whether anything is made of what is spent: a limit, or a price that is shown."""
        return self.is_limited or bool(self._prices)

    def of_shard(self, number: int) -> Budget:
        """The account of one of several shards: what was spent before stands in the first one's, so that it is summed once."""
        return self if number == 0 else Budget(self._config, self._prices)

    def reserve(self, request: Request) -> bool:
        """Whether the request may be asked; what it can cost at most is then held until `charge`."""
        if not self.is_limited:
            return True
        worst = self.worst(request.spec, request.prompt).times(self._config.generation.max_attempts)
        if self._over(self.spent + self._holding + worst):
            return False
        self._held[request.key] = worst
        self._holding += worst
        return True

    def charge(self, spec: str, key: str, prompt: Prompt, completion: Completion) -> None:
        """An answer arrived: what it was billed for takes the place of what was held."""
        self._holding += self._held.pop(key, Spent()).times(-1)
        self._add(spec, self.billed(spec, prompt, completion))

    def charge_worst_case(self, spec: str, prompt: Prompt) -> None:
        """A request was started and its answer will never arrive: it may have been billed."""
        self._add(spec, self.worst(spec, prompt).times(self._config.generation.max_attempts))

    def usd(self, spec: str) -> float | None:
        """What this model has cost so far; None for one without a price."""
        return self._usd.get(spec)

    def worst(self, spec: str, prompt: Prompt) -> Spent:
        """The most that one attempt can cost."""
        size = sum(len(turn.content.encode("utf-8", "replace")) + _TURN_TOKENS for turn in prompt.messages)
        asked, answered = size + _TEMPLATE_TOKENS, self._config.generation.max_tokens
        return Spent(calls=1, tokens=asked + answered, usd=self._price(spec).usd(asked, answered))

    def billed(self, spec: str, prompt: Prompt, completion: Completion) -> Spent:
        """What a row has cost: the usage it states (the worst where an answer states none), and its possibly billed attempts."""
        possibly_billed = self.worst(spec, prompt).times(completion.possibly_billed)
        usage, failure = completion.usage, completion.failure
        heard = failure is None or not failure.in_transport
        calls = Spent(calls=int(heard))
        if usage is not None:
            tokens = usage.prompt_tokens + usage.completion_tokens
            usd = self._price(spec).usd(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
            return possibly_billed + calls + Spent(tokens=tokens, usd=usd)
        if not heard:
            return possibly_billed  # an endpoint that says no bills nothing
        worst = self.worst(spec, prompt)
        return possibly_billed + calls + Spent(tokens=worst.tokens, usd=worst.usd)

    def _add(self, spec: str, more: Spent) -> None:
        self.spent += more
        if spec in self._usd:
            self._usd[spec] += more.usd

    def _price(self, spec: str) -> Price:
        return self._prices.get(spec, _FREE)

    def _over(self, worst: Spent) -> bool:
        for name, field in _LIMITS.items():
            limit = getattr(self._config, name)
            if limit is not None and getattr(worst, field) > limit:
                self.blocked_by = f"{name} {limit:g}"
                return True
        return False


def prices_of(config: EvaluateConfig | LoadConfig, models: Sequence[ModelFacts]) -> dict[str, Price]:
    """The prices of the arms by spec. One on a machine of one's own counts where its name is listed: it may be a gateway.

    Without `max_cost_usd` an arm that has no price is left out; with it that is a ConfigError where tokens are billed.
    """
    names = {model.spec: model.model for model in models if model.model is not None}
    by_token = [model.spec for model in models if model.billing == "tokens"]
    if not names:
        return {}
    listed = open_prices(config.prices)
    prices = {spec: price_of(listed, name) for spec, name in names.items()}
    missing = [f"{spec} ({names[spec]})" for spec in by_token if prices.get(spec) is None]
    if missing and config.max_cost_usd is not None:
        raise ConfigError(
            f"max_cost_usd needs a price, and {name_of(config.prices)} has none for {', '.join(missing)}: known: "
            f"{', '.join(listed.models)}; name a list that has it with `prices`, or limit max_calls or max_tokens_total instead"
        )
    return {spec: price for spec, price in prices.items() if price is not None}
