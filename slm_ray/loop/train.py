"""The loop's training step: the parity check, a place on the cluster, a sweep if asked for, one adapter per track.

On scarce GPUs the endpoint may hold what training needs. Tracks train beside it, as many at once as there is room for and
the others in line, while one of them fits there; else in the endpoint's place. Nothing waits for what the loop itself holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from slm_ray import cluster
from slm_ray.config import LoopConfig, Range, RunConfig, TrainConfig
from slm_ray.errors import ModelError
from slm_ray.loop.track import TrackRun
from slm_ray.parity import chosen_rows, first_difference, in_words
from slm_ray.serving import Endpoint, token_ids
from slm_ray.sweep import summary, sweep
from slm_ray.training import train_many
from slm_ray.training.base_model import base_folder, open_tokenizer
from slm_ray.training.proof import check_rank
from slm_ray.training.rows import token_ids as counted

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Whether the endpoint stays up while tracks train, and what people are told of it."""

    beside_endpoint: bool
    note: str


def training_config(config: RunConfig, run: TrackRun, *, prove_on: str) -> TrainConfig:
    """The training run of one track; its adapter is proved on `prove_on` before it is published.

    Where it may stop early, the track's validation rows choose the checkpoint.
    """
    chosen_by = "" if config.training.early_stopping is None else run.prepared.path("validation")
    return TrainConfig(
        **config.training.model_dump(), track=run.name, train=run.prepared.path("train"), validation=chosen_by,
        base=config.serving.base,
        run_dir=str(run.folder / "training"), adapters_dir=config.serving.adapters_dir, name=run.name, prove_on=prove_on,
    )  # fmt: skip


def bundles(config: RunConfig, groups: int) -> list[dict[str, float]]:
    """What `groups` trainings hold of the cluster at the same time."""
    return [dict(config.training.workers.per_worker)] * (config.training.workers.count * groups)


def placement(config: RunConfig, tracks: int) -> Placement:
    """Where `tracks` trainings fit, given what is in use now; asks Ray by reserving it for a moment."""
    if cluster.fits_now(bundles(config, tracks)):
        return Placement(beside_endpoint=True, note="")
    if tracks > 1 and cluster.fits_now(bundles(config, 1)):
        return Placement(
            beside_endpoint=True, note="no room for all tracks at once beside the endpoint: the others wait in line"
        )
    return Placement(
        beside_endpoint=False,
        note="the endpoint holds what training needs: it is taken down for the training and served again after it",
    )


def check_template(config: RunConfig, runs: Sequence[TrackRun], endpoint: Endpoint) -> None:
    """Before a GPU minute is spent: the server takes adapters of that rank, and sees prompts as training counts them.

    Of each track the shortest and the longest training prompt and some between. What TRL really made of them is compared
    when the adapter is there, before it is published.
    """
    ranks = (
        config.search.ranks if isinstance(config, LoopConfig) and config.search.trials else (config.training.lora.rank,)
    )
    for rank in (int(ranks.high),) if isinstance(ranks, Range) else ranks:
        check_rank(config.serving.config, rank, setting="serving.config")
    tokenizer = open_tokenizer(base_folder(config.serving.base))
    for run in runs:
        prompts = [example.prompt for example in run.prepared.dataset("train").examples]
        for row in chosen_rows([sum(len(turn.content) for turn in prompt.messages) for prompt in prompts]):
            served = token_ids(endpoint.url, endpoint.model_name, prompts[row])
            trained = counted(tokenizer, prompts[row].as_dicts(), answer_next=True)
            differs = first_difference(trained, served, tokenizer.decode, server=endpoint.url)
            if differs is not None:
                raise ModelError(f"{run.name}, training row {row + 1}: {differs}")


def swept(config: LoopConfig, run: TrackRun, say: Say, *, prove_on: str, make_room: Callable[[], None]) -> TrainConfig:
    """The training run with the learning rate and rank that did best on validation rows, if a sweep is asked for."""
    planned = training_config(config, run, prove_on=prove_on)
    if not config.search.trials:
        return planned
    trials = planned.model_copy(update={"run_dir": str(run.folder / "sweep")})
    result = sweep(trials, config.search, validation=run.prepared.path("validation"), make_room=make_room)
    for line in summary(result):
        say(f"{run.name}: {line}")
    best = result["best"]
    lora = planned.lora.model_copy(update={"rank": best["rank"], "alpha": best["alpha"]})
    return planned.model_copy(update={"learning_rate": best["learning_rate"], "lora": lora})


def train_tracks(
    config: LoopConfig, runs: Sequence[TrackRun], *, prove_on: str, say: Say, make_room: Callable[[], None]
) -> None:
    """Sweep if asked for, train, prove and publish; each run's `adapter` is set."""
    configs = [swept(config, run, say, prove_on=prove_on, make_room=make_room) for run in runs]
    usd = config.comparison.cost.hourly_usd
    manifests = train_many(configs, hourly_usd=usd, make_room=make_room)
    for run, manifest in zip(runs, manifests, strict=True):
        run.adapter = manifest
        say(f"{run.name}: adapter {manifest.id}")
        print(f"{manifest.id}: {in_words(manifest.proof)}", flush=True)
