"""How often the verdict is wrong and how often it helps, simulated: both rules on right-or-wrong rows and graded ones, in
part, looked at again and again, and the watch over live traffic; `parts` picks. Prints a table of each.
"""

from __future__ import annotations

import math

from rich.console import Console
from rich.progress import track
from rich.table import Table

from slm_ray.command import Usage, run
from slm_ray.evaluation.asking_order import ROUND
from slm_ray.rollout.grants import AGREEMENT_LEVEL
from slm_ray.verdict.candidates import percent
from slm_ray.verdict.non_inferiority import ONE_SIDED
from slm_ray.verdict.operating_characteristics import looking, right_or_wrong
from slm_ray.verdict.operating_characteristics.graded import POPULATIONS, graded
from slm_ray.verdict.operating_characteristics.partial_replacement import CASES, partials
from slm_ray.verdict.operating_characteristics.stratified import ordered, populations
from slm_ray.verdict.operating_characteristics.watching import STREAMS, delay, false_alarms
from slm_ray.verdict.sample_size import plan
from slm_ray.verdict.sequential_runs import played
from slm_ray.verdict.watch import levels
from tools.config import OperatingCharacteristicsConfig

ERR = Console(stderr=True)
SEED = 42
RESAMPLES = 999  # of the bootstrap behind graded bounds
WATCHED = 40  # and how many times fewer the watch's
SLOWER = 20  # how many times fewer runs the graded and the partial part get
MOST_GRADED_ROWS = 500
DISCORDANCES = (0.05, 0.1, 0.2, 0.4)  # shares of rows that one model alone gets right
PARTIAL_ROWS = (200, 400)  # validation and test rows
LOOKED_AT, LOOKED_DISCORDANCE = 1500, 0.2  # rows at most, and the share of them that one model alone gets right
GROUPS = ((4, 0.5, "half of them alike"), (10, 1.0, "all alike"))
CANDIDATES = tuple(range(1, 11))
WATCHED_ROWS, WATCHED_MOST = 10_000, 4_000  # observations without drift, and at most after one
SHIFTS, SHIFTED_AFTER = (0.05, 0.1, 0.2, 0.5), (0, 200, 2000)
DIFFERENCES = (0.6, 0.2, 0.1, 0.0, -0.1, -0.2, -0.6)


def row(table: Table, *cells: str | int | float) -> None:
    table.add_row(*(f"{cell:.2%}" if isinstance(cell, float) else str(cell) for cell in cells))


def binary(config: OperatingCharacteristicsConfig) -> list[Table]:
    wrong = Table("n", "discordance", "false swap", "false fine_tune", "95 % coverage", title=f"delta {config.delta:g}")
    cells = [(n, share) for n in config.rows for share in DISCORDANCES if share >= config.delta]
    for n, share in track(cells, "binary", console=ERR):
        found = right_or_wrong.errors(n, share, config.delta, runs=config.runs, seed=SEED)
        inside = right_or_wrong.coverage(n, share, -config.delta, runs=config.runs, seed=SEED)
        row(wrong, n, f"{share:g}", found.false_swap, found.false_fine_tune, inside)
    helped = Table("discordance", "rows advised", "power promised", "power found", title="advice")
    for share in DISCORDANCES:
        if power := right_or_wrong.power(share, config.delta, runs=config.runs, seed=SEED):
            row(helped, f"{share:g}", f"{power.rows:,}", power.promised, power.found)
    return [wrong, helped]


def graded_bounds(config: OperatingCharacteristicsConfig) -> list[Table]:
    table = Table("differences", "n", "lower bound wrong", "upper bound wrong", "95 % coverage", title="graded metrics")
    cells = [(name, n) for name in POPULATIONS for n in config.rows if n <= MOST_GRADED_ROWS]
    for name, n in track(cells, "graded", console=ERR):
        found = graded(name, n, runs=config.runs // SLOWER, resamples=RESAMPLES, seed=SEED)
        row(table, name, n, found.lower_wrong, found.upper_wrong, found.coverage)
    return [table]


def parts_of_traffic(config: OperatingCharacteristicsConfig) -> list[Table]:
    names = ("confidence says", "accepted", "wrongly", "at the edge", "mean share", "possible share")
    table = Table(*names, title=f"partial replacement, delta {config.delta:g}, rows {PARTIAL_ROWS}")
    for name, case in track(CASES.items(), "partial", console=ERR):
        found = partials(case, PARTIAL_ROWS, config.delta, runs=config.runs // SLOWER, seed=SEED)
        row(table, name, found.accepted, found.wrongly_accepted, found.at_the_edge, found.mean_share, found.possible)
    return [table]


def looks(config: OperatingCharacteristicsConfig) -> list[Table]:
    """Errors at a true difference of exactly -delta, the confidence sequence's coverage, and rows to a decision."""
    delta, runs = config.delta, config.runs // 2
    wrong = Table("how it is used", "rule", "false swap", "false fine_tune", title=f"true difference -{delta:g}")
    signs = looking.draws(runs, LOOKED_AT, LOOKED_DISCORDANCE, -delta, SEED)
    bets = played(signs, delta=delta)
    found = looking.looks(signs, bets, LOOKED_DISCORDANCE, delta)
    for size, alike, said in track(GROUPS, "groups", console=ERR):
        groups = looking.grouped(runs, LOOKED_AT // size, size, alike, LOOKED_DISCORDANCE, delta, SEED)
        found += looking.grouped_looks(groups, delta, said)
    for one in found:
        row(wrong, one.how, one.rule, one.false_swap, one.false_fine_tune)
    shared = Table(
        "candidates", f"one look, {percent(ONE_SIDED)} each", "one look, shared", "sequential, shared", "fine_tune: one look, shared",
        "sequential, shared", title="any false swap; any false fine_tune",
    )  # fmt: skip
    for family in looking.families(signs, bets, delta, CANDIDATES):
        row(
            shared, family.candidates, family.unshared, family.paired, family.sequential, family.paired_fine_tune,
            family.sequential_fine_tune,
        )  # fmt: skip
    held = Table("true difference", "lower bound", "upper bound", "95 % sequence", title="right at every row")
    for difference in track((-delta, 0.0, 0.1), "coverage", console=ERR):
        drawn = looking.draws(runs, LOOKED_AT, LOOKED_DISCORDANCE, difference, SEED)
        inside = looking.coverage(drawn, difference, delta)
        row(held, f"{difference:+g}", inside.lower, inside.upper, inside.both)
    return [wrong, shared, held]


def strata(config: OperatingCharacteristicsConfig) -> list[Table]:
    """Errors of the sequential rule where rows are of different kinds, by the order in which they are asked."""
    table = Table(
        "rows are of strata",
        "order",
        "false swap",
        "false fine_tune",
        title=f"strata, true difference -{config.delta:g}",
    )
    for name in track(populations(config.delta), "strata", console=ERR):
        for one in ordered(
            name, config.delta, runs=config.runs // 2, rows=LOOKED_AT, in_round=ROUND, seed=SEED
        ):  # fmt: skip
            row(table, name, one.order, one.false_swap, one.false_fine_tune)
    return [table]


def rows_needed(config: OperatingCharacteristicsConfig) -> list[Table]:
    names = ("true difference", "discordance", "ends in", "one look, 80 %", "90 %", "sequential median", "mean", "90 %")
    table = Table(*names, title=f"rows to a decision, delta {config.delta:g}")
    for one in plan(DIFFERENCES, LOOKED_DISCORDANCE, config.delta, seed=SEED):
        rows = (one.paired_80, one.paired_90, one.median, one.mean, one.ninety)
        row(table, f"{one.difference:+g}", f"{one.discordance:g}", one.action, *(f"{n:,}" if n else "-" for n in rows))
    return [table]


def watching(config: OperatingCharacteristicsConfig) -> list[Table]:
    """The watch over live traffic: alarms without drift, and audited requests from a change to the alarm."""
    runs, delta = config.runs // WATCHED, config.delta
    rang = Table(
        "traffic", "all is well", "as bad as is allowed", title=f"false alarms in {WATCHED_ROWS:,} audited requests"
    )
    ways = [f"after {after:,}" for after in SHIFTED_AFTER]
    delays = Table(
        "traffic", "falls by", *ways, title=f"audited requests until the alarm (nine of ten runs), delta {delta:g}"
    )
    for stream in track(STREAMS, "watching", console=ERR):
        level = levels(AGREEMENT_LEVEL)[stream.reference is None]
        well, edge = (
            false_alarms(stream, delta=delta, level=level, runs=runs, rows=WATCHED_ROWS, seed=SEED, at_edge=at_edge)
            for at_edge in (False, True)
        )
        row(rang, stream.name, well, edge)
        for shift in SHIFTS:
            found = [
                delay(
                    stream,
                    shift=shift,
                    after=after,
                    delta=delta,
                    level=level,
                    runs=runs // 2,
                    most=WATCHED_MOST,
                    seed=SEED,
                )
                for after in SHIFTED_AFTER
            ]
            row(delays, stream.name, f"{shift:g}", *(f"{_rows(one.median)} ({_rows(one.ninety)})" for one in found))
    return [rang, delays]


def _rows(number: int | None) -> str:
    return f"> {WATCHED_MOST:,}" if number is None else f"{number:,}"


def main(config: OperatingCharacteristicsConfig) -> None:
    """Simulate the parts that the config names, and print a table of each."""
    parts = {
        "binary": binary,
        "graded": graded_bounds,
        "partial": parts_of_traffic,
        "looks": looks,
        "strata": strata,
        "rows": rows_needed,
        "watching": watching,
    }
    Console().print(*(table for name in config.parts for table in parts[name](config)))
    error = 1.96 * math.sqrt(ONE_SIDED * (1 - ONE_SIDED) / (config.runs // 2))
    print(
        f"{config.runs:,} runs per cell ({config.runs // SLOWER:,} per graded and partial one, {config.runs // WATCHED:,} of the watch), seed {SEED}; looks and strata: {config.runs // 2:,}"
        f" runs, Monte Carlo error at {percent(ONE_SIDED)} ±{error:.2%}"
    )


if __name__ == "__main__":
    run(
        main,
        OperatingCharacteristicsConfig,
        __doc__ or "",
        usage=Usage(program="python -m tools.operating_characteristics"),
    )
