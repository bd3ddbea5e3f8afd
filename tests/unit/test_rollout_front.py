"""The roll-out's front over real sockets: what a client gets in every state, whatever the two sides do."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from chat_server import DONE, ChatServer, Reply, Request, answer, chunk, error, event

from slm_ray.costs.prices import PriceList
from slm_ray.errors import DataError, ResourceError
from slm_ray.rollout import beside, fallbacks
from slm_ray.rollout.fallbacks import read_fallbacks
from slm_ray.rollout.front import Front, FrontSettings
from slm_ray.rollout.states import Grant, Route, RouteState
from slm_ray.rollout.store import RouteStore
from slm_ray.serving.keys import add_key, key_digest
from slm_ray.traffic.record import Entry, Feedback, TrafficRow
from tests.waiting import wait_for

KEY = "sk-of-the-llm-0123456789"
GOOD, OTHER = '{"city": "Oslo"}', '{"city": "Rome"}'
Script = Callable[[Request], Reply]
HTTP = httpx.Client(timeout=30, trust_env=False, verify=False)  # one, since making one takes a tenth of a second


@dataclass
class Rows:
    """A log in memory."""

    entries: list[Entry] = field(default_factory=list)

    closed: bool = False

    full: bool = False

    def append(self, entry: Entry) -> bool:
        if not self.full:
            self.entries.append(entry)
        return not self.full

    def close(self) -> None:
        self.closed = True

    def rows(self, count: int = 1) -> list[TrafficRow]:
        """The rows, once there are so many."""
        return wait_for(lambda: found if len(found := self._rows()) >= count else None)

    def _rows(self) -> list[TrafficRow]:
        return [one for one in self.entries if isinstance(one, TrafficRow)]


def held(let_go: threading.Event) -> Script:
    """Answers well, once it is let go."""

    def script(request: Request) -> Reply:
        let_go.wait(10)
        return answer(GOOD)

    return script


@dataclass
class Bed:
    url: str
    store: RouteStore
    log: Rows
    llm: ChatServer
    slm: ChatServer
    said: list[str]

    def ask(self, text: str = "Oslo?", **extra: Any) -> httpx.Response:
        headers = extra.pop("headers", {})
        body = {"model": "cities", "messages": [{"role": "user", "content": text}], **extra}
        return HTTP.post(f"{self.url}/v1/chat/completions", json=body, headers=headers)

    def card(self) -> dict[str, Any]:
        (card,) = HTTP.get(f"{self.url}/v1/models").json()["data"]
        return dict(card["metadata"])


def content(reply: httpx.Response) -> str:
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"])


def streamed(reply: httpx.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in reply.text.split("\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def text_of(events: list[Any]) -> str:
    found = [
        one["choices"][0]["delta"].get("content") or "" for one in events if one != "[DONE]" and one.get("choices")
    ]
    return "".join(found)


def says(text: str, **more: Any) -> Script:
    return lambda request: answer(text, **more)


def sure(text: str, logprob: float) -> Script:
    def script(request: Request) -> Reply:
        reply = answer(text)
        if request.body.get("logprobs"):
            reply.body["choices"][0]["logprobs"] = {"content": [{"token": "x", "logprob": logprob}]}
        return reply

    return script


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """The application on a port of its own, in a thread."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(15)
    assert not thread.is_alive()


@contextmanager
def bed(
    folder: Path, state: str, *, llm: Script | None = None, slm: Script | None = None, key: str | None = None,
    keys_file: str | None = None, track: str = "structured", share: float | None = None, **settings: Any,
) -> Iterator[Bed]:  # fmt: skip
    log, said = Rows(), list[str]()
    with ChatServer(llm or says(GOOD, model="gpt-x-1")) as large, ChatServer(slm or says(GOOD, model="slm-1")) as small:
        store = RouteStore(folder)
        route = Route(
            name="cities",
            llm=f"openai:gpt-x@{large.url}/v1",
            slm=f"openai:small@{small.url}/v1",
            track=track,
            base="small",
        )
        grant = Grant(
            most="cascade" if state == "cascade" else "live", because="a test", threshold=-0.5 if state == "cascade" else None,
            llm=route.llm, slm=route.slm, comparison="comparison.json", digest="d" * 64, agreement=0.95,
            agreement_lower=0.9, agreement_level=0.01, delta=0.05,
        )  # fmt: skip
        store.create(route, adapter=None, grant=grant, reason="test", by="test", **settings)
        if state != "record":
            store.move("cities", state, reason="test", by="test", share=share)  # type: ignore[arg-type]
        front = Front(
            FrontSettings(folder=str(folder), endpoint="http://127.0.0.1:1", api_key_digest=key and key_digest(key), keys_file=keys_file),
            environment={"OPENAI_API_KEY": KEY}, log=log, prices=PriceList(as_of="2026-01-01", models={}), say=said.append,
        )  # fmt: skip
        with serving(front.app()) as url:
            yield Bed(url=url, store=store, log=log, llm=large, slm=small, said=said)


def test_record_hands_on_the_llms_answer_and_asks_nobody_else(tmp_path: Path) -> None:
    with bed(tmp_path, "record", slm=says(OTHER)) as it:
        reply = it.ask(temperature=0.3, user="ann")
        assert content(reply) == GOOD and reply.json()["model"] == "gpt-x-1"
        assert reply.headers["x-slm-ray-arm"] == "llm" and reply.headers["x-slm-ray-model"] == "gpt-x-1"
        (row,) = it.log.rows()
        (asked,) = it.llm.requests
        assert (
            asked.body["model"] == "gpt-x" and asked.body["temperature"] == 0.3 and asked.path == "/v1/chat/completions"
        )
        assert asked.headers["authorization"] == f"Bearer {KEY}"
        assert row.id == reply.headers["x-slm-ray-request-id"] and row.user == "ann" and row.served == "llm"
        assert (
            [one.text for one in row.answers] == [GOOD] and row.answers[0].prompt_tokens == 7 and row.answers[0].valid
        )
        assert not it.slm.requests


def test_shadow_asks_the_slm_beside_and_never_waits(tmp_path: Path) -> None:
    slow: Script = lambda request: Reply(body=answer(OTHER).body, after_s=1.0)  # noqa: E731
    with bed(tmp_path, "shadow", slm=slow) as it:
        started = time.monotonic()
        assert content(it.ask()) == GOOD
        assert time.monotonic() - started < 0.9
        (row,) = it.log.rows()
        assert row.served == "llm" and row.arm == "llm" and row.fallback is None
        assert row.answer_of("slm").text == OTHER and row.answer_of("slm").score == 0.0  # type: ignore[union-attr]
        assert wait_for(lambda: it.card()["counts"].get("pairs")) == 1


def test_what_the_slm_does_in_shadow_reaches_no_client(tmp_path: Path) -> None:
    with bed(tmp_path, "shadow", slm=lambda _: Reply(reset=True)) as it:
        assert content(it.ask()) == GOOD
        (row,) = it.log.rows()
        assert row.answer_of("slm").reason.startswith("connection")  # type: ignore[union-attr]
        wait_for(lambda: it.card()["counts"].get("unscored") == 1)


def test_shadow_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slm_ray.rollout.beside.MOST_BESIDE", 2)
    let_go = threading.Event()
    with bed(tmp_path, "shadow", slm=held(let_go)) as it:
        assert [content(it.ask()) for _ in range(5)] == [GOOD] * 5
        wait_for(lambda: it.card()["counts"].get("not_asked") == 3)
        assert [len(row.answers) for row in it.log.rows(3)] == [1, 1, 1]
        let_go.set()
        assert [len(row.answers) for row in it.log.rows(5)[3:]] == [2, 2]


def test_a_row_says_whether_it_was_drawn_to_be_asked_of_both_whatever_became_of_that(tmp_path: Path) -> None:
    with bed(tmp_path, "record", slm=lambda request: error(500 if request.nth % 2 else 429), audit_share=0.4) as it:
        assert content(it.ask()) == GOOD and [row.audited for row in it.log.rows(1)] == [False]
        it.store.move("cities", "shadow", reason="test", by="test")
        wait_for(lambda: it.card()["state"] == "shadow")
        assert content(it.ask()) == GOOD and [row.audited for row in it.log.rows(2)[1:]] == [True]
        it.store.move("cities", "live", reason="test", by="test")
        wait_for(lambda: it.card()["state"] == "live")
        assert [content(it.ask()) for _ in range(60)] == [GOOD] * 60
        rows = it.log.rows(62)[2:]
        # Every row has an answer of the LLM, in the SLM's place; those that were drawn are a fair sample all the same.
        assert {row.served for row in rows} == {"llm"} and 8 <= sum(row.audited for row in rows) <= 42


def test_a_canary_is_the_same_for_the_same_user(tmp_path: Path) -> None:
    with bed(tmp_path, "canary", slm=says(OTHER), share=0.3, audit_share=1e-9) as it:
        arms = {user: it.ask(user=f"user{user}").headers["x-slm-ray-arm"] for user in range(60)}
        assert 5 < list(arms.values()).count("slm") < 35
        again = {user: it.ask(headers={"x-user": f"user{user}"}).headers["x-slm-ray-arm"] for user in range(60)}
        assert again == arms
        it.store.move("cities", "canary", share=0.7, reason="more", by="test")
        wait_for(lambda: it.card()["share"] == 0.7, within_s=2.0)
        more = {user: it.ask(user=f"user{user}").headers["x-slm-ray-arm"] for user in range(60)}
        assert all(more[user] == "slm" for user, arm in arms.items() if arm == "slm") and more != arms


FAILURES: dict[str, tuple[Script, str]] = {
    "http_500": (lambda _: error(500), "http_500"),
    "http_429": (lambda _: error(429, **{"Retry-After": "9"}), "http_429"),
    "gone": (lambda _: error(404, "model_not_found"), "http_404"),
    "moved": (lambda _: Reply(status=307, headers={"Location": "http://example.invalid/"}, body={}), "http_307"),
    "reset": (lambda _: Reply(reset=True), "connection"),
    "late": (lambda _: Reply(body=answer(OTHER).body, after_s=1.5), "timeout"),
    "empty": (says("  "), "empty"),
    "no form": (says("I think it is Oslo"), "invalid"),
    "html": (lambda _: Reply(body=b"<html>"), "broken"),
    "no choices": (lambda _: Reply(body={"choices": []}), "broken"),
    "refused": (says("x", finish="content_filter"), "refused"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_live_falls_back_to_the_llm(name: str, tmp_path: Path) -> None:
    script, why = FAILURES[name]
    with bed(tmp_path, "live", slm=script, timeout_s=0.5 if name == "late" else 10.0) as it:
        reply = it.ask()
        assert content(reply) == GOOD and reply.headers["x-slm-ray-arm"] == "llm"
        (row,) = it.log.rows()
        assert row.arm == "slm" and row.served == "llm" and row.fallback.startswith(why), row.fallback  # type: ignore[union-attr]


def test_live_is_the_slms_answer(tmp_path: Path) -> None:
    with bed(tmp_path, "live", slm=says(OTHER, model="slm-1")) as it:
        reply = it.ask()
        assert content(reply) == OTHER
        assert reply.headers["x-slm-ray-arm"] == "slm" and reply.headers["x-slm-ray-model"] == "slm-1"


def test_a_stream_is_handed_on_as_it_comes(tmp_path: Path) -> None:
    parts = [chunk("a"), chunk("b"), chunk(None, finish="stop"), DONE]
    with bed(tmp_path, "live", slm=lambda _: Reply(parts=parts, after_s=0.3)) as it:
        body = {"model": "cities", "messages": [{"role": "user", "content": "x"}], "stream": True}
        came = []
        with HTTP.stream("POST", f"{it.url}/v1/chat/completions", json=body) as reply:
            assert reply.headers["x-slm-ray-arm"] == "slm" and reply.headers["x-slm-ray-model"] == "served-model"
            for part in reply.iter_raw():
                came.append((time.monotonic(), part))
        assert b"".join(part for _, part in came) == b"".join(parts)
        assert came[-1][0] - came[0][0] > 0.5
        (row,) = it.log.rows()
        assert row.answers[0].text == "ab" and 0.2 < row.answers[0].first_token_s < row.answers[0].latency_s  # type: ignore[operator]


BEFORE_THE_FIRST: dict[str, Script] = {
    "error": lambda _: error(503),
    "error event": lambda _: Reply(parts=[event({"error": {"message": "engine died", "code": 500}})]),
    "cut": lambda _: Reply(parts=[chunk("")], reset=True),
    "ends": lambda _: Reply(parts=[chunk(""), DONE]),
    "silent": lambda _: Reply(parts=[chunk(""), chunk("late"), DONE], after_s=0.4),
}


@pytest.mark.parametrize("name", BEFORE_THE_FIRST)
def test_a_stream_that_fails_before_its_first_text_is_taken_back(name: str, tmp_path: Path) -> None:
    whole: Script = lambda _: Reply(parts=[chunk("from the LLM"), chunk(None, finish="stop"), DONE])  # noqa: E731
    with bed(
        tmp_path, "live", slm=BEFORE_THE_FIRST[name], llm=whole, timeout_s=0.5 if name == "silent" else 10.0
    ) as it:
        reply = it.ask(stream=True)
        assert reply.status_code == 200 and reply.headers["x-slm-ray-arm"] == "llm"
        assert text_of(streamed(reply)) == "from the LLM"
        (row,) = it.log.rows()
        assert row.fallback and row.served == "llm"


def test_a_stream_that_breaks_later_ends_in_an_error(tmp_path: Path) -> None:
    with bed(tmp_path, "live", slm=lambda _: Reply(parts=[chunk("half an")], reset=True)) as it:
        events = streamed(it.ask(stream=True))
        assert text_of(events[:1]) == "half an" and events[-1]["error"]["code"] == "stream_broken"
        assert not it.llm.requests
        (row,) = it.log.rows()
        assert row.served == "slm" and "middle of the stream" in row.answers[0].reason  # type: ignore[operator]


def test_a_stream_without_its_end_is_said_to_be_broken(tmp_path: Path) -> None:
    with bed(tmp_path, "live", slm=lambda _: Reply(parts=[chunk("half an")])) as it:
        assert streamed(it.ask(stream=True))[-1]["error"]["code"] == "stream_broken"


def test_a_side_that_does_not_stream_is_streamed(tmp_path: Path) -> None:
    with bed(tmp_path, "live") as it:
        client = openai.OpenAI(base_url=f"{it.url}/v1", api_key="x", max_retries=0)
        parts = list(client.chat.completions.create(
            model="cities", messages=[{"role": "user", "content": "x"}], stream=True, stream_options={"include_usage": True}
        ))  # fmt: skip
        assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == GOOD
        assert parts[-1].usage is not None and parts[-1].usage.total_tokens == 10


@pytest.mark.parametrize(("logprob", "arm"), [(-0.1, "slm"), (-0.9, "llm")])
@pytest.mark.parametrize("stream", [False, True])
def test_a_cascade_asks_the_llm_where_the_slm_is_unsure(logprob: float, arm: str, stream: bool, tmp_path: Path) -> None:
    with bed(tmp_path, "cascade", slm=sure(OTHER, logprob)) as it:
        reply = it.ask(stream=stream)
        assert reply.headers["x-slm-ray-arm"] == arm
        said = text_of(streamed(reply)) if stream else content(reply)
        assert said == (OTHER if arm == "slm" else GOOD)
        assert 'logprob":' not in reply.text
        (row,) = it.log.rows()
        assert row.answer_of("slm").logprob == logprob  # type: ignore[union-attr]
        assert (row.fallback or "").startswith("unsure" if arm == "llm" else "")


@pytest.mark.parametrize("script", [says(GOOD), sure("no JSON", -0.01)], ids=["no log-probabilities", "no form"])
def test_a_cascade_trusts_no_answer_that_it_cannot_rank(script: Script, tmp_path: Path) -> None:
    with bed(tmp_path, "cascade", slm=script, llm=says(OTHER)) as it:
        assert content(it.ask()) == OTHER


def test_a_client_that_asks_for_log_probabilities_gets_them_from_a_cascade(tmp_path: Path) -> None:
    with bed(tmp_path, "cascade", slm=sure(OTHER, -0.1)) as it:
        assert it.ask(logprobs=True).json()["choices"][0]["logprobs"]["content"][0]["logprob"] == -0.1


def test_a_dead_slm_is_left_alone_and_found_again(tmp_path: Path) -> None:
    dead = threading.Event()
    dead.set()

    def script(request: Request) -> Reply:
        return Reply(body=answer(OTHER).body, after_s=0.6 if dead.is_set() else 0.0)

    with bed(tmp_path, "live", slm=script, timeout_s=0.3) as it:
        assert [content(it.ask()) for _ in range(6)] == [GOOD] * 6
        started, asked = time.monotonic(), len(it.slm.requests)
        assert [content(it.ask()) for _ in range(10)] == [GOOD] * 10
        assert time.monotonic() - started < 1.5  # each would have waited for 0.3 s
        assert len(it.slm.requests) - asked <= 2
        dead.clear()
        wait_for(lambda: content(it.ask()) == OTHER)


def test_an_llm_that_stands_in_for_long_is_said_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fallbacks, "_LASTS_S", 0.3)
    monkeypatch.setattr(beside, "_TELL_S", 0.1)
    away = threading.Event()
    away.set()
    with bed(tmp_path, "live", slm=lambda request: error(503) if away.is_set() else answer(GOOD)) as it:
        wait_for(lambda: content(it.ask()) == GOOD and it.said)
        (said,) = it.said
        assert said.startswith("cities: the LLM answered in the SLM's place in ") and "(the last one: " in said
        state = it.store.route("cities")
        kept = wait_for(lambda: found if (found := read_fallbacks(tmp_path, state)) and found.since else None)
        assert kept.share == 1.0 and it.card()["fallbacks"]["since"] == kept.since
        away.clear()
        wait_for(lambda: [it.ask() for _ in range(20)] and len(it.said) == 2, within_s=30)
        assert "look at the SLM" not in it.said[1]
        asked = it.card()["counts"]["requests"]
    found = read_fallbacks(tmp_path, state)
    assert found is not None and found.since is None and found.calls == min(100, asked), "the last calls too"


def test_a_disk_that_does_not_take_what_is_known_of_fallbacks_is_said_once_each_time_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuses, tries = threading.Event(), list[bool]()

    def write(*_: Any) -> None:
        tries.append(refuses.is_set())
        if tries[-1]:
            raise ResourceError("the disk is full")

    monkeypatch.setattr(beside, "write_fallbacks", write)
    monkeypatch.setattr(beside, "_TELL_S", 0.05)
    with bed(tmp_path, "live") as it:

        def asked(*, refused: bool) -> None:
            (refuses.set if refused else refuses.clear)()
            so_far = len(tries)
            it.ask()
            wait_for(lambda: len(tries) > so_far)

        for refused in (True, True, False, True):
            asked(refused=refused)
        wait_for(lambda: len(it.said) == 2)
    assert tries == [True, True, False, True] and set(it.said) == {"the fallbacks of cities: the disk is full"}


def test_what_a_cascade_is_unsure_of_is_nobodys_failure(tmp_path: Path) -> None:
    with bed(tmp_path, "cascade", slm=sure(OTHER, -2.0)) as it:
        assert [content(it.ask()) for _ in range(3)] == [GOOD] * 3
        wait_for(lambda: it.card()["counts"]["fallbacks"] == 3)
        assert it.card()["fallbacks"]["fallbacks"] == 0


def test_one_clients_long_requests_keep_nobody_from_the_slm(tmp_path: Path) -> None:
    def script(request: Request) -> Reply:
        return Reply(body=answer(OTHER).body, after_s=4.0 if "long" in str(request.body["messages"]) else 0.0)

    with bed(tmp_path, "live", slm=script, timeout_s=1.5) as it, ThreadPoolExecutor(5) as clients:
        for _ in range(2):
            assert [content(each) for each in clients.map(it.ask, ["a long one"] * 5)] == [GOOD] * 5
            assert content(it.ask("Oslo?")) == OTHER, "the SLM answers others, and the front has asked"


def test_an_overloaded_slm_is_asked_again_at_once(tmp_path: Path) -> None:
    with bed(tmp_path, "live", slm=lambda request: error(429) if request.nth < 8 else answer(OTHER)) as it:
        assert [content(it.ask()) for _ in range(9)] == [GOOD] * 8 + [OTHER]


@pytest.mark.parametrize("state", ["record", "shadow", "live"])
def test_the_llms_own_status_reaches_the_client(state: str, tmp_path: Path) -> None:
    busy: Script = lambda _: error(429, "rate_limit_exceeded", "slow down", **{"Retry-After": "7"})  # noqa: E731
    with bed(tmp_path, state, llm=busy, slm=lambda _: error(500)) as it:
        reply = it.ask()
        assert reply.status_code == 429 and reply.headers["retry-after"] == "7"
        assert reply.json()["error"]["message"] == "slow down"
        (row,) = it.log.rows()
        assert row.served is None


def test_an_llm_that_is_not_there_is_a_502_that_names_no_key(tmp_path: Path) -> None:
    with bed(tmp_path, "record", llm=lambda _: Reply(reset=True)) as it:
        for stream in (False, True):
            reply = it.ask(stream=stream)
            assert reply.status_code == 502 and reply.json()["error"]["code"] == "llm_unreachable"
            assert KEY not in reply.text


def test_a_client_that_leaves_ends_the_call_upstream(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(10)
        with bed(tmp_path, "record") as it:
            route = it.store.route("cities").route
            moved = Route(
                name="cities", llm=f"openai:gpt-x@http://127.0.0.1:{listener.getsockname()[1]}/v1", slm=route.slm,
                track=route.track, base=route.base,
            )  # fmt: skip
            it.store.appoint(moved, adapter=None, grant=it.store.route("cities").granted, reason="test", by="test")
            wait_for(lambda: it.card()["llm"] == moved.llm)
            with pytest.raises(httpx.ReadTimeout):
                HTTP.post(
                    f"{it.url}/v1/chat/completions", timeout=0.3,
                    json={"model": "cities", "messages": [{"role": "user", "content": "x"}]},
                )  # fmt: skip
            connection, _ = listener.accept()
            connection.settimeout(5)
            while connection.recv(65536):
                pass  # the request, and then the end of the connection: never a time-out
            connection.close()
            (row,) = it.log.rows()
            assert row.served is None


@pytest.mark.parametrize("stream", [False, True])
def test_an_audited_call_is_answered_to_its_end_though_its_client_leaves(stream: bool, tmp_path: Path) -> None:
    parts = [chunk(OTHER[:4]), chunk(OTHER[4:]), chunk(None, finish="stop"), DONE]

    def slow(request: Request) -> Reply:
        return Reply(parts=parts, after_s=0.3) if stream else Reply(body=answer(OTHER).body, after_s=0.9)

    with bed(tmp_path, "live", slm=slow, audit_share=1.0) as it:
        body = {"model": "cities", "messages": [{"role": "user", "content": "x"}], "stream": stream}
        with (
            contextlib.suppress(httpx.ReadTimeout),  # whoever has seen the start of a bad answer may leave
            HTTP.stream("POST", f"{it.url}/v1/chat/completions", json=body, timeout=0.5) as reply,
        ):
            assert stream and next(reply.iter_raw())
        (row,) = it.log.rows()
        assert [one.text for one in row.answers] == [OTHER, GOOD] and row.answer_of("slm").score == 0.0  # type: ignore[union-attr]
        assert it.card()["counts"]["pairs"] == 1 and len(it.slm.requests) == 1


def test_an_audit_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("calls", "beside"):
        monkeypatch.setattr(f"slm_ray.rollout.{place}.AUDIT_TIMEOUT_S", 0.3)
    let_go = threading.Event()
    with bed(tmp_path, "live", llm=held(let_go), audit_share=1.0) as it:
        assert content(it.ask()) == GOOD, "the SLM's; the LLM is asked beside"
        assert it.log.rows()[0].answer_of("llm").reason.startswith("timeout")  # type: ignore[union-attr]
        it.store.move("cities", "shadow", reason="test", by="test")
        wait_for(lambda: it.card()["state"] == "shadow")
        with pytest.raises(httpx.ReadTimeout):
            HTTP.post(
                f"{it.url}/v1/chat/completions", timeout=0.2,
                json={"model": "cities", "messages": [{"role": "user", "content": "x"}]},
            )  # fmt: skip
        assert it.log.rows(2)[1].served is None
        let_go.set()


def test_calls_that_nobody_waits_for_any_more_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slm_ray.rollout.beside.MOST_BESIDE", 0)
    with bed(tmp_path, "live", slm=lambda _: Reply(body=answer(OTHER).body, after_s=1.0), audit_share=1.0) as it:
        with pytest.raises(httpx.ReadTimeout):
            HTTP.post(
                f"{it.url}/v1/chat/completions", timeout=0.2,
                json={"model": "cities", "messages": [{"role": "user", "content": "x"}]},
            )  # fmt: skip
        (row,) = it.log.rows()
        assert row.served is None and row.answers == ()


def test_what_is_not_asked_of_both_for_lack_of_room_counts_as_not_audited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slm_ray.rollout.beside.MOST_BESIDE", 0)
    with bed(tmp_path, "live", slm=lambda request: error(400) if request.nth else answer(OTHER), audit_share=1.0) as it:
        assert [content(it.ask()) for _ in range(2)] == [OTHER, GOOD]
        rows = it.log.rows(2)
        # The LLM has answered what the SLM failed at, and that alone: no sample of the traffic.
        assert [row.answer_of("llm") is not None for row in rows] == [False, True]
        assert [row.audited for row in rows] == [False, False] and it.card()["counts"]["not_asked"] == 1


def test_changes_are_seen_without_a_restart_and_no_call_fails(tmp_path: Path) -> None:
    with bed(tmp_path, "record", slm=says(OTHER)) as it:
        for state, said in (("shadow", GOOD), ("live", OTHER), ("record", GOOD)):
            it.store.move("cities", state, reason="test", by="test")  # type: ignore[arg-type]
            wait_for(lambda said=said: content(it.ask()) == said, within_s=2.0)  # type: ignore[misc]


def test_a_new_route_is_found_and_an_unknown_one_is_a_404(tmp_path: Path) -> None:
    with bed(tmp_path, "record") as it:
        reply = it.ask(model="towns")
        assert reply.status_code == 404 and reply.json()["error"]["code"] == "model_not_found"
        route = it.store.route("cities").route
        new = Route(name="towns", llm=route.llm, slm=route.slm, track=route.track, base=route.base)
        it.store.create(new, adapter=None, grant=Grant(most="shadow", because="none"), reason="test", by="test")
        assert content(it.ask(model="towns")) == GOOD
        for name in ("../cities", "cities/..", "", "a\nb", "x" * 300, "\x00"):
            assert it.ask(model=name).status_code in (400, 404), name


HOSTILE = [b"", b"[1]", b'{"model": 5}', b"[" * 100_000, b'\xff\xfe{"', b'{"model": "cities"}', b'{"model": "cities", "messages": "x"}',
           b'{"model": "cities", "messages": [5]}', b'{"model": "cities", "messages": [{"role": "user", "content": "\\ud800"}]}']  # fmt: skip


def test_a_body_that_is_no_request_is_a_400(tmp_path: Path) -> None:
    with bed(tmp_path, "record") as it:
        for raw in HOSTILE:
            reply = HTTP.post(f"{it.url}/v1/chat/completions", content=raw)
            assert reply.status_code == 400 and reply.json()["error"]["type"] == "invalid_request_error", raw[:40]
        assert not it.llm.requests


def test_a_body_too_large_is_a_413_and_other_paths_have_one_error_shape(tmp_path: Path) -> None:
    with bed(tmp_path, "record") as it:
        assert HTTP.post(f"{it.url}/v1/chat/completions", content=b"x" * (8 << 20) + b"x").status_code == 413
        assert HTTP.get(f"{it.url}/v1/nothing").json()["error"]["code"] == "not_found"
        assert HTTP.get(f"{it.url}/v1/chat/completions").status_code == 405


def test_above_its_limit_a_call_is_turned_away_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slm_ray.rollout.front.MOST_IN_FLIGHT", 1)
    asked, let_go = threading.Event(), threading.Event()

    def held(request: Request) -> Reply:
        asked.set()
        let_go.wait(10)
        return answer(GOOD)

    with bed(tmp_path, "record", llm=held) as it:
        first: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: first.append(it.ask()))
        thread.start()
        assert asked.wait(10)
        refused = it.ask()
        assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
        let_go.set()
        thread.join()
        assert content(first[0]) == GOOD
        wait_for(lambda: it.ask().status_code == 200)  # its place is free a moment after its answer


def test_a_route_whose_llm_hangs_leaves_room_to_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slm_ray.rollout.front.MOST_OF_A_ROUTE", 2)
    let_go = threading.Event()

    def held(request: Request) -> Reply:
        if "hang" in str(request.body["messages"]):
            let_go.wait(10)
        return answer(GOOD)

    with bed(tmp_path, "record", llm=held) as it:
        route = it.store.route("cities").route
        other = Route(name="towns", llm=route.llm, slm=route.slm, track=route.track, base=route.base)
        it.store.create(other, adapter=None, grant=Grant(most="shadow", because="none"), reason="test", by="test")
        threads = [threading.Thread(target=it.ask, args=("hang",)) for _ in range(2)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(it.llm.requests) == 2)
        refused = it.ask()
        assert refused.status_code == 429 and refused.headers["retry-after"] == "1" and "cities" in refused.text
        assert content(it.ask(model="towns")) == GOOD
        let_go.set()
        for thread in threads:
            thread.join()
        wait_for(lambda: it.ask().status_code == 200)


def test_requests_that_are_being_answered_are_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slm_ray.rollout.front._MOST_BYTES", 150_000)
    let_go = threading.Event()
    with bed(tmp_path, "record", llm=held(let_go)) as it:
        thread = threading.Thread(target=it.ask, args=("x" * 140_000,))
        thread.start()
        wait_for(lambda: it.llm.requests)
        assert it.ask("x" * 20_000).status_code == 429
        let_go.set()
        thread.join()
        wait_for(lambda: it.ask("x" * 200_000).status_code == 200)  # alone, any request has room


def test_what_an_engine_does_not_know_is_the_llms_to_judge(tmp_path: Path) -> None:
    with bed(tmp_path, "record") as it:
        assert content(it.ask(reasoning_effort="low", tools=[{"type": "function", "function": {"name": "f"}}])) == GOOD
        assert it.llm.requests[0].body["reasoning_effort"] == "low"


def test_every_path_but_health_needs_the_key(tmp_path: Path) -> None:
    with bed(tmp_path, "record", key="front-key") as it:
        assert it.ask().status_code == 401 and HTTP.get(f"{it.url}/v1/models").status_code == 401
        assert HTTP.post(f"{it.url}/v1/feedback", json={"id": "a", "score": 1}).status_code == 401
        assert HTTP.get(f"{it.url}/health").json() == {"status": "ok"}
        assert content(it.ask(headers={"Authorization": "Bearer front-key"})) == GOOD
        assert it.llm.requests[0].headers["authorization"] == f"Bearer {KEY}"


def test_further_keys_have_routes_and_tokens_of_their_own(tmp_path: Path) -> None:
    file = str(tmp_path / "keys.jsonl")
    other = add_key(file, "other", models=["towns"])
    small = add_key(file, "small", models=["cit*"], tokens_per_minute=100)
    with bed(tmp_path / "routes", "record", key="front-key", keys_file=file) as it:
        assert it.ask(headers={"api-key": other}).status_code == 403
        assert content(it.ask(headers={"api-key": small}, max_tokens=60)) == GOOD
        # Settled by what the first one took, a moment after its answer.
        wait_for(lambda: it.ask(headers={"api-key": small}, max_tokens=60).status_code == 200)
        assert it.ask(headers={"api-key": small}, max_tokens=5_000).status_code == 403
        assert it.ask(headers={"api-key": small}, max_tokens=79).status_code == 429
        seen = {key: HTTP.get(f"{it.url}/v1/models", headers={"api-key": key}).json()["data"] for key in (small, other)}
        assert seen[other] == [] and seen[small][0]["metadata"] == {"state": "record"}
    assert it.log.closed


def test_without_a_key_it_is_for_this_machine(tmp_path: Path) -> None:
    with bed(tmp_path, "record") as it:
        assert it.ask(headers={"host": "evil.example"}).status_code == 403
        assert it.ask(headers={"origin": "https://evil.example"}).status_code == 403


def test_feedback_is_kept(tmp_path: Path) -> None:
    with bed(tmp_path, "record") as it:
        given = [{"id": "a" * 32, "score": 0.5}, {"id": "b", "answer": GOOD}, {"id": "c", "score": 1, "answer": "x"}]
        assert [HTTP.post(f"{it.url}/v1/feedback", json=one).status_code for one in given] == [202] * 3
        kept = [one for one in it.log.entries if isinstance(one, Feedback)]
        assert [(one.id, one.score, one.answer) for one in kept] == [
            ("a" * 32, 0.5, None), ("b", None, GOOD), ("c", 1.0, "x")
        ]  # fmt: skip
        refused: list[Any] = [
            {}, [], {"id": "a"}, {"id": 5, "score": 1}, {"id": "a", "score": 2}, {"id": "a", "score": True},
            {"id": "a", "score": "1"}, {"id": "a", "answer": 5}, {"id": "a", "score": 1, "by": "me"}, {"id": "", "score": 1},
        ]  # fmt: skip
        assert {HTTP.post(f"{it.url}/v1/feedback", json=one).status_code for one in refused} == {400}
        assert len(it.log.entries) == 3


def test_expected_answers_are_bet_on_and_corrections_are_not(tmp_path: Path) -> None:
    def slm(request: Request) -> Reply:
        return answer(OTHER)

    with bed(
        tmp_path, "live", slm=slm, llm=slm, audit_share=1.0
    ) as it:  # both say the same, and something else is right
        first = it.ask().headers["x-slm-ray-request-id"]
        wait_for(lambda: it.card().get("counts", {}).get("pairs") == 1)

        def say(request_id: str, **said: Any) -> Any:
            return HTTP.post(f"{it.url}/v1/feedback", json={"id": request_id, **said}).json()

        assert "counted" not in say(first, answer=GOOD), "a correction"
        assert say(first, answer=GOOD, label=True)["counted"] is True
        assert say(first, answer=GOOD, label=True)["counted"] is False, "once"
        assert say("f" * 32, answer=GOOD, label=True)["counted"] is False, "no request that is remembered"
        assert say(first, score=1, label=True)["error"]["param"] == "label"
        assert say(first, answer=GOOD, label=1)["error"]["param"] == "label"
        wait_for(lambda: it.card()["counts"].get("labels") == 1)
        lines = [json.loads(line) for line in (tmp_path / "cities" / "watch.jsonl").read_text().splitlines()]
        assert [line["label"] for line in lines if "label" in line] == [0.0]
        second = it.ask().headers["x-slm-ray-request-id"]
        wait_for(lambda: it.card()["counts"].get("pairs") == 2)
        said = say(second, answer="no JSON", label=True)
        assert (
            said["counted"] is False
            and "is not strict JSON" in said["because"]
            and it.card()["counts"]["unscored"] == 1
        )
        assert say(second, answer=OTHER, label=True)["counted"] is True, "one that cannot be read uses nothing up"
        wait_for(lambda: it.card()["counts"].get("labels") == 2)


def test_a_label_that_nothing_can_score_now_is_not_counted_and_may_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(name: str) -> Any:
        raise DataError(f"{name}: its file is not there")

    with bed(tmp_path, "live", audit_share=1.0) as it:
        label = {"id": it.ask().headers["x-slm-ray-request-id"], "answer": GOOD, "label": True}
        wait_for(lambda: it.card().get("counts", {}).get("pairs") == 1)
        with monkeypatch.context() as away:
            away.setattr(beside, "track_named", gone)
            reply = HTTP.post(f"{it.url}/v1/feedback", json=label)
        assert reply.status_code == 202, "it is in the log"
        assert reply.json()["counted"] is False and "the front's log says why" in reply.json()["because"]
        assert it.said == ["the watch of cities: structured: its file is not there"]
        assert HTTP.post(f"{it.url}/v1/feedback", json=label).json()["counted"] is True


def test_answers_that_turn_out_wrong_ring_the_watch(tmp_path: Path) -> None:
    with bed(tmp_path, "live", slm=says(OTHER), llm=says(OTHER), audit_share=1.0) as it:
        wrong = threading.Event()

        def labelled() -> RouteState | None:
            request_id = it.ask().headers["x-slm-ray-request-id"]
            it.llm.script = says(GOOD) if wrong.is_set() else says(OTHER)  # the SLM alone is wrong from then on
            said = {"id": request_id, "answer": GOOD if wrong.is_set() else OTHER, "label": True}
            wait_for(lambda: HTTP.post(f"{it.url}/v1/feedback", json=said).json()["counted"])
            state = it.store.route("cities")
            return state if state.state == "record" else None

        assert [labelled() for _ in range(5)] == [None] * 5
        wrong.set()
        assert wait_for(labelled, within_s=30).by == "watch"


def test_the_key_of_the_llm_stays_where_it_is(tmp_path: Path) -> None:
    def quoting(request: Request) -> Reply:
        return error(401, "invalid_api_key", f"wrong key {request.headers['authorization']}")

    with bed(tmp_path, "shadow", slm=quoting) as it:
        it.ask()
        (row,) = it.log.rows()
        assert row.answer_of("slm").status == 401  # type: ignore[union-attr]
        assert KEY not in repr(it.log.entries) and KEY not in json.dumps(it.card()) and KEY not in repr(it.said)
        assert all(KEY not in path.read_text() for path in tmp_path.rglob("*") if path.is_file())


def test_drift_rings_the_watch_and_the_route_is_taken_back(tmp_path: Path) -> None:
    drifting = threading.Event()

    def script(request: Request) -> Reply:
        return answer(OTHER if drifting.is_set() else GOOD)

    with bed(tmp_path, "live", slm=script, audit_share=1.0) as it:
        for _ in range(20):
            assert content(it.ask()) == GOOD
        assert wait_for(lambda: it.card()["counts"].get("pairs") == 20) and it.card()["state"] == "live"
        drifting.set()

        def asked_again() -> RouteState | None:
            it.ask()
            state = it.store.route("cities")
            return state if state.state == "record" else None

        state = wait_for(asked_again)
        assert state.by == "watch" and "watch rang" in state.reason
        assert wait_for(lambda: it.ask().headers["x-slm-ray-arm"] == "llm")
        disagreed = wait_for(lambda: it.store.disagreements("cities"))
        assert disagreed and {one["score"] for one in disagreed} == {0.0}
        wait_for(lambda: {one["id"] for one in disagreed} <= {row.id for row in it.log.rows()})


def test_a_watch_that_cannot_see_is_said_once_and_costs_no_row(tmp_path: Path) -> None:
    with bed(tmp_path, "live", audit_share=1.0) as it:
        (tmp_path / "cities" / "watch.jsonl").write_text('{"serial": "never"}\n')
        for _ in range(3):
            assert content(it.ask()) == GOOD
        rows = it.log.rows(3)
        assert {row.answer_of("slm").score for row in rows} == {1.0}  # type: ignore[union-attr]
        assert wait_for(lambda: it.card().get("counts", {}).get("watch_errors") == 3)
        assert len(it.said) == 1 and "watch.jsonl:1" in it.said[0]


def test_a_row_that_cannot_be_made_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> bool:
        raise RuntimeError("Oslo is in no list")

    with bed(tmp_path, "record") as it:
        monkeypatch.setattr("slm_ray.rollout.beside.in_form", broken)
        assert content(it.ask()) == GOOD
        assert wait_for(lambda: it.card().get("counts", {}).get("rows_lost") == 1)
        assert "RuntimeError" in it.said[0] and "Oslo" not in it.said[0]


def test_what_the_log_has_no_room_for_is_said(tmp_path: Path) -> None:
    with bed(tmp_path, "live", audit_share=1.0) as it:
        request_id = it.ask().headers["x-slm-ray-request-id"]
        it.log.rows(1)
        it.log.full = True
        assert content(it.ask()) == GOOD
        assert wait_for(lambda: it.card()["counts"].get("rows_lost") == 1)
        said = HTTP.post(f"{it.url}/v1/feedback", json={"id": request_id, "answer": GOOD, "label": True})
        assert (said.status_code, said.headers["retry-after"]) == (503, "1")
        it.log.full = False
        again = HTTP.post(f"{it.url}/v1/feedback", json={"id": request_id, "answer": GOOD, "label": True})
        assert again.json()["counted"] is True, "what was not kept has not been bet on"
        assert it.card()["counts"]["rows_lost"] == 1


def test_rows_that_wait_are_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken, held = threading.Event(), threading.Event()

    def judge(*_: object) -> bool:
        taken.set()
        return held.wait(10)

    monkeypatch.setattr("slm_ray.rollout.beside._MOST_BYTES", 150_000)
    monkeypatch.setattr("slm_ray.rollout.beside.in_form", judge)
    with bed(tmp_path, "record") as it:
        for _ in range(4):  # one at the thread, one that waits, and no room for the others
            assert content(it.ask("x" * 100_000)) == GOOD and taken.wait(10)
        assert wait_for(lambda: it.card()["counts"].get("rows_lost") == 2)
        held.set()
        assert len(it.log.rows(2)) == 2
        assert content(it.ask()) == GOOD and len(it.log.rows(3)) == 3
