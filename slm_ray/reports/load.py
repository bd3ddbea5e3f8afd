"""The load measurement that a comparison takes its throughput from."""

from __future__ import annotations

from slm_ray import storage
from slm_ray.config import Cost
from slm_ray.errors import ConfigError
from slm_ray.load_records import LoadReport, Throughput
from slm_ray.reports.encoding import check_version, decode

_FIX = "give the load.json that slm-ray load wrote, or leave cost.load out"


def measured_throughput(config: Cost) -> dict[str, Throughput]:
    """What each model of `cost.load` carried, by spec; empty without one, and without those that held no target.

    DataError for a file that is none; ConfigError where it was measured on another machine than the one that is priced.
    """
    if config.load is None:
        return {}
    plain = storage.read_json(config.load)
    check_version(plain, where=config.load, fix=_FIX)
    report = decode(plain, LoadReport, where=config.load, fix=_FIX)
    if report.machine != config.machine:
        raise ConfigError(
            f"cost.load: {config.load} was measured on {report.machine!r}, and cost.machine is {config.machine!r}; price the"
            " machine that was measured, or measure the other one"
        )
    return {spec: model.most for spec, model in report.models.items() if model.most is not None}
