"""The page of a route: what is in the folder and the log stands on it, what is not is said, and data stays text."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from verdict_files import LLM, OLD, slm

from slm_ray.errors import DataError
from slm_ray.page.rollout import RoutePage, evidence, route_page, shares
from slm_ray.rollout.picture import route_picture, stretches
from slm_ray.rollout.states import Grant, Route
from slm_ray.rollout.store import RouteStore
from slm_ray.rollout.watched import WATCH
from slm_ray.traffic.record import Arm, TrafficRow
from slm_ray.verdict.watch import Watch

HOSTILE = "</style><script>alert(1)</script> {{ 7*7 }} \ud800"
START = {
    "start": {"level": 0.04, "label_level": 0.01, "delta": 0.02, "reference": 0.9, "adapter": OLD, "slm": slm(OLD)},
    "at": 1.0, "serial": 1,
}  # fmt: skip


def seen(at: int, score: float) -> dict[str, object]:
    return {"id": f"r{at}", "at": 1.0, "serial": 1, "state": "live", "score": score}


@pytest.fixture
def store(tmp_path: Path) -> RouteStore:
    store = RouteStore(tmp_path / "routes")
    route = Route(name="structured", llm=LLM, slm=slm(OLD), track="structured", base="tiny")
    grant = Grant(
        most="live", because="the verdict is swap", llm=LLM, slm=slm(OLD), adapter=OLD, comparison="c", agreement=0.95,
        agreement_lower=0.9, agreement_level=0.01, stand_ins=(LLM,),
    )  # fmt: skip
    store.create(route, adapter=OLD, grant=grant, reason="a swap", by="ann@desk")
    store.move("structured", "live", reason="all is well", by="bob@desk")
    return store


def watch_lines(store: RouteStore, *lines: object) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (store.folder / "structured" / WATCH).write_text(text, encoding="utf-8")


def page(store: RouteStore, **changes: object) -> str:
    return route_page(replace(route_picture(store.folder, "structured"), **changes))  # type: ignore[arg-type]


def row(at: float, arm: Arm, served: Arm | None) -> TrafficRow:
    return TrafficRow(
        id=f"r{at}",
        at=at,
        route="structured",
        serial=1,
        state="live",
        arm=arm,
        served=served,
        request={},
    )


def test_every_change_and_the_stand_in_are_on_it(store: RouteStore) -> None:
    html = page(store)
    for said in (
        "ann@desk",
        "bob@desk",
        "a swap",
        "all is well",
        "structured: live",
        "both agreed on 95.0%",
        "below 88.0%",
    ):
        assert said in html
    assert html.index("all is well") < html.index("a swap"), "the latest first"
    assert "says nothing about that model" in html and "no log of traffic was given" in html
    assert "Nothing was watched yet" in html and "None is kept" in html
    store.move("structured", "shadow", reason="a break")
    assert "structured: shadow" in page(store)


def test_data_is_text_and_nothing_is_loaded(store: RouteStore) -> None:
    store.adjust("structured", audit_share=0.2, reason=HOSTILE.replace("\ud800", ""))
    store.note_disagreements("structured", [{"id": HOSTILE.replace("\ud800", ""), "at": 1.0, "score": 0.0}])
    html = page(store, because=HOSTILE)
    assert "<script" not in html and "{{ 7*7 }}" in html
    assert not re.search(r"(src|href)=\"(?!#)", html) and "default-src 'none'" in html


def test_the_watch_is_replayed_from_what_the_front_wrote(store: RouteStore) -> None:
    watch = Watch(level=0.04, delta=0.02, reference=0.9)
    scores = [1.0] * 40 + [0.0] * 30
    for score in scores:
        if not watch.alarm:  # what comes later counts for nothing
            watch.add(score - 1.0)
    rang = {"alarm": watch.alarm_at, "by": "agreement", "at": 2.0, "serial": 1}
    watch_lines(store, START, *(seen(at, score) for at, score in enumerate(scores)), rang)
    data = route_picture(store.folder, "structured")
    (watched,) = data.watches
    assert watched.path == watch.path and watched.alarm_at == watch.alarm_at and watched.threshold == 25
    assert f"Alarm at audited request {watch.alarm_at}" in route_page(data)
    drawn = evidence(watched)
    assert drawn is not None and drawn["rang"]["x"] == pytest.approx(100)
    assert 0 < drawn["threshold"] < 100
    watch_lines(store, START, *(seen(at, 1.0) for at in range(5)), START)
    first, second = route_picture(store.folder, "structured").watches
    assert first.rows == 5 and second.rows == 0
    html = page(store)
    assert "<b>No alarm</b> after 5 audited requests" in html and "No audited request yet" in html
    watch_lines(store, START, seen(0, 1.0), {**seen(0, 1.0), "label": -1.0}, {**seen(1, 1.0), "label": 0.5})
    by_agreement, by_labels = route_picture(store.folder, "structured").watches
    assert (by_agreement.rows, by_labels.rows, by_labels.threshold) == (1, 2, 100)
    assert "by expected answers the SLM is not worse" in page(store)


def test_a_watch_says_what_it_can_see(store: RouteStore) -> None:
    watch_lines(store, START, *(seen(at, 1.0) for at in range(100)))
    html = page(store)
    assert "at least 88.0% of the requests" in html and "The 100 audited requests differ" in html
    watch_lines(store, START, *(seen(at, 1.0) for at in range(300)))
    assert "About the last 200 audited requests differ" in page(store)
    blind = {**START, "start": {**START["start"], "reference": 0.01}}  # type: ignore[dict-item]
    watch_lines(store, blind, seen(0, 0.0))
    html = page(store)
    assert "too seldom for an alarm to come of it" in html and "at least -1.0%" not in html


def test_an_slm_that_the_llm_stands_in_for_is_said(store: RouteStore) -> None:
    since = route_picture(store.folder, "structured").changes[-1].at
    before = [row(since - 100 + at, "slm", "slm") for at in range(50)]
    after = [row(since + at, "slm", "slm" if at % 10 == 0 else "llm") for at in range(1, 4_000)]
    html = page(store, served=stretches([*before, *after]))
    assert "has answered 90.0 % of what the SLM was to answer" in html
    assert "of what the SLM was to answer" not in page(store, served=stretches(before))
    store.back("structured", reason="nobody is there")
    assert "of what the SLM was to answer" not in page(store, served=stretches([*before, *after]))


@pytest.mark.parametrize("damage", [{"start": {}}, {"id": "r"}, {**seen(0, 1.0), "score": "x"}, seen(0, 7.0)])
def test_a_damaged_watch_is_named(store: RouteStore, damage: object) -> None:
    watch_lines(store, START, damage)
    with pytest.raises(DataError, match=rf"{WATCH}:2: no line of a watch"):
        route_picture(store.folder, "structured")


def test_who_answered_is_counted_by_time_and_adds_up() -> None:
    rows = [row(10.0 * at, "llm", "llm") for at in range(50)] + [row(500 + 10.0 * at, "slm", "slm") for at in range(50)]
    rows += [row(999.0, "slm", "llm"), row(999.5, "slm", None)]
    served = stretches(rows)
    assert sum(one.total for one in served) == len(rows) and len(served) <= 48
    assert served[0].llm == served[0].total and served[-1].fallback == 1 and served[-1].neither == 1
    drawn = shares(served, ())
    assert drawn["requests"] == 102 and sum(drawn["parts"].values()) == pytest.approx(1)
    assert all(0 <= bar["y"] <= 100 and 0 <= bar["x"] <= 100 for bar in drawn["bars"])
    assert {bar["css"] for bar in drawn["bars"]} == {"slm", "llm", "fallback"}
    assert stretches([]) == () and stretches([row(5.0, "llm", "llm")])[0].total == 1


def test_the_same_records_give_the_same_bytes(store: RouteStore) -> None:
    data = route_picture(store.folder, "structured")
    assert isinstance(data, RoutePage) and route_page(data) == route_page(data)
    assert "No request is in the log yet" in route_page(replace(data, served=()))
