"""How long the same rows take against an endpoint of fixed latency: this evaluation, lm-evaluation-harness, inspect-ai."""

import shutil
import statistics
from pathlib import Path

from slm_ray.command import output_folder
from slm_ray.command import run as run_job
from tools.config import RaceConfig
from tools.race import endpoint, entrants, run, write_rows


def main(config: RaceConfig) -> None:
    folder = Path(output_folder(config.out_dir)).absolute()
    shutil.rmtree(folder, ignore_errors=True)
    rows = write_rows(folder, config.rows)
    ideal_s = config.rows * config.latency_s / config.concurrency
    print(
        f"{config.rows} rows, {config.latency_s * 1000:g} ms each, {config.concurrency} in flight: ideal {ideal_s:.2f} s"
    )
    with endpoint(config.latency_s) as url:
        field = entrants(config, url, rows)
        laps = [
            run(entrant, url, folder / f"{turn}" / entrant.name) for turn in range(config.rounds) for entrant in field
        ]
    ours = statistics.median(lap.span_s for lap in laps if lap.name == field[0].name)
    print(
        f"{'program':24}{'asking, s':>10}{'rows/s':>8}{'x ideal':>9}{'x ours':>8}{'in flight':>10}{'reply, ms':>11}{'whole, s':>10}"
    )
    for entrant in field:
        its = [lap for lap in laps if lap.name == entrant.name]
        span_s = statistics.median(lap.span_s for lap in its)
        ideal = f"{span_s / ideal_s:9.2f}" if ideal_s else f"{'-':>9}"
        whole_s = statistics.median(lap.whole_s for lap in its)
        reply_s = statistics.median(lap.reply_s for lap in its)
        short = "" if min(lap.calls for lap in its) >= config.rows else f"  only {min(lap.calls for lap in its)} calls"
        print(
            f"{entrant.name:24}{span_s:10.2f}{config.rows / span_s:8.0f}{ideal}{span_s / ours:8.2f}"
            f"{max(lap.most_in_flight for lap in its):10}{1000 * reply_s:11.1f}{whole_s:10.1f}{short}"
        )


if __name__ == "__main__":
    run_job(main, RaceConfig, __doc__)
