"""Rebuild the tiny base model that the repository ships (about half an hour on two cores)."""

from rich.progress import Progress

from slm_ray.command import run
from slm_ray.yaml_file import read_yaml
from tools.config import PretrainConfig
from tools.pretrain import pretrain


def main(config: PretrainConfig) -> None:
    lexicon = read_yaml(config.lexicon, what="lexicon")
    with Progress() as progress:
        bar = progress.add_task("pretraining", total=config.tokens)

        def report(step: dict[str, float]) -> None:
            progress.update(bar, completed=step["tokens"])
            progress.console.print(" ".join(f"{name}={value:.4g}" for name, value in step.items()))

        pretrain(config, lexicon, report)
    print(f"model: {config.out_dir}")


if __name__ == "__main__":
    run(main, PretrainConfig, __doc__)
