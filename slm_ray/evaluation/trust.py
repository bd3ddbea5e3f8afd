"""What a reader needs to believe a report: rows in and out, calls that went wrong, digests, versions, commands.

All of it comes from the plan, the ledger and the config; the clock and the machine stay out, except for the folder names
that the config itself holds.
"""

from __future__ import annotations

import hashlib
import platform
import shlex
from collections.abc import Iterable
from importlib import metadata
from typing import Any

from slm_ray.config import EvaluateConfig, dump
from slm_ray.evaluation.plan import Plan
from slm_ray.ledger import Entry, Ledger, outcome

PACKAGES = ("slm-ray", "ray", "openai", "numpy", "scipy")
_WHERE_AND_HOW_FAST = ("run_dir", "actors", "actor_resources", "plain")  # they change no answer


def trust(plan: Plan, ledger: Ledger, config: EvaluateConfig) -> dict[str, Any]:
    """The `trust` part of a report.

    `retries` and `refused` count over all repeats and all attempts at a row; `ambiguous` counts calls that were started
    and never answered, by a crash or a lost actor: they may have been billed. `rows_scored` counts rows with a score for
    every model, which is every row, or there is no report.
    """
    history = sorted(ledger.history(plan.id), key=lambda entry: (entry.key, entry.answered_ns))
    last = {entry.key: entry for entry in history}
    return {
        "rows_in": len(plan.examples),
        "rows_scored": sum(all(arm.keys[row.id] in last for arm in plan.arms) for row in plan.examples),
        "questions": sum(len(keys) for arm in plan.arms for keys in arm.repeats),
        "retries": sum(entry.completion.attempts - 1 for entry in history) + len(history) - len(last),
        "unheard": sum(entry.completion.unheard for entry in history),
        "ambiguous": sum(ledger.unanswered(plan.id).values()),
        "refused": sum(outcome(entry.completion) == "refused" for entry in last.values()),
        "training_rows": {
            "checked": [path for path in (config.train, config.adapters_dir) if path],
            "left_out_of_demonstrations": plan.left_out,
        },
        "digests": {
            "data": plan.digest,
            "prompts": plan.prompts_digest,
            "config": _sha256(dump(config.model_copy(update=_defaults()))),
            "answers": answers_digest(last.values()),
        },
        "versions": versions(),
        "commands": commands(config.run_dir),
    }


def answers_digest(entries: Iterable[Entry]) -> str:
    """64 hex digits over what every model said to every row, in any order: the result, whatever it took to get it."""
    said = (
        repr((entry.spec, entry.example_id, entry.repeat, outcome(entry.completion), entry.completion.text))
        for entry in entries
    )
    return _sha256("\n".join(sorted(said)))


def versions() -> dict[str, str]:
    """Python and the packages that have a part in the figures."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commands(run_dir: str) -> dict[str, str]:
    """How to make the same run again elsewhere, and how to go on with this one."""
    config = shlex.quote(f"{run_dir}/config.yaml")
    return {
        "reproduce": f"python jobs/evaluate.py {config} --set run_dir={shlex.quote(run_dir + '-again')}",
        "resume": f"python jobs/evaluate.py {config}",
    }


def _defaults() -> dict[str, Any]:
    return {
        name: None if (field := EvaluateConfig.model_fields[name]).is_required() else field.default
        for name in _WHERE_AND_HOW_FAST
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
