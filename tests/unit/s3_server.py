"""An S3 bucket for clients that write: puts, uploads in parts, reads, lists and deletes; in memory, without signatures.

Run as a script it prints its port. It is to be run as a process of its own, as pyarrow may hold the interpreter while it waits.
"""

from __future__ import annotations

import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

FILES: dict[str, bytes] = {}
UPLOADS: dict[str, dict[int, bytes]] = {}
ABOUT = {"ETag": '"x"', "Last-Modified": "Wed, 01 Jan 2025 00:00:00 GMT"}


class Bucket(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **ABOUT, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    def asked(self) -> tuple[str, dict[str, str]]:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        return unquote(url.path).strip("/").partition("/")[2], query

    def body(self) -> bytes:
        raw = self.sent()
        if "aws-chunked" not in self.headers.get("Content-Encoding", ""):
            return raw
        whole = b""
        while raw:
            head, _, raw = raw.partition(b"\r\n")
            if not (size := int(head.split(b";")[0], 16)):
                break  # checksums follow
            whole, raw = whole + raw[:size], raw[size + 2 :]
        return whole

    def sent(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        found = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def do_PUT(self) -> None:
        (name, query), data = self.asked(), self.body()
        if "uploadId" in query:
            UPLOADS.setdefault(query["uploadId"], {})[int(query["partNumber"])] = data
        elif name:
            FILES[name] = data
        self.answer(200)

    def do_POST(self) -> None:
        (name, query), data = self.asked(), self.body()
        if "delete" in query:
            for key in re.findall(rb"<Key>(.*?)</Key>", data):
                FILES.pop(key.decode(), None)
            self.answer(200, b"<DeleteResult/>")
        elif "uploads" in query:
            self.answer(
                200,
                b"<InitiateMultipartUploadResult><UploadId>%s</UploadId></InitiateMultipartUploadResult>"
                % name.encode(),
            )
        else:
            FILES[name] = b"".join(part for _, part in sorted(UPLOADS.pop(query["uploadId"]).items()))
            self.answer(200, b"<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>")

    def do_DELETE(self) -> None:
        FILES.pop(self.asked()[0], None)
        self.answer(204)

    def do_GET(self) -> None:
        name, query = self.asked()
        if not name:
            self.answer(200, self.listing(query.get("prefix", "")))
        elif name not in FILES:
            self.answer(404)
        elif wanted := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            first, last = map(int, wanted.groups())
            self.answer(206, FILES[name][first : last + 1], Content_Range=f"bytes {first}-{last}/{len(FILES[name])}")
        else:
            self.answer(200, FILES[name])

    do_HEAD = do_GET

    def listing(self, prefix: str) -> bytes:
        below = [name for name in sorted(FILES) if name.startswith(prefix)]
        folders = {prefix + name[len(prefix) :].split("/")[0] + "/" for name in below if "/" in name[len(prefix) :]}
        files = [name for name in below if "/" not in name[len(prefix) :]]
        told = "".join(
            f"<Contents><Key>{name}</Key><Size>{len(FILES[name])}</Size>"
            "<LastModified>2025-01-01T00:00:00.000Z</LastModified></Contents>"
            for name in files
        ) + "".join(f"<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>" for name in sorted(folders))
        count = len(files) + len(folders)
        return f"<ListBucketResult><KeyCount>{count}</KeyCount><IsTruncated>false</IsTruncated>{told}</ListBucketResult>".encode()


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    print(server.server_port, flush=True)
    server.serve_forever()
