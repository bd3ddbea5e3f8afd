"""Limits hold whatever is still in flight, and what was spent is counted however a call went."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm_ray.config import EvaluateConfig
from slm_ray.costs.prices import Price
from slm_ray.errors import ConfigError
from slm_ray.evaluation.budget import Budget, Spent, prices_of
from slm_ray.runlog import Request
from slm_ray.types import Billing, Completion, Failure, FailureKind, Message, ModelFacts, Prompt, Usage

PRICE = Price(name="gpt", input_usd_per_mtok=2.0, cached_input_usd_per_mtok=1.0, output_usd_per_mtok=10.0)
PROMPT = Prompt(messages=(Message(role="user", content="x" * 28),))  # 28 + 8 + 64: at most 100 tokens
PRICES = "as_of: 2026-09-23\nmodels:\n  gpt: {input_usd_per_mtok: 2.0, cached_input_usd_per_mtok: null, output_usd_per_mtok: 10.0}\n"


def config(**changes: Any) -> EvaluateConfig:
    generation = {"max_tokens": 50, "max_attempts": 3}
    return EvaluateConfig.model_validate(
        {"track": "t", "examples": "e", "models": ["azure:gpt"], "run_dir": "r", "generation": generation, **changes}
    )


def requests(count: int, start: int = 0) -> list[Request]:
    return [
        Request(key=f"k{n}", spec="azure:gpt", example_id=f"r{n}", prompt=PROMPT) for n in range(start, start + count)
    ]


def reserved(budget: Budget, asked: list[Request]) -> int:
    """How many of the requests, from the first, may start."""
    return next((n for n, request in enumerate(asked) if not budget.reserve(request)), len(asked))


def test_what_is_in_flight_counts_with_the_worst_it_can_cost() -> None:
    budget = Budget(config(max_calls=10), {})
    assert reserved(budget, requests(9)) == 3  # three rows may take three attempts each
    assert reserved(budget, requests(1, 3)) == 0
    for n in range(3):
        budget.charge("azure:gpt", f"k{n}", PROMPT, Completion(text="x", usage=Usage(prompt_tokens=9)))
    assert budget.spent == Spent(calls=3, tokens=27)
    assert reserved(budget, requests(9, 3)) == 2
    assert budget.blocked_by == "max_calls 10"


@pytest.mark.parametrize(("name", "limit"), [("max_tokens_total", 900), ("max_cost_usd", 900 / 150 * 0.0007)])
def test_tokens_and_money_are_held_alike(name: str, limit: float) -> None:
    budget = Budget(config(**{name: limit}), {"azure:gpt": PRICE})
    assert reserved(budget, requests(9)) == 2  # 2 rows x 3 attempts x (100 + 50) tokens
    assert budget.blocked_by is not None
    assert budget.blocked_by.startswith(name)
    assert budget.spent == Spent()


@pytest.mark.parametrize(
    ("completion", "calls", "tokens", "usd"),
    [
        (Completion(text="x", usage=Usage(prompt_tokens=10, completion_tokens=5, cached_tokens=4)), 1, 15, 66e-6),
        (Completion(text="x"), 1, 150, 700e-6),  # no usage stated: the worst
        (Completion(text="x", usage=Usage(prompt_tokens=10), attempts=3, possibly_billed=1), 2, 10 + 150, 720e-6),
        (Completion(failure=Failure(kind="error", reason="429"), attempts=9), 0, 0, 0.0),
        (Completion(failure=Failure(kind="error", reason="time-out"), attempts=3, possibly_billed=3), 3, 450, 2100e-6),
        (Completion(failure=Failure(kind="refused", reason="filter")), 1, 150, 700e-6),
    ],
)
def test_what_a_row_has_cost(completion: Completion, calls: int, tokens: int, usd: float) -> None:
    budget = Budget(config(), {"azure:gpt": PRICE})
    assert reserved(budget, requests(1)) == 1
    budget.charge("azure:gpt", "k0", PROMPT, completion)
    assert (budget.spent.calls, budget.spent.tokens) == (calls, tokens)
    assert budget.spent.usd == pytest.approx(usd)
    assert budget.usd("azure:gpt") == pytest.approx(usd)
    assert budget.usd("served:m") is None


def test_a_call_that_will_never_be_answered_counts_with_its_worst_and_without_a_limit_nothing_is_held() -> None:
    budget = Budget(config(), {})
    assert not budget.is_limited
    budget.charge_worst_case("served:m", PROMPT)
    assert budget.reserve(requests(1)[0])
    budget.charge("served:m", "k0", PROMPT, Completion(text="x", usage=Usage(prompt_tokens=9)))
    assert budget.spent == Spent(calls=3 + 1, tokens=450 + 9)


_KINDS: list[FailureKind | None] = [None, "error", "refused", "truncated", "invalid"]


@given(
    limit=st.integers(1, 60),
    calls=st.lists(
        st.tuples(
            st.sampled_from(_KINDS), st.integers(1, 3), st.integers(0, 3), st.integers(0, 100), st.integers(0, 50)
        ),
        max_size=30,
    ),
    lanes=st.integers(1, 8),
)
def test_no_order_of_answers_passes_a_limit(
    limit: int, calls: list[tuple[FailureKind | None, int, int, int, int]], lanes: int
) -> None:
    budget = Budget(
        config(max_calls=limit, max_tokens_total=limit * 100, max_cost_usd=limit * 5e-4), {"azure:gpt": PRICE}
    )
    waiting, flying = requests(len(calls)), list[int]()
    while True:
        granted = reserved(budget, waiting[: lanes - len(flying)])
        flying += [int(request.key[1:]) for request in waiting[:granted]]
        waiting = waiting[granted:]
        if not flying:
            break
        at = flying.pop(0)
        kind, attempts, possibly_billed, prompt_tokens, completion_tokens = calls[at]
        possibly_billed = min(possibly_billed, attempts - (kind != "error"))
        heard = possibly_billed < attempts  # usage is what an answer states
        usage = Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens) if heard else None
        failure = Failure(kind=kind, reason="x") if kind else None
        budget.charge(
            "azure:gpt", f"k{at}", PROMPT,
            Completion(text=None if kind else "x", failure=failure, usage=usage, attempts=attempts, possibly_billed=possibly_billed),
        )  # fmt: skip
        assert budget.spent.calls <= limit
        assert budget.spent.tokens <= limit * 100
        assert budget.spent.usd <= limit * 5e-4 + 1e-12


def priced(spec: str, model: str, billing: Billing = "tokens") -> ModelFacts:
    return ModelFacts(spec=spec, kind="k", model=model, host="h", billing=billing)


def test_a_machine_of_one_s_own_needs_no_price_and_counts_where_its_model_is_listed(tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text(PRICES)
    mine = [priced("openai:gpt@http://127.0.0.1", "gpt", "machine"), priced("openai:x@http://gpu", "x", "machine")]
    assert set(prices_of(config(prices=str(file), max_cost_usd=1.0), mine)) == {"openai:gpt@http://127.0.0.1"}
    assert prices_of(config(max_cost_usd=1.0), mine) == {}


def test_a_price_is_needed_where_money_is_limited(tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text(PRICES)
    names = [priced("azure:gpt", "gpt-2024-08-06"), priced("openai:new", "new")]
    known = prices_of(config(prices=str(file)), names)
    assert known == {
        "azure:gpt": Price(name="gpt", input_usd_per_mtok=2.0, cached_input_usd_per_mtok=2.0, output_usd_per_mtok=10.0)
    }
    with pytest.raises(ConfigError, match=r"has none for openai:new \(new\).*known: gpt.*max_calls"):
        prices_of(config(prices=str(file), max_cost_usd=1.0), names)
    assert prices_of(config(prices="nowhere.yaml", max_cost_usd=1.0), []) == {}
    with pytest.raises(ConfigError, match=r"cannot read the prices nowhere.yaml"):
        prices_of(config(prices="nowhere.yaml"), names)
    file.write_text("models: [1, 2]")
    with pytest.raises(ConfigError, match="not a price file"):
        prices_of(config(prices=str(file), max_cost_usd=1.0), names)


def test_what_was_spent_before_is_counted_once_however_many_shards_go_on() -> None:
    """The display sums what the shards have noted."""
    budget = Budget(config(shards=3), {"azure:gpt": PRICE})
    budget.charge("azure:gpt", "k", PROMPT, Completion(text="x", usage=Usage(prompt_tokens=1000, completion_tokens=10)))
    before = budget.usd("azure:gpt")
    assert before is not None and before > 0
    assert sum(budget.of_shard(number).usd("azure:gpt") for number in range(3)) == before


def test_nothing_is_made_of_spending_without_a_limit_or_a_price() -> None:
    assert not Budget(config(), {}).is_counted
    assert Budget(config(), {"azure:gpt": PRICE}).is_counted and Budget(config(max_calls=1), {}).is_counted
