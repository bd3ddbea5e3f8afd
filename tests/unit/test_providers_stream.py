"""Streamed answers over real HTTP: the same completion as unstreamed, the time to the first token, and broken streams."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from chat_server import DONE, ChatServer, Reply, Request, answer, chunk, error, event

from slm_ray.config import Generation
from slm_ray.providers import parse
from slm_ray.types import Completion, Message, Prompt, Usage

PROMPT = Prompt(messages=(Message(role="user", content="hi"),))
USAGE = event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3,
                                        "prompt_tokens_details": {"cached_tokens": 4}}})  # fmt: skip
FILTER_RESULTS = event({"choices": [], "prompt_filter_results": [{"prompt_index": 0}]})  # Azure's first part


def ask(spec: str, url: str, **changes: Any) -> Completion:
    async def call() -> Completion:
        generation = Generation(**{"timeout_s": 3.0, "max_attempts": 2, "stream": True, **changes})
        environment = {"AZURE_ENDPOINT": url, "AZURE_API_KEY": "canary", "AZURE_DEPLOYMENT": "gpt"}
        model = parse(spec).provider.open(endpoint=url, generation=generation, environment=environment)
        try:
            return await model.complete("row", PROMPT)
        finally:
            await model.close()

    return asyncio.run(call())


def streamed(*parts: bytes, **options: Any) -> Reply:
    return Reply(parts=parts, **options)


@pytest.mark.parametrize("spec", ["served:m", "azure:"])
def test_a_streamed_answer_is_the_same_and_knows_its_first_token(spec: str) -> None:
    parts = (
        FILTER_RESULTS,
        chunk(""),
        chunk("hel", logprob=-1.0),
        chunk("lo", logprob=-3.0),
        chunk(None, finish="stop"),
    )
    with ChatServer(lambda _: streamed(*parts, USAGE, DONE, after_s=0.1)) as server:
        completion = ask(spec, server.url, logprobs=True)
        body = server.requests[0].body
    assert completion.text == "hello"
    assert completion.usage == Usage(prompt_tokens=7, completion_tokens=3, cached_tokens=4)
    assert completion.served_by == "served-model"
    assert completion.logprob == -2.0
    assert completion.first_token_s is not None
    assert completion.latency_s is not None
    assert 0.28 <= completion.first_token_s < completion.latency_s - 0.2
    assert (body["stream"], body["stream_options"], body["logprobs"]) == (True, {"include_usage": True}, True)


def test_only_the_end_of_a_line_ends_one() -> None:
    text = "one\u2028two\x85three\x0cfour"
    part = json.dumps({"choices": [{"delta": {"content": text}, "finish_reason": "stop"}]}, ensure_ascii=False).encode()
    events = b"data: " + part.replace(b"\\f", b"\\u000c") + b"\r\n\r\n" + DONE
    with ChatServer(lambda _: streamed(events[:60], events[60:])) as server:  # split within a character
        assert ask("served:m", server.url).text == text


def test_an_endpoint_that_does_not_stream_is_heard_all_the_same() -> None:
    with ChatServer(lambda _: answer("whole")) as server:
        completion = ask("served:m", server.url)
    assert (completion.text, completion.first_token_s) == ("whole", None)


@pytest.mark.parametrize(
    ("parts", "kind", "says"),
    [
        ([b"data: {oops\n\n"], "invalid", "not JSON"),
        ([chunk("a"), b"data: <html>\n\n"], "invalid", "not JSON"),
        ([b"data: [1]\n\n"], "invalid", "list"),
        ([b"data: " + b"[" * 100_000 + b"\n\n"], "invalid", "not JSON"),
        ([chunk("half")], "invalid", "ended before"),
        ([DONE], "invalid", "not JSON"),
        ([b""], "invalid", "not JSON"),
        ([b"<html>\n"], "invalid", "not JSON"),
        ([event({"choices": [5]}), DONE], "invalid", "ended before"),
        ([chunk("\ud800"), chunk(None, finish="stop"), DONE], "invalid", "surrogate"),
        ([event({"choices": [{"delta": "x", "finish_reason": "stop"}]}), DONE], None, ""),
        ([chunk("cut"), chunk(None, finish="length"), DONE], "truncated", "max_tokens"),
        ([chunk("bad"), chunk(None, finish="content_filter"), DONE], "refused", "content filter"),
        ([event({"choices": [{"delta": {"refusal": "no"}, "finish_reason": "stop"}]}), DONE], "refused", "refused"),
        ([chunk("a"), event({"error": {"message": "too long", "code": 400}})], "error", "too long"),
        ([event({"error": {"message": "bad", "code": "content_filter"}})], "refused", "bad"),
    ],
)  # fmt: skip
def test_a_broken_stream_is_data(parts: Sequence[bytes], kind: str | None, says: str) -> None:
    with ChatServer(lambda _: streamed(*parts)) as server:
        completion = ask("served:m", server.url)
        assert len(server.requests) == 1
    assert (completion.failure.kind if completion.failure else None) == kind
    if completion.failure:
        assert says in completion.failure.reason


@pytest.mark.parametrize(
    ("first", "possibly_billed"),
    [
        (streamed(chunk("half"), reset=True), 1),
        (streamed(chunk("half"), chunked=False), 1),
        (streamed(chunk("half"), chunked=False, reset=True), 1),
        (streamed(chunk("slow"), chunk("slow"), after_s=2.0), 1),
        (streamed(event({"error": {"message": "engine died", "code": 500}})), 0),
        (streamed(event({"error": "busy"})), 0),
        (error(503), 0),
    ],
)
def test_a_stream_that_fails_is_asked_again(first: Reply, possibly_billed: int) -> None:
    def script(request: Request) -> Reply:
        return streamed(chunk("ok"), chunk(None, finish="stop"), DONE) if request.nth else first

    with ChatServer(script) as server:
        completion = ask("served:m", server.url, timeout_s=2.5)
    assert (completion.text, completion.attempts, completion.possibly_billed) == ("ok", 2, possibly_billed)
