"""The whole question: prepare, deploy, evaluate, compare, train, publish, evaluate again, compare, one page."""

from slm_ray.adapters import check_base
from slm_ray.command import output_folder, run
from slm_ray.config import LoopConfig
from slm_ray.verdict.decide import EXIT


def main(config: LoopConfig) -> int:
    check_base(config.serving.base, setting="serving.base")
    folder = str(output_folder(config.run_dir))
    adapters = str(output_folder(config.serving.adapters_dir, setting="serving.adapters_dir"))
    from slm_ray.loop import (
        loop,
    )  # with Ray, which takes seconds to import: what is wrong with the settings is said before

    serving = config.serving.model_copy(update={"adapters_dir": adapters})
    result = loop(config.model_copy(update={"run_dir": folder, "serving": serving}))
    print(f"page: {folder}/report.html")
    return max(EXIT[action] for action in result.values()) if config.exit_with_decision else 0


if __name__ == "__main__":
    run(main, LoopConfig, __doc__)
