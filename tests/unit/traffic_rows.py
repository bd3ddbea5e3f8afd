"""Requests of a route as a test asks them, and a traffic log of them."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from slm_ray.traffic import Arm, ArmAnswer, Feedback, TrafficLog, TrafficRow

NOW = datetime.now(UTC).timestamp()


def answer(arm: Arm, text: str | None, **fields: Any) -> ArmAnswer:
    return ArmAnswer(arm=arm, model=f"{arm}@1", text=text, status=200 if text else 500, latency_s=0.1, **fields)


def asked(name: str, llm: str | None, slm: str | None = None, *, served: Arm = "llm", **fields: Any) -> TrafficRow:
    """An audited request whose arms answered JSON of these values; None: the arm was not asked."""
    said = {"llm": llm, "slm": slm}
    question = fields.pop("question", f"how many of {name} and {name}?")
    return TrafficRow(
        id=name, at=NOW + fields.pop("later", 0), route=fields.pop("route", "r"), serial=1, state="live", arm=served,
        served=served, audited=fields.pop("audited", True), request={"messages": [{"role": "user", "content": question}], "max_tokens": 9},
        answers=tuple(answer(arm, text) for arm, text in said.items() if text is not None),  # type: ignore[arg-type]
    )  # fmt: skip


def log_of(folder: Path, *entries: TrafficRow | Feedback) -> str:
    with TrafficLog(str(folder)) as log:
        taken = [log.append(entry) for entry in entries]
    assert all(taken)
    return str(folder)


def said(value: object) -> str:
    return json.dumps({"n": value})
