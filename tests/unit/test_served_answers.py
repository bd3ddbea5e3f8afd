"""The server's side of the parity check over HTTP: what is asked in which round, refusals, and servers that say too little."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import types
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from adapter_files import base, publish, safetensors, trained

from slm_ray.config import TrainConfig
from slm_ray.errors import ConfigError, ModelError
from slm_ray.parity import Note, NotedRow, Record, in_words
from slm_ray.reports.encoding import encode
from slm_ray.serving import served_answers
from slm_ray.serving.served_answers import NoEngine, Refused, ask_endpoint, ask_engine, check_deployed
from slm_ray.storage import write_json
from slm_ray.training import proof
from slm_ray.training.plan import Plan
from slm_ray.training.proof import check_prove_on, prove

PROMPTS = [[{"role": "user", "content": text}] for text in ("one", "two")]
SERVE = Path(__file__).parents[2] / "serve_configs/cpu_tiny.yaml"


class Endpoint(BaseHTTPRequestHandler):
    """Answers as vLLM does: token 7 for the base, 8 for an adapter."""

    asked: ClassVar[list[dict[str, Any]]] = []
    refuses: tuple[int, str] | None = None
    busy: ClassVar[list[int]] = []
    context = 4096  # a letter counts as a token
    says_tokens = True
    says_answer = True

    def do_GET(self) -> None:
        self.reply(200, {"data": [{"id": "base:a-1"}, {"id": "base"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append({**body, "key": self.headers.get("Authorization")})
        if self.busy:
            return self.reply(self.busy.pop(), {"error": {"message": "try again later"}})
        if len(body["messages"][0]["content"]) + body["max_tokens"] > self.context:
            said = f"This model's maximum context length is {self.context} tokens. However, your prompt contains more"
            return self.reply(400, {"error": {"message": said}})
        if self.refuses and ":" in body["model"]:
            return self.reply(self.refuses[0], {"error": {"message": self.refuses[1]}})
        token = 8 if ":" in body["model"] else 7
        top = [{"token": f"token_id:{token}", "logprob": -0.25}, {"token": "token_id:3", "logprob": -9999.0}]
        content = [{"token": f"token_id:{token}", "logprob": -0.25, "top_logprobs": top}]
        found = {"model": body["model"], "choices": [{"logprobs": {"content": content if self.says_answer else []}}]}
        if self.says_tokens:
            found["prompt_token_ids"] = [1, 2, 3]
        return self.reply(200, found)

    def reply(self, status: int, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: Any) -> None:
        """Silent."""


@pytest.fixture
def endpoint() -> Iterator[tuple[str, type[Endpoint]]]:
    handler = type("Handler", (Endpoint,), {"asked": [], "busy": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


def test_each_arm_is_asked_alone_without_the_cache_then_cached_then_mixed(endpoint: tuple[str, type[Endpoint]]) -> None:
    url, handler = endpoint
    served = ask_endpoint(url, "a-1@candidate", PROMPTS, key="k")
    assert served.model == "base:a-1@candidate"
    rounds = [handler.asked[at : at + size] for at, size in ((0, 2), (2, 2), (4, 2), (6, 4))]
    assert [sorted(asked["model"] for asked in one) for one in rounds] == [
        ["base"] * 2, ["base:a-1@candidate"] * 2, ["base:a-1@candidate"] * 2, ["base"] * 2 + ["base:a-1@candidate"] * 2,
    ]  # fmt: skip
    assert ["cache_salt" in one[0] for one in rounds] == [True, True, False, True]
    salts = [asked["cache_salt"] for asked in handler.asked if "cache_salt" in asked]
    assert len(set(salts)) == len(salts) == 8
    assert {asked["key"] for asked in handler.asked} == {"Bearer k"}
    assert served.base_mixed == served.base != served.adapter == served.adapter_cached
    assert served.adapter[0].prompt == (1, 2, 3)
    assert served.adapter[0].positions[0].top == ((8, -0.25), (3, -9999.0))


def test_a_busy_server_is_asked_again_and_what_it_refuses_as_its_base_is_no_fault_of_the_adapter(
    endpoint: tuple[str, type[Endpoint]],
) -> None:
    url, handler = endpoint
    handler.busy.extend([429, 503, 429])
    assert ask_endpoint(url, "a-1", PROMPTS, key="").adapter[0].positions
    assert handler.busy == []
    assert len(handler.asked) == 10 + 3
    handler.busy.append(400)
    with pytest.raises(ModelError, match="as its base base: try again later") as refused:
        ask_endpoint(url, "a-1", PROMPTS, key="")
    assert not isinstance(refused.value, Refused)


def test_an_answer_without_a_token_proves_nothing(endpoint: tuple[str, type[Endpoint]]) -> None:
    url, handler = endpoint
    handler.says_answer = False
    with pytest.raises(ModelError, match="an answer of no token"):
        ask_endpoint(url, "a-1", PROMPTS, key="")


def test_a_damaged_record_is_said_of_its_adapter_and_the_others_are_checked(
    endpoint: tuple[str, type[Endpoint]], tmp_path: Path
) -> None:
    (tmp_path / "a-0123456789ab").mkdir()
    (tmp_path / "a-0123456789ab/parity.json").write_text("{", encoding="utf-8")
    (tmp_path / "b-0123456789ab").mkdir()
    served = ask_endpoint(endpoint[0], "b-0123456789ab", PROMPTS, key="")
    rows = tuple(
        NotedRow(row=place, prompt=answer.prompt, answer=(8,), trained=answer.positions)
        for place, answer in enumerate(served.adapter)
    )
    note = Note(rows=rows, scaling=2.0, precision="16bit")
    record = Record(prompts=tuple(map(tuple, PROMPTS)), note=note, served=served)
    write_json(tmp_path / "b-0123456789ab/parity.json", encode(record))
    found = check_deployed(endpoint[0], tmp_path, ["a-0123456789ab", "b-0123456789ab", "c-0123456789ab"], key="")
    assert set(found) == {"a-0123456789ab", "b-0123456789ab"}
    assert "not JSON" in found["a-0123456789ab"]
    assert found["b-0123456789ab"] == ""


def test_the_engine_reads_a_base_as_serving_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside Mistral's own files vLLM would take those, and the proof would refuse what is served well."""
    asked: dict[str, Any] = {}

    def no_room(**arguments: Any) -> None:
        asked.update(arguments)
        raise RuntimeError("no room")

    vllm, lora = types.ModuleType("vllm"), types.ModuleType("vllm.lora.request")
    vllm.__dict__.update(LLM=no_room, SamplingParams=object)
    lora.__dict__.update(LoRARequest=object)
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setitem(sys.modules, "vllm.lora.request", lora)
    monkeypatch.setattr(served_answers, "served_template", lambda base: None)
    with pytest.raises(NoEngine, match="no room"):
        ask_engine(Path("base"), Path("adapter"), "a-1", PROMPTS, {"dtype": "bfloat16", "load_format": "dummy"})
    assert (asked["tokenizer_mode"], asked["config_format"]) == ("hf", "hf")
    assert (asked["dtype"], asked["load_format"]) == ("bfloat16", "dummy"), "what the file says goes first"


@pytest.mark.parametrize("prove_on", ["engine", "http://127.0.0.1:9"])
@pytest.mark.parametrize("dora", [True, False])
def test_no_server_is_asked_for_what_none_takes(tmp_path: Path, prove_on: str, dora: bool) -> None:
    """Its training publishes a DoRA adapter with that said, so proving it again finds no fault either."""
    home, made = base(tmp_path / "base"), trained(tmp_path / "made")
    if dora:
        settings = json.loads((made / "adapter_config.json").read_text())
        (made / "adapter_config.json").write_text(json.dumps(settings | {"use_dora": True}))
        layers = {f"base_model.model.model.layers.0.self_attn.{name}": 16 for name in ("q_proj", "v_proj")}
        shapes: dict[str, tuple[int, ...]] = {f"{layer}.lora_magnitude_vector": (16,) for layer in layers}
        shapes |= {f"{layer}.lora_A.weight": (4, 16) for layer in layers}
        shapes |= {f"{layer}.lora_B.weight": (16, 4) for layer in layers}
        safetensors(made / "adapter_model.safetensors", shapes)
    manifest = publish(made, tmp_path / "adapters", "f" * 32)
    row = NotedRow(row=0, prompt=(1, 2), answer=(3,), trained=())
    record = Record(prompts=(tuple(PROMPTS[0]),), note=Note(rows=(row,), scaling=2.0, precision="4bit"))
    candidate = proof._candidate(
        manifest,
        tmp_path / "adapters",
        base=str(home),
        record=record,
        prove_on=prove_on,
        others=tmp_path,
        use_gpu=False,
    )
    assert (candidate.engine is not None) == (prove_on == "engine" and not dora)
    if dora:
        assert "DoRA" in candidate.unserved
        assert proof._from_endpoint(prove_on, manifest.id, candidate, "") == (candidate, None, None)
    elif prove_on != "engine":
        with pytest.raises(ModelError, match="is the endpoint up"):
            proof._from_endpoint(prove_on, manifest.id, candidate, "")


def candidate_of(folder: Path, prove_on: str, lengths: tuple[int, ...]) -> proof.Candidate:
    """A candidate with prompts of so many letters, each a token."""
    home, manifest = base(folder / "base"), publish(trained(folder / "made"), folder / "adapters", "f" * 32)
    rows = tuple(NotedRow(row=row, prompt=(1,) * length, answer=(3,), trained=()) for row, length in enumerate(lengths))
    prompts = tuple(({"role": "user", "content": "x" * length},) for length in lengths)
    record = Record(prompts=prompts, note=Note(rows=rows, scaling=2.0, precision="4bit"))
    return proof._candidate(
        manifest, folder / "adapters", base=str(home), record=record, prove_on=prove_on, others=folder, use_gpu=False
    )  # fmt: skip


def test_prompts_without_room_for_an_answer_in_the_endpoint_s_context_are_left_out_and_said(
    endpoint: tuple[str, type[Endpoint]], tmp_path: Path
) -> None:
    url, handler = endpoint
    handler.context = 64
    candidate = candidate_of(tmp_path, url, (10, 60, 48, 49))
    fitting, served, refused = proof._from_endpoint(url, "a-1@candidate", candidate, "")
    assert refused is None and served is not None
    assert len(served.adapter) == len(fitting.record.prompts) == 2
    assert [row.row for row in fitting.record.note.rows] == [0, 2]
    assert "2 of 4 prompts" in fitting.left_out and "context of 64" in fitting.left_out
    handler.context = 20
    with pytest.raises(ModelError, match=r"none of its training prompts leaves room for 16 tokens .* max_model_len"):
        proof._from_endpoint(url, "a-1@candidate", candidate, "")
    handler.context = 4096
    whole, served, _ = proof._from_endpoint(url, "a-1@candidate", candidate, "")
    assert whole is candidate and served is not None and len(served.adapter) == 4


def test_an_engine_is_asked_what_its_file_leaves_room_for(tmp_path: Path) -> None:
    serve = tmp_path / "serve.yaml"
    serve.write_text(
        "applications: [{args: {llm_configs: [{engine_kwargs: {max_model_len: 64}}]}}]\n", encoding="utf-8"
    )
    candidate = candidate_of(tmp_path, str(serve), (10, 60))
    assert [row.row for row in candidate.record.note.rows] == [0]
    assert "1 of 2 prompts" in candidate.left_out


def test_an_engine_of_its_own_gets_no_more_context_than_the_base_has(tmp_path: Path) -> None:
    assert candidate_of(tmp_path / "free", "engine", (10, 60)).engine["max_model_len"] == 60 + 16 + 32  # type: ignore[index]
    short = candidate_of(tmp_path / "short", "engine", (10, 60))
    config = tmp_path / "short/base/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 70}))
    engine = proof._engine("engine", 4, short.record.note, short.base, use_gpu=False)
    assert engine is not None and engine["max_model_len"] == 70


def test_of_two_proofs_of_one_content_the_last_withdraws_the_candidate(tmp_path: Path) -> None:
    made, root = trained(tmp_path / "made"), tmp_path / ".candidates"
    publication: dict[str, Any] = {
        "name": "a", "track": "structured", "base": "tiny", "base_fingerprint": "f" * 32, "config_digest": "c",
        "data_digest": "d", "metrics": {}, "train_prompts": [], "recipe": {}, "base_shapes": None,
    }  # fmt: skip
    with proof._among_candidates(root, made, publication) as first:
        with proof._among_candidates(root, made, publication) as second:
            assert first.id == second.id
        assert (root / first.id / "adapter_model.safetensors").is_file(), "the first proof still needs it"
        with pytest.raises(KeyError), proof._among_candidates(root, made, publication):
            raise KeyError
        assert (root / first.id).is_dir()
    assert list(root.iterdir()) == []
    with proof._among_candidates(root, made, publication) as again:
        assert (root / again.id).is_dir()


def test_what_is_left_of_a_candidate_is_never_half_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the middle of its removal, it is under no name that the next proof of the same adapter would meet."""
    (tmp_path / "a-0123456789ab").mkdir()
    (tmp_path / "a-0123456789ab/manifest.json").write_text("{}", encoding="utf-8")

    def killed(path: str, **how: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        proof._withdraw(tmp_path, "a-0123456789ab")
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".publishing-")
    monkeypatch.undo()
    left.joinpath("a-0123456789ab").rename(tmp_path / "a-0123456789ab")
    proof._withdraw(tmp_path, "a-0123456789ab")
    assert list(tmp_path.iterdir()) == [left]
    proof._withdraw(tmp_path / "nowhere", "a-0123456789ab")


def test_a_refused_adapter_and_a_silent_server_are_told_apart(endpoint: tuple[str, type[Endpoint]]) -> None:
    url, handler = endpoint
    handler.refuses = (400, "LoRA rank 128 is greater than max_lora_rank 64")
    with pytest.raises(Refused, match="rank 128"):
        ask_endpoint(url, "a-1", PROMPTS, key="")
    handler.refuses = (500, "broken")
    with pytest.raises(ModelError, match="HTTP 500") as busy:
        ask_endpoint(url, "a-1", PROMPTS, key="")
    assert not isinstance(busy.value, Refused)
    handler.refuses, handler.says_tokens = None, False
    with pytest.raises(ModelError, match="does not say which tokens"):
        ask_endpoint(url, "a-1", PROMPTS, key="")
    with pytest.raises(ModelError, match="is the endpoint up"):
        ask_endpoint("http://127.0.0.1:9", "a-1", PROMPTS, key="")


def test_what_an_adapter_is_proved_on_is_checked_before_it_is_trained(tmp_path: Path) -> None:
    def config(prove_on: str, rank: int = 32) -> TrainConfig:
        return TrainConfig(
            track="structured", train="t", base="b", run_dir="r", adapters_dir="a", prove_on=prove_on,
            lora={"rank": rank, "alpha": 64},
        )  # fmt: skip

    for fine in ("engine", "nothing", "http://127.0.0.1:8000", str(SERVE)):
        check_prove_on(config(fine))
    with pytest.raises(ConfigError, match=r"lora\.rank 65 is above max_lora_rank 64"):
        check_prove_on(config(str(SERVE), rank=65))
    with pytest.raises(ConfigError):
        check_prove_on(config(str(tmp_path / "nowhere.yaml")))
    (tmp_path / "other.yaml").write_text("a: 1\n")
    with pytest.raises(ConfigError, match="no Ray Serve file"):
        check_prove_on(config(str(tmp_path / "other.yaml")))


def test_who_asks_for_no_proof_is_told_what_was_not_checked(capsys: pytest.CaptureFixture[str]) -> None:
    planned = Plan(
        config=TrainConfig(track="structured", train="t", base="b", run_dir="r", adapters_dir="a", prove_on="nothing"),
        folder=Path("r"), examples=(), lengths=(), base_fingerprint="", config_digest="", data_digest="", content_digest="",
        chat_template="",
    )  # fmt: skip
    made = prove(planned, Path("nowhere"), {}, key="")
    assert made.record is None
    assert in_words(made.summary) == "not proved: everything (prove_on is nothing)"
    assert "warning: an adapter is published without a whole proof" in capsys.readouterr().err
