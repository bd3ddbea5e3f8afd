"""Task rows in, examples with stable ids and three splits that share no prompt out."""

from slm_ray.command import output_folder, run
from slm_ray.config import PrepareConfig
from slm_ray.prepare import prepare


def main(config: PrepareConfig) -> None:
    prepared = prepare(config.model_copy(update={"out_dir": str(output_folder(config.out_dir))}))
    for name, rows in prepared.rows.items():
        print(f"{name:<11}{rows:>7} rows  {prepared.path(name)}")


if __name__ == "__main__":
    run(main, PrepareConfig, __doc__)
