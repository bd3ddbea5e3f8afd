"""One QLoRA adapter: Ray Train over the worker group, then published under an immutable, content-addressed id."""

from slm_ray.adapters import check_base
from slm_ray.command import output_folder, run
from slm_ray.config import TrainConfig


def main(config: TrainConfig) -> None:
    check_base(config.base, setting="base")
    folders = {name: str(output_folder(getattr(config, name), setting=name)) for name in ("run_dir", "adapters_dir")}
    # Ray takes seconds to import: what is wrong with the settings is said before.
    from slm_ray.cluster import connect
    from slm_ray.training import train

    connect()
    manifest = train(config.model_copy(update=folders))
    print(f"adapter {manifest.id}\n  folder {folders['adapters_dir']}/{manifest.id}")
    for name, value in sorted(manifest.metrics.items()):
        print(f"  {name} {value}")


if __name__ == "__main__":
    run(main, TrainConfig, __doc__)
