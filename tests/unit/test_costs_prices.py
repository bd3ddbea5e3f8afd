"""The shipped price file, names and their snapshots, and every way in which a file is no price file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from slm_ray.config import Cost
from slm_ray.costs.prices import PriceList, price_list, price_of
from slm_ray.errors import ConfigError

SHIPPED = Path(__file__).parents[2] / "slm_ray/costs/prices.yaml"
TREE: dict[str, Any] = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))


@pytest.fixture
def prices() -> PriceList:
    return price_list(TREE, where="shipped")


def test_the_shipped_file_is_dated_and_every_entry_has_a_source_with_a_date(prices: PriceList) -> None:
    assert prices.as_of == "2026-09-23"
    for name, price in prices.models.items():
        assert "20" in price.source and len(price.source) > 20, name
        assert 0 < price.cached_input_usd_per_mtok <= price.input_usd_per_mtok < price.output_usd_per_mtok, name
    for name, machine in TREE["machines"].items():
        assert machine["usd_per_hour"] > 0 and "20" in machine["source"], name


def test_the_default_machine_is_the_first_of_the_file() -> None:
    name, machine = next(iter(TREE["machines"].items()))
    assert (Cost().machine, Cost().hourly_usd) == (name, machine["usd_per_hour"])


@pytest.mark.parametrize(
    ("said", "priced_as"),
    [
        ("gpt-4o", "gpt-4o"),
        ("gpt-4o-2024-08-06", "gpt-4o"),
        ("gpt-4o-2024-05-13", "gpt-4o-2024-05-13"),  # has an entry of its own, and another price
        ("gpt-4o-mini-2024-07-18", "gpt-4o-mini"),  # the longest name, not gpt-4o
        ("gpt-4.1-mini-20250414", "gpt-4.1-mini"),
        ("gpt-4o-latest", "gpt-4o"),
        ("gpt-4o-audio-preview", None),  # another model at another price
        ("gpt-4", None),
        ("stand-in:tiny-base", None),
        ("", None),
    ],
)
def test_a_name_is_priced_as_itself_or_as_what_it_is_a_snapshot_of(
    prices: PriceList, said: str, priced_as: str | None
) -> None:
    found = price_of(prices, said)
    assert (found.name if found else None) == priced_as


def test_cached_tokens_are_among_those_of_the_prompt(prices: PriceList) -> None:
    price = prices.models["gpt-4o"]
    assert price.usd(1_000_000, 0) == pytest.approx(2.50)
    assert price.usd(1000, 100, 400) == pytest.approx((600 * 2.50 + 400 * 1.25 + 100 * 10.0) / 1e6)
    assert prices.models["gpt-4o-2024-05-13"].usd(1000, 0, 400) == pytest.approx(1000 * 5.0 / 1e6)


@pytest.mark.parametrize(
    "tree",
    [
        None,
        [],
        {"models": {}},
        {"as_of": "2026-01-01", "models": None},
        {"as_of": "2026-01-01", "models": {"m": {"input_usd_per_mtok": 1}}},
        {"as_of": "2026-01-01", "models": {"m": 3}},
        *(
            {
                "as_of": "2026-01-01",
                "models": {
                    "m": {"input_usd_per_mtok": bad, "cached_input_usd_per_mtok": None, "output_usd_per_mtok": 1}
                },
            }
            for bad in (-1, "free", float("nan"), float("inf"), [1])
        ),
    ],
)
def test_anything_else_is_no_price_file(tree: Any) -> None:
    with pytest.raises(ConfigError, match=r"mine\.yaml: not a price file: (it|m:?) .*; write as_of"):
        price_list(tree, where="mine.yaml")
