"""Specs are checked in full before anything starts; recorded and fake models are models like any other."""

from __future__ import annotations

import asyncio
import json
import pickle
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from slm_ray.config import Generation
from slm_ray.errors import ConfigError, DataError, ModelError, SlmRayError
from slm_ray.providers import PROVIDERS, parse
from slm_ray.providers.recorded import RecordedModel
from slm_ray.providers.retry import MAX_WAIT_S, RetryableError, backoff_s, next_wait_s, retry_after_s
from slm_ray.types import Completion, Example, Failure, Message, Model, ModelFacts, Prompt

AZURE = {"AZURE_ENDPOINT": "https://x.openai.azure.com/", "AZURE_API_KEY": "k", "AZURE_DEPLOYMENT": "d"}


def prompt(text: str) -> Prompt:
    return Prompt(messages=(Message(role="system", content="s"), Message(role="user", content=text)))


def say(model: Model, example_id: str, text: str) -> Completion:
    return asyncio.run(model.complete(example_id, prompt(text)))


def opened(spec: str) -> Model:
    return parse(spec).provider.open(endpoint="http://127.0.0.1:1", generation=Generation(), environment={})


def identity(spec: str, *, endpoint: str = "", environment: dict[str, str] | None = None) -> str:
    return parse(spec).provider.identity(endpoint=endpoint, environment=environment or {})


@pytest.mark.parametrize(
    ("spec", "environment", "kind", "says"),
    [
        ("serve:x", {}, ConfigError, "did you mean 'served'.*azure, baseline, fake, openai, recorded, served"),
        ("served", {}, ConfigError, "has no colon; write served:MODEL"),
        ("served:", {}, ConfigError, "lacks a name"),
        ("served:base:", {}, ConfigError, "served:BASE:ADAPTER"),
        ("openai:@https://host/v1", {}, ConfigError, "names nothing"),
        ("openai:m@gpubox:8000/v1", {}, ConfigError, "looks like an address; write MODEL@https"),
        ("baseline:mode", {}, ConfigError, "majority, nearest"),
        ("azure:", {}, ModelError, "AZURE_ENDPOINT and AZURE_API_KEY and AZURE_DEPLOYMENT"),
        ("azure:", {**AZURE, "AZURE_DEPLOYMENT": " "}, ModelError, "needs AZURE_DEPLOYMENT in"),
        ("azure:d", {"AZURE_ENDPOINT": "https://x"}, ModelError, "needs AZURE_API_KEY in"),
        ("azure:d", {**AZURE, "AZURE_ENDPOINT": "x.openai.azure.com"}, ConfigError, "AZURE_ENDPOINT is 'x.openai"),
        ("openai:m@https://u:p@host/v1", {"OPENAI_API_KEY": "k"}, ConfigError, "user name or password"),
        ("openai:m@https://host/v1", {}, ModelError, "OPENAI_API_KEY"),
        ("recorded:nowhere.jsonl", {}, DataError, "no such file"),
        ("fake:", {}, ConfigError, "names nothing"),
    ],
)
def test_one_line_for_all_that_is_missing(
    spec: str, environment: dict[str, str], kind: type[SlmRayError], says: str
) -> None:
    with pytest.raises(kind, match=says) as caught:
        parse(spec).provider.check(environment)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", ["served:a:b", "azure:", "azure:other", "openai:m", "openai:m@http://h/v1", "fake:x"])
def test_complete_specs_pass(spec: str) -> None:
    parse(spec).provider.check({**AZURE, "OPENAI_API_KEY": "k"})


def test_identity_tells_models_apart_and_holds_no_secret() -> None:
    here = identity("azure:", endpoint="", environment=AZURE)
    assert here == identity("azure:d", endpoint="", environment={**AZURE, "AZURE_API_KEY": "another"})
    assert here != identity("azure:", endpoint="", environment={**AZURE, "AZURE_DEPLOYMENT": "e"})
    assert here != identity("azure:", endpoint="", environment={**AZURE, "AZURE_ENDPOINT": "https://y"})
    assert identity("served:m", endpoint="http://a", environment={}) == identity(
        "served:m", endpoint="http://a/v1/", environment={}
    )
    assert identity("served:m", endpoint="http://a", environment={}) != identity(
        "served:m", endpoint="http://b", environment={}
    )
    assert parse("azure:").provider.select({**AZURE, "PATH": "x"}) == AZURE
    assert parse("fake:x").provider.select(AZURE) == {}


def test_a_changed_recording_is_another_model(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "1", "prediction": "a"}\n')
    before = identity(f"recorded:{path}", endpoint="", environment={})
    path.write_text('{"id": "1", "prediction": "b"}\n')
    assert before != identity(f"recorded:{path}", endpoint="", environment={})


def test_the_fake_says_what_it_is_told() -> None:
    assert say(opened("fake:echo"), "1", "hello there").text == "hello there"
    constant = opened("fake:{}")
    assert say(constant, "1", "a") == say(constant, "1", "a")
    assert say(constant, "1", "a").text == "{}"


def recorded(tmp_path: Path, *rows: dict[str, Any]) -> RecordedModel:
    path = tmp_path / "answers.jsonl"
    path.write_text("\n" + "\n".join(json.dumps(row) for row in rows) + "\n")
    return RecordedModel(spec=f"recorded:{path}", path=str(path))


def test_recordings_are_found_by_id_then_by_prompt(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "q1"},
        {"role": "assistant", "content": "a1"},
        {"role": "user", "content": "again"},
    ]
    model = recorded(
        tmp_path,
        {"id": 7, "prompt": "shared", "prediction": "by id"},
        {
            "prompt": "shared",
            "prediction": "by  prompt",
            "latency_s": 0.5,
            "usage": {"prompt_tokens": 1, "completion_tokens": 2},
        },
        {
            "prompt": [{"role": "system", "content": "other"}, {"role": "user", "content": "listed"}],
            "prediction": "by list",
        },
        {"prompt": turns, "prediction": "by conversation"},
        {"id": "null", "prediction": None},
    )
    assert say(model, "7", "shared").text == "by id"
    assert say(model, "8", " shared\n").text == "by  prompt"
    assert say(model, "8", "shared").latency_s == 0.5
    assert say(model, "8", "listed").text == "by list"
    assert say(model, "8", "again").failure == Failure(kind="error", reason="no recorded answer")
    long = Prompt(messages=tuple(Message(role=turn["role"], content=turn["content"]) for turn in turns))  # type: ignore[arg-type]
    assert asyncio.run(model.complete("9", long)).text == "by conversation"
    assert say(model, "null", "x").failure == Failure(kind="invalid", reason="recorded without an answer")
    assert say(model, "7", "shared").latency_s is None


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"id": "1"}, "answers.jsonl:3: no `prediction`; it holds id"),
        ({"prediction": "x"}, ":3: neither `id` nor `prompt`"),
        ({"prompt": [{"role": "user"}], "prediction": "x"}, ":3: neither"),
        ({"id": "1", "prediction": {"a": 1}}, ":3: `prediction` is a dict"),
        ({"id": "0", "prediction": "other"}, ":3: another prediction for the id of line 2"),
        ({"id": "1", "prediction": "x", "latency_s": "fast"}, ":3: `latency_s`"),
        ({"id": "1", "prediction": "x", "usage": 5}, ":3: `usage`"),
    ],
)
def test_a_bad_recording_is_named_by_line(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        recorded(tmp_path, {"id": "0", "prediction": "zero"}, row)


def test_equal_duplicates_are_fine_and_the_wrong_file_is_refused(tmp_path: Path) -> None:
    model = recorded(tmp_path, {"prompt": "a", "prediction": "x"}, {"prompt": "a", "prediction": "x"})
    model.check_covers([Example(id="1", prompt=prompt("a"), target=""), Example(id="2", prompt=prompt("b"), target="")])
    with pytest.raises(DataError, match="no answer to any of the 1 examples"):
        model.check_covers([Example(id="2", prompt=prompt("b"), target="")])


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None), ({"retry-after": "3"}, 3.0), ({"retry-after": "1.5"}, 1.5), ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after": "Thu, 01 Jan 1970 00:02:00 GMT"}, 20.0), ({"retry-after": "Thu, 01 Jan 1970 00:00:01 GMT"}, 0.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:02:00 GMT", "date": "Thu, 01 Jan 1970 00:01:55 GMT"}, 5.0),  # our clock is off
        ({"retry-after": "soon"}, None), ({"retry-after-ms": "x"}, None),
    ],
)  # fmt: skip
def test_retry_after_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers, now_s=100.0) == seconds


def test_waits_grow_and_stay_bounded() -> None:
    for attempt, ceiling in [(1, 0.5), (2, 1.0), (5, 8.0), (50, 20.0)]:
        waits = [backoff_s(attempt) for _ in range(50)]
        assert ceiling / 2 <= min(waits) <= max(waits) <= ceiling
        assert len(set(waits)) > 1


def test_a_server_that_says_how_long_is_asked_again_after_that_and_little_later() -> None:
    for asked_s in (0.2, 1.0, 300.0, MAX_WAIT_S):
        waits = [
            next_wait_s(RetryableError("busy", status=429, retry_after_s=asked_s), attempt) for attempt in range(1, 40)
        ]
        assert all(asked_s <= wait_s <= 1.1 * asked_s for wait_s in waits)
        assert len(set(waits)) > 30
    assert MAX_WAIT_S >= 300
    assert next_wait_s(RetryableError("reset"), 1) <= 0.5


def test_limits_are_shared_by_what_is_asked_at_one_place() -> None:
    environment = {"AZURE_ENDPOINT": "https://a.example/", "AZURE_DEPLOYMENT": "gpt", "AZURE_API_KEY": "k"}

    def place(spec: str) -> str | None:
        return parse(spec).provider.rate_limit_key(endpoint="http://h:8000/v1", environment=environment)

    assert place("served:base") == place("served:base:adapter") == "http://h:8000/v1"
    assert place("azure:") == place("azure:gpt") == "https://a.example/gpt"
    assert place("azure:other") != place("azure:gpt")
    assert place("openai:m@https://x.example/v1") == place("openai:n@https://x.example/v1")
    assert place("fake:echo") is place("recorded:x.jsonl") is None


def facts(spec: str) -> ModelFacts:
    return parse(spec).facts(endpoint="http://127.0.0.1:8000/v1", environment=AZURE)


@pytest.mark.parametrize(
    ("spec", "model", "host", "billing", "demonstrations"),
    [
        ("openai:claude-3-5-sonnet@20240620", "claude-3-5-sonnet@20240620", "api.openai.com", "tokens", 0),
        ("openai:claude-3-5-sonnet@20240620+3shot", "claude-3-5-sonnet@20240620", "api.openai.com", "tokens", 3),
        ("openai:m@https://host.example/v1+3shot", "m", "host.example", "tokens", 3),
        ("openai:m@v2@http://127.0.0.1:8080/v1", "m@v2", "127.0.0.1", "machine", 0),
        ("openai:m@http://gpubox:8000/v1", "m", "gpubox", "machine", 0),
        ("served:base+2shot", None, "127.0.0.1", "machine", 2),
        ("azure:", "d", "x.openai.azure.com", "tokens", 0),
        ("azure:other+1shot", "other", "x.openai.azure.com", "tokens", 1),
        ("recorded:a+b.jsonl", None, None, "none", 0),
        ("fake:echo+2shot", None, None, "none", 2),
        ("baseline:nearest", None, None, "none", 0),
    ],
)  # fmt: skip
def test_who_bills_and_who_reads_is_said_by_the_one_that_is_asked(
    spec: str, model: str | None, host: str | None, billing: str, demonstrations: int
) -> None:
    stated = facts(spec)
    assert (stated.spec, stated.kind) == (spec, spec.partition(":")[0])
    assert (stated.model, stated.host, stated.billing, stated.demonstrations) == (model, host, billing, demonstrations)
    assert stated.adapter is None and not stated.stand_in


def test_an_adapter_is_told_from_its_base_and_its_demonstrations() -> None:
    assert facts("served:base:adapter-0123+2shot").adapter == "adapter-0123"
    provider = parse("served:base:adapter-0123+2shot").provider
    assert (provider.adapter, provider.spec) == ("adapter-0123", "served:base:adapter-0123")


@pytest.mark.parametrize(
    ("spec", "where"),
    [
        ("openai:claude-3-5-sonnet@20240620", "https://api.openai.com/v1/"),
        ("openai:m@https://host.example/v1/+3shot", "https://host.example/v1/"),
        ("served:base:a+2shot", "http://127.0.0.1:8000/v1/"),
        ("azure:", "https://x.openai.azure.com/openai/deployments/d/"),
        ("azure:a b/c+1shot", "https://x.openai.azure.com/openai/deployments/a%20b%2Fc/"),
    ],
)
def test_calls_go_to_the_host_that_is_reported(spec: str, where: str) -> None:
    environment = {**AZURE, "OPENAI_API_KEY": "k"}
    model = parse(spec)
    opened = model.provider.open(endpoint="http://127.0.0.1:8000", generation=Generation(), environment=environment)
    assert str(opened._client.base_url) == where  # type: ignore[attr-defined]
    assert urlsplit(where).hostname == model.facts(endpoint="http://127.0.0.1:8000", environment=environment).host


def test_every_kind_is_in_the_table_under_its_own_name_and_can_travel() -> None:
    for kind, provider in PROVIDERS.items():
        assert provider.kind == kind
        rest = "" if kind == "azure" else provider.example
        made = parse(f"{kind}:{rest}")
        assert pickle.loads(pickle.dumps(made)) == made
