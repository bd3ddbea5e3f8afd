"""A model card for an adapter, as huggingface_hub writes them: what it is, what it was trained on and how, and how good it is.

Says only what the manifest, the base's own card and comparisons on file say; a figure that is not known is said to be unknown.
Holds no path of this machine: a base that is a folder goes by the folder's name. Needs no network.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from slm_ray.adapters.manifest import CARD, TEMPLATE, Manifest
from slm_ray.records import ComparisonReport, Metrics, Report
from slm_ray.yaml_file import parse_yaml


def base_name(base: str) -> str:
    """What a base is called in a card: its hub name, or the name of its folder."""
    return base if base.count("/") == 1 and not base.startswith(("/", ".", "~")) else Path(base).name


def licence_of(base: str) -> str | None:
    """The licence that the card in a base's folder states; None where there is no folder, card or licence."""
    try:
        text = (Path(base) / CARD).read_text(encoding="utf-8")
        front = parse_yaml(text.removeprefix("---\n").partition("\n---")[0]) if text.startswith("---\n") else None
    except (OSError, ValueError, yaml.YAMLError):
        return None
    stated = front.get("license") if isinstance(front, dict) else None
    return stated if isinstance(stated, str) else None


def model_card(
    manifest: Manifest,
    comparisons: Sequence[ComparisonReport] = (),
    reports: Sequence[Report] = (),
    *,
    licence: str | None = None,
) -> str:
    """The card as Markdown with a YAML head.

    `comparisons` have the adapter as the SLM, `reports` hold it alone; the latest last. Reports count where nothing was compared.
    """
    sections = [
        _front(manifest, _measured(comparisons, reports), licence), f"# {manifest.id}", _intended_use(manifest), _data(manifest), _training(manifest),
        _results(comparisons, reports), _proof(manifest), _loading(manifest),
    ]  # fmt: skip
    return "\n\n".join(sections) + "\n"


def _front(manifest: Manifest, measured: Metrics, licence: str | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData  # takes a while, and only a card needs it

    base = base_name(manifest.base)
    results = [
        EvalResult(
            task_type="text-generation", dataset_type=manifest.track, dataset_name=manifest.track, metric_type=name,
            metric_value=value,
        )
        for name, value in measured.items()
        if value is not None
    ]  # fmt: skip
    data = ModelCardData(
        base_model=base, library_name="peft", pipeline_tag="text-generation", license=licence,
        tags=["lora", "slm_ray", f"base_model:adapter:{base}"], model_name=manifest.id if results else None,
        eval_results=results or None,
    )  # fmt: skip
    return f"---\n{data.to_yaml()}\n---"


def _intended_use(manifest: Manifest) -> str:
    template = f"the chat template in `{TEMPLATE}`" if TEMPLATE in manifest.files else "the base's own chat template"
    tasks = 1 + len(manifest.recipe.get("mixture") or ())
    count, of_task, that = (
        ("one task", "task", "that task") if tasks == 1 else (f"{tasks} tasks", "tasks", "those tasks")
    )
    return (
        f"A LoRA adapter of `{base_name(manifest.base)}` for {count}, `{manifest.track}`.\n\n## Intended use\n\n"
        f"Prompts of the {of_task} `{manifest.track}`, rendered by {template}. It was measured on {that} only:"
        " nothing is known of how it answers anything else, and it is no general assistant. The licence and the limits of the"
        " base hold for it too."
    )


def _data(manifest: Manifest) -> str:
    metrics = manifest.metrics
    rows = [
        ("rows", metrics.get("rows", "unknown")), ("different prompts", manifest.train_prompts),
        ("tokens, all epochs", metrics.get("tokens", "unknown")), ("digest of the rows", manifest.data_digest),
        ("split", "the training split only; test and validation rows are kept apart by prompt"),
    ]  # fmt: skip
    return "## Training data\n\n" + _table(("", "what"), rows)


def _training(manifest: Manifest) -> str:
    settings = [("rank", manifest.rank), ("alpha", manifest.alpha)]
    settings += [
        (name, _setting(name, value)) for name, value in sorted(manifest.recipe.items()) if not isinstance(value, dict)
    ]
    settings += [
        (f"{group}.{name}", value)
        for group, inner in sorted(manifest.recipe.items())
        if isinstance(inner, dict)
        for name, value in inner.items()
    ]
    figures = [(name, value) for name, value in sorted(manifest.metrics.items()) if value is not None]
    return (
        f"## Training\n\nPublished {manifest.created}. Base fingerprint `{manifest.base_fingerprint}`, digest of the settings"
        f" `{manifest.config_digest}`.\n\n{_table(('setting', 'value'), settings)}\n\n{_table(('figure', 'value'), figures)}"
    )


def _setting(name: str, value: Any) -> Any:
    """A setting as a card shows it: of a track's file its name alone."""
    if name != "mixture":
        return value
    return [f"{Path(one['track']).stem}: {one['weight']:g} rows for each of the first track" for one in value]


def _measured(comparisons: Sequence[ComparisonReport], reports: Sequence[Report]) -> Metrics:
    if comparisons:
        return comparisons[-1].comparison.slm_metrics
    return next(iter(reports[-1].models.values())).metrics if reports else {}


def _results(comparisons: Sequence[ComparisonReport], reports: Sequence[Report]) -> str:
    if comparisons:
        return "## Results\n\n" + "\n\n".join(map(_result, reversed(comparisons)))
    if not reports:
        return "## Results\n\nNo evaluation is on file. The training's own figures say nothing of its answers."
    rows = [(name, _number(value)) for name, value in _measured((), reports).items()]
    examples = reports[-1].examples
    return f"## Results\n\nOn {examples.n} rows (digest {examples.digest}), compared with no other model:\n\n" + _table(
        ("metric", "this adapter"), rows
    )


def _result(report: ComparisonReport) -> str:
    compared, decision = report.comparison, report.decision
    interval, bounds = compared.interval, 100 * (1 - compared.level)
    llm = f"{compared.llm} (a stand-in)" if compared.llm in compared.stand_ins else compared.llm
    metrics = [
        (
            f"{name} (primary)" if name == compared.primary else name,
            _number(compared.llm_metrics.get(name)),
            _number(value),
        )
        for name, value in compared.slm_metrics.items()
    ]
    words = [
        f"Asked as {compared.slm}, against {llm}, on {compared.n} held-out rows that both answered, in pairs (digest {compared.digest}):",
        _table(("metric", compared.llm, "this adapter"), metrics),
        f"{compared.primary}, this adapter minus the other: {interval.estimate:+.4f}, one-sided {bounds:.4g} % bounds"
        f" {interval.lower:+.4f} and {interval.upper:+.4f} ({interval.method}).",
        f"Verdict: **{decision.action}**, rule {decision.rule}, non-inferiority margin {decision.delta:g}.",
        "\n".join(f"- {_line(sentence)}" for sentence in decision.because),
    ]
    return "\n\n".join([_line(words[0]), words[1], *words[2:]])


def _proof(manifest: Manifest) -> str:
    proof = dataclasses.asdict(manifest).get("proof")
    if not proof:
        return "## Proof of what is served\n\nNone is on file."
    on = str(proof.get("on", ""))  # an engine, or where a file or an endpoint is on this machine
    shown = {**proof, "on": "an endpoint" if "://" in on else Path(on).name}
    return "## Proof of what is served\n\n" + _table(("checked", "found"), sorted(shown.items()))


def _loading(manifest: Manifest) -> str:
    base = base_name(manifest.base)
    template = f" --chat-template {manifest.id}/{TEMPLATE}" if TEMPLATE in manifest.files else ""
    return (
        "## Loading\n\n```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        f'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "{manifest.id}")\n```\n\n'
        f"```bash\nvllm serve {base} --enable-lora --max-lora-rank {_server_rank(manifest.rank)} --lora-modules"
        f" {manifest.name}={manifest.id}{template}\n```"
    )


def _server_rank(rank: int) -> int:
    """The least of the ranks that vLLM can be started with."""
    return next((known for known in (8, 16, 32, 64, 128, 256, 320, 512) if known >= rank), rank)


def _table(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(
        "| " + " | ".join(_line(_text(cell)).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _line(text: str) -> str:
    return " ".join(text.split())
