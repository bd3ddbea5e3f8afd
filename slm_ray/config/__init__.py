"""What a job can be told: one frozen pydantic model per job (`knobs`), and how YAML and `--set` fill it (`load`)."""

from slm_ray.config.knobs import (
    CompareConfig,
    EvaluateConfig,
    GenerationConfig,
    InferConfig,
    LoopConfig,
    LoraConfig,
    PrepareConfig,
    PretrainConfig,
    RecipeConfig,
    ServingConfig,
    SimulateConfig,
    SweepConfig,
    SweepJobConfig,
    TasksConfig,
    TrackConfig,
    TrainingConfig,
    WorkersConfig,
)
from slm_ray.config.load import dump, load

__all__ = [
    "CompareConfig", "EvaluateConfig", "GenerationConfig", "InferConfig", "LoopConfig", "LoraConfig", "PrepareConfig",
    "PretrainConfig", "RecipeConfig", "ServingConfig", "SimulateConfig", "SweepConfig", "SweepJobConfig", "TasksConfig",
    "TrackConfig", "TrainingConfig", "WorkersConfig", "dump", "load",
]  # fmt: skip
