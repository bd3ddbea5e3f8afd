"""A bucket on a host: a server of S3's routes there, which every other host reaches and no node shares a disk with."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from hosts import Host

SERVER = Path(__file__).parents[1] / "unit" / "s3_server.py"


class Bucket:
    """The bucket, as the nodes name it and as this process looks into it."""

    def __init__(self, host: Host, port: int, name: str) -> None:
        self._host, self._port, self._name = host, port, name

    @property
    def address(self) -> str:
        """Host and port of its server."""
        return f"{self._host.address}:{self._port}"

    def uri(self, name: str) -> str:
        """A place in it, for nodes whose environment says nothing of a store."""
        options = f"scheme=http&region=us-east-1&endpoint_override={self.address}"
        return f"s3://anonymous@{self._name}/{name}?{options}"

    def read(self, name: str) -> bytes:
        """An object; empty where there is none."""
        return self._get(f"/{self._name}/{name}")

    def names(self, below: str) -> list[str]:
        """The objects whose names begin so."""
        return re.findall("<Key>([^<]*)</Key>", self._get(f"/{self._name}?list-type=2&prefix={below}").decode())

    def _get(self, path: str) -> bytes:
        with self._host.connect(self._host.address, self._port) as connection:
            connection.settimeout(30)
            connection.sendall(f"GET {path} HTTP/1.0\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        head, _, body = answer.partition(b"\r\n\r\n")
        return body if b" 200 " in head.partition(b"\r\n")[0] else b""


@contextlib.contextmanager
def served(host: Host, name: str = "bucket") -> Iterator[Bucket]:
    """A bucket that is empty when it begins and gone when it ends."""
    server = host.start(f"python3 {SERVER} {host.address} {name}")
    assert server.stdout is not None
    try:
        yield Bucket(host, int(server.stdout.readline()), name)
    finally:
        server.kill()
        server.wait()
