"""The same rows to every model at once, scored by the same code; writes RUN_DIR/report.json and scores.jsonl."""

from slm_ray.command import output_folder, run
from slm_ray.config import EvaluateConfig
from slm_ray.evaluation import evaluate
from slm_ray.evaluation.table import summary


def main(config: EvaluateConfig) -> None:
    report = evaluate(config.model_copy(update={"run_dir": str(output_folder(config.run_dir))}))
    print(summary(report))
    print(f"report: {output_folder(config.run_dir)}/report.json")


if __name__ == "__main__":
    run(main, EvaluateConfig, __doc__)
