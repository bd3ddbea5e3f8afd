"""Task rows become an adapter: QLoRA under Ray Train, checkpointed, resumable, published by content."""

from slm_ray.training.launch import train, train_many

__all__ = ["train", "train_many"]
