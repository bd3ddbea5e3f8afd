"""The nodes of a cluster as a person reads them: a row each, `!` where a red line is about the cell, then the red lines."""

from __future__ import annotations

import hashlib
from typing import Any

from slm_ray.doctor.facts import NodeFacts
from slm_ray.doctor.run import Examination
from slm_ray.reports.encoding import encode
from slm_ray.tables import format_table

_HEAD = ("node", "python", "packages", "ray", "driver, CUDA", "GPUs", "free GB", "base", "folders", "ports", "clock")
_ABOUT = ("", "python", "packages", "packages", "gpu", "gpu", "disk", "base", "folder", "port", "clock")


def summary(examination: Examination) -> str:
    """The table, and every red line with what to do; or that there is none."""
    wrong = {(finding.node, finding.about) for finding in examination.findings}
    rows: list[tuple[str, ...]] = [_HEAD]
    for node in examination.nodes:
        cells = _cells(node) if isinstance(node, NodeFacts) else (node.node, *["-"] * (len(_HEAD) - 1))
        rows.append(tuple(f"{cell} !" if (node.node, about) in wrong else cell for cell, about in zip(cells, _ABOUT, strict=True)))  # fmt: skip
    lines = format_table(rows, left=range(len(_HEAD)))
    lines += [f"red: {finding}" for finding in examination.findings]
    return "\n".join(lines if examination.findings else [*lines, "nothing is wrong"])


def plain(examination: Examination) -> Any:
    """All of it as what JSON holds; of packages their digest."""
    nodes = [encode(node) for node in examination.nodes]
    for node in nodes:
        if "packages" in node:
            node["packages"] = digest(node["packages"])
    return {"ok": not examination.findings, "findings": encode(examination.findings), "nodes": nodes}


def digest(packages: Any) -> str:
    """8 hex digits; equal where all versions are."""
    lines = sorted(f"{name}=={version}" for name, version in packages.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]


def _cells(node: NodeFacts) -> tuple[str, ...]:
    cards = [
        f"{one.name} {one.used_bytes / 1e9:.0f}/{one.total_bytes / 1e9:.0f} GB"
        + ("" if one.celsius is None else f" {one.celsius} °C")
        for one in node.gpus
    ]
    free = [f"{size / 1e9:.0f} {place}" for place, size in node.free_bytes.items()]
    return (
        node.node, node.python, digest(node.packages), node.packages.get("ray", "-"),
        f"{node.driver}, {node.cuda}" if node.driver else "-", ", ".join(cards) or "none", ", ".join(free),
        node.base[:8] or "-", f"{len(node.folders)}" if node.folders else "-", str(len(node.listeners)),
        "-" if node.late_s is None else f"{node.late_s:+.1f} s",
    )  # fmt: skip
