"""The private parts of the pinned Ray and vLLM that serving builds on still exist and still have the expected shape."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

import pytest
import ray

pytestmark = pytest.mark.heavy


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
    assert inspect.iscoroutinefunction(LLMServer.__del__)
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
    from fastapi.middleware.cors import CORSMiddleware
    from ray.llm._internal.serve.core.ingress.ingress import OpenAiIngress, init
    from ray.serve._private.replica import SERVE_BUILD_ASGI_APP_METHOD

    assert parameters(OpenAiIngress._get_model_id) == ["self", "model"]
    assert parameters(OpenAiIngress._get_response) == ["self", "body", "call_method", "raw_request"]
    assert parameters(OpenAiIngress.chat) == ["self", "body", "request"]
    assert parameters(OpenAiIngress.models) == ["self"]
    assert parameters(OpenAiIngress.model) == ["self", "model_id"]
    assert "self._model_cards" in inspect.getsource(OpenAiIngress.__init__)
    assert SERVE_BUILD_ASGI_APP_METHOD == "__serve_build_asgi_app__"
    assert [entry.cls for entry in init().user_middleware].count(CORSMiddleware) == 1


def test_serve_controller() -> None:
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
    from ray.serve._private.controller import ServeController

    from slm_ray.serving.endpoint import CONTROLLER

    assert (SERVE_CONTROLLER_NAME, SERVE_NAMESPACE) == (CONTROLLER, "serve")
    assert parameters(ServeController.graceful_shutdown)[:2] == ["self", "wait"]


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
