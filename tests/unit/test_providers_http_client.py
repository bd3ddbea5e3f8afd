"""The way to an endpoint: the same requests as the openai package sends, redirects, certificates and a thousand connections."""

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
from endpoint import Endpoint

from slm_ray.config import Generation
from slm_ray.providers import parse
from slm_ray.types import Completion, Message, Prompt

PROMPTS = [Prompt(messages=(Message(role="user", content=text),)) for text in ("one", "two", "drei und dreißig")]
KEY = "a-key-of-ours"
ENVIRONMENT = {"AZURE_API_KEY": KEY, "AZURE_DEPLOYMENT": "gpt", "OPENAI_API_KEY": KEY, "SLM_RAY_API_KEY": KEY}


async def completed(spec: str, url: str, prompts: list[Prompt]) -> list[Completion]:
    settings = Generation(timeout_s=5.0, max_attempts=2)
    model = parse(spec).provider.open(
        endpoint=url, generation=settings, environment={**ENVIRONMENT, "AZURE_ENDPOINT": url}
    )
    try:
        return [await model.complete(str(number), prompt) for number, prompt in enumerate(prompts)]
    finally:
        await model.close()


def sent(server: ChatServer) -> list[Any]:
    """What arrived: path, the headers that matter, body."""
    found = [
        (one.path, {name: one.headers.get(name) for name in ("authorization", "api-key", "content-type")}, one.body)
        for one in server.requests
    ]
    server.requests.clear()
    return found


@pytest.mark.parametrize(
    ("spec", "package", "options"),
    [
        ("openai:m@URL/v1", openai.AsyncOpenAI, {"base_url": "URL/v1"}),
        ("azure:", openai.AsyncAzureOpenAI, {"azure_endpoint": "URL", "api_version": "2024-05-01-preview"}),
    ],
)
def test_what_is_sent_is_what_the_openai_package_would_send(
    spec: str, package: Callable[..., Any], options: dict[str, str]
) -> None:
    async def by_the_package(url: str, body: dict[str, Any]) -> None:
        where = {name: value.replace("URL", url) for name, value in options.items()}
        client = package(api_key=KEY, max_retries=0, http_client=httpx2.AsyncClient(trust_env=False), **where)
        for prompt in PROMPTS:
            await client.chat.completions.create(**{**body, "messages": prompt.as_dicts()})
        await client.close()

    with ChatServer(lambda _: answer("ok")) as server:
        asyncio.run(completed(spec.replace("URL", server.url), server.url, PROMPTS))
        ours = sent(server)
        asyncio.run(by_the_package(server.url, ours[0][2]))
        assert ours == sent(server)
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
            answers += asyncio.run(completed("azure:", old.url, PROMPTS[:1]))
        assert [one.text for one in answers] == ["one at /new/chat", "two at /new/chat", "one at /new/chat"]
        for request in new.requests:
            assert KEY not in str(request.headers), "a key goes to no other host than its own"


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


def test_one_client_keeps_a_thousand_calls_in_flight() -> None:
    """Ten thousand rows: every one is answered with its own answer, at the first attempt, and none is billed twice."""
    rows, in_flight = 10_000, 1_000
    waiting = iter(range(rows))

    async def asked(url: str) -> dict[int, Completion]:
        settings = Generation(timeout_s=60.0)
        model = parse("served:m").provider.open(endpoint=url, generation=settings, environment={})
        completions: dict[int, Completion] = {}

        async def one_after_the_other() -> None:
            for number in waiting:
                prompt = Prompt(messages=(Message(role="user", content=f"question {number}"),))
                completions[number] = await model.complete(str(number), prompt)

        try:
            await asyncio.gather(*(one_after_the_other() for _ in range(in_flight)))
        finally:
            await model.close()
        return completions

    with Endpoint("fine", latency_s=0.5) as endpoint:
        completions = asyncio.run(asked(endpoint.url))
        counts = endpoint.counts()
    assert [json.loads(completions[n].text or "{}").get("query") for n in range(rows)] == [f"q{n}" for n in range(rows)]
    assert {completion.attempts for completion in completions.values()} == {1}
    assert set(counts["billed"].values()) == {1} and len(counts["billed"]) == rows
    assert 0.9 * in_flight <= counts["most_in_flight"] <= in_flight


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
