"""One Ray cluster and one engine for every integration test that needs an endpoint, and adapters to serve on it.

The endpoint is as strict as it gets: an API key, a stand-in, at most 4 adapters in a batch and 16 in memory. It is asked the
way that Ray's variables choose, so that the same tests hold engines which answer clients themselves.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
import yaml
from safetensors.torch import save_file

from slm_ray.adapters import base_fingerprint, base_shapes, publish
from slm_ray.config import Serving
from slm_ray.ray_environment import HAPROXY
from slm_ray.serving import deploy, shutdown
from slm_ray.serving.settings import DIRECT

ROOT = Path(__file__).parents[2]
KEY = "integration-test-key"
ENVIRONMENT = {"SLM_RAY_API_KEY": KEY, **{name: os.environ.get(name, "") for name in (HAPROXY, DIRECT)}}
POOL = [
    {"id": f"row{n}", "prompt": f"call {city} about the weather", "completion": json.dumps({"city": city})}
    for n, city in enumerate(["Paris", "Rome", "Oslo", "Lima", "Cairo"])
]

CITY = """name: city
extends: structured
scorers: [structured, schema]
answer_schema: {type: object, properties: {city: {enum: [Oslo, Lima]}}, required: [city], additionalProperties: false}
"""


@dataclass(frozen=True, kw_only=True)
class Served:
    """The running endpoint and how to ask it."""

    url: str
    config: Serving
    stand_in: dict[str, Any]
    name: str = "tiny-base"

    @property
    def adapters(self) -> Path:
        return Path(self.config.adapters_dir)

    def post(self, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
        headers = headers or {"Authorization": f"Bearer {KEY}"}
        return httpx.post(self.url + path, json=body, headers=headers, timeout=120, trust_env=False)

    def ask(self, model: str | None, text: str = "What is the weather in Oslo?", **extra: Any) -> httpx.Response:
        return self.post("/v1/chat/completions", chat_body(model, text, **extra))

    def ask_all(self, asked: Sequence[tuple[str, str]], **extra: Any) -> list[httpx.Response]:
        """All (model, text) pairs at once."""

        async def run() -> list[httpx.Response]:
            headers, limits = {"api-key": KEY}, httpx.Limits(max_connections=200)
            async with httpx.AsyncClient(headers=headers, limits=limits, timeout=120, trust_env=False) as client:
                calls = (client.post(f"{self.url}/v1/chat/completions", json=chat_body(*one, **extra)) for one in asked)
                return await asyncio.gather(*calls)

        return asyncio.run(run())

    def models(self) -> list[str]:
        reply = httpx.get(f"{self.url}/v1/models", headers={"api-key": KEY}, trust_env=False)
        return [card["id"] for card in reply.json()["data"]]


def chat_body(model: str | None, text: str, **extra: Any) -> dict[str, Any]:
    """Eight tokens whatever they are: answers that end at once are too short to tell models apart."""
    named = {"model": model} if model else {}
    messages = [{"role": "user", "content": text}]
    return {**named, "messages": messages, "max_tokens": 8, "temperature": 0, "ignore_eos": True, **extra}


def text_of(reply: httpx.Response) -> str:
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"])


def make_adapter(
    folder: Path, base: Path, *, seed: int, rank: int = 8, size: float = 1.0, hidden: int | None = None
) -> Path:
    """A PEFT LoRA adapter for all linear layers with random weights, large enough to change every answer."""
    config = json.loads((base / "config.json").read_text())
    wide, inner = hidden or config["hidden_size"], config["intermediate_size"]
    shapes = {f"self_attn.{name}_proj": (wide, wide) for name in "qkvo"}
    shapes |= {"mlp.gate_proj": (inner, wide), "mlp.up_proj": (inner, wide), "mlp.down_proj": (wide, inner)}
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for module, (out_size, in_size) in shapes.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            a, b = torch.randn(rank, in_size, generator=random), torch.randn(out_size, rank, generator=random)
            tensors[f"{name}.lora_A.weight"] = (size * a / in_size**0.5).bfloat16()
            tensors[f"{name}.lora_B.weight"] = (size * b / rank**0.5 / 4).bfloat16()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    modules = sorted({name.split(".")[-1] for name in shapes})
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank, "target_modules": modules,
                "lora_dropout": 0.0, "bias": "none", "base_model_name_or_path": "x"}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def publish_adapter(served: Served, name: str, *, seed: int, fingerprint: str | None = None, **options: Any) -> str:
    """A published adapter; its id."""
    base = Path(served.config.base)
    made = make_adapter(served.adapters.parent / "made" / name, base, seed=seed, **options)
    manifest = publish(
        made, served.adapters, name=name, track="structured", base="tiny", config_digest="c", data_digest="d", metrics={},
        base_fingerprint=fingerprint or base_fingerprint(base), train_prompts=[], recipe={}, base_shapes=base_shapes(base),
    )  # fmt: skip
    return manifest.id


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def few_copies(file: Path) -> Path:
    """The tiny base's serve file, with room for a few adapters on the node's disk."""
    serving = yaml.safe_load((ROOT / "serve_configs/cpu_tiny.yaml").read_text(encoding="utf-8"))
    serving["applications"][0]["args"]["llm_configs"][0]["experimental_configs"] = {"adapter_cache_bytes": 2_000_000}
    file.write_text(yaml.safe_dump(serving), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("served")
    shutil.copytree(ROOT / "data/tiny_base", home / "base")
    (home / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in POOL))
    stand_in = {"deployment": "stand-in", "demonstrations": 2, "pools": {"structured": str(home / "pool.jsonl")}}
    config = Serving(
        config=str(few_copies(home / "serve.yaml")), base=str(home / "base"), name="tiny-base",
        adapters_dir=str(home / "adapters"), port=free_port(), tracks=[str(home / "city.yaml")],
    )  # fmt: skip
    (home / "city.yaml").write_text(CITY, encoding="utf-8")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 lets any other program starve the engine
    before = engines()
    endpoint = deploy(config, stand_in=stand_in, environment=ENVIRONMENT)
    yield Served(url=endpoint.url, config=config, stand_in=stand_in)
    shutdown()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", config.port)) != 0
    deadline = time.monotonic() + 15  # the engine's processes end a moment after the replica that started them
    while (left := engines() - before) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left


def engines() -> set[int]:
    """Processes of vLLM that still run."""
    running = (process for process in psutil.process_iter(["name", "status"]))
    return {
        process.pid for process in running
        if "VLLM" in process.info["name"] and process.info["status"] != psutil.STATUS_ZOMBIE
    }  # fmt: skip
