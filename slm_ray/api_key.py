"""The endpoint's key, and how it gets from whoever has it to the processes that need it without standing in all of them.

SLM_RAY_API_KEY holds it, or SLM_RAY_API_KEY_FILE names a file that does, which nobody else may read: that is how a job on a
cluster gets it. What a process has in its environment all that it starts have too, and so has whoever reads a crash
report. So a Ray that is started here (`hidden_from_ray`) gets the name of such a file in the key's place.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

from slm_ray.errors import ConfigError

KEY_NAME, KEY_FILE_NAME = "SLM_RAY_API_KEY", "SLM_RAY_API_KEY_FILE"


def api_key(environment: Mapping[str, str]) -> str:
    """The key; empty where there is none. ConfigError for a file that is not there or that others may read."""
    if key := environment.get(KEY_NAME, "").strip():
        return key
    name = environment.get(KEY_FILE_NAME, "")
    if not name:
        return ""
    path = Path(name).expanduser()
    try:
        mode, key = path.stat().st_mode, path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(
            f"{KEY_FILE_NAME}: cannot read {path} on {os.uname().nodename}: {reason}; name the file that holds the key, which"
            " each node has that asks with it"
        ) from None
    if mode & 0o077:
        raise ConfigError(f"{KEY_FILE_NAME}: others may read {path} (mode {mode & 0o777:o}): chmod 600 {path}")
    if not key:
        raise ConfigError(f"{KEY_FILE_NAME}: {path} is empty; write the key into it")
    return key


@contextlib.contextmanager
def hidden_from_ray(environment: MutableMapping[str, str]) -> Iterator[None]:
    """While the block starts a Ray, `environment` has a file's name instead of the key; the file goes with this process."""
    key = environment.pop(KEY_NAME, "")
    if key.strip():
        handle, path = tempfile.mkstemp(prefix="slm-ray-key-")  # mode 600
        with os.fdopen(handle, "w", encoding="utf-8") as sink:
            sink.write(key)
        atexit.register(_remove, path)
        environment[KEY_FILE_NAME] = path
    try:
        yield
    finally:
        if key:
            environment[KEY_NAME] = key


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
