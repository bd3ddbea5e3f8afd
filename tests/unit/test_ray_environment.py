"""No host of cluster.yaml starts Ray without a token, and every Ray of ours has the same settings."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from slm_ray import cluster
from slm_ray.api_key import api_key
from slm_ray.errors import ResourceError
from slm_ray.ray_environment import CLUSTER_SETTINGS, LOCAL_SETTINGS, check_token, local_resources
from slm_ray.submit import submit

ROOT = Path(__file__).parents[2]
CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
STARTS = [
    command
    for role in ("head", "worker")
    for command in CLUSTER[f"{role}_start_ray_commands"]
    if "ray start" in command
]


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A home folder as cluster.yaml makes it, whose `ray` only writes down how it is called."""
    binaries = tmp_path / "slm_ray" / ".venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "python").write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {sys.executable} "$@"\n')
    (binaries / "ray").write_text('#!/bin/sh\n{ echo "$@"; env; } > "$HOME/called"\n')
    for name in ("python", "ray"):
        (binaries / name).chmod(0o755)
    return tmp_path


def start(command: str, host: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return subprocess.run(
        ["bash", "-c", command], env=environment | {"HOME": str(host), "RAY_HEAD_IP": "10.0.0.1"}, text=True,
        capture_output=True, check=False,
    )  # fmt: skip


def test_cluster_yaml_starts_a_head_and_workers_and_brings_them_the_token() -> None:
    assert len(STARTS) == 2
    assert CLUSTER["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert all("--dashboard-host=127.0.0.1" in command for command in STARTS if "--head" in command)


@pytest.mark.parametrize("command", STARTS)
@pytest.mark.parametrize("token", [None, "", " \n"])
def test_a_host_without_a_token_does_not_start(command: str, token: str | None, host: Path) -> None:
    if token is not None:
        (host / ".ray").mkdir()
        (host / ".ray" / "auth_token").write_text(token)
    ended = start(command, host)
    assert ended.returncode != 0
    assert not (host / "called").exists()
    assert len(ended.stderr.splitlines()) == 1
    assert str(host / ".ray" / "auth_token") in ended.stderr
    assert "ray get-auth-token --generate" in ended.stderr


@pytest.mark.parametrize("command", STARTS)
def test_a_host_with_a_token_starts_in_token_mode_with_all_settings(command: str, host: Path) -> None:
    (host / ".ray").mkdir()
    token = host / ".ray" / "auth_token"
    token.write_text("a" * 64)
    token.chmod(0o644)
    ended = start(command, host)
    assert ended.returncode == 0, ended.stderr
    called = (host / "called").read_text().splitlines()
    assert called[0].startswith("start --")
    assert {f"{name}={value}" for name, value in CLUSTER_SETTINGS.items()} <= set(called)
    assert "RAY_AUTH_MODE=token" in called
    assert token.stat().st_mode & 0o777 == 0o600
    assert "a" * 64 not in ended.stdout + ended.stderr


HEAD, WORKER = STARTS


def called_with(command: str, host: Path, line: str | None) -> list[str]:
    """How `ray` was called, and its environment, where `~/.ray/redis` holds a line."""
    (host / ".ray").mkdir(exist_ok=True)
    (host / ".ray/auth_token").write_text("a" * 64)
    if line is not None:
        (host / ".ray/redis").write_text(line)
        (host / ".ray/redis").chmod(0o644)
    ended = start(command, host)
    assert ended.returncode == 0, ended.stderr
    return (host / "called").read_text().splitlines()


@pytest.mark.parametrize(
    ("line", "address", "options"),
    [
        ("redis://:s3cret@redis.example:6379\n", "redis.example:6379", ["--redis-password=s3cret"]),
        (
            "rediss://ray:a%20b%2A@10.0.0.9:7000/",
            "rediss://10.0.0.9:7000",
            ["--redis-username=ray", "--redis-password=a b*"],
        ),
        ("redis://[fd00::1]:6379", "[fd00::1]:6379", []),
    ],
)
def test_a_head_whose_memory_is_in_a_redis_is_told_so_and_nodes_wait_for_it(
    line: str, address: str, options: list[str], host: Path
) -> None:
    head = called_with(HEAD, host, line)
    assert f"RAY_REDIS_ADDRESS={address}" in head and "RAY_gcs_rpc_server_reconnect_timeout_s=600" in head
    assert all(option in head[0] for option in options) and head[0].count("--redis-") == len(options)
    assert (host / ".ray/redis").stat().st_mode & 0o777 == 0o600
    worker = called_with(WORKER, host, line)
    assert "RAY_gcs_rpc_server_reconnect_timeout_s=600" in worker
    assert not any("REDIS" in setting or "--redis-" in setting for setting in worker)


def test_without_a_redis_nothing_is_said_of_one(host: Path) -> None:
    for command in STARTS:
        assert not any(
            word in each
            for each in called_with(command, host, None)
            for word in ("REDIS", "--redis", "reconnect_timeout")
        )


@pytest.mark.parametrize("line", ["", "redis.example:6379", "http://:p@redis.example:6379", "redis://:p@redis.example", "redis://:p@h:port", "redis://:p@h:6379/1"])  # fmt: skip
def test_a_line_that_names_no_redis_starts_no_head(line: str, host: Path) -> None:
    (host / ".ray").mkdir()
    (host / ".ray/auth_token").write_text("a" * 64)
    (host / ".ray/redis").write_text(line)
    for command in STARTS:
        ended = start(command, host)
        assert ended.returncode != 0 and not (host / "called").exists()
        assert len(ended.stderr.splitlines()) == 1 and "redis://:PASSWORD@HOST:PORT" in ended.stderr
        assert ":p@" not in ended.stderr


def test_no_other_file_starts_ray_with_settings_of_its_own() -> None:
    elsewhere = [
        path
        for path in [
            *(ROOT / "slm_ray").rglob("*.py"),
            *(ROOT / "jobs").glob("*"),
            ROOT / "Makefile",
            ROOT / "cluster.yaml",
        ]
        if path.name not in ("ray_environment.py", "command.py")
        and any(re.search(rf"\b{name}\b\W*[=:]", path.read_text(encoding="utf-8")) for name in LOCAL_SETTINGS)
    ]
    assert elsewhere == []


@pytest.fixture
def submitted_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `ray` beside this interpreter's twin that writes down how it was started, and then ends."""
    ray = tmp_path / "bin" / "ray"
    ray.parent.mkdir()
    ray.write_text('#!/bin/sh\n{ echo "$@"; env; } > "$CALLED"\nexit 1\n')
    ray.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(ray.with_name("python")))
    monkeypatch.setenv("CALLED", str(tmp_path / "called"))
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    return tmp_path / "called"


def test_a_head_beside_a_job_is_started_with_the_settings_and_a_token_of_its_own(
    submitted_ray: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLM_RAY_API_KEY", "s3cret")
    before = dict(os.environ)
    with pytest.raises(ResourceError, match=r"Ray did not start; see .*ray\.log"):
        submit(["job.py"], log=tmp_path / "ray.log", slots=3)
    assert dict(os.environ) == before
    options, *lines = submitted_ray.read_text().splitlines()
    environment = dict(line.split("=", 1) for line in lines if "=" in line)
    assert {**environment, **LOCAL_SETTINGS} == environment
    assert environment["RAY_AUTH_MODE"] == "token" and len(environment["RAY_AUTH_TOKEN"]) == 64
    assert "RAY_ADDRESS" not in environment
    assert "s3cret" not in environment.values() and api_key(environment) == "s3cret", "its file is for the job"
    sizes = local_resources(3)
    assert sizes["num_cpus"] >= 3
    for option in (
        "--head",
        "--dashboard-host=127.0.0.1",
        f"--num-cpus={sizes['num_cpus']}",
        '--resources={"slot": 3}',
    ):
        assert option in options
    assert environment["RAY_AUTH_TOKEN"] not in capsys.readouterr().out + options


@pytest.mark.parametrize(
    ("arguments", "slots", "said"),
    [([], "4", "give the path of one"), (["no.py"], "4", "no.py"), ([__file__], "0", "SLOTS")],
)
def test_what_cannot_be_submitted_is_said_in_one_line(
    arguments: list[str], slots: str, said: str, tmp_path: Path
) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "slm_ray.submit", *arguments], text=True, capture_output=True, check=False, cwd=ROOT,
        env=os.environ | {"RUN": str(tmp_path), "SLOTS": slots},
    )  # fmt: skip
    assert (ended.returncode, ended.stderr.count("\n"), ended.stdout) == (2, 1, "")
    assert ended.stderr.startswith("error: ") and said in ended.stderr


def test_ray_looks_for_its_token_where_the_check_does(tmp_path: Path) -> None:
    check_token({"RAY_AUTH_TOKEN": "secret"})
    file = tmp_path / "token"
    file.write_text("secret")
    check_token({"RAY_AUTH_TOKEN_PATH": str(file)})
    with pytest.raises(ResourceError, match="elsewhere"):
        check_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "elsewhere")})
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ResourceError, match="it is no text"):
        check_token({"RAY_AUTH_TOKEN_PATH": str(file)})


def test_an_address_where_no_ray_answers_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as bound:  # and nobody listens
        bound.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{bound.getsockname()[1]}")
        with pytest.raises(
            ResourceError,
            match=r"no Ray answers at 127\.0\.0\.1:\d+ \(RAY_ADDRESS\); start the cluster .* or set RAY_ADDRESS=local",
        ):
            cluster.connect()


def test_a_ray_that_does_not_start_in_time_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray raises a plain Exception with these words after half a minute, which no test can wait for."""
    import ray
    from ray._private import node

    words = "The current node timed out during startup."
    assert words in inspect.getsource(node.Node)

    def too_slow(**_: object) -> None:
        raise Exception(f"{words} This could happen because the GCS has become overloaded.")

    monkeypatch.setattr(ray, "init", too_slow)
    with pytest.raises(
        ResourceError, match=r"did not start .* in time .*overloaded .*run the same command again"
    ) as said:
        cluster.start_local()
    assert "\n" not in str(said.value)
