"""The private parts of the pinned Ray and vLLM that serving builds on still exist and still have the expected shape."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from safetensors.torch import load_file, save_file
from serving_fixtures import ROOT, make_adapter

from slm_ray import adapters
from slm_ray.config import Serving
from slm_ray.corpus.render import prompt_of
from slm_ray.corpus.tracks import track
from slm_ray.errors import AdapterError, ResourceError
from slm_ray.serving.settings import app_settings, read_serve_file
from slm_ray.training.base_model import open_tokenizer
from slm_ray.training.parity import prompt_and_answer
from slm_ray.training.rows import conversation, tokenised
from slm_ray.types import Example
from tests.bases import make_base

pytestmark = pytest.mark.heavy
BASE = ROOT / "data/tiny_base"


def parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_versions_are_the_ones_this_was_written_against() -> None:
    assert ray.__version__ == "2.60.0"


def test_server() -> None:
    from ray.llm._internal.common.callbacks.base import CallbackCtx
    from ray.llm._internal.serve.core.configs.llm_config import DiskMultiplexConfig
    from ray.llm._internal.serve.core.server.llm_server import LLMServer
    from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
    from ray.llm._internal.serve.utils.lora_serve_utils import LoraModelLoader

    assert parameters(LLMServer.__init__) == ["self", "llm_config", "engine_cls", "model_downloader"]
    assert parameters(LLMServer._maybe_resolve_lora_from_multiplex) == ["self"]
    assert "self._maybe_resolve_lora_from_multiplex()" in inspect.getsource(LLMServer._run_request)
    assert "self._load_model(multiplexed_model_id)" in inspect.getsource(LLMServer._maybe_resolve_lora_from_multiplex)
    assert parameters(LLMServer._run_request)[:2] == ["self", "request"]
    assert parameters(LLMServer._batch_output_stream) == ["self", "generator"]
    assert "self._batch_output_stream(engine_stream)" in inspect.getsource(LLMServer._run_request)
    assert inspect.iscoroutinefunction(LLMServer.__del__)
    assert "await self.engine.start()" in inspect.getsource(LLMServer._start_engine)
    assert parameters(LoraModelLoader.load_model_from_config) == ["self", "lora_model_id", "llm_config"]
    assert parameters(LoraModelLoader.__init__) == ["self", "lora_root", "download_timeout_s", "max_tries"]
    assert set(DiskMultiplexConfig.model_fields) == {
        "model_id",
        "max_total_tokens",
        "local_path",
        "lora_assigned_int_id",
    }
    assert CallbackCtx().run_init_node is True
    assert parameters(VLLMEngine._prepare_engine_config) == ["self", "callback_ctx"]
    assert (
        "vllm_engine_args,\n            vllm_frontend_args,\n            vllm_engine_config,\n        ) = self._prepare"
        in (inspect.getsource(VLLMEngine.start))
    )
    assert "raise ValueError" in inspect.getsource(VLLMEngine.resolve_lora)


def test_ingress() -> None:
    from ray.serve._private.replica import SERVE_BUILD_ASGI_APP_METHOD
    from ray.serve._private.request_router.request_router import RequestRouter
    from ray.serve._private.router import AsyncioRouter, CurrentLoopRouter, SingletonThreadRouter

    assert SERVE_BUILD_ASGI_APP_METHOD == "__serve_build_asgi_app__"
    assert "self._running_replicas" in inspect.getsource(AsyncioRouter.request_router.fget)  # type: ignore[attr-defined]
    assert isinstance(RequestRouter.curr_replicas, property)
    for router in (CurrentLoopRouter, SingletonThreadRouter):
        assert "self._asyncio_router = AsyncioRouter(" in inspect.getsource(router.__init__)


def test_the_core_of_an_engine() -> None:
    from vllm.v1.engine import utils
    from vllm.v1.engine.async_llm import AsyncLLM

    made = inspect.getsource(utils.CoreEngineProcManager.__init__)
    assert "context = get_mp_context()" in made and "context.Process(" in made
    assert isinstance(AsyncLLM.errored, property)


def test_neither_who_builds_the_application_nor_its_front_imports_vllm() -> None:
    """Ten seconds and half a GB of each."""
    code = "import sys, slm_ray.serving.endpoint; print(sorted({'torch', 'vllm', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr[-2000:]


def test_serve_controller() -> None:
    from ray.serve._private.client import ServeControllerClient
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
    from ray.serve._private.controller import ServeController
    from ray.serve.deployment import Application, Deployment
    from ray.serve.schema import ServeInstanceDetails

    from slm_ray.serving.endpoint import CONTROLLER

    assert {"http_options", "applications"} <= set(ServeInstanceDetails.model_fields)
    assert parameters(ServeControllerClient.get_serve_details) == ["self"]
    assert {"version", "_internal"} <= set(parameters(Deployment.options))
    assert parameters(Application.__init__)[:2] == ["self", "bound_deployment"]
    assert (SERVE_CONTROLLER_NAME, SERVE_NAMESPACE) == (CONTROLLER, "serve")
    assert parameters(ServeController.graceful_shutdown)[:2] == ["self", "wait"]


SERVE_FILES = sorted((ROOT / "serve_configs").glob("*.yaml"))


@pytest.mark.parametrize("path", SERVE_FILES, ids=lambda path: path.stem)
def test_a_serve_file_is_one_to_ray_and_its_engine_one_to_vllm(path: Path) -> None:
    from ray.llm._internal.serve.engines.vllm.vllm_models import VLLMEngineConfig
    from ray.serve.llm import LLMServingArgs
    from ray.serve.llm.deployment import LLMServer
    from ray.serve.schema import ServeDeploySchema
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import FrontendArgs
    from vllm.tool_parsers import ToolParserManager

    from slm_ray.serving.app import build, engine_options

    text = path.read_text(encoding="utf-8")
    schema = ServeDeploySchema.model_validate(yaml.safe_load(text))
    (app,) = schema.applications
    module, _, function = app.import_path.partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert set(yaml.safe_load(text)) <= set(ServeDeploySchema.model_fields), "Ray takes unknown keys without a word"
    assert app.name == f"slm-ray-{schema.http_options.port}", "the name by which `slm-ray serve` knows it"
    settings = app_settings(Serving(config=str(path), base=str(BASE)), stand_in=None, environment={})
    (model,) = LLMServingArgs.model_validate(settings.serving).llm_configs
    fields = {field.name for kind in (AsyncEngineArgs, FrontendArgs) for field in dataclasses.fields(kind)}
    assert set(model.engine_kwargs) <= fields
    assert VLLMEngineConfig.from_llm_config(model).get_initialization_kwargs()["max_loras"] == 4
    theirs, ours = LLMServer.get_deployment_options(model), engine_options(settings.serving["llm_configs"][0], job={})
    theirs["ray_actor_options"]["runtime_env"].pop("worker_process_setup_hook", None)
    bundles = [
        [
            {name: amount for name, amount in bundle.items() if amount}
            for bundle in options.pop("placement_group_bundles")
        ]
        for options in (ours, theirs)
    ]
    assert bundles[0] == bundles[1]
    assert theirs.items() <= ours.items(), "what Ray's own builder derives of the entry"
    front = build(settings)._bound_deployment
    (engine,) = (bound._bound_deployment for bound in front.init_args)
    written = settings.serving["llm_configs"][0]["deployment_config"]
    scaling, wanted = engine._deployment_config.autoscaling_config, written.get("autoscaling_config")
    assert (scaling is None) is (wanted is None)
    assert all(getattr(scaling, name) == value for name, value in (wanted or {}).items()), (
        "Serve scales as the file says"
    )
    assert engine._deployment_config.max_ongoing_requests == written["max_ongoing_requests"]
    assert front._deployment_config.num_replicas == settings.serving["ingress_deployment_config"]["num_replicas"]
    parsers = re.findall(r"tool_call_parser: (\w+)", text)
    assert parsers and all(ToolParserManager.get_tool_parser(name) for name in parsers)


def test_a_serve_application_is_versioned_by_what_it_is_built_from(tmp_path: Path) -> None:
    from slm_ray.serving.app import application, build

    def versions(stand_in: dict[str, Any] | None = None, **changes: Any) -> tuple[str, str, Any]:
        config = Serving(**{"config": str(SERVE_FILES[0]), "base": str(BASE), **changes})
        front = build(app_settings(config, stand_in=stand_in, environment={}))._bound_deployment
        (engine,) = front.init_args
        return front._version, engine._bound_deployment._version, front._deployment_config.user_config

    front, engine, light = versions()
    stand_in = {"deployment": "s", "demonstrations": 1, "pools": {}}
    assert versions(stand_in)[:2] == (front, engine) and versions(stand_in)[2] != light, "no restart for a stand-in"
    failed = replace(
        app_settings(Serving(config=str(SERVE_FILES[0]), base=str(BASE)), stand_in=None, environment={}), attempt=1
    )
    assert not {front, engine} & {failed.front_version, failed.engine_version}, "what failed is started again"
    assert versions(host="127.0.0.2")[:2] == (front, engine)
    moved = versions(adapters_dir=str(tmp_path))
    assert moved[0] != front and moved[1] != engine
    arguments = read_serve_file(SERVE_FILES[0])
    plain = application({**arguments, "base": str(BASE)})._bound_deployment
    assert plain.name == "AdapterIngress"


def test_an_engine_without_room_on_its_gpu_is_refused_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.serve.llm import LLMServingArgs

    from slm_ray.serving import server

    monkeypatch.setattr(server, "_smallest_gpu_bytes", lambda: 5e8)
    for name, fits in (("rtx3090_llama31_8b", False), ("cpu_tiny", True)):
        config = Serving(config=str(ROOT / f"serve_configs/{name}.yaml"), base=str(BASE))
        settings = app_settings(config, stand_in=None, environment={})
        (model,) = LLMServingArgs.model_validate(settings.serving).llm_configs
        with contextlib.nullcontext() if fits else pytest.raises(ResourceError, match="too small for the engine"):
            server.check_room(model)


def test_kernel() -> None:
    from vllm.lora.punica_wrapper import punica_cpu

    from slm_ray.serving.lora_kernel import register, wrapper

    stock = punica_cpu.PunicaWrapperCPU
    if stock.__name__ == "MaskedPunicaCPU":
        stock = stock.__mro__[1]
    linear = ["self", "y", "x", "lora_a_stacked", "lora_b_stacked", "scale", "output_slices", "buffer", "kwargs"]
    assert parameters(stock.add_lora_linear) == linear
    assert parameters(stock.add_lora_logits) == [name for name in linear if name != "output_slices"]
    assert {"update_metadata", "token_lora_indices", "sampler_indices"} <= set(dir(stock))
    register()
    register()
    assert punica_cpu.PunicaWrapperCPU.__mro__[1] is stock
    assert issubclass(wrapper(stock), stock)
    (plugin,) = entry_points(group="vllm.general_plugins", name="slm_ray_cpu_lora")
    assert plugin.load() is register


UNSERVED = [
    {"use_dora": True}, {"lora_bias": True}, {"modules_to_save": ["lm_head"]}, {"bias": "all"}, {"init_lora_weights": "pissa"},
    {"init_lora_weights": "loftq"}, {"alora_invocation_tokens": [1]}, {"layer_replication": [[0, 1]]},
    {"use_bdlora": {"nblocks": 2}}, {"use_qalora": True},
]  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}}, {"init_lora_weights": "gaussian"}, *UNSERVED],
    ids=str,
)
def test_an_exported_adapter_is_taken_by_plain_vllm_and_what_vllm_refuses_is_refused_here(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    """By vLLM's own reader of `--lora-modules`: settings and, where those are taken, every tensor."""
    from vllm.config.lora import LoRAConfig
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper

    made, out = make_adapter(tmp_path / "made", BASE, seed=1), tmp_path / "out"
    path = made / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    tensors = load_file(made / "adapter_model.safetensors")
    for name in settings.get("rank_pattern", {}):
        tensors |= {
            key: value[:2] if "lora_A" in key else value[:, :2].contiguous()
            for key, value in tensors.items()
            if name in key
        }
        save_file(tensors, made / "adapter_model.safetensors")
    whole = json.loads(path.read_text())
    helper = PEFTHelper.from_local_dir(str(made), None)
    if settings in UNSERVED:
        with pytest.raises(ValueError):
            helper.validate_legal(LoRAConfig(max_lora_rank=8))
        with pytest.raises(AdapterError):
            adapters.check_tensors(made / "adapter_model.safetensors", whole, adapters.base_shapes(BASE))
        return
    adapter = adapters.publish(
        made, tmp_path / "adapters", name="run", track="t", base=str(BASE), config_digest="c", data_digest="d", metrics={},
        base_fingerprint="f" * 32, train_prompts=[], recipe={}, base_shapes=adapters.base_shapes(BASE),
    )  # fmt: skip
    adapters.check_tensors(made / "adapter_model.safetensors", whole, adapters.base_shapes(BASE))
    adapters.export(tmp_path / "adapters", adapter.id, out, card=adapters.model_card)
    helper = PEFTHelper.from_local_dir(str(out), None)
    helper.validate_legal(LoRAConfig(max_lora_rank=8))
    loaded = LoRAModel.from_local_checkpoint(str(out), set(whole["target_modules"]), peft_helper=helper, device="cpu")
    assert len(loaded.loras) == len(tensors) / 2
    assert all(layer.lora_a is not None and layer.lora_b is not None for layer in loaded.loras.values())


def test_the_engine_s_renderer_sees_the_tokens_of_training(tmp_path: Path) -> None:
    """A base that refuses system turns, writes a date and has Mistral's own files beside Hugging Face's."""
    from ray.llm._internal.common.callbacks.base import CallbackCtx
    from ray.llm._internal.serve.core.configs.llm_config import LLMConfig
    from vllm.exceptions import VLLMValidationError
    from vllm.renderers.params import ChatParams
    from vllm.renderers.registry import renderer_from_config

    from slm_ray.serving.server import HouseEngine

    base = make_base(tmp_path / "base", family="mistral")
    template = base / "chat_template.jinja"
    template.write_text("{{ strftime_now('%d %b %Y') }} " + template.read_text(encoding="utf-8"), encoding="utf-8")
    for name in ("tokenizer.model.v3", "params.json"):
        (base / name).write_text("{}", encoding="utf-8")
    shutil.copy(base / "model.safetensors", base / "consolidated.safetensors")
    serving = Serving(config=str(ROOT / "serve_configs/cpu_tiny.yaml"), base=str(base))
    (model,) = app_settings(serving, stand_in=None, environment={}).serving["llm_configs"]
    engine = HouseEngine.__new__(HouseEngine)
    engine.llm_config = LLMConfig.model_validate(model)
    _, frontend, config = engine._prepare_engine_config(CallbackCtx(run_init_node=False))
    renderer, params = renderer_from_config(config), ChatParams(chat_template=frontend.chat_template)

    tokenizer = open_tokenizer(base)
    example = Example(id="1", prompt=prompt_of(track("structured"), "call Rome please"), target="{}")
    trained, _ = prompt_and_answer(tokenised(tokenizer, conversation(example)))
    _, prompt = renderer.render_messages(example.prompt.as_dicts(), params)
    assert prompt["prompt_token_ids"] == list(trained)
    text = tokenizer.decode(trained)
    assert text.startswith("26 Jul 2024")
    assert f"[INST] {track('structured').system}\n\ncall Rome please [/INST]" in text
    with pytest.raises(VLLMValidationError, match="turns have to alternate"):  # HTTP 400
        renderer.render_messages([{"role": "user", "content": "one"}] * 2, params)


def test_a_plain_completion_that_names_no_length_gets_16_tokens() -> None:
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    from slm_ray.serving.admission import _TEXT_TOKENS

    for named in ({}, {"max_tokens": None}):
        assert CompletionRequest(prompt="hi", **named).max_tokens == _TEXT_TOKENS
