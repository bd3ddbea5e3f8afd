"""What a job can be told: one frozen pydantic model per job (`knobs`), and how YAML and `--set` fill it (`load`)."""

from slm_ray.config.data import CurationConfig, PrepareConfig, SourceConfig, TrackConfig
from slm_ray.config.knobs import (
    EvaluateConfig,
    GenerationConfig,
    InferConfig,
    LoopConfig,
    LoraConfig,
    PretrainConfig,
    RecipeConfig,
    ServingConfig,
    SweepConfig,
    SweepJobConfig,
    TasksConfig,
    TrainingConfig,
    WorkersConfig,
)
from slm_ray.config.load import dump, load
from slm_ray.config.studies import (
    JudgeConfig,
    LiveConfig,
    RaceConfig,
    ReadingBenchConfig,
    ScoringBenchConfig,
    SimulateConfig,
)
from slm_ray.config.traces import TraceConfig
from slm_ray.config.verdict import CompareConfig, CostConfig, DeclareConfig

__all__ = [
    "CompareConfig",
    "CostConfig",
    "CurationConfig",
    "DeclareConfig",
    "EvaluateConfig",
    "GenerationConfig",
    "InferConfig",
    "JudgeConfig",
    "LiveConfig",
    "LoopConfig",
    "LoraConfig",
    "PrepareConfig",
    "PretrainConfig",
    "RaceConfig",
    "ReadingBenchConfig",
    "RecipeConfig",
    "ScoringBenchConfig",
    "ServingConfig",
    "SimulateConfig",
    "SourceConfig",
    "SweepConfig",
    "SweepJobConfig",
    "TasksConfig",
    "TraceConfig",
    "TrackConfig",
    "TrainingConfig",
    "WorkersConfig",
    "dump",
    "load",
]
