"""Simulate the verdict: false swaps, false fine_tunes, interval coverage and the power of the sample-size advice."""

from rich.console import Console
from rich.progress import track
from rich.table import Table

from slm_ray.command import run
from slm_ray.config import SimulateConfig
from slm_ray.verdict import simulate


def main(config: SimulateConfig) -> int:
    wrong = Table(
        "n", "discordance", "false swap", "false fine_tune", "coverage of 95 %", title=f"delta {config.delta:g}"
    )
    cells = [(n, share) for n in config.rows for share in config.discordance if share >= config.delta]
    for n, share in track(cells, "simulating", console=Console(stderr=True), transient=True):
        found = simulate.errors(n, share, config.delta, runs=config.runs, seed=config.seed)
        inside = simulate.coverage(n, share, -config.delta, runs=config.runs, seed=config.seed)
        wrong.add_row(str(n), f"{share:g}", f"{found.false_swap:.2%}", f"{found.false_fine_tune:.2%}", f"{inside:.1%}")
    helped = Table("discordance", "delta", "rows advised", "power promised", "power found", title="advice")
    for share in config.discordance:
        found_power = simulate.power(share, config.delta, runs=config.runs, seed=config.seed)
        if found_power is not None:
            helped.add_row(
                f"{share:g}",
                f"{config.delta:g}",
                f"{found_power.rows:,}",
                f"{found_power.promised:.0%}",
                f"{found_power.found:.1%}",
            )
    Console().print(wrong, helped)
    print(f"{config.runs:,} simulated runs per cell, seed {config.seed}")
    return 0


if __name__ == "__main__":
    run(main, SimulateConfig, __doc__)
