"""The flywheel's own steps: the log is taken once, the LLM is asked again within its budget, and the route is left safe."""

import json
from pathlib import Path
from typing import Any

import pytest
from traffic_rows import NOW, asked, log_of, said

from slm_ray.cli.commands import COMMANDS
from slm_ray.config import FlywheelConfig, Live, Source, load
from slm_ray.corpus.tracks import track
from slm_ray.errors import ConfigError, DataError, ResourceError
from slm_ray.loop import flywheel
from slm_ray.loop.flywheel import Flywheel, appoint, collect
from slm_ray.prepare.live import live_rows
from slm_ray.rollout.states import Grant, Route
from slm_ray.rollout.store import RouteStore
from slm_ray.traffic import Feedback, TrafficLog, read_traffic
from slm_ray.types import State

ROOT = Path(__file__).parents[2]


def source(log: str, **settings: Any) -> Source:
    return Source(track="structured", source=log, live=Live(route="r"), **settings)


def settings(log: str, **changes: Any) -> FlywheelConfig:
    overrides = [f"{name}={json.dumps(value)}" for name, value in changes.items()]
    track = {"track": "structured", "source": log, "live": {"route": "r"}}
    return load(FlywheelConfig, ROOT / "jobs/flywheel.yaml", [f"tracks=[{json.dumps(track)}]", *overrides])


def without_logs(config: FlywheelConfig, track: Source) -> Source:
    this = Flywheel(config, {})
    with this.log, this.log.step("prepare"):
        return this._without_logs(track, this.folder / "structured")


def ids(log: object) -> list[str]:
    return [row.id for row in read_traffic(str(log))]


def test_the_log_is_taken_once_however_much_is_asked_meanwhile(tmp_path: Path) -> None:
    log = log_of(tmp_path / "log", *(asked(f"{n}", said(n)) for n in range(5)), asked("other", said(1), route="o"))
    assert collect(source(log), log, tmp_path / "live") == 5
    with TrafficLog(log) as more:
        more.append(asked("later", said(1)))
        more.append(Feedback(id="1", at=NOW, score=0.0))
    assert collect(source(log), log, tmp_path / "live") == 5
    assert ids(tmp_path / "live" / "log") == list("01234")
    assert not any(row.feedback for row in read_traffic(str(tmp_path / "live" / "log")))
    assert collect(source(log), log, tmp_path / "another run") == 6
    copied = {row.id: row for row in read_traffic(str(tmp_path / "another run" / "log"))}
    assert copied == {row.id: row for row in read_traffic(log) if row.route == "r"} and copied["1"].feedback


def test_a_copy_that_a_kill_cut_short_is_made_anew(tmp_path: Path) -> None:
    log = log_of(tmp_path / "log", *(asked(f"{n}", said(n)) for n in range(5)))
    collect(source(log), log, tmp_path / "live")
    (tmp_path / "live" / "live.json").unlink()
    next((tmp_path / "live" / "log").rglob("*.parquet")).write_bytes(b"half")
    assert collect(source(log), log, tmp_path / "live") == 5 and len(ids(tmp_path / "live" / "log")) == 5


def test_a_damaged_part_stops_it_unless_bad_rows_may_be_left_out(tmp_path: Path) -> None:
    log = log_of(tmp_path / "log", asked("a", said(1)))
    part = next(Path(log).rglob("*.parquet"))
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(DataError, match="no whole Parquet file"):
        collect(source(log), log, tmp_path / "live")
    assert collect(source(log, max_bad_share=0.01), log, tmp_path / "live") == 0


def test_the_llm_is_asked_again_and_what_users_corrected_stays(tmp_path: Path) -> None:
    rows = [
        asked("old", said("old"), said("s")), asked("alone", None, said("slm"), served="slm"), asked("mine", said("wrong")),
        Feedback(id="mine", at=NOW, answer=said("corrected")), asked("lost", said("lost")),
    ]  # fmt: skip
    log = log_of(tmp_path / "log", *rows)
    answers = {"old": said("new"), "alone": said("asked"), "lost": "no JSON at all"}
    recorded = tmp_path / "answers.jsonl"
    recorded.write_text("".join(json.dumps({"id": one, "prediction": text}) + "\n" for one, text in answers.items()))
    config = settings(log, relabel=True, llm=f"recorded:{recorded}", run_dir=str(tmp_path / "run"))
    taken = without_logs(config, config.tracks[0])
    found = live_rows(str(taken.source), track("structured"), Live(route="r"))
    targets = {row.id: (row.target, row.tags["target_from"]) for row in found.rows}
    assert targets == {
        "mine": (said("corrected"), "user"),
        "old": (said("new"), "llm"),
        "alone": (said("asked"), "llm"),
    }
    (old,) = [row for row in read_traffic(str(taken.source)) if row.id == "old"]
    assert [answer.text for answer in old.answers] == [said("new"), said("s")]  # both are there to be compared


def test_without_relabelling_the_log_stands_among_other_sources_as_it_was(tmp_path: Path) -> None:
    log = log_of(tmp_path / "log", asked("a", said(1)), asked("alone", None, said("slm"), served="slm"))
    config = settings(log, run_dir=str(tmp_path / "run"))
    further = Source(track="structured", source={log: 1.0, "more.jsonl": 0.5}, live=Live(route="r"), format="xlam")
    taken = without_logs(config, further)
    assert isinstance(taken.source, dict)
    copy, other = taken.source
    assert ids(copy) == ["a", "alone"] and other == "more.jsonl" and list(taken.source.values()) == [1.0, 0.5]


def test_what_cannot_be_meant_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"live.route is not set"):
        load(FlywheelConfig, ROOT / "jobs/flywheel.yaml", ["tracks.0.live.route=null"])
    with pytest.raises(ConfigError, match="is no traffic log"):
        flywheel.flywheel(settings(str(tmp_path), llm="fake:x"), {})
    log = log_of(tmp_path / "log", asked("a", said(1)))
    with pytest.raises(ConfigError, match="relabel asks the LLM before anything is served"):
        flywheel.flywheel(settings(log, relabel=True, stand_in=True), {})
    with pytest.raises(ResourceError, match="answers users on this cluster"):
        flywheel._refuse_beside_front(["slm-ray-8000-abc", "slm-ray-rollout-8000"])


def test_routes_lie_in_a_folder_that_outlives_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[FlywheelConfig] = []

    def run(config: FlywheelConfig) -> dict[str, str]:
        given.append(config)
        return {}

    monkeypatch.setattr(flywheel, "flywheel", run)
    base, jobs = {"serving.base": str(ROOT / "data/tiny_base")}, tmp_path / "runtime_resources"
    monkeypatch.chdir(tmp_path)
    assert COMMANDS["flywheel"].run(settings("log", routes_dir="my/routes", **base)) == 0
    assert given[0].routes_dir == str(tmp_path / "my/routes")
    with pytest.raises(ConfigError, match=r"routes_dir 's3://mine/routes' is no folder"):
        COMMANDS["flywheel"].run(settings("log", routes_dir="s3://mine/routes", **base))
    jobs.mkdir()
    monkeypatch.chdir(jobs)
    with pytest.raises(ConfigError, match="--set routes_dir="):
        COMMANDS["flywheel"].run(settings("log", routes_dir="my/routes", **base))
    assert len(given) == 1


ROUTE = Route(name="r", llm="azure:gpt", slm="served:tiny:a@1", track="structured", base="tiny")


def grant(adapter: str, most: Any = "live", digest: str = "1") -> Grant:
    return Grant(
        most=most, because="the verdict is " + most, llm="azure:gpt", slm=f"served:tiny:{adapter}", adapter=adapter,
        comparison=f"runs/{adapter}", digest=digest, threshold=-0.1 if most == "cascade" else None,
    )  # fmt: skip


def route(adapter: str) -> Route:
    return Route(name="r", llm="azure:gpt", slm=f"served:tiny:{adapter}", track="structured", base="tiny")


def put(store: RouteStore, adapter: str, granted: Grant) -> str:
    return appoint(store, route(adapter), adapter=adapter, grant=granted, reason="a run")[1]


def test_a_new_route_is_at_shadow_and_the_same_verdict_changes_nothing_again(tmp_path: Path) -> None:
    store = RouteStore(tmp_path)
    put(store, "a@1", grant("a@1"))
    now = store.route("r")
    assert (now.state, now.adapter, now.granted.most, now.by) == ("shadow", "a@1", "live", "flywheel")
    assert "was given a@1 before" in put(store, "a@1", grant("a@1"))
    assert store.route("r") == now


def test_an_adapter_that_was_taken_back_stays_taken_back_when_the_run_is_continued(tmp_path: Path) -> None:
    store = RouteStore(tmp_path)
    put(store, "a@1", grant("a@1"))
    store.move("r", "live", reason="go")
    store.back("r", reason="it was worse")
    put(store, "a@1", grant("a@1"))
    assert store.route("r").state == "record" and len(store.history("r")) == 4


@pytest.mark.parametrize(
    ("state", "most", "after"),
    [
        ("record", "shadow", ("shadow", "a@2")), ("shadow", "shadow", ("shadow", "a@2")), ("live", "live", ("shadow", "a@2")),
        ("canary", "live", ("shadow", "a@2")), ("live", "shadow", ("live", "a@1")), ("canary", "cascade", ("canary", "a@1")),
    ],
)  # fmt: skip
def test_a_route_that_serves_users_is_left_alone_unless_the_verdict_grants_its_state(
    tmp_path: Path, state: State, most: Any, after: tuple[str, str]
) -> None:
    store = RouteStore(tmp_path)
    store.create(route("a@1"), adapter="a@1", grant=grant("a@1"), reason="begin")
    store.move("r", state, reason="go", share=0.5 if state == "canary" else None)
    told = put(store, "a@2", grant("a@2", most, digest="2"))
    now = store.route("r")
    assert (now.state, now.adapter) == after
    assert ("left at" in told) == (after[1] == "a@1")


def test_the_llm_of_a_route_stays_and_a_verdict_about_another_grants_no_more_than_shadow(tmp_path: Path) -> None:
    store = RouteStore(tmp_path)
    other = Route(name="r", llm="openai:o", slm="served:tiny:a@1", track="structured", base="tiny")
    store.create(other, adapter="a@1", grant=grant("a@1"), reason="begin")
    put(store, "a@2", grant("a@2"))
    now = store.route("r")
    assert (now.route.llm, now.state, now.granted.most, now.adapter) == ("openai:o", "shadow", "shadow", "a@2")


@pytest.mark.parametrize("there", [False, True])
def test_a_run_that_was_cut_off_before_the_move_to_shadow_makes_it_when_it_is_continued(
    tmp_path: Path, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RouteStore(tmp_path)
    if there:
        store.create(route("a@0"), adapter="a@0", grant=grant("a@0"), reason="begin")

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as cut:
        cut.setattr(RouteStore, "move", killed)
        with pytest.raises(KeyboardInterrupt):
            put(store, "a@1", grant("a@1"))
    assert (store.route("r").state, store.route("r").adapter) == ("record", "a@1")
    assert "when a run was cut off" in put(store, "a@1", grant("a@1"))
    assert store.route("r").state == "shadow" and len(store.history("r")) == 2 + there
    put(store, "a@1", grant("a@1"))
    assert len(store.history("r")) == 2 + there
