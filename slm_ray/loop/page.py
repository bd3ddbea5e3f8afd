"""What a loop leaves behind for people and programs: `report.html`, one offline page, and `report.json`, its data.

Collects what the steps returned; measures and decides nothing.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from slm_ray import storage
from slm_ray.cluster import package_versions
from slm_ray.command import command_line
from slm_ray.config import FlywheelConfig, LoopConfig, RunConfig, ServeConfig
from slm_ray.loop.track import TrackRun
from slm_ray.page.data import LoopReport, StageDecision, TrackResult
from slm_ray.page.page import page
from slm_ray.remote import addressed, beside, is_remote, shown_address
from slm_ray.reports.encoding import encode
from slm_ray.reports.files import load_report

STAND_IN_FEW_SHOT = 3  # similar training rows that the stand-in is shown

CANARY = """import zlib


def takes_slm(user: str, share: float = 0.05) -> bool:
    \"\"\"The same 5 % of users get the small model every time; log both answers where you can, and compare again.\"\"\"
    return zlib.crc32(user.encode()) / 2**32 < share"""
GIB = 1 << 30


def write_result(
    config: LoopConfig, results: Sequence[TrackRun], *, uses_stand_in: bool, timings_s: Mapping[str, float]
) -> None:
    """Write both files into the run directory."""
    folder = Path(config.run_dir)
    result = LoopReport(
        title="Can the small model replace the large one?",
        generated=max((run.adapter.created for run in results if run.adapter), default=""),
        run_dir=shown_address(folder).rpartition("/")[2],
        stand_in_note=stand_in_note(config) if uses_stand_in else None,
        tracks=tuple(_track(run, timings_s) for run in results),
        environment=machine_facts(),
        reproduce=commands(config, results),
        serve_command=serve_command(config),
        canary=CANARY,
        client_snippet=_client_snippet(config, results),
    )
    storage.write_json(folder / "report.json", encode(result))
    rows = {run.name: load_report(run.folder / "test")[1] for run in results}
    storage.write_text(folder / "report.html", page(result, rows))


def _track(run: TrackRun, timings_s: Mapping[str, float]) -> TrackResult:
    final = run.compared.get("test")
    return TrackResult(
        track=run.name,
        decisions=tuple(
            StageDecision(stage=stage, comparison=found.comparison, decision=found.decision, declared=found.declared)
            for stage, found in run.compared.items()
        ),
        reports=dict(run.reports),
        adapter=encode(run.adapter) if run.adapter else None,
        timings_s=dict(timings_s),
        cost=final.cost if final else None,
        partial_replacement=final.partial_replacement if final else None,
    )


def commands(config: LoopConfig, results: Sequence[TrackRun]) -> tuple[str, ...]:
    """What gives the same result: the loop into another folder, and the comparisons of its test rows alone."""
    again = again_elsewhere("flywheel" if isinstance(config, FlywheelConfig) else "loop", addressed(config))
    return again, *(command_line("compare", addressed(run.compare_configs["test"])) for run in results)


def again_elsewhere(command: str, config: RunConfig) -> str:
    """What runs the same into another folder."""
    if is_remote(config.run_dir):  # whose config.yaml no command reads
        return command_line(command, config.model_copy(update={"run_dir": beside(config.run_dir, "-again")}))
    return command_line(command, config, f"{config.run_dir}/config.yaml", run_dir=f"{config.run_dir}-again")


def serve_command(config: LoopConfig) -> str:
    """What serves the base and the adapters of the loop."""
    known = ServeConfig.model_fields.keys()
    serving = {name: value for name, value in addressed(config.serving).model_dump().items() if name in known}
    return command_line("serve", ServeConfig(**serving))


def stand_in_note(config: RunConfig) -> str:
    """What is said where a stand-in answered as the LLM."""
    return (
        f"No Azure key was set, so the LLM of this page is a stand-in: the local base {config.serving.name!r} shown "
        f"{STAND_IN_FEW_SHOT} similar training rows before each question. It shows how the run works and "
        "says nothing about a real large model. Set AZURE_ENDPOINT, AZURE_DEPLOYMENT and AZURE_API_KEY for a real answer."
    )


def machine_facts() -> dict[str, str]:
    """Versions and machine, as a page names them."""
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
