"""`slm-ray routes …`: what answers each route, what its verdict allows, and every change with who, when and why.

Works on the folder of the routes, whether or not a front runs: a front goes by a change within a second. Thin:
every verb calls `slm_ray.rollout` and prints. A problem that a person can mend is one line and exit status 2.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from slm_ray.adapters.history import resolve
from slm_ray.adapters.registry import is_id
from slm_ray.cli.adapters import one_line
from slm_ray.command import BAD_INPUT
from slm_ray.errors import ConfigError, DataError
from slm_ray.rollout.fallbacks import read_fallbacks
from slm_ray.rollout.states import (
    NO_VERDICT,
    STATES,
    Grant,
    Route,
    RouteState,
    is_state,
    state_text,
    watched_text,
)
from slm_ray.rollout.store import RouteStore
from slm_ray.storage import write_text
from slm_ray.tables import format_table
from slm_ray.types import State

app = typer.Typer(
    name="routes",
    no_args_is_help=True,
    help="Routes from an LLM to an SLM: create, move, take back, list, show, history, page.",
)

Folder = Annotated[Path, typer.Option("--folder", help="the folder of the routes")]
AdaptersDir = Annotated[
    Path, typer.Option("--adapters_dir", help="where an adapter that is named by an alias is published")
]
Reason = Annotated[str, typer.Option("--reason", help="why; kept in the history")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="a route")]
Llm = Annotated[str | None, typer.Option("--llm", help="spec of the LLM; the verdict's when not set")]
Slm = Annotated[str | None, typer.Option("--slm", help="spec of the SLM; the verdict's when not set")]
Verdict = Annotated[
    Path | None, typer.Option("--verdict", help="run directory or comparison.json that allows more than shadow")
]
OtherReport = Annotated[
    Path | None, typer.Option("--other-report", help="where the SLM's rows are, when it was evaluated apart")
]
Audit = Annotated[float | None, typer.Option("--audit-share", help="part of the requests that both sides are asked")]
Delta = Annotated[
    float | None, typer.Option("--delta", help="how much worse the SLM may be; the verdict's when not set")
]
Timeout = Annotated[float | None, typer.Option("--timeout-s", help="seconds the SLM may take before the LLM is asked")]
DEFAULT, ADAPTERS = Path("runs/routes"), Path("runs/adapters")


@app.command("list")
def list_all(
    folder: Folder = DEFAULT,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object per line")] = False,
) -> None:
    """Every route: who answers now, what the verdict allows, and since when."""
    with one_line():
        store = RouteStore(folder)
        routes, damaged = store.routes(), store.damaged()
        in_its_place = {name: _in_its_place(folder, now, damaged) for name, now in routes.items()}
        if not routes and not damaged:
            print(f"there is no route in {folder}; slm-ray routes create makes one", file=sys.stderr)
        elif as_json:
            for state in routes.values():
                print(json.dumps(dataclasses.asdict(state)))
        else:
            rows = [
                [
                    name,
                    state_text(now),
                    now.route.llm,
                    now.adapter or now.route.slm,
                    now.granted.most,
                    in_its_place[name],
                    now.changed_at[:19],
                    now.by,
                ]
                for name, now in routes.items()
            ]
            names = ["route", "state", "LLM", "SLM", "at most", "LLM in its place", "since (UTC)", "by"]
            print("\n".join(format_table([names, *rows], left=range(len(names)))))
        for line in damaged:
            print(f"error: {line}", file=sys.stderr)
    if damaged:
        raise typer.Exit(BAD_INPUT)


@app.command()
def show(name: Name, folder: Folder = DEFAULT) -> None:
    """All that is known of one route: who stands behind it, what its verdict allows and why, how it is watched."""
    with one_line():
        now = RouteStore(folder).route(name)
        grant = now.granted
        print(f"{name}: {state_text(now)}, since {now.changed_at} by {now.by}: {_one_line_of(now.reason)}")
        print(f"LLM {now.route.llm}{_stand_in(now, now.route.llm)}")
        print(f"SLM {now.route.slm}{_stand_in(now, now.route.slm)}; a roll-back leads to {now.previous or 'record'}")
        print(f"track {now.route.track}, base {now.route.base}")
        print(f"allowed: {', '.join(grant.allowed)}; {grant.because}")
        if grant.comparison:
            print(
                f"verdict {grant.comparison} (sha256 {(grant.digest or '')[:12]}), rule {grant.rule}, delta {grant.delta:g}"
            )
        print(watched_text(grant, now.delta))
        if now.serving:
            found = read_fallbacks(folder, now)
            said = found.in_words if found else "no front has seen a call for the SLM in this state yet"
            print(f"{said}; the watch rings no alarm for that")
        print(f"audit_share {now.audit_share:g}, delta {now.delta:g}, timeout_s {now.timeout_s:g}, change {now.serial}")


@app.command()
def create(
    name: Name,
    reason: Reason,
    llm: Llm = None,
    slm: Slm = None,
    verdict: Verdict = None,
    other_report: OtherReport = None,
    track: Annotated[
        str | None, typer.Option("--track", help="name or file of the track; the verdict's when not set")
    ] = None,
    audit_share: Audit = None,
    delta: Delta = None,
    timeout_s: Timeout = None,
    adapters_dir: AdaptersDir = ADAPTERS,
    folder: Folder = DEFAULT,
) -> None:
    """A new route, at record: the LLM answers. A verdict names both models and what may come of them."""
    with one_line():
        grant, judged = _granted(verdict, other_report)
        if (named := track or judged) is None:
            raise ConfigError("a route needs a track: give --track, or the --verdict that has one")
        route, adapter = _route(name, llm or grant.llm, slm or grant.slm, named, adapters_dir)
        settings = {"audit_share": audit_share, "delta": delta, "timeout_s": timeout_s}
        given = {key: value for key, value in settings.items() if value is not None}
        print(_said(RouteStore(folder).create(route, adapter=adapter, grant=grant, reason=reason, **given)))  # type: ignore[arg-type]


@app.command()
def appoint(
    name: Name,
    reason: Reason,
    llm: Llm = None,
    slm: Slm = None,
    verdict: Verdict = None,
    other_report: OtherReport = None,
    adapters_dir: AdaptersDir = ADAPTERS,
    folder: Folder = DEFAULT,
) -> None:
    """Another adapter, another LLM or a newer verdict. Another adapter starts at shadow."""
    with one_line():
        if llm is None and slm is None and verdict is None:
            raise ConfigError("nothing to appoint: give --slm, --llm or --verdict")
        store = RouteStore(folder)
        now = store.route(name)
        grant = _granted(verdict, other_report)[0] if verdict else now.granted
        judged = grant if verdict else NO_VERDICT
        new_llm, new_slm = llm or judged.llm or now.route.llm, slm or judged.slm or now.route.slm
        route, adapter = _route(name, new_llm, new_slm, now.route.track, adapters_dir)
        print(_said(store.appoint(route, adapter=adapter, grant=grant, reason=reason)))


@app.command()
def move(
    name: Name,
    state: Annotated[str, typer.Argument(metavar="|".join(STATES))],
    reason: Reason,
    share: Annotated[
        float | None, typer.Option("--share", help="of a canary: the part of the users that get the SLM")
    ] = None,
    folder: Folder = DEFAULT,
) -> None:
    """Another state, as far as the verdict allows it; a front goes by it within a second."""
    with one_line():
        print(_said(RouteStore(folder).move(name, _known(state), share=share, reason=reason)))


@app.command()
def adjust(
    name: Name,
    reason: Reason,
    audit_share: Audit = None,
    delta: Delta = None,
    timeout_s: Timeout = None,
    folder: Folder = DEFAULT,
) -> None:
    """Other settings of a route. Another delta begins a new watch."""
    with one_line():
        store = RouteStore(folder)
        print(_said(store.adjust(name, audit_share=audit_share, delta=delta, timeout_s=timeout_s, reason=reason)))


@app.command()
def back(name: Name, reason: Reason, folder: Folder = DEFAULT) -> None:
    """Take the SLM back: to the adapter that users had before, else to record, where the LLM answers."""
    with one_line():
        print(_said(RouteStore(folder).back(name, reason=reason)))


@app.command()
def history(
    name: Name,
    folder: Folder = DEFAULT,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object per line")] = False,
) -> None:
    """Every change of a route, the first one first: what, who, when, why."""
    with one_line():
        for state in RouteStore(folder).history(name):
            print(json.dumps(dataclasses.asdict(state)) if as_json else _said(state))


@app.command()
def page(
    name: Name,
    out: Annotated[Path, typer.Option("--out", help="the file to write")] = Path("route.html"),
    traffic: Annotated[
        str | None, typer.Option("--traffic", help="the log of traffic, for who answered over time")
    ] = None,
    folder: Folder = DEFAULT,
) -> None:
    """One HTML file: who answered over time, the watch against its alarm, every change, the disagreements."""
    with one_line():
        from slm_ray.page.rollout import route_page
        from slm_ray.rollout.picture import route_picture

        write_text(out, route_page(route_picture(folder, name, traffic=traffic)))
        print(f"wrote {out}")


def _in_its_place(folder: Path, now: RouteState, damaged: list[str]) -> str:
    """The LLM's part of the latest calls that the SLM was to answer; a file that cannot be read goes to `damaged`."""
    try:
        found = read_fallbacks(folder, now) if now.serving else None
    except DataError as error:
        damaged.append(str(error))
        return "?"
    if found is None:
        return "–"
    return f"{found.share:.0%} of {found.calls}{', lasts' if found.since is not None else ''}"


def _granted(verdict: Path | None, other_report: Path | None) -> tuple[Grant, str | None]:
    """What a verdict grants, and the track that it is about."""
    if verdict is None:
        return NO_VERDICT, None
    from slm_ray.rollout.grants import read_grant, track_of_verdict  # imports numpy

    return read_grant(verdict, other_report=other_report), track_of_verdict(verdict)


def _route(name: str, llm: str | None, slm: str | None, track: str, adapters_dir: Path) -> tuple[Route, str | None]:
    """The route and its adapter; an id is taken as it is, since it may be published in a folder that only the front sees."""
    if llm is None or slm is None:
        raise ConfigError("a route needs both models: give --llm and --slm, or the --verdict that compares them")
    from slm_ray.rollout.declared import route_of  # imports numpy

    return route_of(
        name, llm=llm, slm=slm, track=track, base=None,
        resolved=lambda adapter: adapter if is_id(adapter) else resolve(adapters_dir, adapter),
    )  # fmt: skip


def _known(state: str) -> State:
    if not is_state(state):
        raise ConfigError(f"unknown state {state!r}: known: {', '.join(STATES)}")
    return state


def _said(now: RouteState) -> str:
    return (
        f"{now.changed_at} {now.route.name} {now.action}: {state_text(now)}, LLM {now.route.llm}, SLM"
        f" {now.adapter or now.route.slm}, by {now.by}: {_one_line_of(now.reason)}"
    )


def _one_line_of(text: str) -> str:
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def _stand_in(now: RouteState, spec: str) -> str:
    return "  [stand-in answered the verdict's rows]" if spec in now.stand_ins else ""
