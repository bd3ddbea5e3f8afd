"""Object storage, opened in one way by all who use it: `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, by pyarrow.

An object is there whole or not at all, also when its writer dies in the middle. A store that does not answer is given up
after some seconds, and what went wrong is said with what to do. Credentials are those of the environment (AWS_…, profile
files, the machine's role); a URI that holds a secret is refused, so that none gets into a config, a log or a report. There
is no append, no rename and no lock.
"""

from __future__ import annotations

import errno
import functools
import io
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from slm_ray.errors import ConfigError, ReadOnlyError, ResourceError

SCHEMES = ("s3", "gs", "gcs")
_CONNECT_S, _REQUEST_S, _ATTEMPTS = 3.0, 10.0, 2
_GCS_PATIENCE, _GCS_PATIENCE_S = "retry_limit_seconds", 15  # the client's own is 15 minutes
_S3_OPTIONS = ("region", "endpoint_override", "scheme")
_WITHOUT_FOLDERS = ("s3", "gcs", "abfs")
_AT_ONCE, _BLOCK_BYTES, _AGAIN_S = 8, 8 << 20, 2.0
_TEXT = 200
_REFUSED = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE|UNAUTHENTICATED|PERMISSION_DENIED|HTTP status 40[13]", re.I
)
_FORBIDDEN = re.compile(r"ACCESS_DENIED|PERMISSION_DENIED", re.I)
_NO_BUCKET = re.compile(r"NO_SUCH_BUCKET|bucket does not exist", re.I)


class StoreAway(ResourceError):
    """The store gives no answer, or refuses one; the text says what it said."""


class MayOnlyRead(StoreAway, ReadOnlyError):
    """The store knows these credentials, and does not let them write."""


class NotThere(StoreAway):
    """There is no object of that name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Object:
    """What a listing says of an object; `written_ns` is the store's clock."""

    size_bytes: int
    written_ns: int


def is_uri(place: str | Path) -> bool:
    """Whether a setting names a place by URI, not by path."""
    return isinstance(place, str) and "://" in place


def is_remote(place: str | Path) -> bool:
    """Whether a setting names object storage."""
    return isinstance(place, str) and place.partition("://")[0] in SCHEMES and "://" in place


def shown(uri: str) -> str:
    """The URI without user and options, for people and records."""
    url = urlsplit(uri)
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}".rstrip("/")


def joined(uri: str, name: str) -> str:
    """The URI of what lies at `name` below `uri`, whose options stay."""
    place, mark, options = uri.partition("?")
    return f"{place.rstrip('/')}/{name}{mark}{options}" if name else uri


def beside(uri: str, ending: str) -> str:
    """The URI whose name has this ending, its options kept."""
    place, mark, options = uri.partition("?")
    return f"{place.rstrip('/')}{ending}{mark}{options}"


def cache_folder() -> Path:
    """Where copies of what lies in a store are kept on this host. A relative XDG_CACHE_HOME is none, as its standard has it."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "slm_ray"


@functools.lru_cache(maxsize=64)
def open_store(uri: str, *, setting: str) -> ObjectStore:
    """The place that a URI names; nothing is asked of it, but for the region of an S3 bucket that nobody names.

    ConfigError for a URI that is none or that holds a secret; `setting` is what it is called there.
    """
    from pyarrow import ArrowException

    try:
        _refuse_secret(uri, setting)
        system, path = _system(uri)
    except (OSError, ValueError, ArrowException) as error:
        raise ConfigError(  # without its options: one that is unknown may be a secret under another name
            f"{setting} {uri.partition('?')[0]!r} is no address of a store ({first_line(error)}); give s3://BUCKET/PREFIX or"
            " gs://BUCKET/PREFIX"
        ) from None
    return ObjectStore(system=system, path=path.rstrip("/"), uri=shown(uri))


def first_line(error: BaseException) -> str:
    """What an error of pyarrow says, short enough for a line; its later lines are headers of the answer."""
    return (str(error).splitlines() or [type(error).__name__])[0][:_TEXT]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ObjectStore:
    """One prefix of a bucket; names are relative to it. For many threads."""

    system: Any
    path: str
    uri: str

    def __str__(self) -> str:
        return self.uri

    def require_bucket(self, setting: str) -> None:
        """ConfigError where there is no such bucket; StoreAway where that cannot be told."""
        from pyarrow import fs

        bucket = self.path.partition("/")[0]
        try:
            found = self.system.get_file_info(bucket)
        except OSError as error:
            raise self._away(error) from None
        if found.type == fs.FileType.NotFound:
            raise ConfigError(f"{setting} {self.uri}: there is no bucket {bucket!r}; make it, or correct the name")

    def listing(self, below: str = "", *, recursive: bool = True) -> dict[str, Object]:
        """The objects below a name, by their names, in order; empty where nothing is. StoreAway."""
        return {name: one for name, one in self._found(below, recursive=recursive) if one is not None}

    def folders(self, below: str = "") -> list[str]:
        """The names that have objects below them, one level deep, in order. StoreAway."""
        return [name for name, one in self._found(below, recursive=False) if one is None]

    def about(self, name: str = "") -> Object | None:
        """What is known of one object; None where there is none of that name. StoreAway."""
        try:
            found = self.system.get_file_info(self._at(name))
        except OSError as error:
            raise self._away(error, name) from None
        return Object(size_bytes=found.size, written_ns=found.mtime_ns or 0) if found.is_file else None

    def open(self, name: str) -> IO[bytes]:
        """An object's bytes, to read on from anywhere in them; OSError."""
        return self.system.open_input_file(self._at(name))  # type: ignore[no-any-return]

    def read(self, name: str) -> bytes:
        """The bytes of a small object. NotThere, StoreAway."""
        try:
            with tempfile.TemporaryDirectory() as scratch:
                self.fetch(name, Path(scratch) / "object")
                return (Path(scratch) / "object").read_bytes()
        except OSError as error:
            raise ResourceError(
                f"cannot read {self._named(name)} by way of {tempfile.gettempdir()}: {first_line(error)}; free the disk, or"
                " set TMPDIR"
            ) from None

    def write(self, name: str, data: bytes) -> None:
        """A small object, in one step. StoreAway."""
        self._send(io.BytesIO(data), name)

    def fetch(self, name: str, target: Path) -> None:
        """An object as a file, in one step. NotThere, StoreAway, ResourceError for a full disk."""
        from pyarrow import fs

        scratch = target.with_name(f".{target.name}.{os.getpid()}.{os.urandom(4).hex()}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            fs.copy_files(
                self._at(name), str(scratch), source_filesystem=self.system,
                destination_filesystem=fs.LocalFileSystem(),
            )  # fmt: skip
            os.replace(scratch, target)
        except FileNotFoundError:
            raise NotThere(f"{self._named(name)} is not there; give what is, or upload it") from None
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                raise ResourceError(
                    f"cannot write {target}: {first_line(error)}; free the disk or let it be written to"
                ) from None
            raise self._away(error, name) from None
        finally:
            scratch.unlink(missing_ok=True)

    def send(self, source: Path, name: str) -> None:
        """A file as an object, in one step. StoreAway; FileNotFoundError where the file is gone."""
        with source.open("rb") as file:
            self._send(file, name)

    def _send(self, file: IO[bytes], name: str) -> None:
        # Not by `copy_files`, which never closes what it writes: an upload that fails at its end would pass for a good one.
        try:
            if self.system.type_name not in _WITHOUT_FOLDERS:
                self.system.create_dir(self._at(name).rpartition("/")[0], recursive=True)
            sink = self.system.open_output_stream(self._at(name))
            while block := file.read(_BLOCK_BYTES):
                sink.write(block)
            sink.close()
        except OSError as error:
            raise self._away(error, name, verb="written") from None

    def send_all(self, folder: Path, below: str, *, within_s: float) -> None:
        """The files of a folder as objects below a name; a store that is away is asked again for so long. StoreAway."""
        until_s = time.monotonic() + within_s
        for path in sorted(one for one in folder.rglob("*") if one.is_file()):
            while True:
                try:
                    self.send(path, f"{below}/{path.relative_to(folder).as_posix()}")
                    break
                except StoreAway:
                    if time.monotonic() > until_s:
                        raise
                time.sleep(_AGAIN_S)

    def fetch_all(self, names: Iterable[str], folder: Path) -> None:
        """Objects as files of a folder, several at once; raises as `fetch`, and asks for no more of them then."""
        threads = ThreadPoolExecutor(_AT_ONCE)
        try:
            for done in [threads.submit(self.fetch, name, folder / name) for name in names]:
                done.result()
        finally:
            threads.shutdown(cancel_futures=True)

    def delete(self, name: str) -> None:
        """Remove an object; one that is not there is removed already. StoreAway."""
        self._remove(self.system.delete_file, name)

    def delete_folder(self, name: str) -> None:
        """Remove all objects below a name. StoreAway."""
        self._remove(self.system.delete_dir, name)

    def _remove(self, remove: Callable[[str], None], name: str) -> None:
        try:
            remove(self._at(name))
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._away(error, name, verb="deleted") from None

    def _found(self, below: str, *, recursive: bool) -> list[tuple[str, Object | None]]:
        from pyarrow import fs

        try:
            found = self.system.get_file_info(
                fs.FileSelector(self._at(below), recursive=recursive, allow_not_found=True)
            )
        except NotADirectoryError:
            return []
        except OSError as error:
            raise self._away(error, below, verb="listed") from None
        start = len(self.path) + 1
        return sorted(
            (one.path[start:], Object(size_bytes=one.size, written_ns=one.mtime_ns or 0) if one.is_file else None)
            for one in found
        )

    def _at(self, name: str) -> str:
        return f"{self.path}/{name}" if name else self.path

    def _named(self, name: str) -> str:
        return f"{self.uri}/{name}" if name else self.uri

    def _away(self, error: OSError, name: str = "", *, verb: str = "read") -> StoreAway:
        said, kind = str(error), StoreAway  # an expired key may look like a forbidden one, but not to whoever writes
        if _NO_BUCKET.search(said):
            fix = "there is no such bucket: make it, or correct the name"
        elif _REFUSED.search(said):
            kind = MayOnlyRead if verb == "written" and _FORBIDDEN.search(said) else StoreAway
            fix = (
                "the store refuses these credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or the profile, or the"
                " role) where this process runs, and look at what they may do"
            )
        else:
            fix = "look at the network, and at the endpoint and region that are set"
        return kind(f"{self._named(name)} cannot be {verb} ({first_line(error)}); {fix}")


def _refuse_secret(uri: str, setting: str) -> None:
    url = urlsplit(uri)
    if url.password or {"access_key", "secret_key", "session_token"} & dict(parse_qsl(url.query)).keys():
        raise ConfigError(
            f"{setting}: the {url.scheme}:// address holds a secret, which would be written into the run's records; name it"
            " without user and password, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment (of every"
            " node of a cluster)"
        )


def _system(uri: str) -> tuple[Any, str]:
    """The file system of a URI, as patient as this house is, and the path in it."""
    from pyarrow import fs

    url = urlsplit(uri)
    if url.scheme != "s3":
        if url.scheme in ("gs", "gcs") and _GCS_PATIENCE not in url.query:
            uri += f"{'&' if url.query else '?'}{_GCS_PATIENCE}={_GCS_PATIENCE_S}"
        return fs.FileSystem.from_uri(uri)  # type: ignore[no-any-return]
    options = dict(parse_qsl(url.query))
    if unknown := options.keys() - set(_S3_OPTIONS):
        raise ValueError(f"unknown options {', '.join(sorted(unknown))}; there are {', '.join(_S3_OPTIONS)}")
    bucket = url.netloc.rpartition("@")[2]
    if not bucket:
        raise ValueError("it names no bucket")
    if "endpoint_override" not in options:
        options |= _named_store() or ({} if "region" in options else _region(bucket))
    system = fs.S3FileSystem(
        anonymous=url.username == "anonymous", connect_timeout=_CONNECT_S, request_timeout=_REQUEST_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
        allow_delayed_open=True,  # a small object in one call
        **options,
    )  # fmt: skip
    return system, unquote(f"{bucket}{url.path}")


def _named_store() -> dict[str, str]:
    """The store that the environment names in place of Amazon's; pyarrow reads these names in a URI's file system alone."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if value := os.environ.get(name):
            url = urlsplit(value)
            if url.scheme not in ("http", "https") or not url.netloc or "@" in url.netloc or url.path.strip("/"):
                given = value.rpartition("@")[2]
                raise ValueError(f"{name} is {given!r}, which is not http://HOST:PORT or https://HOST:PORT")
            return {"endpoint_override": url.netloc, "scheme": url.scheme}
    return {}


def _region(bucket: str) -> dict[str, str]:
    """The region of a bucket of Amazon's, where the environment names none."""
    from pyarrow import fs

    known = any(map(os.environ.get, ("AWS_REGION", "AWS_DEFAULT_REGION")))
    return {} if known else {"region": fs.resolve_s3_region(bucket)}
