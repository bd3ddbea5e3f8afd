"""Two models on the same rows: swap (exit 0), fine_tune (exit 10) or inconclusive (exit 20), what both cost, and why."""

import os

from slm_ray.command import run
from slm_ray.config import CompareConfig
from slm_ray.reports.compare import compare_reports, comparison_text, write_comparison
from slm_ray.tracing import Tracer
from slm_ray.verdict.decide import EXIT


def main(config: CompareConfig) -> int:
    found = compare_reports(config)
    write_comparison(found, config)
    print(comparison_text(found))
    Tracer(config.report, os.environ).comparison(found.comparison, found.decision)
    return EXIT[found.decision.action]


if __name__ == "__main__":
    run(main, CompareConfig, __doc__)
