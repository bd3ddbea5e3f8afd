"""The watch of a route on disk: what a killed process had counted is counted by the next one, and an alarm is acted on once."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from slm_ray.errors import DataError, ResourceError
from slm_ray.rollout.picture import route_picture
from slm_ray.rollout.states import Grant, Route, RouteState
from slm_ray.rollout.store import RouteStore
from slm_ray.rollout.watched import WATCH, RouteWatch, Seen

ROUTE = Route(name="cities", llm="openai:gpt-x", slm="served:tiny:a-1", track="structured", base="tiny")
NO_AGREEMENT = {"agreement": None, "agreement_lower": None, "agreement_level": None}
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


def see(watch: RouteWatch, state: RouteState, request_id: str, score: float) -> RouteState | None:
    return watch.observe([Seen(state=state, id=request_id, score=score)])


def until_alarm(watch: RouteWatch, state: RouteState, score: float = 0.0, most: int = 500) -> tuple[int, RouteState]:
    for number in range(most):
        if (changed := see(watch, state, f"r{number}", score)) is not None:
            return number + 1, changed
    raise AssertionError("no alarm")


def test_a_restart_forgets_nothing(tmp_path: Path) -> None:
    store, state = live(tmp_path / "one")
    whole, _ = until_alarm(RouteWatch(store, "cities"), state)
    store, state = live(tmp_path / "two")
    for number in range(whole - 1):  # a process each
        watch = RouteWatch(store, "cities")
        assert see(watch, state, f"r{number}", 0.0) is None
        watch.close()
    with (tmp_path / "two" / "cities" / WATCH).open("a") as file:
        file.write('{"id": "half a li')  # what a killed process was writing
    changed = see(RouteWatch(store, "cities"), state, "last", 0.0)
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
    changed = see(RouteWatch(store, "cities"), state, "next", 1.0)
    assert changed is not None and changed.state == "record"


def test_what_was_asked_before_the_route_changed_has_no_say(tmp_path: Path) -> None:
    store, state = live(tmp_path)
    watch = RouteWatch(store, "cities")
    until_alarm(watch, state)
    grant = replace(state.granted, digest="f" * 64)
    store.appoint(ROUTE, adapter=state.adapter, grant=grant, reason="a verdict on fresh rows", by="test")
    again = store.move("cities", "live", reason="looked at it", by="test")
    assert see(watch, again, "a", 1.0) is None and watch.observations == 1
    assert see(watch, state, "late", 0.0) is None and watch.observations == 1
    assert store.route("cities").serial == again.serial


def test_another_adapter_has_a_watch_of_its_own_and_another_state_has_not(tmp_path: Path) -> None:
    store, state = live(tmp_path)
    watch = RouteWatch(store, "cities")
    see(watch, state, "a", 1.0)
    canary = store.move("cities", "canary", share=0.5, reason="test", by="test")
    see(watch, canary, "b", 1.0)
    assert watch.observations == 2
    other = Route(name="cities", llm=ROUTE.llm, slm="served:tiny:b-1", track="structured", base="tiny")
    grant = Grant(
        most="live", because="x", llm=ROUTE.llm, adapter="b-1", comparison="e", digest="e" * 64, agreement_lower=0.8,
        agreement_level=0.01,
    )  # fmt: skip
    shadow = store.appoint(other, adapter="b-1", grant=grant, reason="test", by="test")
    see(watch, shadow, "c", 1.0)
    assert watch.observations == 1
    starts = [one["start"] for one in lines(tmp_path) if "start" in one]
    assert [one["adapter"] for one in starts] == ["a-1", "b-1"]  # type: ignore[index]


def test_without_a_verdict_there_is_nothing_to_hold_the_slm_to(tmp_path: Path) -> None:
    store = RouteStore(tmp_path)
    grant = Grant(most="shadow", because="none was given")
    store.create(ROUTE, adapter="a-1", grant=grant, reason="test", by="test")
    state = store.move("cities", "shadow", reason="test", by="test")
    watch = RouteWatch(store, "cities")
    assert [see(watch, state, f"r{number}", 0.0) for number in range(100)] == [None] * 100
    assert not (tmp_path / "cities" / WATCH).exists()


def test_in_shadow_an_alarm_is_noted_and_takes_nothing_back(tmp_path: Path) -> None:
    store, _ = live(tmp_path)
    shadow = store.move("cities", "shadow", reason="test", by="test")
    watch = RouteWatch(store, "cities")
    for number in range(300):
        see(watch, shadow, f"r{number}", 0.0)
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
    changed = see(watch, state, "asked before it was a canary", 1.0)
    assert changed is not None and changed.state == "record"
    assert len([one for one in lines(tmp_path) if "start" in one]) == 1


def test_requests_that_come_in_after_the_alarm_add_nothing(tmp_path: Path) -> None:
    store, state = live(tmp_path)
    watch = RouteWatch(store, "cities")
    rows, _ = until_alarm(watch, state)
    assert [see(watch, state, f"late{number}", 0.0) for number in range(32)] == [None] * 32
    assert len(store.disagreements("cities")) == rows and len(store.history("cities")) == 3


def test_a_late_request_about_another_adapter_ends_no_watch(tmp_path: Path) -> None:
    store, first = live(tmp_path)
    other = replace(ROUTE, slm="served:tiny:b-1")
    grant = replace(GRANT, adapter="b-1", digest="e" * 64)
    late = store.appoint(other, adapter="b-1", grant=grant, reason="test", by="test")
    now = store.appoint(ROUTE, adapter="a-1", grant=GRANT, reason="test", by="test")
    watch = RouteWatch(store, "cities")
    see(watch, first, "a", 1.0)
    see(watch, now, "b", 1.0)
    assert see(watch, late, "late", 0.0) is None and watch.observations == 2
    see(watch, now, "c", 1.0)
    assert watch.observations == 3


def test_beside_another_front_nothing_waits_and_nothing_is_counted(tmp_path: Path) -> None:
    store, state = live(tmp_path)
    first, second = RouteWatch(store, "cities"), RouteWatch(store, "cities")
    see(first, state, "a", 1.0)
    with pytest.raises(ResourceError, match=r"another process writes .*watch\.jsonl"):
        see(second, state, "b", 1.0)
    first.close()
    see(second, state, "c", 1.0)
    assert [one["id"] for one in lines(tmp_path) if "score" in one] == ["a", "c"]


@pytest.mark.parametrize(
    "damage", ['{"serial": 2}', '{"start": {}, "serial": 2}', '{"id": "x", "at": 1, "serial": 2, "score": 7}']
)
def test_a_line_that_no_watch_wrote_is_named_every_time(damage: str, tmp_path: Path) -> None:
    store, state = live(tmp_path)
    watch = RouteWatch(store, "cities")
    see(watch, state, "a", 1.0)
    watch.close()
    path = tmp_path / "cities" / WATCH
    whole = path.read_text()
    path.write_text(whole + damage + "\n")
    for _ in range(2):  # never on with half of what was seen
        with pytest.raises(DataError, match=r"watch\.jsonl:3: "):
            see(watch, state, "b", 1.0)
    path.write_text(whole)
    see(watch, state, "b", 1.0)
    assert watch.observations == 2


def scores(state: RouteState, *values: float) -> list[Seen]:
    return [Seen(state=state, id=f"r{number}", score=value) for number, value in enumerate(values)]


def test_what_comes_together_is_synced_once_and_counts_as_if_it_had_come_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    real = os.fsync

    def sync(handle: int) -> None:
        if os.readlink(f"/proc/self/fd/{handle}").startswith(str(tmp_path)):  # other tests' threads sync too
            synced.append(handle)
        real(handle)

    monkeypatch.setattr(os, "fsync", sync)
    values = [1.0, 0.0, 0.5, 1.0] * 5
    seen, capitals = {}, []
    for name in ("together", "apart"):
        store, state = live(tmp_path / name)
        watch, before = RouteWatch(store, "cities"), len(synced)
        if name == "together":
            assert watch.observe(scores(state, *values)) is None
            assert len(synced) - before <= 3, "where the watch begins, and the twenty"
        else:
            for one in scores(state, *values):
                watch.observe([one])
        seen[name] = [(one["id"], one["score"]) for one in lines(tmp_path / name) if "score" in one]
        assert watch.observations == 20
        page = route_picture(store.folder, "cities").watches
        assert page[0].rows == 20
        capitals.append(page[0].path)
    assert seen["together"] == seen["apart"] and capitals[0] == capitals[1]


def test_a_disk_that_does_not_take_a_group_leaves_nothing_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, state = live(tmp_path)
    watch = RouteWatch(store, "cities")
    see(watch, state, "a", 1.0)
    before = (tmp_path / "cities" / WATCH).read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(ResourceError, match="No space left"):
            watch.observe(scores(state, 0.0, 0.0))
    assert (tmp_path / "cities" / WATCH).read_bytes() == before and watch.observations == 1
    watch.observe(scores(state, 0.0, 0.0))
    assert watch.observations == 3


def test_an_alarm_within_a_group_is_where_it_would_have_been(tmp_path: Path) -> None:
    store, state = live(tmp_path / "apart")
    alone, _ = until_alarm(RouteWatch(store, "cities"), state)
    store, state = live(tmp_path / "together")
    watch = RouteWatch(store, "cities")
    changed = watch.observe(scores(state, *[0.0] * (alone + 50)))
    assert changed is not None and changed.by == "watch" and watch.observations == alone
    watch.close()
    again = RouteWatch(store, "cities")
    assert see(again, state, "late", 0.0) == changed and again.observations == alone
    assert len(store.disagreements("cities")) == alone


@pytest.mark.parametrize("agreement", [True, False], ids=["beside the agreement", "where no agreement is known"])
def test_expected_answers_ring_a_watch_of_their_own(agreement: bool, tmp_path: Path) -> None:
    store, state = live(tmp_path, GRANT if agreement else replace(GRANT, **NO_AGREEMENT))  # type: ignore[arg-type]
    watch = RouteWatch(store, "cities")
    changed = None
    for number in range(300):
        watch.observe([Seen(state=state, id=f"r{number}", score=1.0)])  # both say the same, and both are wrong or right
        label = Seen(state=state, id=f"r{number}", label=-1.0 if number % 2 else 0.0)
        watch.close()  # and a process for each
        watch = RouteWatch(store, "cities")
        if (changed := watch.observe([label])) is not None:
            break
    assert changed is not None and changed.state == "record" and "expected answers" in changed.reason
    assert next(one for one in lines(tmp_path) if "alarm" in one)["by"] == "labels"
    assert {one["label"] for one in store.disagreements("cities")} == {-1.0}
    shown = route_picture(store.folder, "cities").watches
    assert [one.alarm_at is not None for one in shown] == [False, True] if agreement else [True]


def test_expected_answers_that_find_both_alike_ring_nothing(tmp_path: Path) -> None:
    store, state = live(tmp_path)
    watch = RouteWatch(store, "cities")
    alike = [Seen(state=state, id=f"r{number}", label=(-1.0, 0.0, 1.0, 0.0)[number % 4]) for number in range(400)]
    assert watch.observe(alike) is None and watch.observations == 400


def test_the_parts_of_the_five_percent_are_what_the_two_watches_work_at(tmp_path: Path) -> None:
    store, state = live(tmp_path)
    see(RouteWatch(store, "cities"), state, "a", 1.0)
    key = lines(tmp_path)[0]["start"]
    assert key["level"] + key["label_level"] + GRANT.agreement_level == pytest.approx(0.05)  # type: ignore[index, call-overload]


def test_a_long_file_is_shortened_and_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [1.0, 0.9, 0.0, 1.0, 1.0, 0.75, 1.0] * 6
    found = {}
    for most in (10**6, 5):
        monkeypatch.setattr("slm_ray.rollout.watched.MOST_LINES", most)
        store, state = live(tmp_path / str(most))
        watch = RouteWatch(store, "cities")
        for number, value in enumerate(values):
            assert watch.observe([Seen(state=state, id=f"r{number}", score=value)]) is None
            watch.observe([Seen(state=state, id=f"r{number}", label=0.25 - value / 4)])
        (shown, labels) = route_picture(store.folder, "cities").watches
        found[most] = [(one.rows, one.path) for one in (shown, labels)]
        rows, _ = until_alarm(watch, state)
        found[most] += [(rows, tuple(one["score"] for one in store.disagreements("cities") if "score" in one))]
    assert len(lines(tmp_path / "5")) < 20 < len(lines(tmp_path / str(10**6)))
    assert found[5] == found[10**6]


def test_whoever_is_killed_while_a_file_is_shortened_has_one_of_the_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slm_ray.rollout.watched.MOST_LINES", 5)
    store, state = live(tmp_path)
    watch = RouteWatch(store, "cities")
    watch.observe(scores(state, 1.0, 0.0, 1.0, 1.0))
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(5, "killed")))
        with pytest.raises(ResourceError):
            see(watch, state, "last", 0.0)
    watch.close()
    (tmp_path / "cities" / f".{WATCH}.tmp").write_text('{"start": {}')  # what a killed process was writing
    again = RouteWatch(store, "cities")
    see(again, state, "next", 1.0)
    assert again.observations == 6
    assert sorted(path.name for path in (tmp_path / "cities").iterdir()) == ["changes.jsonl", WATCH]
    with pytest.raises(ResourceError, match="another process writes"):
        see(RouteWatch(store, "cities"), state, "second", 1.0)


def test_a_damaged_short_form_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slm_ray.rollout.watched.MOST_LINES", 3)
    store, state = live(tmp_path)
    watch = RouteWatch(store, "cities")
    watch.observe(scores(state, 1.0, 0.0, 1.0, 1.0))
    watch.close()
    path = tmp_path / "cities" / WATCH
    whole = path.read_text()
    assert '"so_far"' in whole
    for damage in ('"logs": []', '"logs": [1, 2]', '"logs": "x"'):
        path.write_text(re.sub(r'"logs": \[[^]]*\]', damage, whole, count=1))
        with pytest.raises(DataError, match=r"watch\.jsonl:2: "):
            see(RouteWatch(store, "cities"), state, "a", 1.0)
