"""Questions to a running endpoint: does it answer, and which tokens does it see?

Plain HTTP, so that it holds for whatever serves at that address. The API key comes from SLM_RAY_API_KEY.
"""

from __future__ import annotations

import os
from typing import Any

import httpx

from slm_ray.api_key import api_key
from slm_ray.errors import ModelError
from slm_ray.types import Prompt


def token_ids(url: str, model: str, prompt: Prompt) -> list[int]:
    """The prompt's token ids as the server's engine got them, from a real 1-token completion (for the parity check)."""
    answer = chat(url, model, {"messages": prompt.as_dicts(), "return_token_ids": True})
    if not answer.get("prompt_token_ids"):
        raise ModelError(f"{url} does not say which tokens it sees; the parity check needs our own endpoint (vLLM)")
    return list(answer["prompt_token_ids"])


def healthy(url: str) -> bool:
    """Whether the endpoint says of its engine that it answers."""
    try:
        return httpx.get(f"{url}/health", timeout=5.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def chat(
    url: str, model: str, body: dict[str, Any], *, key: str | None = None, timeout_s: float = 120.0
) -> dict[str, Any]:
    """One greedy 1-token completion; ModelError when there is none."""
    key = api_key(os.environ) if key is None else key
    request = {"model": model, "max_tokens": 1, "temperature": 0, **body}
    try:
        reply = httpx.post(
            f"{url}/v1/chat/completions", json=request, timeout=timeout_s, trust_env=False,
            headers={"Authorization": f"Bearer {key}"} if key else {},
        )  # fmt: skip
        answer: dict[str, Any] = reply.json()
    except (httpx.HTTPError, ValueError) as error:
        raise ModelError(f"{url} gives no answer ({type(error).__name__}: {error}); is the endpoint up?") from None
    if reply.status_code != 200:
        raise ModelError(f"{url} answers {model!r} with HTTP {reply.status_code}: {str(answer)[:300]}")
    return answer
