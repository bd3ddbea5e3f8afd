"""How long the watch takes when traffic turns to what the adapter never saw: two tool domains are left out of its training.

One process, neither Ray nor vLLM: the tiny base is trained on the other domains (LoRA by PEFT, a plain loop) and answers by
greedy decoding. The LLM is a stand-in that always gives the expected answer, so that agreement is being right. Half of the
test rows of the known domains are the verdict's rows, whose lower bound is the watch's reference; live traffic is drawn
from the other half, and from some point on from the domains that were left out. With `run` nothing is trained: the scores are
those of a finished evaluation, and traffic turns from the arm `slm` to the arm `becomes` (an adapter lost, a wrong one served).
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from slm_ray.command import run
from slm_ray.corpus.read import examples
from slm_ray.corpus.tracks import TRACKS
from slm_ray.errors import ConfigError, choices
from slm_ray.reports.files import load_report
from slm_ray.rollout.grants import AGREEMENT_LEVEL, agreement
from slm_ray.types import Example
from slm_ray.verdict.non_inferiority import ONE_SIDED
from slm_ray.verdict.operating_characteristics.watching import alarms
from slm_ray.verdict.stats import RESAMPLES, SEED, paired_interval
from slm_ray.yaml_file import read_yaml
from tools.config import DriftBenchConfig

TRACK = TRACKS["toolcall"]
Scores = NDArray[np.float64]


def rows_by_domain(config: DriftBenchConfig) -> dict[str, list[Example]]:
    """The examples of every domain of the catalogue, shuffled."""
    catalogue = read_yaml(config.catalogue, what="catalogue")
    domains = {tool["name"]: tool["domain"] for tool in catalogue["tools"]}
    raw = json.loads(Path(config.rows).read_text(encoding="utf-8"))
    found: dict[str, list[Example]] = {}
    for example in examples((json.dumps(row) for row in raw), name=config.rows, track=TRACK):
        found.setdefault(domains[example.tags["tool"]], []).append(example)
    for rows in found.values():
        random.Random(config.seed).shuffle(rows)
    return found


def trained(config: DriftBenchConfig, rows: Sequence[Example], tokenizer: Any) -> Any:
    """The base with an adapter trained on `rows`, their answers alone."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from slm_ray.training.rows import conversation, tokenised

    torch.manual_seed(config.seed)
    base = AutoModelForCausalLM.from_pretrained(config.base, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=32, lora_alpha=64, target_modules="all-linear", task_type="CAUSAL_LM"))
    parts = [tokenised(tokenizer, conversation(row)) for row in rows]
    steps = math.ceil(len(parts) / config.batch) * config.epochs
    optimizer = torch.optim.AdamW(
        [weight for weight in model.parameters() if weight.requires_grad], lr=3e-3, weight_decay=0.0
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps, pct_start=0.03)
    order = random.Random(config.seed)
    model.train()
    for _ in range(config.epochs):
        order.shuffle(parts)
        for start in range(0, len(parts), config.batch):
            ids, labels, mask = batch(parts[start : start + config.batch], tokenizer.pad_token_id)
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return model.eval()


def batch(parts: Sequence[dict[str, list[int]]], pad: int) -> tuple[Any, Any, Any]:
    """Token ids, labels and mask, filled up on the right."""
    import torch

    longest = max(len(part["input_ids"]) for part in parts)
    ids, labels, mask = [], [], []
    for part in parts:
        room = longest - len(part["input_ids"])
        ids.append(part["input_ids"] + [pad] * room)
        labels.append(part["labels"] + [-100] * room)
        mask.append([1] * len(part["input_ids"]) + [0] * room)
    return torch.tensor(ids), torch.tensor(labels), torch.tensor(mask)


def scored(model: Any, tokenizer: Any, rows: Sequence[Example], size: int = 64) -> Scores:
    """The agreement of greedy answers with the expected ones, row by row."""
    import torch

    tokenizer.padding_side = "left"
    found = []
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        texts = [
            tokenizer.apply_chat_template(row.prompt.as_dicts(), tokenize=False, add_generation_prompt=True)
            for row in some
        ]
        asked = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            made = model.generate(**asked, max_new_tokens=120, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        answers = tokenizer.batch_decode(made[:, asked["input_ids"].shape[1] :], skip_special_tokens=True)
        found += [agreement(TRACK, answer, row.target) or 0.0 for answer, row in zip(answers, some, strict=True)]
    return np.array(found)


def traffic(
    chance: np.random.Generator, known: Scores, new: Scores, runs: int, after: int, most: int
) -> Iterator[Scores]:
    """Differences of all runs, observation by observation: drawn from the known domains, then from the new ones."""
    for at in range(after + most):
        yield chance.choice(known if at < after else new, runs) - 1.0


def measured(config: DriftBenchConfig) -> tuple[Scores, Scores, Scores, str]:
    """Train and ask: agreement on the verdict's rows, on live rows, on those of the domains left out; and what was done."""
    from transformers import AutoTokenizer

    started = time.perf_counter()
    domains = rows_by_domain(config)
    left_out = {name: domains.pop(name) for name in config.held_out}
    known = [row for rows in domains.values() for row in rows]
    random.Random(config.seed).shuffle(known)
    new = [row for rows in left_out.values() for row in rows][: config.test_rows]
    test, train = known[: 2 * config.test_rows], known[2 * config.test_rows :][: config.train_rows]
    tokenizer = AutoTokenizer.from_pretrained(config.base)
    model = trained(config, train, tokenizer)
    print(
        f"trained on {len(train)} rows of {', '.join(sorted(domains))} in {time.perf_counter() - started:.0f} s",
        flush=True,
    )
    verdict, live, after = (
        scored(model, tokenizer, rows) for rows in (test[: config.test_rows], test[config.test_rows :], new)
    )
    return verdict, live, after, f"rows of {', '.join(left_out)}"


def recorded(config: DriftBenchConfig, run_dir: str) -> tuple[Scores, Scores, Scores, str]:
    """The same of a finished evaluation: traffic turns to what `becomes` answered to the same rows."""
    report, rows = load_report(run_dir)
    for spec in (config.slm, config.becomes):
        if spec not in report.models:
            raise ConfigError(f"{spec!r} is not in {run_dir}: {choices(str(spec), report.models)}")
    primary = str(report.track_definition["primary"])
    random.Random(config.seed).shuffle(rows)
    slm, becomes = (
        np.array([row.models[spec].scores[primary] or 0.0 for row in rows])
        for spec in (str(config.slm), str(config.becomes))
    )
    half = len(rows) // 2
    return slm[:half], slm[half:], becomes, f"rows of {config.becomes}"


def main(config: DriftBenchConfig) -> None:
    console, started = Console(), time.perf_counter()
    verdict, live, after_it, turned_to = recorded(config, config.run) if config.run else measured(config)
    bound = paired_interval((verdict - 1).tolist(), resamples=RESAMPLES, seed=SEED, one_sided=AGREEMENT_LEVEL)
    reference, level = 1 + bound.lower, ONE_SIDED - AGREEMENT_LEVEL
    print(
        f"agreement on {len(verdict)} verdict rows {verdict.mean():.3f} (at least {reference:.3f}), on {len(live)} further rows"
        f" {live.mean():.3f}, on {len(after_it)} {turned_to} {after_it.mean():.3f}; delta {config.delta:g}",
        flush=True,
    )
    table = Table(
        "traffic turns after", "rang before", "median", "90 %", title="audited requests from the change to the alarm"
    )
    for after in config.after:
        drawn = traffic(np.random.default_rng((config.seed, after)), live, after_it, config.runs, after, config.most)
        rang = alarms(drawn, config.runs, delta=config.delta, reference=reference, level=level)
        early = (rang > 0) & (rang <= after)
        waited = np.where(rang == 0, config.most + 1, rang - after)[~early]
        median, ninety = (int(np.quantile(waited, part, method="higher")) for part in (0.5, 0.9))
        table.add_row(
            f"{after:,}",
            f"{early.mean():.1%}",
            *(f"{n:,}" if n <= config.most else f"> {config.most:,}" for n in (median, ninety)),
        )
    console.print(table)
    drawn = traffic(np.random.default_rng(config.seed), live, after_it, config.runs, config.well, 0)
    false = (alarms(drawn, config.runs, delta=config.delta, reference=reference, level=level) > 0).mean()
    print(f"without a change: {false:.1%} of {config.runs:,} runs rang in {config.well:,} audited requests")
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    run(main, DriftBenchConfig, __doc__)
