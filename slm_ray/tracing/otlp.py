"""A span as the OTLP/JSON dict that `traces.jsonl` keeps, the ids that make it this one, and its way to protobuf.

Ids come from names alone, never from the clock or a random source, so what was traced twice is one trace. Ids are hex and
64-bit numbers are strings, as OTLP/JSON has them. Spans of one run stand together: every line of the file is one
ExportTraceServiceRequest, and its resource says of which run.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

SESSION = "session.id"
KIND = "slm_ray.kind"
_SPANS_PER_LINE = 200
_SERVICE = "slm-ray"
_INTERNAL, _CLIENT, _ERROR = 1, 3, 2

Span = dict[str, Any]
Value = str | bool | int | float


def digest(*parts: str, length: int = 32) -> str:
    """The first `length` hex digits of a SHA-256 over the parts; "a", "bc" and "ab", "c" differ."""
    return digest_of(parts, length=length)


def digest_of(parts: Iterable[str], *, length: int = 32) -> str:
    """`digest` of parts that come one by one."""
    found = hashlib.sha256()
    for at, part in enumerate(parts):
        found.update(("\0" * (at > 0) + part).encode())
    return found.hexdigest()[:length]


def span(
    name: str, *, trace_id: str, span_id: str, parent_id: str | None = None, start_ns: int, end_ns: int,
    attributes: Mapping[str, Value | None], error: str | None = None,
) -> Span:  # fmt: skip
    """One span; attributes that are None are left out, `error` marks it as failed."""
    kind = _CLIENT if "gen_ai.request.model" in attributes else _INTERNAL
    return {
        "traceId": trace_id,
        "spanId": span_id,
        **({"parentSpanId": parent_id} if parent_id else {}),
        "name": name,
        "kind": kind,
        "startTimeUnixNano": str(start_ns),
        "endTimeUnixNano": str(end_ns),
        "attributes": _attributes(attributes),
        "status": {"message": error, "code": _ERROR} if error else {},
    }


def lines(kind: str, session: str, spans: Iterable[Span]) -> Iterator[dict[str, Any]]:
    """The spans of one run as lines of a trace file. `kind` is what a later copy replaces, `session` the run's id."""
    resource = {"attributes": _attributes({"service.name": _SERVICE, KIND: kind, SESSION: session})}
    left = iter(spans)
    while part := list(itertools.islice(left, _SPANS_PER_LINE)):
        yield {"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": {"name": "slm_ray"}, "spans": part}]}]}


def spans_of(line: Mapping[str, Any]) -> Iterator[Span]:
    """Every span of a line."""
    for resource in line.get("resourceSpans", []):
        for scope in resource.get("scopeSpans", []):
            yield from scope.get("spans", [])


def resource_of(line: Mapping[str, Any]) -> dict[str, Value]:
    """What the line's resource says: `slm_ray.kind` and `session.id` in a line of ours, nothing in another."""
    for resource in line.get("resourceSpans", []):
        return values(resource.get("resource", {}))
    return {}


def values(holder: Mapping[str, Any]) -> dict[str, Value]:
    """The attributes of a span or a resource as plain values."""
    return {item["key"]: _plain(item["value"]) for item in holder.get("attributes", [])}


def rejected(answer: bytes) -> int:
    """How many spans an ExportTraceServiceResponse says were turned down; 0 where it is none."""
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    try:
        return int(ExportTraceServiceResponse.FromString(answer).partial_success.rejected_spans)
    except DecodeError:
        return 0


def protobuf(spans: Iterable[Span], resource: Mapping[str, Value]) -> bytes:
    """An ExportTraceServiceRequest on the wire."""
    # The protobuf library is needed to send only, and takes a tenth of a second to import.
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
    from opentelemetry.proto.resource.v1.resource_pb2 import Resource
    from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Status
    from opentelemetry.proto.trace.v1.trace_pb2 import Span as Message

    made = [
        Message(
            trace_id=bytes.fromhex(one["traceId"]), span_id=bytes.fromhex(one["spanId"]),
            parent_span_id=bytes.fromhex(one.get("parentSpanId", "")), name=one["name"], kind=one["kind"],
            start_time_unix_nano=int(one["startTimeUnixNano"]), end_time_unix_nano=int(one["endTimeUnixNano"]),
            attributes=_key_values(values(one)), status=Status(**one["status"]),
        )
        for one in spans
    ]  # fmt: skip
    scope = ScopeSpans(scope=InstrumentationScope(name="slm_ray"), spans=made)
    filled = ResourceSpans(resource=Resource(attributes=_key_values(resource)), scope_spans=[scope])
    return bytes(ExportTraceServiceRequest(resource_spans=[filled]).SerializeToString())


def _key_values(attributes: Mapping[str, Value]) -> list[Any]:
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

    def any_value(value: Value) -> Any:
        match value:
            case bool():
                return AnyValue(bool_value=value)
            case int():
                return AnyValue(int_value=value)
            case float():
                return AnyValue(double_value=value)
        return AnyValue(string_value=value)

    return [KeyValue(key=name, value=any_value(value)) for name, value in attributes.items()]


def _attributes(attributes: Mapping[str, Value | None]) -> list[dict[str, Any]]:
    return [{"key": name, "value": _tagged(value)} for name, value in attributes.items() if value is not None]


def _tagged(value: Value) -> dict[str, Any]:
    match value:
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value}
    return {"stringValue": value}


def _plain(tagged: Mapping[str, Any]) -> Value:
    ((kind, value),) = tagged.items()
    return int(value) if kind == "intValue" else value  # type: ignore[no-any-return]
