"""The endpoint's key: from the environment or a file that nobody else reads, and not in what Ray starts."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import ray

from slm_ray import cluster
from slm_ray.api_key import KEY_FILE_NAME, KEY_NAME, api_key, hidden_from_ray
from slm_ray.errors import ConfigError
from slm_ray.providers.served import Served


def key_file(path: Path, text: str = "s3cret\n", mode: int = 0o600) -> dict[str, str]:
    path.write_text(text)
    path.chmod(mode)
    return {KEY_FILE_NAME: str(path)}


def test_the_environment_goes_before_the_file_and_no_key_is_none(tmp_path: Path) -> None:
    named = key_file(tmp_path / "key")
    assert api_key({}) == "" and api_key(named) == "s3cret"
    assert api_key(named | {KEY_NAME: "own"}) == "own"


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [("s3cret", 0o644, "chmod 600"), ("", 0o600, "is empty"), ("s3cret", 0o640, "others may read")],
)
def test_a_file_that_is_no_secret_is_refused_without_saying_it(
    tmp_path: Path, text: str, mode: int, words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        api_key(key_file(tmp_path / "key", text, mode))
    assert "s3cret" not in str(caught.value)
    with pytest.raises(ConfigError, match=f"cannot read .* on {os.uname().nodename}: "):
        api_key({KEY_FILE_NAME: str(tmp_path / "none")})


def test_ray_gets_a_file_s_name_in_the_key_s_place() -> None:
    environment = {KEY_NAME: "s3cret", "PATH": "/bin"}
    with hidden_from_ray(environment):
        inherited = dict(environment)
    assert "s3cret" not in inherited.values() and api_key(inherited) == "s3cret"
    assert stat.S_IMODE(Path(inherited[KEY_FILE_NAME]).stat().st_mode) == 0o600
    assert environment[KEY_NAME] == "s3cret"
    nothing: dict[str, str] = {}
    with hidden_from_ray(nothing):
        assert nothing == {}
    assert nothing == {}


def test_a_ray_of_this_process_is_started_without_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []
    monkeypatch.setenv(KEY_NAME, "s3cret")
    monkeypatch.setenv(KEY_FILE_NAME, "")
    monkeypatch.setattr(ray, "init", lambda **_: seen.append(dict(os.environ)))
    cluster.start_local()
    assert "s3cret" not in seen[0].values() and api_key(seen[0]) == "s3cret"
    assert os.environ[KEY_NAME] == "s3cret"


def test_a_model_of_the_endpoint_is_asked_with_the_file_s_key_wherever_it_runs(tmp_path: Path) -> None:
    provider = Served.parse("tiny")
    travels = provider.select(key_file(tmp_path / "key") | {"HOME": "/x"})
    assert travels == {KEY_FILE_NAME: str(tmp_path / "key")}
    assert provider.address(endpoint="http://localhost:1", environment=travels).secret == "s3cret"
