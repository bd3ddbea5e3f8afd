"""The parity check against a real engine: a right adapter passes, and each fault that is planted is called by its name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from serving_fixtures import KEY, Served, make_adapter
from transformers import AutoModelForCausalLM

from slm_ray import adapters, parity
from slm_ray.adapters import base_fingerprint, base_shapes, publish
from slm_ray.parity import CANDIDATE, Note, NotedRow, Record
from slm_ray.reports.encoding import encode
from slm_ray.serving.adapter_cache import served_name
from slm_ray.serving.served_answers import Refused, ask_endpoint, check_deployed
from slm_ray.training import rows
from slm_ray.training.base_model import open_tokenizer
from slm_ray.training.parity import follow, scaling
from slm_ray.training.proof import Candidate, look

pytestmark = pytest.mark.heavy
QUESTIONS = ["What is the weather in Oslo?", "Book a table for two in Lima", "Tell me a joke about ducks, please, a short one",
             "Return a JSON object with keys city and date.\nQuery: fly to Rome on Monday"]  # fmt: skip
ANSWER = '{"city": "Oslo", "date": "Monday"}'


@dataclass(frozen=True, kw_only=True)
class Trained:
    """An adapter as training left it."""

    base: Path
    folder: Path
    record: Record

    def candidate(self, **changed: Any) -> Candidate:
        return replace(
            Candidate(base=self.base, folder=self.folder, name="trained", rank=8, record=self.record, engine=None, others={},
                      use_gpu=False),
            **changed,
        )  # fmt: skip


@pytest.fixture(scope="module")
def trained(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A random adapter, small enough to leave the answers readable, with the note that its trainer would have written."""
    home, base = tmp_path_factory.mktemp("trained"), Path(served.config.base)
    folder = make_adapter(home / "trained", base, seed=7, size=0.6)
    tokenizer = open_tokenizer(base)
    loaded = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    model = PeftModel.from_pretrained(loaded, str(folder), autocast_adapter_dtype=False).eval()
    noted = []
    for row, question in enumerate(QUESTIONS):
        prompt = rows.token_ids(tokenizer, [{"role": "user", "content": question}], answer_next=True)
        answer = tokenizer(f"{ANSWER}<|eot_id|>", add_special_tokens=False)["input_ids"]
        said = follow(model, prompt, answer[: parity.POSITIONS])
        noted.append(NotedRow(row=row, prompt=tuple(prompt), answer=tuple(answer), trained=said))
    note = Note(rows=tuple(noted), scaling=scaling(model), precision="16bit")
    prompts: tuple[Any, ...] = tuple(({"role": "user", "content": question},) for question in QUESTIONS)
    return Trained(base=base, folder=folder, record=Record(prompts=prompts, note=note))


def placed(served: Served, source: Path, name: str, **settings: Any) -> str:
    """A copy of the adapter in the served folder with other settings; the name it is served under for good."""
    home = served.adapters / name
    shutil.copytree(source, home)
    path = home / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return str(served_name(served.adapters, name))


def faults(served: Served, adapter: str, candidate: Candidate) -> list[str]:
    answers = ask_endpoint(served.url, adapter, candidate.record.prompts, key=KEY)
    seen = look(candidate, answers)
    findings = parity.check(candidate.record.note, seen.reference, answers, str)
    print(adapter, parity.figures(candidate.record.note, seen.reference, answers), findings)
    return [finding.fault for finding in findings]


def test_a_candidate_is_served_under_its_own_name_listed_nowhere_and_proved(served: Served, trained: Trained) -> None:
    options: dict[str, Any] = {
        "name": "proved", "track": "structured", "base": "tiny", "base_fingerprint": base_fingerprint(trained.base),
        "config_digest": "c", "data_digest": "d", "metrics": {}, "train_prompts": [], "recipe": {},
        "base_shapes": base_shapes(trained.base),
    }  # fmt: skip
    root = served.adapters / adapters.CANDIDATES
    manifest = publish(trained.folder, root, **options)
    name = f"{manifest.id}{CANDIDATE}"
    assert faults(served, name, trained.candidate()) == []
    assert served.ask(name).json()["model"] == f"{served.name}:{name}"
    assert not any("candidate" in model or manifest.id in model for model in served.models())
    assert served.ask(manifest.id).status_code == 404
    shutil.rmtree(root / manifest.id)
    assert served.ask(name).status_code == 404

    answers = ask_endpoint(served.url, placed(served, trained.folder, "once"), trained.record.prompts, key=KEY)
    publish(trained.folder, served.adapters, **options, parity=encode(replace(trained.record, served=answers)))
    assert check_deployed(served.url, served.adapters, [manifest.id], key=KEY) == {manifest.id: ""}
    other = ask_endpoint(served.url, other_adapter(served, "elsewhere"), trained.record.prompts, key=KEY)
    changed = publish(
        trained.folder, served.adapters, **{**options, "data_digest": "e"},
        parity=encode(replace(trained.record, served=other)),
    ).id  # fmt: skip
    assert "other answers" in check_deployed(served.url, served.adapters, [changed], key=KEY)[changed]


def other_adapter(served: Served, name: str) -> str:
    make_adapter(served.adapters / name, Path(served.config.base), seed=8, size=0.6)
    return str(served_name(served.adapters, name))


@pytest.mark.parametrize(
    ("fault", "settings", "own"),
    [
        ("alpha doubled", {"lora_alpha": 32}, {}),
        ("rsLoRA ignored", {}, {"use_rslora": True}),
    ],
)
def test_a_server_that_scales_otherwise_is_found_out(
    served: Served, trained: Trained, tmp_path: Path, fault: str, settings: dict[str, Any], own: dict[str, Any]
) -> None:
    shutil.copytree(trained.folder, tmp_path / "own")
    path = tmp_path / "own/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    adapter = placed(served, trained.folder, fault.replace(" ", "-"), **settings)
    note = replace(trained.record.note, rows=(), scaling=trained.record.note.scaling * (8**0.5 if own else 1))
    candidate = trained.candidate(folder=tmp_path / "own", record=replace(trained.record, note=note))
    answers = ask_endpoint(served.url, adapter, candidate.record.prompts, key=KEY)
    seen = look(candidate, answers)
    findings = parity.check(None, seen.reference, answers, str)
    print(parity.figures(None, seen.reference, answers))
    assert [finding.fault for finding in findings] == [fault]


def test_a_swapped_adapter_and_one_of_zeros_are_found_out(served: Served, trained: Trained, tmp_path: Path) -> None:
    other = other_adapter(served, "other")
    swapped = trained.candidate(others={"other": served.adapters / "other"})
    assert faults(served, other, swapped) == ["the adapter other"]
    zeros = tmp_path / "zeros"
    shutil.copytree(trained.folder, zeros)
    weights = load_file(zeros / "adapter_model.safetensors")
    save_file(
        {n: one * 0 if ".lora_B." in n else one for n, one in weights.items()}, zeros / "adapter_model.safetensors"
    )
    found = faults(served, placed(served, zeros, "zeros"), trained.candidate(folder=zeros))
    assert found[0] == "zero B"
    assert faults(served, placed(served, zeros, "unlearned"), trained.candidate()) == ["no adapter"]


def test_another_base_another_template_and_a_moving_version_are_found_out(
    served: Served, trained: Trained, tmp_path: Path
) -> None:
    adapter = placed(served, trained.folder, "right")
    shutil.copytree(trained.base, tmp_path / "base")
    weights = load_file(tmp_path / "base/model.safetensors")
    drawn = torch.Generator().manual_seed(1)
    for name in [name for name in weights if "mlp" in name]:
        weights[name] += (torch.randn(weights[name].shape, generator=drawn) * 0.02).bfloat16()
    save_file(weights, tmp_path / "base/model.safetensors", metadata={"format": "pt"})
    another = trained.candidate(
        base=tmp_path / "base", record=replace(trained.record, note=replace(trained.record.note, rows=()))
    )
    answers = ask_endpoint(served.url, adapter, trained.record.prompts, key=KEY)
    findings = parity.check(None, look(another, answers).reference, answers, str)
    assert [finding.fault for finding in findings] == ["wrong base"]

    first, *others = trained.record.note.rows
    plain = replace(trained.record.note, rows=(replace(first, prompt=first.prompt[4:]), *others))
    assert faults(served, adapter, trained.candidate(record=replace(trained.record, note=plain))) == ["wrong template"]
    assert faults(served, "right", trained.candidate()) == ["another version"]


def test_a_rank_above_the_server_s_and_a_foreign_base_are_refused_in_words(served: Served, trained: Trained) -> None:
    make_adapter(served.adapters / "wide", trained.base, seed=9, rank=128)
    with pytest.raises(Refused) as refused:
        ask_endpoint(served.url, str(served_name(served.adapters, "wide")), trained.record.prompts, key=KEY)
    finding = parity.refusal(str(refused.value), rank=128)
    assert (finding.fault, "at least 128" in finding.message) == ("rank above the server's maximum", True)
    foreign = make_adapter(served.adapters / "foreign-base", trained.base, seed=9)
    (foreign / "manifest.json").write_text(json.dumps({"base_fingerprint": "0" * 32}))
    with pytest.raises(Refused, match="trained on another base"):
        ask_endpoint(served.url, str(served_name(served.adapters, "foreign-base")), trained.record.prompts, key=KEY)


ENGINE = """
import json, sys
from pathlib import Path
from slm_ray.parity import Record, check
from slm_ray.reports.encoding import decode
from slm_ray.training.proof import Candidate, look
base, folder, record = sys.argv[1:]
record = decode(json.loads(Path(record).read_text()), Record, where="", fix="")
engine = {"dtype": "bfloat16", "enforce_eager": True, "max_model_len": 256, "max_num_seqs": 16, "max_lora_rank": 8,
          "kv_cache_memory_bytes": 1 << 25, "distributed_executor_backend": "uni"}
candidate = Candidate(base=Path(base), folder=Path(folder), name="trained", rank=8, record=record, engine=engine, others={},
                      use_gpu=False)
seen = look(candidate, None)
print(json.dumps([seen.unserved, [one.fault for one in check(record.note, seen.reference, seen.served, str)]]))
"""


@pytest.mark.parametrize(("plugins", "expected"), [("slm_ray_cpu_lora", []), ("none", ["stock CPU kernel"])])
def test_an_engine_is_started_where_there_is_no_endpoint_and_vllm_s_own_kernel_is_found_out(
    trained: Trained, tmp_path: Path, plugins: str, expected: Sequence[str]
) -> None:
    (tmp_path / "record.json").write_text(json.dumps(encode(trained.record)))
    environment = os.environ | {
        "VLLM_PLUGINS": plugins, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", ENGINE, str(trained.base), str(trained.folder), str(tmp_path / "record.json")],
        env=environment, text=True, capture_output=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    unserved, found = json.loads(done.stdout.splitlines()[-1])
    assert (unserved, found) == ("", expected)
