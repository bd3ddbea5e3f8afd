"""What happens beside a call, when its client has its answer: the other side's answer, what the two say, and the row of it.

A bounded number of calls a route; what comes above that is not asked and is counted, so that neither a slow SLM nor an
audit holds up a client. Scores and the watch run in one thread, in the order in which pairs come in. Every call becomes one
row of traffic, whether or not it was audited, and also where its client has left.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import msgspec

from slm_ray.costs.prices import PriceList, price_of
from slm_ray.errors import SlmRayError
from slm_ray.rollout.calls import Answerer, Call
from slm_ray.rollout.judged import agreed, in_form
from slm_ray.rollout.states import RouteState
from slm_ray.rollout.store import RouteStore
from slm_ray.rollout.upstream import Reply
from slm_ray.rollout.watched import RouteWatch
from slm_ray.traffic.record import Arm, ArmAnswer, Entry, TrafficRow

MOST_BESIDE = 32  # a route
_MOST_ROWS = 5_000  # that wait for the thread
_MOST_BYTES = 256 * 2**20  # of them


class Log(Protocol):
    """Where rows go: takes them at once, whatever becomes of them."""

    def append(self, entry: Entry) -> object:
        """Keep a row or what a user said of one."""
        ...

    def close(self) -> None:
        """Write what there is."""
        ...


class Beside:
    """Takes calls that are over. `log` gets their rows, `changed` is told of a route that the watch has taken back."""

    def __init__(
        self, answerer: Answerer, *, store: RouteStore, log: Log, prices: PriceList,
        changed: Callable[[RouteState], None], say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._answerer = answerer
        self._store, self._log, self._prices = store, log, prices
        self._changed, self._say = changed, say
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="watch")
        self._watches: dict[str, RouteWatch] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._in_flight: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._waiting = self._bytes = 0
        self._said: dict[str, str] = {}  # the last trouble of a route's watch, which is said once
        self.counts: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def take(self, call: Call) -> None:
        """A call that is over."""
        name = call.state.route.name
        counts = self.counts[name]
        counts["requests"] += 1
        counts["fallbacks"] += call.fallback is not None
        if not call.audited or self._nothing_to_learn(call):
            self._keep(call, None)
        elif self._in_flight[name] >= MOST_BESIDE:
            counts["not_asked"] += 1
            self._keep(call, None)
        else:
            self._in_flight[name] += 1
            task = asyncio.create_task(self._pair(call))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End what still runs; its rows are kept as they are."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._thread.shutdown)
        for watch in self._watches.values():
            watch.close()

    def _nothing_to_learn(self, call: Call) -> bool:
        """Whether no pair can come of it: the client left, a side gave nothing, or the SLM is left alone."""
        if call.served is None or any(reply.unanswered for reply in call.replies.values()):
            return True
        circuit = self._answerer.circuit(call.state)
        return "slm" not in call.replies and circuit.is_open and not circuit.take_probe()

    async def _pair(self, call: Call) -> None:
        name, agreement = call.state.route.name, None
        try:
            missing: list[Arm] = [arm for arm in ("llm", "slm") if arm not in call.replies]
            for arm in missing:
                call.replies[arm] = await self._answerer.ask_beside(call, arm)
            agreement = await asyncio.get_running_loop().run_in_executor(self._thread, self._watched, call)
        finally:
            self._in_flight[name] -= 1
            self._keep(call, agreement)

    def _watched(self, call: Call) -> float | None:
        """The agreement of the pair, which the watch has seen."""
        name, agreement = call.state.route.name, None
        try:
            agreement = agreed(call.state, call.replies["slm"], call.replies["llm"])
            if agreement is None:
                self.counts[name]["unscored"] += 1
                return None
            self.counts[name]["pairs"] += 1
            watch = self._watches.setdefault(name, RouteWatch(self._store, name))
            if (changed := watch.observe(call.state, call.id, agreement)) is not None:
                self._changed(changed)
            self._said.pop(name, None)
        # Answers are anybody's text: whatever a pair leads to, its row is kept and the next pair is looked at.
        except Exception as error:  # noqa: BLE001
            self.counts[name]["watch_errors"] += 1
            if self._said.get(name) != (said := f"the watch of {name}: {_told(error)}"):
                self._said[name] = said
                self._say(said)
        return agreement

    def _keep(self, call: Call, agreement: float | None) -> None:
        """Hand the row to the log, from the thread: judging an answer's form takes what it takes."""
        size = call.size + sum(len(reply.body) for reply in call.replies.values())
        with self._lock:
            if self._waiting >= _MOST_ROWS or (self._waiting and self._bytes + size > _MOST_BYTES):
                self.counts[call.state.route.name]["rows_lost"] += 1
                return
            self._waiting, self._bytes = self._waiting + 1, self._bytes + size
        self._thread.submit(self._logged, call, agreement, size)

    def _logged(self, call: Call, agreement: float | None, size: int) -> None:
        with self._lock:
            self._waiting, self._bytes = self._waiting - 1, self._bytes - size
        try:
            self._log.append(self._row(call, agreement))
        except Exception as error:  # noqa: BLE001 - as above
            self.counts[call.state.route.name]["rows_lost"] += 1
            self._say(f"a row of {call.state.route.name} is lost: {_told(error)}")

    def _row(self, call: Call, agreement: float | None) -> TrafficRow:
        state = call.state
        return TrafficRow(
            id=call.id, at=call.at, route=state.route.name, serial=state.serial, state=state.state, arm=call.arm,
            user=call.user, request=call.body, served=call.served, fallback=call.fallback, audited=call.audited,
            answers=tuple(self._answer(state, reply, agreement) for reply in call.replies.values()),
        )  # fmt: skip

    def _answer(self, state: RouteState, reply: Reply, agreement: float | None) -> ArmAnswer:
        target, outcome, usage = reply.target, reply.outcome, reply.outcome.usage
        price = price_of(self._prices, reply.model) if target.billed and usage is not None else None
        calls = None if outcome.text else tool_calls(reply.body)
        # An answer of tool calls has no text, which is no fault of it; one that was cut stays one.
        missing = (
            outcome.failure
            if outcome.failure is not None and not (calls and outcome.failure.kind == "invalid")
            else None
        )
        failure = missing.reason if missing is not None else None
        return ArmAnswer(
            arm=target.arm, model=reply.model, text=outcome.text or calls, status=reply.status,
            reason=reply.trouble or failure, latency_s=round(reply.latency_s, 6), first_token_s=reply.first_token_s,
            prompt_tokens=usage.prompt_tokens if usage else None,
            completion_tokens=usage.completion_tokens if usage else None,
            valid=in_form(state, reply), logprob=outcome.logprob,
            cost_usd=price.usd(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) if price and usage else None,
            score=agreement if target.arm == "slm" else None,
        )  # fmt: skip


def _told(error: Exception) -> str:
    """What went wrong; of an error that is not ours its kind alone, since its words may quote an answer."""
    return str(error) if isinstance(error, SlmRayError) else type(error).__name__


def tool_calls(body: bytes) -> str | None:
    """The tool calls of a whole answer, as JSON; None where it has none."""
    if b'"tool_calls"' not in body:
        return None
    try:
        calls = msgspec.json.decode(body)["choices"][0]["message"]["tool_calls"]
    except (msgspec.MsgspecError, LookupError, TypeError, RecursionError):
        return None
    return msgspec.json.encode(calls).decode() if calls else None
