"""Ray Tune over learning rate and LoRA rank; each trial is a Ray Train run, scored on validation rows."""

from slm_ray.adapters import check_base
from slm_ray.command import output_folder, run
from slm_ray.config import SweepConfig


def main(config: SweepConfig) -> None:
    training = config.training
    check_base(training.base, setting="training.base")
    folders = {
        name: str(output_folder(getattr(training, name), setting=f"training.{name}"))
        for name in ("run_dir", "adapters_dir")
    }
    # Ray takes seconds to import: what is wrong with the settings is said before.
    from slm_ray.cluster import connect
    from slm_ray.sweep import sweep

    connect()
    result = sweep(training.model_copy(update=folders), config.search, validation=config.validation)
    for trial in result["trials"]:
        print(f"lr {trial['learning_rate']:<8g} rank {trial['rank']:<4} {result['metric']} {trial['score']}")
    print(f"best: lr {result['best']['learning_rate']:g}, rank {result['best']['rank']}")


if __name__ == "__main__":
    run(main, SweepConfig, __doc__)
