"""What a job can be told: one module per job, what they share (`shared`), and how YAML and `--set` fill it (`reading`)."""

from slm_ray.config.compare import CompareConfig
from slm_ray.config.distil import DistilConfig
from slm_ray.config.doctor import DoctorConfig
from slm_ray.config.evaluate import EvaluateConfig
from slm_ray.config.infer import InferConfig
from slm_ray.config.judge import JudgeConfig
from slm_ray.config.learning_curve import LearningCurveConfig
from slm_ray.config.live import LiveConfig
from slm_ray.config.load import LoadConfig
from slm_ray.config.loop import ArmsConfig, FlywheelConfig, LoopConfig, RunConfig
from slm_ray.config.parity import ParityConfig
from slm_ray.config.precisions import PrecisionsConfig
from slm_ray.config.prepare import PrepareConfig
from slm_ray.config.reading import dump, load
from slm_ray.config.rollout import RolloutConfig, RolloutRoute
from slm_ray.config.rows import RowsConfig
from slm_ray.config.serve import ServeConfig
from slm_ray.config.shared import (
    Calls,
    Comparison,
    Cost,
    Curation,
    Declaration,
    Evaluation,
    Generation,
    Live,
    Lora,
    Precision,
    Priced,
    Range,
    Recipe,
    Requests,
    Retrieval,
    Search,
    Serving,
    ServingMachine,
    Source,
    Workers,
)
from slm_ray.config.sweep import SweepConfig
from slm_ray.config.trace import TraceConfig
from slm_ray.config.traffic import Traffic
from slm_ray.config.train import MixedTrack, TrainConfig
from slm_ray.config.words import Config

__all__ = [
    "ArmsConfig",
    "Calls",
    "CompareConfig",
    "Comparison",
    "Config",
    "Cost",
    "Curation",
    "Declaration",
    "DistilConfig",
    "DoctorConfig",
    "EvaluateConfig",
    "Evaluation",
    "FlywheelConfig",
    "Generation",
    "InferConfig",
    "JudgeConfig",
    "LearningCurveConfig",
    "Live",
    "LiveConfig",
    "LoadConfig",
    "LoopConfig",
    "Lora",
    "MixedTrack",
    "ParityConfig",
    "PrecisionsConfig",
    "PrepareConfig",
    "Precision",
    "Range",
    "Recipe",
    "Priced",
    "Requests",
    "Retrieval",
    "RolloutConfig",
    "RolloutRoute",
    "RowsConfig",
    "RunConfig",
    "Search",
    "ServeConfig",
    "Serving",
    "ServingMachine",
    "Source",
    "SweepConfig",
    "TraceConfig",
    "Traffic",
    "TrainConfig",
    "Workers",
    "dump",
    "load",
]
