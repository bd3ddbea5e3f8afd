"""Data sets of the Hugging Face hub, by name, and data sets saved to a folder. Class labels come as their names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slm_ray.corpus.read import RawRow
from slm_ray.errors import DataError
from slm_ray.sources.files import refuse_nul
from slm_ray.sources.readers import filled

HUB = "hf:"
_SAVED = ("state.json", "dataset_info.json", "dataset_dict.json")


def is_data_set(source: str) -> bool:
    """Whether the source is read by `datasets`: a name of the hub, or a folder that `save_to_disk` made."""
    refuse_nul(source)
    return source.startswith(HUB) or any((Path(source) / name).is_file() for name in _SAVED)


def data_set_rows(source: str) -> Iterator[RawRow]:
    """The rows with their numbers from 1. DataError for a name, split or folder that is none."""
    data = _opened(source)
    labels = {name: feature.int2str for name, feature in data.features.items() if hasattr(feature, "int2str")}
    for number, row in enumerate(data, start=1):
        named = {
            name: labels[name](value) if name in labels and value is not None else value for name, value in row.items()
        }
        yield source, number, filled(named)


def _opened(source: str) -> Any:
    import datasets  # loads pandas and pyarrow

    name, _, split = source.removeprefix(HUB).partition(":")
    name, _, config = name.partition("@")
    if source.startswith(HUB) and not name:
        raise DataError(f"{source!r} names no data set; write hf:NAME, hf:NAME@CONFIG or hf:NAME@CONFIG:SPLIT")
    try:
        if source.startswith(HUB):
            return datasets.load_dataset(name, config or None, split=split or "train")
        found = datasets.load_from_disk(source)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]  # "an error occurred" has its cause behind it
        raise DataError(f"cannot load {source}: {reason}; check name, split and access") from None
    if isinstance(found, datasets.DatasetDict):
        raise DataError(f"{source} holds the splits {', '.join(found)}; give {source}/{next(iter(found))}, or another")
    return found
