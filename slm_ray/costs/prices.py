"""What a model costs per token, by the name that its own answers state. Unknown is None and said, never 0.

A price list is the parsed price file (`prices.yaml` beside this module, or the user's own); `reports.prices` reads it from
disk.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slm_ray.errors import ConfigError

MTOK = 1e6
_AMOUNTS = ("input_usd_per_mtok", "cached_input_usd_per_mtok", "output_usd_per_mtok")
_SNAPSHOT = re.compile(r"-(\d{4}(-\d{2}-\d{2})?|\d{8}|latest)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """USD per million tokens of the model `name`, and where that was found."""

    name: str
    input_usd_per_mtok: float
    cached_input_usd_per_mtok: float
    output_usd_per_mtok: float
    source: str = ""

    def usd(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> float:
        """What so many tokens cost; `cached_tokens` are among those of the prompt."""
        return (
            (prompt_tokens - cached_tokens) * self.input_usd_per_mtok
            + cached_tokens * self.cached_input_usd_per_mtok
            + completion_tokens * self.output_usd_per_mtok
        ) / MTOK


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceList:
    """Prices by model name, and the day they were right."""

    as_of: str
    models: Mapping[str, Price]


def price_list(tree: Any, *, where: str) -> PriceList:
    """The price list that a parsed file holds; ConfigError, naming `where` and the model, for anything else."""
    try:
        if not isinstance(tree, Mapping) or not isinstance(tree.get("models"), Mapping):
            raise ValueError("it has no models")
        if "as_of" not in tree:
            raise ValueError("it has no as_of")
        models = {str(name): _price(str(name), fields) for name, fields in tree["models"].items()}
        return PriceList(as_of=str(tree["as_of"]), models=models)
    except ValueError as error:
        raise ConfigError(
            f"{where}: not a price file: {error}; write as_of, and per model under models:"
            " input_usd_per_mtok, cached_input_usd_per_mtok (or null), output_usd_per_mtok, source"
        ) from None


def price_of(prices: PriceList, name: str) -> Price | None:
    """The price of the model that answers as `name`: its own entry, or the longest listed name it is a snapshot of.

    A snapshot is a name with a date behind it. Other tails name other models (gpt-4o-mini is no gpt-4o), which have no
    price until they are listed.
    """
    if name in prices.models:
        return prices.models[name]
    stems = [known for known in prices.models if name.startswith(known) and _SNAPSHOT.fullmatch(name[len(known) :])]
    return prices.models[max(stems, key=len)] if stems else None


def _price(name: str, fields: Any) -> Price:
    missing = [key for key in _AMOUNTS if not isinstance(fields, Mapping) or key not in fields]
    if missing:
        raise ValueError(f"{name} has no {missing[0]}")
    fresh, cached, answer = (fields[key] for key in _AMOUNTS)
    try:
        amounts = [float(value) for value in (fresh, fresh if cached is None else cached, answer)]
    except (TypeError, ValueError):
        raise ValueError(f"{name}: a price is a number of USD, not {[fresh, cached, answer]}") from None
    if not all(0 <= amount < float("inf") for amount in amounts):
        raise ValueError(f"{name}: a price is a number of USD from 0 up, not {amounts}")
    return Price(
        name=name, input_usd_per_mtok=amounts[0], cached_input_usd_per_mtok=amounts[1],
        output_usd_per_mtok=amounts[2], source=str(fields.get("source", "")),
    )  # fmt: skip
