"""The endpoint as its users meet it: right answers first, then adapters that come, go and break, then who may ask what."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from hostile_requests import CHAT, body_of, check, each_of, requests
from peft import PeftModel
from safetensors.torch import load_file, save_file
from serving_fixtures import ENVIRONMENT, KEY, POOL, Served, chat_body, engines, make_adapter, publish_adapter, text_of
from transformers import AutoModelForCausalLM

from slm_ray import adapters, parity
from slm_ray.adapters import base_fingerprint, base_shapes, publish
from slm_ray.config import ArmsConfig, Generation, RolloutConfig, TrainConfig
from slm_ray.errors import ResourceError
from slm_ray.loop import arms as arms_module
from slm_ray.loop import session
from slm_ray.loop.arms import arms
from slm_ray.page.data import ArmsReport
from slm_ray.parity import CANDIDATE, Note, NotedRow, Record
from slm_ray.providers import parse
from slm_ray.reports.encoding import decode, encode
from slm_ray.runlog import RunLog
from slm_ray.serving import Endpoint, deploy, token_ids
from slm_ray.serving.adapter_cache import served_name
from slm_ray.serving.served_answers import Refused, ask_endpoint, check_deployed
from slm_ray.serving.settings import is_direct
from slm_ray.training import rows
from slm_ray.training.base_model import open_tokenizer
from slm_ray.training.parity import follow, scaling
from slm_ray.training.proof import Candidate, look
from slm_ray.types import Completion, Message, Prompt

pytestmark = pytest.mark.heavy
QUESTIONS = ["What is the weather in Oslo?", "Book a table for two in Lima", "Tell me a joke about ducks"]


def test_each_answer_in_a_mixed_batch_is_the_answer_it_gets_alone(served: Served) -> None:
    models = [served.name, *(publish_adapter(served, f"mixed{n}", seed=n) for n in range(4))]
    asked = [(model, text) for model in models for text in QUESTIONS]
    alone = {one: text_of(served.ask(*one)) for one in asked}
    for text in QUESTIONS:  # else a wrong adapter could not be told from the right one
        assert len({alone[model, text] for model in models}) == len(models)
    batch = (asked * 4)[::-1]
    together = [text_of(reply) for reply in served.ask_all(batch)]
    wrong = [one for one, text in zip(batch, together, strict=True) if text != alone[one]]
    assert not wrong, f"{len(wrong)} of {len(batch)} answers changed in a batch: {sorted(set(wrong))}"


def test_sixteen_first_requests_at_once_all_get_their_answer(served: Served) -> None:
    adapter = publish_adapter(served, "race", seed=20)
    answers = [text_of(reply) for reply in served.ask_all([(adapter, QUESTIONS[0])] * 16)]
    assert len(set(answers)) == 1
    assert answers[0] != text_of(served.ask(served.name, QUESTIONS[0]))


def test_an_adapter_is_usable_once_published_and_gone_once_deleted(served: Served) -> None:
    adapter = publish_adapter(served, "comes", seed=30)
    kept = shutil.move(served.adapters / adapter, served.adapters.parent / "kept")
    for name in (adapter, f"{served.name}:{adapter}"):
        refused = served.ask(name)
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
    shutil.move(kept, served.adapters / adapter)
    started = time.monotonic()
    reply = served.ask(adapter)
    assert reply.json()["model"] == f"{served.name}:{adapter}"
    assert text_of(reply) == text_of(served.ask(f"{served.name}:{adapter}"))
    assert time.monotonic() - started < 10
    assert {served.name, f"{served.name}:{adapter}"} <= set(served.models())
    shutil.rmtree(served.adapters / adapter)
    assert served.ask(adapter).status_code == 404
    assert f"{served.name}:{adapter}" not in served.models()


def test_an_alias_is_what_was_promoted_last_and_what_runs_outlives_its_deletion(served: Served) -> None:
    first, second = (publish_adapter(served, f"alias{n}", seed=35 + n) for n in range(2))
    alias, azure = f"{served.name}:live", "/openai/deployments/live/chat/completions?api-version=2024-05-01-preview"
    assert served.ask(alias).status_code == 404
    alone = {adapter: text_of(served.ask(adapter)) for adapter in (first, second)}
    for step, stands_for in (
        (lambda: adapters.promote(served.adapters, first, alias="live"), first),
        (lambda: adapters.promote(served.adapters, second, alias="live"), second),
        (lambda: adapters.roll_back(served.adapters, "live"), first),
    ):
        step()
        for reply in (served.ask(alias), served.ask("live"), served.post(azure, chat_body(None, QUESTIONS[0]))):
            assert reply.json()["model"] == f"{served.name}:{stands_for}"
            assert text_of(reply) == alone[stands_for]
        card = httpx.get(f"{served.url}/v1/models/{alias}", headers={"api-key": KEY}, trust_env=False).json()
        assert card["metadata"]["alias_of"] == f"{served.name}:{stands_for}" and alias in served.models()
    with ThreadPoolExecutor() as pool:
        running = pool.submit(served.ask, alias, max_tokens=300)
        time.sleep(0.5)
        adapters.delete(served.adapters, first, force=True)
        assert not running.done(), "too short to be under way"
        assert running.result().json()["model"] == f"{served.name}:{first}"
    gone = served.ask(alias)
    assert gone.status_code == 404 and "was deleted" in gone.json()["error"]["message"]
    assert alias not in served.models()


def test_an_alias_moves_there_and_back_under_load_without_a_failed_request(served: Served) -> None:
    first, second = (publish_adapter(served, f"moves{n}", seed=37 + n) for n in range(2))
    for adapter in (first, second):
        served.ask(adapter)
    adapters.promote(served.adapters, first, alias="moving")
    moved: list[tuple[float, str]] = []
    answers: list[tuple[float, httpx.Response]] = []

    def ask(_: int) -> None:
        while len(moved) < 2 or time.monotonic() < moved[-1][0] + 1.5:
            began = time.monotonic()
            answers.append((began, served.ask("moving", max_tokens=2)))

    with ThreadPoolExecutor() as pool:
        asking = [pool.submit(ask, n) for n in range(4)]
        for step, stands_for in (
            (lambda: adapters.promote(served.adapters, second, alias="moving"), second),
            (lambda: adapters.roll_back(served.adapters, "moving"), first),
        ):
            time.sleep(0.5 if not moved else 2)
            step()
            moved.append((time.monotonic(), stands_for))
        for one in asking:
            one.result()
    assert {reply.status_code for _, reply in answers} == {200}, "a request fell between two versions"
    for at, stands_for in moved:
        later = [reply.json()["model"] for began, reply in answers if at + 1 <= began < at + 1.5]
        assert later and set(later) == {f"{served.name}:{stands_for}"}


def test_replaced_files_are_another_model_and_never_answer_under_the_old_name(served: Served) -> None:
    base, home = Path(served.config.base), served.adapters / "by-hand"
    make_adapter(home, base, seed=40)
    first = served.ask("by-hand")
    assert first.json()["model"].startswith("tiny-base:by-hand@")
    make_adapter(home, base, seed=41)
    second = served.ask("by-hand")
    assert second.json()["model"] != first.json()["model"]
    assert text_of(second) != text_of(first)
    assert served.ask(first.json()["model"]).status_code == 404
    shutil.rmtree(home)


def test_a_published_adapter_that_was_changed_afterwards_is_refused(served: Served) -> None:
    adapter = publish_adapter(served, "changed", seed=50)
    other = make_adapter(served.adapters.parent / "other", Path(served.config.base), seed=51)
    target = served.adapters / adapter / "adapter_model.safetensors"
    target.chmod(0o644)
    shutil.copyfile(other / target.name, target)
    refused = served.ask(adapter)
    assert refused.status_code == 400
    assert "damaged" in refused.json()["error"]["message"]


def test_more_adapters_than_memory_holds_with_files_vanishing_meanwhile(served: Served) -> None:
    """vLLM reads evicted adapters again in the middle of a step, and used to die of files that were gone."""
    adapters = [publish_adapter(served, f"many{n}", seed=60 + n, rank=4) for n in range(20)]
    first = {adapter: text_of(served.ask(adapter, max_tokens=4)) for adapter in adapters}
    again = served.ask_all([(adapter, QUESTIONS[0]) for adapter in adapters], max_tokens=4)
    assert [text_of(reply) for reply in again] == [first[adapter] for adapter in adapters]

    url, headers = f"{served.url}/v1/chat/completions", {"api-key": KEY}
    body = chat_body(adapters[0], QUESTIONS[0], max_tokens=300, stream=True)
    with httpx.stream("POST", url, json=body, headers=headers, timeout=120, trust_env=False) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("data: {")
        for adapter in adapters:
            shutil.rmtree(served.adapters / adapter)
        others = served.ask_all([(adapter, QUESTIONS[1]) for adapter in adapters])
        assert {reply.status_code for reply in others} == {404}
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert served.ask(served.name).status_code == 200


@pytest.mark.parametrize("name", ["nobody", "../adapters", "tiny-base:..", "tiny-base:../../etc", "/etc", "tiny-base:/etc/passwd",
                                  "%2e%2e", "tiny-base:%2e%2e%2f", "other:by-hand", ".", "tiny-base:", ""])  # fmt: skip
def test_names_that_are_no_model_are_404(served: Served, name: str) -> None:
    assert served.post("/v1/chat/completions", {**chat_body("x", "hi"), "model": name}).status_code == 404


@pytest.mark.parametrize(
    "path", ["..", "%2e%2e", "tiny-base:%2e%2e%2fbase", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "tiny-base:nobody"]
)
def test_paths_that_are_no_model_are_404(served: Served, path: str) -> None:
    assert httpx.get(f"{served.url}/v1/models/{path}", headers={"api-key": KEY}, trust_env=False).status_code == 404


def test_adapters_that_cannot_be_used_are_400_with_a_reason_and_the_engine_lives(served: Served) -> None:
    base = Path(served.config.base)
    expected = text_of(served.ask(served.name))
    broken = {"cut-short": "not a whole safetensors file", "too-wide": "256 inputs", "not-finite": "not finite",
              "rank-128": "rank", "no-settings": "the rank r is None", "cropped": "which is not rank 4"}  # fmt: skip
    for name in broken:
        make_adapter(served.adapters / name, base, seed=70, rank=128 if name == "rank-128" else 8,
                     size=float("inf") if name == "not-finite" else 1.0, hidden=256 if name == "too-wide" else None)  # fmt: skip
    weights = served.adapters / "cut-short/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    (served.adapters / "no-settings/adapter_config.json").write_text("{}")
    settings = json.loads((served.adapters / "cropped/adapter_config.json").read_text())
    (served.adapters / "cropped/adapter_config.json").write_text(json.dumps({**settings, "r": 4}))
    for name, reason in broken.items():
        for refused in served.ask_all([(name, "hi")] * 3):
            assert refused.status_code == 400, (name, refused.text)
            assert reason in refused.json()["error"]["message"], (name, refused.text)
            assert "Traceback" not in refused.text
        assert text_of(served.ask(served.name)) == expected


def test_an_adapter_of_another_base_is_refused_before_any_weight_loads(served: Served) -> None:
    adapter = publish_adapter(served, "foreign", seed=80, fingerprint="0" * 32)
    refused = served.ask(adapter)
    assert refused.status_code == 400
    assert "was trained on base" in refused.json()["error"]["message"]
    by_hand = make_adapter(served.adapters / "foreign-by-hand", Path(served.config.base), seed=80)
    (by_hand / "manifest.json").write_text(json.dumps({"base_fingerprint": "0" * 32}))
    assert "another base" in served.ask("foreign-by-hand").json()["error"]["message"]


AZURE = "/openai/deployments/{}/chat/completions{}"
VERSION = "?api-version=2024-05-01-preview"


def test_azure_route_serves_models_and_explains_what_is_wrong(served: Served) -> None:
    body = chat_body(None, QUESTIONS[0])
    right = served.post(AZURE.format(served.name, VERSION), body, **{"api-key": KEY})
    assert text_of(right) == text_of(served.ask(served.name, QUESTIONS[0]))
    adapter = publish_adapter(served, "azure", seed=90)
    assert served.post(AZURE.format(adapter, VERSION), body).json()["model"] == f"{served.name}:{adapter}"
    for name in ("gpt-4o", "..%2f..", "%2e%2e"):
        missing = served.post(AZURE.format(name, VERSION), body)
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "DeploymentNotFound")
    assert served.post(AZURE.format(served.name, ""), body).status_code == 400


def test_azure_s_newer_routes_and_the_real_clients(served: Served) -> None:
    adapter = publish_adapter(served, "azure-v1", seed=91)
    adapters.promote(served.adapters, adapter, alias="champion")
    turns: Any = [{"role": "user", "content": QUESTIONS[0]}]
    newer = openai.OpenAI(base_url=f"{served.url}/openai/v1/", api_key=KEY, max_retries=0)
    older = openai.AzureOpenAI(azure_endpoint=served.url, api_key=KEY, api_version="2024-05-01-preview", max_retries=0)
    for client in (newer, older):
        answer = client.chat.completions.create(model="champion", messages=turns, max_tokens=8, temperature=0)
        assert answer.model == f"{served.name}:{adapter}" and answer.usage and answer.usage.completion_tokens
        told = client.chat.completions.create(model="stand-in", messages=turns, max_tokens=2)
        assert told.model.startswith("stand-in:")
        with pytest.raises(openai.NotFoundError, match="deployment for this resource does not exist"):
            client.chat.completions.create(model="gpt-4o", messages=turns)
    chunks = newer.chat.completions.create(model=adapter, messages=turns, max_tokens=4, stream=True)
    assert {chunk.model for chunk in chunks} == {f"{served.name}:{adapter}"}
    cards = {card.id: card.to_dict() for card in newer.models.list()}
    assert set(cards) == set(served.models())
    assert cards[served.name]["parent"] is None
    assert cards[f"{served.name}:{adapter}"]["parent"] == cards[f"{served.name}:champion"]["parent"] == served.name
    assert newer.models.retrieve(f"{served.name}:champion").to_dict() == cards[f"{served.name}:champion"]
    with pytest.raises(openai.NotFoundError):
        newer.models.retrieve("nobody")
    adapters.roll_back(served.adapters, "champion")


def test_a_track_s_schema_is_enforced_by_its_name(served: Served) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "city"}}
    for model in (served.name, publish_adapter(served, "named-schema", seed=101)):
        for extra in ({}, {"stream": False, "n": 2, "temperature": 1}):
            reply = served.ask(model, max_tokens=32, ignore_eos=False, response_format=wanted, **extra)
            said = [json.loads(choice["message"]["content"]) for choice in reply.json()["choices"]]
            assert all(answer in ({"city": "Oslo"}, {"city": "Lima"}) for answer in said), said
    unknown = served.ask(served.name, response_format={"type": "json_schema", "json_schema": {"name": "nobody"}})
    assert unknown.status_code == 400 and "no track whose answer_schema is served" in unknown.json()["error"]["message"]


def test_a_demanded_tool_call_follows_the_tool_s_schema(served: Served) -> None:
    city = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Lima"]}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": city, "strict": True}}
    named = {"type": "function", "function": {"name": "get_weather"}}
    for choice in ("required", named):
        reply = served.ask(served.name, tools=[tool], tool_choice=choice, max_tokens=64, ignore_eos=False)
        assert reply.status_code == 200, reply.text
        (call,) = reply.json()["choices"][0]["message"]["tool_calls"]
        assert call["function"]["name"] == "get_weather"
        assert json.loads(call["function"]["arguments"])["city"] in ("Oslo", "Lima")
    free = served.ask(served.name, tools=[tool], tool_choice="auto")
    assert free.status_code == 200, free.text
    other = {"type": "function", "function": {"name": "other"}}
    assert served.ask(served.name, tools=[tool], tool_choice=other).json()["error"]["param"] == "tool_choice"


def test_the_stand_in_shows_demonstrations_to_the_base_and_says_what_it_is(served: Served) -> None:
    url = AZURE.format("stand-in", VERSION)
    body = chat_body(None, "call Rome about the weather please", return_token_ids=True)
    reply = served.post(url, body, **{"api-key": KEY})
    assert reply.json()["model"] == "stand-in:tiny-base+2 demonstrations"
    plain = served.ask(served.name, "call Rome about the weather please")
    assert reply.json()["usage"]["prompt_tokens"] > plain.json()["usage"]["prompt_tokens"] + 20
    pool = Path(served.stand_in["pools"]["structured"])
    pool.write_text(json.dumps(POOL[0]) + "\n")
    fewer = served.post(url, body).json()["usage"]["prompt_tokens"]
    assert fewer < reply.json()["usage"]["prompt_tokens"]
    assert served.post(url, {**body, "stream": True}).status_code == 400
    assert (
        served.post(url, {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}).status_code
        == 400
    )
    assert served.ask("stand-in").status_code == 404


def test_without_the_key_nothing_answers_but_health(served: Served) -> None:
    chat, azure = "/v1/chat/completions", AZURE.format("stand-in", VERSION)
    for path in (chat, azure):
        for headers in (
            {"x": "y"},
            {"api-key": "wrong"},
            {"Authorization": f"Basic {KEY}"},
            {"Authorization": "Bearer"},
        ):
            refused = served.post(path, chat_body(served.name, "hi"), **headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    for path in ("/v1/models", "/docs", "/openapi.json", "/metrics"):
        assert httpx.get(served.url + path, trust_env=False).status_code == 401
    assert httpx.get(f"{served.url}/health", headers={"Origin": "http://evil"}, trust_env=False).json() == {
        "status": "ok"
    }
    reply = httpx.get(f"{served.url}/v1/models", headers={"Origin": "http://evil", "api-key": KEY}, trust_env=False)
    assert "access-control-allow-origin" not in reply.headers


def test_structured_output_holds_for_base_and_adapter(served: Served) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}}, "required": ["city"],
              "additionalProperties": False}  # fmt: skip
    wanted = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema, "strict": True}}
    for model in (served.name, publish_adapter(served, "schema", seed=100)):
        answer = json.loads(text_of(served.ask(model, max_tokens=64, ignore_eos=False, response_format=wanted)))
        assert set(answer) == {"city"}


def test_what_would_stall_the_engine_is_refused_and_what_is_large_gets_through(served: Served) -> None:
    schema = {"enum": [f"value {number}" for number in range(20_000)]}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    hostile: list[dict[str, object]] = [{"response_format": wanted}, {"guided_json": {}}, {"n": 1000}]
    for fields in hostile:
        refused = served.ask(served.name, **fields)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, next(iter(fields)))
    long = served.ask(served.name, "word " * 2**20)  # 5 MiB: more than gRPC takes by default, less than a body may have
    assert long.status_code == 400 and "context" in long.json()["error"]["message"], long.text[:300]
    assert served.ask(served.name, "x" * 9 * 2**20).status_code == 413
    answer = served.ask(served.name, max_tokens=700, n=8, temperature=1, logprobs=True, top_logprobs=20)
    assert answer.status_code == 200 and len(answer.content) > 4 * 2**20, answer.text[:300]


def test_requests_made_from_the_openapi_leave_the_running_endpoint_well(served: Served) -> None:
    with httpx.Client(base_url=served.url, headers={"api-key": KEY}, timeout=30, trust_env=False) as client:
        openapi = client.get("/openapi.json").json()
        ends = time.monotonic() + 12

        def ask(made: tuple[str, str, Any]) -> None:
            method, path, value = made
            if time.monotonic() > ends:
                return
            if isinstance(value, dict) and "completions" in path:
                value = value | {"max_tokens": 4, "n": 1}
            check(
                client.request(method, path, content=body_of(value), headers={"content-type": "application/json"}), made
            )

        each_of(requests(openapi), ask, examples=120)
    assert served.ask(served.name).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_clients_that_leave_give_their_places_back_within_seconds(served: Served, stream: bool) -> None:
    """All places are taken by answers of half a minute; then everybody leaves at once."""

    async def scenario() -> tuple[int, float]:
        headers, limits = {"api-key": KEY}, httpx.Limits(max_connections=300)
        statuses: list[int] = []
        async with httpx.AsyncClient(headers=headers, limits=limits, timeout=60, trust_env=False) as client:

            async def ask() -> None:
                body = chat_body(served.name, "go on", max_tokens=1500, stream=stream)
                async with client.stream("POST", f"{served.url}{CHAT}", json=body) as reply:
                    statuses.append(reply.status_code)
                    async for _ in reply.aiter_lines():
                        pass

            calls = [asyncio.create_task(ask()) for _ in range(140)]
            while 429 not in statuses:  # every place is taken
                await asyncio.sleep(0.05)
            await asyncio.sleep(1)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        left = time.monotonic()
        async with httpx.AsyncClient(headers=headers, timeout=60, trust_env=False) as client:
            while (
                await client.post(f"{served.url}{CHAT}", json=chat_body(served.name, "hi", max_tokens=1))
            ).status_code == 429:
                await asyncio.sleep(0.1)
        return statuses.count(429), time.monotonic() - left

    refused, waited_s = asyncio.run(scenario())
    print(f"stream={stream}: {refused} refused, answered {waited_s:.2f} s after all had left")
    assert refused >= 1
    assert waited_s < 5


def test_token_ids_are_those_of_the_chat_template(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    monkeypatch.setenv("SLM_RAY_API_KEY", KEY)
    prompt = Prompt(messages=(Message(role="system", content="Be brief."), Message(role="user", content="What is up?")))
    tokenizer = AutoTokenizer.from_pretrained(served.config.base)
    ours = tokenizer.apply_chat_template(prompt.as_dicts(), add_generation_prompt=True, return_dict=True)["input_ids"]
    assert token_ids(served.url, served.name, prompt) == ours


def test_deploying_what_runs_is_free_and_what_cannot_run_is_refused_at_once(served: Served, tmp_path: Path) -> None:
    started = time.monotonic()
    assert deploy(served.config, stand_in=served.stand_in, environment=ENVIRONMENT).url == served.url
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = served.config.model_copy(update={"port": other.getsockname()[1]})
        with pytest.raises(ResourceError, match=r"set serving\.port"):
            deploy(taken, environment=ENVIRONMENT)
    greedy = (Path(served.config.config).read_text()).replace("num_cpus: 0.1", "num_cpus: 512")
    (tmp_path / "greedy.yaml").write_text(greedy)
    with pytest.raises(ResourceError, match=r"asks for (1024|512)\.2 CPU"):
        deploy(served.config.model_copy(update={"config": str(tmp_path / "greedy.yaml")}), environment=ENVIRONMENT)
    assert time.monotonic() - started < 10
    assert served.ask(served.name).status_code == 200


@pytest.mark.parametrize("spec", ["served:tiny-base", "azure:tiny-base"])
def test_our_own_clients_stream_from_it_and_get_log_probabilities(served: Served, spec: str) -> None:
    shown = [(row["prompt"], row["completion"]) for row in POOL[:3]]
    turns = [
        turn
        for asked, said in shown
        for turn in (Message(role="user", content=asked), Message(role="assistant", content=said))
    ]
    prompt = Prompt(messages=(*turns, Message(role="user", content=POOL[4]["prompt"])))

    async def ask(**changes: bool) -> Completion:
        environment = {"SLM_RAY_API_KEY": KEY, "AZURE_ENDPOINT": served.url, "AZURE_API_KEY": KEY}
        generation = Generation(max_tokens=64, logprobs=True, **changes)
        model = parse(spec).provider.open(endpoint=served.url, generation=generation, environment=environment)
        try:
            return await model.complete("row", prompt)
        finally:
            await model.close()

    whole, streamed = asyncio.run(ask()), asyncio.run(ask(stream=True))
    assert whole.text == streamed.text is not None, (whole, streamed)
    assert whole.usage is not None
    assert streamed.usage is not None
    assert whole.usage.completion_tokens == streamed.usage.completion_tokens > 1
    assert whole.logprob is not None
    assert streamed.logprob == pytest.approx(whole.logprob, abs=0.05)
    assert whole.logprob < 0
    assert whole.first_token_s is None
    assert streamed.first_token_s is not None
    assert streamed.latency_s is not None
    assert 0 < streamed.first_token_s < streamed.latency_s


ARMS = ["base", "base+ICL", "base+QLoRA", "base+ICL+QLoRA", "ICL-trained+QLoRA", "LLM"]


def test_six_arms_in_one_table_and_nothing_is_asked_twice(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[TrainConfig] = []

    def made(configs: list[TrainConfig], **options: Any) -> list[adapters.Manifest]:
        assert options.keys() == {"parallel", "hourly_usd", "make_room"}
        if not trained:
            for seed, config in enumerate(configs):
                publish_adapter(served, config.name, seed=seed)
        trained.extend(configs)
        by_name = {one.name: one for one in adapters.list_adapters(served.adapters)}
        return [by_name[config.name] for config in configs]

    def deployed(*given: Any, **options: Any) -> Endpoint:
        return Endpoint(url=served.url, model_name=served.name, app="")

    monkeypatch.setattr(arms_module, "train_many", made)
    monkeypatch.setattr(session, "deploy", deployed)
    monkeypatch.setattr(session, "shutdown", lambda: None)
    monkeypatch.setenv("SLM_RAY_API_KEY", KEY)  # the parity check asks the endpoint too
    rows = [{"prompt": f"call number {n} of {n % 5}", "completion": json.dumps({"n": n})} for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = ArmsConfig.model_validate(
        {
            "run_dir": str(tmp_path / "run"), "serving": served.config, "training": {"max_length": 512},
            "tracks": [{
                "track": "structured", "source": str(tmp_path / "rows.jsonl"), "validation_rows": 4, "test_rows": 20,
                "few_shot": 2, "retriever": "bm25",
            }],
            "evaluation": {"generation": {"max_tokens": 8}},
        }
    )  # fmt: skip
    environment = {"SLM_RAY_API_KEY": KEY}

    found = arms(config, environment)
    (track,) = found.tracks
    assert [arm.name for arm in track.arms] == ARMS
    assert [config.name for config in trained] == ["structured", "structured-icl"]
    plain, icl = (Path(config.train).read_text(encoding="utf-8") for config in trained)
    assert plain.count("call number") == 36 and icl.count("call number") == 3 * 36
    models = track.report.models
    assert all(models[arm.spec].n == 20 for arm in track.arms)
    assert {kind for arm in track.arms for kind in models[arm.spec].failures} <= {"truncated"}, "eight tokens are few"
    tokens = [models[arm.spec].usage.prompt_tokens for arm in track.arms]
    assert tokens[0] == tokens[2] < tokens[1] == tokens[3] == tokens[4], (
        "demonstrations stand in front of the questions"
    )
    assert tokens[5] > tokens[0], "the stand-in is shown some, of its own pool"
    assert found.stand_in_note and models[track.arms[-1].spec].stand_in
    assert len(track.pairs) == 15 and [bool(arm.decision) for arm in track.arms] == [True] * 5 + [False]
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in ARMS)
    written = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert decode(written, ArmsReport, where="report.json", fix="") == found

    log = RunLog(tmp_path / "run" / "structured" / "test")
    log.read()
    again = arms(config, environment)
    after = RunLog(tmp_path / "run" / "structured" / "test")
    after.read()
    assert after.count() == log.count() == 6 * 20
    assert again.tracks == found.tracks


# What is served is what was trained: a right adapter passes, and each fault that is planted is called by its name.
TRAINED_QUESTIONS = ["What is the weather in Oslo?", "Book a table for two in Lima", "Tell me a joke about ducks, please, a short one",
             "Return a JSON object with keys city and date.\nQuery: fly to Rome on Monday"]  # fmt: skip
ANSWER = '{"city": "Oslo", "date": "Monday"}'


@dataclass(frozen=True, kw_only=True)
class Trained:
    """An adapter as training left it."""

    base: Path
    folder: Path
    record: Record

    def candidate(self, **changed: Any) -> Candidate:
        return replace(
            Candidate(base=self.base, folder=self.folder, name="trained", rank=8, record=self.record, engine=None, others={},
                      use_gpu=False),
            **changed,
        )  # fmt: skip


@pytest.fixture(scope="module")
def trained(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A random adapter, small enough to leave the answers readable, with the note that its trainer would have written."""
    home, base = tmp_path_factory.mktemp("trained"), Path(served.config.base)
    folder = make_adapter(home / "trained", base, seed=7, size=0.6)
    tokenizer = open_tokenizer(base)
    loaded = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    model = PeftModel.from_pretrained(loaded, str(folder), autocast_adapter_dtype=False).eval()
    noted = []
    for row, question in enumerate(TRAINED_QUESTIONS):
        prompt = rows.token_ids(tokenizer, [{"role": "user", "content": question}], answer_next=True)
        answer = tokenizer(f"{ANSWER}<|eot_id|>", add_special_tokens=False)["input_ids"]
        said = follow(model, prompt, answer[: parity.POSITIONS])
        noted.append(NotedRow(row=row, prompt=tuple(prompt), answer=tuple(answer), trained=said))
    note = Note(rows=tuple(noted), scaling=scaling(model), precision="16bit")
    prompts: tuple[Any, ...] = tuple(({"role": "user", "content": question},) for question in TRAINED_QUESTIONS)
    return Trained(base=base, folder=folder, record=Record(prompts=prompts, note=note))


def placed(served: Served, source: Path, name: str, **settings: Any) -> str:
    """A copy of the adapter in the served folder with other settings; the name it is served under for good."""
    home = served.adapters / name
    shutil.copytree(source, home)
    path = home / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return str(served_name(served.adapters, name))


def faults(served: Served, adapter: str, candidate: Candidate) -> list[str]:
    answers = ask_endpoint(served.url, adapter, candidate.record.prompts, key=KEY)
    seen = look(candidate, answers)
    findings = parity.check(candidate.record.note, seen.reference, answers, str)
    return [finding.fault for finding in findings]


def test_a_candidate_is_served_under_its_own_name_listed_nowhere_and_proved(served: Served, trained: Trained) -> None:
    options: dict[str, Any] = {
        "name": "proved", "track": "structured", "base": "tiny", "base_fingerprint": base_fingerprint(trained.base),
        "config_digest": "c", "data_digest": "d", "metrics": {}, "train_prompts": [], "recipe": {},
        "base_shapes": base_shapes(trained.base),
    }  # fmt: skip
    root = served.adapters / adapters.CANDIDATES
    manifest = publish(trained.folder, root, **options)
    name = f"{manifest.id}{CANDIDATE}"
    assert faults(served, name, trained.candidate()) == []
    assert served.ask(name).json()["model"] == f"{served.name}:{name}"
    assert not any("candidate" in model or manifest.id in model for model in served.models())
    assert served.ask(manifest.id).status_code == 404
    shutil.rmtree(root / manifest.id)
    assert served.ask(name).status_code == 404

    answers = ask_endpoint(served.url, placed(served, trained.folder, "once"), trained.record.prompts, key=KEY)
    publish(trained.folder, served.adapters, **options, parity=encode(replace(trained.record, served=answers)))
    assert check_deployed(served.url, served.adapters, [manifest.id], key=KEY) == {manifest.id: ""}
    other = ask_endpoint(served.url, other_adapter(served, "elsewhere"), trained.record.prompts, key=KEY)
    changed = publish(
        trained.folder, served.adapters, **{**options, "data_digest": "e"},
        parity=encode(replace(trained.record, served=other)),
    ).id  # fmt: skip
    assert "other answers" in check_deployed(served.url, served.adapters, [changed], key=KEY)[changed]


def other_adapter(served: Served, name: str) -> str:
    make_adapter(served.adapters / name, Path(served.config.base), seed=8, size=0.6)
    return str(served_name(served.adapters, name))


@pytest.mark.parametrize(
    ("fault", "settings", "own"),
    [
        ("alpha doubled", {"lora_alpha": 32}, {}),
        ("rsLoRA ignored", {}, {"use_rslora": True}),
    ],
)
def test_a_server_that_scales_otherwise_is_found_out(
    served: Served, trained: Trained, tmp_path: Path, fault: str, settings: dict[str, Any], own: dict[str, Any]
) -> None:
    shutil.copytree(trained.folder, tmp_path / "own")
    path = tmp_path / "own/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    adapter = placed(served, trained.folder, fault.replace(" ", "-"), **settings)
    note = replace(trained.record.note, rows=(), scaling=trained.record.note.scaling * (8**0.5 if own else 1))
    candidate = trained.candidate(folder=tmp_path / "own", record=replace(trained.record, note=note))
    answers = ask_endpoint(served.url, adapter, candidate.record.prompts, key=KEY)
    seen = look(candidate, answers)
    findings = parity.check(None, seen.reference, answers, str)
    assert [finding.fault for finding in findings] == [fault]


def test_a_swapped_adapter_and_one_of_zeros_are_found_out(served: Served, trained: Trained, tmp_path: Path) -> None:
    other = other_adapter(served, "other")
    swapped = trained.candidate(others={"other": served.adapters / "other"})
    assert faults(served, other, swapped) == ["the adapter other"]
    zeros = tmp_path / "zeros"
    shutil.copytree(trained.folder, zeros)
    weights = load_file(zeros / "adapter_model.safetensors")
    save_file(
        {n: one * 0 if ".lora_B." in n else one for n, one in weights.items()}, zeros / "adapter_model.safetensors"
    )
    found = faults(served, placed(served, zeros, "zeros"), trained.candidate(folder=zeros))
    assert found[0] == "zero B"
    assert faults(served, placed(served, zeros, "unlearned"), trained.candidate()) == ["no adapter"]


def test_another_base_another_template_and_a_moving_version_are_found_out(
    served: Served, trained: Trained, tmp_path: Path
) -> None:
    adapter = placed(served, trained.folder, "right")
    shutil.copytree(trained.base, tmp_path / "base")
    weights = load_file(tmp_path / "base/model.safetensors")
    drawn = torch.Generator().manual_seed(1)
    for name in [name for name in weights if "mlp" in name]:
        weights[name] += (torch.randn(weights[name].shape, generator=drawn) * 0.02).bfloat16()
    save_file(weights, tmp_path / "base/model.safetensors", metadata={"format": "pt"})
    another = trained.candidate(
        base=tmp_path / "base", record=replace(trained.record, note=replace(trained.record.note, rows=()))
    )
    answers = ask_endpoint(served.url, adapter, trained.record.prompts, key=KEY)
    findings = parity.check(None, look(another, answers).reference, answers, str)
    assert [finding.fault for finding in findings] == ["wrong base"]

    first, *others = trained.record.note.rows
    plain = replace(trained.record.note, rows=(replace(first, prompt=first.prompt[4:]), *others))
    assert "wrong template" in faults(served, adapter, trained.candidate(record=replace(trained.record, note=plain)))
    assert faults(served, "right", trained.candidate()) == ["another version"]


def test_a_rank_above_the_server_s_and_a_foreign_base_are_refused_in_words(served: Served, trained: Trained) -> None:
    make_adapter(served.adapters / "wide", trained.base, seed=9, rank=128)
    with pytest.raises(Refused) as refused:
        ask_endpoint(served.url, str(served_name(served.adapters, "wide")), trained.record.prompts, key=KEY)
    finding = parity.refusal(str(refused.value), rank=128)
    assert (finding.fault, "at least 128" in finding.message) == ("rank above the server's maximum", True)
    foreign = make_adapter(served.adapters / "foreign-base", trained.base, seed=9)
    (foreign / "manifest.json").write_text(json.dumps({"base_fingerprint": "0" * 32}))
    with pytest.raises(Refused, match="trained on another base"):
        ask_endpoint(served.url, str(served_name(served.adapters, "foreign-base")), trained.record.prompts, key=KEY)


ENGINE = """
import json, sys
from pathlib import Path
from slm_ray.parity import Record, check
from slm_ray.reports.encoding import decode, encode
from slm_ray.training.proof import Candidate, look
base, folder, record = sys.argv[1:]
record = decode(json.loads(Path(record).read_text()), Record, where="", fix="")
engine = {"dtype": "bfloat16", "enforce_eager": True, "max_model_len": 256, "max_num_seqs": 16, "max_lora_rank": 8,
          "kv_cache_memory_bytes": 1 << 25, "distributed_executor_backend": "uni"}
candidate = Candidate(base=Path(base), folder=Path(folder), name="trained", rank=8, record=record, engine=engine, others={},
                      use_gpu=False)
seen = look(candidate, None)
print(json.dumps([seen.unserved, [one.fault for one in check(record.note, seen.reference, seen.served, str)]]))
"""


def test_vllm_s_own_kernel_is_found_out_by_an_engine_that_is_started_for_the_proof(
    trained: Trained, tmp_path: Path
) -> None:
    (tmp_path / "record.json").write_text(json.dumps(encode(trained.record)))
    environment = os.environ | {
        "VLLM_PLUGINS": "none", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", ENGINE, str(trained.base), str(trained.folder), str(tmp_path / "record.json")],
        env=environment, text=True, capture_output=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    unserved, found = json.loads(done.stdout.splitlines()[-1])
    assert (unserved, found) == ("", ["stock CPU kernel"])


def test_the_front_of_a_roll_out_comes_and_goes_beside_the_endpoint(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process has no key of the endpoint, so the endpoint's own refusal is what comes through both."""
    from slm_ray.rollout import deploy as front

    monkeypatch.setenv("SLM_RAY_API_KEY", KEY)
    route = {"llm": f"served:{served.name}", "slm": f"served:{served.name}", "track": "structured"}
    config = RolloutConfig.model_validate(
        {"folder": str(tmp_path / "routes"), "traffic": {"folder": str(tmp_path / "traffic")}, "routes": {"cities": route},
         "serving": served.config.model_dump()}
    )  # fmt: skip
    running = front.deploy(config)
    try:
        assert (
            served.post("/rollout/v1/chat/completions", chat_body("cities", "x"), authorization="").status_code == 401
        )
        reply = served.post("/rollout/v1/chat/completions", chat_body("cities", "x"))
        assert reply.headers["x-slm-ray-arm"] == "llm" and reply.json()["error"]["code"] == "invalid_api_key"
        deploy(served.config, stand_in=served.stand_in, environment=ENVIRONMENT)  # as it is
        assert served.ask(served.name).status_code == 200
    finally:
        front.shutdown()
    deadline = time.monotonic() + 10
    while (
        httpx.get(f"{running.url}/health", trust_env=False).status_code != 401
    ):  # the endpoint's to answer, which asks for a key
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert served.ask(served.name).status_code == 200


def test_a_stream_shows_usage_to_who_asks_and_the_figures_have_it_for_all(served: Served) -> None:
    body = chat_body(served.name, "go on", max_tokens=24, stream=True)
    plain = served.post(CHAT, body).text
    asked = served.post(CHAT, body | {"stream_options": {"include_usage": True}}).text
    assert '"usage":{' not in plain and plain.endswith("data: [DONE]\n\n") and '"completion_tokens":24' in asked
    ends = time.monotonic() + 20  # Ray takes figures over every ten seconds
    wanted = "ray_slm_ray_first_token_seconds_count{"
    while wanted not in (page := httpx.get(f"{served.url}/metrics", headers={"api-key": KEY}, trust_env=False).text):
        assert time.monotonic() < ends, page
        time.sleep(0.5)
    assert all(f'application="slm-ray-{served.config.port}"' in line for line in page.splitlines() if line[0] != "#")


def test_what_does_not_need_a_restart_changes_while_an_answer_is_written(served: Served) -> None:
    """The last test but one here: all before it want the stand-in as it was."""
    few = {**served.stand_in, "demonstrations": 1}
    (engine,) = engines()
    with ThreadPoolExecutor() as pool:
        running = pool.submit(served.ask, served.name, max_tokens=1000)
        time.sleep(0.5)
        deploy(served.config, stand_in=few, environment=ENVIRONMENT)
        told = served.post(AZURE.format("stand-in", VERSION), chat_body(None, "call Rome")).json()["model"]
        assert told == "stand-in:tiny-base+1 demonstrations"
        assert running.result().status_code == 200
    assert engines() == {engine}


def test_a_dead_engine_is_a_503_that_says_when_to_come_back_until_it_is_started_again(served: Served) -> None:
    """The last test here: all others want the engine."""
    (engine,) = engines()
    os.kill(engine, signal.SIGKILL)
    began, healthy = time.monotonic(), True
    with ThreadPoolExecutor(1) as meanwhile:  # it may meet the dying engine, and is then asked of the next one
        asked = meanwhile.submit(served.ask, served.name)
        while healthy and time.monotonic() < began + 10:
            healthy = httpx.get(f"{served.url}/health", trust_env=False, timeout=30).status_code == 200
            time.sleep(0.05)
        down = served.ask(served.name)
        assert not healthy and down.status_code == 503 and int(down.headers["retry-after"]) > 0, down.text
        broken = (500,) if is_direct(ENVIRONMENT) else ()  # who answered was the engine itself
        assert asked.result().status_code in (200, 503, *broken), (
            "a request that meets a dying engine is to be asked again, not broken"
        )
    assert down.json()["error"]["code"] in ("engine_unavailable", *(["unavailable"] if broken else []))
    while httpx.get(f"{served.url}/health", trust_env=False, timeout=30).status_code != 200:
        assert time.monotonic() < began + 120
        time.sleep(0.2)
    assert served.ask(served.name).status_code == 200
