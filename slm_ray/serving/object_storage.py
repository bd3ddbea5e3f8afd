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

from slm_ray import adapters
from slm_ray.errors import DataError, ResourceError
from slm_ray.remote import StoreAway, address, open_store

LISTED_FOR_S = 2.0
_UNKNOWN_FOR_S = 0.25  # an adapter that a listing lacks may have been published since, and is asked for at once
_SETTING = "serving.adapters_dir"
_NEEDED = {adapters.SETTINGS, adapters.WEIGHTS, adapters.MANIFEST}


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
    """An absolute folder, or the URI, also of a copy; ConfigError for a URI that is none or that holds a secret."""
    adapters_dir = address(adapters_dir)
    if "://" not in adapters_dir:
        return str(Path(adapters_dir).expanduser().absolute())
    open_store(adapters_dir, setting=_SETTING)
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
        self._store = open_store(uri, setting=_SETTING)
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
                self._store.fetch(f"{adapter}/{name}", target / name)

    def _current(self, wanted: str | None) -> _Listing:
        """A listing young enough; for what an older one knows already that one, with a younger on its way."""
        is_known = self._listed_at is not None and (wanted is None or wanted in self._listing.files)
        young_s = LISTED_FOR_S if is_known or self._problem else min(LISTED_FOR_S, _UNKNOWN_FOR_S)
        if time.monotonic() - self._asked_at <= young_s and not self._refreshing.locked():
            return self._answer(wanted)
        if is_known:
            if self._refreshing.acquire(blocking=False):
                threading.Thread(target=self._refresh_and_release, daemon=True).start()
            return self._listing
        with self._refreshing:
            if time.monotonic() - self._asked_at > young_s:
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
        except (ResourceError, OSError) as error:  # the store, or the disk on which its history is read
            self._problem = f"{self._store} gives no list of adapters: {error}"
        self._asked_at = time.monotonic()

    def _list(self) -> _Listing:
        files: dict[str, set[str]] = {}
        history: tuple[int, int] | None = None
        for path, one in self._store.listing().items():
            adapter, _, name = path.partition("/")
            if name and "/" not in name:
                files.setdefault(adapter, set()).add(name)
            elif adapter == adapters.HISTORY:
                history = (one.written_ns, one.size_bytes)
        listed = {adapter: frozenset(names) for adapter, names in files.items()}
        if history == self._listing.history:
            return _Listing(files=listed, history=history, aliases=self._listing.aliases, damaged=self._listing.damaged)
        aliases, damaged = self._promoted() if history else ({}, "")
        return _Listing(files=listed, history=history, aliases=aliases, damaged=damaged)

    def _promoted(self) -> tuple[Mapping[str, str], str]:
        with tempfile.TemporaryDirectory() as scratch:
            self._store.fetch(adapters.HISTORY, Path(scratch) / adapters.HISTORY)
            try:
                return adapters.promotions(scratch).aliases, ""
            except DataError as error:
                return {}, str(error).replace(scratch, self._store.uri)
