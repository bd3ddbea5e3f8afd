"""Settings of the job that sends one request."""

from __future__ import annotations

from pydantic import Field

from slm_ray.config.shared import Demonstrated, Generation
from slm_ray.config.words import Endpoint, Examples, Tracked


class InferConfig(Demonstrated, Endpoint, Tracked, Examples):
    """One request, shown as the model sees it."""

    model: str
    text: str | None = Field(None, description="the user's turn, already in the track's wording")
    target: str | None = Field(None, description="the expected answer, to see the score")
    examples: str = Field("", description="JSONL that `example` is looked up in, instead of `text`")
    example: str | None = Field(None, description="the id of the row to ask; the first row when not set")
    generation: Generation = Generation()
    show_tokens: bool = Field(False, description="show the token ids that the prompt becomes for the tiny base")
