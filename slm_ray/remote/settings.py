"""A job's settings with paths in the place of what lies in object storage, and back.

The rooms know plain folders alone. `at_hand` stands at a command's border: the folders that it writes become working copies,
what it reads is fetched. `addressed` is the way back, for what is kept of the settings: a path of a copy means nothing on
another host.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from slm_ray.remote.folder import address, fetched, folder_and_file, name_below, working_copy
from slm_ray.remote.store import cache_folder, is_remote

Settings = TypeVar("Settings", bound=BaseModel)
# Of routes a copy would be changed and forgotten: what writes them refuses a URI.
_LEFT_WHERE_IT_LIES = frozenset(("source", "validation_source", "test_source", "routes_dir"))
_LEFT_OUT = {
    "adapters_dir": (".safetensors",)
}  # of adapters their records are read; an endpoint has its own way to weights


@contextlib.contextmanager
def at_hand(settings: Settings, *, writes: Collection[str]) -> Iterator[Settings]:
    """The settings with a path on this host for every URI of object storage, while the block runs.

    `writes` names the folders that the job writes (`a.b` for a setting of a setting); all else is only read. Rows are read
    where they lie (`source`). Raises as `working_copy` and `fetched`, before the block and after it.
    """
    copies: dict[str, Path] = {}
    with contextlib.ExitStack() as stack:

        def own(setting: str, value: str) -> str:
            if setting not in writes or not is_remote(value):
                return value
            folder, name = folder_and_file(value, setting=setting)
            if folder not in copies:
                copies[folder] = stack.enter_context(working_copy(folder, setting=setting))
            return str(copies[folder] / name)

        def read(setting: str, value: str) -> str:
            name = setting.rpartition(".")[2]
            if not is_remote(value) or name in _LEFT_WHERE_IT_LIES:
                return value
            for uri, copy in copies.items():
                if (inside := name_below(uri, value)) is not None:
                    return str(copy / inside)
            return str(
                fetched(value, setting=setting, leave_out=_LEFT_OUT.get(name, ()), may_be_empty=name in _LEFT_OUT)
            )

        here: Settings = _mapped(_mapped(settings, own), read)
        yield here


def addressed(settings: Settings) -> Settings:
    """The settings with a URI for every path of a copy."""
    copies = f"{cache_folder()}/"
    kept: Settings = _mapped(settings, lambda _, value: address(value) if value.startswith(copies) else value)
    return kept


def _mapped(value: Any, change: Callable[[str, str], str], setting: str = "") -> Any:
    """What `change` makes of every text in a settings' fields, given its name with dots."""
    if isinstance(value, str):
        return change(setting, value)
    if isinstance(value, tuple):
        return tuple(_mapped(one, change, setting) for one in value)
    if not isinstance(value, BaseModel):
        return value
    fields = {name: getattr(value, name) for name in type(value).model_fields}
    changed = {name: _mapped(one, change, f"{setting}.{name}" if setting else name) for name, one in fields.items()}
    return value.model_copy(update={name: one for name, one in changed.items() if one is not fields[name]})
