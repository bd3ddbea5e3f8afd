"""The loop on live traffic: the log becomes rows once, the loop runs on them, and the route gets the new adapter at shadow.

What the log held when a run began is kept in the run directory (`TRACK/live/`), so that a run which is continued goes on with
the same rows however much has been asked meanwhile; another run directory takes the log as it is then. All other steps are the
loop's and are resumed as its own. A route that serves users is left alone unless the new verdict grants the state that it is
in. Promises no better adapter: only that what is put at shadow has been through the same verdict as every other.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from ray import serve

from slm_ray import storage
from slm_ray.config import DistilConfig, EvaluateConfig, FlywheelConfig, TrackSource
from slm_ray.corpus.row_errors import refuse
from slm_ray.corpus.tracks import Track, definition
from slm_ray.errors import ConfigError, ModelError, ResourceError
from slm_ray.evaluation import evaluate
from slm_ray.evaluation.outage import outages
from slm_ray.loop.run import Loop
from slm_ray.loop.track import TrackRun
from slm_ray.prepare.live import LiveRows, is_live, live_rows
from slm_ray.providers import parse
from slm_ray.reports.distil import distil
from slm_ray.rollout.grants import read_grant
from slm_ray.rollout.states import Grant, Route, RouteState, held
from slm_ray.rollout.store import RouteStore
from slm_ray.tasks import open_track

LIVE = "live"  # the folder of a track's live rows
KEPT, TO_ASK, ROWS, SUMMARY = "kept.jsonl", "to_ask.jsonl", "rows.jsonl", "live.json"
BY = "flywheel"
_FRONT = "slm-ray-rollout-"


def collect(track: TrackSource, source: str, folder: Path, *, relabel: bool) -> dict[str, int]:
    """The requests of the log `source` as rows in `folder`, once: those whose answer stays, and those to be asked again.

    How many rows there are in KEPT and in TO_ASK. What an earlier call of the same settings left is kept. DataError for
    damaged parts unless `skip_bad`.
    """
    definition_ = open_track(track.track)
    digest = _digest(track, source, definition_, relabel=relabel)
    if (folder / SUMMARY).exists():
        summary = storage.read_json(folder / SUMMARY)
        if summary.get("digest") == digest:
            return dict(summary["rows"])
    found = live_rows(source, definition_, track.live, ask_again=relabel)
    if not track.skip_bad:
        refuse(found.errors, hint="put the files back, or set skip_bad to leave them out")
    kept = [each.row for each in found.found if not relabel or each.origin == "user"]
    again = [each.row for each in found.found if relabel and each.origin != "user"]
    rows = {KEPT: kept, TO_ASK: again}
    for name, some in rows.items():
        storage.write_jsonl(folder / name, (row.as_row() for row in some))
    counts = {name: len(some) for name, some in rows.items()}
    storage.write_json(folder / SUMMARY, {"digest": digest, "source": source, "rows": counts, **_said(found)})
    return counts


def appoint(
    store: RouteStore, route: Route, *, adapter: str | None, grant: Grant, reason: str
) -> tuple[RouteState, str]:
    """Put an adapter at shadow for the route, made where it is not there; the route's state and what was done, in words.

    Nothing is done again for an adapter and a verdict that the route has already, and nothing where the route serves users
    in a state that the new verdict does not grant.
    """
    if route.name not in store.routes():
        store.create(route, adapter=adapter, grant=grant, reason=reason, by=BY)
        state = store.move(route.name, "shadow", reason=reason, by=BY)
        return state, f"{route.name}: made, at shadow with {adapter or route.slm}"
    now = store.route(route.name)
    # The LLM that users have now stays theirs; a verdict about another grants no more than shadow.
    route = dataclasses.replace(route, llm=now.route.llm, track=now.route.track)
    if (now.adapter, now.route.slm, now.granted.digest) == (adapter, route.slm, grant.digest):
        return now, f"{route.name}: has {adapter or route.slm} already, at {now.state}"
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

    def _without_logs(self, track: TrackSource, folder: Path) -> TrackSource:
        weights = {track.source: 1.0} if isinstance(track.source, str) else dict(track.source)
        taken: dict[str, float] = {}
        for place, (source, weight) in enumerate(weights.items()):
            if not is_live(source):
                taken[source] = weight
                continue
            at = folder / (LIVE if not place else f"{LIVE}-{place}")
            counts = collect(track, source, at, relabel=self.config.relabel)
            for line in storage.read_json(at / SUMMARY)["steps"]:
                self.log.say(line)
            self.log.outcome(f"{sum(counts.values()):,} live rows")
            taken[self._answered(track, at, counts)] = weight
        chosen: str | dict[str, float] = next(iter(taken)) if isinstance(track.source, str) else taken
        return track.model_copy(update={"source": chosen, "format": "auto"} if taken.keys() != weights.keys() else {})

    def _answered(self, track: TrackSource, folder: Path, counts: Mapping[str, int]) -> str:
        """The file of live rows, those to be asked again with the LLM's new answers."""
        if not counts[TO_ASK]:
            return str(folder / KEPT)
        config = EvaluateConfig(
            track=track.track, examples=str(folder / TO_ASK), models=(self.llm,), run_dir=str(folder / "asked"),
            prices=self.config.prices, **dict(self.config.evaluation),
        )  # fmt: skip
        report = evaluate(config, environment=self.environment)
        if failed := outages(report, config.max_failed_share):
            raise ModelError(f"{track.track}, live requests: {'; '.join(failed)}")
        done = distil(
            DistilConfig(
                report=str(folder / "asked"), teacher=self.llm, examples=str(folder / TO_ASK), floor=0.0,
                out=str(folder / "relabelled.jsonl"),
            )
        )  # fmt: skip
        self.log.say(done.summary())
        lines = [*_lines(folder / KEPT), *_lines(Path(done.out))]
        storage.write_text(folder / ROWS, "".join(f"{line}\n" for line in lines))
        return str(folder / ROWS)

    def _appoint(self, run: TrackRun) -> None:
        adapter = run.adapter.id if run.adapter is not None else None
        route = Route(
            name=str(run.config.live.route), llm=self.llm, slm=f"{self.base}:{adapter}" if adapter else self.base,
            track=run.config.track, base=self.config.serving.name,
        )  # fmt: skip
        grant = read_grant(run.folder / "test")
        state, said = appoint(
            RouteStore(self.config.routes),
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


def _digest(track: TrackSource, source: str, resolved: Track, *, relabel: bool) -> str:
    said = [source, track.live.model_dump(mode="json"), definition(resolved), relabel]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _said(found: LiveRows) -> dict[str, object]:
    return {"steps": [str(step) for step in found.steps], "damaged": len(found.errors)}


def _lines(path: Path) -> list[str]:
    return storage.split_lines(path.read_text(encoding="utf-8"))
