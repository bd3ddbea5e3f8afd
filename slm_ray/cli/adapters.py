"""`slm-ray adapters …`: what is published, what clients get by which name, and what was so before.

Thin: every verb calls `slm_ray.adapters` and prints. A problem that a person can mend is one line and exit status 2.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slm_ray import adapters
from slm_ray.adapters.card import base_name
from slm_ray.adapters.history import Entry
from slm_ray.command import BAD_INPUT
from slm_ray.errors import AdapterError, SlmRayError
from slm_ray.records import ComparisonReport
from slm_ray.remote import fetched, is_remote, shown_address
from slm_ray.tables import format_table

if TYPE_CHECKING:
    from slm_ray.reports.adapter_results import AdapterResults

app = typer.Typer(
    name="adapters",
    no_args_is_help=True,
    help="Published adapters: list, show, check, promote, roll back, delete, export, merge.",
)

AdaptersDir = Annotated[
    str, typer.Option("--adapters_dir", help="the folder that they are published in, or s3://BUCKET/PREFIX")
]
Reason = Annotated[str, typer.Option("--reason", help="why; kept in the history")]
Name = Annotated[str, typer.Argument(metavar="ID", help="an adapter's id, or an alias")]
BaseFolder = Annotated[
    Path | None, typer.Option("--base", help="folder of their base, where it is not where it was trained")
]
Runs = Annotated[
    Path, typer.Option("--runs", help="the folder whose runs are searched for verdicts that name an adapter")
]
DEFAULT, RUNS = "runs/adapters", Path("runs")


@app.command("list")
def list_all(
    adapters_dir: AdaptersDir = DEFAULT,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object per line")] = False,
    runs: Runs = RUNS,
) -> None:
    """Every published adapter, oldest first, with its latest score on file and what it is promoted as."""
    with one_line():
        folder = _at_hand(adapters_dir)
        promotions = adapters.promotions(folder)
        manifests, damaged = _readable(folder)
        results = _results(runs)
        if not manifests and not damaged:
            print(f"nothing is published in {shown_address(folder)}; slm-ray train does it", file=sys.stderr)
        elif as_json:
            for manifest in manifests:
                print(json.dumps(dataclasses.asdict(manifest) | {"promoted_as": promotions.aliases_of(manifest.id)}))
        else:
            rows = [
                [
                    manifest.id, manifest.track, base_name(manifest.base), str(manifest.rank), manifest.created[:19],
                    _score(results.get(manifest.id)), ", ".join(promotions.aliases_of(manifest.id)) or "-",
                ]
                for manifest in manifests
            ]  # fmt: skip
            names = ["id", "track", "base", "rank", "created (UTC)", "score", "promoted as"]
            print("\n".join(format_table([names, *rows], left=(0, 1, 2, 4, 5, 6))))
        for alias, adapter in promotions.aliases.items():
            if adapter not in {manifest.id for manifest in manifests}:
                damaged.append(f"{alias!r} stands for {adapter}, which is not there: requests for it are answered 404")
        for line in damaged:
            print(f"warning: {line}", file=sys.stderr)


@app.command()
def show(name: Name, adapters_dir: AdaptersDir = DEFAULT, runs: Runs = RUNS) -> None:
    """All that is known of one adapter: rows, hyper-parameters, figures, verdicts that named it, promotions."""
    with one_line():
        folder = _at_hand(adapters_dir)
        manifest = adapters.load_manifest(folder, adapters.resolve(folder, name))
        promotions = adapters.promotions(folder)
        for key, value in dataclasses.asdict(manifest).items():
            if isinstance(value, dict):
                print(key, *(f"\n  {name} {json.dumps(value[name])}" for name in sorted(value)), sep="")
            else:
                print(key, value if isinstance(value, str) and value.isprintable() else json.dumps(value))
        if found := _results(runs).get(manifest.id):
            for path, report in found.reports.items():
                print(f"evaluated on {report.examples.n} rows: {path}")
            for path, compared in found.comparisons.items():
                print(f"verdict {path}\n  {_verdict(compared)}")
        print("promoted as", ", ".join(promotions.aliases_of(manifest.id)) or "-")
        for entry in promotions.entries:
            if manifest.id in (entry.adapter, entry.before):
                print(f"  {_said(entry)}")


@app.command()
def check(
    name: Annotated[str, typer.Argument(metavar="ID|all", help="an adapter's id, an alias, or all of them")],
    adapters_dir: AdaptersDir = DEFAULT,
    base: BaseFolder = None,
) -> None:
    """Whether the files are those that were published, every tensor fits, and the base is the one it was trained on."""
    with one_line():
        folder = _at_hand(adapters_dir)
        names = adapters.adapter_ids(folder) if name == "all" else [adapters.resolve(folder, name)]
        if not names:
            print(f"nothing is published in {shown_address(folder)}; slm-ray train does it", file=sys.stderr)
        checker, wrong = adapters.Checker(folder, base), 0
        for adapter_id in names:
            try:
                print(f"{adapter_id}  ok: {checker.check(adapter_id, serving=False)}", flush=True)
            except SlmRayError as error:
                wrong += 1
                print(f"error: {error}", file=sys.stderr, flush=True)
    if wrong:
        raise typer.Exit(BAD_INPUT)


@app.command()
def promote(
    name: Name,
    alias: Annotated[
        str | None, typer.Option("--as", help="the name that clients ask for; its track's when not set")
    ] = None,
    reason: Reason = "",
    adapters_dir: AdaptersDir = DEFAULT,
) -> None:
    """Let a name stand for an adapter: who asks for BASE:NAME gets it from the next request on."""
    with one_line():
        folder = _at_hand(adapters_dir)
        print(_said(adapters.promote(folder, name, alias=alias, reason=reason)))


@app.command()
def rollback(
    alias: Annotated[str, typer.Argument(metavar="NAME", help="what was promoted")],
    reason: Reason = "",
    adapters_dir: AdaptersDir = DEFAULT,
) -> None:
    """Let a name stand for what it stood for before, from the next request on."""
    with one_line():
        folder = _at_hand(adapters_dir)
        print(_said(adapters.roll_back(folder, alias, reason=reason)))


@app.command()
def delete(
    adapter_id: Annotated[str, typer.Argument(metavar="ID")],
    force: Annotated[bool, typer.Option("--force", help="though it is promoted, or a roll-back leads to it")] = False,
    reason: Reason = "",
    adapters_dir: AdaptersDir = DEFAULT,
) -> None:
    """Remove an adapter for good; refused while it is promoted or what a roll-back leads to."""
    with one_line():
        folder = _at_hand(adapters_dir)
        print(_said(adapters.delete(folder, adapter_id, force=force, reason=reason)))
        for alias in adapters.promotions(folder).aliases_of(adapter_id):
            print(f"warning: {alias!r} stands for it still: requests for it are answered 404", file=sys.stderr)


@app.command()
def export(
    name: Name,
    out: Annotated[Path, typer.Option("--out", help="the folder to write; must not exist")],
    base: Annotated[str | None, typer.Option("--base", help="what the base is called there, such as ORG/MODEL")] = None,
    adapters_dir: AdaptersDir = DEFAULT,
    runs: Runs = RUNS,
) -> None:
    """A folder with a model card, for plain PEFT, plain vLLM or another machine's adapters folder."""
    with one_line():
        folder = _at_hand(adapters_dir)
        adapter_id = adapters.resolve(folder, name)
        found = _results(runs).get(adapter_id)
        comparisons, reports = ([*found.comparisons.values()], [*found.reports.values()]) if found else ([], [])
        licence = adapters.licence_of(adapters.load_manifest(folder, adapter_id).base)
        card = partial(adapters.model_card, comparisons=comparisons, reports=reports, licence=licence)
        adapters.export(folder, adapter_id, out, card=card, base=base)
        print(f"{adapter_id} is in {out}; comparisons in its model card: {len(comparisons)}")


@app.command()
def merge(
    name: Name,
    out: Annotated[Path, typer.Option("--out", help="the folder to write; must not exist")],
    base: BaseFolder = None,
    adapters_dir: AdaptersDir = DEFAULT,
) -> None:
    """A whole model of base and adapter together, which is served as a base of its own; the way to serve DoRA."""
    with one_line():
        folder = _at_hand(adapters_dir)
        adapter_id = adapters.resolve(folder, name)
        trained_on = adapters.load_manifest(folder, adapter_id).base
        from slm_ray.training.merge import merge as merged  # imports torch and PEFT

        merged(folder, adapter_id, str(base) if base else trained_on, out)
        print(f"{adapter_id} is merged into {out}; serve it with slm-ray serve --base {out}")


def _at_hand(adapters_dir: str) -> Path:
    """The folder, or a copy of what lies in object storage; weights are fetched when they are looked at."""
    if not is_remote(adapters_dir):
        return Path(adapters_dir)
    return fetched(adapters_dir, setting="--adapters_dir", leave_out=(".safetensors",), may_be_empty=True)


def _results(runs: Path) -> dict[str, AdapterResults]:
    from slm_ray.reports.adapter_results import results_by_adapter  # imports numpy

    return results_by_adapter(runs)


def _score(results: AdapterResults | None) -> str:
    if results is None or results.score is None:
        return "-"
    name, value = results.score
    return f"{name} {'undefined' if value is None else f'{value:.3f}'}"


def _verdict(report: ComparisonReport) -> str:
    compared, interval = report.comparison, report.comparison.interval
    return (
        f"{report.decision.action}: {compared.primary} {interval.estimate:+.4f} ({interval.lower:+.4f} to {interval.upper:+.4f})"
        f" against {compared.llm} on {compared.n} rows, rule {report.decision.rule}, delta {report.decision.delta:g}"
    )


def _readable(adapters_dir: Path) -> tuple[list[adapters.Manifest], list[str]]:
    """All manifests, oldest first, and what is wrong with those that are damaged."""
    manifests, damaged = [], []
    for adapter_id in adapters.adapter_ids(adapters_dir):
        try:
            manifests.append(adapters.load_manifest(adapters_dir, adapter_id))
        except AdapterError as error:
            damaged.append(str(error))
    return sorted(manifests, key=lambda manifest: (manifest.created, manifest.id)), damaged


def _said(entry: Entry) -> str:
    what = f"{entry.adapter} deleted" if entry.action == "delete" else f"{entry.alias} is {entry.adapter or 'nothing'}"
    before = "" if entry.action == "delete" else f" (before: {entry.before or 'nothing'})"
    return f"{entry.at} {entry.action}: {what}{before}, by {entry.by}" + (
        f": {' '.join(entry.reason.split())}" if entry.reason else ""
    )


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """A problem that a person can mend ends the command in one line and exit status 2."""
    try:
        yield
    except SlmRayError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise typer.Exit(BAD_INPUT) from None
