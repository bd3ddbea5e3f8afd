"""A model as judge of a finished evaluation, or (calibrate) of answers that people have graded; writes RUN_DIR/judge.json."""

from slm_ray.command import output_folder, run
from slm_ray.config import JudgeConfig
from slm_ray.judging import judge, lines


def main(config: JudgeConfig) -> None:
    folder = output_folder(config.run_dir)
    for line in lines(judge(config.model_copy(update={"run_dir": str(folder)}))):
        print(line)


if __name__ == "__main__":
    run(main, JudgeConfig, __doc__)
