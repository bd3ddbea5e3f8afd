"""Settings of the job that asks models the same rows and scores their answers."""

from __future__ import annotations

from pydantic import Field, model_validator

from slm_ray.config.shared import Declaration, Demonstrated, Evaluation, Priced
from slm_ray.config.words import Adapters, AskedRows, LeakChecked, Small


class EvaluateConfig(Priced, Evaluation, Demonstrated, LeakChecked, Adapters, Small, AskedRows):
    """The same examples to every model, scored by the same code."""

    limit: int | None = Field(None, ge=1, description="first rows only, for a smoke test")
    adapters_dir: str = Field(
        "", description="folder of published adapters: rows that a served one was trained on are refused"
    )
    extend: str | tuple[str, ...] = Field(
        (), description="sequential: files of further rows, asked behind those of `examples`; finished rows are kept"
    )
    slm: str = Field(
        "", description="sequential: the one of `models` that may take over; each but the first when empty"
    )
    declare: Declaration | None = Field(
        None, description="what the verdict will be made by, fixed before the first call: `{rule: paired, delta: 0.02}`"
    )

    @property
    def is_sequential(self) -> bool:
        """Whether the sequential rule is declared."""
        return self.declare is not None and self.declare.rule == "sequential"

    @property
    def stops_when_decided(self) -> bool:
        """Whether the asking ends once the rule has seen enough."""
        return self.declare is not None and self.declare.stop == "when_decided"

    @property
    def extensions(self) -> tuple[str, ...]:
        """The files of further rows, in their order."""
        return (self.extend,) if isinstance(self.extend, str) else self.extend

    @model_validator(mode="after")
    def _looks_are_allowed(self) -> EvaluateConfig:
        if self.extensions and not self.is_sequential:
            raise ValueError(
                "extend adds rows to an evaluation whose answers were looked at, which only the sequential rule allows;"
                " evaluate the new rows alone, in a run_dir of their own, or declare {rule: sequential} before the first"
                " call of the next evaluation"
            )
        if self.slm and self.slm not in self.models[1:]:
            raise ValueError(
                f"slm {self.slm!r} is none of models after the LLM ({', '.join(self.models[1:]) or 'there is none'});"
                " name one of them, or leave slm out to test each"
            )
        if self.stops_when_decided and self.repeats > 1:
            raise ValueError("stop: when_decided asks every row once; set repeats: 1, or stop: never")
        return self
