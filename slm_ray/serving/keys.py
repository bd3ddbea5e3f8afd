"""Who has a key: the deployer's own, and those of a file, each with the models it may ask and its tokens per minute.

    KEYS_FILE    one JSON line per key that was added or revoked; only ever appended to, readable by its owner alone

A key is 43 random characters, so its plain SHA-256 is enough, and the key itself is shown once and written nowhere. A
change counts within a second, on every ingress that sees the file. Where the file is gone, damaged or open to others
nobody whose key is in it gets in: a revoked key must not come back by an accident. Nothing here knows Ray.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import hmac
import math
import os
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import StringConstraints, TypeAdapter, ValidationError

from slm_ray.errors import ConfigError, DataError, ResourceError
from slm_ray.storage import growing_jsonl, row_of

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
_LOOKED_AT_EVERY_S = 0.5
ALL_MODELS = ("*",)
DEPLOYER = "SLM_RAY_API_KEY"  # the name of the deployer's own key


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key. `models` are names as clients send them, with `*` and `?`; None tokens a minute: as many as it likes."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}  # a misspelt `models` must not mean all

    name: str
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
    models: tuple[str, ...] = ALL_MODELS
    tokens_per_minute: int | None = None
    added: str = ""
    revoked: str = ""

    def may_ask(self, model: str) -> bool:
        """Whether it may ask a model, by its name without the base's in front; a version is part of its model."""
        names = {model, model.partition("@")[0]}
        return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in self.models)


_KEY = TypeAdapter(Key)


def key_digest(key: str) -> str:
    """What stands for an API key outside the process that was given it."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def read_keys(path: str | Path) -> tuple[Key, ...]:
    """Every key that was added and not revoked, in that order.

    DataError with file:line for a damaged file; ConfigError where there is none, or where others may read it.
    """
    return tuple(key for key in _history(Path(path)).values() if not key.revoked)


def add_key(
    path: str | Path, name: str, *, models: Sequence[str] = ALL_MODELS, tokens_per_minute: int | None = None
) -> str:
    """A new key, which is nowhere else from then on. ConfigError for a name that is taken or is none."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is no name of a key: use letters, digits, '.', '_', '-' and '@', at most 64 of them"
        )
    if not models or not all(model.strip() for model in models):
        raise ConfigError(f"models {list(models)!r}: name one or more, or leave it out for all")
    if any(":" in model for model in models):
        raise ConfigError(f"models {list(models)!r}: name an adapter or alias without the base and ':' in front")
    if tokens_per_minute is not None and tokens_per_minute < 1:
        raise ConfigError(f"tokens_per_minute {tokens_per_minute}: 1 or more, or leave it out for no limit")
    target = Path(path)
    try:
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise ResourceError(
            f"cannot write {target}: {error.strerror}; name a file in a folder that you may write to"
        ) from None
    _check_file(target)
    secret = f"slm-{secrets.token_urlsafe(32)}"
    key = Key(
        name=name, sha256=key_digest(secret), models=tuple(models), tokens_per_minute=tokens_per_minute, added=_now()
    )
    with growing_jsonl(target) as file:
        taken = _fold(target, file.rows).get(name)
        if taken is not None and not taken.revoked:
            raise ConfigError(f"{target} has a key named {name!r} already: revoke it first, or choose another name")
        file.append(dataclasses.asdict(key))
    return secret


def revoke_key(path: str | Path, name: str) -> Key:
    """The key named so, from now on worth nothing. ConfigError where there is none."""
    target = Path(path)
    _check_file(target)
    with growing_jsonl(target) as file:
        keys = _fold(target, file.rows)
        if name not in keys or keys[name].revoked:
            known = ", ".join(key.name for key in keys.values() if not key.revoked) or "none"
            raise ConfigError(f"{target} has no key named {name!r}; it has {known}")
        revoked = dataclasses.replace(keys[name], revoked=_now())
        file.append(dataclasses.asdict(revoked))
    return revoked


class KeyRing:
    """Whose key a request shows: the deployer's, by its digest, or one of the file's, read again when that has changed."""

    def __init__(
        self, *, own_digest: str | None, file: str | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._own = Key(name=DEPLOYER, sha256=own_digest) if own_digest else None
        self._file = Path(file) if file else None
        self._clock = clock
        self._looked_at = -math.inf
        self._seen: object = None
        self._keys: tuple[Key, ...] = ()
        self._problem: DataError | ConfigError | None = None

    def whose(self, shown: Sequence[str]) -> Key | None:
        """The key that one of `shown` is; every key is compared, in the same time whatever was shown.

        DataError or ConfigError where none of them is the deployer's and the file cannot be believed.
        """
        digests = [key_digest(key) for key in shown if key]
        if self._own is not None and _same(digests, self._own):
            return self._own
        if self._file is not None:
            self._look(self._file)
        if self._problem is not None:
            raise self._problem
        matching = [key for key in self._keys if _same(digests, key)]
        return matching[0] if matching else None

    def _look(self, file: Path) -> None:
        if self._clock() - self._looked_at < _LOOKED_AT_EVERY_S:
            return
        self._looked_at = self._clock()
        try:
            status = os.stat(file)
            seen: object = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
            if seen != self._seen:
                self._keys, self._problem = read_keys(file), None
        except OSError as error:
            seen, self._problem = None, ConfigError(f"cannot read {file}: {error.strerror}")
        except (DataError, ConfigError) as error:
            self._problem = error
        self._seen = seen


class TokenBudget:
    """A bucket of tokens that fills up in a minute. What is taken before an answer is settled by what it used."""

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._level = per_minute
        self._at = clock()

    def take(self, tokens: float) -> float:
        """0.0, and they are taken; or the seconds until there are that many (inf: never) and nothing is taken."""
        now = self._clock()
        self._level = min(self.per_minute, self._level + (now - self._at) * self.per_minute / 60)
        self._at = now
        if tokens > self.per_minute:
            return math.inf
        if tokens <= self._level:
            self._level -= tokens
            return 0.0
        return (tokens - self._level) * 60 / self.per_minute

    def settle(self, taken: float, used: float) -> None:
        """Give back what was not used; what was used beyond comes out of the minutes that follow."""
        self._level = min(self.per_minute, self._level + taken - used)


def _same(digests: Sequence[str], key: Key) -> bool:
    matches = [hmac.compare_digest(digest, key.sha256) for digest in digests]
    return any(matches)


def _history(path: Path) -> dict[str, Key]:
    _check_file(path)
    raw = path.read_bytes()
    lines = raw[: raw.rfind(b"\n") + 1].split(b"\n")  # a last line without its end is not written yet
    fix = "mend the line or remove it"
    rows = [(n, row_of(line, where=f"{path}:{n}", fix=fix)) for n, line in enumerate(lines, start=1) if line.strip()]
    return _fold(path, rows)


def _check_file(path: Path) -> None:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise ConfigError(
            f"cannot read the keys in {path}: {error.strerror}; `slm-ray keys add` makes the file"
        ) from None
    if not path.is_file():
        raise ConfigError(f"{path} is no file; `slm-ray keys add` makes one")
    if mode & 0o077:
        raise ConfigError(f"others may read or write {path} (mode {mode & 0o777:o}): chmod 600 {path}")


def _fold(path: Path, rows: Sequence[tuple[int, dict[str, Any]]]) -> dict[str, Key]:
    """What the lines come to: the last one that names a key says what it is."""
    keys = {}
    for number, row in rows:
        try:
            key = _KEY.validate_python(row)
        except ValidationError as error:
            place = ".".join(str(step) for step in error.errors()[0]["loc"])
            raise DataError(
                f"{path}:{number}: {place}: {error.errors()[0]['msg']}; mend the line or remove it"
            ) from None
        keys[key.name] = key
    return keys


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
