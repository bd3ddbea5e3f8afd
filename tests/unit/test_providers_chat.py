"""Every way a chat endpoint can answer or fail, over real HTTP: retried, reported as data, or fatal with the fix."""

from __future__ import annotations

import asyncio
import dataclasses
import pickle
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from chat_server import ChatServer, Reply, Request, answer, error

from slm_ray.config import Generation
from slm_ray.errors import ModelError
from slm_ray.providers import parse
from slm_ray.providers.azure import DEFAULT_API_VERSION
from slm_ray.types import Completion, Message, Prompt, Usage

KEY = "canary-3f9a-secret"
PROMPT = Prompt(messages=(Message(role="system", content="be brief"), Message(role="user", content="hi")))


def generation(**changes: Any) -> Generation:
    return Generation(**{"timeout_s": 5.0, "max_attempts": 3, **changes})


def environment(url: str) -> dict[str, str]:
    return {
        "AZURE_ENDPOINT": url, "AZURE_API_KEY": KEY, "AZURE_DEPLOYMENT": "gpt-4o", "SLM_RAY_API_KEY": KEY, "OPENAI_API_KEY": KEY,
    }  # fmt: skip


def ask(spec: str, url: str, **changes: Any) -> Completion:
    async def call() -> Completion:
        model = parse(spec).provider.open(endpoint=url, generation=generation(**changes), environment=environment(url))
        assert KEY not in repr(model) + repr(vars(model).get("_generation"))
        try:
            return await model.complete("row", PROMPT)
        finally:
            await model.close()

    return asyncio.run(call())


def each(*replies: Reply) -> Callable[[Request], Reply]:
    """The replies in turn; the last one for ever."""
    return lambda request: replies[min(request.nth, len(replies) - 1)]


@pytest.mark.parametrize("spec", ["served:tiny-base:a-0123", "azure:", "azure:mine", "openai:m@URL"])
def test_an_answer_with_all_that_is_known_about_it(spec: str) -> None:
    with ChatServer(each(answer("hello"))) as server:
        completion = ask(spec.replace("URL", f"{server.url}/v1"), server.url)
        request = server.requests[0]
    assert completion.text == "hello"
    assert completion.usage == Usage(prompt_tokens=7, completion_tokens=3)
    assert completion.served_by == "served-model"
    assert completion.attempts == 1
    assert completion.latency_s is not None
    assert 0 < completion.latency_s < 5
    assert request.body["messages"] == PROMPT.as_dicts()
    assert (request.body["temperature"], request.body["seed"], request.body["max_tokens"]) == (0.0, 42, 256)
    if spec.startswith("azure"):
        deployment = spec.removeprefix("azure:") or "gpt-4o"
        assert request.path == f"/openai/deployments/{deployment}/chat/completions?api-version={DEFAULT_API_VERSION}"
        assert request.headers["api-key"] == KEY
    else:
        assert request.path == "/v1/chat/completions"
        assert request.body["model"] == ("tiny-base:a-0123" if spec.startswith("served") else "m")
        assert request.headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("spec", ["served:tiny-base", "azure:mine", "openai:m@URL"])
def test_every_call_is_sent_as_the_first_one(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Of-Mine: yes")
    texts = ("one", "zwei ü", "three \U0001f600")

    async def all_of_them(url: str) -> list[Completion]:
        model = parse(spec.replace("URL", f"{url}/v1")).provider.open(
            endpoint=url, generation=generation(), environment=environment(url)
        )
        given = [await model.complete(text, Prompt(messages=(Message(role="user", content=text),))) for text in texts]
        await model.close()
        return given

    with ChatServer(each(answer("a"), answer("b"), error(400, message="no"))) as server:
        *answered, refused = asyncio.run(all_of_them(server.url))
    first, *others = server.requests
    sent = [
        {name.lower(): value for name, value in one.headers.items() if name.lower() != "content-length"}
        for one in server.requests
    ]
    assert sent == [sent[0]] * len(texts) and sent[0]["x-of-mine"] == "yes"
    for other in others:
        assert (other.path, other.body) == (first.path, first.body | {"messages": other.body["messages"]})
    assert tuple(request.text for request in server.requests) == texts
    assert [one.text for one in answered] == ["a", "b"]
    assert refused.failure is not None and refused.failure.reason == "HTTP 400: no"


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503])
def test_what_may_pass_is_tried_again(status: int) -> None:
    with ChatServer(each(error(status), answer("ok"))) as server:
        completion = ask("served:m", server.url)
        assert len(server.requests) == 2
    assert (completion.text, completion.attempts) == ("ok", 2)


@pytest.mark.parametrize("reply", [Reply(reset=True), answer("late", model="slow")])
def test_resets_and_timeouts_are_tried_again(reply: Reply) -> None:
    slow = Reply(body=reply.body, reset=reply.reset, after_s=0.0 if reply.reset else 3.0)
    with ChatServer(each(slow, answer("ok"))) as server:
        completion = ask("served:m", server.url, timeout_s=1.5)
    assert (completion.text, completion.attempts, completion.possibly_billed) == ("ok", 2, 1)
    assert completion.latency_s is not None
    assert completion.latency_s < 1.4  # of the last attempt alone


def test_only_what_was_sent_and_never_answered_is_possibly_billed() -> None:
    with ChatServer(each(error(503), Reply(reset=True), error(429), Reply(reset=True), answer("ok"))) as server:
        completion = ask("served:m", server.url, max_attempts=9)
    assert (completion.text, completion.attempts, completion.possibly_billed) == ("ok", 5, 2)

    async def after_the_end() -> Completion:
        with ChatServer(each(dataclasses.replace(answer("ok"), headers={"Connection": "close"}))) as server:
            model = parse("served:m").provider.open(
                endpoint=server.url, generation=generation(max_attempts=2), environment={}
            )
            await model.complete("1", PROMPT)
        completion = await model.complete("2", PROMPT)
        await model.close()
        return completion

    completion = asyncio.run(after_the_end())
    assert (completion.failure is not None, completion.attempts, completion.possibly_billed) == (True, 2, 0)


def test_a_rate_limited_attempt_does_not_count_but_the_deadline_does() -> None:
    rate_limited = error(429, **{"retry-after-ms": "100"})
    with ChatServer(each(*[rate_limited] * 6, answer("ok"))) as server:
        completion = ask("served:m", server.url, max_attempts=1)
    assert (completion.text, completion.attempts) == ("ok", 7)
    with ChatServer(each(rate_limited)) as server:
        completion = ask("served:m", server.url, max_attempts=1, retry_deadline_s=1.0)
        assert 3 <= len(server.requests) <= 10
    assert completion.failure is not None
    assert (completion.failure.kind, completion.failure.status) == ("error", 429)


@pytest.mark.parametrize(
    ("spec", "reply", "says"),
    [
        ("azure:", error(429, "insufficient_quota", "over"), "quota is used up .*AZURE_API_KEY"),
        ("openai:m@URL", error(429, "insufficient_quota", "over", **{"retry-after": "1"}), "quota.*OPENAI_API_KEY"),
        ("openai:m@URL", error(402, None, "no credit"), "quota is used up"),
        ("served:m", error(429, "billing_hard_limit_reached"), "quota is used up"),
    ],
)
def test_a_quota_that_is_used_up_is_not_waited_for(spec: str, reply: Reply, says: str) -> None:
    with ChatServer(each(reply)) as server:
        with pytest.raises(ModelError, match=says):
            ask(spec.replace("URL", f"{server.url}/v1"), server.url)
        assert len(server.requests) == 1


def test_cached_tokens_are_told_apart() -> None:
    usage = {"prompt_tokens": 90, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 64}}
    with ChatServer(each(Reply(body={**answer("ok").body, "usage": usage}))) as server:
        assert ask("azure:", server.url).usage == Usage(prompt_tokens=90, completion_tokens=3, cached_tokens=64)


@pytest.mark.parametrize(
    ("logprobs", "mean"),
    [
        ({"content": [{"token": "a", "logprob": -1.0}, {"token": "b", "logprob": -2.0}]}, -1.5),
        ({"content": [{"token": "a", "logprob": 0.0}]}, 0.0),
        ({"content": []}, None),
        ({"content": [{"token": "a"}]}, None),
        ({"content": [{"logprob": float("nan")}]}, None),
        (None, None),
        ("x", None),
    ],
)
def test_the_mean_log_probability_is_known_or_none(logprobs: Any, mean: float | None) -> None:
    body = answer("ab").body
    body["choices"][0]["logprobs"] = logprobs
    with ChatServer(each(Reply(body=body))) as server:
        assert ask("served:m", server.url, logprobs=True).logprob == mean
        assert server.requests[0].body["logprobs"] is True
        ask("served:m", server.url)
        assert "logprobs" not in server.requests[1].body


@pytest.mark.parametrize(("header", "seconds"), [("retry-after", "2"), ("retry-after-ms", "2000")])
def test_retry_after_is_honoured(header: str, seconds: str) -> None:
    with ChatServer(each(error(429, **{header: seconds}), answer("ok"))) as server:
        started = time.monotonic()
        completion = ask("azure:", server.url)
        took_s = time.monotonic() - started
    assert completion.text == "ok"
    assert took_s >= 2.0
    assert completion.latency_s is not None
    assert completion.latency_s < took_s - 1.9  # of the last attempt alone, without the wait


def test_a_wait_beyond_reason_is_not_waited_for() -> None:
    with ChatServer(each(error(429, "rate", "quota used up", **{"retry-after": "86400"}))) as server:
        completion = ask("azure:", server.url)
    assert completion.failure is not None
    assert (completion.failure.kind, completion.failure.status, completion.attempts) == ("error", 429, 1)
    assert "Retry-After asks for 86400 s, and none above 900 s is waited for" in completion.failure.reason


def test_a_long_wait_asked_for_is_kept_to_and_no_call_is_made_in_between() -> None:
    async def asked_for(url: str, seconds: float) -> None:
        model = parse("served:m").provider.open(endpoint=url, generation=generation(), environment=environment(url))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(model.complete("row", PROMPT), seconds)
        await model.close()

    with ChatServer(each(error(429, "rate", **{"retry-after": "300"}))) as server:
        asyncio.run(asked_for(server.url, 2.0))
        assert len(server.requests) == 1


def test_a_wait_beyond_patience_ends_the_row_at_once_and_names_the_setting() -> None:
    with ChatServer(each(error(429, "rate", "slow down", **{"retry-after": "300"}))) as server:
        started_s = time.monotonic()
        completion = ask("served:m", server.url, retry_deadline_s=2.0)
        assert time.monotonic() - started_s < 60  # 300 s were asked for
        assert len(server.requests) == 1
    assert completion.failure is not None
    assert (completion.failure.kind, completion.failure.status, completion.attempts) == ("error", 429, 1)
    assert completion.failure.reason == (
        "HTTP 429: slow down (Retry-After asks for 300 s, which ends after generation.retry_deadline_s 2; raise it to wait)"
    )


@pytest.mark.parametrize(("reply", "status"), [(error(503, None, "busy"), 503), (Reply(reset=True), None)])
def test_exhausted_attempts_are_a_failed_row(reply: Reply, status: int | None) -> None:
    with ChatServer(each(reply)) as server:
        completion = ask("served:m", server.url, max_attempts=2)
        assert len(server.requests) == 2
    assert completion.failure is not None
    assert (completion.failure.kind, completion.failure.status, completion.attempts) == ("error", status, 2)


def test_a_bad_request_is_one_failed_row_and_never_tried_again() -> None:
    with ChatServer(each(error(400, "context_length_exceeded", f"too long; your key is {KEY}"))) as server:
        completion = ask("served:m", server.url)
        assert len(server.requests) == 1
    assert completion.failure is not None
    assert (completion.failure.kind, completion.failure.status) == ("error", 400)
    assert "too long" in completion.failure.reason
    assert KEY not in completion.failure.reason


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (error(400, "content_filter", "filtered"), "refused"),
        (answer(None, finish="content_filter"), "refused"),
        (answer(None, refusal="I will not"), "refused"),
        (answer("half an ans", finish="length"), "truncated"),
        (answer(None), "invalid"),
        (answer("\ud800"), "invalid"),
        (Reply(body={"choices": []}), "invalid"),
        (Reply(body={"model": 5}), "invalid"),
        (Reply(body={"choices": [{"message": "text"}], "usage": {"prompt_tokens": "x"}}), "invalid"),
        (Reply(body=[1]), "invalid"),
        (Reply(body=b"<html>"), "invalid"),
        (Reply(body=b"<html>", headers={"Content-Type": "text/html"}), "invalid"),
        (Reply(body=b""), "invalid"),
        (Reply(body=b"[" * 200_000), "invalid"),
    ],
)  # fmt: skip
def test_an_unusable_answer_is_data(reply: Reply, kind: str) -> None:
    with ChatServer(each(reply)) as server:
        completion = ask("azure:", server.url)
        assert len(server.requests) == 1
    assert completion.failure is not None
    assert completion.failure.kind == kind
    assert completion.text is None


def test_an_empty_answer_is_an_answer() -> None:
    with ChatServer(each(answer(""))) as server:
        assert ask("served:m", server.url).text == ""


@pytest.mark.parametrize(
    ("spec", "reply", "says"),
    [
        ("azure:", error(401, "401", f"bad key {KEY}"), "AZURE_API_KEY"),
        ("azure:", error(403, "403"), "network"),
        ("azure:", error(404, "DeploymentNotFound", "The API deployment for this resource does not exist."),
         "AZURE_DEPLOYMENT 'gpt-4o' names no deployment of AZURE_ENDPOINT .*Deployments in Azure AI Foundry"),
        ("azure:", error(404, "404", "Resource not found"), "AZURE_ENDPOINT"),
        ("served:tiny-bass", error(404, "404", "no such model"), "serves no model 'tiny-bass'.*did you mean 'tiny-base'"),
        ("served:m", error(401), "SLM_RAY_API_KEY"),
        ("openai:m@URL", error(401), "OPENAI_API_KEY"),
        ("azure:", error(400, "unsupported_value", "only 1", param="temperature"), "generation.temperature"),
    ],
)  # fmt: skip
def test_what_would_fail_every_call_raises_with_the_fix(spec: str, reply: Reply, says: str) -> None:
    with ChatServer(each(reply)) as server:
        with pytest.raises(ModelError, match=says) as caught:
            ask(spec.replace("URL", f"{server.url}/v1"), server.url)
        assert len(server.requests) == 1
    assert "\n" not in str(caught.value)
    assert KEY not in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (ModelError, str(caught.value))


def test_a_reasoning_model_is_asked_by_its_own_name_for_the_limit() -> None:
    def script(request: Request) -> Reply:
        return (
            error(400, "unsupported_parameter", "use max_completion_tokens", param="max_tokens")
            if "max_tokens" in request.body
            else answer("ok")
        )

    with ChatServer(script) as server:
        assert ask("azure:", server.url).text == "ok"
        assert server.requests[1].body["max_completion_tokens"] == 256


def test_nobody_listening_ends_the_run_but_a_restart_does_not() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ModelError, match=f"nothing answers at {url}/v1 for served:m"):
        ask("served:m", url, max_attempts=2)

    async def twice() -> Completion:
        with ChatServer(each(Reply(body=answer("ok").body, headers={"Connection": "close"}))) as server:
            model = parse("served:m").provider.open(
                endpoint=server.url, generation=generation(max_attempts=2), environment={}
            )
            assert (await model.complete("1", PROMPT)).text == "ok"
        completion = await model.complete("2", PROMPT)
        await model.close()
        return completion

    completion = asyncio.run(twice())
    assert completion.failure is not None
    assert completion.failure.kind == "error"


def test_a_proxy_of_the_environment_is_asked_for_other_machines_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with ChatServer(each(answer("by way of the proxy"))) as proxy, ChatServer(each(answer("straight"))) as server:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        assert ask("openai:m@http://llm.invalid/v1", server.url).text == "by way of the proxy"
        assert proxy.requests[0].path == "http://llm.invalid/v1/chat/completions"
        assert ask("served:m", server.url).text == "straight"
        assert len(proxy.requests) == 1


def test_a_proxy_that_is_not_there_is_no_call_that_may_have_been_billed(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free.getsockname()[1]}")
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(ModelError, match=r"nothing answers at http://llm\.invalid/v1"):
            ask("openai:m@http://llm.invalid/v1", "http://127.0.0.1:1", max_attempts=1)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (dataclasses.replace(answer("too late"), after_s=1.5), "no answer within 0.5 s"),
        (Reply(reset=True), "connection failed: "),
    ],
)
def test_a_call_that_is_given_up_says_whether_it_was_late_or_lost(reply: Reply, reason: str) -> None:
    with ChatServer(each(reply)) as server:
        completion = ask("served:m", server.url, timeout_s=0.5, max_attempts=1)
    assert completion.failure is not None
    assert completion.failure.reason.startswith(reason)
