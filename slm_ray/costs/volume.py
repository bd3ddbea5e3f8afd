"""What a volume of requests costs: whole machines against tokens, from where on the SLM is cheaper, what a cascade takes.

A machine costs the same whether it is busy or not, so that a request on it has no price of its own: it has one at a
volume. `machines` are whole ones, each planned to be busy for at most `Machine.utilisation` of its time. A cascade asks
the SLM every time and the LLM for the share that the SLM does not take. Pure: nothing is looked up.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from slm_ray.cost_records import (
    ArmCost,
    BreakEven,
    CascadeCost,
    CostReport,
    Machine,
    TrainingCost,
    VolumeCost,
    VolumePrice,
    Way,
)
from slm_ray.records import ModelReport, RowResult
from slm_ray.types import Percentiles

VOLUMES = (100.0, 1_000.0, 10_000.0, 100_000.0, 1_000_000.0)  # requests a day
DAYS_PER_MONTH = 365 / 12


def priced_by_volume(costs: CostReport, training: TrainingCost) -> CostReport:
    """The report with its table by volume, the reader's own volume among the others, and the training's payback."""
    return _with_table(replace(costs, training=training))


def with_cascade(
    costs: CostReport, rows: Sequence[RowResult], *, share: float, taken: Mapping[str, bool]
) -> CostReport:
    """The report with a cascade in which the SLM takes `share` of the requests; `taken` says of which rows, by id.

    Its latency is worked out row by row: the SLM's, and the LLM's on top where the row goes on to it.
    """
    llm, slm = costs.arms[costs.llm], costs.arms[costs.slm]
    times = [time for row in rows if row.id in taken for time in _cascade_s(row, costs, taken[row.id])]
    cascade = CascadeCost(
        share=share,
        rows=len(times),
        latency_s=Percentiles(**{f"p{at}": float(np.percentile(times, at)) for at in (50, 95) if times}),
        mean_latency_s=math.fsum(times) / len(times) if times else None,
        break_even=break_even(llm, slm, costs.machine, share=share),
    )
    return _with_table(replace(costs, cascade=cascade))


def machines_for(arm: ArmCost, requests_per_day: float) -> int | None:
    """Whole machines that serve so many requests a day; None for an arm that is paid by the token."""
    if arm.capacity_requests_per_day is None:
        return None
    # A volume that is a whole number of full machines must not take one more for the rounding of a division.
    return max(1, math.ceil(requests_per_day / arm.capacity_requests_per_day - 1e-9))


def daily_usd(arm: ArmCost, machine: Machine, requests_per_day: float) -> float | None:
    """USD a day of one arm at a volume; None where it has no price."""
    if arm.per_request_usd is None:
        return None
    machines = machines_for(arm, requests_per_day)
    return arm.per_request_usd * requests_per_day if machines is None else machines * machine.hourly_usd * 24


def training_cost(model: ModelReport, machine: Machine) -> TrainingCost:
    """What the fine-tune of an arm cost, by the GPU hours that its training record states; not known without one."""
    effort = model.training
    if model.facts.kind == "served" and model.facts.adapter is None:
        return TrainingCost(usd=0.0, words="training: none counted, the SLM is served without an adapter")
    if effort is None:
        return TrainingCost(words="training: not known, no training record of the SLM was at hand")
    hours = effort.hours * (effort.gpus or 1)
    usd = hours * machine.hourly_usd
    said = f"{hours:,.2f} {'GPU hours' if effort.gpus else 'hours'} at {machine.hourly_usd:g} USD/h, a sweep left out"
    if effort.gpus:
        return TrainingCost(usd=usd, gpu_hours=hours, words=f"training: {usd:,.2f} USD ({said})")
    return TrainingCost(
        usd=usd,
        hypothetical=True,
        words=f"training: hypothetically {usd:,.2f} USD ({said}; no GPU was used and one's price is put in)",
    )


def break_even(llm: ArmCost, slm: ArmCost, machine: Machine, *, share: float = 1.0) -> BreakEven:
    """From how many requests a day machines that stand there all day cost less than the LLM that they spare.

    `share` of the requests are taken from the LLM, all of them reach the SLM. Null, with why, where either has no price,
    where both are paid the same way, and where a full machine still costs more than what it spares: then more machines
    cost more in proportion, and no volume pays. Just above one full machine the second can turn it once more:
    `for_good_from` is the volume from which on that happens no more, None where it happens at every further machine.
    """
    hypothetical = llm.hypothetical or slm.hypothetical
    none = functools.partial(BreakEven, hypothetical=hypothetical)
    for role, arm_cost in (("LLM", llm), ("SLM", slm)):
        if arm_cost.per_request_usd is None:
            return none(because=f"no break-even: the {role} has no cost ({arm_cost.reason}).")
    per_request_usd, capacity = llm.per_request_usd, slm.capacity_requests_per_day
    if (llm.kind, slm.kind) != ("tokens", "machine") or per_request_usd is None or capacity is None:
        return none(because="no break-even: it needs an LLM paid by the token and an SLM on a machine.")
    if per_request_usd == 0:
        return none(because="no break-even: the LLM costs nothing per request.")
    day_usd = machine.hourly_usd * 24
    requests = day_usd / (share * per_request_usd)
    said = "hypothetically, " if hypothetical else ""
    spared = "the LLM" if share == 1 else f"the {share:.0%} of the LLM that it spares"
    if requests > capacity:
        machines = math.ceil(requests / capacity)
        return none(
            because=f"{said}no break-even: {requests:,.0f} requests/day of {spared} cost what one"
            f" machine costs a day, and that many take {machines} machines of {capacity:,.0f} requests/day each, which cost {machines}"
            " times as much: the LLM is cheaper at every volume."
        )
    full = requests / capacity
    for_good = None if full == 1 else max(1, math.ceil(full / (1 - full) - 1e-9)) * requests
    turns = "" if for_good == requests else _turns(capacity, for_good)
    return BreakEven(
        requests_per_day=requests,
        machines=1,
        for_good_from=for_good,
        hypothetical=hypothetical,
        because=f"{said}from {requests:,.0f} requests/day a machine that stands there all day"
        f" ({day_usd:,.2f} USD) costs less than {spared}; that is {full:.1%} of what it can serve"
        f" ({capacity:,.0f} requests/day at utilisation {machine.utilisation:g}){turns}.",
    )


def _turns(capacity: float, for_good: float | None) -> str:
    until = "at every further machine" if for_good is None else f"for good it is from {for_good:,.0f}"
    return f"; just above {capacity:,.0f} a second machine makes it dearer again, {until}"


def _with_table(costs: CostReport) -> CostReport:
    llm, slm, mine = costs.arms[costs.llm], costs.arms[costs.slm], costs.requests_per_day
    if llm.per_request_usd is None and slm.per_request_usd is None:
        return replace(costs, by_volume=())
    volumes = sorted({*VOLUMES, *([mine] if mine else [])})
    table = tuple(_at(costs, volume) for volume in volumes)
    own = next((row for row in table if row.requests_per_day == mine), None)
    return replace(costs, by_volume=table, at_my_volume=_in_words(costs, own) if own else None)


def _at(costs: CostReport, requests: float) -> VolumeCost:
    llm, slm = costs.arms[costs.llm], costs.arms[costs.slm]
    large, small = daily_usd(llm, costs.machine, requests), daily_usd(slm, costs.machine, requests)
    mixed = None
    if costs.cascade is not None and small is not None:
        rest = daily_usd(llm, costs.machine, (1 - costs.cascade.share) * requests)
        mixed = None if rest is None else small + rest
    ways: tuple[tuple[Way, float | None], ...] = (("llm", large), ("slm", small), ("cascade", mixed))
    priced = {way: usd for way, usd in ways if usd is not None}
    cheapest: Way = min(priced, key=priced.__getitem__)
    saving = None if large is None or small is None else large - small
    training = costs.training.usd
    return VolumeCost(
        requests_per_day=requests,
        is_mine=requests == costs.requests_per_day,
        machines=machines_for(slm, requests),
        llm=_price(large, requests),
        slm=_price(small, requests),
        cascade=_price(mixed, requests),
        cheapest=cheapest if len(priced) > 1 else None,
        payback_days=training / saving if training and saving is not None and saving > 0 else None,
    )


def _price(usd_a_day: float | None, requests: float) -> VolumePrice | None:
    if usd_a_day is None:
        return None
    return VolumePrice(month_usd=usd_a_day * DAYS_PER_MONTH, per_thousand_usd=1000 * usd_a_day / requests)


def _in_words(costs: CostReport, own: VolumeCost) -> str:
    """The reader's line: what each way costs a month, which one is cheapest, and when the training is paid back."""
    said = "hypothetically, " if costs.break_even.hypothetical else ""
    named = (("LLM", own.llm), ("SLM", own.slm), ("cascade", own.cascade))
    figures = ", ".join(f"{name} {price.month_usd:,.2f}" for name, price in named if price is not None)
    line = f"{said}at your {own.requests_per_day:,.0f} requests/day, USD a month: {figures}"
    if own.cheapest is None:
        return f"{line}; the other has no price."
    words = {"llm": "the LLM", "slm": "the SLM", "cascade": "the cascade"}[own.cheapest]
    line += f"; {words} is cheapest"
    if own.payback_days is not None:
        line += f"; the SLM's training is paid back in {own.payback_days:,.1f} days"
    return f"{line}."


def _cascade_s(row: RowResult, costs: CostReport, taken: bool) -> list[float]:
    """The row's seconds in a cascade; none where one that it needs was not measured."""
    specs = (costs.slm,) if taken else (costs.slm, costs.llm)
    times = [row.models[spec].latency_s for spec in specs if spec in row.models]
    known = [time for time in times if time is not None]
    return [math.fsum(known)] if len(known) == len(specs) else []
