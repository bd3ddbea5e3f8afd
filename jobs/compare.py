"""Two models on the same rows: swap (exit 0), fine_tune (exit 10) or inconclusive (exit 20), and why."""

import os

from slm_ray.command import run
from slm_ray.config import CompareConfig
from slm_ray.reports import compare_reports
from slm_ray.tracing import Tracer
from slm_ray.verdict.decide import EXIT, verdict_text


def main(config: CompareConfig) -> int:
    comparison, decision = compare_reports(config)
    print(verdict_text(comparison, decision))
    Tracer(config.report, os.environ).comparison(comparison, decision)
    return EXIT[decision.action]


if __name__ == "__main__":
    run(main, CompareConfig, __doc__)
