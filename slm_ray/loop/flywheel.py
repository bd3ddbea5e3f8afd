"""The loop on live traffic: the log becomes rows once, the loop runs on them, and the route gets the new adapter at shadow.

What the log held when a run began is kept in the run directory (`TRACK/live/`), so that a run which is continued goes on with
the same rows however much has been asked meanwhile; another run directory takes the log as it is then. All other steps are the
loop's and are resumed as its own. A route that serves users is left alone unless the new verdict grants the state that it is
in. Promises no better adapter: only that what is put at shadow has been through the same verdict as every other.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from ray import serve

from slm_ray import storage
from slm_ray.config import DistilConfig, EvaluateConfig, FlywheelConfig, Live, Source
from slm_ray.errors import ConfigError, DataError, ModelError, ResourceError
from slm_ray.evaluation import evaluate
from slm_ray.evaluation.outage import outages
from slm_ray.loop.run import Loop
from slm_ray.loop.track import TrackRun
from slm_ray.prepare.live import is_live, live_rows
from slm_ray.providers import parse
from slm_ray.reports.distil import distil
from slm_ray.rollout.declared import route_of
from slm_ray.rollout.grants import read_grant
from slm_ray.rollout.states import Grant, Route, RouteState, held
from slm_ray.rollout.store import RouteStore
from slm_ray.tasks import open_track
from slm_ray.traffic import ArmAnswer, TrafficRow, read_traffic
from slm_ray.traffic.snapshot import write_snapshot

LIVE, SUMMARY = "live", "live.json"
LOG_COPY, TO_ASK, ASKED, ANSWERED, ASKED_COPY = "log", "to_ask.jsonl", "asked", "answered.jsonl", "relabelled"
BY = "flywheel"
_FRONT = "slm-ray-rollout-"


def collect(track: Source, source: str, folder: Path) -> int:
    """Copy what the log `source` holds of the track's route to FOLDER/log, once; how many requests that were.

    What an earlier call for the same log and route left is kept. DataError for damaged parts unless `max_bad_share` allows bad rows.
    """
    said = {"source": source, "route": track.live.route}
    if (folder / SUMMARY).exists():
        summary = storage.read_json(folder / SUMMARY)
        if {name: summary.get(name) for name in said} == said:
            return int(summary["requests"])
    damaged: list[DataError] = []
    rows = read_traffic(source, skip_bad=damaged.append if track.max_bad_share else None)
    count = write_snapshot(folder / LOG_COPY, (row for row in rows if row.route == track.live.route))
    storage.write_json(folder / SUMMARY, {**said, "requests": count, "damaged": len(damaged)})
    return count


def to_ask(log: Path, track: Source, out: Path) -> int:
    """Write the requests of the log whose answer the LLM is to give again as rows; how many. What users corrected is none."""
    live = live_rows(str(log), open_track(track.track), Live(route=track.live.route), ask_again=True)
    rows = [each.row for each in live.found if each.origin != "user"]
    storage.write_jsonl(out, (row.as_row() for row in rows))
    return len(rows)


def answered(log: Path, asked: Path, distilled: Path, out: Path, *, llm: str) -> None:
    """Copy the log to `out` with the LLM's new answers; a request that was asked and has none has no answer of the LLM.

    The copy is a sample of the traffic, since the LLM was asked whatever the SLM had made of a request: all of it counts
    as audited.
    """
    new = {row["id"]: row["completion"] for row in storage.read_jsonl(distilled)}
    again = {row["id"] for row in storage.read_jsonl(asked)}

    def relabelled(row: TrafficRow) -> TrafficRow:
        if row.id not in again:  # no row, or corrected by its user
            return dataclasses.replace(row, audited=True)
        others = tuple(answer for answer in row.answers if answer.arm != "llm")
        text = new.get(row.id)
        fresh = () if text is None else (ArmAnswer(arm="llm", model=llm, text=text, status=200, latency_s=0.0),)
        return dataclasses.replace(row, answers=(*fresh, *others), audited=True)

    write_snapshot(out, map(relabelled, read_traffic(str(log))))


def appoint(
    store: RouteStore, route: Route, *, adapter: str | None, grant: Grant, reason: str
) -> tuple[RouteState, str]:
    """Put an adapter at shadow for the route, made where it is not there; the route's state and what was done, in words.

    Nothing is done for an adapter and a verdict that the route was given before: what people or the watch did since stands.
    Only what a run that was cut off left at record is moved on. Nothing is done, either, where the route serves users in a
    state that the new verdict does not grant.
    """
    if route.name not in store.routes():
        store.create(route, adapter=adapter, grant=grant, reason=reason, by=BY)
        state = store.move(route.name, "shadow", reason=reason, by=BY)
        return state, f"{route.name}: made, at shadow with {adapter or route.slm}"
    now = store.route(route.name)
    # The LLM that users have now stays theirs; a verdict about another grants no more than shadow.
    route = dataclasses.replace(route, llm=now.route.llm, track=now.route.track)
    given = (adapter, route.slm, grant.digest)
    if any((then.adapter, then.route.slm, then.granted.digest) == given for then in store.history(route.name)):
        if (now.state, now.by) == ("record", BY) and now.action in ("create", "appoint"):
            state = store.move(route.name, "shadow", reason=reason, by=BY)
            return (
                state,
                f"{route.name}: at shadow with {adapter or route.slm}, which it was given when a run was cut off",
            )
        return now, f"{route.name}: was given {adapter or route.slm} before, and is left at {now.state} as it was since"
    new = held(grant, route=route, adapter=adapter)
    if now.serving and not new.allows(now.state):
        return now, (
            f"{route.name}: left at {now.state} with {now.adapter or now.route.slm}, for {new.because}, which does not grant"
            f" that; slm-ray routes appoint puts {adapter or route.slm} at shadow all the same"
        )
    state = store.appoint(route, adapter=adapter, grant=grant, reason=reason, by=BY)
    if state.state == "record":
        state = store.move(route.name, "shadow", reason=reason, by=BY)
    return state, f"{route.name}: at {state.state} with {adapter or route.slm}, granted up to {state.granted.most}"


class Flywheel(Loop):
    """One run of the flywheel."""

    config: FlywheelConfig

    def prepare(self) -> list[TrackRun]:
        """Every track's rows, its logs replaced by what they held when the run began."""
        self.runs = []
        for track in self.config.tracks:
            folder = self.folder / open_track(track.track).name
            taken = self._without_logs(track, folder)
            self.runs.append(TrackRun(config=taken, prepared=self.prepared(taken, folder / "examples"), folder=folder))
        return self.runs

    def run(self) -> dict[str, str]:
        """All steps of the loop, then the routes; the decision per track."""
        _refuse_beside_front(serve.status().applications)
        decided = super().run()
        with self.log.step("routes"):
            for run in self.runs:
                self._appoint(run)
        return decided

    def _without_logs(self, track: Source, folder: Path) -> Source:
        weights = {track.source: 1.0} if isinstance(track.source, str) else dict(track.source)
        taken: dict[str, float] = {}
        for place, (source, weight) in enumerate(weights.items()):
            if not is_live(source):
                taken[source] = weight
                continue
            at = folder / (LIVE if not place else f"{LIVE}-{place}")
            self.log.outcome(f"{collect(track, source, at):,} live requests")
            log = self._relabelled(track, at) if self.config.relabel else at / LOG_COPY
            taken[str(log)] = weight
        chosen: str | dict[str, float] = next(iter(taken)) if isinstance(track.source, str) else taken
        return track.model_copy(update={"source": chosen})

    def _relabelled(self, track: Source, folder: Path) -> Path:
        """The copy of the log in which the LLM has answered again; a run that is continued asks nothing twice."""
        if not to_ask(folder / LOG_COPY, track, folder / TO_ASK):
            return folder / LOG_COPY
        config = EvaluateConfig(
            track=track.track, examples=str(folder / TO_ASK), models=(self.llm,), run_dir=str(folder / ASKED),
            prices=self.config.prices, **dict(self.config.evaluation),
        )  # fmt: skip
        report = evaluate(config, environment=self.environment)
        if failed := outages(report):
            raise ModelError(f"{track.track}, live requests: {'; '.join(failed)}")
        done = distil(
            DistilConfig(
                report=str(folder / ASKED), teacher=self.llm, examples=str(folder / TO_ASK), floor=0.0,
                out=str(folder / ANSWERED),
            )
        )  # fmt: skip
        self.log.say(done.summary())
        answered(folder / LOG_COPY, folder / TO_ASK, folder / ANSWERED, folder / ASKED_COPY, llm=self.llm)
        return folder / ASKED_COPY

    def _appoint(self, run: TrackRun) -> None:
        adapter = run.adapter.id if run.adapter is not None else None
        route, adapter = route_of(
            str(run.config.live.route), llm=self.llm, slm=f"{self.base}:{adapter}" if adapter else self.base,
            track=run.config.track, base=self.config.serving.name, resolved=lambda adapter_id: adapter_id,
        )  # fmt: skip
        grant = read_grant(run.folder / "test")
        state, said = appoint(
            RouteStore(self.config.routes_dir),
            route,
            adapter=adapter,
            grant=grant,
            reason=f"{self.folder.name}: {grant.because}",
        )
        self.log.outcome(said)
        storage.write_json(run.folder / "route.json", {"route": route.name, "state": state.state, "said": said})


def flywheel(config: FlywheelConfig, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Run the flywheel; the final action per track. Raises before anything starts when a key, a log or a resource is missing."""
    this = Flywheel(config, os.environ if environment is None else environment)
    parse(this.llm).provider.check(this.environment)
    for place, track in enumerate(config.tracks):
        if not any(is_live(source) for source in ([track.source] if isinstance(track.source, str) else track.source)):
            raise ConfigError(
                f"tracks.{place}.source: {track.source} is no traffic log; use slm-ray loop for other rows"
            )
    if config.relabel and this.uses_stand_in:
        raise ConfigError(
            "relabel asks the LLM before anything is served, and the stand-in is served; set the AZURE_* keys"
        )
    return this.execute(this.run)


def _refuse_beside_front(applications: Iterable[str]) -> None:
    """A run serves its own base and may take that down to train: no place for it beside what answers users."""
    if fronts := [name for name in applications if name.startswith(_FRONT)]:
        raise ResourceError(
            f"{fronts[0]} answers users on this cluster, and the flywheel would replace the endpoint behind it; submit the"
            " flywheel to another cluster that sees the same folders"
        )
