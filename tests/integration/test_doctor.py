"""`slm-ray doctor` over two real Ray nodes on this machine: both answer, and one that has stopped is a red line in time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, signal, sys, time
import psutil, ray
from ray.cluster_utils import Cluster
from slm_ray.config import DoctorConfig
from slm_ray.doctor import doctor, plain

two = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80_000_000})
second = two.add_node(num_cpus=1, object_store_memory=80_000_000)
ray.init(address=two.address, log_to_driver=False, logging_level="ERROR")
folder, base = sys.argv[1:]
config = DoctorConfig(run_dir=folder + "/runs/mine", base=base)
both = plain(doctor(config, within_s=60))
other = plain(doctor(config.model_copy(update={'base': folder}), within_s=60))
raylets = [one for one in psutil.process_iter(["name"]) if one.info["name"] == "raylet" and one.pid == second.all_processes["raylet"][0].process.pid]
started = time.monotonic()
for one in [*raylets, *(child for parent in raylets for child in parent.children(recursive=True))]:
    one.send_signal(signal.SIGSTOP)
stopped = plain(doctor(config, within_s=3.0))
took = time.monotonic() - started
for one in raylets:
    for child in [*one.children(recursive=True), one]:
        child.kill()
print(json.dumps({"both": both, "other": other, "stopped": stopped, "took": took}))
ray.shutdown()
two.shutdown()
"""


def test_two_nodes_answer_and_one_that_has_stopped_is_a_red_line(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), str(root / "data/tiny_base")],
        env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["both"]["nodes"]) == 2
    abouts = {line["about"] for line in found["both"]["findings"]}
    assert not abouts & {"answer", "python", "packages", "folder", "base", "clock"}, found["both"]["findings"]
    assert "token" in abouts  # this one lets everybody in
    assert {node["late_s"] for node in found["both"]["nodes"]} <= {None, 0.0}
    missing = [line["node"] for line in found["other"]["findings"] if line["about"] == "base"]
    assert len(missing) == 2  # each node says so; on this one machine both have one name
    silent = [line for line in found["stopped"]["findings"] if line["about"] == "answer"]
    assert [line["problem"] for line in silent] == ["no answer within 3 s"]
    assert found["took"] < 60
    assert not list(tmp_path.iterdir())  # nothing of it is left
