"""Routes: what a verdict grants, how one state leads to another, and their history whoever writes, dies or damages it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from verdict_files import LLM, OLD, compared, other_rows, slm

from slm_ray import storage
from slm_ray.config import CompareConfig
from slm_ray.corpus.tracks import TRACKS
from slm_ray.errors import ConfigError, DataError, ResourceError
from slm_ray.reports.compare import compare_reports
from slm_ray.rollout.grants import agreement, granted, read_grant
from slm_ray.rollout.states import NO_VERDICT, STATES, Grant, Route, RouteState, held
from slm_ray.rollout.store import CHANGES, RouteStore

TRACK = TRACKS["structured"]
NEW = "structured-000000000002"


def route(adapter: str = OLD, **changes: Any) -> Route:
    return replace(Route(name="structured", llm=LLM, slm=slm(adapter), track="structured", base="tiny"), **changes)


def grant(adapter: str = OLD, **changes: Any) -> Grant:
    made = Grant(
        most="live",
        because="the verdict is swap",
        llm=LLM,
        slm=slm(adapter),
        adapter=adapter,
        comparison="c",
        delta=0.03,
    )
    return replace(made, **changes)


CASCADE: dict[str, Any] = {
    "most": "cascade",
    "threshold": -0.2,
    "because": "the verdict is inconclusive, with 75% of the rows",
}


@pytest.fixture
def store(tmp_path: Path) -> RouteStore:
    return RouteStore(tmp_path / "routes")


def made(store: RouteStore, **grant_changes: Any) -> RouteState:
    return store.create(route(), adapter=OLD, grant=grant(**grant_changes), reason="first", by="ann@desk")


def test_a_swap_grants_live_and_its_rows_give_the_agreement(tmp_path: Path) -> None:
    found = read_grant(compared(tmp_path / "run", wrong=1, delta=0.05))
    assert (found.most, found.llm, found.slm, found.adapter) == ("live", LLM, slm(OLD), OLD)
    assert found.track == "structured"
    assert found.allowed == ("record", "shadow", "canary", "live"), "no cascade: the verdict has no threshold"
    assert found.agreement == pytest.approx(0.99) and found.agreement_level == 0.01
    assert found.agreement_lower is not None and 0.94 < found.agreement_lower < 0.99
    assert found.digest == storage.file_digest(tmp_path / "run/comparison.json")
    assert found.stand_ins == ()


def test_the_figures_of_a_stand_in_grant_and_keep_its_label(tmp_path: Path) -> None:
    found = read_grant(compared(tmp_path / "run", wrong=0, served_by="stand-in:tiny"))
    assert found.most == "live" and found.stand_ins == (LLM,)


def test_whatever_is_no_swap_grants_shadow_and_a_share_by_confidence_a_cascade(tmp_path: Path) -> None:
    run = compared(tmp_path / "run", wrong=40)
    plain = storage.read_json(run / "comparison.json")
    assert plain["decision"]["action"] == "fine_tune"
    found = read_grant(run)
    assert found.most == "shadow" and "fine_tune" in found.because and found.agreement is None
    other = compared(
        tmp_path / "part",
        wrong=25,
        validation_report=str(other_rows(tmp_path / "validation")),
        force_delta=True,
        delta=0.05,
    )
    found = read_grant(other)
    assert found.most == "cascade" and found.allowed == ("record", "shadow", "cascade")
    assert found.threshold is not None and -2.0 < found.threshold <= -0.1


def test_exploratory_decisions_and_arms_with_demonstrations_grant_only_shadow(tmp_path: Path) -> None:
    run = compared(tmp_path / "run", wrong=0)
    report = compare_reports(CompareConfig(report=str(run), llm=LLM, slm=slm(OLD)))
    assert granted(report).most == "live"
    exploratory = replace(report, decision=replace(report.decision, action="inconclusive", exploratory="swap"))
    assert granted(exploratory).most == "shadow" and "exploratory" in granted(exploratory).because
    compare = report.comparison
    for shown in (replace(compare, slm=slm(OLD) + "+3shot"), replace(compare, llm=LLM + "+3shot")):
        found = granted(replace(report, comparison=shown))
        assert found.most == "shadow" and "demonstrations" in found.because


def test_a_verdict_without_its_rows_is_refused_with_what_to_give(tmp_path: Path) -> None:
    run = compared(tmp_path / "run", wrong=0)
    (run / "report.json").unlink()
    with pytest.raises(DataError, match=r"report\.json"):
        read_grant(run)
    (run / "comparison.json").write_text("{}")
    with pytest.raises(DataError, match="schema_version is None"):
        read_grant(run)


def test_agreement_is_with_what_the_llm_said_and_undefined_where_that_is_no_answer() -> None:
    assert agreement(TRACK, '{"a": 1}', '{"a":1}') == 1.0
    assert agreement(TRACK, '{"a": 2}', '{"a":1}') == 0.0
    assert agreement(TRACK, None, '{"a":1}') == 0.0, "the SLM failed and the LLM did not"
    assert agreement(TRACK, '{"a": 1}', "I cannot help") is None
    assert agreement(TRACK, '{"a": 1}', None) is None


def test_what_is_not_granted_is_refused_in_words_that_name_the_way_on(store: RouteStore) -> None:
    made(store, most="shadow", because="no verdict was given", comparison=None)
    for state in ("canary", "live", "cascade"):
        with pytest.raises(
            ConfigError, match=r"no verdict was given, which grants record, shadow; evaluate and compare"
        ):
            store.move("structured", state, share=0.1 if state == "canary" else None, reason="try")
    assert store.move("structured", "shadow", reason="try").state == "shadow"
    assert [state.action for state in store.history("structured")] == ["create", "move"]
    with pytest.raises(ConfigError, match=r"may not be in live: .*move it to one of record, shadow, cascade"):
        store.appoint(route(), adapter=OLD, grant=grant(**CASCADE), reason="verdict")
        store.move("structured", "live", reason="try")
    assert store.move("structured", "cascade", reason="granted").threshold == -0.2


def test_a_verdict_about_another_adapter_or_another_llm_grants_shadow() -> None:
    assert held(grant(), route=route(), adapter=OLD).most == "live"
    assert held(grant(), route=route(NEW), adapter=NEW).most == "shadow"
    assert held(grant(), route=route(llm="azure:other"), adapter=OLD).most == "shadow"
    assert held(NO_VERDICT, route=route(), adapter=OLD) == NO_VERDICT
    assert held(grant(track="structured"), route=route(), adapter=OLD).most == "live"
    assert "on the track toolcall" in held(grant(track="toolcall"), route=route(), adapter=OLD).because
    base = Grant(most="live", because="swap", llm=LLM, slm="served:tiny", comparison="c")
    assert held(base, route=route(slm="served:tiny"), adapter=None).most == "live"
    assert held(base, route=route(slm="served:tiny2"), adapter=None).most == "shadow"


def test_a_retrained_adapter_starts_at_shadow_and_a_roll_back_returns_to_the_one_users_had(store: RouteStore) -> None:
    made(store)
    store.move("structured", "live", reason="swap", by="ann@desk")
    retrained = store.appoint(route(NEW), adapter=NEW, grant=NO_VERDICT, reason="retrained")
    assert (retrained.state, retrained.adapter, retrained.previous) == ("shadow", NEW, OLD)
    store.appoint(route(NEW), adapter=NEW, grant=grant(NEW), reason="verdict")
    canary = store.move("structured", "canary", share=0.2, reason="try it")
    assert (canary.share, canary.previous) == (0.2, OLD)
    back = store.back("structured", by="watch", reason="worse")
    assert (back.state, back.adapter, back.route.slm, back.by) == ("live", OLD, slm(OLD), "watch")
    assert back.granted.adapter == OLD and back.previous is None
    last = store.back("structured", by="watch", reason="worse too")
    assert (last.state, last.adapter) == ("record", OLD), "what was taken back is not returned to"
    assert store.back("structured", by="watch", reason="again") == last, "nothing to go back to: no line"
    numbers = [state.serial for state in store.history("structured")]
    assert numbers == list(range(1, 8))


def test_an_alarm_that_comes_late_changes_nothing(store: RouteStore) -> None:
    made(store)
    watched = store.move("structured", "live", reason="swap")
    store.adjust("structured", audit_share=0.2, reason="look closer")
    newer = store.appoint(route(NEW), adapter=NEW, grant=grant(NEW), reason="retrained")
    assert store.back("structured", by="watch", reason="old news", serial=watched.serial) == newer
    serving = store.move("structured", "canary", share=0.1, reason="try")
    assert store.back("structured", by="watch", reason="old news", serial=watched.serial) == serving
    assert store.back("structured", by="watch", reason="news", serial=serving.serial).adapter == OLD


def test_an_alarm_overturns_the_verdict_until_there_is_another(store: RouteStore) -> None:
    made(store, digest="first")
    live = store.move("structured", "live", reason="swap")
    rang = store.back("structured", by="watch", reason="worse", serial=live.serial)
    assert (rang.state, rang.action, rang.granted.most) == ("record", "alarm", "shadow")
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"may not be in live: the watch rang: .*evaluate and compare"):
            store.move("structured", "live", reason="try again")
        again = store.appoint(route(), adapter=OLD, grant=grant(digest="first"), reason="the same verdict")
        assert again.granted.most == "shadow", "given again, it still does not hold"
    store.appoint(route(), adapter=OLD, grant=grant(digest="second"), reason="fresh rows")
    assert store.move("structured", "live", reason="swap").state == "live"
    back = store.back("structured", reason="a person's choice")
    assert (back.action, back.granted.most) == ("back", "live"), "who goes back by hand has shown nothing"


def test_an_alarm_at_shadow_overturns_the_verdict_and_leaves_the_state(store: RouteStore) -> None:
    made(store, digest="first")
    shadow = store.move("structured", "shadow", reason="look")
    rang = store.back("structured", by="watch", reason="worse", serial=shadow.serial)
    assert (rang.state, rang.action, rang.granted.most) == ("shadow", "alarm", "shadow")
    assert store.back("structured", by="watch", reason="again", serial=shadow.serial) == rang
    with pytest.raises(ConfigError, match="the watch rang"):
        store.move("structured", "canary", share=0.1, reason="try")


def test_two_adapters_that_rang_are_both_left_behind(store: RouteStore) -> None:
    made(store, digest="first")
    store.move("structured", "live", reason="swap")
    store.appoint(route(NEW), adapter=NEW, grant=grant(NEW, digest="second"), reason="retrained")
    serving = store.move("structured", "canary", share=0.5, reason="try")
    first = store.back("structured", by="watch", reason="worse", serial=serving.serial)
    assert (first.state, first.adapter, first.granted.most) == ("live", OLD, "live")
    last = store.back("structured", by="watch", reason="worse too", serial=first.serial)
    assert (last.state, last.adapter, last.granted.most) == ("record", OLD, "shadow")
    again = store.appoint(route(NEW), adapter=NEW, grant=grant(NEW, digest="second"), reason="try it again")
    assert again.granted.most == "shadow"


def test_a_new_llm_is_another_question(store: RouteStore) -> None:
    made(store)
    store.move("structured", "live", reason="swap")
    changed = store.appoint(route(llm="azure:newer"), adapter=OLD, grant=grant(), reason="the old one is retired")
    assert changed.state == "shadow" and "compares with azure:big" in changed.granted.because
    again = store.appoint(route(), adapter=OLD, grant=grant(), reason="back to it")
    assert store.move("structured", "live", reason="swap").adapter == again.adapter
    kept = store.appoint(route(), adapter=OLD, grant=grant(digest="newer"), reason="a verdict on more rows")
    assert kept.state == "live" and kept.granted.digest == "newer"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"to": "canary"}, "a canary needs the part of the users"),
        ({"to": "canary", "share": 0.0}, "above 0 and at most 1"),
        ({"to": "canary", "share": float("nan")}, "above 0 and at most 1"),
        ({"to": "live", "share": 0.5}, "only a canary has one"),
        ({"to": "live", "reason": " "}, "say why"),
        ({"to": "alive"}, "unknown state 'alive'|may not be in alive"),
    ],
)
def test_bad_moves_are_refused_and_leave_no_line(store: RouteStore, change: dict[str, Any], said: str) -> None:
    before = made(store)
    with pytest.raises(ConfigError, match=said):
        store.move("structured", **{"reason": "try", **change})
    assert store.history("structured") == (before,)


def test_nobody_serves_the_slm_unwatched(store: RouteStore) -> None:
    made(store)
    store.adjust("structured", audit_share=0.0, reason="cheap")
    with pytest.raises(ConfigError, match="without anyone watching"):
        store.move("structured", "live", reason="swap")


@pytest.mark.parametrize("name", ["", "../up", "a/b", "a b", ".hidden", "é", "x" * 81, "a\nb", "-x"])
def test_a_name_that_no_client_can_ask_for_is_refused(store: RouteStore, name: str) -> None:
    with pytest.raises(ConfigError, match="no name that a client can ask for"):
        route(name=name)
    with pytest.raises(ConfigError, match="no route"):
        store.route(name)
    with pytest.raises(ConfigError, match="no route"):
        store.move(name, "live", reason="try")
    assert not store.folder.exists(), "a question makes nothing"


def test_a_change_is_who_when_why_and_nothing_is_rewritten(store: RouteStore) -> None:
    made(store)
    path = store.folder / "structured" / CHANGES
    before = path.read_bytes()
    store.move("structured", "shadow", reason="look first")
    assert path.read_bytes().startswith(before)
    line = json.loads(path.read_bytes().splitlines()[-1])
    assert line["reason"] == "look first" and "@" in line["by"] and line["changed_at"].endswith("+00:00")
    store.move("structured", "shadow", reason="twice")
    assert len(path.read_bytes().splitlines()) == 2
    with pytest.raises(ConfigError, match="there is a route 'structured'"):
        made(store)


def test_another_process_s_change_is_seen_at_the_next_question(store: RouteStore) -> None:
    made(store)
    other = RouteStore(store.folder)
    assert other.route("structured").state == "record"
    store.move("structured", "live", reason="swap")
    assert other.route("structured").state == "live" and other.routes()["structured"].state == "live"


def test_a_torn_tail_is_no_line_and_a_damaged_middle_is_named(store: RouteStore) -> None:
    made(store)
    store.move("structured", "shadow", reason="look")
    path = store.folder / "structured" / CHANGES
    path.write_bytes(path.read_bytes() + b'{"route": {"name": "str')
    assert RouteStore(store.folder).route("structured").state == "shadow"
    store.move("structured", "record", reason="stop")
    assert [state.state for state in RouteStore(store.folder).history("structured")] == ["record", "shadow", "record"]
    assert store.route("structured").state == "record"
    lines = path.read_bytes().splitlines(keepends=True)
    ungranted = json.loads(lines[1])
    ungranted["state"], ungranted["granted"]["most"] = "live", "shadow"
    elsewhere = lines[1].replace(b'"name": "structured"', b'"name": "other"')
    assert elsewhere != lines[1]
    for damage in (b"{}\n", b"not json\n", b"[]\n", b"\xff\xfe\n", elsewhere, json.dumps(ungranted).encode() + b"\n"):
        path.write_bytes(lines[0] + damage + lines[2])
        with pytest.raises(DataError, match=rf"{CHANGES}:2: .*mend the line or remove it"):
            RouteStore(store.folder).route("structured")
        with pytest.raises(DataError, match=rf"{CHANGES}:2"):
            store.move("structured", "shadow", reason="look")
        fresh = RouteStore(store.folder)
        assert fresh.routes() == {} and f"{CHANGES}:2" in fresh.damaged()[0]
        assert store.route("structured").state == "record", "who read it before goes on with what it read"


def test_two_writers_take_turns(store: RouteStore) -> None:
    made(store)
    count = 12

    def write(state: str) -> None:
        for i in range(count):
            change = partial(lambda now, i: replace(now[-1], serial=now[-1].serial + 1, reason=f"{state} {i}"), i=i)
            RouteStore(store.folder).change("structured", change)

    threads = [threading.Thread(target=write, args=(state,)) for state in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    history = store.history("structured")
    assert len(history) == 3 * count + 1
    assert all(second.serial == first.serial + 1 for first, second in pairwise(history))


def test_a_writer_killed_at_any_time_leaves_whole_lines(store: RouteStore) -> None:
    made(store)
    code = (
        "import sys, itertools\nfrom slm_ray.rollout.store import RouteStore\nstore = RouteStore(sys.argv[1])\nprint('ready', flush=True)\n"
        "for i in itertools.count():\n    store.move('structured', 'shadow' if i % 2 else 'live', reason=str(i))\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(store.folder)], stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"ready\n"
    while len(store.history("structured")) < 5:
        assert child.poll() is None
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    before = len(store.history("structured"))
    store.move("structured", "record", reason="after")
    history = RouteStore(store.folder).history("structured")
    assert len(history) in (before, before + 1) and history[-1].state == "record"
    assert [state.serial for state in history] == list(range(1, len(history) + 1))


def test_a_full_disk_changes_nothing(store: RouteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    made(store)

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(ResourceError, match="No space left"):
        store.move("structured", "shadow", reason="look")
    monkeypatch.undo()
    assert RouteStore(store.folder).route("structured").state == "record"


def test_disagreements_are_kept_beside_the_history(store: RouteStore) -> None:
    made(store)
    assert store.disagreements("structured") == []
    store.note_disagreements("structured", [{"id": "r1"}, {"id": "r2"}])
    store.note_disagreements("structured", [{"id": "r3"}])
    assert [row["id"] for row in store.disagreements("structured")] == ["r1", "r2", "r3"]


def test_every_state_reads_back_as_it_was(store: RouteStore) -> None:
    made(store, agreement=0.98, agreement_lower=0.95, agreement_level=0.01, stand_ins=(LLM,), rule="paired", digest="d")
    for state in STATES:
        if grant().allows(state):
            store.move("structured", state, share=0.3 if state == "canary" else None, reason="on")
    assert RouteStore(store.folder).history("structured") == store.history("structured")
    assert store.route("structured").stand_ins == (LLM,)
