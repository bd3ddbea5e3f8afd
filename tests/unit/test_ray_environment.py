"""No host of cluster.yaml starts Ray without a token, and every Ray of ours has the same settings."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from slm_ray.errors import ResourceError
from slm_ray.ray_environment import CLUSTER_SETTINGS, LOCAL_SETTINGS, check_token

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


def test_the_script_takes_the_settings_of_a_ray_of_ours() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "slm_ray.ray_environment", "local"], cwd=ROOT, text=True, capture_output=True, check=True
    ).stdout
    assert dict(line.removeprefix("export ").split("=", 1) for line in printed.splitlines()) == LOCAL_SETTINGS
    script = (ROOT / "jobs" / "on_local_ray.sh").read_text(encoding="utf-8")
    assert "slm_ray.ray_environment local" in script
    assert not [name for name in LOCAL_SETTINGS if name in script]


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
