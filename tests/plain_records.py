"""Records as plain JSON that a test may change, and back, by the reader that reads files; reports with facts made up."""

import json
from typing import Any

from slm_ray.reports import build as reporting
from slm_ray.reports.encoding import decode, encode
from slm_ray.types import Billing, ModelFacts


def plain(record: Any) -> Any:
    """What stands in the file."""
    return json.loads(json.dumps(encode(record)))


def record(kind: type[Any], value: Any) -> Any:
    """What is read from it."""
    return decode(value, kind, where="test", fix="mend the test")


def changed(rows: list[Any], change: Any) -> list[Any]:
    """The rows after `change(plain row, position)`, which changes it in place."""
    found = []
    for position, row in enumerate(rows):
        value = plain(row)
        change(value, position)
        found.append(record(type(row), value))
    return found


def facts(spec: str, **changes: Any) -> ModelFacts:
    """What a provider would say of a model: azure by the token, served on this machine, others ask nobody."""
    kind, _, name = spec.partition(":")
    billing: Billing = {"azure": "tokens", "openai": "tokens", "served": "machine"}.get(kind, "none")  # type: ignore[assignment]
    host = {"azure": "name.openai.azure.com", "openai": "api.openai.com", "served": "127.0.0.1"}.get(kind)
    adapter = name.partition(":")[2].partition("+")[0] or None if kind == "served" else None
    made: dict[str, Any] = {"model": name, "host": host, "billing": billing, "adapter": adapter, **changes}
    return ModelFacts(spec=spec, kind=kind, **made)


def build(track: Any, examples: Any, answers: Any, **settings: Any) -> Any:
    """A report and its rows, with such facts of every model."""
    return reporting.build(track, examples, answers, facts={spec: facts(spec) for spec in answers}, **settings)
