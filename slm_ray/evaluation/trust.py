"""What a reader needs to believe a report: rows in and out, calls that went wrong, digests, versions, commands.

All of it comes from the plan, the ledger and the config; the clock and the machine stay out, except for the folder names
that the config itself holds.
"""

from __future__ import annotations

import hashlib
import itertools
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
    attempts = unheard = refused = 0
    answered: set[str] = set()
    said: list[str] = []
    for key, history in itertools.groupby(ledger.history(plan.id), key=lambda entry: entry.key):
        for last in history:
            attempts += last.completion.attempts
            unheard += last.completion.unheard
        answered.add(key)
        refused += outcome(last.completion) == "refused"
        said.append(_said(last))
    return {
        "rows_in": len(plan.examples),
        "rows_scored": sum(all(arm.keys[row.id] in answered for arm in plan.arms) for row in plan.examples),
        "questions": sum(len(keys) for arm in plan.arms for keys in arm.repeats),
        "retries": attempts - len(answered),
        "unheard": unheard,
        "ambiguous": sum(ledger.unanswered(plan.id).values()),
        "refused": refused,
        "training_rows": {
            "checked": [path for path in (config.train, config.adapters_dir) if path],
            "left_out_of_demonstrations": plan.left_out,
        },
        "digests": {
            "data": plan.digest,
            "prompts": plan.prompts_digest,
            "config": _sha256(dump(config.model_copy(update=_defaults()))),
            "answers": _digest(sorted(said)),
        },
        "versions": versions(),
        "commands": commands(config.run_dir),
    }


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


def _said(entry: Entry) -> str:
    """What a model said to a row; the digest of all of it, in any order, is the result, whatever it took to get it."""
    return repr((entry.spec, entry.example_id, entry.repeat, outcome(entry.completion), entry.completion.text))


def _digest(lines: Iterable[str]) -> str:
    """64 hex digits over the lines, without joining them."""
    found = hashlib.sha256()
    for at, line in enumerate(lines):
        found.update(("\n" * (at > 0) + line).encode("utf-8", "replace"))
    return found.hexdigest()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
