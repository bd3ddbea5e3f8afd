"""The same rows, the same endpoint, the same calls in flight: this evaluation and two well-known ones, in turn.

Each program runs as its own process with its own interpreter, whole, as its users run it. What is compared is measured
by the endpoint: the seconds from the first request to the last reply, so start-up and import times do not count; the
whole command's seconds stand beside it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

from slm_ray.errors import ResourceError
from tools.config import RaceConfig

OPENER = build_opener(ProxyHandler({}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrant:
    """A program in the race: its command, without what belongs to one run."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lap:
    """One run as the endpoint saw it (`reply_s`: how long it really took to reply, on average), and the whole command."""

    name: str
    calls: int
    span_s: float
    reply_s: float
    most_in_flight: int
    whole_s: float


def write_rows(folder: Path, rows: int) -> Path:
    """`rows` short questions that all have the answer the endpoint gives."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.jsonl"
    lines = (json.dumps({"prompt": f"Say ok. ({number})", "completion": "ok"}) for number in range(rows))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def entrants(config: RaceConfig, url: str, rows: Path) -> list[Entrant]:
    """This evaluation, and those of the two others whose executables the config names."""
    found = [_ours(config, url, rows)]
    if config.lm_eval:
        found.append(_lm_eval(config, url, rows))
    if config.inspect:
        found.append(_inspect(config, url, rows))
    return found


def run(entrant: Entrant, url: str, folder: Path) -> Lap:
    """One lap, in a fresh folder two below the rows' own; ResourceError with the end of its output when the command fails."""
    folder.mkdir(parents=True)
    get(f"{url}/reset")
    started = time.perf_counter()
    command = [part.replace("{folder}", str(folder)) for part in entrant.command]
    log = folder / "output.log"
    with log.open("wb") as output:  # a pipe would wait for everything that the command leaves behind
        done = subprocess.run(
            command, env={**os.environ, **entrant.environment}, cwd=folder.parents[1], stdout=output,
            stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
    whole_s = time.perf_counter() - started
    if done.returncode:
        said = log.read_text(encoding="utf-8", errors="replace")
        raise ResourceError(f"{entrant.name} ended with status {done.returncode}: {said[-800:]}")
    return Lap(name=entrant.name, whole_s=whole_s, **json.loads(get(f"{url}/span")))


def get(url: str) -> bytes:
    """The body of one GET, never through a proxy."""
    with OPENER.open(url, timeout=10) as reply:
        body: bytes = reply.read()
    return body


@contextmanager
def endpoint(latency_s: float, host: str = "127.0.0.1") -> Iterator[str]:
    """The address of an endpoint of that latency, in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("endpoint.py")), str(latency_s), host]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://{host}:{int(process.stdout.readline())}"
        finally:
            process.terminate()


def _ours(config: RaceConfig, url: str, rows: Path) -> Entrant:
    jobs = Path(__file__).parents[1] / "jobs"
    settings = {
        "track": "chat", "examples": str(rows), "models": '["served:bench"]', "run_dir": "{folder}/run", "endpoint": url,
        "generation.concurrency": str(config.concurrency), "shards": str(config.shards), "train": "null",
    }  # fmt: skip
    pairs = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    return Entrant(
        name="slm_ray", command=(sys.executable, str(jobs / "evaluate.py"), str(jobs / "evaluate.yaml"), *pairs)
    )


def _lm_eval(config: RaceConfig, url: str, rows: Path) -> Entrant:
    task = {
        "task": "bench", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test", "output_type": "generate_until", "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{completion}}", "generation_kwargs": {"until": [], "max_gen_toks": 16},
        "metric_list": [{"metric": "exact_match"}],
    }  # fmt: skip
    (rows.parent / "bench.yaml").write_text(json.dumps(task), encoding="utf-8")  # JSON is YAML
    arguments = (
        f"model=bench,base_url={url}/v1/chat/completions,num_concurrent={config.concurrency},tokenized_requests=False"
    )
    command = (
        str(config.lm_eval), "--model", "local-chat-completions", "--model_args", arguments, "--tasks", "bench",
        "--include_path", str(rows.parent), "--apply_chat_template", "--log_samples", "--output_path", "{folder}",
    )  # fmt: skip
    offline = {"OPENAI_API_KEY": "none", "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    return Entrant(name="lm-evaluation-harness", command=command, environment=offline)


def _inspect(config: RaceConfig, url: str, rows: Path) -> Entrant:
    task = (
        "from inspect_ai import Task, task\n"
        "from inspect_ai.dataset import FieldSpec, json_dataset\n"
        "from inspect_ai.scorer import exact\n\n\n"
        "@task\n"
        "def bench():\n"
        f"    rows = json_dataset({str(rows)!r}, FieldSpec(input='prompt', target='completion'))\n"
        "    return Task(dataset=rows, scorer=exact())\n"
    )
    path = rows.parent / "bench_task.py"
    path.write_text(task, encoding="utf-8")
    command = (
        str(config.inspect), "eval", path.name, "--model", "openai-api/local/bench", "--max-connections",
        str(config.concurrency), "--max-samples", str(config.concurrency), "--max-tokens", "16", "--display", "none",
        "--log-dir", "{folder}",
    )  # fmt: skip
    return Entrant(
        name="inspect-ai", command=command, environment={"LOCAL_BASE_URL": f"{url}/v1", "LOCAL_API_KEY": "none"}
    )
