"""The steps as commands: one table of name, config and function, for `slm-ray NAME` and for the scripts under `jobs/`.

A function takes its config and returns an exit status (None: 0); its docstring is what `--help` says. What is heavy (Ray,
torch, client libraries) is imported when a function runs, so that `--help` and a wrong setting answer at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn, TypeVar

from slm_ray import config as configs
from slm_ray.adapters import check_base, newest
from slm_ray.api_key import api_key
from slm_ray.cli import machines
from slm_ray.cli.step import Command
from slm_ray.command import Usage, output_folder, run
from slm_ray.errors import ConfigError
from slm_ray.parity import in_words
from slm_ray.remote import is_remote, shown, shown_address
from slm_ray.signals import wait_for_signal
from slm_ray.types import Prompt

Loop = TypeVar("Loop", bound=configs.LoopConfig)
NOT_MEASURED = 3
TOKENIZER = "data/tiny_base"


def run_job(script: str) -> NoReturn:
    """Run the command that a script of `jobs/` is named after, with the YAML file beside it where none is named."""
    path = Path(script)
    command = COMMANDS[path.stem.replace("_", "-")]
    run(
        command.run, command.config, command.doc,
        usage=Usage(settings=path.with_suffix(".yaml"), folder=command.folder),
    )  # fmt: skip


def prepare(config: configs.PrepareConfig) -> None:
    """Task rows in; train.jsonl, validation.jsonl and test.jsonl out, in one form and with no question in two of them.

    A row is a question with its expected answer, in any format that the documents name. Reads `source`, refuses or leaves
    out bad rows and says why for each, curates, splits by a hash (the same rows and seed give the same files), and writes
    to out_dir:
        slm-ray prepare --track classify --source tickets.csv --stratify label --out_dir runs/prepared/tickets
    """
    from slm_ray.executor import RayExecutor
    from slm_ray.prepare import prepare as prepare_rows

    count = None
    if config.curation.max_tokens is not None and config.base:
        from slm_ray.training.base_model import token_counter

        count = token_counter(config.base)
    out_dir = str(output_folder(config.out_dir, setting="out_dir"))
    done = prepare_rows(
        config.model_copy(update={"out_dir": out_dir}),
        token_counter=count,
        log=print,
        executor=RayExecutor(),
    )
    print(done.summary())


def evaluate(config: configs.EvaluateConfig) -> int:
    """The same rows to every model at once, scored by the same code; writes RUN_DIR/report.json and scores.jsonl.

    Exit 3: the report is written, but a model's calls failed on more than 2 % of its rows, so that it was not
    measured; the same command asks the failed rows again.
    """
    from slm_ray.evaluation import evaluate as evaluate_models
    from slm_ray.evaluation.outage import outages
    from slm_ray.evaluation.table import summary

    run_dir = output_folder(config.run_dir)
    report = evaluate_models(config.model_copy(update={"run_dir": str(run_dir)}))
    print(summary(report))
    print(f"report: {shown_address(run_dir / 'report.json')}", flush=True)
    failed = outages(report)
    for line in failed:
        print(f"outage: {line}", file=sys.stderr, flush=True)
    return NOT_MEASURED if failed else 0


def compare(config: configs.CompareConfig) -> int:
    """Two models on the same rows: swap (exit 0), fine_tune (exit 10) or inconclusive (exit 20), what both cost, and why."""
    from slm_ray.reports.compare import compare_reports, comparison_text, write_comparison
    from slm_ray.tracing import Tracer
    from slm_ray.verdict.decide import EXIT

    found = compare_reports(config)
    write_comparison(found, config)
    print(comparison_text(found))
    Tracer(config.report, os.environ).comparison(found.comparison, found.decision)
    return EXIT[found.decision.action]


def distil(config: configs.DistilConfig) -> None:
    """Training rows from a teacher: its answers to them in a finished evaluation, where they can be read and score enough.

    First let the teacher answer the training rows, within a budget and resumable as any evaluation, then take its answers:
        slm-ray evaluate --examples runs/prepared/structured/train.jsonl --run_dir runs/teacher --set models='["azure:gpt-4o"]'
        slm-ray distil --report runs/teacher --teacher azure:gpt-4o --examples runs/prepared/structured/train.jsonl --out runs/prepared/structured/distilled.jsonl
    """
    from slm_ray.reports.distil import distil as take

    print(take(config).summary())


def train(config: configs.TrainConfig) -> None:
    """One QLoRA adapter: Ray Train over the worker group, then published under an immutable, content-addressed id."""
    check_base(config.base, setting="base")
    folders = {name: str(output_folder(getattr(config, name), setting=name)) for name in ("run_dir", "adapters_dir")}
    from slm_ray.training import train as train_adapter

    manifest = train_adapter(config.model_copy(update=folders))
    print(f"adapter {manifest.id}\n  folder {shown_address(Path(folders['adapters_dir']) / manifest.id)}")
    for name, value in sorted(manifest.metrics.items()):
        print(f"  {name} {value}")
    print(f"  {in_words(manifest.proof)}")


def parity(config: configs.ParityConfig) -> None:
    """Whether a published adapter is served as it was trained: tokens, answers, base, mixed batches, version.

    Asks the endpoint at `prove_on`, or an engine that is started for it, and compares with PEFT over the same files and with
    what the trainer noted. Exit 2 with every fault and what to do; else one line with the figures:
        slm-ray parity --adapter structured-0123456789ab --prove_on http://127.0.0.1:8000
    """
    check_base(config.base, setting="base")
    folder = str(output_folder(config.adapters_dir, setting="adapters_dir", is_written=False))
    from slm_ray.training.proof import prove_again

    proof = prove_again(config.model_copy(update={"adapters_dir": folder}), key=api_key(os.environ))
    print(f"adapter {config.adapter}\n  {in_words(proof.summary)}")


def _placed(training: configs.TrainConfig, *folders: str) -> configs.TrainConfig:
    """The training of a job that trains several times: its base is one, and its output folders are absolute."""
    check_base(training.base, setting="training.base")
    paths = {name: str(output_folder(getattr(training, name), setting=f"training.{name}")) for name in folders}
    return training.model_copy(update=paths)


def sweep(config: configs.SweepConfig) -> None:
    """Ray Tune over learning rate and LoRA rank; each trial is a Ray Train run, scored on validation rows."""
    training = _placed(config.training, "run_dir", "adapters_dir")
    from slm_ray.sweep import summary
    from slm_ray.sweep import sweep as search

    result = search(training, config.search, validation=config.validation)
    print("\n".join(summary(result)))


def learning_curve(config: configs.LearningCurveConfig) -> None:
    """How many training rows until the metric reaches the target: nested sizes trained side by side, and an interval of rows.

    Each size is trained once and scored on the validation rows; a curve through them says at how many rows `target` (or
    the LLM's metric of `report` less delta) is reached, as far as that can be promised: up to four times the largest
    size. Writes RUN_DIR/learning_curve.json. More sizes later train only what is new.
    """
    training = _placed(config.training, "run_dir")
    from slm_ray.learning_curve import RESULT, summary
    from slm_ray.learning_curve import learning_curve as measure

    result = measure(config.model_copy(update={"training": training}))
    print("\n".join(summary(result)))
    print(f"curve: {shown_address(training.run_dir)}/{RESULT}")


def precisions(config: configs.PrecisionsConfig) -> None:
    """One recipe trained on its base in 4, 8 and 16 bits: quality in pairs on validation rows, memory and speed in one table.

    Each precision is trained once and scored on the validation rows. Publishes no adapter. Writes RUN_DIR/precisions.json.
    """
    training = _placed(config.training, "run_dir")
    from slm_ray.precisions import RESULT, summary
    from slm_ray.precisions import precisions as measure

    result = measure(config.model_copy(update={"training": training}))
    print("\n".join(summary(result)))
    print(f"table: {shown_address(training.run_dir)}/{RESULT}")


def loop(config: configs.LoopConfig) -> int:
    """The whole question: prepare, deploy, evaluate, compare, train, publish, evaluate again, compare, one page."""
    checked = _checked(config)
    from slm_ray.loop import loop as run_loop

    return _ended(checked, run_loop(checked))


def flywheel(config: configs.FlywheelConfig) -> int:
    """The loop on live traffic: log to rows, train, verdict, and the new adapter at shadow; ends as the loop does.

    A run takes the log as it is when it begins; the same command continues it with the same rows. Give every further run a
    run_dir of its own.
    """
    routes_dir = str(output_folder(config.routes_dir, setting="routes_dir"))
    checked = _checked(config.model_copy(update={"routes_dir": routes_dir}))
    from slm_ray.loop.flywheel import flywheel as run_flywheel

    return _ended(checked, run_flywheel(checked))


def _checked(config: Loop) -> Loop:
    """What every loop checks before Ray is brought in: its base, and its folders by absolute path."""
    check_base(config.serving.base, setting="serving.base")
    folder = str(output_folder(config.run_dir))
    adapters = str(output_folder(config.serving.adapters_dir, setting="serving.adapters_dir"))
    serving = config.serving.model_copy(update={"adapters_dir": adapters})
    return config.model_copy(update={"run_dir": folder, "serving": serving})


def _ended(config: configs.LoopConfig, result: Mapping[str, str]) -> int:
    """The exit status of a loop's decisions."""
    from slm_ray.verdict.decide import EXIT

    print(f"page: {shown_address(config.run_dir)}/report.html")
    decided = set(result.values())
    return max(status for action, status in EXIT.items() if action in decided) if config.exit_with_decision else 0


def arms(config: configs.ArmsConfig) -> None:
    """Six arms on the same test rows: base, demonstrations, QLoRA, both in two ways, and the LLM; one table, every pair.

    Demonstrations are similar training rows in front of the question (tracks.0.few_shot, tracks.0.retriever). Trains two
    adapters, one of them on rows with demonstrations, asks every arm and writes RUN_DIR/report.html and report.json. The
    same command goes on where it was.
    """
    check_base(config.serving.base, setting="serving.base")
    folder = str(output_folder(config.run_dir))
    adapters = str(output_folder(config.serving.adapters_dir, setting="serving.adapters_dir"))
    from slm_ray.loop.arms import arms as run_arms
    from slm_ray.page.arms import arms_text

    serving = config.serving.model_copy(update={"adapters_dir": adapters})
    print(arms_text(run_arms(config.model_copy(update={"run_dir": folder, "serving": serving}))))
    print(f"page: {shown_address(folder)}/report.html")


def infer(config: configs.InferConfig) -> int:
    """One request to one model, shown as the model sees it: prompt, tokens if asked, answer, and the score against a target."""
    from slm_ray.evaluation.infer import prepare as prepare_request
    from slm_ray.scoring.parsed import parsed

    inference = prepare_request(config, os.environ)
    for message in inference.prompt.messages:
        print(f"[{message.role}] {message.content}")
    if config.show_tokens:
        ids = _token_ids(TOKENIZER, inference.prompt)
        print(f"tokens  {len(ids)} by {Path(TOKENIZER).name}: {' '.join(map(str, ids))}")
    answer = inference.ask(config, os.environ)
    print(f"[{answer.served_by or config.model}] {answer.text if answer.text is not None else answer.failure}")
    print(f"parsed  {parsed(inference.track, answer.text)}")
    if (scored := inference.score(answer)) is not None:
        print("score   " + ", ".join(f"{score.name} {score.value}" for score in scored.scores))
        print("issues  " + (", ".join(scored.issues) or "none"))
    return 1 if answer.failure else 0


def _token_ids(folder: str, prompt: Prompt) -> list[int]:
    from slm_ray.training.base_model import base_folder, open_tokenizer
    from slm_ray.training.rows import token_ids

    return token_ids(open_tokenizer(base_folder(folder)), prompt.as_dicts(), answer_next=True)


def judge(config: configs.JudgeConfig) -> int:
    """A model as judge of a finished evaluation, or (calibrate) of answers that people have graded; writes RUN_DIR/judge.json.

    With a pair it writes RUN_DIR/label.html, on which people label some of the answers; with their labels: swap (exit 0),
    fine_tune (exit 10) or inconclusive (exit 20).
    """
    from slm_ray.judging import judge as judge_run
    from slm_ray.judging import lines
    from slm_ray.verdict.decide import EXIT

    folder = output_folder(config.run_dir)
    result = judge_run(config.model_copy(update={"run_dir": str(folder)}))
    for line in lines(result):
        print(line)
    return EXIT[result.verdict.decision.action] if result.verdict else 0


def live(config: configs.LiveConfig) -> int:
    """Watch an evaluation that runs in another shell: give its RUN_DIR, or a YAML file that names it."""
    from slm_ray.evaluation.progress import watch

    if is_remote(config.run_dir):
        raise ConfigError(
            f"run_dir {shown(config.run_dir)!r}: live reads a folder; give the working copy that the run names when it begins"
        )
    ended = watch(config.run_dir)
    if ended != "done":
        print(f"the run is not complete ({ended}); its own command continues it", file=sys.stderr)
    return 0 if ended == "done" else 1


def trace(config: configs.TraceConfig) -> None:
    """A finished run's traces to Langfuse, each row exactly once: give its RUN_DIR, or a YAML file; repeat at will."""
    from slm_ray.tracing import replay

    print(replay(config, os.environ))


def serve(config: configs.ServeConfig) -> None:
    """The base and all published adapters behind one OpenAI-compatible endpoint, until Ctrl-C."""
    check_base(config.base, setting="base")
    folder = config.adapters_dir
    if "://" not in folder:
        folder = str(output_folder(folder, setting="adapters_dir", is_written=False))
    from slm_ray.cluster import connect
    from slm_ray.serving import deploy, shutdown
    from slm_ray.serving.served_answers import check_deployed

    connect()
    endpoint = deploy(config.model_copy(update={"adapters_dir": folder}), progress=sys.stderr)
    print(f"{config.name} answers at {endpoint.url}/v1 (Ctrl-C ends it)", flush=True)
    try:
        for adapter, problem in check_deployed(endpoint.url, folder, newest(folder)).items():
            print(
                f"{adapter} answers as when it was proved" if not problem else f"warning: {adapter}: {problem}",
                flush=True,
            )
        wait_for_signal()
    finally:
        if not config.keep_alive:
            shutdown()


def rollout(config: configs.RolloutConfig) -> None:
    """Routes behind one OpenAI-compatible address: who answers (LLM, SLM, both) is each route's state; until Ctrl-C.

    Brings the endpoint up too where a route asks a served model. `slm-ray routes` changes states while this runs.
    """
    from slm_ray.rollout.deploy import rollout as serve_routes

    serve_routes(config)


def rows(config: configs.RowsConfig) -> None:
    """How many rows will it take: until a decision under both rules, for assumed true differences, before any call.

    One look (paired) needs its number of rows whatever they say; the sequential rule stops when it is clear. During a run,
    give the discordance and the difference seen so far:
        slm-ray rows --delta 0.02 --discordance 0.15 --differences "[0, 0.05, -0.05]"
    """
    from slm_ray.verdict.sample_size import plan, plan_text

    plans = plan(config.differences, config.discordance, config.delta)
    print(plan_text(plans, config.delta))


COMMANDS: Mapping[str, Command] = {
    "prepare": Command(config=configs.PrepareConfig, function=prepare, writes=("out_dir",)),
    "evaluate": Command(config=configs.EvaluateConfig, function=evaluate, writes=("run_dir",)),
    "load": Command(config=configs.LoadConfig, function=machines.load),
    "compare": Command(config=configs.CompareConfig, function=compare, writes=("report",)),
    "distil": Command(config=configs.DistilConfig, function=distil),
    "train": Command(config=configs.TrainConfig, function=train, writes=("run_dir",)),
    "parity": Command(config=configs.ParityConfig, function=parity, writes=()),
    "sweep": Command(config=configs.SweepConfig, function=sweep, writes=("training.run_dir",)),
    "learning-curve": Command(
        config=configs.LearningCurveConfig, function=learning_curve, writes=("training.run_dir",)
    ),
    "precisions": Command(config=configs.PrecisionsConfig, function=precisions, writes=("training.run_dir",)),
    "serve": Command(config=configs.ServeConfig, function=serve),
    "rollout": Command(config=configs.RolloutConfig, function=rollout),
    "loop": Command(config=configs.LoopConfig, function=loop, writes=("run_dir",)),
    "flywheel": Command(config=configs.FlywheelConfig, function=flywheel, writes=("run_dir",)),
    "arms": Command(config=configs.ArmsConfig, function=arms, writes=("run_dir",)),
    "infer": Command(config=configs.InferConfig, function=infer),
    "judge": Command(config=configs.JudgeConfig, function=judge, writes=("run_dir",)),
    "live": Command(config=configs.LiveConfig, function=live, folder="run_dir"),
    "trace": Command(config=configs.TraceConfig, function=trace, folder="run_dir"),
    "doctor": Command(config=configs.DoctorConfig, function=machines.doctor),
    "rows": Command(config=configs.RowsConfig, function=rows),
}
