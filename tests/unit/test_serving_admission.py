"""Who is let in beside whom: scopes, room, budgets and what is told of each answer; through the middleware as it is stacked."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from slm_ray.serving.admission import Admission, Answered, Counted, InFlight, RefuseWhenFull, Room
from slm_ray.serving.auth import RequireKey
from slm_ray.serving.figures import FIGURES, Figure, Recorder, merged
from slm_ray.serving.keys import KeyRing, add_key, key_digest
from slm_ray.serving.limits import READ, RequestLimits

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 10}
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
ROOM = Room(answers=2, tokens=1_000_000)
DASHBOARD = Path(__file__).parents[2] / "deploy/grafana/slm_ray.json"


class Told:
    """What is told to `Figures`."""

    def __init__(self) -> None:
        self.now: list[tuple[int, int]] = []
        self.ended: list[Answered] = []

    def in_flight(self, answers: int, tokens: int) -> None:
        self.now.append((answers, tokens))

    def answered(self, answered: Answered) -> None:
        self.ended.append(answered)


class Engine:
    """The app behind: answers when it may, in one piece or as a stream."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.may.set()
        self.status, self.pieces = 200, [json.dumps({"model": "tiny:a-1", "usage": USAGE}).encode()]
        self.asked = 0
        self.request: dict[str, Any] = {}
        self.error: Exception | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked += 1
        self.request = scope.get(READ, ({}, 0))[0]
        await self.may.wait()
        if self.error is not None:
            raise self.error
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        for piece in self.pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


class Endpoint:
    """The middleware as the ingress stacks them, and a client without a network."""

    def __init__(self, *, room: Room = ROOM, file: Path | None = None, asks_usage: bool = False) -> None:
        self.engine, self.told, self.now = Engine(), Told(), 0.0
        in_flight = InFlight(room, self.told)
        app: Any = Admission(
            self.engine,
            base="tiny",
            in_flight=in_flight,
            figures=self.told,
            asks_usage=asks_usage,
            clock=lambda: self.now,
        )
        app = RefuseWhenFull(RequestLimits(app), in_flight=in_flight)
        if file is not None:
            app = RequireKey(app, ring=KeyRing(own_digest=key_digest("own"), file=str(file)))
        app = Counted(app, figures=self.told, clock=lambda: self.now)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")

    async def ask(self, key: str = "", path: str = CHAT, **fields: Any) -> httpx.Response:
        return await self.client.post(path, json=BODY | fields, headers={"api-key": key} if key else {})


async def started(count: int, endpoint: Endpoint) -> None:
    while endpoint.engine.asked < count:
        await asyncio.sleep(0.001)


def test_what_is_too_much_at_once_is_a_429_at_once_and_room_comes_back() -> None:
    async def scenario() -> tuple[httpx.Response, list[int], Told]:
        endpoint = Endpoint()
        endpoint.engine.may.clear()
        running = [asyncio.create_task(endpoint.ask()) for _ in range(2)]
        await started(2, endpoint)
        refused = await endpoint.ask()
        endpoint.engine.may.set()
        statuses = [reply.status_code for reply in await asyncio.gather(*running)]
        return refused, [*statuses, (await endpoint.ask()).status_code], endpoint.told

    refused, statuses, told = asyncio.run(scenario())
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert statuses == [200, 200, 200]
    assert max(answers for answers, _ in told.now) == 2 and told.now[-1] == (0, 0)


def test_who_finds_no_room_is_refused_before_its_body_has_come_but_not_before_its_key_is_known(tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    secret = add_key(file, "team")

    async def never() -> Any:
        yield b"{"
        await asyncio.sleep(60)

    async def scenario() -> tuple[list[int], list[Answered]]:
        endpoint = Endpoint(file=file)
        endpoint.engine.may.clear()
        running = [asyncio.create_task(endpoint.ask(secret)) for _ in range(2)]
        await started(2, endpoint)
        replies = [
            await asyncio.wait_for(endpoint.client.post(CHAT, content=never(), headers={"api-key": key}), 10)
            for key in (secret, "wrong")
        ]
        told = list(endpoint.told.ended)
        endpoint.engine.may.set()
        await asyncio.gather(*running)
        return [reply.status_code for reply in replies], told

    statuses, told = asyncio.run(scenario())
    assert statuses == [429, 401]
    assert [(one.key, one.status) for one in told] == [("team", 429), ("", 401)]


def test_room_is_counted_in_tokens_too_and_alone_a_request_always_has_it() -> None:
    async def scenario() -> list[int]:
        endpoint = Endpoint(room=Room(answers=100, tokens=1000))
        endpoint.engine.may.clear()
        large = asyncio.create_task(endpoint.ask(max_tokens=8000))
        await started(1, endpoint)
        beside = (await endpoint.ask()).status_code
        endpoint.engine.may.set()
        statuses = [(await large).status_code, beside]
        endpoint.engine.may.clear()
        small = [asyncio.create_task(endpoint.ask(max_tokens=100, n=3)) for _ in range(3)]
        await started(4, endpoint)
        statuses.append((await endpoint.ask(max_tokens=300)).status_code)
        endpoint.engine.may.set()
        return statuses + [reply.status_code for reply in await asyncio.gather(*small)]

    assert asyncio.run(scenario()) == [200, 429, 429, 200, 200, 200]


def test_room_comes_back_from_clients_that_leave_and_from_an_engine_that_fails() -> None:
    async def scenario() -> tuple[int, int, list[int]]:
        endpoint = Endpoint()
        endpoint.engine.may.clear()
        running = [asyncio.create_task(endpoint.ask()) for _ in range(2)]
        await started(2, endpoint)
        for call in running:
            call.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        left = endpoint.told.now[-1][0]
        endpoint.engine.may.set()
        endpoint.engine.pieces = [object()]  # type: ignore[list-item]
        for _ in range(3):
            with pytest.raises(Exception, match=r"."):
                await endpoint.ask()
        return left, endpoint.told.now[-1][0], [answered.status for answered in endpoint.told.ended[:2]]

    assert asyncio.run(scenario()) == (0, 0, [499, 499])


@pytest.mark.parametrize(
    ("path", "fields", "status"),
    [
        (CHAT, {"model": "structured"}, 200),
        (CHAT, {"model": "tiny:structured"}, 200),
        (CHAT, {"model": "structured@champion"}, 200),
        (CHAT, {"model": "toolcall-1"}, 200),
        (CHAT, {"model": "other"}, 403),
        (CHAT, {"model": "tiny"}, 403),
        (CHAT, {}, 403),  # the base
        ("/openai/deployments/structured/chat/completions", {"model": "other"}, 200),
        ("/openai/deployments/other/chat/completions", {"model": "structured"}, 403),
        ("/v1/completions", {"model": "other", "prompt": "a", "messages": None}, 403),
        ("/v1/embeddings", {"model": "structured"}, 403),
        ("/tokenize", {"prompt": "a"}, 403),
    ],
)
def test_a_key_asks_the_models_of_its_scope(tmp_path: Path, path: str, fields: dict[str, Any], status: int) -> None:
    file = tmp_path / "keys.jsonl"
    secret = add_key(file, "team", models=["structured", "toolcall*"])

    async def scenario() -> list[httpx.Response]:
        endpoint = Endpoint(file=file)
        sent = {name: value for name, value in {**BODY, **fields}.items() if value is not None}
        return [
            await endpoint.client.post(path, json=sent, headers={"api-key": key}) for key in (secret, "own", "nobody's")
        ]

    scoped, own, nobody = asyncio.run(scenario())
    assert (scoped.status_code, own.status_code, nobody.status_code) == (status, 200, 401)
    if status == 403:
        assert scoped.json()["error"]["type"] == "permission_error" and "'team'" in scoped.json()["error"]["message"]


def test_a_key_s_tokens_of_a_minute_are_a_429_that_says_when_and_are_settled_by_use(tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    secret = add_key(file, "team", tokens_per_minute=600)

    async def scenario() -> list[httpx.Response]:
        endpoint = Endpoint(room=Room(answers=9, tokens=10**6, ingresses=2), file=file)  # 300 a minute are this one's
        replies = [await endpoint.ask(secret, max_tokens=250) for _ in range(3)]  # each uses 10 of some 270
        replies.append(await endpoint.ask(secret, max_tokens=290))
        replies.append(await endpoint.ask("own", max_tokens=5000))
        endpoint.engine.status, endpoint.engine.pieces = 400, [b"{}"]
        for _ in range(4):
            assert (await endpoint.ask(secret, max_tokens=200)).status_code == 400, "what fails costs nothing"
        endpoint.engine.status, endpoint.engine.pieces = (
            200,
            [json.dumps({"usage": USAGE | {"completion_tokens": 290}}).encode()],
        )
        replies.append(await endpoint.ask(secret, max_tokens=200))
        replies.append(await endpoint.ask(secret, max_tokens=200))
        endpoint.now += float(replies[-1].headers["retry-after"])
        replies.append(await endpoint.ask(secret, max_tokens=200))
        return replies

    replies = asyncio.run(scenario())
    assert [reply.status_code for reply in replies] == [200, 200, 200, 403, 200, 200, 429, 200]
    assert replies[3].json()["error"]["param"] == "max_tokens"
    assert 40 <= int(replies[6].headers["retry-after"]) <= 60


class Refused(Exception):
    """As Ray's ingress raises what its engine answers with an error."""

    status_code = 400
    message = "the prompt is above the maximum context length"


@pytest.mark.parametrize(("error", "status"), [(Refused(), 400), (RuntimeError("no"), 500)])
def test_an_error_that_is_raised_costs_nothing_and_is_told_by_its_status(
    tmp_path: Path, error: Exception, status: int
) -> None:
    file = tmp_path / "keys.jsonl"
    secret = add_key(file, "team", tokens_per_minute=600)

    async def scenario() -> tuple[int, list[int]]:
        endpoint = Endpoint(file=file)
        endpoint.engine.error = error
        for _ in range(3):
            with pytest.raises(type(error)):
                await endpoint.ask(secret, max_tokens=500)
        endpoint.engine.error = None
        reply = await endpoint.ask(secret, max_tokens=500)
        return reply.status_code, [answered.status for answered in endpoint.told.ended]

    assert asyncio.run(scenario()) == (200, [status, status, status, 200])


def test_whoever_names_no_length_takes_what_the_context_leaves(tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    secret = add_key(file, "team", tokens_per_minute=3000)

    async def scenario() -> list[int]:
        statuses = []
        for context in (2048, None):
            endpoint = Endpoint(room=Room(answers=9, tokens=5000, context=context), file=file)
            statuses.append((await endpoint.ask(secret, max_tokens=None)).status_code)
            endpoint.engine.may.clear()
            running = [asyncio.create_task(endpoint.ask("own", max_tokens=None)) for _ in range(2)]
            await started(1, endpoint)
            await asyncio.sleep(0.05)
            endpoint.engine.may.set()
            statuses += [reply.status_code for reply in await asyncio.gather(*running)]
        return statuses

    assert asyncio.run(scenario()) == [200, 200, 200, 403, 200, 429]


def test_a_plain_completion_that_names_no_length_is_a_short_one(tmp_path: Path) -> None:
    """tests/integration/test_serving_contract.py holds the engine to 16 tokens."""
    file = tmp_path / "keys.jsonl"
    secret = add_key(file, "team", tokens_per_minute=60)

    async def scenario() -> int:
        endpoint = Endpoint(file=file)
        reply = await endpoint.client.post("/v1/completions", json={"prompt": "hi"}, headers={"api-key": secret})
        return reply.status_code

    assert asyncio.run(scenario()) == 200


def test_who_leaves_before_the_answer_pays_what_was_set_aside(tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    secret = add_key(file, "team", tokens_per_minute=600)

    async def scenario() -> int:
        endpoint = Endpoint(file=file)
        endpoint.engine.may.clear()
        call = asyncio.create_task(endpoint.ask(secret, max_tokens=500))
        await started(1, endpoint)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        endpoint.engine.may.set()
        return (await endpoint.ask(secret, max_tokens=500)).status_code

    assert asyncio.run(scenario()) == 429


def test_each_answer_is_told_with_its_version_key_times_and_tokens(tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    secret = add_key(file, "team")
    chunk = (
        b'data: {"model":"tiny:a-1","choices":[{"delta":{"content":"\\"usage\\" \\"completion_tokens\\": 99"}}]}\n\n'
    )

    async def scenario() -> list[Answered]:
        endpoint = Endpoint(file=file)
        await endpoint.ask(secret, model="a")
        endpoint.engine.pieces = [chunk, chunk + chunk, b"data: [DONE]\n\n"]
        await endpoint.ask(secret, model="a", stream=True)
        endpoint.engine.pieces.insert(2, b'data: {"model":"tiny:a-1","usage":' + json.dumps(USAGE).encode() + b"}\n\n")
        await endpoint.ask("own", model="a", stream=True)
        endpoint.engine.status, endpoint.engine.pieces = 404, [b'{"error": {}}']
        await endpoint.ask("own", model="none")
        return endpoint.told.ended

    plain, stream, with_usage, unknown = asyncio.run(scenario())
    assert (plain.key, plain.asked, plain.model, plain.status) == ("team", "a", "tiny:a-1", 200)
    assert (plain.prompt_tokens, plain.completion_tokens, plain.is_stream) == (7, 3, False)
    assert (stream.completion_tokens, stream.is_stream) == (3, True) and stream.prompt_tokens > 10
    assert (with_usage.prompt_tokens, with_usage.completion_tokens) == (7, 3)
    assert (unknown.key, unknown.status, unknown.model, unknown.first_s) == ("SLM_RAY_API_KEY", 404, "", None)


@pytest.mark.parametrize("batched", [True, False])
def test_a_stream_is_charged_by_what_the_engine_counted_and_shows_it_to_who_asked(
    tmp_path: Path, batched: bool
) -> None:
    file = tmp_path / "keys.jsonl"
    secret = add_key(file, "team", tokens_per_minute=500)
    token = b'data: {"model":"tiny:a-1","choices":[{"delta":{"content":"a \\"choices\\":[] \\"usage\\":{"}}]}\n\n'
    used = (
        b'data: {"model":"tiny:a-1","choices":[],"usage":'
        + json.dumps(USAGE | {"completion_tokens": 90}).encode()
        + b"}\n\n"
    )
    pieces = [token, token + used + b"data: [DONE]\n\n"] if batched else [token, token, used, b"data: [DONE]\n\n"]

    async def scenario() -> tuple[list[bytes], list[Answered], dict[str, Any]]:
        endpoint = Endpoint(file=file, asks_usage=True)
        endpoint.engine.pieces = pieces
        seen = [(await endpoint.ask(secret, stream=True)).content]
        asked = endpoint.engine.request["stream_options"]
        seen.append((await endpoint.ask(secret, stream=True, stream_options={"include_usage": True})).content)
        return seen, endpoint.told.ended, asked

    (hidden, shown), told, asked = asyncio.run(scenario())
    assert asked == {"include_usage": True}
    assert hidden == token * 2 + b"data: [DONE]\n\n" and shown == token * 2 + used + b"data: [DONE]\n\n"
    assert [(one.prompt_tokens, one.completion_tokens) for one in told] == [(7, 90)] * 2


def test_what_is_refused_before_it_is_admitted_is_told_too(tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    secret = add_key(file, "team")

    async def scenario() -> list[Answered]:
        endpoint = Endpoint(file=file)
        await endpoint.ask("wrong")
        await endpoint.ask(secret, guided_json={})
        await endpoint.ask(secret)
        await endpoint.ask(secret, path="/tokenize")
        return endpoint.told.ended

    told = asyncio.run(scenario())
    assert [(one.key, one.model, one.status) for one in told] == [
        ("", "", 401), ("team", "", 400), ("team", "tiny:a-1", 200)
    ]  # fmt: skip


def test_the_figures_of_several_fronts_are_one_page_of_one_application() -> None:
    def page(replica: str) -> str:
        tags = f'application="app",replica="{replica}",status="200"'
        return (
            "# HELP ray_slm_ray_requests_total Requests\n# TYPE ray_slm_ray_requests_total counter\n"
            f"ray_slm_ray_requests_total{{{tags}}} 3.0\n"
            'ray_slm_ray_requests_total{application="another"} 9.0\n'
            "# TYPE ray_serve_x counter\nray_serve_x{} 1\n"
            "# TYPE ray_slm_ray_answers_in_flight gauge\n"
            f"ray_slm_ray_answers_in_flight{{{tags}}} 1.0\n"
        )

    lines = merged([page("a"), "", page("b")], "app").splitlines()
    assert [line for line in lines if line.startswith("# TYPE")] == [
        "# TYPE ray_slm_ray_requests_total counter", "# TYPE ray_slm_ray_answers_in_flight gauge"
    ]  # fmt: skip
    assert [line.count('replica="') for line in lines if not line.startswith("#")] == [1, 1, 1, 1]
    assert lines[2].startswith("ray_slm_ray_requests_total{") and lines[3].startswith("ray_slm_ray_requests_total{")


class Metric:
    def __init__(self, figure: Figure) -> None:
        self.figure = figure
        self.seen: list[tuple[float, dict[str, str]]] = []

    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert value > 0 and tuple(tags) == self.figure.tags and self.figure.kind == "Counter"
        self.seen.append((value, tags))

    def observe(self, value: float, tags: dict[str, str]) -> None:
        assert tuple(tags) == self.figure.tags and self.figure.kind == "Histogram"
        self.seen.append((value, tags))

    def set(self, value: float) -> None:
        assert self.figure.kind == "Gauge"
        self.seen.append((value, {}))


def test_every_figure_is_recorded_by_the_tags_it_declares() -> None:
    made: dict[str, Metric] = {}

    def make(figure: Figure) -> Metric:
        made[figure.name] = Metric(figure)
        return made[figure.name]

    recorder = Recorder(make)
    recorder.in_flight(2, 30)
    answered = Answered(
        key="team", asked="a", model="tiny:a-1", status=200, is_stream=True, first_s=0.1, total_s=0.5, prompt_tokens=7,
        completion_tokens=0,
    )  # fmt: skip
    recorder.answered(answered)
    silent = {name for name, metric in made.items() if not metric.seen}
    assert silent == {"slm_ray_completion_tokens"}, "nothing was counted of it"
    assert made["slm_ray_requests"].seen == [(1, {"key": "team", "model": "tiny:a-1", "status": "200"})]
    assert made["slm_ray_first_token_seconds"].seen == [(0.1, {"model": "tiny:a-1"})]
    assert set(made) == {figure.name for figure in FIGURES}


def exported(figure: Figure) -> set[str]:
    """The names and labels under which Ray hands a figure out."""
    name = f"ray_{figure.name}"
    return {
        "Counter": {f"{name}_total"},
        "Gauge": {name},
        "Histogram": {f"{name}_bucket", f"{name}_sum", f"{name}_count"},
    }[figure.kind]


def test_the_dashboard_names_figures_and_labels_that_are_there_and_leaves_none_out() -> None:
    known = {name: figure for figure in FIGURES for name in exported(figure)}
    board = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    queries += [choice["query"]["query"] for choice in board["templating"]["list"] if choice["type"] == "query"]
    named = [re.findall(r"\bray_\w+", query) for query in queries]
    assert all(named) and {name for names in named for name in names} <= set(known)
    assert {known[name].name for names in named for name in names} == {figure.name for figure in FIGURES}
    for query, names in zip(queries, named, strict=True):
        labels = set(re.findall(r"(\w+)(?:=~?\")", query))
        labels |= {label for by in re.findall(r"by \(([^)]*)\)", query) for label in by.split(", ")}
        assert labels - {"le"} <= set(known[names[0]].tags), query
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
