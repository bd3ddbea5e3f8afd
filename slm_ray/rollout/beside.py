"""What happens beside a call, when its client has its answer: the other side's answer, what the two say, and the row of it.

A bounded number of calls a route; what comes above that is not asked and is counted, so that neither a slow SLM nor an
audit holds up a client. Agreement and the watch run in one thread, in the order in which pairs come in: all that have come
while it was at the disk are written with one sync. Labels, whose senders wait, are scored beside it. Every call becomes one row of traffic, whether or not it was audited,
and also where its client has left. The answers of the latest pairs are remembered for the answer that people may expect of
them; a front that starts anew has forgotten them. Where the LLM answers in the SLM's place for long, that is said once and
stands in the route's folder (`fallbacks`).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import msgspec

from slm_ray.costs.prices import PriceList, price_of
from slm_ray.errors import SlmRayError
from slm_ray.rollout.calls import AUDIT_TIMEOUT_S, Answerer, Call
from slm_ray.rollout.fallbacks import Fallbacks, Lately, write_fallbacks
from slm_ray.rollout.judged import agreed, in_form, labelled, track_named
from slm_ray.rollout.states import RouteState
from slm_ray.rollout.store import RouteStore
from slm_ray.rollout.upstream import Reply
from slm_ray.rollout.watched import RouteWatch, Seen
from slm_ray.scoring.run import unreadable
from slm_ray.traffic.record import Arm, ArmAnswer, Entry, Feedback, TrafficRow

MOST_BESIDE = 32  # a route
_MOST_ROWS = 5_000  # that wait for the thread
_MOST_BYTES = 256 * 2**20  # of them
_MOST_PAIRS, _MOST_PAIR_CHARS = 50_000, 64 * 2**20  # remembered, of all routes
_TELL_S = 2.0
_FORGOTTEN = "both answers are not at hand: the request was not audited, was too long ago, or has its label already"


class Log(Protocol):
    """Where rows go: takes them at once, whatever becomes of them."""

    def append(self, entry: Entry) -> bool:
        """Keep a row or what a user said of one; False where there is no room for it."""
        ...

    def close(self) -> None:
        """Write what there is."""
        ...


@dataclass(slots=True, kw_only=True)
class _Pair:
    """Both answers to a request, and their `label` once people have said what they expected.

    `agreement` tells how far both agree, once that is known and the watch has seen it.
    """

    state: RouteState
    id: str
    slm: Reply
    llm: Reply
    label: float | None = None
    agreement: Future[float | None] = field(default_factory=Future)

    @property
    def chars(self) -> int:
        return 500 + len(self.slm.outcome.text or "") + len(self.llm.outcome.text or "")


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
        self._at_work = False  # the thread
        self._uncounted: list[_Pair] = []
        self._unlogged: list[tuple[Call, float | None, int]] = []
        self._remembered: OrderedDict[str, _Pair] = OrderedDict()
        self._chars = 0
        self._closing = False
        self._said: dict[str, str] = {}  # the last trouble of each kind, which is said once
        self._lately: defaultdict[str, Lately] = defaultdict(Lately)
        self._to_tell: dict[str, asyncio.TimerHandle] = {}
        self.fallbacks: dict[str, Fallbacks] = {}
        self.counts: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def take(self, call: Call) -> None:
        """A call that is over."""
        name = call.state.route.name
        counts = self.counts[name]
        counts["requests"] += 1
        counts["fallbacks"] += call.fallback is not None
        self._note_fallback(call)
        # Noted whether or not anything is left to ask: what the SLM failed at has an answer of both sides already.
        call.no_room = self._closing or self._in_flight[name] >= MOST_BESIDE
        if self._closing or not call.audited or self._nothing_to_learn(call):
            self._keep(call, None)
        elif call.no_room:
            counts["not_asked"] += 1
            self._keep(call, None)
        else:
            self._begin(name, self._pair(call))

    def take_left(self, call: Call, answering: asyncio.Future[None]) -> bool:
        """Let an audited call be answered to its end though its client has left; False where it is to end now.

        Who leaves has often seen enough of a bad answer: without these calls the watch would see the better ones alone.
        """
        name = call.state.route.name
        if not call.audited or self._in_flight[name] >= MOST_BESIDE:
            return False

        async def answered() -> None:
            try:
                await asyncio.wait((answering,), timeout=AUDIT_TIMEOUT_S)
            finally:
                answering.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.gather(answering, return_exceptions=True)
                self._in_flight[name] -= 1
                self.take(call)

        self._begin(name, answered())
        return True

    async def label(self, feedback: Feedback) -> str | None:
        """Score both answers to a request by the one that people expected, once; None, or why it is not counted.

        A label that cannot be scored leaves the request to the next one.
        """
        pair = self._remembered.get(feedback.id)
        if pair is None or feedback.answer is None:
            return _FORGOTTEN
        label = await asyncio.to_thread(self._labelled, pair, feedback.answer)
        if isinstance(label, str):
            self.counts[pair.state.route.name]["unscored"] += 1
            return label
        if self._remembered.pop(feedback.id, None) is None:  # another one was quicker
            return _FORGOTTEN
        self._chars -= pair.chars
        self._count(_Pair(state=pair.state, id=pair.id, slm=pair.slm, llm=pair.llm, label=label))
        return None

    def _labelled(self, pair: _Pair, expected: str) -> float | str:
        """The label, or why there is none."""
        try:
            track = track_named(pair.state.route.track)
            if (form := unreadable(track, expected)) is not None:
                return f"the answer is not {form}, as the track {track.name} wants it; send it again"
            label = labelled(pair.state, pair.slm, pair.llm, expected)
        except Exception as error:  # noqa: BLE001 - anybody's text
            self._trouble(pair.state.route.name, error)
            return "it could not be scored, and the front's log says why; send it again once that is mended"
        return f"{track.primary} says nothing of this answer" if label is None else label

    async def close(self) -> None:
        """End what still runs; its rows are kept as they are."""
        self._closing = True
        await asyncio.sleep(0)  # what has not begun would leave no row
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for name, timer in list(self._to_tell.items()):
            timer.cancel()
            self._tell(name)
        await asyncio.to_thread(self._thread.shutdown)
        for watch in self._watches.values():
            watch.close()

    def _begin(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self._in_flight[name] += 1
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _note_fallback(self, call: Call) -> None:
        """Who answered what the SLM was to answer; what a cascade hands on for being unsure it has answered."""
        if call.arm != "slm" or (call.served != "slm" and call.fallback is None):
            return
        name, word = call.state.route.name, (call.fallback or "").partition(":")[0]
        because = None if call.served == "slm" or word == "unsure" else word
        before = self.fallbacks.get(name)
        if (found := self._lately[name].note(because, serial=call.state.serial, at=time.time())) is None:
            return
        self.fallbacks[name] = found
        if (before is not None and before.since is not None) != (found.since is not None):
            self._say(f"{name}: {found.in_words}")
        if name not in self._to_tell and not self._closing:
            self._to_tell[name] = asyncio.get_running_loop().call_later(_TELL_S, self._tell, name)

    def _tell(self, name: str) -> None:
        """Have the thread write what is known now."""
        del self._to_tell[name]
        self._thread.submit(self._write_fallbacks, name)

    def _write_fallbacks(self, name: str) -> None:
        what = f"the fallbacks of {name}"
        try:
            write_fallbacks(self._store.folder, name, self.fallbacks[name])
        except SlmRayError as error:
            self._say_once(what, error)
        else:
            self._said.pop(what, None)  # a later one is another one

    def _nothing_to_learn(self, call: Call) -> bool:
        """Whether no pair can come of it: the client left, a side gave nothing, or the SLM is left alone."""
        if call.served is None or any(reply.unanswered for reply in call.replies.values()):
            return True
        return "slm" not in call.replies and not self._answerer.may_ask(call.state)

    async def _pair(self, call: Call) -> None:
        name, agreement = call.state.route.name, None
        try:
            missing: list[Arm] = [arm for arm in ("llm", "slm") if arm not in call.replies]
            for arm in missing:
                call.replies[arm] = await self._answerer.ask_beside(call, arm)
            slm, llm = (replace(call.replies[arm], body=b"") for arm in ("slm", "llm"))  # texts are enough
            pair = _Pair(state=call.state, id=call.id, slm=slm, llm=llm)
            self._remember(pair)
            self._count(pair)
            agreement = await asyncio.wrap_future(pair.agreement)
        finally:
            self._in_flight[name] -= 1
            self._keep(call, agreement)

    def _remember(self, pair: _Pair) -> None:
        if pair.slm.unanswered or pair.llm.trouble is not None:
            return
        self._remembered[pair.id] = pair
        self._chars += pair.chars
        while len(self._remembered) > _MOST_PAIRS or self._chars > _MOST_PAIR_CHARS:
            self._chars -= self._remembered.popitem(last=False)[1].chars

    def _count(self, pair: _Pair) -> None:
        with self._lock:
            self._uncounted.append(pair)
            self._wake()

    def _wake(self) -> None:
        """Have the thread look at what there is, if it does not yet. The lock is held."""
        if not self._at_work:
            self._at_work = True
            self._thread.submit(self._work)

    def _work(self) -> None:
        while True:
            with self._lock:
                pairs, self._uncounted = self._uncounted, []
                rows, self._unlogged = self._unlogged, []
                self._at_work = bool(pairs or rows)
                if not self._at_work:
                    return
            self._watch(pairs)
            for row in rows:
                self._logged(*row)

    def _watch(self, pairs: list[_Pair]) -> None:
        """Score the pairs and show them to their watches, with one sync for those of a route."""
        seen: defaultdict[str, list[Seen]] = defaultdict(list)
        scores = [self._scored(pair, seen[pair.state.route.name]) for pair in pairs]
        for name, found in seen.items():
            self._shown(name, found)
        for pair, value in zip(pairs, scores, strict=True):
            if pair.agreement.set_running_or_notify_cancel():  # a front that closes waits for none
                pair.agreement.set_result(value)

    def _scored(self, pair: _Pair, seen: list[Seen]) -> float | None:
        name = pair.state.route.name
        if pair.label is not None:
            self.counts[name]["labels"] += 1
            seen.append(Seen(state=pair.state, id=pair.id, label=pair.label))
            return None
        try:
            value = agreed(pair.state, pair.slm, pair.llm)
        # Answers are anybody's text: whatever a pair leads to, its row is kept and the next pair is looked at.
        except Exception as error:  # noqa: BLE001
            self._trouble(name, error)
            return None
        if value is None:
            self.counts[name]["unscored"] += 1
            return None
        self.counts[name]["pairs"] += 1
        seen.append(Seen(state=pair.state, id=pair.id, score=value))
        return value

    def _shown(self, name: str, seen: list[Seen]) -> None:
        if not seen:
            return
        try:
            watch = self._watches.setdefault(name, RouteWatch(self._store, name))
            if (changed := watch.observe(seen)) is not None:
                self._changed(changed)
            self._said.pop(f"the watch of {name}", None)
        except Exception as error:  # noqa: BLE001 - as above
            self._trouble(name, error, len(seen))

    def _trouble(self, name: str, error: Exception, pairs: int = 1) -> None:
        self.counts[name]["watch_errors"] += pairs
        self._say_once(f"the watch of {name}", error)

    def _say_once(self, what: str, error: Exception) -> None:
        if self._said.get(what) != (said := f"{what}: {_told(error)}"):
            self._said[what] = said
            self._say(said)

    def _keep(self, call: Call, agreement: float | None) -> None:
        """Hand the row to the log, from the thread: judging an answer's form takes what it takes."""
        size = call.size + sum(len(reply.body) for reply in call.replies.values())
        with self._lock:
            if self._waiting >= _MOST_ROWS or (self._waiting and self._bytes + size > _MOST_BYTES):
                self.counts[call.state.route.name]["rows_lost"] += 1
                return
            self._waiting, self._bytes = self._waiting + 1, self._bytes + size
            self._unlogged.append((call, agreement, size))
            self._wake()

    def _logged(self, call: Call, agreement: float | None, size: int) -> None:
        with self._lock:
            self._waiting, self._bytes = self._waiting - 1, self._bytes - size
        try:
            if not self._log.append(self._row(call, agreement)):
                self.counts[call.state.route.name]["rows_lost"] += 1
        except Exception as error:  # noqa: BLE001 - as above
            self.counts[call.state.route.name]["rows_lost"] += 1
            self._say(f"a row of {call.state.route.name} is lost: {_told(error)}")

    def _row(self, call: Call, agreement: float | None) -> TrafficRow:
        state = call.state
        # Where there is no room the LLM's answers are those to what the SLM failed at, as without an audit.
        audited = call.audited and not (call.no_room and state.serving)
        return TrafficRow(
            id=call.id, at=call.at, route=state.route.name, serial=state.serial, state=state.state, arm=call.arm,
            user=call.user, request=call.body, served=call.served, fallback=call.fallback, audited=audited,
            answers=tuple(self._answer(call, reply, agreement) for reply in call.replies.values()),
        )  # fmt: skip

    def _answer(self, call: Call, reply: Reply, agreement: float | None) -> ArmAnswer:
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
            valid=call.forms[target.arm] if target.arm in call.forms else in_form(call.state, reply), logprob=outcome.logprob,
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
