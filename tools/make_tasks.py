"""Make the project's own task data (xLAM's format) from the catalogue of tools, the same bytes for the same seed."""

from slm_ray import storage
from slm_ray.command import run
from slm_ray.errors import DataError
from slm_ray.yaml_file import read_yaml
from tools.config import TasksConfig
from tools.synthesize import rows_text, synthesize


def main(config: TasksConfig) -> None:
    try:
        rows = synthesize(read_yaml(config.catalogue, what="catalogue"), config.rows, config.seed)
    except ValueError as error:
        raise DataError(f"{config.catalogue}: {error}") from None
    storage.write_text(config.out, rows_text(rows))
    print(f"{len(rows)} rows  {config.out}")


if __name__ == "__main__":
    run(main, TasksConfig, __doc__)
