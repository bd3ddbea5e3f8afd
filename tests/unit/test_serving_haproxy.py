"""HAProxy as we have Serve start it: the real binary takes the file that the pinned Ray writes, less what it would open."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions

from slm_ray.ray_environment import HAPROXY, haproxy_settings

SETTINGS = haproxy_settings({HAPROXY: "1"})


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose name leaves room for a socket's: its whole path has 107 bytes at most."""
    folder = Path(tempfile.mkdtemp(prefix="ha"))
    yield folder
    shutil.rmtree(folder)


def rewritten(folder: Path, host: str, *, knows: bool = True) -> tuple[str, str]:
    """Ray's own file for an endpoint at `host`, and what our start has made of it once the binary has found it right."""
    sockets = {name: str(folder / name) for name in ("socket_path", "server_state_file", "metrics_socket_path")}
    config = HAProxyConfig(
        http_options=HTTPOptions(host=host, port=8123), server_state_base=str(folder), is_head=True, **sockets,
    )  # fmt: skip
    servers = {"name": "front", "host": "127.0.0.1"}
    backend = BackendConfig(
        name="http-slm-ray-8123", path_prefix="/", app_name="slm-ray-8123",
        servers=[ServerConfig(**servers, port=30000)], fallback_server=ServerConfig(name="f", host="127.0.0.1", port=8500),
    )  # fmt: skip
    file = folder / "haproxy.cfg"
    api = HAProxyApi(config, {backend.name: backend} if knows else {}, config_file_path=str(file))
    api._generate_config_file_internal()
    theirs = file.read_text()
    started = subprocess.run(
        [SETTINGS["RAY_SERVE_HAPROXY_BINARY_PATH"], "-db", "-f", str(file), "-c"], env=SETTINGS, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert started.returncode == 0, started.stderr
    return theirs, file.read_text()


@pytest.mark.parametrize(("host", "front"), [("127.0.0.1", "127.0.0.1:8123"), ("0.0.0.0", "*:8123")])
def test_haproxy_opens_no_port_but_the_endpoint_s_and_its_socket_is_this_user_s(
    short: Path, host: str, front: str
) -> None:
    theirs, ours = rewritten(short, host)
    binds = re.compile(r"^ *bind (\S+)", re.MULTILINE)
    assert len(binds.findall(theirs)) == 3 and " mode 666 " in theirs, "the pinned Ray writes another file"
    assert binds.findall(ours)[1] == front
    assert all(bind.startswith("127.0.0.1:") for bind in binds.findall(ours) if bind != front)
    assert " mode 600 " in ours and " mode 666 " not in ours


def test_what_haproxy_says_itself_has_the_endpoint_s_shape_and_says_when_to_come_back(short: Path) -> None:
    _, ours = rewritten(short, "127.0.0.1")
    said = {
        status: Path(file).read_bytes() for status, file in re.findall(r"^ *errorfile (\d+) (\S+)", ours, re.MULTILINE)
    }
    assert {status: raw.split()[1] for status, raw in said.items()} == {"502": b"500", "503": b"503", "504": b"500"}
    for raw in said.values():
        head, _, body = raw.partition(b"\r\n\r\n")
        assert body.startswith(b'{"error":{"code":') and f"Content-Length: {len(body)}".encode() in head.split(b"\r\n")
    assert b"Retry-After: 5\r\n" in said["503"]


def test_a_haproxy_that_knows_no_application_yet_says_when_to_come_back_and_not_that_nothing_is_there(
    short: Path,
) -> None:
    (short / "known").mkdir()
    (short / "new").mkdir()
    returns = re.compile(r"^ *http-request return status (404|503) (?:errorfile|content-type)", re.MULTILINE)
    assert "404" in returns.findall(rewritten(short / "known", "127.0.0.1")[1])
    theirs, ours = rewritten(short / "new", "127.0.0.1", knows=False)
    assert "404" in returns.findall(theirs) and "404" not in returns.findall(ours)
    assert f"status 503 errorfile {short}/new/503.json.http" in ours


def test_where_nobody_asks_for_haproxy_nothing_is_set_and_a_binary_of_one_s_own_is_taken() -> None:
    assert haproxy_settings({}) == haproxy_settings({HAPROXY: "0"}) == {}
    assert haproxy_settings({HAPROXY: "1", "RAY_SERVE_HAPROXY_BINARY_PATH": "/opt/haproxy"}) == {}
