"""The trace of a finished training run: its figures, its loss curve, and where the adapter comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slm_ray.adapters import Manifest
from slm_ray.storage import read_json
from slm_ray.tracing import Tracer, adapter_facts

FINISHED = "finished.json"
_CURVE = ("step", "loss", "learning_rate", "grad_norm")


def trace(folder: Path, manifest: Manifest, environment: Mapping[str, str]) -> None:
    """Write the trace beside the run's files and offer it to Langfuse; nothing for a run that kept no curve."""
    if not (folder / FINISHED).is_file():
        return
    told = read_json(folder / FINISHED)
    if "curve" not in told:
        return
    began_ns, ended_ns = told["bounds_ns"]
    Tracer(folder, environment).training(
        manifest.name, origin=adapter_facts(manifest), metrics=told["metrics"], curve=told["curve"],
        bounds_ns=(began_ns, ended_ns),
    )  # fmt: skip


def curve(log_history: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """The loss by step as logged, from the first step on in a resumed run too; what is not finite is left out."""
    return [
        {name: entry[name] for name in _CURVE if math.isfinite(entry.get(name, math.nan))}
        for entry in log_history
        if "loss" in entry
    ]
