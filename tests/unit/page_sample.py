"""A realistic loop result for the page: a stand-in LLM, an SLM that trails before training and leads after it."""

import copy
import json
from typing import Any

from plain_records import facts, plain, record

from slm_ray.corpus.tracks import TRACKS, definition
from slm_ray.cost_records import CostReport
from slm_ray.page.data import LoopReport
from slm_ray.page.page import page
from slm_ray.records import RowResult

LLM, BASE, ADAPTER = "served:stand-in", "served:tiny-base", "served:tiny-base:structured-0a1b2c3d4e5f"
HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)"> {{ 7*7 }}'


def model(
    spec: Any,
    n: Any,
    metrics: Any,
    *,
    stand_in: Any = False,
    failures: Any = None,
    issues: Any = None,
    latency: Any = (0.042, 0.097),
    used: Any = True,
) -> Any:
    return {
        "n": n,
        "metrics": metrics,
        "latency_s": {"p50": latency[0], "p95": latency[1]},
        "usage": {"prompt_tokens": 6213 if used else 0, "completion_tokens": 4127 if used else 0},
        "failures": failures or {},
        "issues": issues or {},
        "served_by": ["stand-in:tiny-base"] if stand_in else ["tiny-base@5d1f"],
        "facts": plain(facts(spec, stand_in=stand_in)),
        "trained_on": 0,
    }


def metrics(exact: Any, f1: Any, partial: Any) -> Any:
    return {
        "json_valid": 0.98, "exact_match": exact, "field_precision": f1 + 0.013, "field_recall": f1 - 0.012,
        "field_f1": f1, "tool_name_accuracy": 0.97, "query_preservation": 0.92, "args_keys_match": None,
        "args_partial_match": partial,
    }  # fmt: skip


def toolcall_metrics(exact: Any) -> Any:
    return {
        "valid_call": 0.97, "name_match": 0.96, "args_exact": exact, "args_precision": exact + 0.2041,
        "args_recall": exact + 0.1932, "args_f1": exact + 0.1985,
    }  # fmt: skip


def report(track: Any, n: Any, with_adapter: Any) -> Any:
    models = {
        LLM: model(LLM, n, metrics(0.52, 0.764, 0.71), stand_in=True, issues={"value_mismatch": 31, "extra_fields": 9}),
        BASE: model(
            BASE,
            n,
            metrics(0.18, 0.411, None),
            failures={"truncated": 2},
            issues={"prediction_not_valid_json": 7, "missing_fields": 58, "value_mismatch": 40},
            used=False,
        ),
    }
    if with_adapter:
        models[ADAPTER] = model(
            ADAPTER, n, metrics(0.63, 0.842, 0.803), issues={"value_mismatch": 24}, latency=(0.051, None)
        )
    return {
        "track": track, "track_definition": plain(definition(TRACKS[track])),
        "examples": {"n": n, "digest": "9f2c" * 16}, "models": models, "schema_version": 1,
    }  # fmt: skip


def decision(
    stage: Any, action: Any, estimate: Any, lower: Any, upper: Any, slm: Any, n: Any, primary: Any = "exact_match"
) -> Any:
    because = [
        f"{primary}: SLM minus LLM is {estimate:+.4f} over {n} paired rows, with one-sided 95 % bounds {lower:+.4f} and {upper:+.4f}.",
        f"the LLM here is a stand-in ({LLM}): this says nothing about the model it stands for.",
    ]
    return {
        "stage": stage,
        "decision": {"action": action, "rule": "paired", "delta": 0.02, "because": because},
        "comparison": {
            "track": "structured", "llm": LLM, "slm": slm, "n": n, "digest": "9f2c" * 16, "primary": primary,
            "llm_metrics": {}, "slm_metrics": {}, "gaps": {}, "slm_only_right": 0, "llm_only_right": 0, "level": 0.05,
            "interval": {"estimate": estimate, "lower": lower, "upper": upper},
        },
    }  # fmt: skip


def answer(text: Any, right: Any, valid: Any = 1.0, failure: Any = None, issues: Any = ()) -> Any:
    return {
        "text": text, "failure": failure, "scores": {"json_valid": valid, "exact_match": float(right)},
        "issues": list(issues), "latency_s": None if failure else 0.043,
    }  # fmt: skip


def call(query: Any, **arguments: Any) -> Any:
    return json.dumps({"arguments": arguments, "query": query, "tool_name": "get_forecast"}, sort_keys=True)


def rows() -> Any:
    found = []
    for number, city in enumerate(("Oslo", "Lima", "Kyoto", "Accra", "Turin", "Quito")):
        query = f"Will it rain in {city} over the next {number + 2} days, in metric units please?"
        good = call(query, city=city, days=number + 2, units="metric")
        models = {
            LLM: answer(good, True),
            BASE: answer(call(query, city=city, days=1), False, issues=["missing_fields"]),
            ADAPTER: answer(good, True),
        }
        if number == 1:
            models[LLM] = answer(call(query, city=city, days=number + 2), False, issues=["missing_fields"])
        if number == 2:
            models[ADAPTER] = answer(
                call(query, city="Tokyo", days=number + 2, units="metric"), False, issues=["value_mismatch"]
            )
        if number == 3:
            models[BASE] = answer(HOSTILE, False, valid=0.0, issues=["prediction_not_valid_json"])
        if number == 4:
            models[BASE] = answer(
                None, False, valid=0.0, failure={"kind": "truncated", "reason": "stopped at 256 tokens", "status": 200}
            )
        found.append({
            "id": f"row-{number:04d}", "prompt_hash": "0" * 16,
            "prompt": [
                {"role": "system", "content": "You return valid JSON objects only. Do not add prose or code fences."},
                {"role": "user", "content": f"Return a JSON object with keys query, tool_name, arguments describing the API call.\nQuery: {query}\nChosen tool: get_forecast\nArguments should mirror the assistant's recommendation."},
            ],
            "target": good, "tags": {"tool": "get_forecast", "domain": "weather"}, "models": models,
        })  # fmt: skip
    return found


def cost() -> Any:
    none = {
        "kind": "none", "basis": "", "reason": "a stand-in has no price", "hypothetical": False, "per_request_usd": None,
        "per_correct_usd": None, "requests": 100, "correct": 52, "scored": 100, "latency_s": {}, "goes_to": {"host": "127.0.0.1", "on_premise": True, "words": "127.0.0.1 (your own machine or network)"},
    }  # fmt: skip
    machine = none | {
        "kind": "machine", "basis": "0.02 s of the machine", "reason": None, "per_request_usd": 0.00000125,
        "per_correct_usd": 0.00000198,
    }  # fmt: skip
    return {
        "unit": "USD", "prices_as_of": "2026-01-01", "machine": {"name": "RTX 3090", "hourly_usd": 0.22, "utilisation": 0.5},
        "llm": LLM, "slm": ADAPTER, "arms": {LLM: none, BASE: machine, ADAPTER: machine},
        "break_even": {"because": "no break-even: the LLM has no cost."},
    }  # fmt: skip


def priced(break_even: Any) -> Any:
    """An LLM by the token, an SLM on a machine of 12 USD a day that can serve 5,000 requests a day."""
    found = cost()
    found["machine"] |= {"hourly_usd": 0.5}
    found["arms"] = {
        LLM: found["arms"][LLM] | {"kind": "tokens", "per_request_usd": 12 / (break_even or 20_000), "reason": None},
        ADAPTER: found["arms"][ADAPTER] | {"capacity_requests_per_day": 5000.0},
    }
    said = f"from {break_even:,.0f} requests/day a machine costs less." if break_even else "no break-even."
    return record(CostReport, found | {"break_even": {"requests_per_day": break_even, "because": said}})


def part(value: Any, n: Any, lower: Any, upper: Any) -> Any:
    return {
        "tag": "domain",
        "value": value,
        "n": n,
        "interval": {"estimate": (lower + upper) / 2, "lower": lower, "upper": upper},
    }


def sequential(decided_at: Any, rows: Any = 100) -> Any:
    """What the sequential rule saw of rows of which the SLM gained one in five and lost one in ten."""
    path = []
    for n in range(1, rows + 1):
        estimate, width = (n // 5 - n // 10) / n, min(1.0, 1.8 / n**0.5)
        bounds = {"lower": max(-1.0, estimate - width), "upper": min(1.0, estimate + width)}
        path.append({"rows": n, "groups": n, "estimate": estimate, **bounds})
    last = {name: path[-1][name] for name in ("estimate", "lower", "upper")}
    return {
        "level": 0.05, "rows": rows, "groups": rows, "action": "swap" if decided_at else None, "decided_at": decided_at,
        "interval": {**last, "method": "confidence sequence"}, "e_not_worse": 31.0, "e_worse": 0.01, "path": path,
    }  # fmt: skip


def provenance(rows_scored: Any) -> Any:
    return {
        "rows_in": 100, "rows_scored": rows_scored, "requests": 300, "retries": 4, "possibly_billed": 0, "in_doubt": 1,
        "refused": 2, "concurrency": 8, "training_rows": {"checked": [], "left_out_of_demonstrations": 0},
        "digests": {"data": "9f2c" * 16, "prompts": "1234" * 16, "config": "5678" * 16, "answers": "abab" * 16}, "versions": {"python": "3.11.7", "openai": "3.52.0"},
        "commands": {
            "reproduce": "slm-ray evaluate runs/demo/test/config.yaml --set run_dir=runs/demo/test-again",
            "resume": "slm-ray evaluate runs/demo/test/config.yaml",
        },
    }  # fmt: skip


def partial() -> Any:
    points = [
        {
            "share": share, "difference": -0.02 * share, "lower": -0.05 * share, "passes": share < 0.4, "threshold": -0.1,
            "quality": 0.5, "guardrails_lower": {}, "per_request_usd": None,
        }
        for share in (0.25, 0.5, 1.0)
    ]  # fmt: skip
    return {
        "primary": "exact_match", "ranked_by": "", "validation_rows": 60, "test_rows": 100, "share": 0.25,
        "line": "SLM can take 25 % at delta 0.02", "because": ["checked once on 100 test rows."], "delta": 0.02,
        "validation_share": 0.25, "test_share": 0.25, "curve": points,
    }  # fmt: skip


def sample() -> Any:
    structured = {
        "track": "structured",
        "decisions": [
            decision("validation", "fine_tune", -0.35, -0.4667, -0.2333, BASE, 60),
            decision("test", "swap", 0.11, 0.03, 0.19, ADAPTER, 100),
        ],
        "reports": {"validation": report("structured", 60, False), "test": report("structured", 100, True)},
        "rows": rows(),
        "adapter": {
            "id": "structured-0a1b2c3d4e5f", "name": "structured", "track": "structured", "base": "tiny-base",
            "base_fingerprint": "5d1f" * 8, "config_digest": "aa01" * 16, "data_digest": "bb02" * 16, "rank": 32,
            "alpha": 64, "hidden_size": None, "train_prompts": 700, "metrics": {"train_loss": 0.0412},
            "files": {"adapter_model.safetensors": "cc03" * 16},
        },
        "cost": cost(),
        "partial_replacement": partial(),
        "timings_s": {"prepare": 0.31, "evaluate_validation": 14.2, "train": 131.5, "evaluate_test": 22.75},
    }  # fmt: skip
    toolcall_report = {
        "track": "toolcall",
        "track_definition": plain(definition(TRACKS["toolcall"])),
        "schema_version": 1,
        "examples": {"n": 100, "digest": "1e7d" * 16},
        "models": {
            LLM: model(LLM, 100, toolcall_metrics(0.46), stand_in=True, issues={"arguments_mismatch": 54}),
            BASE: model(
                BASE, 100, toolcall_metrics(0.45), issues={"arguments_mismatch": 52, "invalid_tool_call_format": 3}
            ),
        },
    }
    toolcall = {
        "track": "toolcall",
        "decisions": [decision("test", "inconclusive", -0.01, -0.08, 0.06, BASE, 100, "args_exact")],
        "reports": {"test": toolcall_report},
        "rows": [],
        "adapter": None,
        "timings_s": {},
    }
    return {
        "title": "Can the small model take over?",
        "generated": "2026-01-02 03:04 UTC",
        "run_dir": "runs/demo",
        "tracks": [structured, toolcall],
        "stand_in_note": "No cloud key was set, so the base model with demonstrations stood in for the LLM. The workflow is real, the LLM is not.",
        "environment": {
            "versions": {"ray": "2.60.0", "vllm": "0.32.0", "torch": "2.13.0"},
            "cpu": "2 cores",
            "memory": "7.8 GiB",
        },
        "reproduce": ["make setup", "slm-ray loop runs/demo/config.yaml"],
        "client_snippet": 'from openai import OpenAI\n\nclient = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")\nclient.chat.completions.create(model="tiny-base:structured-0a1b2c3d4e5f", messages=[{"role": "user", "content": "…"}])',
    }


def tried_before(*earlier: Any) -> Any:
    """The sample, whose tuned SLM is the next candidate on its rows."""
    data = sample()
    final = data["tracks"][0]["decisions"][-1]
    final["comparison"] |= {"llm_metrics": {"exact_match": 0.52}, "slm_metrics": {"exact_match": 0.63}}
    final["decision"] |= {
        "candidate": len(earlier) + 1,
        "earlier": [
            {"slm": f"served:tiny-base:v{n}", "number": n, "rule": "paired", "level": 0.03, "action": "fine_tune", "date": "2026-11-20", **one}
            for n, one in enumerate(earlier, start=1)
        ],
    }  # fmt: skip
    return data


FIGURES = {
    "llm": LLM, "primary": "exact_match", "n": 90, "llm_metric": 0.5111, "slm_metric": 0.3333,
    "interval": {"estimate": -0.1778, "lower": -0.2511, "upper": -0.0911},
}  # fmt: skip
CHANGES = {"rows": 88, "lower": 3, "higher": 21, "lower_ids": ["row-0002", "a:b/ü&<"], "higher_ids": []}


def render(data: Any) -> Any:
    """The page of a sample, which holds the rows of each track beside it."""
    data = copy.deepcopy(data)
    rows = {track["track"]: [record(RowResult, row) for row in track.pop("rows", [])] for track in data["tracks"]}
    return page(record(LoopReport, data), rows)
