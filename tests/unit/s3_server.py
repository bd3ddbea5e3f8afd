"""An S3 bucket for clients that write: puts, uploads in parts, reads, lists and deletes; in memory, without signatures.

Run as a script, with an address to listen on if it is not to be loopback and a name for the bucket, it prints its port. It is to be run as a process of its own, as pyarrow may hold the interpreter while it waits.
There is one bucket, by default `bucket`. `PUT /-/STATE` makes it answer otherwise: `away` is 503 to all, `refuse` 403 to all, `full`
403 to whatever is written, `torn` breaks the connection in the middle of what is written, `well` is as before. The key id
`wrong` is refused.
"""

from __future__ import annotations

import re
import sys
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

NAME = "bucket"
FILES: dict[str, tuple[bytes, float]] = {}
UPLOADS: dict[str, dict[int, bytes]] = {}
STATE = ["well"]


class Bucket(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "ETag": '"x"', **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    def fails(self) -> bool:
        """Whether the answer is an error, which is sent."""
        bucket = unquote(urlsplit(self.path).path).strip("/").partition("/")[0]
        is_written = self.command in ("PUT", "POST", "DELETE")
        if STATE[0] == "torn" and is_written:
            self.close_connection = True
            return True
        if STATE[0] == "away":
            self.body()
            self.answer(503, b"<Error><Code>SlowDown</Code><Message>away</Message></Error>")
        elif STATE[0] == "refuse" or (STATE[0] == "full" and is_written) or "Credential=wrong/" in str(self.headers):
            self.body()
            self.answer(403, b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>")
        elif bucket != NAME:
            self.body()
            self.answer(404, b"<Error><Code>NoSuchBucket</Code><Message>none</Message></Error>")
        else:
            return False
        return True

    def asked(self) -> tuple[str, dict[str, str]]:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        return unquote(url.path).lstrip("/").partition("/")[2], query

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
        if self.path.startswith("/-/"):
            self.body()
            STATE[0] = self.path.removeprefix("/-/")
            self.answer(200)
            return
        if self.fails():
            return
        (name, query), data = self.asked(), self.body()
        if "uploadId" in query:
            UPLOADS.setdefault(query["uploadId"], {})[int(query["partNumber"])] = data
        elif name:
            FILES[name] = data, time.time()
        self.answer(200)

    def do_POST(self) -> None:
        if self.fails():
            return
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
            FILES[name] = b"".join(part for _, part in sorted(UPLOADS.pop(query["uploadId"]).items())), time.time()
            self.answer(200, b"<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>")

    def do_DELETE(self) -> None:
        if self.fails():
            return
        FILES.pop(self.asked()[0], None)
        self.answer(204)

    def do_GET(self) -> None:
        if self.fails():
            return
        name, query = self.asked()
        if not name:
            self.answer(200, self.listing(query.get("prefix", ""), query.get("delimiter", "")))
            return
        if name not in FILES:
            self.answer(404, b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>")
            return
        data, written = FILES[name]
        about = {"Last_Modified": formatdate(written, usegmt=True)}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            first, last = map(int, wanted.groups())
            self.answer(206, data[first : last + 1], Content_Range=f"bytes {first}-{last}/{len(data)}", **about)
        else:
            self.answer(200, data, **about)

    do_HEAD = do_GET

    def listing(self, prefix: str, delimiter: str) -> bytes:
        below = [name for name in sorted(FILES) if name.startswith(prefix)]
        deeper = [name for name in below if delimiter and delimiter in name[len(prefix) :]]
        folders = {prefix + name[len(prefix) :].split(delimiter)[0] + delimiter for name in deeper}
        files = [name for name in below if name not in deeper]
        told = "".join(
            f"<Contents><Key>{name}</Key><Size>{len(FILES[name][0])}</Size><LastModified>"
            f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(FILES[name][1]))}.{int(FILES[name][1] % 1 * 1000):03d}Z"
            "</LastModified></Contents>"
            for name in files
        ) + "".join(f"<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>" for name in sorted(folders))
        count = len(files) + len(folders)
        return f"<ListBucketResult><KeyCount>{count}</KeyCount><IsTruncated>false</IsTruncated>{told}</ListBucketResult>".encode()


if __name__ == "__main__":
    NAME = sys.argv[2] if sys.argv[2:] else NAME
    server = ThreadingHTTPServer((sys.argv[1] if sys.argv[1:] else "127.0.0.1", 0), Bucket)
    print(server.server_port, flush=True)
    server.serve_forever()
