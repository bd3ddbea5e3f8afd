"""Keys: added, shown once, revoked; who gets in, from which host; and what an accident to their file does."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from slm_ray.errors import ConfigError, DataError, ResourceError
from slm_ray.serving.auth import RequireKey, ThisMachineOnly, key_of
from slm_ray.serving.keys import KeyRing, TokenBudget, add_key, key_digest, read_keys, revoke_key


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def names(file: Path) -> list[str]:
    return [key.name for key in read_keys(file)]


def test_a_key_is_shown_once_and_stands_nowhere(tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    secret = add_key(file, "team-a", models=["structured", "tool*"], tokens_per_minute=1000)
    (key,) = read_keys(file)
    assert len(secret) > 40 and secret not in file.read_text()
    assert (key.sha256, key.tokens_per_minute, file.stat().st_mode & 0o777) == (key_digest(secret), 1000, 0o600)
    asked = {
        name: key.may_ask(name) for name in ("structured", "structured@champion", "toolcall", "tiny-base", "Structured")
    }
    assert asked == {
        "structured": True,
        "structured@champion": True,
        "toolcall": True,
        "tiny-base": False,
        "Structured": False,
    }
    assert add_key(file, "team-b") != secret and names(file) == ["team-a", "team-b"]


def test_a_revoked_key_is_none_its_line_stays_and_its_name_is_free(tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    first = add_key(file, "team")
    with pytest.raises(ConfigError, match="already"):
        add_key(file, "team")
    assert revoke_key(file, "team").revoked and names(file) == []
    with pytest.raises(ConfigError, match="it has none"):
        revoke_key(file, "team")
    second = add_key(file, "team")
    assert names(file) == ["team"] and len(file.read_text().splitlines()) == 3
    ring = KeyRing(own_digest=None, file=str(file))
    assert ring.whose([first]) is None and ring.whose([second]) is not None


def test_many_writers_lose_no_key(tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: add_key(file, f"k{n}"), range(24)))
    assert sorted(names(file)) == sorted(f"k{n}" for n in range(24))


@pytest.mark.parametrize(
    ("options", "words"),
    [({"name": "a b"}, "no name"), ({"name": ""}, "no name"), ({"models": []}, "models"), ({"models": [" "]}, "models"),
     ({"models": ["structured", "tiny-base:structured"]}, "without the base"),
     ({"tokens_per_minute": 0}, "1 or more")],
)  # fmt: skip
def test_what_is_no_key_is_refused(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        add_key(tmp_path / "keys.jsonl", **{"name": "team", **options})
    assert not (tmp_path / "keys.jsonl").exists()


def test_no_key_is_added_where_others_could_add_theirs(tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    file.touch()
    file.chmod(0o666)
    with pytest.raises(ConfigError, match="chmod 600"):
        add_key(file, "team")
    assert file.read_text() == ""


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="folder"):
        add_key(tmp_path / "none/keys.jsonl", "team")


@pytest.mark.parametrize(
    ("line", "words"),
    [("{", r"keys\.jsonl:2: not JSON"), ("[]", "2: list instead"), ('{"name": "x"}', "2: sha256: Field required"),
     (json.dumps({"name": "x", "sha256": "0" * 64, "model": ["a"]}), "2: model: Unexpected"),
     ('{"name": "x", "sha256": "é"}', "2: sha256: String should match")],
)  # fmt: skip
def test_a_damaged_line_is_named_and_lets_nobody_of_the_file_in(tmp_path: Path, line: str, words: str) -> None:
    file = tmp_path / "keys.jsonl"
    secret = add_key(file, "team")
    ring = KeyRing(own_digest=key_digest("own"), file=str(file))
    assert ring.whose([secret]) is not None
    with file.open("a") as sink:
        sink.write(line + "\n")
    with pytest.raises(DataError, match=words):
        read_keys(file)
    clock = Clock()
    ring = KeyRing(own_digest=key_digest("own"), file=str(file), clock=clock)
    with pytest.raises(DataError):
        ring.whose([secret])
    own = ring.whose(["own"])
    assert own is not None and own.name == "SLM_RAY_API_KEY"
    file.write_text(file.read_text().replace(line + "\n", ""))
    clock.now = 1.0
    assert ring.whose([secret]) is not None, "mended, it counts again"


def test_a_line_that_is_not_whole_yet_is_no_line(tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    add_key(file, "team")
    with file.open("a") as sink:
        sink.write('{"name": "torn')
    assert names(file) == ["team"]
    add_key(file, "next")
    assert names(file) == ["team", "next"]


def test_changes_count_within_a_second_and_the_file_may_not_be_open_or_gone(tmp_path: Path) -> None:
    file, clock = tmp_path / "keys.jsonl", Clock()
    secret = add_key(file, "team")
    ring = KeyRing(own_digest=None, file=str(file), clock=clock)
    assert ring.whose(["", secret]) is not None

    def later() -> bool:
        clock.now += 1.0
        return ring.whose([secret]) is not None

    revoke_key(file, "team")
    assert not later()
    secret = add_key(file, "team")
    assert later()
    file.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        later()
    file.chmod(0o600)
    assert later()
    file.unlink()
    with pytest.raises(ConfigError, match="cannot read"):
        later()


def test_a_budget_fills_up_in_a_minute_and_is_settled_by_what_was_used() -> None:
    clock = Clock()
    budget = TokenBudget(600, clock)
    assert budget.take(600) == 0.0
    assert budget.take(100) == pytest.approx(10.0)
    budget.settle(600, 550)
    assert budget.take(50) == 0.0 and budget.take(1) == pytest.approx(0.1)
    clock.now = 5.0
    assert budget.take(50) == 0.0
    budget.settle(50, 90)  # the guess was too low
    assert budget.take(10) == pytest.approx(5.0)
    assert budget.take(601) == math.inf
    clock.now = 500.0
    assert budget.take(600) == 0.0, "it holds one minute's and no more"
    assert budget.take(1) > 0


def passed(
    app: type, headers: dict[str, str], path: str = "/v1/models", **options: Any
) -> tuple[int, Any, dict[str, Any]]:
    """Status, whose request the app behind saw, and the body of a refusal."""
    seen: list[Any] = []
    sent: list[Any] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        seen.append(key_of(scope))
        await send({"type": "http.response.start", "status": 204, "headers": []})

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "path": path, "headers": raw, "method": "GET"}
    asyncio.run(app(inner, **options)(scope, None, send))
    body = json.loads(sent[1]["body"]) if len(sent) > 1 else {}
    return sent[0]["status"], seen[0] if seen else None, body


@pytest.mark.parametrize(
    ("headers", "status"),
    [({}, 401), ({"api-key": "wrong"}, 401), ({"authorization": "right"}, 401), ({"authorization": "Basic right"}, 401),
     ({"api-key": "right"}, 204), ({"authorization": "Bearer right"}, 204), ({"authorization": "bearer right"}, 204),
     ({"authorization": "Bearer wrong", "api-key": "right"}, 204), ({"api-key": "\u00e9"}, 401), ({"api-key": ""}, 401)],
)  # fmt: skip
def test_the_key_check(headers: dict[str, str], status: int) -> None:
    ring = KeyRing(own_digest=key_digest("right"), file=None)
    got, key, _ = passed(RequireKey, headers, ring=ring)
    assert got == status and (key is not None) == (status == 204)
    assert passed(RequireKey, headers, "/health", ring=ring)[0] == 204


def test_keys_of_the_file_pass_in_both_headers_and_what_is_wrong_with_it_is_not_told(tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    secret = add_key(file, "team")
    for headers in ({"api-key": secret}, {"authorization": f"Bearer {secret}"}):
        status, key, _ = passed(RequireKey, headers, ring=KeyRing(own_digest=key_digest("own"), file=str(file)))
        assert status == 204 and key.name == "team"
    file.chmod(0o644)
    ring = KeyRing(own_digest=key_digest("own"), file=str(file))
    status, _, body = passed(RequireKey, {"api-key": secret}, ring=ring)
    assert status == 503 and "keys.jsonl" not in json.dumps(body)
    assert passed(RequireKey, {"api-key": "own"}, ring=ring)[0] == 204


def test_a_damaged_keys_file_is_one_line_in_the_log_however_many_ask(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys.jsonl"
    add_key(file, "team")
    file.chmod(0o644)
    ring = KeyRing(own_digest=key_digest("own"), file=str(file))

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def scenario() -> list[int]:
        transport = httpx.ASGITransport(RequireKey(behind, ring=ring))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return [(await client.get("/v1/models", headers={"api-key": key})).status_code for key in ["x", "own"] * 5]

    with caplog.at_level(logging.ERROR, logger="ray.serve"):
        assert asyncio.run(scenario()) == [503, 204] * 5
    assert len([record for record in caplog.records if "no key is taken" in record.message]) == 1


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"host": "127.0.0.1:8000"}, 204), ({"host": "localhost"}, 204), ({"host": "[::1]:8000"}, 204), ({"host": "LOCALHOST:1"}, 204),
     ({"host": "localhost:1", "origin": "http://127.0.0.1:3000"}, 204), ({"host": "attacker.example"}, 403),
     ({"host": "127.0.0.1.attacker.example:8000"}, 403), ({"host": "localhost@attacker.example"}, 403), ({}, 403), ({"host": "["}, 403),
     ({"host": "localhost", "origin": "https://attacker.example"}, 403), ({"host": "localhost", "origin": "null"}, 403),
     ({"host": "localhost", "x-forwarded-for": "127.0.0.1"}, 204), ({"host": "localhost", "x-forwarded-for": "10.0.0.7"}, 403),
     ({"host": "localhost", "x-forwarded-for": "127.0.0.1, 10.0.0.7"}, 403)],
)  # fmt: skip
def test_without_a_key_only_this_machine_by_its_own_name(headers: dict[str, str], status: int) -> None:
    assert passed(ThisMachineOnly, headers)[0] == status
    assert passed(ThisMachineOnly, headers, "/health")[0] == 204


@pytest.mark.parametrize(
    ("client", "status"), [(("127.0.0.1", 9), 204), (("::1", 9), 204), (None, 204), (("10.0.0.7", 9), 403)]
)
def test_without_a_key_another_machine_gets_nothing_whatever_host_it_names(client: Any, status: int) -> None:
    sent: list[Any] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})

    async def send(message: Any) -> None:
        sent.append(message["type"] == "http.response.start" and message["status"])

    scope = {
        "type": "http",
        "path": "/v1/models",
        "headers": [(b"host", b"localhost")],
        "method": "GET",
        "client": client,
    }
    asyncio.run(ThisMachineOnly(inner)(scope, None, send))  # type: ignore[arg-type]
    assert sent[0] == status


def keys(*arguments: str, file: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "slm_ray.cli.app", "keys", *arguments, "--file", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=os.environ)


def test_the_commands(tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    added = keys("add", "team", "--model", "structured", "--tokens_per_minute", "5000", file=file)
    secret = added.stdout.strip()
    assert added.returncode == 0 and read_keys(file)[0].sha256 == key_digest(secret)
    listed = keys("list", file=file).stdout
    assert "team" in listed and "structured" in listed and "5,000" in listed and secret not in listed
    assert keys("revoke", "team", file=file).returncode == 0 and read_keys(file) == ()
    refused = keys("revoke", "team", file=file)
    assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1
