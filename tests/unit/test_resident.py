"""Resident workers without Ray: one base for trial after trial, the same results as runs of their own, and who gets what."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from slm_ray.config import Lora, TrainConfig
from slm_ray.corpus.render import prompt_of
from slm_ray.corpus.tracks import track
from slm_ray.errors import ResourceError
from slm_ray.training import ray_trainer, rows, slots, validation_score
from slm_ray.training.base_model import open_tokenizer
from slm_ray.training.plan import WorkerPayload
from slm_ray.training.resident import Desk, Work
from slm_ray.training.resident_worker import Resident, last_whole
from slm_ray.types import Example

BASE = Path(__file__).parents[2] / "data" / "tiny_base"
TRACK = track("structured")


def examples(count: int, word: str) -> tuple[Example, ...]:
    return tuple(
        Example(id=f"{word}{n}", prompt=prompt_of(TRACK, f"{word} {n}"), target=f'{{"n": {n}}}') for n in range(count)
    )


def work(folder: Path, rate: float, rank: int, **changed: Any) -> Work:
    config = TrainConfig(
        track="structured", train="train.jsonl", base=str(BASE), run_dir=str(folder), adapters_dir=str(folder),
        per_device_batch=4, gradient_accumulation=1, optimizer="adamw_torch", epochs=2, warmup_steps=1,
        learning_rate=rate, lora=Lora(rank=rank, alpha=2 * rank, dropout=0.1), workers={"count": 1},
    )  # fmt: skip
    tokenizer = open_tokenizer(BASE)
    found = rows.joined(rows.tokenised(tokenizer, rows.conversation(example)) for example in examples(8, "Number"))
    payload = WorkerPayload(
        config=config, rows=found, lengths=(60,) * 8,
        use_gpu=False, progress_path=str(folder / "progress.json"), validation=examples(3, "Figure"), track=TRACK,
    )  # fmt: skip
    return dataclasses.replace(
        Work(
            name=f"r{rank}", folder=str(folder), payload=payload, rows=(), rows_digest="rows",
            validation_digest="validation",
        ),
        **changed,
    )  # fmt: skip


class InOneProcess(Resident):
    """A resident of one rank whose rows come with the payload."""

    def __init__(self) -> None:
        super().__init__(rank=0, ranks=1)

    def _with_rows(self, work: Work) -> WorkerPayload:
        return work.payload


def ever(report: dict[str, Any]) -> bool:
    return True


def learned(record: dict[str, Any]) -> dict[str, Any]:
    timed = ("train_s", "tokens_per_s", "peak_bytes")
    return {name: value for name, value in record["metrics"].items() if name not in timed}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    (path,) = (folder / "checkpoints").glob("checkpoint-*/adapter_model.safetensors")
    return load_file(path)


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """As a worker does, imported modules are left out of collections; a base that has learned nothing ends no answer."""
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation_score, "ANSWER_TOKENS", 12)
        yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def resident(tmp_path_factory: pytest.TempPathFactory) -> tuple[InOneProcess, dict[str, Any], Path]:
    """A worker that has trained one trial, the trial's record and its folder."""
    worker, folder = InOneProcess(), tmp_path_factory.mktemp("trials")
    return worker, worker.trial(work(folder / "first", 1e-2, 4), ever), folder


def test_trials_on_one_base_are_bit_for_bit_runs_of_their_own(
    resident: tuple[InOneProcess, dict[str, Any], Path], tmp_path: Path
) -> None:
    worker, first, folder = resident
    bits = {name: tensor.clone() for name, tensor in worker._base.state_dict().items()}
    second = worker.trial(work(tmp_path / "second", 3e-3, 8), ever)
    again = worker.trial(work(tmp_path / "first", 1e-2, 4), ever)
    alone = InOneProcess().trial(work(tmp_path / "alone", 3e-3, 8), ever)

    assert learned(second) == learned(alone)
    assert learned(first) == learned(again) != learned(second)
    for one, other in ((tmp_path / "second", tmp_path / "alone"), (folder / "first", tmp_path / "first")):
        left, right = weights(one), weights(other)
        assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    after = worker._base.state_dict()
    assert after.keys() == bits.keys() and all(torch.equal(after[name], bits[name]) for name in bits)


def test_looking_at_the_loss_at_a_rung_changes_nothing_and_a_trial_that_may_not_go_on_ends_there(
    resident: tuple[InOneProcess, dict[str, Any], Path], tmp_path: Path
) -> None:
    asked: list[dict[str, Any]] = []

    def once(report: dict[str, Any]) -> bool:
        asked.append(report)
        return len(asked) < 2

    worker, plain, _ = resident
    watched = worker.trial(work(tmp_path / "b", 1e-2, 4, rungs=(1, 3, 4)), ever)
    assert learned(watched) == learned(plain)
    assert [step for step, _ in watched["rungs"]] == [1, 3], "the end is no rung"

    stopped = worker.trial(work(tmp_path / "c", 1e-2, 4, rungs=(1, 3)), once)
    assert [report["step"] for report in asked] == [1, 3]
    assert [loss for _, loss in stopped["rungs"]] == [loss for _, loss in watched["rungs"]]
    assert stopped["metrics"]["stopped_at"] == 3 and stopped["metrics"]["validation_loss"] == asked[1]["loss"]
    assert "validation_score" not in stopped["metrics"]


def test_a_finished_trial_is_only_scored_again_on_other_rows(
    resident: tuple[InOneProcess, dict[str, Any], Path],
) -> None:
    worker, whole, folder = resident
    again = worker.trial(work(folder / "first", 1e-2, 4, validation_digest="others"), ever)
    assert (again["metrics"]["steps_run"], again["metrics"]["resumed_from"]) == (0, 4)
    assert again["metrics"]["validation_loss"] == whole["metrics"]["validation_loss"]
    assert again["validation"] == "others"


def test_a_trial_whose_worker_was_killed_in_the_middle_of_a_checkpoint_goes_on_from_the_one_before(
    resident: tuple[InOneProcess, dict[str, Any], Path], tmp_path: Path
) -> None:
    worker, whole, folder = resident
    shutil.copytree(folder / "first" / "checkpoints", tmp_path / "checkpoints")
    (written,) = (tmp_path / "checkpoints").iterdir()
    half = written.with_name("checkpoint-100")
    half.mkdir()
    (half / "adapter_model.safetensors").write_bytes((written / "adapter_model.safetensors").read_bytes()[:99])
    again = worker.trial(work(tmp_path, 1e-2, 4), ever)
    assert (again["metrics"]["steps_run"], again["metrics"]["resumed_from"]) == (0, 4)
    assert again["metrics"]["validation_loss"] == whole["metrics"]["validation_loss"]
    assert not half.exists(), "else the trainer would keep it, as the newest, and delete those that follow"
    assert last_whole(tmp_path / "checkpoints", 1) == str(written)
    assert last_whole(tmp_path / "checkpoints", 2) is None, "the second rank has not written its generators"
    assert last_whole(tmp_path / "nothing", 1) is None


def test_after_a_failure_the_base_is_loaded_again(
    resident: tuple[InOneProcess, dict[str, Any], Path], tmp_path: Path
) -> None:
    def broken(report: dict[str, Any]) -> bool:
        raise OSError("no space left on device")

    worker, plain, _ = resident
    with pytest.raises(OSError, match="no space"):
        worker.trial(work(tmp_path / "a", 1e-2, 4, rungs=(1,)), broken)
    assert learned(worker.trial(work(tmp_path / "b", 1e-2, 4), ever)) == learned(plain)


def desk_talk(script: Any) -> Any:
    return asyncio.run(asyncio.wait_for(script, 10))


def test_a_trial_at_a_rung_goes_on_when_it_is_listened_to_and_ends_when_it_is_stopped(tmp_path: Path) -> None:
    async def script() -> None:
        desk = Desk(1)
        await desk.submit(work(tmp_path, 1e-2, 4))
        assert (await desk.take(0)).name == "r4"  # type: ignore[union-attr]
        rung = asyncio.create_task(desk.rung(0, {"step": 1, "loss": 2.0}))
        assert await desk.hear("r4") == {"step": 1, "loss": 2.0}
        await asyncio.sleep(0)
        assert not rung.done()
        heard = asyncio.create_task(desk.hear("r4"))
        assert await rung
        assert await desk.rung(0, {"step": 1, "loss": 2.0}), "asked again after a lost worker: decided already"
        last = asyncio.create_task(desk.rung(0, {"step": 3, "loss": 1.0}))
        assert await heard == {"step": 3, "loss": 1.0}
        await desk.stop("r4")
        assert not await last

    desk_talk(script())


def test_a_trial_whose_workers_are_lost_is_tried_three_times_and_a_group_that_can_do_nothing_leaves(
    tmp_path: Path,
) -> None:
    async def script() -> None:
        desk = Desk(1)
        for rank in (4, 8):
            await desk.submit(work(tmp_path, 1e-2, rank))
        taken = [await desk.take(0) for _ in range(3)]
        assert {found.name for found in taken if not isinstance(found, str)} == {"r4"}
        await desk.crashed(0, "OutOfMemoryError: CUDA out of memory")
        assert await desk.take(0) == "leave", "it has never finished a trial"
        assert await desk.hear("r4") == {"error": "OutOfMemoryError: CUDA out of memory"}
        await desk.lose(0, "its group of workers has left")
        assert await desk.hear("r8") == {"error": "its group of workers has left"}
        await desk.submit(work(tmp_path, 1e-2, 16))
        assert "error" in await desk.hear("r16"), "nobody is left to train it"

    desk_talk(script())


def test_a_group_that_finds_no_node_gives_its_trial_to_another_one_and_the_last_group_keeps_it(tmp_path: Path) -> None:
    async def script() -> None:
        desk = Desk(2)
        for rank in (4, 8):
            await desk.submit(work(tmp_path, 1e-2, rank))
        assert [(await desk.take(group)).name for group in (0, 1)] == ["r4", "r8"]  # type: ignore[union-attr]
        await desk.release(1)
        await desk.release(1)  # each half minute
        await desk.finish(0, {"done": True})
        assert (await desk.take(0)).name == "r8"  # type: ignore[union-attr]
        await desk.lose(1, "its node was lost")
        await desk.release(0)
        assert (await desk.take(0)).name == "r8", "nobody else would train it"  # type: ignore[union-attr]

    desk_talk(script())


def test_a_group_that_waits_for_a_place_says_so_each_time_and_gives_up_when_the_cluster_stays_too_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short, now = [""], [0.0]
    told: list[int] = []
    asked: list[str] = []
    removed: list[Any] = []
    place = SimpleNamespace(wait=lambda seconds: len(asked) > 1)

    def placed(bundles: Any, *, strategy: str, name: str) -> Any:
        asked.append(name)
        return place

    monkeypatch.setattr(ray_trainer, "placement_group", placed)
    monkeypatch.setattr(ray_trainer, "remove_placement_group", removed.append)
    monkeypatch.setattr("slm_ray.cluster.shortage", lambda bundles: short[0])
    monkeypatch.setattr(slots, "time", SimpleNamespace(monotonic=lambda: now[0]))
    seat = ray_trainer._Seat(None, "of-this-sweep", lambda: told.append(1))
    first = ray_trainer._Place(seat, [{"slot": 1.0}], "PACK")
    for passes_s in (0.0, 4000.0):  # others hold the slots: there is enough of them
        now[0] += passes_s
        assert not first.wait(30)
    short[0] = "asks for 1 slot, the cluster has 0"
    assert not first.wait(30) and not removed
    now[0] += slots.PATIENCE_S + 1
    with pytest.raises(ResourceError, match="no node has joined for 30 minutes"):
        first.wait(30)
    assert len(told) == 4 and removed == [place]
    assert ray_trainer._Place(seat, [{"slot": 1.0}], "PACK").wait(30) and len(told) == 4
    assert asked[0] != asked[1] and all(name.startswith("of-this-sweep-") for name in asked)


def test_one_trial_that_kills_its_workers_does_not_end_a_group_that_has_finished_others(tmp_path: Path) -> None:
    async def script() -> None:
        desk = Desk(1)
        for rank in (4, 8, 16):
            await desk.submit(work(tmp_path, 1e-2, rank))
        await desk.take(0)
        await desk.finish(0, {"done": True})
        names = [found.name for _ in range(4) if not isinstance(found := await desk.take(0), str)]
        assert names == ["r8", "r8", "r8", "r16"]
        assert "killed more than 2 times" in (await desk.hear("r8"))["error"]
        await desk.finish(0, {"done": True})
        await desk.close()
        assert await desk.take(0) == "leave"

    desk_talk(script())
