"""What adapters are promoted as: names that clients ask for, each standing for one published adapter, with their history.

    ADAPTERS_DIR/promotions.jsonl    one line per promotion, roll-back and deletion; only ever appended to

The last line that names an alias says what it stands for. A line is there whole or not at all, whenever its writer dies, and
of two writers one waits for the other. An alias never hides an adapter's id: ids are looked up first, and no alias looks
like one. What an alias stands for may be deleted by force; then it stands for nothing that answers.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from slm_ray.adapters.manifest import MANIFEST
from slm_ray.adapters.registry import NAME, Checker, adapter_ids, is_id, load_manifest, unknown_adapter
from slm_ray.errors import AdapterError, ConfigError, DataError, ResourceError
from slm_ray.remote import delete_sent, one_file
from slm_ray.storage import GrowingFile, Reread, growing_jsonl, grown_rows, writer

HISTORY = "promotions.jsonl"
Action = Literal["promote", "rollback", "delete"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the history. `adapter` is what `alias` stands for from then on (None: nothing), `before` what it did.

    Of a deletion `adapter` is what was deleted and `alias` is None.
    """

    at: str
    action: Action
    alias: str | None
    adapter: str | None
    before: str | None
    by: str
    reason: str


_ENTRY = TypeAdapter(Entry)
_MEND = "mend the line or remove it"
_ALIAS_RULE = "use letters, digits, '.', '_' and '-', at most 80 of them"


class Promotions:
    """What every alias stands for now, and what it would stand for after a roll-back; a fold over the history."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries = tuple(entries)
        self._stacks: dict[str, list[str]] = {}
        for entry in self.entries:
            if entry.alias is None:
                continue
            stack = self._stacks.setdefault(entry.alias, [])
            if entry.action == "promote" and entry.adapter is not None:
                stack.append(entry.adapter)
            while entry.action == "rollback" and stack and stack[-1] != entry.adapter:
                stack.pop()

    @property
    def aliases(self) -> dict[str, str]:
        """Alias to adapter id, in the order of names."""
        return {alias: stack[-1] for alias, stack in sorted(self._stacks.items()) if stack}

    def before(self, alias: str) -> list[str]:
        """What the alias stood for before what it stands for now, the latest first."""
        return self._stacks.get(alias, [])[-2::-1]

    def aliases_of(self, adapter_id: str) -> list[str]:
        """The aliases that stand for an adapter."""
        return [alias for alias, adapter in self.aliases.items() if adapter == adapter_id]

    def back_to(self, alias: str, published: Collection[str]) -> str | None:
        """What a roll-back of an alias leads to: the latest of `published` that it stood for and does not now, or nothing."""
        standing = self.aliases.get(alias)
        return next((one for one in self.before(alias) if one in published and one != standing), None)

    def held_by(self, adapter_id: str, published: Collection[str]) -> list[str]:
        """Why an adapter is not to be deleted, in words: it is promoted, or what a roll-back leads to."""
        held = [f"it is promoted as {alias!r}" for alias in self.aliases_of(adapter_id)]
        back = [alias for alias in self.aliases if self.back_to(alias, published) == adapter_id]
        return held + [f"a roll-back of {alias!r} leads to it" for alias in back]


class AliasTable:
    """Alias to adapter id as the folder says now, read again only when the history has grown. For an endpoint's front."""

    def __init__(self, adapters_dir: str | Path) -> None:
        self._aliases = Reread(Path(adapters_dir) / HISTORY, lambda path: promotions(path.parent).aliases)

    def now(self) -> Mapping[str, str]:
        """The table; empty without a history. DataError with file:line when that is damaged."""
        return self._aliases.now()


def promotions(adapters_dir: str | Path) -> Promotions:
    """The history of a folder; empty where there is none. A last line without its end is not written yet, and is no line."""
    root = Path(adapters_dir)
    return _state(root, grown_rows(root / HISTORY))


def resolve(adapters_dir: str | Path, name: str) -> str:
    """The id of a published adapter, by its id or by an alias; AdapterError with what is known when there is none."""
    if is_id(name):
        return load_manifest(adapters_dir, name).id
    aliases = promotions(adapters_dir).aliases
    if name not in aliases:
        raise unknown_adapter(adapters_dir, name, aliases)
    return load_manifest(adapters_dir, aliases[name]).id


def promote(adapters_dir: str | Path, name: str, *, alias: str | None = None, reason: str = "") -> Entry:
    """Let `alias` (the adapter's track when None) stand for an adapter, given by id or alias; what it is from now on.

    Its files and tensors are checked first: AdapterError when it is damaged or cannot be served. Standing for it already
    changes nothing. ConfigError for an alias that a client could take for an adapter.
    """
    root = Path(adapters_dir)
    adapter_id = resolve(root, name)
    manifest = load_manifest(root, adapter_id)
    wanted = manifest.track if alias is None else alias
    _check_alias(root, wanted)
    Checker(root).check(adapter_id)
    with one_file(root / HISTORY) as history, growing_jsonl(history) as file:
        state = _state(root, file.rows)
        load_manifest(root, adapter_id)  # nobody deletes it while the history is ours
        standing = state.aliases.get(wanted)
        entry = _now("promote", alias=wanted, adapter=adapter_id, before=standing, reason=reason)
        if standing != adapter_id:
            file.append(dataclasses.asdict(entry))
    return entry


def roll_back(adapters_dir: str | Path, alias: str, *, reason: str = "") -> Entry:
    """Let an alias stand for what it stood for before: the latest that is still published, or nothing when there is none."""
    root = Path(adapters_dir)
    aliases = promotions(root).aliases
    if alias not in aliases:
        raise _unknown_alias(alias, aliases)
    with one_file(root / HISTORY) as history, growing_jsonl(history) as file:
        state = _state(root, file.rows)
        if (standing := state.aliases.get(alias)) is None:
            raise _unknown_alias(alias, state.aliases)
        target = state.back_to(alias, set(adapter_ids(root)))
        entry = _now("rollback", alias=alias, adapter=target, before=standing, reason=reason)
        file.append(dataclasses.asdict(entry))
    return entry


def delete(adapters_dir: str | Path, adapter_id: str, *, force: bool = False, reason: str = "") -> Entry:
    """Remove a published adapter; AdapterError when it is promoted or what a roll-back leads to, unless `force`.

    It is gone in one step: an endpoint that holds it in memory ends the requests that run and answers 404 from then on.
    """
    root = Path(adapters_dir)
    _check_published(root, adapter_id)  # before a history is begun
    with one_file(root / HISTORY) as history, growing_jsonl(history) as file:
        _check_published(root, adapter_id)
        if (held := _state(root, file.rows).held_by(adapter_id, set(adapter_ids(root)))) and not force:
            raise AdapterError(
                f"{adapter_id} is not deleted: {' and '.join(held)}; promote another one, roll back, or add --force"
            )
        entry = _now("delete", alias=None, adapter=adapter_id, before=None, reason=reason)
        hidden = _hide(root, adapter_id)
        delete_sent(root / adapter_id, first=MANIFEST)
        try:
            file.append(dataclasses.asdict(entry))
        except ResourceError:  # a full disk: what is deleted makes room for the line that says so
            shutil.rmtree(hidden, ignore_errors=True)
            _append_late(file, entry)
        shutil.rmtree(hidden, ignore_errors=True)
    return entry


def _check_alias(root: Path, alias: str) -> None:
    if not NAME.fullmatch(alias):
        raise ConfigError(f"the alias {alias!r} is no name that a client can ask for: {_ALIAS_RULE}")
    if is_id(alias):
        raise ConfigError(
            f"the alias {alias!r} looks like an adapter's id (12 hex digits at its end); choose another name"
        )
    if os.path.lexists(root / alias):
        raise ConfigError(
            f"the alias {alias!r} is the name of a folder in {root}, which answers to it; choose another name"
        )


def _unknown_alias(alias: str, aliases: Mapping[str, str]) -> AdapterError:
    known = ", ".join(aliases) or "none; slm-ray adapters promote ID --as NAME makes one"
    return AdapterError(f"nothing is promoted as {alias!r}; aliases: {known}")


def _state(root: Path, rows: Iterable[tuple[int, dict[str, Any]]]) -> Promotions:
    return Promotions(_entry(row, where=f"{root / HISTORY}:{number}") for number, row in rows)


def _entry(row: Mapping[str, Any], *, where: str) -> Entry:
    try:
        return _ENTRY.validate_python(row)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise DataError(f"{where}: {'.'.join(map(str, wrong['loc']))}: {wrong['msg']}; {_MEND}") from None


def _now(action: Action, *, alias: str | None, adapter: str | None, before: str | None, reason: str) -> Entry:
    at = datetime.now(UTC).isoformat(timespec="seconds")
    return Entry(at=at, action=action, alias=alias, adapter=adapter, before=before, by=writer(), reason=reason)


def _check_published(root: Path, adapter_id: str) -> None:
    if adapter_id not in adapter_ids(root):  # a damaged one may go
        load_manifest(root, adapter_id)


def _hide(root: Path, adapter_id: str) -> Path:
    """Give the adapter's folder a name that nobody looks up."""
    home, hidden = root / adapter_id, root / f".deleted-{adapter_id}"
    for left in root.glob(".deleted-*"):  # by a deletion that was killed: the history is ours, so nobody else is at it
        shutil.rmtree(left, ignore_errors=True)
    try:
        os.rename(home, hidden)
    except OSError as error:
        raise ResourceError(
            f"cannot delete {home}: {error.strerror}; it is still there; see who may write to {root}"
        ) from None
    return hidden


def _append_late(file: GrowingFile, entry: Entry) -> None:
    try:
        file.append(dataclasses.asdict(entry))
    except ResourceError as error:
        raise ResourceError(f"{entry.adapter} is deleted, but the history does not say so: {error}") from None
