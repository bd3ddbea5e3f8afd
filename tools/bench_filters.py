"""What each filter of live rows is worth: adapters trained on what it leaves against one trained on raw rows, in pairs.

A traffic log as live traffic has it, with injected faults, of which nobody is told: the LLM answers some requests wrongly
in the right form and some in no form, people ask some questions again and again, and the SLM of that day agrees or not. The
log goes through `slm-ray prepare`'s own filters. Each set of rows trains the tiny base by the same number of steps, all
answer the same test rows, whose answers are true, and every filter is compared with the raw rows in pairs, at its share of
one error. The faults are ours and the base is tiny: the table says what these filters do to these faults.
"""

from __future__ import annotations

import dataclasses
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from slm_ray.command import run
from slm_ray.config import Live
from slm_ray.corpus import duplicates
from slm_ray.corpus.parsed_row import ParsedRow
from slm_ray.corpus.tracks import TRACKS
from slm_ray.prepare.live import live_rows, without_held_back
from slm_ray.scoring import score
from slm_ray.traffic import Arm, ArmAnswer, TrafficRow
from slm_ray.traffic.snapshot import write_snapshot
from slm_ray.types import Example, Interval
from slm_ray.verdict.stats import RESAMPLES, SEED, paired_interval
from slm_ray.yaml_file import read_yaml
from tools.config import FilterBenchConfig
from tools.synthesize import domain_of, examples_of
from tools.tiny_adapter import Recipe, adapter_answers

TRACK = TRACKS["structured"]
RAW, FORM = "raw rows", "form alone"
PROSE = "Sure! Here is what you asked for."
BEGAN = 1_760_000_000.0
ERROR = 0.05  # that any of the intervals is wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """Rows to train on, and how many of them have a wrong answer."""

    name: str
    rows: Sequence[Example]
    wrong: int


def questions(config: FilterBenchConfig) -> tuple[list[Example], list[Example]]:
    """What live traffic asks, and what the test asks, with the true answers: no question is in both."""
    catalogue = read_yaml(config.catalogue, what="catalogue")
    domains = domain_of(catalogue, config.domains, setting="domains")
    chosen = {**catalogue, "tools": [tool for tool in catalogue["tools"] if domains[tool["name"]] in config.domains]}
    every = examples_of(chosen, TRACK, config.questions + config.test_rows, config.seed)
    random.Random(config.seed).shuffle(every)
    return every[config.test_rows :], every[: config.test_rows]


def traffic(config: FilterBenchConfig, asked: Sequence[Example]) -> list[TrafficRow]:
    """The requests of the log: of the `questions` a share is asked `repeats` times, each time answered anew."""
    chance = random.Random(config.seed)
    again = [one for one in asked if chance.random() < config.repeated]
    order = [*asked, *(one for one in again for _ in range(config.repeats - 1))]
    chance.shuffle(order)
    return [_request(number, one, asked, chance, config) for number, one in enumerate(order)]


def _request(
    number: int, question: Example, others: Sequence[Example], chance: random.Random, config: FilterBenchConfig
) -> TrafficRow:
    llm = question.target
    if (drawn := chance.random()) < config.wrong:
        llm = _wrong(question, others, chance)
    elif drawn < config.wrong + config.formless:
        llm = PROSE
    slm = question.target if chance.random() < config.slm_right else _wrong(question, others, chance)
    return TrafficRow(
        id=f"r{number}", at=BEGAN + number, route="r", serial=1, state="shadow", arm="llm", served="llm", audited=True,
        request={"messages": question.prompt.as_dicts()},
        answers=(_answer("llm", llm), _answer("slm", slm)),
    )  # fmt: skip


def _wrong(question: Example, others: Sequence[Example], chance: random.Random) -> str:
    """An answer in the right form that is not true: an argument less, another's value, or the answer to something else."""
    truth, other = json.loads(question.target), json.loads(chance.choice(others).target)
    fault = chance.choice(("drop", "swap", "other"))
    names = list(truth["arguments"])
    if fault == "drop" and len(names) > 1:
        truth["arguments"].pop(chance.choice(names))
    elif fault == "swap" and other["arguments"]:
        truth["arguments"][chance.choice(names)] = chance.choice(list(other["arguments"].values()))
    else:
        truth |= {name: value for name, value in other.items() if name != "query"}
    text = json.dumps(truth, ensure_ascii=False)
    return text if text != question.target else _wrong(question, others, chance)


def _answer(arm: Arm, text: str) -> ArmAnswer:
    return ArmAnswer(arm=arm, model=f"{arm}@1", text=text, status=200, latency_s=0.1)


def arrangements(log: str, truth: Mapping[str, str]) -> list[Arrangement]:
    """The raw rows, then those that each filter leaves: `prepare`'s own filters on the log in the folder `log`."""
    found = live_rows(log, TRACK, Live())
    every: list[ParsedRow] = list(found.rows)
    filters: dict[str, Live] = {
        "disagreement: drop": Live(disagreement="drop"), "self_agreement: 0.6": Live(self_agreement=0.6),
        "both": Live(self_agreement=0.6, disagreement="drop"),
    }  # fmt: skip
    chosen: dict[str, Sequence[Example]] = {FORM: every}
    for name, settings in filters.items():
        held_back = live_rows(log, TRACK, settings).held_back
        chosen[name] = without_held_back(every, held_back)[0]
    chosen["duplicates: exact"] = duplicates.exact(every)[0]
    return [_arrangement(name, rows, truth) for name, rows in chosen.items()]


def raw_rows(requests: Sequence[TrafficRow], asked: Sequence[Example], truth: Mapping[str, str]) -> Arrangement:
    """Every request with what the LLM said, formless or not: what a log is before anything looks at it."""
    by_question = {question_of(row): row for row in asked}
    rows = [
        dataclasses.replace(
            by_question[str(request.request["messages"][-1]["content"])],
            id=request.id,
            target=request.answers[0].text or "",
        )
        for request in requests
    ]
    return _arrangement(RAW, rows, truth)


def question_of(row: Example) -> str:
    return row.prompt.messages[-1].content


def _arrangement(name: str, rows: Sequence[Example], truth: Mapping[str, str]) -> Arrangement:
    wrong = sum(not right(row.target, truth[question_of(row)]) for row in rows)
    return Arrangement(name=name, rows=rows, wrong=wrong)


def right(said: str, truth: str) -> bool:
    """Whether it is the true answer, by the track's primary metric."""
    return any(one.name == TRACK.primary and one.value == 1.0 for one in score(TRACK, "", said, truth).scores)


def difference(raw: Sequence[bool], filtered: Sequence[bool], comparisons: int) -> Interval:
    """Filtered minus raw on the same rows; both bounds of all `comparisons` hold together but for one error of 5 %."""
    pairs = [float(after) - float(before) for before, after in zip(raw, filtered, strict=True)]
    return paired_interval(pairs, resamples=RESAMPLES, seed=SEED, one_sided=ERROR / 2 / comparisons)


def compared(found: Interval) -> tuple[str, str, str]:
    """The difference, its interval and the verdict."""
    return f"{found.estimate:+.3f}", f"[{found.lower:+.3f}, {found.upper:+.3f}]", in_words(found)


def in_words(found: Interval) -> str:
    if found.lower > 0:
        return "better"
    return "worse" if found.upper < 0 else "no difference shown"


def main(config: FilterBenchConfig) -> None:
    started, folder = time.perf_counter(), Path(config.out_dir)
    asked, test = questions(config)
    requests = traffic(config, asked)
    write_snapshot(folder / "log", requests)
    truth = {question_of(row): row.target for row in asked}
    recipe = Recipe(base=config.base, steps=config.steps, batch=config.batch, seed=config.seed)
    trained = [raw_rows(requests, asked, truth), *arrangements(str(folder / "log"), truth)]
    table = Table(
        "trained on", "rows", "of them wrong", "right on test rows", "minus raw", "interval", "verdict",
        title=f"{len(requests):,} requests, {len(test)} test rows, {config.steps:,} steps each",
    )  # fmt: skip
    raw: list[bool] | None = None
    for one in trained:
        answers = adapter_answers(recipe, one.rows, test, folder)
        scores = [right(text, row.target) for text, row in zip(answers, test, strict=True)]
        said = ("", "", "") if raw is None else compared(difference(raw, scores, len(trained) - 1))
        raw = raw or scores
        shares = (one.wrong / len(one.rows), sum(scores) / len(test))
        table.add_row(one.name, f"{len(one.rows):,}", *(f"{share:.1%}" for share in shares), *said)
        print(f"{one.name}: {sum(scores)} of {len(test)} test rows {' '.join(said)}", flush=True)
    Console(width=130).print(table)
    print(f"the intervals hold together but for one error of {ERROR:.0%}; {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    run(main, FilterBenchConfig, __doc__)
