"""The load measurement that a comparison takes its throughput from."""

from __future__ import annotations

from collections.abc import Sequence

from slm_ray import storage
from slm_ray.config import Cost
from slm_ray.errors import ConfigError
from slm_ray.load_records import LoadReport, Throughput
from slm_ray.reports.encoding import check_version, decode

_FIX = "give the load.json that slm-ray load wrote, or leave cost.load out"


def measured_throughput(config: Cost, specs: Sequence[str]) -> dict[str, Throughput]:
    """What the models `specs` carried according to `cost.load`; empty without one, and without those that are not in it.

    DataError for a file that is none; ConfigError where it was measured on another machine than the one that is priced,
    where it has none of the models, or where one of them held the target at no rate: an estimate in its place would be
    kinder than what was seen.
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
    found = {spec: report.models[spec] for spec in specs if spec in report.models}
    if not found:
        raise ConfigError(
            f"cost.load: {config.load} has none of {', '.join(specs)}: known: {', '.join(report.models)}; measure the model that"
            " is compared, or leave cost.load out"
        )
    if none := [spec for spec, model in found.items() if model.most is None and model.billing == "machine"]:
        raise ConfigError(
            f"cost.load: in {config.load} no rate of {', '.join(none)} held p95_s; measure lower rates, or set another p95_s"
            " and run slm-ray load again, or leave cost.load out"
        )
    return {spec: model.most for spec, model in found.items() if model.most is not None}
