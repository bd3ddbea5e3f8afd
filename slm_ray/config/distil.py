"""Settings of the job that makes training rows of a teacher's answers."""

from __future__ import annotations

from pydantic import Field

from slm_ray.config.words import Examples, Finished, Written


class DistilConfig(Finished, Examples, Written):
    """Training rows whose expected answers are those of a model that was asked them."""

    teacher: str = Field(description="a model of that evaluation, by its spec")
    examples: str = Field(description="the training JSONL that it evaluated")
    floor: float = Field(
        1.0,
        ge=0,
        le=1,
        description="the primary metric that an answer must reach to be learned; 0: any that can be read",
    )
    out: str = Field(description="training JSONL to write")
