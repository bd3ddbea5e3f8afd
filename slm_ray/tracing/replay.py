"""A finished run to Langfuse, from its directory: what is missing there is sent, what is there stays. Else to a collector.

The log and the report are the truth: an evaluation's trace is made from them again, and the trace file is written anew
where it is missing or older. Comparisons and training runs are taken from the trace file. A directory may hold several
runs, as a loop's does. A traffic log is sent too, as it is then, and no trace file is written of it: its texts would outlive
the days that the log keeps.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from slm_ray import adapters
from slm_ray.config import TraceConfig
from slm_ray.errors import AdapterError, ConfigError, DataError, ResourceError
from slm_ray.records import AnswerResult
from slm_ray.reports.files import CONFIG, REPORT, load_report
from slm_ray.runlog import FOLDER, RUN_FILE, Response, RunLog
from slm_ray.storage import lock
from slm_ray.tracing.collector import Collector
from slm_ray.tracing.delivery import Delivered, Delivery
from slm_ray.tracing.delivery_log import FILE_NAME as SENT
from slm_ray.tracing.delivery_log import DeliveryLog
from slm_ray.tracing.file import FILE_NAME, read_runs, write_run
from slm_ray.tracing.langfuse import Langfuse, disabled
from slm_ray.tracing.live import live_runs
from slm_ray.tracing.retry_policy import Problem, RetryPolicy
from slm_ray.tracing.spans import Lineage, Run, evaluation
from slm_ray.traffic import is_traffic, read_traffic
from slm_ray.types import ModelFacts
from slm_ray.yaml_file import read_yaml

LOG = f"{FOLDER}/{RUN_FILE}"
SETTLE_S = 30.0
PATIENCE_S = 1800.0  # waits that Langfuse asks for included


def replay(
    config: TraceConfig, environment: Mapping[str, str], *, settle_s: float = SETTLE_S, patience_s: float = PATIENCE_S
) -> str:
    """Send every run below `run_dir` to Langfuse, or without its keys to the collector that is named; what was sent, in a line.

    `settle_s` is how long a request whose answer was lost may take to show at Langfuse, `patience_s` how long to go on.

    Raises DataError when there is no run, ConfigError without keys and collector, ResourceError when not all of it is taken.
    """
    root = Path(config.run_dir)
    folders = folders_of(root)
    if not folders:
        raise DataError(
            f"{root} holds neither a report.json nor a {FILE_NAME} nor a traffic log; give the directory of a finished run"
        )
    if disabled(environment):
        return "nothing is sent: LANGFUSE_DISABLED is set"
    receiver = Langfuse.from_environment(environment) or Collector.from_environment(environment)
    if receiver is None:
        raise ConfigError(
            "LANGFUSE_PUBLIC_KEY or LANGFUSE_SECRET_KEY is not set; export both (or OTEL_EXPORTER_OTLP_ENDPOINT, for another"
            " collector), then the same command again"
        )
    if isinstance(receiver, Collector):
        settle_s = 0.0  # nothing ever shows
    try:
        total, runs = send_folders(folders, receiver, RetryPolicy(patience_s), settle_s=settle_s)
    except Problem as problem:
        raise ResourceError(
            f"{receiver.url} did not take all traces ({problem}); nothing is lost, and the same command sends the rest"
        ) from None
    finally:
        receiver.close()
    if isinstance(receiver, Collector) and receiver.turned_down:
        raise ResourceError(
            f"{receiver.url} has turned down {receiver.turned_down:,} of {total.spans:,} spans, and does not say which; its own log"
            f" says why. They are not sent again: delete {SENT} beside the run, and the same command sends all of them, those that it"
            " took for the second time"
        )
    beside = f", {total.items} dataset items, {total.scores} scores" if isinstance(receiver, Langfuse) else ""
    return f"{receiver.url} has the traces of {runs} {'run' if runs == 1 else 'runs'}; sent now: {total.spans} spans{beside}"


def send_folders(
    folders: Sequence[Path], receiver: Langfuse | Collector, retry: RetryPolicy, *, settle_s: float
) -> tuple[Delivered, int]:
    """What was sent of how many runs; raises Problem where it stops."""
    total, runs = Delivered(), 0
    retry.call(receiver.check)
    for folder in folders:
        with lock(folder):
            log = DeliveryLog(folder, receiver.destination)
            for run in runs_of(folder):
                total += Delivery(run, receiver, log, retry, settle_s=settle_s).run()
                runs += 1
    return total, runs


def folders_of(root: Path) -> list[Path]:
    """The directories of finished runs at and below `root`, or `root` itself where it is a traffic log."""
    if is_traffic(str(root)):
        return [root]
    found = {path.parent for path in root.rglob(FILE_NAME)} | {path.parents[1] for path in root.rglob(LOG)}
    return [folder for folder in sorted(found) if (folder / FILE_NAME).is_file() or (folder / REPORT).is_file()]


def runs_of(folder: Path) -> list[Run]:
    """The runs of one folder, the evaluation's made from its log and report, live traffic's from its log."""
    if is_traffic(str(folder)):
        return list(live_runs(read_traffic(str(folder))))
    if (folder / REPORT).is_file() and (folder / LOG).is_file():
        write_run(folder, _evaluated(folder))
    return read_runs(folder)


def _evaluated(folder: Path) -> Run:
    report, rows = load_report(folder)
    by_row: dict[tuple[str, str], list[Response]] = {}
    with RunLog(folder) as log:
        for response in log.responses():
            if response.repeat == 0:
                by_row.setdefault((response.spec, response.example_id), []).append(response)
    answers: dict[str, dict[str, Response]] = {spec: {} for spec in report.models}
    for row in rows:
        for spec, answer in row.models.items():
            answers[spec][row.id] = _matching(by_row.get((spec, row.id), []), answer, folder, spec, row.id)
    models = [model.facts for model in report.models.values()]
    return evaluation(report, rows, answers, lineage(models, _adapters_dir(folder)))


def _matching(responses: list[Response], answer: AnswerResult, folder: Path, spec: str, example_id: str) -> Response:
    """The log may hold a row several times: other settings, failures that were asked again."""
    for response in responses:
        said = response.completion
        if (said.text, said.failure, said.latency_s) == (answer.text, answer.failure, answer.latency_s):
            return response
    raise DataError(
        f"{folder / LOG} has no answer of {spec} to {example_id!r} that is the one in {folder / REPORT}; evaluate "
        f"again (nothing is asked twice): slm-ray evaluate {shlex.quote(str(folder / CONFIG))}"
    )


def _adapters_dir(folder: Path) -> str | None:
    if not (folder / CONFIG).is_file():
        return None
    settings = read_yaml(folder / CONFIG, what="config")
    return settings.get("adapters_dir") if isinstance(settings, dict) else None


def lineage(models: Iterable[ModelFacts], adapters_dir: str | None) -> dict[str, Lineage]:
    """Where the served adapters among the models come from, by spec; nothing for one whose manifest is not there."""
    found: dict[str, Lineage] = {}
    for model in models:
        if model.adapter is None:
            continue
        found[model.spec] = {"adapter": model.adapter}
        with contextlib.suppress(AdapterError):
            if adapters_dir:
                found[model.spec] = adapter_facts(adapters.load_manifest(adapters_dir, model.adapter))
    return found


def adapter_facts(manifest: adapters.Manifest) -> Lineage:
    """An adapter's origin: its id, its base by content, its training rows and its recipe by digest."""
    return {
        "adapter": manifest.id, "base": manifest.base, "base_fingerprint": manifest.base_fingerprint,
        "training_data_digest": manifest.data_digest, "recipe_digest": manifest.config_digest, "rank": manifest.rank,
    }  # fmt: skip
