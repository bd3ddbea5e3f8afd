"""A real HTTP server that holds files and speaks three systems' reading routes: those of a Google Cloud Storage bucket, of an
S3 bucket and of the Hugging Face hub. It lists a page of one name at a time (S3: of two) and fails the first calls when told
to; it never writes.

It listens on 127.0.0.1 on a free port, in a thread. A client in the same process may wait for it forever, since pyarrow
holds the interpreter while it opens an object: ask from another process.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

REVISION = "a" * 40


@dataclass(kw_only=True)
class Store:
    """`files` by name in the bucket or data set called `name`; `failing` is how many calls answer 503 first."""

    name: str
    files: Mapping[str, bytes]
    failing: int = 0
    paths: list[str] = field(default_factory=list)
    port: int = 0


@contextmanager
def serving(store: Store) -> Iterator[Store]:
    """The store at `store.port` for as long as the block lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": store}))
    store.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: Store

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.store.paths.append(self.path)
        url = urlsplit(self.path)
        if self.store.failing:
            self.store.failing -= 1
            self._send(503, b"busy")
        elif url.path.rstrip("/") == f"/{self.store.name}" and "list-type=2" in url.query:
            self._s3_list({key: values[0] for key, values in parse_qs(url.query).items()})
        elif url.path.startswith(f"/{self.store.name}/"):
            self._s3_object(unquote(url.path.removeprefix(f"/{self.store.name}/")))
        elif url.path.startswith("/storage/v1/b/"):
            self._bucket(url.path.removeprefix("/storage/v1/b/"), parse_qs(url.query))
        else:
            self._hub(unquote(url.path))

    def _bucket(self, path: str, query: Mapping[str, list[str]]) -> None:
        bucket, _, name = path.partition("/o")
        name = unquote(name.removeprefix("/"))
        if bucket != self.store.name or (name and name not in self.store.files):
            self._json(404, {"error": {"code": 404, "message": "there is none"}})
        elif not name:
            found = sorted(each for each in self.store.files if each.startswith(query.get("prefix", [""])[0]))
            place = int(query.get("pageToken", ["0"])[0])
            page: dict[str, Any] = {
                "kind": "storage#objects",
                "items": [self._object(n) for n in found[place : place + 1]],
            }
            self._json(200, page | ({"nextPageToken": str(place + 1)} if place + 1 < len(found) else {}))
        elif query.get("alt") == ["media"]:
            self._content(self.store.files[name], {"x-goog-generation": "1"})
        else:
            self._json(200, self._object(name))

    def _object(self, name: str) -> dict[str, str]:
        return {
            "kind": "storage#object", "name": name, "bucket": self.store.name, "generation": "1",
            "size": str(len(self.store.files[name])), "updated": "2026-01-01T00:00:00Z",
        }  # fmt: skip

    def _s3_list(self, query: Mapping[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        keys = sorted(key for key in self.store.files if key.startswith(prefix))
        if delimiter:
            keys = sorted({key for key in keys if delimiter not in key[len(prefix) :]})
        place = int(query.get("continuation-token", "0"))
        page = keys[place : place + 2]
        more = place + 2 < len(keys)
        entries = "".join(
            f"<Contents><Key>{key}</Key><LastModified>{self._written(key)}</LastModified><ETag>x</ETag>"
            f"<Size>{len(self.store.files[key])}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for key in page
        )
        token = f"<NextContinuationToken>{place + 2}</NextContinuationToken>" if more else ""
        body = (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{self.store.name}</Name><Prefix>{prefix}</Prefix><KeyCount>{len(page)}</KeyCount><MaxKeys>2</MaxKeys>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{entries}</ListBucketResult>"
        )
        self._send(200, body.encode(), {"content-type": "application/xml"})

    def _written(self, key: str) -> str:
        """A time that is another when the content has another length."""
        return f"2026-01-01T{len(self.store.files[key]) // 3600 % 24:02d}:00:00.000Z"

    def _s3_object(self, key: str) -> None:
        if key in self.store.files:
            self._content(self.store.files[key], {"ETag": '"x"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"})
        else:
            self._send(404, b"<Error><Code>NoSuchKey</Code><Message>there is none</Message></Error>")

    def _hub(self, path: str) -> None:
        files = self.store.files
        place, found, rest = path.partition(f"/resolve/{REVISION}/" if REVISION in path else "/resolve/main/")
        if place == f"/datasets/{self.store.name}" and found:
            marks = {"etag": f'"{len(files.get(rest, b"")):040d}"', "x-repo-commit": REVISION}
            if rest in files:
                self._content(files[rest], marks)
            else:
                self._send(404, b"", {"x-error-code": "EntryNotFound"} | marks)
        elif path == f"/api/datasets/{self.store.name}/tree/{REVISION}":
            self._json(200, [{"type": "file", "oid": "b" * 40, "size": len(files[n]), "path": n} for n in files])
        elif path.startswith(f"/api/datasets/{self.store.name}/"):
            self._json(200, {"id": self.store.name, "sha": REVISION, "siblings": [{"rfilename": n} for n in files]})
        else:
            self._send(404, b"{}", {"x-error-code": "RepoNotFound"})

    def _content(self, body: bytes, headers: Mapping[str, str]) -> None:
        wanted = self.headers.get("Range")
        if not wanted:
            self._send(200, body, headers)
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        part = body[int(first) : int(last) + 1 if last else len(body)]
        inside = f"bytes {first}-{int(first) + len(part) - 1}/{len(body)}"
        self._send(206, part, {**headers, "content-range": inside})

    def _json(self, status: int, value: Any) -> None:
        self._send(status, json.dumps(value).encode(), {"content-type": "application/json"})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
