"""Ray Tune over learning rate and LoRA rank; each trial is a Ray Train run, scored on validation rows."""

from slm_ray.cluster import connect
from slm_ray.command import output_folder, run
from slm_ray.config import SweepConfig
from slm_ray.sweep import sweep


def main(config: SweepConfig) -> None:
    folders = {name: str(output_folder(getattr(config.training, name))) for name in ("run_dir", "adapters_dir")}
    connect()
    result = sweep(config.training.model_copy(update=folders), config.search, validation=config.validation)
    for trial in result["trials"]:
        print(f"lr {trial['learning_rate']:<8g} rank {trial['rank']:<4} {result['metric']} {trial['score']}")
    print(f"best: lr {result['best']['learning_rate']:g}, rank {result['best']['rank']}")


if __name__ == "__main__":
    run(main, SweepConfig, __doc__)
