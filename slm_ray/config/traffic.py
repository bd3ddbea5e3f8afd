"""Settings of the traffic log: where live requests are kept, what is taken out of them, and for how long."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from slm_ray.config.words import Config


class Traffic(Config):
    """What is kept of live requests. Texts are redacted before anything is written."""

    folder: str = Field("runs/traffic", description="folder or s3:// URI of the log; readable by prepare as a source")
    redact: tuple[Literal["api_key", "email", "card", "ip", "phone", "text"], ...] = Field(
        ("api_key", "email", "card", "ip", "phone"),
        description="what is replaced in every text, by its name in brackets; text: all of it, which keeps hashes and lengths"
        " only, and such rows cannot be learned from",
    )
    patterns: dict[str, str] = Field(
        {},
        description="regular expressions of your own by name, replaced likewise; a text on which one is slow is withheld",
    )
    keep_days: int | None = Field(90, ge=1, description="days after which a whole day is deleted; null keeps all")
