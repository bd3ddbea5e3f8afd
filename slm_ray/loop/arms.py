"""Six arms of one base on the same test rows (Dr.ICL): demonstrations, QLoRA, both, and the LLM, in one resumable run.

Prepare rows twice (plain, and with demonstrations in front of the training rows), train an adapter on each, ask every arm
the same test rows, compare every pair. The steps are the loop's, so the same command goes on where a run stopped: no
adapter is trained and no row asked twice. Demonstrations are found the same way for training rows and for questions.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from slm_ray import adapters, storage
from slm_ray.adapters import Manifest
from slm_ray.config import ArmsConfig, CompareConfig, Comparison, Declaration, EvaluateConfig, TrainConfig
from slm_ray.corpus.retrieve import DEMONSTRATIONS
from slm_ray.encoders import check_retriever
from slm_ray.errors import ConfigError, ModelError
from slm_ray.evaluation import evaluate
from slm_ray.evaluation.few_shot import Demonstrations
from slm_ray.evaluation.outage import outages
from slm_ray.loop.page import again_elsewhere, machine_facts, stand_in_note
from slm_ray.loop.session import AZURE_NAMES, Session
from slm_ray.loop.track import TrackRun
from slm_ray.loop.train import training_config
from slm_ray.page.arms import arms_page, arms_text
from slm_ray.page.data import ArmResult, ArmsReport, ArmsTrack
from slm_ray.providers import parse
from slm_ray.remote import addressed, shown_address
from slm_ray.reports.compare import compare_reports, comparison_text, write_comparison
from slm_ray.reports.encoding import encode
from slm_ray.reports.files import COMPARISON, load_report
from slm_ray.tasks import open_track
from slm_ray.tracing import Tracer
from slm_ray.training import train_many
from slm_ray.types import Decision, Example, Prompt
from slm_ray.verdict.pairwise import pairwise

LLM = "LLM"
ICL = "-icl"  # ends the name of the adapter that learned from rows with demonstrations
SLM_ARMS = 5
PLAIN_ROWS, ICL_ROWS = "plain rows", "rows with demonstrations"


@dataclass(slots=True, kw_only=True)
class TrackArms:
    """What a run knows of one track: the same rows twice, plain and with demonstrations in the training rows."""

    plain: TrackRun
    icl: TrackRun
    verdicts: dict[str, Decision] = field(default_factory=dict)

    @property
    def few_shot(self) -> int:
        """How many demonstrations there are."""
        return self.plain.config.few_shot


def arms_of(base: str, few_shot: int, *, plain: Manifest, icl: Manifest, llm: str | None) -> list[ArmResult]:
    """The arms by name, in the order of the table; without the LLM's where `llm` is None."""
    shots = f"+{few_shot}shot"
    found = [
        ArmResult(name="base", spec=base),
        ArmResult(name="base+ICL", spec=base + shots, demonstrations=few_shot),
        ArmResult(name="base+QLoRA", spec=f"{base}:{plain.id}", trained_on=PLAIN_ROWS),
        ArmResult(
            name="base+ICL+QLoRA", spec=f"{base}:{plain.id}{shots}", trained_on=PLAIN_ROWS, demonstrations=few_shot
        ),
        ArmResult(
            name="ICL-trained+QLoRA", spec=f"{base}:{icl.id}{shots}", trained_on=ICL_ROWS, demonstrations=few_shot
        ),
    ]
    return found if llm is None else [*found, ArmResult(name=LLM, spec=llm, demonstrations=parse(llm).demonstrations)]


def icl_training(config: TrainConfig, run: TrackRun) -> TrainConfig:
    """The training of the arm that learns from rows with demonstrations, under a name of its own.

    Where validation rows choose its checkpoint, they are asked as its test rows will be: behind demonstrations, the same
    way. Such rows are written beside the track's.
    """
    changes = {"name": config.name + ICL}
    if config.validation:
        settings = run.config
        asked = run.prepared.dataset("validation").examples
        shown = Demonstrations(run.prepared.path("train"), run.name, asked, settings.retriever)
        prompts = shown.prompts(asked, settings.few_shot)
        path = run.folder / f"validation{ICL}.jsonl"
        storage.write_jsonl(path, (_shown(row, prompts[row.id]) for row in asked))
        changes["validation"] = str(path)
    return config.model_copy(update=changes)


def _shown(row: Example, prompt: Prompt) -> dict[str, Any]:
    demonstrations = (len(prompt.messages) - len(row.prompt.messages)) // 2
    return {
        "id": row.id, "prompt": prompt.as_dicts(), "completion": row.target,
        "tags": {**row.tags, DEMONSTRATIONS: str(demonstrations)},
    } | ({} if row.group is None else {"group": row.group})  # fmt: skip


class Arms(Session[ArmsConfig]):
    """One run of the six arms."""

    @property
    def asked_llm(self) -> str | None:
        """The LLM's spec; None where it is left out: neither a key nor a stand-in."""
        return None if self.lacks_keys and not self.uses_stand_in else self.llm

    @property
    def left_out(self) -> tuple[str, ...]:
        """What is said of an LLM that is not asked."""
        if self.asked_llm is not None:
            return ()
        return (f"the LLM: none of {', '.join(AZURE_NAMES)} is set, and stand_in is false",)

    def run(self) -> ArmsReport:
        """All steps; the report, also in the run directory."""
        with self.log.step("prepare"):
            tracks = self.prepare()
        with self.log.step("deploy"):
            self.deploy({one.plain.name: one.plain.prepared.path("train") for one in tracks})
        runs = [run for one in tracks for run in (one.plain, one.icl)]
        self.train(runs, partial(self._train, runs))
        for one in tracks:
            with self.log.step(f"evaluate {one.plain.name}"):
                self.evaluate(one)
        for one in tracks:
            with self.log.step(f"compare {one.plain.name}"):
                self.compare(one)
        return self._written(tracks)

    def prepare(self) -> list[TrackArms]:
        """Every track's rows: the same splits twice."""
        found = []
        for track in self.config.tracks:
            folder = self.folder / open_track(track.track).name
            plain = self.prepared(track, folder / "examples", few_shot=0)
            icl = self.prepared(track, folder / "examples-icl")
            found.append(
                TrackArms(
                    plain=TrackRun(config=track, prepared=plain, folder=folder),
                    icl=TrackRun(config=track, prepared=icl, folder=folder),
                )
            )
        return found

    def _train(self, runs: list[TrackRun], make_room: Callable[[], None]) -> None:
        """Two adapters per track, by one recipe."""
        configs = [
            icl_training(config, run) if run.prepared.folder.name.endswith(ICL) else config
            for run, config in ((run, training_config(self.config, run, prove_on=self.prove_on)) for run in runs)
        ]
        usd = self.config.comparison.cost.hourly_usd
        manifests = train_many(configs, hourly_usd=usd, make_room=make_room)
        for run, manifest in zip(runs, manifests, strict=True):
            run.adapter = manifest
            self.log.outcome(f"adapter {manifest.id}")

    def arms(self, one: TrackArms) -> list[ArmResult]:
        """The track's arms, once both adapters are trained."""
        assert one.plain.adapter is not None and one.icl.adapter is not None
        return arms_of(self.base, one.few_shot, plain=one.plain.adapter, icl=one.icl.adapter, llm=self.asked_llm)

    def comparison(self) -> Comparison:
        """Every arm but the LLM is a candidate to take its place, and they share the error."""
        comparison = self.config.comparison
        return comparison if comparison.candidates else comparison.model_copy(update={"candidates": SLM_ARMS})

    def evaluate(self, one: TrackArms) -> None:
        """Every arm is asked the test rows; ModelError when one was out of reach for many of them."""
        found, comparison = self.arms(one), self.comparison()
        declare = Declaration(**{name: getattr(comparison, name) for name in Declaration.model_fields})
        settings = {**dict(self.config.evaluation), "retriever": one.plain.config.retriever}
        config = EvaluateConfig(
            track=one.plain.name, examples=one.plain.prepared.path("test"), models=tuple(arm.spec for arm in found),
            run_dir=str(one.plain.folder / "test"), endpoint=self.endpoint.url, train=one.plain.prepared.path("train"),
            # The same questions and answers as the plain rows, and their vectors are there already.
            demonstrations=one.icl.prepared.path("train"), adapters_dir=self.config.serving.adapters_dir,
            declare=declare if self.asked_llm else None, prices=self.config.prices, **settings,
        )  # fmt: skip
        trained = {
            arm.spec: adapters.train_prompts(self.config.serving.adapters_dir, manifest.id)
            for arm in found
            for manifest in (one.plain.adapter, one.icl.adapter)
            if manifest is not None and manifest.id in arm.spec
        }
        report = evaluate(config, environment=self.environment, train_prompts=trained)
        if failed := outages(report):
            raise ModelError(f"{one.plain.name}: {'; '.join(failed)}")

    def compare(self, one: TrackArms) -> None:
        """The verdict on every arm against the LLM, each kept as a comparison of its own."""
        if self.asked_llm is None:
            return
        folder = one.plain.folder
        for arm in self.arms(one):
            if arm.name == LLM:
                continue
            config = CompareConfig(
                report=str(folder / "test"), llm=self.asked_llm, slm=arm.spec, train=one.plain.prepared.path("train"),
                out=str(folder / "comparisons" / arm.name / COMPARISON), prices=self.config.prices, **dict(self.comparison()),
            )  # fmt: skip
            found = compare_reports(config, chosen=False)
            write_comparison(found, config)
            Tracer(folder / "test", self.environment).comparison(found.comparison, found.decision)
            self.log.say(comparison_text(found))
            one.verdicts[arm.spec] = found.decision

    def result(self, one: TrackArms) -> ArmsTrack:
        """The track's table, from what its evaluation left on disk."""
        report, rows = load_report(one.plain.folder / "test")
        found = [
            ArmResult(
                name=arm.name, spec=arm.spec, trained_on=arm.trained_on, demonstrations=arm.demonstrations,
                decision=one.verdicts.get(arm.spec),
            )
            for arm in self.arms(one)
        ]  # fmt: skip
        level, pairs = pairwise(
            report, rows, [arm.spec for arm in found], min_paired=self.config.comparison.min_paired_share
        )
        return ArmsTrack(
            track=one.plain.name, arms=tuple(found), report=report, pairs=pairs, level=level,
            delta=self.config.comparison.delta, retriever=one.plain.config.retriever,
            train_rows=one.plain.prepared.rows["train"], left_out=self.left_out,
            adapters=tuple(encode(run.adapter) for run in (one.plain, one.icl)),
        )  # fmt: skip

    def _written(self, tracks: list[TrackArms]) -> ArmsReport:
        report = ArmsReport(
            title="Six arms: demonstrations, fine-tuning, both", run_dir=shown_address(self.folder).rpartition("/")[2],
            tracks=tuple(map(self.result, tracks)),
            stand_in_note=stand_in_note(self.config) if self.uses_stand_in else None, timings_s=dict(self.log.timings_s),
            environment=machine_facts(),
            reproduce=(again_elsewhere("arms", addressed(self.config)),),
        )  # fmt: skip
        storage.write_json(self.folder / "report.json", encode(report))
        storage.write_text(self.folder / "report.html", arms_page(report))
        self.log.say(arms_text(report))
        return report


def arms(config: ArmsConfig, environment: Mapping[str, str] | None = None) -> ArmsReport:
    """Run the six arms; the report. Raises before anything starts when a key, an encoder or a resource is missing."""
    this = Arms(config, os.environ if environment is None else environment)
    _check(this)
    return this.execute(this.run)


def _check(this: Arms) -> None:
    """What can be known before the first row is read."""
    if this.asked_llm is not None:
        parse(this.asked_llm).provider.check(this.environment)
    for track in this.config.tracks:
        check_retriever(track.retriever)
    names = [open_track(track.track).name for track in this.config.tracks]
    if len(set(names)) < len(names):
        raise ConfigError(f"tracks: {', '.join(names)}: two of one name would share a folder; name one otherwise")
