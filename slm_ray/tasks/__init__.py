"""What the rows of a task mean: tracks by name or by file, and files of examples together with their track."""

from slm_ray.tasks.dataset import Dataset, open_dataset
from slm_ray.tasks.track_file import TRACK_FILE, open_track, write_track

__all__ = ["TRACK_FILE", "Dataset", "open_dataset", "open_track", "write_track"]
