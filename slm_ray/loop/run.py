"""The whole question as one resumable run: prepare, deploy, evaluate, compare, sweep, train, evaluate again, compare.

Each step keeps its own result in the run directory and returns at once when it is there, so an interrupted loop
continues where it stopped: no row is asked twice, no finished training is redone. The endpoint is taken down at the end
unless `serving.keep_alive` is set. Nothing here knows how a step works.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Set
from pathlib import Path

from slm_ray import adapters, cluster, storage
from slm_ray.config import (
    CompareConfig,
    Comparison,
    Declaration,
    EvaluateConfig,
    LoopConfig,
    PrepareConfig,
    TrackSource,
    dump,
)
from slm_ray.errors import ModelError
from slm_ray.evaluation import evaluate
from slm_ray.evaluation.outage import outages
from slm_ray.evaluation.table import summary
from slm_ray.executor import RayExecutor
from slm_ray.loop.page import STAND_IN_FEW_SHOT, write_result
from slm_ray.loop.steps import StepLog
from slm_ray.loop.track import TrackRun
from slm_ray.loop.train import bundles, check_template, placement, train_tracks
from slm_ray.page.data import Stage
from slm_ray.prepare import TokenCounter, prepare
from slm_ray.providers import parse
from slm_ray.reports.compare import compare_reports, comparison_text, write_comparison
from slm_ray.serving import Endpoint, deploy, shutdown
from slm_ray.serving.served_answers import check_deployed
from slm_ray.tasks import open_track
from slm_ray.tracing import Tracer, offer_all
from slm_ray.types import Decision

LOG = "log.txt"
STAND_IN = "stand-in"
AZURE_NAMES = ("AZURE_ENDPOINT", "AZURE_DEPLOYMENT", "AZURE_API_KEY")


class Loop:
    """One run of the loop: its settings, its environment and where the answers come from."""

    def __init__(self, config: LoopConfig, environment: Mapping[str, str]) -> None:
        self.config = config
        self.folder = Path(config.run_dir)
        self.log = StepLog(self.folder / LOG)
        llm = parse(config.llm).provider
        self.uses_stand_in = (
            config.stand_in and llm.kind == "azure" and not any(environment.get(name) for name in AZURE_NAMES)
        )
        # The steps only write their traces: the loop sends them all when it is done, in the time that befits a loop.
        self.environment = {**environment, "LANGFUSE_DISABLED": "1"}
        if self.uses_stand_in:
            self.environment |= _stand_in_environment(config, environment)
        self.llm = config.llm
        if self.llm == "azure:":
            self.llm += self.environment.get("AZURE_DEPLOYMENT", "")
        self.base = f"served:{config.serving.name}"
        self.endpoint: Endpoint

    def prepare(self) -> list[TrackRun]:
        """Split every track's rows; the splits of one track share no prompt."""
        runs = []
        for track in self.config.tracks:
            name = open_track(track.track).name
            folder = self.folder / name
            prepared = prepare(
                PrepareConfig(**track.model_dump(), out_dir=str(folder / "examples"), seed=self.config.seed),
                token_counter=self.token_counter(track), log=self.log.say, executor=RayExecutor(track.parallel_threshold_bytes),
            )  # fmt: skip
            self.log.outcome(f"{name}: " + ", ".join(f"{rows} {split}" for split, rows in prepared.rows.items()))
            runs.append(TrackRun(config=track, prepared=prepared, folder=folder))
        return runs

    def token_counter(self, track: TrackSource) -> TokenCounter | None:
        """Counts an example's tokens as the base does, where the track limits them."""
        if track.curation.max_tokens is None:
            return None
        from slm_ray.training.base_model import token_counter  # transformers takes seconds to import

        return token_counter(self.config.serving.base)

    def deploy(self, runs: list[TrackRun]) -> Endpoint:
        """Serve the base, and with no Azure keys the labelled stand-in that answers as the LLM."""
        stand_in = None
        if self.uses_stand_in:
            pools = {run.name: run.prepared.path("train") for run in runs}
            stand_in = {"deployment": STAND_IN, "demonstrations": STAND_IN_FEW_SHOT, "pools": pools}
            self.log.note("no AZURE_* keys: a local stand-in answers as the LLM, and is labelled as one")
        endpoint = deploy(self.config.serving, stand_in=stand_in)
        self.log.outcome(f"{self.config.serving.name} answers at {endpoint.url}/v1")
        return endpoint

    def evaluate(
        self, run: TrackRun, stage: Stage, models: list[str], slm: str, trained: Mapping[str, Set[str]]
    ) -> None:
        """Ask all models the stage's rows and keep the report; ModelError when one was out of reach for many of them.

        Nothing is trained or decided on answers that are missing; the same command asks the failed rows again.
        """
        comparison = self.comparison(stage)
        config = EvaluateConfig(
            track=run.name, examples=run.prepared.path(stage), models=tuple(models), slm=slm,
            run_dir=str(run.folder / stage), endpoint=self.endpoint.url, adapters_dir=self.config.serving.adapters_dir,
            declare=Declaration(**{name: getattr(comparison, name) for name in Declaration.model_fields}),
            prices=self.config.prices, **dict(self.config.evaluation),
        )  # fmt: skip
        run.reports[stage] = evaluate(config, environment=self.environment, train_prompts=trained)
        self.log.say(summary(run.reports[stage]))
        if failed := outages(run.reports[stage], config.max_failed_share):
            raise ModelError(f"{run.name}, {stage} rows: {'; '.join(failed)}")

    def decide(self, run: TrackRun, stage: Stage, slm: str) -> Decision:
        """Compare `slm` with the LLM on the stage's rows, print the verdict and keep it.

        On test rows also the share of traffic that the SLM may take, chosen on the validation rows.
        """
        config = CompareConfig(
            report=str(run.folder / stage), llm=self.llm, slm=slm, train=run.prepared.path("train"),
            validation_report=str(run.folder / "validation") if stage == "test" else None,
            prices=self.config.prices, **dict(self.comparison(stage)),
        )  # fmt: skip
        found = compare_reports(config, chosen=False)
        write_comparison(found, config)
        run.compared[stage], run.compare_configs[stage] = found, config
        Tracer(run.folder / stage, self.environment).comparison(found.comparison, found.decision)
        self.log.say(comparison_text(found))
        self.log.outcome(f"verdict: {found.decision.action}")
        return found.decision

    def comparison(self, stage: Stage) -> Comparison:
        """Training is cheap and can be thrown away, so validation rows may have a lenient rule; test rows decide."""
        comparison = self.config.comparison
        if stage == "test":
            return comparison
        return comparison.model_copy(update={"rule": self.config.validation_rule, "stop": "never"})

    def train(self, tracks_to_train: list[TrackRun], runs: list[TrackRun]) -> None:
        """One adapter per track; the endpoint stays up unless training cannot fit beside it."""
        with self.log.step("train"):
            check_template(self.config, tracks_to_train, self.endpoint)
            self.log.say("parity check: trainer and server see the same tokens for the same prompt")
            place = placement(self.config, len(tracks_to_train))
            if place.note:
                self.log.note(place.note)
            if not place.beside_endpoint:
                shutdown()
            # An endpoint that stays up answers for an adapter before it is listed; else an engine like it is started.
            prove_on = self.endpoint.url if place.beside_endpoint else self.config.serving.config
            train_tracks(self.config, tracks_to_train, parallel=place.parallel, prove_on=prove_on, say=self.log.outcome)
        if not place.beside_endpoint:
            with self.log.step("deploy again"):
                self.endpoint = self.deploy(runs)
                self.check_deployed(runs)

    def check_deployed(self, runs: list[TrackRun]) -> None:
        """ModelError when an adapter answers otherwise than when it was proved."""
        ids = [run.adapter.id for run in runs if run.adapter is not None]
        for adapter, problem in check_deployed(self.endpoint.url, self.config.serving.adapters_dir, ids).items():
            if problem:
                raise ModelError(f"{adapter}: {problem}")

    def run(self) -> dict[str, str]:
        """All steps; the decision per track."""
        with self.log.step("prepare"):
            runs = self.prepare()
        with self.log.step("deploy"):
            self.endpoint = self.deploy(runs)
        for run in runs:
            with self.log.step(f"evaluate {run.name} (validation rows)"):
                self.evaluate(run, "validation", [self.llm, self.base], self.base, {})
                self.decide(run, "validation", self.base)
        tracks_to_train = [run for run in runs if _wants_training(run.compared["validation"].decision)]
        if tracks_to_train:
            self.train(tracks_to_train, runs)
        for run in runs:
            with self.log.step(f"evaluate {run.name} (test rows)"):
                self.finish(run)
        write_result(self.config, runs, uses_stand_in=self.uses_stand_in, timings_s=self.log.timings_s)
        return {run.name: run.compared["test"].decision.action for run in runs}

    def finish(self, run: TrackRun) -> None:
        """The held-out answer: the adapter if there is one, else the base, beside the LLM on test rows."""
        models, trained, slm = [self.llm, self.base], {}, self.base
        if run.adapter is not None:
            slm = f"{self.base}:{run.adapter.id}"
            models.append(slm)
            trained[slm] = adapters.train_prompts(self.config.serving.adapters_dir, run.adapter.id)
            self.evaluate(
                run, "validation", models, slm, trained
            )  # only the adapter is asked: the others have answered
        self.evaluate(run, "test", models, slm, trained)
        self.decide(run, "test", slm)


def loop(config: LoopConfig, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Run the loop; the final action per track. Raises before anything starts when a key or a resource is missing."""
    environment = os.environ if environment is None else environment
    this = Loop(config, environment)
    parse(this.llm).provider.check(this.environment)
    with storage.lock(config.run_dir), this.log:
        storage.write_text(Path(config.run_dir) / "config.yaml", dump(config))
        cluster.connect()
        cluster.require(bundles(config, 1), setting="training.workers")
        began_s = time.monotonic()
        try:
            actions = this.run()
        finally:
            if not config.serving.keep_alive:
                shutdown()
        offer_all(config.run_dir, environment, took_s=time.monotonic() - began_s)
        return actions


def _wants_training(decision: Decision) -> bool:
    """Whether training is worth a try; it may be under settings that were not declared, for it decides nothing."""
    return "fine_tune" in (decision.action, decision.exploratory)


def _stand_in_environment(config: LoopConfig, environment: Mapping[str, str]) -> dict[str, str]:
    return {
        "AZURE_ENDPOINT": f"http://{config.serving.host}:{config.serving.port}",
        "AZURE_DEPLOYMENT": STAND_IN,
        "AZURE_API_KEY": environment.get("SLM_RAY_API_KEY") or "local",
    }
