"""Settings of the job in which a model judges answers."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from slm_ray.config.shared import WIDEST_DELTA, Generation, Priced, Requests
from slm_ray.config.words import Endpoint, Finished, Margin, Models, Pair, RunDir, Tracked


class JudgeConfig(Priced, Requests, Margin, Tracked, Endpoint, RunDir, Models, Pair, Finished):
    """A model as judge of a finished evaluation, or of answers that people have graded."""

    report: str = Field("", description="a finished evaluation: its run directory or report.json")
    judge: str = Field(description="a model spec")
    rubric: str = Field("", description="what makes an answer good; that of the track when empty")
    track: str = Field("", description="name or YAML file of the track whose rubric is used; the report's when empty")
    show_target: bool = Field(True, description="show the expected answer to the judge")
    models: tuple[str, ...] = Field((), description="whose answers to grade; all of the report's when empty")
    llm: str = Field("", description="the LLM, to be judged in pairs against `slm`; no pairs when both are empty")
    slm: str = Field("", description="the SLM, to be judged in pairs against `llm`")
    labels: tuple[str, ...] = Field((), description="JSONL of what people said of the pair, from the labelling page")
    looks: tuple[int, ...] = Field(
        (100, 200, 400), min_length=1, description="numbers of labels at which the verdict is made; they share the 5 %"
    )
    delta: float = Field(
        0.05, ge=0, le=WIDEST_DELTA, description="non-inferiority margin of the pair, on wins minus losses"
    )
    calibrate: str | None = Field(None, description="JSONL of prompt, prediction, human (1 to 7) and maybe target")
    calibration: str | None = Field(None, description="run directory of a calibration; without one a judge is advisory")
    generation: Generation = Generation(max_tokens=200)

    @property
    def pair(self) -> tuple[str, ...]:
        """The two models that are judged against each other, LLM first; none where no pair is asked for."""
        return (self.llm, self.slm) if self.llm else ()

    @model_validator(mode="after")
    def _a_pair_is_two(self) -> JudgeConfig:
        if bool(self.llm) != bool(self.slm):
            raise ValueError("`llm` and `slm` are judged against each other; name both, or neither")
        return self

    @model_validator(mode="after")
    def _something_to_judge(self) -> JudgeConfig:
        if not self.report and self.calibrate is None:
            raise ValueError(
                "give a finished evaluation as `report`, or answers that people have graded as `calibrate`"
            )
        return self

    @field_validator("looks")
    @classmethod
    def _growing(cls, looks: tuple[int, ...]) -> tuple[int, ...]:
        if list(looks) != sorted(set(looks)) or looks[0] < 1:
            raise ValueError(
                f"{list(looks)} are no numbers of labels to look at: write growing ones, such as [100, 200]"
            )
        return looks
