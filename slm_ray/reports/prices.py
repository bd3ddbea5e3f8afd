"""The price list on disk: the one that is shipped with the package, in whatever folder a job runs, or the user's own."""

from __future__ import annotations

from importlib import resources

from slm_ray.costs.prices import PriceList, price_list
from slm_ray.yaml_file import read_yaml


def open_prices(path: str | None) -> PriceList:
    """The price list at `path`, the shipped one for None; ConfigError in one line for a file that is none."""
    if path is not None:
        return price_list(read_yaml(path, what="prices"), where=path)
    with resources.as_file(resources.files("slm_ray.costs") / "prices.yaml") as shipped:
        return price_list(read_yaml(shipped, what="prices"), where=str(shipped))


def name_of(path: str | None) -> str:
    """How a message names that list."""
    return "the shipped prices" if path is None else path
