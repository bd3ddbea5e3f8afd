"""The whole question as one resumable run: prepare, deploy, evaluate, compare, sweep, train, evaluate again, compare.

Each step keeps its own result in the run directory and returns at once when it is there, so an interrupted loop
continues where it stopped: no row is asked twice, no finished training is redone. The endpoint is taken down at the end
unless `serving.keep` is set. Nothing here knows how a step works.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from slm_ray import adapters, cluster, storage
from slm_ray.config import (
    CompareConfig,
    EvaluateConfig,
    LoopConfig,
    PrepareConfig,
    TrackConfig,
    TrainingConfig,
    dump,
)
from slm_ray.evaluation import evaluate
from slm_ray.evaluation.table import summary
from slm_ray.loop_page import TrackResult, write_result
from slm_ray.models import check_spec
from slm_ray.prepare import Prepared, examples_in, prepare
from slm_ray.reports import compare_reports
from slm_ray.serving import Endpoint, deploy, shutdown, token_ids
from slm_ray.sweep import sweep
from slm_ray.training import train_many
from slm_ray.types import Comparison, Decision
from slm_ray.verdict.decide import verdict_text

STAND_IN = "stand-in"
AZURE_NAMES = ("AZURE_ENDPOINT", "AZURE_DEPLOYMENT", "AZURE_API_KEY")


@dataclass(slots=True, kw_only=True)
class TrackRun:
    """What the loop knows of one track so far."""

    config: TrackConfig
    prepared: Prepared
    folder: Path
    decisions: dict[str, tuple[Comparison, Decision]] = field(default_factory=dict)
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    adapter: adapters.Manifest | None = None


class Loop:
    """One run of the loop: its settings, its environment and where the answers come from."""

    def __init__(self, config: LoopConfig, environment: Mapping[str, str]) -> None:
        self.config = config
        self.folder = Path(config.run_dir)
        self.console = Console()
        self.uses_stand_in = (
            config.stand_in
            and config.llm.startswith("azure:")
            and not any(environment.get(name) for name in AZURE_NAMES)
        )
        self.environment = dict(environment)
        if self.uses_stand_in:
            self.environment |= _stand_in_environment(config, environment)
        self.llm = config.llm
        if self.llm == "azure:":
            self.llm += self.environment.get("AZURE_DEPLOYMENT", "")
        self.base = f"served:{config.serving.name}"
        self.timings_s: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Say which step runs and keep the seconds it took in this run; a step that was done before takes next to none."""
        self.console.rule(f"[bold]{name}", align="left")
        started = time.monotonic()
        yield
        self.timings_s[name] = round(time.monotonic() - started, 1)

    def say(self, text: str) -> None:
        """Text as it is: `[stand-in]` is no markup, and lines are not cut."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def prepare(self) -> list[TrackRun]:
        """Split every track's rows; the splits of one track share no prompt."""
        runs = []
        for track in self.config.tracks:
            folder = self.folder / track.track
            prepared = prepare(
                PrepareConfig(
                    **track.model_dump(include={"track", "source", "validation", "test", "train", "keep_split"}),
                    out_dir=str(folder / "examples"), seed=self.config.seed,
                )
            )  # fmt: skip
            self.console.print(f"{track.track}: " + ", ".join(f"{rows} {name}" for name, rows in prepared.rows.items()))
            runs.append(TrackRun(config=track, prepared=prepared, folder=folder))
        return runs

    def deploy(self, runs: list[TrackRun]) -> Endpoint:
        """Serve the base, and with no Azure keys the labelled stand-in that answers as the LLM."""
        stand_in = None
        if self.uses_stand_in:
            pools = {run.config.track: run.prepared.path("train") for run in runs}
            stand_in = {"deployment": STAND_IN, "demonstrations": self.config.stand_in_demonstrations, "pools": pools}
            self.console.print("[yellow]no AZURE_* keys: a local stand-in answers as the LLM, and is labelled as one")
        endpoint = deploy(self.config.serving, stand_in=stand_in)
        self.console.print(f"{self.config.serving.name} answers at {endpoint.url}/v1")
        return endpoint

    def training_config(self, run: TrackRun) -> TrainingConfig:
        """The training run of one track."""
        return TrainingConfig(
            **self.config.training.model_dump(), track=run.config.track, train=run.prepared.path("train"),
            base=self.config.serving.base, run_dir=str(run.folder / "training"),
            adapters_dir=self.config.serving.adapters_dir, name=run.config.track,
        )  # fmt: skip

    def evaluate(self, run: TrackRun, stage: str, models: list[str], trained: Mapping[str, Set[str]]) -> None:
        """Ask all models the stage's rows and keep the report."""
        config = EvaluateConfig(
            track=run.config.track, examples=run.prepared.path(stage), models=tuple(models),
            run_dir=str(run.folder / stage), endpoint=self.url, generation=self.config.generation,
            actor_resources=self.config.actor_resources,
        )  # fmt: skip
        run.reports[stage] = evaluate(config, environment=self.environment, train_prompts=trained)
        self.say(summary(run.reports[stage]))

    def decide(self, run: TrackRun, stage: str, slm: str) -> Decision:
        """Compare `slm` with the LLM on the stage's rows and print the verdict.

        Training is cheap and can be thrown away, so the gate may be lenient; taking over is what the rule must show.
        """
        rule = self.config.gate if stage == "validation" else self.config.rule
        comparison, decision = compare_reports(
            CompareConfig(
                report=str(run.folder / stage), llm=self.llm, slm=slm, rule=rule, delta=self.config.delta,
                train=run.prepared.path("train"), resamples=self.config.resamples, seed=self.config.seed,
            )
        )  # fmt: skip
        run.decisions[stage] = (comparison, decision)
        self.say(verdict_text(comparison, decision))
        return decision

    def check_template(self, runs: list[TrackRun]) -> None:
        """The parity gate: the token ids that the trainer will see for a prompt are those that the server sees."""
        from slm_ray.training.parity import check_parity, prompt_token_ids
        from slm_ray.training.pretrained import open_tokenizer  # the trainer's libraries take seconds to import

        tokenizer = open_tokenizer(Path(self.config.serving.base))
        for run in runs:
            prompt = examples_in(run.prepared.path("train"), run.config.track)[0].prompt
            served = token_ids(self.url, self.config.serving.name, prompt)
            check_parity(prompt_token_ids(tokenizer, prompt), served, tokenizer.decode, server=self.url)
        self.console.print("parity gate: trainer and server see the same tokens for the same prompt")

    def train(self, runs: list[TrackRun]) -> None:
        """Train and publish one adapter per track, all tracks at once when `parallel` is set."""
        configs = [self.training_config(run) for run in runs]
        if self.config.sweep.enabled:
            with self.step("sweep"):
                configs = [self.swept(run, config) for run, config in zip(runs, configs, strict=True)]
        with self.step("train"):
            self.check_template(runs)
            for run, manifest in zip(runs, train_many(configs, parallel=self.config.parallel), strict=True):
                run.adapter = manifest
                self.console.print(f"{run.config.track}: adapter {manifest.id}")

    def swept(self, run: TrackRun, config: TrainingConfig) -> TrainingConfig:
        """The training run with the learning rate and rank that did best on validation rows."""
        swept = config.model_copy(update={"run_dir": str(run.folder / "sweep")})
        best = sweep(swept, self.config.sweep, validation=run.prepared.path("validation"))["best"]
        self.console.print(
            f"{run.config.track}: best of the sweep is lr {best['learning_rate']:g}, rank {best['rank']}"
        )
        lora = config.lora.model_copy(update={"rank": best["rank"], "alpha": best["alpha"]})
        return config.model_copy(update={"learning_rate": best["learning_rate"], "lora": lora})

    def run(self) -> dict[str, str]:
        """All steps; the decision per track."""
        with self.step("prepare"):
            runs = self.prepare()
        with self.step("deploy"):
            self.url = self.deploy(runs).url
        for run in runs:
            with self.step(f"evaluate {run.config.track} (validation rows)"):
                self.evaluate(run, "validation", [self.llm, self.base], {})
                self.decide(run, "validation", self.base)
        losers = [run for run in runs if run.decisions["validation"][1].action == "fine_tune"]
        if losers:
            self.train(losers)
        for run in runs:
            with self.step(f"evaluate {run.config.track} (test rows)"):
                self.finish(run)
        results = [
            TrackResult(
                track=run.config.track,
                folder=run.folder,
                decisions=run.decisions,
                reports=run.reports,
                adapter=run.adapter,
            )
            for run in runs
        ]
        write_result(self.config, results, uses_stand_in=self.uses_stand_in, timings_s=self.timings_s)
        return {run.config.track: run.decisions["test"][1].action for run in runs}

    def finish(self, run: TrackRun) -> None:
        """The held-out answer: the adapter if there is one, else the base, beside the LLM on test rows."""
        models, trained, slm = [self.llm, self.base], {}, self.base
        if run.adapter is not None:
            slm = f"{self.base}:{run.adapter.id}"
            models.append(slm)
            trained[slm] = adapters.train_prompts(self.config.serving.adapters_dir, run.adapter.id)
        self.evaluate(run, "test", models, trained)
        self.decide(run, "test", slm)


def loop(config: LoopConfig, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Run the loop; the final action per track. Raises before anything starts when a key or a resource is missing."""
    this = Loop(config, os.environ if environment is None else environment)
    check_spec(this.llm, this.environment)
    with storage.lock(config.run_dir):
        storage.write_text(Path(config.run_dir) / "config.yaml", dump(config))
        cluster.connect()
        cluster.require(_training_bundles(config), setting="training.workers")
        try:
            return this.run()
        finally:
            if not config.serving.keep:
                shutdown()


def _training_bundles(config: LoopConfig) -> list[dict[str, float]]:
    groups = len(config.tracks) if config.parallel else 1
    return [dict(config.training.workers.per_worker)] * (config.training.workers.count * groups)


def _stand_in_environment(config: LoopConfig, environment: Mapping[str, str]) -> dict[str, str]:
    return {
        "AZURE_ENDPOINT": f"http://{config.serving.host}:{config.serving.port}",
        "AZURE_DEPLOYMENT": STAND_IN,
        "AZURE_API_KEY": environment.get("SLM_RAY_API_KEY") or "local",
    }
