"""The watch of a route on disk: what a killed process had counted is counted by the next one, and an alarm is acted on once."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from slm_ray.errors import DataError, ResourceError
from slm_ray.rollout.states import Grant, Route, RouteState
from slm_ray.rollout.store import RouteStore
from slm_ray.rollout.watched import WATCH, RouteWatch

ROUTE = Route(name="cities", llm="openai:gpt-x", slm="served:tiny:a-1", track="structured", base="tiny")
GRANT = Grant(
    most="live", because="a test", llm=ROUTE.llm, adapter="a-1", comparison="c.json", digest="d" * 64, agreement=0.95,
    agreement_lower=0.9, agreement_level=0.01,
)  # fmt: skip


def live(folder: Path, grant: Grant = GRANT) -> tuple[RouteStore, RouteState]:
    store = RouteStore(folder)
    store.create(ROUTE, adapter="a-1", grant=grant, reason="test", by="test")
    return store, store.move("cities", "live", reason="test", by="test")


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "cities" / WATCH).read_text().splitlines()]


def until_alarm(watch: RouteWatch, state: RouteState, score: float = 0.0, most: int = 500) -> tuple[int, RouteState]:
    for number in range(most):
        if (changed := watch.observe(state, f"r{number}", score)) is not None:
            return number + 1, changed
    raise AssertionError("no alarm")


def test_a_restart_forgets_nothing(tmp_path: Path) -> None:
    store, state = live(tmp_path / "one")
    whole, _ = until_alarm(RouteWatch(store, "cities"), state)
    store, state = live(tmp_path / "two")
    for number in range(whole - 1):  # a process each
        watch = RouteWatch(store, "cities")
        assert watch.observe(state, f"r{number}", 0.0) is None
        watch.close()
    with (tmp_path / "two" / "cities" / WATCH).open("a") as file:
        file.write('{"id": "half a li')  # what a killed process was writing
    changed = RouteWatch(store, "cities").observe(state, "last", 0.0)
    assert changed is not None and changed.state == "record" and changed.by == "watch"
    assert len(store.disagreements("cities")) == whole
    assert [one for one in lines(tmp_path / "two") if "score" in one][-1]["id"] == "last"


def test_an_alarm_that_nobody_acted_on_is_acted_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, state = live(tmp_path)

    def full(*_: object, **__: object) -> RouteState:
        raise ResourceError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(RouteStore, "back", full)
        watch = RouteWatch(store, "cities")
        with pytest.raises(ResourceError):
            until_alarm(watch, state)
        watch.close()
    assert store.route("cities").state == "live"
    changed = RouteWatch(store, "cities").observe(state, "next", 1.0)
    assert changed is not None and changed.state == "record"


def test_what_was_asked_before_the_route_changed_has_no_say(tmp_path: Path) -> None:
    store, state = live(tmp_path)
    watch = RouteWatch(store, "cities")
    until_alarm(watch, state)
    grant = replace(state.granted, digest="f" * 64)
    store.appoint(ROUTE, adapter=state.adapter, grant=grant, reason="a verdict on fresh rows", by="test")
    again = store.move("cities", "live", reason="looked at it", by="test")
    assert watch.observe(again, "a", 1.0) is None and watch.observations == 1
    assert watch.observe(state, "late", 0.0) is None and watch.observations == 1
    assert store.route("cities").serial == again.serial


def test_another_adapter_has_a_watch_of_its_own_and_another_state_has_not(tmp_path: Path) -> None:
    store, state = live(tmp_path)
    watch = RouteWatch(store, "cities")
    watch.observe(state, "a", 1.0)
    canary = store.move("cities", "canary", share=0.5, reason="test", by="test")
    watch.observe(canary, "b", 1.0)
    assert watch.observations == 2
    other = Route(name="cities", llm=ROUTE.llm, slm="served:tiny:b-1", track="structured", base="tiny")
    grant = Grant(
        most="live", because="x", llm=ROUTE.llm, adapter="b-1", comparison="e", digest="e" * 64, agreement_lower=0.8,
        agreement_level=0.01,
    )  # fmt: skip
    shadow = store.appoint(other, adapter="b-1", grant=grant, reason="test", by="test")
    watch.observe(shadow, "c", 1.0)
    assert watch.observations == 1
    starts = [one["start"] for one in lines(tmp_path) if "start" in one]
    assert [one["adapter"] for one in starts] == ["a-1", "b-1"]  # type: ignore[index]


def test_without_a_verdict_there_is_nothing_to_hold_the_slm_to(tmp_path: Path) -> None:
    store = RouteStore(tmp_path)
    grant = Grant(most="shadow", because="none was given")
    store.create(ROUTE, adapter="a-1", grant=grant, reason="test", by="test")
    state = store.move("cities", "shadow", reason="test", by="test")
    watch = RouteWatch(store, "cities")
    assert [watch.observe(state, f"r{number}", 0.0) for number in range(100)] == [None] * 100
    assert not (tmp_path / "cities" / WATCH).exists()


def test_in_shadow_an_alarm_is_noted_and_takes_nothing_back(tmp_path: Path) -> None:
    store, _ = live(tmp_path)
    shadow = store.move("cities", "shadow", reason="test", by="test")
    watch = RouteWatch(store, "cities")
    for number in range(300):
        watch.observe(shadow, f"r{number}", 0.0)
    now = store.route("cities")
    assert (now.state, now.adapter, now.action) == ("shadow", shadow.adapter, "alarm")
    assert now.granted.most == "shadow", "what the verdict said is overturned all the same"
    assert [one for one in lines(tmp_path) if "alarm" in one]


def test_an_alarm_is_acted_on_under_whatever_state_the_next_request_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, state = live(tmp_path)
    canary = store.move("cities", "canary", share=0.5, reason="test", by="test")

    def full(*_: object, **__: object) -> RouteState:
        raise ResourceError("the disk is full")

    watch = RouteWatch(store, "cities")
    with monkeypatch.context() as patched:
        patched.setattr(RouteStore, "back", full)
        with pytest.raises(ResourceError):
            until_alarm(watch, canary)
    changed = watch.observe(state, "asked before it was a canary", 1.0)
    assert changed is not None and changed.state == "record"
    assert len([one for one in lines(tmp_path) if "start" in one]) == 1


def test_requests_that_come_in_after_the_alarm_add_nothing(tmp_path: Path) -> None:
    store, state = live(tmp_path)
    watch = RouteWatch(store, "cities")
    rows, _ = until_alarm(watch, state)
    assert [watch.observe(state, f"late{number}", 0.0) for number in range(32)] == [None] * 32
    assert len(store.disagreements("cities")) == rows and len(store.history("cities")) == 3


def test_a_late_request_about_another_adapter_ends_no_watch(tmp_path: Path) -> None:
    store, first = live(tmp_path)
    other = replace(ROUTE, slm="served:tiny:b-1")
    grant = replace(GRANT, adapter="b-1", digest="e" * 64)
    late = store.appoint(other, adapter="b-1", grant=grant, reason="test", by="test")
    now = store.appoint(ROUTE, adapter="a-1", grant=GRANT, reason="test", by="test")
    watch = RouteWatch(store, "cities")
    watch.observe(first, "a", 1.0)
    watch.observe(now, "b", 1.0)
    assert watch.observe(late, "late", 0.0) is None and watch.observations == 2
    watch.observe(now, "c", 1.0)
    assert watch.observations == 3


def test_beside_another_front_nothing_waits_and_nothing_is_counted(tmp_path: Path) -> None:
    store, state = live(tmp_path)
    first, second = RouteWatch(store, "cities"), RouteWatch(store, "cities")
    first.observe(state, "a", 1.0)
    with pytest.raises(ResourceError, match=r"another process writes .*watch\.jsonl"):
        second.observe(state, "b", 1.0)
    first.close()
    second.observe(state, "c", 1.0)
    assert [one["id"] for one in lines(tmp_path) if "score" in one] == ["a", "c"]


@pytest.mark.parametrize(
    "damage", ['{"serial": 2}', '{"start": {}, "serial": 2}', '{"id": "x", "at": 1, "serial": 2, "score": 7}']
)
def test_a_line_that_no_watch_wrote_is_named_every_time(damage: str, tmp_path: Path) -> None:
    store, state = live(tmp_path)
    watch = RouteWatch(store, "cities")
    watch.observe(state, "a", 1.0)
    watch.close()
    path = tmp_path / "cities" / WATCH
    whole = path.read_text()
    path.write_text(whole + damage + "\n")
    for _ in range(2):  # never on with half of what was seen
        with pytest.raises(DataError, match=r"watch\.jsonl:3: "):
            watch.observe(state, "b", 1.0)
    path.write_text(whole)
    watch.observe(state, "b", 1.0)
    assert watch.observations == 2
