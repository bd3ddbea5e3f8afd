"""A server's side of the parity check: answers to the noted prompts, from a running endpoint or an engine started for it.

Both hand over the tokens that the engine really got and gave, with log-probabilities, and the same three rounds: each arm
alone and without a prefix cache, the adapter again with the cache, both in one batch. An endpoint is asked over HTTP as
any client asks it, with the API key from SLM_RAY_API_KEY.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from slm_ray import adapters
from slm_ray.answer_distance import Position, Positions
from slm_ray.api_key import api_key
from slm_ray.chat_template import served_template
from slm_ray.errors import ModelError, SlmRayError
from slm_ray.parity import POSITIONS, TOP, Record, Served, ServedAnswer, check_again
from slm_ray.reports.encoding import decode
from slm_ray.serving.settings import AS_TRAINED
from slm_ray.storage import read_json

_TIMEOUT_S = 120.0
_BUSY = (429, 503)
_BUSY_FOR_S = 60.0  # how long a server that says it is busy, or that its engine is being started, is asked again
_LOWEST = -9999.0  # what stands in JSON for minus infinity
_CONTEXT = re.compile(r"maximum context length is (\d+)")  # vLLM's words, and OpenAI's
_PREFIX = "token_id:"

Messages = Sequence[Mapping[str, str]]


class Refused(ModelError):
    """The server refuses the adapter; the text is its reason."""


class TooLong(ModelError):
    """A prompt and its answer do not fit into the server's context, of so many tokens."""

    def __init__(self, message: str, context: int) -> None:
        super().__init__(message)
        self.context = context

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.context)


class NoEngine(ModelError):
    """No engine can be started here; the text is the reason."""


def ask_endpoint(url: str, adapter: str, prompts: Sequence[Messages], *, key: str | None = None) -> Served:
    """What the endpoint at `url` answers as its base and as `adapter`, an id or an id with `parity.CANDIDATE`.

    ModelError when it gives no answer, `Refused` when it does not take the adapter, `TooLong` for a prompt that leaves
    no room for `parity.POSITIONS` tokens.
    """
    key = api_key(os.environ) if key is None else key
    return asyncio.run(_rounds(url, adapter, prompts, {"Authorization": f"Bearer {key}"} if key else {}))


def read_record(adapters_dir: str | Path, adapter_id: str) -> Record | None:
    """What a published adapter was proved with; None where nothing is kept."""
    path = Path(adapters_dir) / adapter_id / adapters.PARITY
    if not path.is_file():
        return None
    return decode(read_json(path), Record, where=str(path), fix=f"delete {adapter_id} and publish again")


def check_deployed(url: str, adapters_dir: str | Path, ids: Sequence[str], *, key: str | None = None) -> dict[str, str]:
    """What is wrong with adapters that the endpoint serves, by id, against the answers they were proved with.

    An empty text for one that answers as it did. Those that hold no record are left out. Loads nothing: it only asks.
    """
    found = {}
    for adapter_id in ids:
        try:
            record = read_record(adapters_dir, adapter_id)
            if record is None:
                continue
            findings = check_again(record, ask_endpoint(url, adapter_id, record.prompts, key=key))
        except SlmRayError as error:  # a damaged record is one adapter's matter
            found[adapter_id] = str(error)
            continue
        found[adapter_id] = " | ".join(f"{finding.fault}: {finding.message}" for finding in findings)
    return found


async def _rounds(url: str, adapter: str, prompts: Sequence[Messages], headers: dict[str, str]) -> Served:
    limits = httpx.Limits(max_connections=4 * len(prompts))
    async with httpx.AsyncClient(headers=headers, limits=limits, timeout=_TIMEOUT_S, trust_env=False) as client:
        base = await _base_name(client, url)
        model = f"{base}:{adapter}"

        async def every(*asked: tuple[str, bool]) -> list[tuple[ServedAnswer, ...]]:
            calls = [_ask(client, url, name, prompt, cached=cached) for name, cached in asked for prompt in prompts]
            found = await asyncio.gather(*calls)
            return [tuple(found[at : at + len(prompts)]) for at in range(0, len(found), len(prompts))]

        try:
            (base_alone,) = await every((base, False))
        except Refused as error:  # not the adapter's fault
            raise ModelError(f"{url} does not answer the training prompts as its base {base}: {error}") from None
        (adapter_alone,) = await every((model, False))
        (adapter_cached,) = await every((model, True))
        base_mixed, adapter_mixed = await every((base, False), (model, False))
    return Served(
        model=model, base=base_alone, adapter=adapter_alone, adapter_cached=adapter_cached, base_mixed=base_mixed,
        adapter_mixed=adapter_mixed,
    )  # fmt: skip


async def _base_name(client: httpx.AsyncClient, url: str) -> str:
    answer = await _json(client, "GET", f"{url}/v1/models", url)
    try:
        return min((str(card["id"]) for card in answer["data"]), key=lambda name: name.count(":"))
    except (KeyError, TypeError, ValueError):
        raise ModelError(f"{url}/v1/models names no model; give the address of our own endpoint") from None


async def _ask(client: httpx.AsyncClient, url: str, model: str, prompt: Messages, *, cached: bool) -> ServedAnswer:
    body: dict[str, Any] = {
        "model": model, "messages": list(prompt), "max_tokens": POSITIONS, "temperature": 0, "logprobs": True,
        "top_logprobs": TOP, "return_token_ids": True, "return_tokens_as_token_ids": True,
    }  # fmt: skip
    if not cached:
        body["cache_salt"] = uuid.uuid4().hex
    answer = await _json(client, "POST", f"{url}/v1/chat/completions", url, json=body)
    try:
        positions = tuple(_position(entry) for entry in answer["choices"][0]["logprobs"]["content"])
        if not positions:
            raise ValueError("an answer of no token")  # nothing would be compared, and nothing found
        return ServedAnswer(prompt=tuple(answer["prompt_token_ids"]), positions=positions, model=str(answer["model"]))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ModelError(
            f"{url} does not say which tokens it sees and gives ({error!r}); the parity check needs our own endpoint (vLLM)"
        ) from None


async def _json(client: httpx.AsyncClient, method: str, address: str, url: str, **body: Any) -> dict[str, Any]:
    """The answer, once there is one: who else uses the endpoint may fill it, and trainings prove at the same time."""
    deadline = time.monotonic() + _BUSY_FOR_S
    while True:
        try:
            reply = await client.request(method, address, **body)
            answer = reply.json()
        except (httpx.HTTPError, ValueError) as error:
            raise ModelError(f"{url} gives no answer ({type(error).__name__}: {error}); is the endpoint up?") from None
        if reply.status_code not in _BUSY or time.monotonic() > deadline:
            break
        wanted = reply.headers.get("retry-after", "")
        await asyncio.sleep(min(max(float(wanted), 0.1), _BUSY_FOR_S) if wanted.isdecimal() else 1.0)
    if reply.status_code == 200 and isinstance(answer, dict):
        return answer
    told = answer.get("error") if isinstance(answer, dict) else None
    reason = told.get("message", answer) if isinstance(told, dict) else answer
    if limit := _CONTEXT.search(str(reason)):
        raise TooLong(f"{url} refuses a training prompt: {str(reason)[:300]}", int(limit[1]))
    if reply.status_code in (400, 404):
        raise Refused(str(reason)[:500])
    raise ModelError(f"{url} answers with HTTP {reply.status_code}: {str(reason)[:300]}")


def _position(entry: Mapping[str, Any]) -> Position:
    listed = {_id(one["token"]): float(one["logprob"]) for one in entry["top_logprobs"]}
    return _listed(_id(entry["token"]), {**listed, _id(entry["token"]): float(entry["logprob"])})


def _id(token: str) -> int:
    return int(token.removeprefix(_PREFIX))


def _listed(token: int, logprobs: Mapping[int, float]) -> Position:
    top = [(one, round(max(value, _LOWEST), 4)) for one, value in logprobs.items() if not math.isnan(value)]
    return Position(token=token, top=tuple(sorted(top, key=lambda entry: -entry[1])))


def ask_engine(base: Path, adapter: Path, name: str, prompts: Sequence[Messages], engine: Mapping[str, Any]) -> Served:
    """The same from a vLLM engine that lives for this call, with `engine` as its arguments beside LoRA's own.

    `NoEngine` without vLLM or room, `Refused` when the engine does not take the adapter.
    """
    try:
        from vllm import LLM, SamplingParams
        from vllm.lora.request import LoRARequest
    except ImportError as error:
        raise NoEngine(f"vLLM is not installed here ({error})") from None
    template = served_template(str(base))
    try:
        llm = LLM(
            model=str(base), enable_lora=True, max_loras=1, disable_log_stats=True, **{**AS_TRAINED, **engine}
        )  # fmt: skip
    except (RuntimeError, ValueError, OSError, AssertionError) as error:  # what it raises without room, by its parts
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise NoEngine(f"no engine could be started: {lines[-1]}") from error
    model, asked = f"{base.name}:{name}", LoRARequest(f"{base.name}:{name}", 1, str(adapter))
    sampling = SamplingParams(temperature=0, max_tokens=POSITIONS, logprobs=TOP)
    conversations: list[Any] = [list(prompt) for prompt in prompts]

    def every(*loras: Any, fresh: bool = True) -> list[tuple[ServedAnswer, ...]]:
        if fresh:
            llm.reset_prefix_cache()
        outputs = llm.chat(
            conversations * len(loras), sampling, use_tqdm=False, chat_template=template,
            lora_request=[lora for lora in loras for _ in conversations],
        )  # fmt: skip
        found = [_from_engine(output, base.name) for output in outputs]
        return [tuple(found[at : at + len(prompts)]) for at in range(0, len(found), len(prompts))]

    try:
        try:
            llm.llm_engine.add_lora(asked)
        except (ValueError, RuntimeError) as error:
            raise Refused(str(error)) from None
        (base_alone,) = every(None)
        (adapter_alone,) = every(asked)
        (adapter_cached,) = every(asked, fresh=False)
        base_mixed, adapter_mixed = every(None, asked)
    finally:
        llm.llm_engine.engine_core.shutdown()
    return Served(
        model=model, base=base_alone, adapter=adapter_alone, adapter_cached=adapter_cached, base_mixed=base_mixed,
        adapter_mixed=adapter_mixed,
    )  # fmt: skip


def _from_engine(output: Any, base: str) -> ServedAnswer:
    answer = output.outputs[0]
    positions: Positions = tuple(
        _listed(token, {one: found.logprob for one, found in logprobs.items()})
        for token, logprobs in zip(answer.token_ids, answer.logprobs, strict=True)
    )
    name = output.lora_request.lora_name if output.lora_request else base
    return ServedAnswer(prompt=tuple(output.prompt_token_ids), positions=positions, model=name)
