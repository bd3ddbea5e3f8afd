"""What every set of knobs is: frozen, and closed to keys that it does not know."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

Track = str  # the name of a track, or the path of its YAML file


class Knobs(BaseModel):
    """The parent of every config."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
