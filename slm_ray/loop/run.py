"""The whole question as one resumable run: prepare, deploy, evaluate, compare, sweep, train, evaluate again, compare.

An interrupted loop continues where it stopped: no row is asked twice, no finished training is redone. Nothing here knows
how a step works; what every run of many steps shares is `session`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Set
from functools import partial

from slm_ray import adapters
from slm_ray.config import CompareConfig, Comparison, Declaration, EvaluateConfig, LoopConfig
from slm_ray.errors import ModelError
from slm_ray.evaluation import evaluate
from slm_ray.evaluation.outage import outages
from slm_ray.evaluation.table import summary
from slm_ray.loop.page import write_result
from slm_ray.loop.session import Session
from slm_ray.loop.track import TrackRun
from slm_ray.loop.train import train_tracks
from slm_ray.page.data import Stage
from slm_ray.providers import parse
from slm_ray.reports.compare import compare_reports, comparison_text, write_comparison
from slm_ray.tasks import open_track
from slm_ray.tracing import Tracer
from slm_ray.types import Decision


class Loop(Session[LoopConfig]):
    """One run of the loop."""

    def prepare(self) -> list[TrackRun]:
        """Split every track's rows."""
        runs = []
        for track in self.config.tracks:
            folder = self.folder / open_track(track.track).name
            runs.append(TrackRun(config=track, prepared=self.prepared(track, folder / "examples"), folder=folder))
        return runs

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
        if failed := outages(run.reports[stage]):
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
        return comparison.model_copy(update={"rule": "point", "stop": "never", "stratify": None})

    def run(self) -> dict[str, str]:
        """All steps; the decision per track."""
        with self.log.step("prepare"):
            runs = self.prepare()
        with self.log.step("deploy"):
            self.deploy({run.name: run.prepared.path("train") for run in runs})
        for run in runs:
            with self.log.step(f"evaluate {run.name} (validation rows)"):
                self.evaluate(run, "validation", [self.llm, self.base], self.base, {})
                self.decide(run, "validation", self.base)
        tracks_to_train = [run for run in runs if _wants_training(run.compared["validation"].decision)]
        if tracks_to_train:
            self.train(tracks_to_train, partial(self._train, tracks_to_train))
        for run in runs:
            with self.log.step(f"evaluate {run.name} (test rows)"):
                self.finish(run)
        write_result(self.config, runs, uses_stand_in=self.uses_stand_in, timings_s=self.log.timings_s)
        return {run.name: run.compared["test"].decision.action for run in runs}

    def _train(self, runs: list[TrackRun], make_room: Callable[[], None]) -> None:
        """One adapter per track."""
        train_tracks(self.config, runs, prove_on=self.prove_on, say=self.log.outcome, make_room=make_room)

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
    return this.execute(this.run)


def _wants_training(decision: Decision) -> bool:
    """Whether training is worth a try; it may be under settings that were not declared, for it decides nothing."""
    return "fine_tune" in (decision.action, decision.exploratory)
