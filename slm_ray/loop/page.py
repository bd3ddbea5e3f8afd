"""What a loop leaves behind for people and programs: `report.html`, one offline page, and `report.json`, its data.

Collects what the steps returned; measures and decides nothing.
"""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from slm_ray import storage
from slm_ray.cluster import package_versions
from slm_ray.config import LoopConfig
from slm_ray.loop.track import TrackRun
from slm_ray.reports import Compared, load_report
from slm_ray.verdict.page import page

PAGE_ROWS = 10_000
CANARY = """import zlib


def takes_slm(request_id: str, share: float = 0.05) -> bool:
    \"\"\"The same 5 % of requests go to the small model every time; log both answers where you can, and compare again.\"\"\"
    return zlib.crc32(request_id.encode()) / 2**32 < share"""
GIB = 1 << 30


def write_result(
    config: LoopConfig, results: Sequence[TrackRun], *, uses_stand_in: bool, timings_s: Mapping[str, float]
) -> None:
    """Write both files into the run directory."""
    folder = Path(config.run_dir)
    data: dict[str, Any] = {
        "title": "Can the small model replace the large one?",
        "generated": max((result.adapter.created for result in results if result.adapter), default=""),
        "run_dir": folder.name,
        "stand_in_note": _stand_in_note(config) if uses_stand_in else None,
        "tracks": [_track(result, timings_s) for result in results],
        "environment": _environment(),
        "reproduce": [
            f"python jobs/loop.py {folder.name}/config.yaml",
            *(
                f"python jobs/compare.py jobs/compare.yaml --set report={folder.name}/{result.name}/test"
                for result in results
            ),
        ],
        "serve_command": _serve_command(config),
        "canary": CANARY,
        "client_snippet": _client_snippet(config, results),
    }
    storage.write_json(folder / "report.json", data)
    for track, result in zip(data["tracks"], results, strict=True):
        track["rows"] = load_report(result.folder / "test")[1][:PAGE_ROWS]
    storage.write_text(folder / "report.html", page(data))


def _track(result: TrackRun, timings_s: Mapping[str, float]) -> dict[str, Any]:
    final = result.compared.get("test")
    return {
        "track": result.name,
        "decisions": [_decision(stage, found) for stage, found in result.compared.items()],
        "reports": dict(result.reports),
        "adapter": dataclasses.asdict(result.adapter) if result.adapter else None,
        "timings_s": dict(timings_s),
        "cost": final and final.cost,
        "partial": final and final.partial,
    }


def _decision(stage: str, found: Compared) -> dict[str, Any]:
    comparison, decision = found.comparison, found.decision
    return {
        "stage": stage, "action": decision.action, "rule": decision.rule, "delta": decision.delta,
        "because": list(decision.because), "llm": comparison.llm, "slm": comparison.slm, "n": comparison.n,
        "primary": comparison.primary, "interval": dataclasses.asdict(comparison.interval),
        "gates": {name: dataclasses.asdict(interval) for name, interval in comparison.gates.items()},
        "slices": [dataclasses.asdict(part) for part in comparison.slices],
    }  # fmt: skip


def _serve_command(config: LoopConfig) -> str:
    serving = config.serving
    return (
        f"python jobs/serve.py jobs/serve.yaml --set config={serving.config} --set base={serving.base} "
        f"--set name={serving.name} --set adapters_dir={serving.adapters_dir}"
    )


def _stand_in_note(config: LoopConfig) -> str:
    return (
        f"No Azure key was set, so the LLM of this page is a stand-in: the local base {config.serving.name!r} shown "
        f"{config.stand_in_few_shot} similar training rows before each question. It shows how the loop works and "
        "says nothing about a real large model. Set AZURE_ENDPOINT, AZURE_DEPLOYMENT and AZURE_API_KEY for a real answer."
    )


def _environment() -> dict[str, str]:
    memory = psutil.virtual_memory().total / GIB
    return {
        **package_versions(),
        "python": platform.python_version(),
        "machine": f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.machine()}",
    }


def _client_snippet(config: LoopConfig, results: Sequence[TrackRun]) -> str:
    adapters = [result.adapter.id for result in results if result.adapter]
    model = f"{config.serving.name}:{adapters[0]}" if adapters else config.serving.name
    return (
        "from openai import OpenAI\n\n"
        f'client = OpenAI(base_url="http://{config.serving.host}:{config.serving.port}/v1", api_key="local")\n'
        f'answer = client.chat.completions.create(model="{model}", temperature=0, messages=[…])\n'
        "print(answer.choices[0].message.content)"
    )
