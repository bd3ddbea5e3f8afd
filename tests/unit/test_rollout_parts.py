"""Where the two sides of a route are asked, when a dead one is left alone, and what a settings file does to the routes."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from slm_ray.config import RolloutConfig, Serving
from slm_ray.errors import AdapterError, ConfigError, ModelError, ResourceError
from slm_ray.providers.answer import Outcome
from slm_ray.rollout import deploy
from slm_ray.rollout.calls import ASK_EVERY_S, FAILURES_IN_A_ROW, Circuit
from slm_ray.rollout.declared import asks_endpoint, declare
from slm_ray.rollout.judged import labelled
from slm_ray.rollout.states import Grant, Route, created
from slm_ray.rollout.store import RouteStore
from slm_ray.rollout.upstream import Reply, target

RIGHT, WRONG = '{"city": "Oslo"}', '{"city": "Rome"}'
AZURE = {"AZURE_ENDPOINT": "https://x.openai.azure.com/", "AZURE_API_KEY": "azure-key", "AZURE_DEPLOYMENT": "my gpt"}


def test_each_kind_of_model_has_its_address_and_its_key() -> None:
    azure = target("azure:", arm="llm", endpoint="", environment=AZURE)
    assert azure.url.startswith("https://x.openai.azure.com/openai/deployments/my%20gpt/chat/completions?api-version=")
    assert azure.headers == {"api-key": "azure-key"} and azure.model == "my gpt" and azure.billed
    openai = target("openai:m@http://10.0.0.1:8/v1", arm="llm", endpoint="", environment={"OPENAI_API_KEY": "k"})
    assert (openai.url, openai.billed) == ("http://10.0.0.1:8/v1/chat/completions", False)
    served = target("served:tiny:a-1", arm="slm", endpoint="http://h:8000", environment={})
    assert (served.url, served.model, dict(served.headers)) == ("http://h:8000/v1/chat/completions", "tiny:a-1", {})
    assert "azure-key" not in repr(azure)


@pytest.mark.parametrize(("host", "on_head"), [("127.0.0.1", True), ("::1", True), ("0.0.0.0", False)])
def test_the_front_is_where_an_endpoint_on_loopback_is_found(host: str, on_head: bool) -> None:
    options = deploy._front(Serving(host=host)).ray_actor_options
    assert ("node:__internal_head__" in options.get("resources", {})) is on_head and options["num_cpus"] == 0.1


def test_a_head_without_a_cpu_for_the_front_is_found_before_it_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = {"CPU": 8.0, "node:__internal_head__": 1.0}
    nodes = [{"node:__internal_head__": 1.0}, {"CPU": 8.0}]
    monkeypatch.setattr(deploy, "_logger", logging.getLogger("test_rollout_parts"))
    monkeypatch.setattr(ray, "cluster_resources", lambda: total)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": one} for one in nodes])
    with pytest.raises(ResourceError, match=r"the roll-out's front asks for 0\.1 CPU, .*head.* on one node"):
        deploy._deploy(RolloutConfig(routes_dir=str(tmp_path)), {})


def test_what_has_no_address_or_no_key_is_refused() -> None:
    for spec in ("fake:x", "recorded:x.jsonl", "served:tiny+3shot", "baseline:majority"):
        with pytest.raises(ConfigError, match="cannot stand in a route"):
            target(spec, arm="slm", endpoint="", environment={})
    with pytest.raises(ModelError, match="OPENAI_API_KEY"):
        target("openai:m", arm="llm", endpoint="", environment={})


def test_a_proxy_is_for_other_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    at = [target(f"openai:m@http://{host}/v1", arm="llm", endpoint="", environment={"OPENAI_API_KEY": "k"}).proxy
          for host in ("elsewhere.example", "127.0.0.1:8000", "127.0.1.1", "[::1]:8000", "localhost")]  # fmt: skip
    assert at == ["http://proxy:3128", None, None, None, None]


def said(text: str | None, logprob: float | None = None, *, trouble: str | None = None) -> Reply:
    asked = target("served:tiny", arm="slm", endpoint="http://h", environment={})
    return Reply(target=asked, status=200, trouble=trouble, outcome=Outcome(text=text, logprob=logprob))


@pytest.mark.parametrize(
    ("slm", "in_a_cascade"),
    [
        (said(WRONG, -0.1), -1.0),  # sure and wrong: clients got it
        (said(WRONG, -0.9), 0.0),  # below the threshold: clients got the LLM's
        (said(WRONG), 0.0),
        (said("no JSON", -0.1), 0.0),
        (said(None, trouble="empty: the answer has no text"), 0.0),
        (said(RIGHT, -0.9), 0.0),
    ],
)
def test_labels_hold_a_cascade_to_what_it_gives(slm: Reply, in_a_cascade: float) -> None:
    route = Route(name="r", llm="openai:m", slm="served:tiny:a-1", track="structured", base="tiny")
    cascade = Grant(most="cascade", because="a part", threshold=-0.5)
    state = created(route, adapter="a-1", grant=Grant(most="live", because="a swap"), at="now", by="t", reason="t")
    llm = said(RIGHT)
    alone = 0.0 if slm.outcome.text == RIGHT else -1.0
    assert labelled(state, slm, llm, RIGHT) == alone
    assert labelled(replace(state, granted=cascade), slm, llm, RIGHT) == in_a_cascade
    assert labelled(replace(state, granted=cascade), slm, llm, "no JSON") is None


def reply(status: int, trouble: str | None) -> Reply:
    asked = target("served:tiny", arm="slm", endpoint="http://h", environment={})
    return Reply(target=asked, status=status, trouble=trouble)


DOWN, BUSY, FINE = (0, "timeout: late"), (429, "http_429: busy"), (200, None)


def test_a_circuit_opens_by_its_own_question_and_by_no_clients_requests() -> None:
    now = 0.0
    circuit = Circuit(clock=lambda: now)
    for number in range(FAILURES_IN_A_ROW):
        assert not circuit.take_question(), number
        circuit.note(reply(*DOWN))
    assert not circuit.is_open, "five long requests of one client are no reason"
    assert [circuit.take_question() for _ in range(3)] == [True, False, False]
    circuit.answered(reply(*FINE))
    for _ in range(FAILURES_IN_A_ROW):
        assert not circuit.take_question()
        circuit.note(reply(*DOWN))
    assert not circuit.take_question(), "one a second"
    now += ASK_EVERY_S
    assert circuit.take_question() and not circuit.is_open
    circuit.answered(reply(*DOWN))
    assert circuit.is_open and not circuit.take_question()
    circuit.note(reply(*DOWN))  # one that was on its way
    now += ASK_EVERY_S
    assert circuit.is_open and circuit.take_question()
    circuit.answered(reply(503, "http_503: down"))
    now += ASK_EVERY_S
    assert circuit.is_open and circuit.take_question()
    circuit.answered(reply(*BUSY))  # whoever turns calls away is there
    assert not circuit.is_open


def test_any_answer_closes_a_circuit() -> None:
    circuit = Circuit(clock=lambda: 0.0)
    for _ in range(FAILURES_IN_A_ROW):
        circuit.note(reply(*DOWN))
    assert circuit.take_question()
    circuit.answered(reply(*DOWN))
    circuit.note(reply(*FINE))
    assert not circuit.is_open and not circuit.take_question()


def config(folder: Path, **route: object) -> RolloutConfig:
    about = {"llm": "openai:large", "slm": "openai:small@http://127.0.0.1:9/v1", "track": "structured", **route}
    settings = {
        "routes_dir": str(folder),
        "serving": {"adapters_dir": str(folder / "adapters")},
        "routes": {"cities": about},
    }
    return RolloutConfig.model_validate(settings)


def test_what_a_file_says_is_applied_once(tmp_path: Path) -> None:
    store = RouteStore(tmp_path)
    (state,) = declare(store, config(tmp_path, audit_share=0.3))
    assert (state.state, state.serial, state.audit_share, state.granted.most) == ("record", 1, 0.3, "shadow")
    assert declare(store, config(tmp_path, audit_share=0.3)) == [state]
    moved = store.move("cities", "shadow", reason="test")
    assert declare(store, config(tmp_path)) == [moved]
    (other,) = declare(store, config(tmp_path, llm="openai:larger", timeout_s=3.0))
    assert (other.route.llm, other.state, other.timeout_s, other.audit_share) == ("openai:larger", "shadow", 3.0, 0.3)
    back = store.appoint(moved.route, adapter=None, grant=moved.granted, reason="taken back")
    assert declare(store, config(tmp_path, llm="openai:larger")) == [back]
    assert not asks_endpoint(store)


def test_a_setting_that_was_changed_since_is_not_undone_by_the_same_file(tmp_path: Path) -> None:
    store = RouteStore(tmp_path)
    declare(store, config(tmp_path, audit_share=0.1, timeout_s=5.0))
    changed = store.adjust("cities", audit_share=0.5, reason="look closer")
    assert declare(store, config(tmp_path, audit_share=0.1, timeout_s=5.0)) == [changed]
    (other,) = declare(store, config(tmp_path, audit_share=0.2))
    assert (other.audit_share, other.delta) == (0.2, 0.02)
    (again,) = declare(store, config(tmp_path, audit_share=0.1))
    assert again.audit_share == 0.1, "a file that says something else than before is applied"


def test_an_adapter_is_named_by_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AdapterError):
        declare(RouteStore(tmp_path), config(tmp_path, slm="served:tiny-base:champion"))
    monkeypatch.setattr("slm_ray.rollout.declared.resolve", lambda folder, name: f"{name}-0123456789ab")
    for place, slm in enumerate(("served:tiny-base:champion", "served:champion")):
        store = RouteStore(tmp_path / str(place))
        (state,) = declare(store, config(tmp_path / str(place), slm=slm))
        assert (state.adapter, state.route.slm) == ("champion-0123456789ab", "served:tiny-base:champion-0123456789ab")
        assert asks_endpoint(store)
    (state,) = declare(RouteStore(tmp_path / "base"), config(tmp_path / "base", slm="served:tiny-base"))
    assert (state.adapter, state.route.slm) == (None, "served:tiny-base")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"slm": "openai:small+3shot"}, r"\+Kshot"), ({"llm": "nobody:x"}, "nobody"), ({"track": "nothing"}, "unknown track"),
    ],
)  # fmt: skip
def test_a_route_that_would_fail_every_call_is_refused_in_a_file_as_on_the_command_line(
    tmp_path: Path, wrong: dict[str, str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        declare(RouteStore(tmp_path), config(tmp_path, **wrong))
    assert RouteStore(tmp_path).routes() == {}
