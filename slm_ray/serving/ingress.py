"""The endpoint's front: Ray's OpenAI ingress, plus adapters by name, Azure's routes, the stand-in and an API key.

A client names `BASE`, `BASE:ADAPTER` or `ADAPTER`, or in the adapter's place an alias, which stands for the adapter that was
promoted last. Whatever the folder holds now is resolved, per request, first as a folder and then as an alias, to a
name that never means anything else (`adapter_cache`); multiplexing, vLLM's table and its prefix cache all go by that name,
and the response's `model` shows it.

Overrides private methods of the pinned Ray; `tests/integration/test_serving_contract.py` holds their shape.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from ray.llm._internal.common.errors import VLLM_CLIENT_ERRORS
from ray.llm._internal.serve.core.configs.openai_api_models import ChatCompletionRequest, ErrorResponse
from ray.serve.llm.ingress import OpenAiIngress
from starlette.exceptions import HTTPException
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import JSONResponse, Response

from slm_ray.errors import SlmRayError
from slm_ray.serving.adapter_cache import ServedNames
from slm_ray.serving.admission import Admission, Room
from slm_ray.serving.auth import RequireKey, ThisMachineOnly
from slm_ray.serving.engine_watch import RETRY_AFTER_S, EngineWatch
from slm_ray.serving.failures import OneErrorShape, failure, failure_of, presentable, refusal
from slm_ray.serving.figures import Recorder
from slm_ray.serving.keys import KeyRing
from slm_ray.serving.limits import RequestLimits
from slm_ray.serving.stand_in import StandIn
from slm_ray.serving.tools import tool_problem

NOT_SERVED = ("/v1/embeddings", "/v1/audio/transcriptions", "/v1/score")  # Ray's routes for other models than ours
AZURE_CHAT = "/openai/deployments/{deployment:path}/chat/completions"
AZURE_V1 = "/openai/v1"  # the newer routes: OpenAI's own, without an api-version, the deployment named as the model


class AdapterIngress(OpenAiIngress):  # type: ignore[misc]
    """One base model, the adapters of one folder."""

    def __init__(
        self,
        *args: Any,
        adapters_dir: str,
        room: Room,
        engines: int,
        tools: bool,
        api_key_digest: str | None = None,
        keys_file: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self._base: str
        (self._base,) = self._model_cards
        self._names = ServedNames(adapters_dir)
        self._stand_in: StandIn | None = None
        self._schemas: Mapping[str, Any] = {}
        self._tools = tool_problem if tools else None
        self._room = room
        self._keys = KeyRing(own_digest=api_key_digest, file=keys_file) if api_key_digest else None
        self._watch = EngineWatch(self._check_engine, engines=engines)

    def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Take what may change while answers are written: the stand-in, and the schemas that requests name."""
        stand_in = user_config["stand_in"]
        self._stand_in = StandIn(**stand_in) if stand_in else None
        self._schemas = user_config["schemas"]

    async def __serve_build_asgi_app__(self) -> Any:
        """Ray's app with our routes, one error shape outermost, then the key; without CORS, which allowed every origin.

        Its error handler goes too: what it says is not for clients, and a task of its own stands in the way of each chunk.
        """
        app: Any = self._asgi_app
        foreign = (CORSMiddleware, BaseHTTPMiddleware)
        app.user_middleware = [entry for entry in app.user_middleware if entry.cls not in foreign]
        app.router.routes = [route for route in app.router.routes if getattr(route, "path", "") not in NOT_SERVED]
        self._watch.start()
        app.add_api_route("/health", self.health, methods=["GET"])
        app.add_api_route(AZURE_CHAT, self.azure_chat, methods=["POST"])
        app.add_api_route(f"{AZURE_V1}/chat/completions", self.azure_v1_chat, methods=["POST"])
        app.add_api_route(f"{AZURE_V1}/models", self.azure_v1_models, methods=["GET"])
        app.add_api_route(f"{AZURE_V1}/models/{{model:path}}", self.azure_v1_model, methods=["GET"])
        for kind in (HTTPException, RequestValidationError):
            app.add_exception_handler(kind, _http_error)
        for kind in VLLM_CLIENT_ERRORS:  # raised while a body is read, and neither of those
            app.add_exception_handler(kind, _client_error)
        app.add_middleware(Admission, base=self._base, room=self._room, figures=Recorder())
        app.add_middleware(RequestLimits, tools=self._tools)
        if self._keys is not None:
            app.add_middleware(RequireKey, ring=self._keys)
        else:
            app.add_middleware(ThisMachineOnly)
        app.add_middleware(OneErrorShape)
        return app

    async def health(self) -> Response:
        """200 while the engine answers, 503 while it does not."""
        return _engine_down() if self._watch.down else JSONResponse({"status": "ok"})

    async def azure_chat(self, deployment: str, body: ChatCompletionRequest, request: Request) -> Response:
        """Chat in Azure's older shape; `deployment` is a served model's name or the stand-in's."""
        if not request.query_params.get("api-version"):
            return refusal(400, "BadRequest", "the query parameter api-version is missing")
        body.model = deployment
        return await self.azure_v1_chat(body, request)

    async def azure_v1_chat(self, body: ChatCompletionRequest, request: Request) -> Response:
        """Chat in Azure's newer shape; the request's `model` is a served model's name or the stand-in's."""
        if self._stand_in is not None and body.model == self._stand_in.deployment:
            return await self._answer_as_stand_in(self._stand_in, body, request)
        try:
            body.model = await self._get_model_id(body.model)
        except HTTPException as error:
            if error.status_code != 404:
                raise
            return refusal(404, "DeploymentNotFound", "The API deployment for this resource does not exist.")
        answer: Response = await self.chat(body, request)
        return answer

    async def azure_v1_models(self) -> Response:
        """What `GET /v1/models` lists."""
        return await self.models()

    async def azure_v1_model(self, model: str) -> Response:
        """What `GET /v1/models/MODEL` says."""
        return await self.model_data(model)

    async def _answer_as_stand_in(self, stand_in: StandIn, body: ChatCompletionRequest, request: Request) -> Response:
        if body.stream:
            return refusal(400, "BadRequest", "the stand-in does not stream, so that every answer can be labelled")
        try:
            prompt = await asyncio.to_thread(stand_in.prompt, (await request.json())["messages"])
        except SlmRayError as error:
            return refusal(400, "BadRequest", presentable(str(error)))
        asked = body.model_copy(update={"model": self._base, "messages": prompt.as_dicts()})
        answer = await self.chat(asked, request)
        return JSONResponse({**json.loads(answer.body), "model": stand_in.label})

    async def _get_model_id(self, model: str | None) -> str:
        if model is None or model == self._base:
            return self._base
        name = model.removeprefix(f"{self._base}:")
        try:
            return f"{self._base}:{await asyncio.to_thread(self._names.resolve, name)}"
        except FileNotFoundError as error:
            raise HTTPException(404, f"the model {model!r} {error}; GET /v1/models lists what there is") from None
        except SlmRayError as error:
            raise HTTPException(503, f"no adapter can be looked up: {error}") from None

    async def _get_response(self, *, body: Any, **options: Any) -> AsyncGenerator[Any, None]:
        body.model = await self._get_model_id(body.model)
        self._fill_schema(body)
        if self._watch.down or not self._has_engine():
            raise _EngineDown(503)
        try:
            async for chunk in super()._get_response(body=body, **options):
                if isinstance(chunk, ErrorResponse) and chunk.error.code >= 500 and await self._watch.ask_now():
                    raise _EngineDown(503)
                yield chunk
        except Exception as error:  # Ray's, or the engine's own, which Serve hands over as it is
            if not isinstance(error, HTTPException) and await self._watch.ask_now():
                raise _EngineDown(503) from None
            raise

    def _fill_schema(self, body: Any) -> None:
        """Put a track's schema where the request has a name and no schema, which OpenAI's API leaves optional."""
        wanted = getattr(getattr(body, "response_format", None), "json_schema", None)
        if wanted is None or wanted.json_schema is not None:
            return
        if wanted.name not in self._schemas:
            known = ", ".join(sorted(self._schemas)) or "none"
            raise HTTPException(
                400,
                f"response_format has no schema, and {wanted.name[:60]!r} is no track whose answer_schema is served here"
                f" (serving.tracks: {known})",
            )
        wanted.json_schema = self._schemas[wanted.name]

    async def _check_engine(self) -> None:
        if not self._has_engine():
            raise _EngineDown(503)
        await self._default_serve_handles[self._base].check_health.remote()

    def _has_engine(self) -> bool:
        """Whether Serve has an engine to send a request to; while its only one is replaced it would let requests wait."""
        router = getattr(self._default_serve_handles[self._base]._router, "_asyncio_router", None)
        found = router.request_router if router is not None else None
        return found is None or bool(found.curr_replicas)

    async def models(self) -> Response:
        """The base, every adapter in the folder, and every alias that stands for one of them; `parent` is an adapter's base."""
        names = await asyncio.to_thread(self._names.listed)
        return JSONResponse({"object": "list", "data": [self._card(), *(self._card(*pair) for pair in names.items())]})

    async def model_data(self, model: str) -> Response:
        """The card of one model; 404 when there is no such model."""
        name = (await self._get_model_id(model)).partition(":")[2]
        asked = model.removeprefix(f"{self._base}:").partition("@")[0]
        return JSONResponse(self._card(asked, name) if name else self._card())

    def _card(self, adapter: str = "", name: str = "") -> dict[str, Any]:
        """Ray's card with `parent`: of the base (without arguments), or of what is asked for as `adapter`, served as `name`."""
        card: dict[str, Any] = {**self._model_cards[self._base].model_dump(mode="json"), "parent": None}
        if not adapter:
            return card
        about = {
            **card["metadata"], "model_id": f"{self._base}:{adapter}", "base_model_id": self._base, "served_as": name,
        }  # fmt: skip
        if adapter != name.partition("@")[0]:
            about["alias_of"] = f"{self._base}:{name}"
        return {**card, "id": f"{self._base}:{adapter}", "metadata": about, "parent": self._base}


class _EngineDown(HTTPException):
    """Nobody is there to answer; a replica is being started."""


async def _http_error(request: Request, error: Any) -> JSONResponse:
    """What FastAPI and its router raise, in the one shape; their own has none of its fields."""
    return _engine_down() if isinstance(error, _EngineDown) else failure_of(error)


async def _client_error(request: Request, error: Exception) -> JSONResponse:
    return failure(400, str(error))


def _engine_down() -> JSONResponse:
    return refusal(
        503, "engine_unavailable", "the engine is down and is being started again; try again later", "server_error",
        retry_after_s=RETRY_AFTER_S,
    )  # fmt: skip
