"""The way to an endpoint without a proxy: the same requests as the openai package sends by itself, and whatever comes back."""

from __future__ import annotations

import asyncio
import datetime
import gzip
import ipaddress
import json
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from chat_server import ChatServer, Reply, Request, answer
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from slm_ray.config import Generation
from slm_ray.providers import open_model
from slm_ray.providers.http_client import http_client
from slm_ray.types import Completion, Message, Prompt

PROMPTS = [Prompt(messages=(Message(role="user", content=text),)) for text in ("one", "two", "drei und dreißig")]
KEY = "a-key-of-ours"
ENVIRONMENT = {"AZURE_API_KEY": KEY, "AZURE_DEPLOYMENT": "gpt", "OPENAI_API_KEY": KEY, "SLM_RAY_API_KEY": KEY}


async def completed(spec: str, url: str, prompts: list[Prompt]) -> list[Completion]:
    settings = Generation(timeout_s=5.0, max_attempts=2)
    model = open_model(spec, endpoint=url, generation=settings, environment={**ENVIRONMENT, "AZURE_ENDPOINT": url})
    try:
        return [await model.complete(str(number), prompt) for number, prompt in enumerate(prompts)]
    finally:
        await model.close()


def sent(url: str, server: ChatServer, client: httpx2.AsyncClient, kind: Callable[..., Any], **more: Any) -> list[Any]:
    """What arrives of three calls with the client: path, headers without the port, body."""

    async def call() -> None:
        asking = kind(api_key="k", max_retries=0, http_client=client, **more)
        for prompt in PROMPTS:
            await asking.post(
                "/chat/completions", body={"model": "m", "messages": prompt.as_dicts()}, cast_to=httpx2.Response
            )
        await asking.close()

    asyncio.run(call())
    found = [(one.path, sorted(one.headers.items()), one.body) for one in server.requests]
    server.requests.clear()
    return found


@pytest.mark.parametrize("kind", [openai.AsyncOpenAI, openai.AsyncAzureOpenAI])
def test_what_is_sent_is_what_the_package_would_send(kind: Callable[..., Any]) -> None:
    with ChatServer(lambda _: answer("ok")) as server:
        where: dict[str, Any] = (
            {"azure_endpoint": server.url, "api_version": "2024-05-01-preview"}
            if kind is openai.AsyncAzureOpenAI
            else {"base_url": f"{server.url}/v1"}
        )
        client = http_client(server.url, 5.0)
        ours = sent(server.url, server, client, kind, timeout=5.0, **where)
        plain = sent(server.url, server, openai.DefaultAioHttpClient(trust_env=False), kind, timeout=5.0, **where)
    assert ours == plain
    assert [body["messages"][0]["content"] for *_, body in ours] == [one.messages[0].content for one in PROMPTS]


@pytest.mark.parametrize("spec", ["served:m", "azure:", "openai:m@URL/v1"])
def test_one_call_after_the_other_says_its_own_words(spec: str) -> None:
    def script(request: Request) -> Reply:
        return answer(request.text.upper())

    with ChatServer(script) as server:
        answers = asyncio.run(completed(spec.replace("URL", server.url), server.url, PROMPTS))
    assert [one.text for one in answers] == ["ONE", "TWO", "DREI UND DREISSIG"]


def test_a_packed_answer_is_unpacked() -> None:
    packed = Reply(
        body=gzip.compress(json.dumps(answer("ok" * 500).body).encode()), headers={"Content_Encoding": "gzip"}
    )
    with ChatServer(lambda _: packed) as server:
        assert [one.text for one in asyncio.run(completed("served:m", server.url, PROMPTS[:1]))] == ["ok" * 500]


def test_an_endpoint_that_has_moved_is_followed() -> None:
    with ChatServer(lambda request: answer(f"{request.text} at {request.path}")) as new:
        moved = Reply(status=307, headers={"Location": f"{new.url}/new/chat"}, body={})
        with ChatServer(lambda _: moved) as old:
            answers = asyncio.run(completed("served:m", old.url, PROMPTS[:2]))
        assert "Authorization" not in new.requests[0].headers, "a key goes to no other host than its own"
    assert [one.text for one in answers] == ["one at /new/chat", "two at /new/chat"]


def test_https_trusts_whom_the_environment_says_and_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ChatServer(lambda _: answer("secret")) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate(tmp_path))
        server._server.socket = context.wrap_socket(server._server.socket, server_side=True)
        url = server.url.replace("http:", "https:")
        with pytest.raises(Exception, match=r"nothing answers at .* certificate"):
            asyncio.run(completed("served:m", url, PROMPTS[:1]))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "both.pem"))
        assert [one.text for one in asyncio.run(completed("served:m", url, PROMPTS))] == ["secret"] * 3


def test_a_redirect_to_https_is_checked_too(tmp_path: Path) -> None:
    with ChatServer(lambda _: answer("secret")) as new:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate(tmp_path))
        new._server.socket = context.wrap_socket(new._server.socket, server_side=True)
        moved = Reply(status=307, headers={"Location": new.url.replace("http:", "https:")}, body={})
        with ChatServer(lambda _: moved) as old, pytest.raises(Exception, match=r"nothing answers at .* certificate"):
            asyncio.run(completed("served:m", old.url, PROMPTS[:1]))
        assert not new.requests


def certificate(folder: Path) -> Path:
    """A certificate of 127.0.0.1 by itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    path = folder / "both.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    return path
