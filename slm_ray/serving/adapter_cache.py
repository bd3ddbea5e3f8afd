"""Adapters as files: which ones a folder holds, what each is called for good, and a checked copy on this node's disk.

    ADAPTERS_DIR/ID/adapter_config.json, adapter_model.safetensors[, manifest.json]

A published adapter (ID ends in 12 hex digits and has a manifest) never changes, so its name is its ID. A folder placed by
hand may change, so its name is ID@VERSION, where the version comes from its files' identity: replaced files are another
adapter. An alias stands for the published adapter that was promoted last. vLLM reads files again in the middle of a step and dies when they are gone, so it is only ever given a copy that
nobody else touches. Nothing outside the folder is ever read: names are checked here, and what a symbolic link leads to
elsewhere is no adapter. In the folder's place there may be a bucket (`object_storage`), of published adapters only. Nothing
here knows Ray or vLLM.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from slm_ray import adapters, storage
from slm_ray.errors import AdapterError, DataError, ResourceError
from slm_ray.parity import CANDIDATE
from slm_ray.remote import is_uri, joined
from slm_ray.serving import object_storage

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")  # no "/", ":" or "@", and no leading "."
_NAME = re.compile(rf"{_ID.pattern}(@[0-9a-f]{{8}}|{CANDIDATE})?")
_PUBLISHED = re.compile(r".*-[0-9a-f]{12}")
_FILES = (adapters.SETTINGS, adapters.WEIGHTS, adapters.MANIFEST, adapters.PROMPTS, adapters.TEMPLATE)
_PREFIX = "slm-ray-adapters-"
MAX_BYTES = 8 * 2**30  # some fifty adapters of an 8B base at rank 32


def served_name(adapters_dir: str | Path, adapter: str) -> str | None:
    """What the engine calls the adapter that the folder holds right now; None when it holds no such adapter.

    An id that `parity.CANDIDATE` follows is an adapter that is being proved: it is served under that name, and not listed.
    """
    if adapter.endswith(CANDIDATE):
        root, name = _place(adapters_dir, adapter)
        return adapter if served_name(root, name) == name else None
    if (store := object_storage.bucket(adapters_dir)) is not None:
        return adapter if adapters.is_id(adapter) and store.holds(adapter) else None
    if not _ID.fullmatch(adapter):
        return None
    home = Path(adapters_dir) / adapter
    try:
        found = [os.stat(adapters.inside(home / name, adapters_dir)) for name in (adapters.SETTINGS, adapters.WEIGHTS)]
    except OSError:
        return None
    if _published(home):
        return adapter
    identity = repr([(file.st_mtime_ns, file.st_ctime_ns, file.st_size, file.st_ino) for file in found])
    return f"{adapter}@{hashlib.sha256(identity.encode()).hexdigest()[:8]}"


def served_names(adapters_dir: str | Path) -> dict[str, str]:
    """Adapter id to served name, for every adapter in the folder; an absent folder holds none."""
    if (store := object_storage.bucket(adapters_dir)) is not None:
        return {adapter: adapter for adapter in store.ids()}
    try:
        folders = sorted(os.listdir(adapters_dir))
    except OSError:
        return {}
    return {folder: name for folder in folders if (name := served_name(adapters_dir, folder)) is not None}


class ServedNames:
    """What the names that clients send stand for right now: adapters first, then aliases, so that none hides an adapter."""

    def __init__(self, adapters_dir: str | Path) -> None:
        self._adapters_dir = adapters_dir
        store = object_storage.bucket(adapters_dir)
        self._aliases = adapters.AliasTable(adapters_dir).now if store is None else store.aliases

    def resolve(self, name: str) -> str:
        """What the engine calls the adapter that `name` (ID, ID@VERSION or an alias) stands for.

        FileNotFoundError says in words that goes on after the name why there is none; DataError while the history of
        aliases is damaged, of names that are no adapter's only; ResourceError while a bucket cannot say.
        """
        adapter, _, version = (name, "", "") if name.endswith(CANDIDATE) else name.partition("@")
        served = served_name(self._adapters_dir, adapter)
        if served is not None and (not version or served == name):
            return served
        promoted = None if served or version else self._aliases().get(adapter)
        if promoted is None:
            raise FileNotFoundError("does not exist")
        if (served := served_name(self._adapters_dir, promoted)) is None:
            raise FileNotFoundError(f"stands for {promoted}, which was deleted")
        return served

    def listed(self) -> dict[str, str]:
        """Adapters and then aliases, each with what the engine calls it; no aliases while their history is damaged."""
        names: Mapping[str, str] = {}
        aliases: Mapping[str, str] = {}
        with contextlib.suppress(DataError, ResourceError):  # who asks for one is told
            names = served_names(self._adapters_dir)
            aliases = self._aliases()
        return {**names} | {alias: names[of] for alias, of in aliases.items() if of in names and alias not in names}


class NodeLocalCache:
    """Copies of adapters in a temporary folder of this process, within `max_bytes`: those that were used last.

    A copy that is held stays, whatever comes: the engine reads it again while it answers, and dies when it is gone. So what
    is held may be more than `max_bytes`. Safe among threads. Folders that killed processes left behind are removed by the
    next one.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        _sweep(Path(tempfile.gettempdir()))
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._owned = contextlib.ExitStack()
        self._owned.enter_context(storage.lock(self.folder))
        self._max_bytes = max_bytes
        self._guard = threading.Lock()
        self._sizes: dict[str, int] = {}  # of the copies, the least recently used first
        self._holders: Counter[str] = Counter()

    @contextlib.contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Keep the copy of `name` while the block runs, from when it is fetched."""
        with self._guard:
            self._holders[name] += 1
        try:
            yield
        finally:
            with self._guard:
                self._holders[name] -= 1
                if not self._holders[name]:
                    del self._holders[name]
                self._make_room(0)

    def touch(self, name: str) -> bool:
        """Whether the copy of `name` is here; it is the one used last from now on."""
        with self._guard:
            if name not in self._sizes:
                return False
            self._sizes[name] = self._sizes.pop(name)
            return True

    def fetch(self, adapters_dir: str | Path, name: str, base: str | Path) -> Path:
        """The copy of the adapter served as `name`, made and checked against the `base` folder when it is not there.

        FileNotFoundError when the shared folder does not hold it (any more); AdapterError when it is damaged or another
        base's; ResourceError when a bucket does not hand it over. Without `hold` around it the copy may be gone by the time
        it is read.
        """
        if not _NAME.fullmatch(name):
            raise FileNotFoundError(f"there is no adapter {name!r}")
        copy = self.folder / name
        if self.touch(name):
            return copy
        root, adapter = _place(adapters_dir, name)
        here = name.removesuffix(CANDIDATE)
        if served_name(root, adapter) != here:
            raise FileNotFoundError(f"adapter {name!r} is gone or was replaced")
        scratch = Path(tempfile.mkdtemp(dir=self.folder, prefix=".copy-"))
        try:
            self._copy(root, adapter, scratch / adapter)
            if served_name(root, adapter) != here:
                raise FileNotFoundError(f"adapter {name!r} is gone or was replaced")
            check(scratch / adapter, base)
            size = sum(file.stat().st_size for file in (scratch / adapter).iterdir())
            with self._guard:
                if name not in self._sizes:  # else another thread was first
                    self._make_room(size)
                    os.rename(scratch / adapter, copy)
                    self._sizes[name] = size
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return copy

    def close(self) -> None:
        """Remove all copies."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._owned.close()

    def _copy(self, root: str | Path, adapter: str, target: Path) -> None:
        try:
            _copy(root, adapter, target)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            with self._guard:
                self._make_room(self._max_bytes)
            shutil.rmtree(target, ignore_errors=True)
            try:
                _copy(root, adapter, target)
            except OSError as again:
                raise ResourceError(
                    f"no adapter can be copied to {self.folder.parent}: {again.strerror}; free it"
                ) from None

    def _make_room(self, wanted: int) -> None:
        """Remove the least recently used copies that nobody holds, until `wanted` bytes more are within the limit."""
        too_much = sum(self._sizes.values()) + wanted - self._max_bytes
        for name in [name for name in self._sizes if not self._holders[name]]:
            if too_much <= 0:
                return
            too_much -= self._sizes.pop(name)
            shutil.rmtree(self.folder / name, ignore_errors=True)


def check(home: Path, base: str | Path) -> None:
    """AdapterError unless `home` holds a whole LoRA adapter of the `base` folder, every tensor of it looked at."""
    if _published(home):
        adapters.verify(home.parent, home.name, base)
    elif (home / adapters.MANIFEST).is_file():
        trained_on = storage.read_json(home / adapters.MANIFEST).get("base_fingerprint")
        if trained_on != adapters.base_fingerprint(base):
            raise AdapterError(
                f"adapter {home.name} was trained on another base (fingerprint {trained_on}); give its own"
            )
    settings = storage.read_json(home / adapters.SETTINGS)
    if not isinstance(settings, dict):
        raise AdapterError(f"{adapters.SETTINGS} of {home.name} is no PEFT LoRA configuration; save the adapter again")
    adapters.check_tensors(home / adapters.WEIGHTS, settings, adapters.base_shapes(base))


def _place(adapters_dir: str | Path, name: str) -> tuple[str | Path, str]:
    """The folder or bucket that holds the adapter served as `name`, and what it is called there."""
    if name.endswith(CANDIDATE):
        folder = str(adapters_dir)
        root = joined(folder, adapters.CANDIDATES) if is_uri(folder) else Path(folder) / adapters.CANDIDATES
        return root, name.removesuffix(CANDIDATE)
    return adapters_dir, name.partition("@")[0]


def _published(home: Path) -> bool:
    return bool(_PUBLISHED.fullmatch(home.name)) and (home / adapters.MANIFEST).is_file()


def _copy(adapters_dir: str | Path, adapter: str, target: Path) -> None:
    target.mkdir()
    if (store := object_storage.bucket(adapters_dir)) is not None:
        store.copy(adapter, target, _FILES)
        return
    for name in _FILES:
        with contextlib.suppress(FileNotFoundError):  # a missing file shows in the check that follows
            shutil.copyfile(adapters.inside(Path(adapters_dir) / adapter / name, adapters_dir), target / name)


def _sweep(folder: Path) -> None:
    for left in folder.glob(f"{_PREFIX}*"):
        with contextlib.suppress(ResourceError), storage.lock(left):  # refused while its owner lives
            shutil.rmtree(left, ignore_errors=True)
