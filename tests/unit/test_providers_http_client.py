"""The way to an endpoint: keys, redirects, certificates and a thousand connections."""

from __future__ import annotations

import asyncio
import datetime
import gzip
import ipaddress
import json
import resource
import ssl
from pathlib import Path

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


@pytest.mark.parametrize("spec", ["served:m", "azure:", "openai:m@URL/v1"])
def test_one_call_after_the_other_says_its_own_words(spec: str) -> None:
    def script(request: Request) -> Reply:
        return answer(request.text.upper())

    with ChatServer(script) as server:
        answers = asyncio.run(completed(spec.replace("URL", server.url), server.url, PROMPTS))
    assert [one.text for one in answers] == ["ONE", "TWO", "DREI UND DREISSIG"]


@pytest.mark.parametrize("spec", ["served:m", "azure:", "openai:m@URL/v1"])
def test_what_the_openai_package_reads_of_the_process_changes_no_key(
    spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ORG_ID", "PROJECT_ID", "API_KEY", "ADMIN_KEY", "BASE_URL", "API_VERSION"):
        monkeypatch.setenv(f"OPENAI_{name}", "http://127.0.0.1:9/of-another-account")
    for name in ("API_KEY", "AD_TOKEN", "ENDPOINT"):
        monkeypatch.setenv(f"AZURE_OPENAI_{name}", "http://127.0.0.1:9/of-another-account")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer of-another-account")
    with ChatServer(lambda _: answer("ok")) as server:
        assert [
            one.text for one in asyncio.run(completed(spec.replace("URL", server.url), server.url, PROMPTS[:1]))
        ] == ["ok"]
        headers, path = server.requests[0].headers, server.requests[0].path
    assert "of-another-account" not in str(headers) + path
    expected = (None, KEY) if spec == "azure:" else (f"Bearer {KEY}", None)
    assert (headers.get("authorization"), headers.get("api-key")) == expected


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


@pytest.mark.parametrize("spec", ["served:m", "azure:", "openai:m@URL/v1"])
def test_an_endpoint_that_moves_later_is_followed_and_its_key_stays_behind(spec: str) -> None:
    """The second call is not made by the package, which takes an Azure key off where a redirect leads to another host."""
    with ChatServer(lambda request: answer(f"{request.text} at the new one")) as new:
        moved = Reply(status=307, headers={"Location": f"{new.url}/new/chat"}, body={})
        with ChatServer(lambda request: moved if request.nth else answer("at the old one")) as old:
            answers = asyncio.run(completed(spec.replace("URL", old.url), old.url, PROMPTS[:2]))
        assert [one.text for one in answers] == ["at the old one", "two at the new one"]
        assert all(KEY in str(request.headers) for request in old.requests) and len(old.requests) == 2
        assert KEY not in str(new.requests[0].headers)


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
    """Three thousand rows: every one is answered with its own answer, at the first attempt, and none is billed twice."""
    rows, in_flight = 3_000, 1_000
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

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Endpoint("fine", latency_s=4.0) as endpoint:  # a busy machine, too, begins so many calls meanwhile
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (min(512, soft), hard)
        )  # fewer files than calls, as many systems allow
        try:
            completions = asyncio.run(asked(endpoint.url))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        counts = endpoint.counts()
    assert [json.loads(completions[n].text or "{}").get("query") for n in range(rows)] == [f"q{n}" for n in range(rows)]
    assert {completion.attempts for completion in completions.values()} == {1}
    assert set(counts["billed"].values()) == {1} and len(counts["billed"]) == rows
    assert 600 < counts["most_in_flight"] <= in_flight


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
