"""What the driver hands to every training worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slm_ray.config import TrainConfig
from slm_ray.types import Example


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One run: rows as TRL takes them, `lengths` in tokens per row; `validation` rows are answered and scored at the end."""

    config: TrainConfig
    rows: tuple[dict[str, Any], ...]
    lengths: tuple[int, ...]
    use_gpu: bool
    progress_path: str
    validation: tuple[Example, ...] = ()

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        config = self.config
        batch = config.per_device_batch * config.gradient_accumulation * config.workers.count
        return max(1, round(config.epochs * -(-len(self.rows) // batch)))
