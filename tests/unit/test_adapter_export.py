"""An exported adapter is the one that was trained: plain PEFT loads it to the same logits, and its card says what is known."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_files import publish as publish_small
from adapter_files import trained
from huggingface_hub import ModelCard
from page_sample import cost
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner, Result

from slm_ray import adapters
from slm_ray.adapters.card import base_name, licence_of, model_card
from slm_ray.cli.app import app
from slm_ray.corpus.tracks import definition
from slm_ray.cost_records import CostReport
from slm_ray.errors import AdapterError, ConfigError, ResourceError
from slm_ray.providers import parse
from slm_ray.records import ComparisonReport, ExampleSet, ModelReport, Report
from slm_ray.reports.encoding import decode, encode
from slm_ray.storage import write_json
from slm_ray.tasks import open_track
from slm_ray.types import Comparison, Decision, Interval, Percentiles, Usage

TOKENS = torch.arange(12).reshape(1, 12)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "small-base"
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=64,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# small\n", encoding="utf-8")
    return folder


def exported(adapter: str, out: Path, root: Path, runs: Path) -> Result:
    """`slm-ray adapters export` as a person runs it."""
    named = ["--out", str(out), "--adapters_dir", str(root), "--runs", str(runs)]
    return CliRunner().invoke(app, ["adapters", "export", adapter, *named])


def tuned(base: Path, out: Path, **settings: Any) -> torch.Tensor:
    """Save a PEFT adapter with random weights; the logits of the model that it was saved from."""
    torch.manual_seed(1)
    config = LoraConfig(
        **{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings}
    )
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(out)
    return logits(model)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(TOKENS).logits


def published(base: Path, source: Path, root: Path, **changed: Any) -> adapters.Manifest:
    return adapters.publish(
        source, root,
        **{
            "name": "tickets", "track": "tickets", "base": str(base), "base_fingerprint": adapters.base_fingerprint(base),
            "config_digest": "c" * 64, "data_digest": "d" * 64, "metrics": {"rows": 300, "loss_last": 0.25, "peak_bytes": None},
            "train_prompts": ["a", "b"], "recipe": {"learning_rate": 2e-4, "lora": {"dropout": 0.1}},
            "base_shapes": adapters.base_shapes(base), **changed,
        },
    )  # fmt: skip


def compared(adapter_id: str) -> ComparisonReport:
    slm = f"served:tiny:{adapter_id}"
    costs = json.loads(json.dumps(cost()).replace("served:tiny-base:structured-0a1b2c3d4e5f", slm))
    comparison = Comparison(
        track="tickets", llm="served:stand-in", slm=slm, n=100, digest="e" * 12, primary="exact_match",
        llm_metrics={"exact_match": 0.5, "odd": None}, slm_metrics={"exact_match": 0.625, "odd": None}, gaps={"exact_match": 0.125},
        interval=Interval(estimate=0.125, lower=0.0625, upper=0.1875, method="Tango"), slm_only_right=20, llm_only_right=8, level=0.05,
        stand_ins=("served:stand-in",),
    )  # fmt: skip
    decision = Decision(action="swap", rule="paired", delta=0.02, because=("the lower bound is above -delta",))
    costs = decode(costs, CostReport, where="test", fix="")
    return ComparisonReport(
        comparison=comparison, decision=decision, declared=None, cost=costs, partial_replacement=None
    )


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"use_rslora": True}, {"target_modules": ["q_proj", "down_proj"]}, {"use_dora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 2}}, {"layers_to_transform": [1], "target_modules": ["v_proj"]},
    ],
)  # fmt: skip
def test_plain_peft_loads_what_was_trained(base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    expected = tuned(base, tmp_path / "made", **settings)
    manifest = published(base, tmp_path / "made", tmp_path / "adapters")
    adapters.export(tmp_path / "adapters", manifest.id, tmp_path / "out", card=adapters.model_card)
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), tmp_path / "out")
    assert torch.equal(logits(model), expected)
    assert not torch.allclose(logits(LlamaForCausalLM.from_pretrained(base)), expected, atol=1e-3)
    checker = adapters.Checker(tmp_path / "adapters")
    if settings.get("use_dora"):
        with pytest.raises(AdapterError, match="magnitudes are not served"):
            adapters.promote(tmp_path / "adapters", manifest.id)
        assert "files, tensors, base; not served: it is a DoRA adapter" in checker.check(manifest.id, serving=False)
    else:
        assert checker.check(manifest.id) == "files, tensors, base"


def test_a_base_that_changed_where_it_lies_is_noticed(base: Path, tmp_path: Path) -> None:
    tuned(base, tmp_path / "made")
    manifest = published(base, tmp_path / "made", tmp_path / "adapters", base_fingerprint="0" * 32)
    with pytest.raises(AdapterError, match="was trained on base"):
        adapters.promote(tmp_path / "adapters", manifest.id)


def test_an_export_is_a_published_adapter_elsewhere_too(base: Path, tmp_path: Path) -> None:
    """Copied into another folder under its id it is checked as at home, also when its base got another name."""
    tuned(base, tmp_path / "made")
    manifest = published(base, tmp_path / "made", tmp_path / "adapters")
    out = tmp_path / "elsewhere" / manifest.id
    adapters.export(tmp_path / "adapters", manifest.id, out, card=adapters.model_card, base="org/small")
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/small"
    assert adapters.Checker(tmp_path / "elsewhere", base).check(manifest.id) == "files, tensors, base"
    assert adapters.load_manifest(tmp_path / "elsewhere", manifest.id) == dataclasses.replace(
        manifest, base="org/small", files=json.loads((out / "manifest.json").read_text())["files"]
    )
    assert ModelCard.load(out / "README.md").data.base_model == "org/small"
    assert str(tmp_path) not in "".join(path.read_text() for path in (*out.glob("*.json"), out / "README.md"))


def test_the_card_says_what_is_known_and_is_valid(base: Path, tmp_path: Path) -> None:
    tuned(base, tmp_path / "made")
    root, runs = tmp_path / "adapters", tmp_path / "runs"
    adapter = published(base, tmp_path / "made", root).id
    first = ModelCard.load(root / adapter / "README.md")
    assert (first.data.library_name, first.data.base_model, first.data.license) == ("peft", "small-base", "mit")
    assert "lora" in first.data.tags and "base_model:adapter:small-base" in first.data.tags
    assert "No evaluation is on file" in first.text
    write_json(runs / "demo" / "comparison.json", encode(compared(adapter)))
    write_json(runs / "other" / "comparison.json", encode(compared("tickets-000000000000")))
    write_json(runs / "broken" / "comparison.json", {"schema_version": 0})
    done = exported(adapter, tmp_path / "out", root, runs)
    assert done.exit_code == 0 and "comparisons in its model card: 1" in done.stdout, done.output
    card = ModelCard.load(tmp_path / "out" / "README.md")
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("exact_match", 0.625, "tickets")
    for part in (
        "| learning_rate | 0.0002 |", "| lora.dropout | 0.1 |", "| rows | 300 |", "d" * 64, "| loss_last | 0.25 |",
        "+0.1250, one-sided 95 % bounds +0.0625 and +0.1875 (Tango)", "Verdict: **swap**", "served:stand-in (a stand-in)",
        "It was measured on that task only", "| odd | undefined | undefined |", "None is on file",
    ):  # fmt: skip
        assert part in card.text, part
    asked = re.search(r"Asked as (\S+), against", card.text)
    assert asked and asked[1] == compared(adapter).comparison.slm, "with or without demonstrations"
    assert str(tmp_path) not in card.content
    shown = (
        CliRunner().invoke(app, ["adapters", "show", adapter, "--adapters_dir", str(root), "--runs", str(runs)]).stdout
    )
    assert "swap: exact_match +0.1250 (+0.0625 to +0.1875) against served:stand-in on 100 rows" in shown
    listed = CliRunner().invoke(app, ["adapters", "list", "--adapters_dir", str(root), "--runs", str(runs)]).stdout
    assert "exact_match 0.625" in listed


def test_the_card_of_a_mixture_speaks_of_all_its_tasks_and_of_no_path(tmp_path: Path) -> None:
    mixture = [{"track": str(tmp_path / "tracks/orders.yaml"), "weight": 0.5}]
    one, two = (
        publish_small(trained(tmp_path / name), tmp_path / "adapters", "f" * 32, name=name, track=name, recipe={"mixture": of})
        for name, of in (("calls", []), ("calls-orders", mixture))
    )  # fmt: skip
    text = model_card(two)
    assert "for 2 tasks, `calls-orders`" in text and "measured on those tasks" in text
    assert "orders: 0.5 rows for each of the first track" in text and str(tmp_path) not in text
    assert "for one task, `calls`" in model_card(one)


def test_the_chat_template_of_training_goes_with_the_adapter_and_its_card_serves_it(tmp_path: Path) -> None:
    root, out = tmp_path / "adapters", tmp_path / "out"
    made = trained(tmp_path / "made")
    (made / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    manifest = publish_small(made, root, "f" * 32)
    adapters.export(root, manifest.id, out, card=lambda manifest: "card")
    assert (out / "chat_template.jinja").read_text(encoding="utf-8") == "{{ messages }}"
    card = ModelCard.load(root / manifest.id / "README.md").text
    assert f"--chat-template {manifest.id}/chat_template.jinja" in card
    template = root / manifest.id / "chat_template.jinja"
    template.chmod(0o644)
    template.write_text("{{ other }}", encoding="utf-8")
    with pytest.raises(AdapterError, match=r"chat_template\.jinja is damaged"):
        adapters.export(root, manifest.id, tmp_path / "again", card=lambda manifest: "card")


@pytest.mark.parametrize(
    ("proved_on", "shown"),
    [("engine", "engine"), ("http://10.1.2.3:8000", "an endpoint"), ("/home/me/serve/gpu.yaml", "gpu.yaml")],
)
def test_a_card_says_what_an_adapter_was_proved_on_and_not_where_that_is(
    tmp_path: Path, proved_on: str, shown: str
) -> None:
    root = tmp_path / "adapters"
    proof = {"on": proved_on, "checked": ["mixed batches"], "not_checked": []}
    manifest = publish_small(trained(tmp_path / "made"), root, "f" * 32, proof=proof)
    card = ModelCard.load(root / manifest.id / "README.md").text
    assert f"| on | {shown} |" in card
    assert "10.1.2.3" not in card and "/home" not in card
    assert manifest.proof == proof


def test_where_nothing_was_compared_the_latest_report_counts(base: Path, tmp_path: Path) -> None:
    tuned(base, tmp_path / "made", r=12)
    root, runs = tmp_path / "adapters", tmp_path / "runs"
    adapter = published(base, tmp_path / "made", root).id
    track = definition(open_track("classify"))
    for at, (name, value) in enumerate({"old": 0.25, "new": 0.75}.items()):
        spec = f"served:tiny:{adapter}"
        models = {
            one: ModelReport(
                facts=parse(one).facts(endpoint="http://127.0.0.1", environment={}), n=40, latency_s=Percentiles(), usage=Usage(),
                metrics={track["primary"]: score}, failures={}, served_by=(), trained_on=0,
            )
            for one, score in (("fake:x", 0.5), (spec, value))
        }  # fmt: skip
        report = Report(
            track="classify", track_definition=track, examples=ExampleSet(n=40, digest="e" * 12), models=models
        )
        write_json(runs / name / "report.json", encode(report))
        os.utime(runs / name / "report.json", (at, at))
    listed = CliRunner().invoke(app, ["adapters", "list", "--adapters_dir", str(root), "--runs", str(runs)]).stdout
    assert f"{track['primary']} 0.750" in listed
    assert exported(adapter, tmp_path / "out", root, runs).exit_code == 0
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert "On 40 rows" in card.text and f"| {track['primary']} | 0.7500 |" in card.text
    assert "--max-lora-rank 16" in card.text
    assert [result.metric_value for result in card.data.eval_results] == [0.75]


def test_names_that_would_break_a_card_do_not(tmp_path: Path) -> None:
    odd = "a: b\n---\n| x | <script>"
    manifest = publish_small(trained(tmp_path / "made"), tmp_path / "adapters", "f" * 32, track=odd, base=f"/x/{odd}")
    card = ModelCard.load(tmp_path / "adapters" / manifest.id / "README.md")
    assert card.data.library_name == "peft"
    assert base_name("org/model") == "org/model" and base_name("/data/models/m/") == "m" and base_name("./m/") == "m"
    assert licence_of(str(tmp_path)) is None
    (tmp_path / "README.md").write_text("---\nlicense: [a\n---\n")
    assert licence_of(str(tmp_path)) is None


def test_an_export_never_mixes_with_what_is_there_and_leaves_nothing_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = tmp_path / "adapters", tmp_path / "out"
    adapter = publish_small(trained(tmp_path / "made"), root, "f" * 32).id
    out.mkdir()
    with pytest.raises(ConfigError, match="exists; give --out a folder that does not"):
        adapters.export(root, adapter, out, card=adapters.model_card)
    out.rmdir()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(ResourceError, match="No space left on device; nothing was changed"):
        adapters.export(root, adapter, out, card=adapters.model_card)
    with pytest.raises(ResourceError, match="No space left on device; nothing was changed"):
        publish_small(trained(tmp_path / "again", fill=3), root, "f" * 32)
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapters", "again", "made"]
    assert [path.name for path in root.iterdir()] == [adapter]
    path = root / adapter / "adapter_model.safetensors"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(AdapterError, match="damaged"):
        adapters.export(root, adapter, out, card=adapters.model_card)
    assert not out.exists()
