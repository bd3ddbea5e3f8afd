"""Task rows in; train.jsonl, validation.jsonl and test.jsonl out, in one form and with no question in two of them.

A row is a question with its expected answer, in any format that README names. Reads `source`, refuses or leaves out bad
rows and says why for each, curates, splits by a hash (the same rows and seed give the same files), and writes to out_dir.
    jobs/prepare.py --track classify --source tickets.csv --stratify label --out_dir runs/prepared/tickets
"""

from slm_ray.command import output_folder, run
from slm_ray.config import PrepareConfig
from slm_ray.fanout import in_order
from slm_ray.prepare import prepare


def main(config: PrepareConfig) -> None:
    count = None
    if config.curation.max_tokens is not None and config.base:
        from slm_ray.training.base_model import token_counter  # loads transformers

        count = token_counter(config.base)
    out_dir = str(output_folder(config.out_dir))
    done = prepare(
        config.model_copy(update={"out_dir": out_dir}), count=count, say=print,
        fan_out=in_order,
    )  # fmt: skip
    print(done.summary())


if __name__ == "__main__":
    run(main, PrepareConfig, __doc__)
