"""The model replica: Ray's LLM server, with adapters from a plain folder.

Promises over the stock server: the engine only ever reads node-local copies; concurrent first requests for one adapter
load it once; an adapter that cannot be used is HTTP 400, one that is gone 404, and the engine lives on; chats are rendered
as in training (`slm_ray.chat_template`); an answer whose length nobody names ends at the bounds of `limits`, not where the
context does; an engine that its GPU has no room for is refused before a weight is read.

Overrides private methods of the pinned Ray; `tests/integration/test_serving_contract.py` holds their shape.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from pydantic import ValidationError
from ray import serve
from ray.llm._internal.common.callbacks.base import CallbackBase
from ray.llm._internal.common.errors import VLLM_CLIENT_ERRORS, VLLM_FATAL_ERRORS
from ray.llm._internal.serve.core.configs import openai_api_models as bodies
from ray.llm._internal.serve.core.configs.llm_config import DiskMultiplexConfig, LLMConfig, LoraConfig
from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from ray.llm._internal.serve.utils.lora_serve_utils import LoraModelLoader
from ray.serve.llm.deployment import LLMServer
from starlette.responses import JSONResponse

from slm_ray.chat_template import served_template
from slm_ray.errors import ResourceError, SlmRayError
from slm_ray.serving.adapter_cache import MAX_BYTES, NodeLocalCache
from slm_ray.serving.engine_process import forked
from slm_ray.serving.failures import failure, failure_of
from slm_ray.serving.limits import most_tokens
from slm_ray.serving.memory import require_room
from slm_ray.serving.replica import EngineDead, Kind, Piece
from slm_ray.storage import read_json

CACHE_SETTING = "adapter_cache_bytes"  # of experimental_configs
_LINGERS_S = 10.0
_LOOKS_EVERY_S = 0.2
_BODIES: dict[Kind, Any] = {"chat": bodies.ChatCompletionRequest, "completions": bodies.CompletionRequest}


async def start(llm_config: Mapping[str, Any]) -> AdapterServer:
    """An engine that answers, from an entry of `llm_configs`; ValueError where that is none."""
    config = LLMConfig.model_validate(llm_config)
    # Ray's multiplexing and vLLM's table must hold the same number of adapters.
    config.lora_config = LoraConfig(max_num_adapters_per_replica=config.engine_kwargs.get("max_loras", 1))
    config.callback_config.callback_class = LocalModel
    server = AdapterServer.__new__(AdapterServer)
    await server.__init__(config)  # type: ignore[misc]  # as Serve does: a class that is called may not be awaited
    return server


class AdapterServer(LLMServer):  # type: ignore[misc]
    """One engine and its adapters."""

    async def __init__(self, llm_config: LLMConfig, **options: Any) -> None:  # type: ignore[misc]
        check_room(llm_config)
        self._cache = NodeLocalCache(int(llm_config.experimental_configs.get(CACHE_SETTING, MAX_BYTES)))
        self._loading: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        loader = functools.partial(CopyLoader, cache=self._cache)
        await super().__init__(llm_config, engine_cls=HouseEngine, model_downloader=loader, **options)
        self._watching = asyncio.create_task(self._end_with_engine())

    async def _end_with_engine(self) -> None:
        """End the replica when its engine has died: Serve sends it no further request then, and starts another at once.

        Alive, it would be the least busy replica, and requests would come to it, and fail, until Serve counted three checks.
        """
        client = self.engine._engine_client
        while not client.errored:
            await asyncio.sleep(_LOOKS_EVERY_S)
        logging.getLogger("ray.serve").error("the engine has died; this replica ends with it")
        self._cache.close()
        os._exit(1)

    async def answer(self, kind: Kind, request: Mapping[str, Any]) -> AsyncGenerator[Piece, None]:
        """The answer to a request body in pieces that need no vLLM to be read, refusals among them.

        HTTPException for an adapter that cannot be used and for an engine that fails: what it raised is in the log here, and
        would have the one who asks import vLLM.
        """
        try:
            with _plain_errors():
                return _pieces(await getattr(self, kind)(_BODIES[kind].model_validate(request)))
        except ValidationError as error:
            return _refusal(failure_of(error))

    async def _start_engine(self) -> None:
        await self.engine.start()  # without the stock server's report on its use: an actor of 240 MB

    async def _run_request(self, request: Any, **options: Any) -> Any:
        if not (getattr(request, "max_completion_tokens", None) or request.max_tokens):
            shown = getattr(request, "top_logprobs", None)
            bound = most_tokens(n=request.n, logprobs=request.logprobs, top_logprobs=shown)
            request.max_tokens = min(bound, self.engine.context)  # more than the context is an error
        name = serve.get_multiplexed_model_id().partition(":")[2]
        if not name:
            return await super()._run_request(request, **options)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._cache.hold(name))
            answer = await super()._run_request(request, **options)
            return _held(answer, stack.pop_all())

    def _batch_output_stream(self, generator: AsyncGenerator[Any, None]) -> AsyncGenerator[list[Any], None]:
        return _first_at_once(generator, super()._batch_output_stream)

    async def _maybe_resolve_lora_from_multiplex(self) -> None:
        model_id = serve.get_multiplexed_model_id()
        if not model_id:
            return
        # Of N concurrent first requests the stock server answers N-1 with 500 ("has already been loaded").
        async with self._loading[model_id]:
            try:
                # What Ray and the engine take for loaded may have left the cache, and would be read again.
                if not self._cache.touch(model_id.partition(":")[2]):
                    await asyncio.to_thread(_fetch, self._cache, self._llm_config, model_id)
                await super()._maybe_resolve_lora_from_multiplex()
            except FileNotFoundError as error:
                raise HTTPException(404, str(error)) from None
            except ResourceError as error:
                raise HTTPException(503, str(error)) from None
            except (SlmRayError, ValueError) as error:
                raise HTTPException(400, f"the adapter cannot be used: {error}") from None

    async def __del__(self) -> None:  # type: ignore[misc]
        await super().__del__()
        self._cache.close()


class CopyLoader(LoraModelLoader):  # type: ignore[misc]
    """Where the engine gets an adapter's files: the checked copy on this node."""

    def __init__(self, *, cache: NodeLocalCache, **options: Any) -> None:
        super().__init__(**options)
        self._cache = cache

    async def load_model_from_config(self, lora_model_id: str, llm_config: LLMConfig) -> DiskMultiplexConfig:
        """Fetch `BASE:NAME`; FileNotFoundError or AdapterError when that cannot be."""
        path = await asyncio.to_thread(_fetch, self._cache, llm_config, lora_model_id)
        # Ray asks for an id and never uses it: vLLM counts its own.
        return DiskMultiplexConfig(
            model_id=lora_model_id, local_path=path, max_total_tokens=None, lora_assigned_int_id=1
        )


class HouseEngine(VLLMEngine):  # type: ignore[misc]
    """vLLM's engine with the chat template of training, and on CPU with its worker in the core's process, forked from here.

    One process takes 8 s less to start and answers a quarter more requests per second: vLLM keeps them apart on CPU to bind
    several threads to cores; Ray gives a replica one thread.
    """

    def _prepare_engine_config(self, callback_ctx: Any) -> Any:
        arguments, frontend, config = super()._prepare_engine_config(callback_ctx)
        self.context: int = config.model_config.max_model_len
        if frontend.chat_template is None:  # the Serve file names none: the one that training renders
            frontend.chat_template = served_template(arguments.tokenizer or arguments.model)
        if config.device_config.device_type == "cpu" and config.parallel_config.world_size == 1:
            config.parallel_config.distributed_executor_backend = "uni"
        return arguments, frontend, config

    def _start_async_llm_engine(self, arguments: Any, config: Any, placement_group: Any) -> Any:
        on_cpu = config.device_config.device_type == "cpu"  # a driver of a GPU does not outlive a fork
        in_one = on_cpu and config.parallel_config.distributed_executor_backend == "uni"
        with forked() if in_one else contextlib.nullcontext():
            return super()._start_async_llm_engine(arguments, config, placement_group)


def check_room(llm_config: LLMConfig) -> None:
    """ResourceError, before any weight is read, where the engine has no room on the smallest GPU of this node.

    Not checked: a base that is quantised or not here yet, and a node whose driver does not say how large its GPUs are.
    """
    folder, engine = Path(llm_config.model_loading_config.model_source), llm_config.engine_kwargs
    if getattr(llm_config.accelerator_config, "kind", "") != "gpu" or not folder.is_dir() or "quantization" in engine:
        return
    base, card = read_json(folder / "config.json"), _smallest_gpu_bytes()
    if card is not None and "quantization_config" not in base:
        require_room(base, engine, card=card)


def _smallest_gpu_bytes() -> float | None:
    from vllm.utils.import_utils import import_pynvml

    nvml = import_pynvml()
    try:
        nvml.nvmlInit()
        cards = [nvml.nvmlDeviceGetHandleByIndex(place) for place in range(nvml.nvmlDeviceGetCount())]
        return min((float(nvml.nvmlDeviceGetMemoryInfo(card).total) for card in cards), default=None)
    except nvml.NVMLError:
        return None


class LocalModel(CallbackBase):  # type: ignore[misc]
    """Skips Ray's download task, which spends 5-8 s on finding that a local folder needs no download."""

    async def on_before_node_init(self) -> None:
        """Called by the engine; a hub name is downloaded by vLLM itself."""
        self.ctx.run_init_node = False


async def _refusal(response: JSONResponse) -> AsyncGenerator[Piece, None]:
    yield response.status_code, bytes(response.body)


async def _pieces(answer: AsyncGenerator[Any, None]) -> AsyncGenerator[Piece, None]:
    with _plain_errors():
        async with contextlib.aclosing(answer):
            async for found in answer:
                yield _piece(found)


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """What is raised, as exceptions that can be read without vLLM; what they were is in the log here."""
    try:
        yield
    except (HTTPException, ValidationError):
        raise
    except VLLM_CLIENT_ERRORS as error:
        raise HTTPException(400, str(error)) from None
    except VLLM_FATAL_ERRORS as error:
        raise EngineDead(str(error)) from None
    except Exception as error:
        logging.getLogger("ray.serve").error("an answer failed: %s", type(error).__name__, exc_info=error)
        raise HTTPException(500, type(error).__name__) from None


def _piece(found: Any) -> Piece:
    if isinstance(found, list):
        if len(found) == 1 and isinstance(found[0], bodies.ErrorResponse):
            return _piece(found[0])
        return "".join(each if isinstance(each, str) else f"data: {each.model_dump_json()}\n\n" for each in found)
    if isinstance(found, bodies.ErrorResponse):
        response = failure(found.error.code, found.error.message)
        return found.error.code, bytes(response.body)
    return 200, found.model_dump_json().encode()


async def _held(answer: AsyncGenerator[Any, None], held: contextlib.ExitStack) -> AsyncGenerator[Any, None]:
    """The answer, and the adapter's copy while the engine may read it: a little longer, since it learns late who has left."""
    try:
        async for piece in answer:
            yield piece
    finally:
        asyncio.get_running_loop().call_later(_LINGERS_S, held.close)
        await answer.aclose()


async def _first_at_once(
    pieces: AsyncGenerator[Any, None], batched: Callable[[AsyncGenerator[Any, None]], AsyncGenerator[list[Any], None]]
) -> AsyncGenerator[list[Any], None]:
    """The role and the first token as they come, the rest in Ray's batches: a message for each token costs half the speed."""
    try:
        for _ in range(2):
            yield [await anext(pieces)]
    except StopAsyncIteration:
        return
    except BaseException:  # the client has left
        await pieces.aclose()
        raise
    async with contextlib.aclosing(batched(pieces)) as batches:
        async for batch in batches:
            yield batch


def _fetch(cache: NodeLocalCache, llm_config: LLMConfig, model_id: str) -> str:
    adapters_dir = llm_config.experimental_configs["adapters_dir"]
    base = _base_folder(llm_config.model_loading_config.model_source)
    return str(cache.fetch(adapters_dir, model_id.partition(":")[2], base))


def _base_folder(source: str) -> Path:
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(source, local_files_only=True))
