"""`slm-ray routes` as a person types it: from a verdict's folder to live and back, and every refusal in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner
from verdict_files import LLM, OLD, compared, slm

from slm_ray.cli.app import app
from slm_ray.rollout.fallbacks import Lately, write_fallbacks
from slm_ray.rollout.store import CHANGES, RouteStore

NEW = "structured-000000000002"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def routes(*arguments: str, fails: bool = False) -> str:
    result = CliRunner().invoke(app, ["routes", *arguments])
    assert result.exit_code == (2 if fails else 0), result.output
    if fails:
        assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith("error: ")
    return result.stderr if fails else result.stdout


def test_from_a_verdict_to_live_and_back() -> None:
    compared(Path("run"), wrong=1, delta=0.05)
    said = routes("create", "structured", "--verdict", "run", "--reason", "a swap")
    assert f"record, LLM {LLM}, SLM {OLD}" in said and said.rstrip().endswith(": a swap")
    shown = routes("show", "structured")
    assert "allowed: record, shadow, canary, live; the verdict is swap" in shown
    assert "both agreed on 99.0% of the verdict's rows" in shown and "a roll-back leads to record" in shown
    assert "delta 0.05" in shown, "the verdict's margin"
    routes("move", "structured", "canary", "--share", "0.1", "--reason", "ten percent")
    assert "canary 0.1" in routes("list")
    routes("move", "structured", "live", "--reason", "all is well")
    said = routes("appoint", "structured", "--slm", slm(NEW), "--reason", "retrained")
    assert f"appoint: shadow, LLM {LLM}, SLM {NEW}" in said
    assert "may not be in live" in routes("move", "structured", "live", "--reason", "x", fails=True)
    said = routes("back", "structured", "--reason", "not yet")
    assert f"back: live, LLM {LLM}, SLM {OLD}" in said
    actions = [json.loads(line)["action"] for line in routes("history", "structured", "--json").splitlines()]
    assert actions == ["create", "move", "move", "appoint", "back"]
    lines = routes("history", "structured").splitlines()
    assert len(lines) == len(actions) and all("@" in line for line in lines)


def test_without_a_verdict_there_is_no_way_past_shadow() -> None:
    arguments = ("--llm", "azure:big", "--slm", slm(OLD), "--track", "structured", "--reason", "look")
    routes("create", "plain", *arguments)
    assert routes("move", "plain", "shadow", "--reason", "look").count("shadow") == 1
    said = routes("move", "plain", "live", "--reason", "x", fails=True)
    assert "no verdict was given" in said and "slm-ray routes appoint plain --verdict RUN" in said
    compared(Path("run"), wrong=0)
    routes("appoint", "plain", "--verdict", "run", "--reason", "now there is one")
    assert "live" in routes("move", "plain", "live", "--reason", "x")
    assert "watched: both agreed on 100.0%" in routes("show", "plain")
    assert "no front has seen a call for the SLM in this state yet" in routes("show", "plain")


def test_how_often_the_llm_answers_in_the_slms_place_is_said() -> None:
    compared(Path("run"), wrong=0)
    routes("create", "it", "--verdict", "run", "--reason", "a swap")
    routes("move", "it", "live", "--reason", "x")
    assert re.search(r"live +– ", routes("list"))
    lately = Lately()
    for second in range(200):
        found = lately.note("timeout" if second % 10 else None, serial=2, at=1_760_000_000.0 + second)
        assert (found is not None and found.since is not None) == (second >= 79), "a minute after the twentieth call"
    assert found is not None
    write_fallbacks(Path("runs/routes"), "it", found)
    assert "90% of 100, lasts" in routes("list")
    shown = routes("show", "it")
    assert "the LLM answered in the SLM's place in 90 of the latest 100 calls (the last one: timeout)" in shown
    assert (
        "from 2025-10-09T08:53:39+00:00 to 2025-10-09T08:56:39" in shown
        and "the watch rings no alarm for that" in shown
    )
    routes("page", "it")
    assert "The SLM does not answer" in Path("route.html").read_text()
    routes("adjust", "it", "--timeout-s", "20", "--reason", "give it more time")
    assert "90%" not in routes("list"), "what was seen before a change says nothing of the time after it"
    Path("runs/routes/it/fallbacks.json").write_text("{}")
    assert "fallbacks.json: " in routes("list", fails=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("create", "x", "--reason", "y"), "give --track"),
        (("create", "x", "--track", "structured", "--reason", "y"), "give --llm and --slm"),
        (("create", "x", "--track", "nope", "--llm", "azure:b", "--slm", slm(OLD), "--reason", "y"), "unknown track"),
        (
            ("create", "x", "--track", "structured", "--llm", "azure:b", "--slm", slm(OLD) + "+3shot", "--reason", "y"),
            "without demonstrations",
        ),
        (
            ("create", "x", "--track", "structured", "--llm", "b", "--slm", slm(OLD), "--reason", "y"),
            "unknown kind of model",
        ),
        (
            ("create", "../x", "--track", "structured", "--llm", "azure:b", "--slm", slm(OLD), "--reason", "y"),
            "no name",
        ),
        (
            ("create", "x", "--track", "structured", "--llm", "azure:b", "--slm", "served:tiny:best", "--reason", "y"),
            "no adapter",
        ),
        (("create", "x", "--track", "structured", "--llm", "azure:b", "--slm", slm(OLD), "--reason", "  "), "say why"),
        (("create", "x", "--verdict", "nowhere", "--reason", "y"), "cannot read nowhere"),
        (("move", "x", "alive", "--reason", "y"), "unknown state 'alive'"),
        (("move", "x", "live", "--reason", "y"), "no route 'x'"),
        (("back", "x", "--reason", "y"), "no route 'x'"),
        (("show", "x"), "no route 'x'"),
        (("appoint", "x", "--reason", "y"), "nothing to appoint"),
    ],
)
def test_what_cannot_be_is_one_line_that_says_why(arguments: tuple[str, ...], said: str) -> None:
    assert said in routes(*arguments, fails=True)
    assert not Path("runs").exists(), "a refusal makes nothing"


def test_an_alias_is_pinned_to_the_adapter_that_it_stands_for_now() -> None:
    """What is promoted later is another adapter, which no verdict here is about."""
    from adapter_files import publish, trained

    from slm_ray import adapters

    trained(Path("out"), fill=2)
    published = publish(Path("out"), Path("runs/adapters"), "f" * 32, name="structured").id
    adapters.promote("runs/adapters", published, alias="best")
    said = routes(
        "create", "x", "--track", "structured", "--llm", "azure:b", "--slm", "served:tiny:best", "--reason", "y"
    )
    assert published in said
    assert RouteStore("runs/routes").route("x").route.slm == f"served:tiny:{published}"


def test_a_damaged_history_is_named_and_the_other_routes_are_listed() -> None:
    for name in ("good", "bad"):
        routes("create", name, "--llm", "azure:b", "--slm", slm(OLD), "--track", "structured", "--reason", "y")
    path = Path("runs/routes/bad") / CHANGES
    path.write_bytes(b"{}\n" + path.read_bytes())
    result = CliRunner().invoke(app, ["routes", "list"])
    assert result.exit_code == 2 and "good" in result.stdout and f"{path}:1" in result.stderr


def test_a_page_is_written_from_the_folder_alone() -> None:
    compared(Path("run"), wrong=1, delta=0.05)
    routes("create", "structured", "--verdict", "run", "--reason", "a <b>swap</b>")
    assert "wrote page.html" in routes("page", "structured", "--out", "page.html")
    html = Path("page.html").read_text(encoding="utf-8")
    assert "a &lt;b&gt;swap&lt;/b&gt;" in html and "no log of traffic was given" in html
    assert "there is no traffic log" in routes("page", "structured", "--traffic", "nowhere", fails=True)


def test_a_reason_cannot_write_a_line_of_its_own() -> None:
    reason = "first\n2026-01-01 x move: live\x1b[2J"
    routes("create", "x", "--llm", "azure:b", "--slm", slm(OLD), "--track", "structured", "--reason", reason)
    said = routes("history", "x")
    assert len(said.splitlines()) == 1 and "\x1b" not in said
