"""What the loop hands on to its steps, without running any."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from adapter_files import publish, trained

from slm_ray import cluster
from slm_ray.config import Comparison, LoopConfig, TrainConfig, load
from slm_ray.errors import ConfigError
from slm_ray.loop import session
from slm_ray.loop.run import Loop
from slm_ray.loop.track import TrackRun
from slm_ray.loop.train import Placement, swept, training_config
from slm_ray.prepare import Prepared
from slm_ray.storage import write_json
from slm_ray.training import launch, progress, train_many
from slm_ray.training.plan import plan

ROOT = Path(__file__).parents[2]


def test_validation_rows_have_a_rule_of_their_own_and_all_else_is_shared() -> None:
    config = load(LoopConfig, ROOT / "jobs/loop.yaml", ["comparison.guardrails=[json_valid]", "comparison.delta=0.1"])
    loop = Loop(config, {})
    validation, test = loop.comparison("validation"), loop.comparison("test")
    assert (validation.rule, test.rule) == ("point", "sequential")
    assert validation.model_copy(update={"rule": "sequential"}) == test == config.comparison


def test_a_sweep_is_shown_no_test_row_and_gives_one_recipe_to_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the adapter that comes of it meets the test rows, where it is one candidate however many trials there were."""
    config = load(LoopConfig, ROOT / "jobs/loop.yaml", [f"run_dir={tmp_path}", "search.trials=4"])
    prepared = Prepared(folder=tmp_path / "rows", track="structured", rows={}, digest="")
    run = TrackRun(config=config.tracks[0], prepared=prepared, folder=tmp_path / "structured")
    shown: list[str] = []

    def sweep(trials: TrainConfig, search: Any, *, validation: str, make_room: Any) -> dict[str, Any]:
        shown.extend((trials.model_dump_json(), search.model_dump_json(), validation))
        return {"best": {"learning_rate": 0.25, "rank": 2, "alpha": 4}}

    monkeypatch.setattr("slm_ray.loop.train.sweep", sweep)
    monkeypatch.setattr("slm_ray.loop.train.summary", lambda result: [])
    best = swept(config, run, lambda line: None, prove_on="nothing", make_room=lambda: None)
    assert shown[-1] == prepared.path("validation") and prepared.path("test") not in "".join(shown)
    planned = training_config(config, run, prove_on="nothing")
    lora = planned.lora.model_copy(update={"rank": 2, "alpha": 4})
    assert best == planned.model_copy(update={"learning_rate": 0.25, "lora": lora})


@pytest.mark.parametrize(("finished", "beside"), [(True, False), (False, False), (False, True)])
def test_the_endpoint_is_taken_down_for_a_training_that_needs_its_place_and_not_for_a_finished_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: bool, beside: bool
) -> None:
    loop = Loop(load(LoopConfig, ROOT / "jobs/loop.yaml", [f"run_dir={tmp_path}"]), {})
    loop.endpoint = SimpleNamespace(url="http://there")  # type: ignore[assignment]
    done: list[str] = []

    def deployed(*anything: Any, **more: Any) -> Any:
        done.append("up")
        return loop.endpoint

    place = Placement(beside_endpoint=beside, note="" if beside else "it is taken down")
    monkeypatch.setattr(session, "placement", lambda config, tracks: place)
    monkeypatch.setattr(session, "check_template", lambda *anything: None)
    monkeypatch.setattr(session, "check_deployed", lambda *anything: {})
    monkeypatch.setattr(session, "shutdown", lambda: done.append("down"))
    monkeypatch.setattr(session, "deploy", deployed)
    monkeypatch.setattr(session, "ends_with_driver", lambda app: None)

    def job(make_room: Callable[[], None]) -> None:
        for _ in range(0 if finished else 2):  # a sweep and a training, or two tracks in turn
            make_room()
        done.append("trained")

    with loop.log:
        loop.train([], job)
    assert done == (["trained"] if finished or beside else ["down", "trained", "up"])
    assert ("it is taken down" in (tmp_path / "log.txt").read_text()) == ("down" in done)


def two_trainings(folder: Path) -> list[TrainConfig]:
    rows = [{"id": n, "prompt": f"call {n}", "completion": "{}"} for n in range(4)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [
        TrainConfig(
            track="structured", train=str(folder / "train.jsonl"), base=str(ROOT / "data/tiny_base"), epochs=epochs,
            run_dir=str(folder / "run"), adapters_dir=str(folder / "adapters"),
        )
        for epochs in (1, 2)
    ]  # fmt: skip


def test_a_finished_adapter_asks_for_no_room_on_the_cluster_and_another_one_does(tmp_path: Path) -> None:
    class Asked(Exception):
        """Instead of what would start then."""

    def make_room() -> None:
        raise Asked

    one, other = two_trainings(tmp_path)
    manifest = publish(trained(tmp_path / "made"), tmp_path / "adapters", "f" * 32)
    write_json(plan(one).folder / launch.FINISHED, {"adapter": manifest.id})
    assert train_many([one], make_room=make_room) == [manifest]
    with pytest.raises(Asked):
        train_many([one, other], make_room=make_room)


def test_trainings_in_line_show_that_they_wait_and_need_nothing_beside_their_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing: workers that hold all CPUs would leave none for the task that starts them, for ever."""

    class InLine(Exception):
        """Instead of what would start then."""

    shown: list[Any] = []

    def in_line(jobs: Any, start: Any) -> None:
        shown.extend(progress.read(planned.progress_path) for planned in plans)
        raise InLine

    trainings = two_trainings(tmp_path)
    plans = [plan(one) for one in trainings]
    cut_off = progress.Progress(step=3, steps=10, loss=1.25, tokens_per_s=2000.0, eta_s=12.4)
    progress.write(plans[1].progress_path, cut_off)
    monkeypatch.setattr(cluster, "connect", lambda: None)
    monkeypatch.setattr(cluster, "require", lambda *anything, **more: None)
    monkeypatch.setattr(launch, "in_line", in_line)
    with pytest.raises(InLine):
        train_many(trainings)
    assert shown == [None, None]
    assert launch._in_task._default_options["num_cpus"] == 0


def test_validation_rows_are_all_asked_though_test_rows_may_stop() -> None:
    stops = ["comparison.rule=sequential", "comparison.stop=when_decided"]
    loop = Loop(load(LoopConfig, ROOT / "jobs/loop.yaml", stops), {})
    assert [loop.comparison(stage).stop for stage in ("validation", "test")] == ["never", "when_decided"]
    Comparison.model_validate(loop.comparison("validation").model_dump())  # no rule that is told to stop and may not


def test_the_stand_in_answers_for_azure_without_keys_and_for_nobody_else() -> None:
    def loop(llm: str, **environment: str) -> Loop:
        return Loop(load(LoopConfig, ROOT / "jobs/loop.yaml", [f"llm={json.dumps(llm)}"]), environment)

    assert loop("azure:").uses_stand_in and loop("azure:gpt-4o+3shot").uses_stand_in
    assert not loop("azure:", AZURE_API_KEY="k").uses_stand_in
    assert not loop("openai:m").uses_stand_in and not loop("recorded:azure:").uses_stand_in


def test_an_adapter_that_could_not_be_served_is_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match=r"variant dora.*vLLM serves no DoRA; set lora or rslora"):
        load(LoopConfig, ROOT / "jobs/loop.yaml", ["training.lora.variant=dora"])
