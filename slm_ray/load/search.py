"""The most requests per second at a p95 target: which rates held it, what to try next, and what that rate costs."""

from __future__ import annotations

from collections.abc import Sequence

from slm_ray.config.load import FEWEST
from slm_ray.load_records import LoadRate, Throughput
from slm_ray.types import Billing

_NEAR = 1.02  # rates nearer to one another than this cannot be told apart by a run of minutes


def holds(rate: LoadRate, p95_s: float) -> bool:
    """Whether 95 % of the requests were answered within `p95_s`; what was not answered is later than that."""
    p95 = rate.latency_s.p95
    return p95 is not None and p95.value is not None and p95.value <= p95_s


def bracket(rates: Sequence[LoadRate], p95_s: float) -> tuple[LoadRate | None, LoadRate | None]:
    """The highest rate below which all held, itself included, and the lowest that did not; `rates` rise."""
    fails = next((rate for rate in rates if not holds(rate, p95_s)), None)
    below = [rate for rate in rates if fails is None or rate.requests_per_s < fails.requests_per_s]
    return (below[-1] if below else None), fails


def next_rate(rates: Sequence[LoadRate], p95_s: float, *, duration_s: float) -> float | None:
    """The rate in the middle, by ratio, of one that held and one that did not; None where there is nothing to halve."""
    held, fails = bracket(rates, p95_s)
    if held is None or fails is None or fails.requests_per_s / held.requests_per_s < _NEAR:
        return None
    between = float(f"{(held.requests_per_s * fails.requests_per_s) ** 0.5:.4g}")
    return between if held.requests_per_s < between < fails.requests_per_s and between * duration_s >= FEWEST else None


def most(
    rates: Sequence[LoadRate], p95_s: float, billing: Billing, hourly_usd: float, *, on_cpu: bool = False
) -> Throughput | None:
    """The highest rate that held the target; None where the lowest one did not."""
    held, fails = bracket(rates, p95_s)
    if held is None or held.latency_s.p95 is None or held.latency_s.p95.value is None:
        return None
    usd = held.usd / held.sent if held.usd is not None else None
    if billing == "machine":
        usd = hourly_usd / 3600 / held.requests_per_s
    return Throughput(
        requests_per_s=held.requests_per_s,
        p95_s=held.latency_s.p95.value,
        p95_target_s=p95_s,
        fails_at=None if fails is None else fails.requests_per_s,
        usd_per_thousand=None if usd is None else 1000 * usd,
        on_cpu=on_cpu,
    )
