"""What the endpoint counts, told to Ray, which hands it out on its own Prometheus ports beside what it counts itself.

`exported` gathers from those ports, of all nodes, what the fronts of one endpoint have counted. Ray takes figures over every
ten seconds.

One table says every figure; the dashboard in `deploy/grafana` names no other. Per model means per exact version that
answered, and per key by its name, so that neither grows with what strangers send. The ingress' replica is a tag that Ray
adds.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import httpx
import ray

from slm_ray.serving.admission import Answered

_ANSWERS_WITHIN_S = 2.0
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure: a Counter, a Gauge, or a Histogram of seconds."""

    name: str
    kind: Literal["Counter", "Gauge", "Histogram"]
    tags: tuple[str, ...]
    about: str


FIGURES = (
    Figure(name="slm_ray_requests", kind="Counter", tags=("key", "model", "status"),
           about="Requests for an answer, refused ones too: the model is empty where none has answered, the key where none was right"),
    Figure(name="slm_ray_prompt_tokens", kind="Counter", tags=("key", "model"), about="Tokens of prompts that were answered"),
    Figure(name="slm_ray_completion_tokens", kind="Counter", tags=("key", "model"), about="Tokens of answers"),
    Figure(name="slm_ray_answer_seconds", kind="Histogram", tags=("model",), about="From request to the end of its answer"),
    Figure(name="slm_ray_first_token_seconds", kind="Histogram", tags=("model",), about="From request to a stream's first chunk"),
    Figure(name="slm_ray_answers_in_flight", kind="Gauge", tags=(), about="Answers that are being written"),
    Figure(name="slm_ray_tokens_in_flight", kind="Gauge", tags=(), about="Tokens that the answers in flight may take"),
)  # fmt: skip

Make = Callable[[Figure], Any]


def of_ray_serve(figure: Figure) -> Any:
    """One of Ray Serve's metrics; within a replica."""
    from ray.serve import metrics

    shape: Mapping[str, Any] = {"boundaries": list(_SECONDS)} if figure.kind == "Histogram" else {}
    return getattr(metrics, figure.kind)(figure.name, description=figure.about, tag_keys=figure.tags, **shape)


class Recorder:
    """`admission.Figures`, by the table."""

    def __init__(self, make: Make = of_ray_serve) -> None:
        self._metrics = {figure.name: make(figure) for figure in FIGURES}

    def in_flight(self, answers: int, tokens: int) -> None:
        """So many are being written now."""
        self._metrics["slm_ray_answers_in_flight"].set(answers)
        self._metrics["slm_ray_tokens_in_flight"].set(tokens)

    def answered(self, answered: Answered) -> None:
        """One has ended, well or not."""
        model = {"model": answered.model}
        tags = {"key": answered.key, **model}
        self._metrics["slm_ray_requests"].inc(1, tags={**tags, "status": str(answered.status)})
        if answered.first_s is None:
            return
        tokens = {"prompt": answered.prompt_tokens, "completion": answered.completion_tokens}
        for side, count in tokens.items():
            if count:  # Ray refuses to count nothing
                self._metrics[f"slm_ray_{side}_tokens"].inc(count, tags=tags)
        self._metrics["slm_ray_answer_seconds"].observe(answered.total_s, tags=model)
        if answered.is_stream:
            self._metrics["slm_ray_first_token_seconds"].observe(answered.first_s, tags=model)


async def exported(application: str) -> str:
    """The figures of every front of a Serve application, in Prometheus' text format; of nodes that answer."""
    nodes = await asyncio.to_thread(ray.nodes)
    ports = {(node["NodeManagerAddress"], node["MetricsExportPort"]) for node in nodes if node["Alive"]}
    async with httpx.AsyncClient(timeout=_ANSWERS_WITHIN_S, trust_env=False) as client:
        texts = await asyncio.gather(*(_text(client, *port) for port in sorted(ports)))
    return merged(texts, application)


async def _text(client: httpx.AsyncClient, host: str, port: int) -> str:
    try:
        reply = await client.get(f"http://[{host}]:{port}/metrics" if ":" in host else f"http://{host}:{port}/metrics")
    except httpx.HTTPError:
        return ""
    return reply.text if reply.status_code == 200 else ""


def merged(texts: Iterable[str], application: str) -> str:
    """Our figures of one application from what several nodes export, each figure's lines together as the format wants them."""
    families: dict[str, list[str]] = {}
    ours, mark = tuple(f"ray_{figure.name}" for figure in FIGURES), f'application="{application}"'
    for line in (line for text in texts for line in text.splitlines()):
        name = (line.split() + [""] * 3)[2] if line.startswith("#") else re.split(r"[{\s]", line, maxsplit=1)[0]
        family = next((each for each in ours if name.startswith(each)), None)
        if family is None:
            continue
        lines = families.setdefault(family, [])
        if line.startswith("#"):
            if line not in lines:
                lines.insert(sum(each.startswith("#") for each in lines), line)
        elif mark in line:
            lines.append(line)
    return "".join(f"{line}\n" for lines in families.values() for line in lines)
