"""What a command is: its settings, what runs, and the folders it writes, which may lie in object storage."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from slm_ray import config as configs
from slm_ray.remote import at_hand


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One step: its settings, what runs, and the setting that a folder in place of the config file stands for.

    `writes` are the settings that name folders it writes. Where it is given, these and all that the step reads may lie in
    object storage.
    """

    config: type[configs.Config]
    function: Callable[[Any], int | None]
    folder: str | None = None
    writes: tuple[str, ...] | None = None

    def run(self, config: Any) -> int | None:
        """Run it, on working copies of what lies in object storage."""
        if self.writes is None:
            return self.function(config)
        with at_hand(config, writes=self.writes) as here:
            return self.function(here)

    @property
    def doc(self) -> str:
        """What the command does: one line, then what else a person should know."""
        return inspect.getdoc(self.function) or ""
