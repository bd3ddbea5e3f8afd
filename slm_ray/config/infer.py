"""Settings of the job that sends one request."""

from __future__ import annotations

from pydantic import Field

from slm_ray.config.shared import Generation, Retrieval


class InferConfig(Retrieval):
    """One request, shown as the model sees it."""

    track: str
    model: str
    text: str | None = Field(None, description="the user's turn, already in the track's wording")
    target: str | None = Field(None, description="the expected answer, to see the score")
    examples: str | None = Field(None, description="JSONL that `example` is looked up in, instead of `text`")
    example: str | None = Field(None, description="the id of the row to ask; the first row when not set")
    endpoint: str = "http://127.0.0.1:8000"
    generation: Generation = Generation()
    demonstrations: str | None = Field(None, description="JSONL that `+Kshot` and `baseline:` models take rows of")
    show_tokens: bool = Field(False, description="show the token ids that the prompt becomes for the tiny base")
