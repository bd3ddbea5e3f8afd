"""The commands about machines: what an endpoint carries, and in what state the nodes of a cluster are.

As in `commands`, what is heavy is imported when a function runs.
"""

from __future__ import annotations

import json

from slm_ray import config as configs
from slm_ray.command import output_folder


def load(config: configs.LoadConfig) -> None:
    """Latency against the rate of arrivals (open loop), the most requests/s at a p95 target, and what 1,000 of them cost.

    Requests arrive at random at each of `rates`, whether or not earlier ones are answered; each is one call, and its latency
    counts from when it was due. Writes RUN_DIR/load.json, which `cost.load` of compare reads; the same command continues.
        slm-ray load --track structured --examples runs/prepared/structured/test.jsonl --run_dir runs/load --models '["served:tiny-base"]'
    """
    from slm_ray.load import measure, summary

    folder = output_folder(config.run_dir)
    report = measure(config.model_copy(update={"run_dir": str(folder)}))
    print(summary(report, p95_s=config.p95_s))
    print(f"load: {folder}/load.json")


def doctor(config: configs.DoctorConfig) -> int:
    """Every node of the Ray cluster in one table: packages, GPUs, disks, base, folders, token, ports, clock; what is wrong.

    Exit 1 where something is, with what to do in a red line each. A node that does not answer in time is one too.
    """
    from slm_ray.doctor import doctor as examine
    from slm_ray.doctor import plain, summary

    found = examine(config)
    print(json.dumps(plain(found), indent=1) if config.output == "json" else summary(found))
    return 1 if found.findings else 0
