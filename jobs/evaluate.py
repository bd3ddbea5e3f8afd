"""The same rows to every model at once, scored by the same code; writes RUN_DIR/report.json and scores.jsonl.

Exit 3: the report is written, but a model's calls failed on more than max_failed_share of its rows, so that it was not
measured; the same command asks the failed rows again.
"""

import sys

from slm_ray.command import output_folder, run
from slm_ray.config import EvaluateConfig
from slm_ray.evaluation import evaluate
from slm_ray.evaluation.outage import outages
from slm_ray.evaluation.table import summary

NOT_MEASURED = 3


def main(config: EvaluateConfig) -> int:
    report = evaluate(config.model_copy(update={"run_dir": str(output_folder(config.run_dir))}))
    print(summary(report))
    print(f"report: {output_folder(config.run_dir)}/report.json", flush=True)
    failed = outages(report, config.max_failed_share)
    for line in failed:
        print(f"outage: {line}", file=sys.stderr, flush=True)
    return NOT_MEASURED if failed else 0


if __name__ == "__main__":
    run(main, EvaluateConfig, __doc__)
