"""One run to one Langfuse: dataset, dataset items, traces and scores, each there exactly once however often it is sent.

Datasets, items and scores are upserted by ids of ours, so sending them again changes nothing. Spans are not: what was
not acknowledged is looked up by the run's session before it is sent, and after a request whose answer was lost the
look-up is repeated until the spans show or `settle_s` has passed. What is done is in the folder's delivery log and is not
done again. Raises `Problem` where it stops; all that came before it stands. To a collector in Langfuse's place go the spans
alone.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from slm_ray.tracing import truncate
from slm_ray.tracing.collector import Collector
from slm_ray.tracing.delivery_log import DeliveryLog
from slm_ray.tracing.langfuse import Langfuse
from slm_ray.tracing.otlp import SESSION, Span, digest, protobuf, values
from slm_ray.tracing.retry_policy import Problem, RetryPolicy, wait_s
from slm_ray.tracing.spans import DATASET, EXPECTED, EXPERIMENT, INPUT, ITEM_ID, ITEM_METADATA, LABEL, SCORE, Run

_SPANS_MOST, _SCORES_MOST = 500, 500
_AT_ONCE = 8  # dataset items go one a request
_POLL_S = 0.5
_IN_DOUBT_TRIES = 6
_TOO_LARGE = 413


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """How many objects of each kind this delivery sent; what was there already is not counted."""

    items: int = 0
    spans: int = 0
    scores: int = 0

    def __add__(self, other: Delivered) -> Delivered:
        return Delivered(
            items=self.items + other.items, spans=self.spans + other.spans, scores=self.scores + other.scores
        )


class Delivery:
    """The sending of one run. `settle_s` is how long a request in doubt may take to show."""

    def __init__(
        self, run: Run, receiver: Langfuse | Collector, log: DeliveryLog, retry: RetryPolicy, *, settle_s: float
    ) -> None:
        self._run = run
        self._receiver = receiver
        self._log = log
        self._retry = retry
        self._settle_s = settle_s
        self._datasets: dict[str, str] = {}
        self._in_doubt: Problem | None = None

    def run(self) -> Delivered:
        """Send what is not there yet."""
        items = dict(_items(self._run))
        items = {key: fields for key, fields in items.items() if key not in self._log.acknowledged}
        open_spans = {one["spanId"]: one for one in self._run.spans if one["spanId"] not in self._log.acknowledged}
        scores = [score for one in self._run.spans for score in _scores(one)]
        if items or open_spans:
            self._open_datasets()
        self._send_items(items)
        sent = self._send_spans(open_spans)
        return Delivered(items=len(items), spans=sent, scores=self._send_scores(scores))

    def _open_datasets(self) -> None:
        for name in sorted({str(found) for one in self._run.spans if (found := values(one).get(DATASET))}):
            self._datasets[name] = self._retry.call(partial(self._receiver.dataset, name, {"source": "slm_ray"}))

    def _send_items(self, items: Mapping[str, Mapping[str, Any]]) -> None:
        self._upsert({key: partial(self._receiver.item, fields) for key, fields in items.items()})

    def _send_spans(self, spans: dict[str, Span]) -> int:
        sent = failures = 0
        while spans := {key: one for key, one in spans.items() if key not in self._log.acknowledged}:
            there = self._present(spans)
            try:
                for group in self._groups([one for key, one in spans.items() if key not in there]):
                    self._post(group)
                    sent += len(group)
            except Problem as problem:
                failures += 1
                if not problem.in_doubt or failures == _IN_DOUBT_TRIES:
                    raise
                self._in_doubt = problem
                self._retry.pause(wait_s(failures, problem), problem)
        return sent

    def _groups(self, spans: list[Span]) -> Iterator[list[Span]]:
        ready = [truncate.truncated(self._in_dataset(one)) for one in spans]
        return truncate.batches(ready, size=truncate.size_bytes, limit_bytes=truncate.SPANS_BYTES, most=_SPANS_MOST)

    def _post(self, group: list[Span]) -> None:
        """Send a group, in halves where it is too large for this server."""
        ids = [one["spanId"] for one in group]
        body = protobuf(group, {"service.name": "slm-ray", SESSION: self._run.session})
        self._log.note("sent", ids)
        try:
            self._retry.call(partial(self._receiver.spans, body), retry_in_doubt=False)
        except Problem as problem:
            if not problem.in_doubt:
                self._log.note("refused", ids)
            if problem.status != _TOO_LARGE:
                raise
            self._post_smaller(group, problem)
            return
        self._log.note("acknowledged", ids)

    def _post_smaller(self, group: list[Span], problem: Problem) -> None:
        if len(group) > 1:
            self._post(group[: len(group) // 2])
            self._post(group[len(group) // 2 :])
            return
        shorter = truncate.truncated(group[0], truncate.VALUE_BYTES // 30)
        if shorter == group[0]:
            raise problem
        self._post([shorter])

    def _present(self, spans: Mapping[str, Span]) -> set[str]:
        """Which of the spans are there; waits for those that were sent and not acknowledged."""
        since_ns = min(int(one["startTimeUnixNano"]) for one in spans.values())
        while True:
            there = self._pages(since_ns) & spans.keys()
            unseen_ids = [one for one in spans if one in self._log.in_doubt and one not in there]
            if time.time() >= self._log.in_doubt_until_s(unseen_ids, self._settle_s):
                break
            unseen = Problem(f"{len(unseen_ids)} spans were sent and have not shown up yet")
            self._retry.pause(_POLL_S, self._in_doubt or unseen)
        if there:
            self._log.note("acknowledged", there)
        return there

    def _pages(self, since_ns: int) -> set[str]:
        found: set[str] = set()
        cursor: str | None = None
        while True:
            ask = partial(self._receiver.present, self._run.session, since_ns, cursor)
            page, cursor = self._retry.call(ask)
            found |= page
            if not cursor or not page:
                return found

    def _in_dataset(self, one: Span) -> Span:
        dataset = self._datasets.get(str(values(one).get(DATASET, "")))
        if dataset is None:
            return one
        known = {"key": "langfuse.experiment.dataset.id", "value": {"stringValue": dataset}}
        return {**one, "attributes": [*one["attributes"], known]}

    def _send_scores(self, scores: list[dict[str, Any]]) -> int:
        groups = {
            digest("scores", *map(repr, group)): group
            for group in truncate.batches(
                scores, size=_score_bytes, limit_bytes=truncate.SCORES_BYTES, most=_SCORES_MOST
            )
        }
        left = {key: group for key, group in groups.items() if key not in self._log.acknowledged}
        self._upsert({key: partial(self._receiver.scores, group) for key, group in left.items()})
        return sum(map(len, left.values()))

    def _upsert(self, requests: Mapping[str, Callable[[float], None]]) -> None:
        """Send what may be sent twice, a few at once; the delivery log keeps the keys of those that went through."""
        for keys in truncate.batches(requests, size=lambda key: 1, limit_bytes=_AT_ONCE, most=_AT_ONCE):
            problems = _at_once([partial(self._retry.call, requests[key]) for key in keys])
            done = [key for key, problem in zip(keys, problems, strict=True) if problem is None]
            if done:
                self._log.note("acknowledged", done)
            for problem in problems:
                if problem is not None:
                    raise problem


def _at_once(calls: Sequence[Callable[[], None]]) -> list[Problem | None]:
    """Make the calls in threads that end with the process, unlike those of an executor; what each one raised."""
    problems: list[Problem | None] = [None] * len(calls)

    def make(at: int) -> None:
        try:
            calls[at]()
        except Problem as problem:
            problems[at] = problem

    threads = [threading.Thread(target=make, args=(at,), name="langfuse", daemon=True) for at in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return problems


def _items(run: Run) -> Iterator[tuple[str, dict[str, Any]]]:
    """The run's dataset items, each once, by a hash of their content."""
    seen = set()
    for one in run.spans:
        found = values(one)
        if ITEM_ID not in found or found[ITEM_ID] in seen:
            continue
        seen.add(found[ITEM_ID])
        fields = {
            "dataset_name": found[DATASET], "id": found[ITEM_ID], "input": _tree(truncate.truncate_prompt(str(found[INPUT]))),
            "expected_output": truncate.truncate(str(found[EXPECTED])), "metadata": _tree(str(found[ITEM_METADATA])),
        }  # fmt: skip
        yield digest("item", json.dumps(fields, sort_keys=True)), fields


def _scores(one: Span) -> Iterator[dict[str, Any]]:
    """A span's scores: of its experiment where it sums one up, of the span itself otherwise."""
    found = values(one)
    at = datetime.fromtimestamp(int(one["endTimeUnixNano"]) // 10**6 / 1e3, UTC)
    about = (
        {"dataset_run_id": found[EXPERIMENT]}
        if EXPERIMENT in found
        else {"trace_id": one["traceId"], "observation_id": one["spanId"]}
    )
    for key, value in found.items():
        for prefix, kind in ((SCORE, "NUMERIC"), (LABEL, "CATEGORICAL")):
            if key.startswith(prefix):
                yield {
                    "id": digest("score", one["traceId"], one["spanId"], key), **about, "name": key.removeprefix(prefix),
                    "value": value, "data_type": kind, "timestamp": at,
                }  # fmt: skip


def _score_bytes(score: Mapping[str, Any]) -> int:
    return 250 + len(str(score["name"])) + len(str(score["value"]))


def _tree(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
