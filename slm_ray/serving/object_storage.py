"""Adapters that lie in object storage: `s3://bucket/prefix` (or `gs://`) in the place of a folder.

    PREFIX/ID/adapter_config.json, adapter_model.safetensors, manifest.json, …
    PREFIX/promotions.jsonl

Only published adapters are served from there: their ids never change their meaning, which a name over an object that is
replaced would. What there is comes from a listing that is kept for `LISTED_FOR_S` seconds; so an upload, a deletion and a
promotion are seen within that time. While the store does not answer, what was listed before goes on being served from the
copies on this node, and any other name is `StoreAway`, in words. Credentials are those of the environment, never of the
URI. Nothing here knows Ray or vLLM.
"""

from __future__ import annotations

import functools
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from slm_ray import adapters
from slm_ray.errors import ConfigError, DataError, ResourceError

LISTED_FOR_S = 2.0
_CONNECT_S, _REQUEST_S = 2.0, 10.0
_S3_OPTIONS = ("region", "endpoint_override", "scheme")
_NEEDED = {adapters.SETTINGS, adapters.WEIGHTS, adapters.MANIFEST}


class StoreAway(ResourceError):
    """The store gives no answer; the text says what it said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listing:
    """What the store held: the files of each adapter, and the aliases, or why they cannot be read."""

    files: Mapping[str, frozenset[str]]
    history: tuple[int, int] | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    damaged: str = ""

    def adapters(self) -> list[str]:
        return sorted(name for name, files in self.files.items() if adapters.is_id(name) and files >= _NEEDED)


def root(adapters_dir: str) -> str:
    """An absolute folder, or the URI as it is; ConfigError for a URI that is none or that holds a secret."""
    if "://" not in adapters_dir:
        return str(Path(adapters_dir).expanduser().absolute())
    _system(adapters_dir)
    return adapters_dir.rstrip("/")


def bucket(adapters_dir: str | Path) -> Bucket | None:
    """The store that a URI names, one for each URI and process; None for a folder."""
    text = str(adapters_dir)
    return _bucket(text) if "://" in text else None


@functools.cache
def _bucket(uri: str) -> Bucket:
    return Bucket(uri)


class Bucket:
    """One prefix of a bucket; for many threads."""

    def __init__(self, uri: str) -> None:
        self._uri = uri.partition("?")[0]
        self._system, self._prefix = _system(uri)
        self._refreshing = threading.Lock()
        self._listing = _Listing(files={})
        self._listed_at: float | None = None  # when the store answered last
        self._asked_at = -LISTED_FOR_S
        self._problem = ""

    def holds(self, adapter: str) -> bool:
        """Whether the adapter is there; StoreAway when that cannot be told."""
        return adapter in self._current(adapter).adapters()

    def ids(self) -> list[str]:
        """The adapters that are there, or were when the store answered last."""
        return self._current(None).adapters()

    def aliases(self) -> Mapping[str, str]:
        """Alias to adapter id; DataError while the history is damaged, StoreAway before it was ever read."""
        listing = self._current(None)
        if listing.damaged:
            raise DataError(listing.damaged)
        return listing.aliases

    def copy(self, adapter: str, target: Path, names: tuple[str, ...]) -> None:
        """The files of `names` that the adapter has, into the folder `target`; StoreAway when they do not come."""
        held = self._current(adapter).files.get(adapter, frozenset())
        for name in names:
            if name in held:
                self._fetch(f"{adapter}/{name}", target / name)

    def _current(self, wanted: str | None) -> _Listing:
        """A listing young enough; for what an older one knows already that one, with a younger on its way."""
        if time.monotonic() - self._asked_at <= LISTED_FOR_S and not self._refreshing.locked():
            return self._answer(wanted)
        if self._listed_at is not None and (wanted is None or wanted in self._listing.files):
            if self._refreshing.acquire(blocking=False):
                threading.Thread(target=self._refresh_and_release, daemon=True).start()
            return self._listing
        with self._refreshing:
            if time.monotonic() - self._asked_at > LISTED_FOR_S:
                self._refresh()
        return self._answer(wanted)

    def _answer(self, wanted: str | None) -> _Listing:
        known = self._listed_at is not None and (wanted is None or wanted in self._listing.files)
        if self._problem and not known:
            raise StoreAway(self._problem)
        return self._listing

    def _refresh_and_release(self) -> None:
        try:
            self._refresh()
        finally:
            self._refreshing.release()

    def _refresh(self) -> None:
        try:
            self._listing, self._problem = self._list(), ""
            self._listed_at = time.monotonic()
        except (OSError, StoreAway) as error:
            self._problem = f"{self._uri} gives no list of adapters ({str(error).splitlines()[0][:200]})"
        self._asked_at = time.monotonic()

    def _list(self) -> _Listing:
        from pyarrow import fs

        files: dict[str, set[str]] = {}
        history: tuple[int, int] | None = None
        found = self._system.get_file_info(fs.FileSelector(self._prefix, recursive=True, allow_not_found=True))
        for info in found:
            adapter, _, name = info.path.removeprefix(self._prefix).strip("/").partition("/")
            if info.is_file and name and "/" not in name:
                files.setdefault(adapter, set()).add(name)
            elif info.is_file and adapter == adapters.HISTORY:
                history = (info.mtime_ns, info.size)
        listed = {adapter: frozenset(names) for adapter, names in files.items()}
        if history == self._listing.history:
            return _Listing(files=listed, history=history, aliases=self._listing.aliases, damaged=self._listing.damaged)
        aliases, damaged = self._promoted() if history else ({}, "")
        return _Listing(files=listed, history=history, aliases=aliases, damaged=damaged)

    def _promoted(self) -> tuple[Mapping[str, str], str]:
        with tempfile.TemporaryDirectory() as scratch:
            self._fetch(adapters.HISTORY, Path(scratch) / adapters.HISTORY)
            try:
                return adapters.promotions(scratch).aliases, ""
            except DataError as error:
                return {}, str(error).replace(scratch, self._uri)

    def _fetch(self, name: str, target: Path) -> None:
        from pyarrow import fs

        # Not by an open stream: pyarrow holds the interpreter while it opens one, and a dead store would stop all answers.
        try:
            fs.copy_files(
                f"{self._prefix}/{name}", str(target), source_filesystem=self._system,
                destination_filesystem=fs.LocalFileSystem(),
            )  # fmt: skip
        except OSError as error:
            raise StoreAway(f"{self._uri}/{name} cannot be read ({str(error).splitlines()[0][:200]})") from None


def _system(uri: str) -> tuple[Any, str]:
    """The file system of a URI and the path in it."""
    from pyarrow import ArrowException, fs

    url = urlsplit(uri)
    if url.password:
        raise ConfigError(
            f"serving.adapters_dir: the {url.scheme}:// address holds a secret; name it without user and password, and set"
            " AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment of the cluster's nodes"
        )
    options = dict(parse_qsl(url.query))
    path = f"{url.hostname or ''}{url.path}".rstrip("/")
    try:
        if url.scheme == "s3":
            if unknown := set(options) - set(_S3_OPTIONS):
                raise ValueError(f"unknown options {', '.join(sorted(unknown))}; there are {', '.join(_S3_OPTIONS)}")
            patience = fs.AwsStandardS3RetryStrategy(max_attempts=2)
            return fs.S3FileSystem(
                anonymous=url.username == "anonymous", connect_timeout=_CONNECT_S, request_timeout=_REQUEST_S,
                retry_strategy=patience, **options,
            ), path  # fmt: skip
        if url.scheme in ("gs", "gcs") and "retry_limit_seconds" not in options:  # the client's own is 15 minutes
            uri += f"{'&' if url.query else '?'}retry_limit_seconds={_REQUEST_S:g}"
        system, path = fs.FileSystem.from_uri(uri)
        return system, path.rstrip("/")
    except (OSError, ValueError, ArrowException) as error:
        raise ConfigError(
            f"serving.adapters_dir {uri!r} is no address of a store ({str(error).splitlines()[0]}); give s3://BUCKET/PREFIX"
        ) from None
