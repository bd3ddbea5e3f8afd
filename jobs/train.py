"""One QLoRA adapter: Ray Train over the worker group, then published under an immutable, content-addressed id."""

from slm_ray.cluster import connect
from slm_ray.command import output_folder, run
from slm_ray.config import TrainConfig
from slm_ray.training import train


def main(config: TrainConfig) -> None:
    folders = {name: str(output_folder(getattr(config, name))) for name in ("run_dir", "adapters_dir")}
    connect()
    manifest = train(config.model_copy(update=folders))
    print(f"adapter {manifest.id}\n  folder {folders['adapters_dir']}/{manifest.id}")
    for name, value in sorted(manifest.metrics.items()):
        print(f"  {name} {value}")


if __name__ == "__main__":
    run(main, TrainConfig, __doc__)
